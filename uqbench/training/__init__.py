"""From labelled frames to weights."""
