"""Run folders: what is kept of a run, and who may write there."""
