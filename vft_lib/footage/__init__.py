"""Real pictures to train on: packed into one file, and read from it."""
