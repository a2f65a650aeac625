"""Frames: packed, split, as graphs; and where they come from."""
