"""Uncertainty methods, and the families by which reports compare them."""

from typing import Literal, get_args

Family = Literal["baseline", "single", "layer", "ensemble"]
"""How a method comes by its uncertainty: by a constant or trivial score, as one network that is trained to predict it,
by something fitted on the features of a trained network, or from several networks."""

FAMILIES: tuple[str, ...] = get_args(Family)
