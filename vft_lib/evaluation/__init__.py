"""Measurements of trained models, for their cards."""
