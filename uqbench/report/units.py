"""Metric rows in other units."""

from __future__ import annotations

import pandas as pd
from ase import units as ase_units

from uqbench.runs.tables import NUMBERS

EV_IN_KCAL_MOL = float(ase_units.mol / ase_units.kcal)


def convert_units(frame: pd.DataFrame, units: str) -> pd.DataFrame:
    """Give the frame with energies and forces in ``eV`` or ``kcal/mol``; unitless metrics stay as they are.

    A negative log likelihood has unit 1 and keeps its value, which refers to eV and eV/Å. Raises ValueError for other
    units.
    """
    if units not in ("eV", "kcal/mol"):
        raise ValueError(f"units: expected eV or kcal/mol, got {units!r}")
    if units == "eV":
        return frame
    frame = frame.copy()
    energetic = frame["unit"].isin(["eV", "eV/Å", "eV/atom"])
    frame.loc[energetic, list(NUMBERS)] *= EV_IN_KCAL_MOL
    frame.loc[energetic, "unit"] = frame.loc[energetic, "unit"].str.replace("eV", "kcal/mol", regex=False)
    return frame
