"""Frames from video and picture files, and back into them."""
