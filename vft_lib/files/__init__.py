"""Files: whole or not at all, those of strangers, tensors one at a time."""
