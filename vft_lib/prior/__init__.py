"""Ids from words: the autoregressive prior. Start at `prior.py`."""
