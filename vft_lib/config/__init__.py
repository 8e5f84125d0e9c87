"""Frozen configs: every size and switch of a model, read from JSON and checked."""
