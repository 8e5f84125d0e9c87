"""Models by name: where they are, how they are fetched and loaded."""
