"""The figure of some structures beside each other."""

from __future__ import annotations

from collections.abc import Mapping

from ase.data import chemical_symbols

from uqbench.data.distributions import Description
from uqbench.figures.structure import Line, structure_figure


def portrait(described: Mapping[str, Description], title: str) -> bytes:
    """Draw radial distributions, coordination and densities as a PNG file, all by name of what was described."""
    first = next(iter(described.values()))
    distributions = {
        f"{pair_name(pair)} distances": {
            name: Line(one.distributions[pair].r, one.distributions[pair].g) for name, one in described.items()
        }
        for pair in first.distributions
    }
    coordinations = {
        f"{pair_name(way)} neighbours within {first.cutoff:.2f} Å": {
            name: one.counts[way] for name, one in described.items()
        }
        for way in first.counts
    }
    densities = {name: one.densities for name, one in described.items()}
    return structure_figure(distributions, coordinations, densities, title)


def pair_name(pair: tuple[int, int]) -> str:
    """Return a pair of elements in symbols, such as Si–O."""
    return "–".join(chemical_symbols[number] for number in pair)
