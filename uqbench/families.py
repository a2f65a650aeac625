"""Families of uncertainty methods, by which reports compare them; here, so that a report need not import methods."""

from typing import Literal, get_args

Family = Literal["baseline", "single", "layer", "ensemble"]
"""How a method comes by its uncertainty: by a constant or trivial score, as one network that is trained to predict it,
by something fitted on the features of a trained network, or from several networks."""

FAMILIES: tuple[str, ...] = get_args(Family)
