"""Weight files: our own, and published ones converted and compared."""
