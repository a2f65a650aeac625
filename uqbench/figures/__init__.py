"""Drawings of results, as PNG files."""
