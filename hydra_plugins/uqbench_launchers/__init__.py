"""Launchers of sweeps; Hydra takes them from below its own namespace only, and imports them all at its start."""
