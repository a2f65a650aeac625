"""Metrics of predictions and their uncertainties: pure numpy functions, float64, no torch and no files.

Shapes used throughout: n items (atoms for forces, structures for energies), D error components per item
(3 for forces, 1 for energies), S structures. `summary` turns predictions into metric rows; the other modules
hold one family of metrics each and can be used on their own.
"""
