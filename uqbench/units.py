"""Names of units and their factors to the units inside the program: eV, Å, eV/Å."""

from __future__ import annotations

from typing import Literal

from ase import units

from uqbench.config.names import choose

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
}
LENGTH = {"Ang": 1.0, "Bohr": units.Bohr, "nm": units.nm}


EnergyUnit = Literal[tuple(ENERGY)]
LengthUnit = Literal[tuple(LENGTH)]
ForceUnit = Literal[tuple(f"{energy}/{length}" for energy in ENERGY for length in LENGTH)]


def energy_factor(unit: str) -> float:
    """Return eV per `unit`; raises DataError for an unknown name."""
    return ENERGY[choose(unit, ENERGY, "energy unit")]


def length_factor(unit: str) -> float:
    """Return Å per `unit`; raises DataError for an unknown name."""
    return LENGTH[choose(unit, LENGTH, "length unit")]


def force_factor(unit: str) -> float:
    """Return eV/Å per `unit`, an energy over a length such as kcal/mol/Ang; raises DataError for an unknown name."""
    energy, _, length = unit.rpartition("/")
    known = [f"{e}/{x}" for e in ENERGY for x in LENGTH]
    choose(f"{energy}/{length}", known, "force unit")
    return ENERGY[energy] / LENGTH[length]
