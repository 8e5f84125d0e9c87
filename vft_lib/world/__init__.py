"""The procedural world: clips from a seed, and what is said of them."""
