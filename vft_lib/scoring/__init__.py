"""`vft eval`: measured as the field measures, every number with the protocol it was made by."""
