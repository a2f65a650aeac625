"""Active learning: which structures to label next."""
