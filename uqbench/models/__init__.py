"""Potentials: networks from geometries to energies and forces."""
