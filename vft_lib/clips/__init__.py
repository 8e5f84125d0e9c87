"""Whole clips through a tokenizer: from file to file, resumed, cut and joined."""
