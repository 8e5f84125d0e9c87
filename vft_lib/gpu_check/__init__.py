"""`vft gpu-check`: everything that only a GPU can prove, in a few minutes. Start at `check.py`."""
