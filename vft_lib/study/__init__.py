"""The study: coarse-to-fine registers against a grid of tokens, at equal operations and data."""
