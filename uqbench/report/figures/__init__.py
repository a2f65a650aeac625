"""Figures of a report, which compare methods."""
