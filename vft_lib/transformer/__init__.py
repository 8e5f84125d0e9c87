"""Transformer blocks, and attention over packed sequences by who may see whom."""
