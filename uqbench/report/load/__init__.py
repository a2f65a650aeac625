"""Run directories as one table: their rows and settings, which of them are damaged, and which are missing."""
