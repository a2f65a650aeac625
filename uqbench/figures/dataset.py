"""What a data set holds: tables of its frames, splits and structure for a terminal, and the figure of the structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uqbench.data.checks import label_warnings, scorable
from uqbench.data.distributions import Description, describe
from uqbench.data.structures import Splits, Structures, duplicates_across
from uqbench.errors import ConfigError, DataError
from uqbench.runs.files import atomic_write
from uqbench.text import printable

# Frames of each split, spread over it, whose structure is analysed; and how far, in Å, and how finely.
ANALYSED, REACH, BINS = 50, 7.0, 140


def show(structures: Structures, splits: Splits, subset: str, figure: str | None) -> None:
    """Print what a data set holds, and what its splits share; draw `figure`, a PNG file, if one is asked for.

    Raises DataError for a figure of frames that are not periodic.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    # Paths would be cut or folded in a table.
    console.print(f"source  {printable(structures.origin)}", soft_wrap=True)
    console.print(f"sha256  {structures.sha256()}", soft_wrap=True)
    console.print(overview_table(structures, subset))
    console.print(splits_table(structures, splits))
    if structures.pbc.all() or figure is not None:
        try:
            described = describe_splits(structures, splits)
        except DataError as error:
            raise DataError(f"figure={figure}: {error}") from error
        console.print(structure_table(described))
        if figure is not None:
            write_figure(figure, described, subset)
            console.print(f"figure  {printable(figure)}", soft_wrap=True)
    for line in [*label_warnings(structures), *scorable(structures, splits)[1]]:
        console.print(f"warning: {printable(line)}", soft_wrap=True)
    shared = duplicates_across(structures, splits)
    if shared:
        name, frame, other, copy = shared[0]
        console.print(
            f"warning: {len(shared)} geometries stand in more than one split, such as frame {structures.ids[frame]} "
            f"({printable(name)}) and {structures.ids[copy]} ({printable(other)}): the test is not independent",
            soft_wrap=True,
        )


def overview_table(structures: Structures, subset: str) -> Table:
    """Return frames, atoms, elements, ranges of the labels and duplicates as a table of two columns."""
    counts = structures.n_atoms
    periodic = structures.pbc.any(axis=1).mean()
    norms = np.linalg.norm(structures.forces, axis=1)
    repeated, conflicting = duplicate_counts(structures)
    rows = {
        "subset": subset or "none",
        "frames": f"{len(structures)}",
        "atoms per frame": _range(f"{counts.min()}", f"{counts.max()}"),
        "elements": " ".join(chemical_symbols[number] for number in structures.elements),
        "periodic": {0.0: "no", 1.0: "yes"}.get(periodic, f"{periodic:.0%} of the frames"),
        "energy, eV": _range(
            *(f"{round(e, 4) + 0.0:.4f}" for e in (structures.energies.min(), structures.energies.max()))
        ),
        "energy mean, std, eV": f"{structures.energies.mean():.4f}, {structures.energies.std():.4f}",
        "energy per atom std, eV": f"{(structures.energies / counts).std():.4f}",
        "force components, eV/Å": f"{structures.forces.min():.3f} to {structures.forces.max():.3f}",
        "force component rms, eV/Å": f"{np.sqrt(np.mean(structures.forces**2)):.3f}",
        "largest force, eV/Å": f"{norms.max():.3f}",
        "repeated geometries": f"{repeated}" + (f", {conflicting} with other labels" if conflicting else ""),
    }
    table = _table("data set", "")
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table


def splits_table(structures: Structures, splits: Splits) -> Table:
    """Return the size and the spread of the labels of every split."""
    table = _table("split", "frames", "energy mean, eV", "energy std, eV", "force rms, eV/Å")
    for name, frames in splits.items():
        if len(frames):
            part = structures[frames]
            force = np.sqrt(np.mean(part.forces**2))
            values = [f"{part.energies.mean():.4f}", f"{part.energies.std():.4f}", f"{force:.3f}"]
        else:
            values = ["", "", ""]
        table.add_row(printable(name), f"{len(frames)}", *values)
    rest = len(structures) - sum(map(len, splits.values()))
    if rest:
        table.add_row("unused", f"{rest}", "", "", "")
    return table


def describe_splits(structures: Structures, splits: Splits) -> dict[str, Description]:
    """Return the structure of every split that has frames; the bond and its cutoff are those of the first."""
    described: dict[str, Description] = {}
    for name, frames in splits.items():
        if len(frames):
            chosen = frames[np.unique(np.linspace(0, len(frames) - 1, ANALYSED).round().astype(int))]
            first = next(iter(described.values()), None)
            given = {} if first is None else {"bond": first.bond, "cutoff": first.cutoff}
            described[name] = describe(structures[chosen], reach=REACH, bins=BINS, **given)
    return described


def structure_table(described: Mapping[str, Description]) -> Table:
    """Return density, bond length and the commonest coordination numbers of every split."""
    first = next(iter(described.values()))
    bond = pair_name(first.bond)
    ways = {way: f"{pair_name(way)} within {first.cutoff:.2f} Å" for way in first.counts}
    table = _table("structure", "density, g/cm³", f"{bond} peak, Å", *ways.values())
    for name, one in described.items():
        low, high = (f"{edge:.3f}" for edge in (one.densities.min(), one.densities.max()))
        values = [_range(low, high), f"{one.distributions[one.bond].peak:.2f}"]
        for way in ways:
            numbers, counts = np.unique(one.counts[way], return_counts=True)
            values.append(f"{numbers[counts.argmax()]}: {counts.max() / counts.sum():.1%}" if len(numbers) else "")
        table.add_row(printable(name), *values)
    return table


def write_figure(path: str, described: Mapping[str, Description], subset: str) -> None:
    """Draw radial distributions, coordination and densities of all splits into a PNG file."""
    content = structure_panels(described, f"Structure: {subset or 'all frames'}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror or error}); choose another figure=FILE") from error


def structure_panels(described: Mapping[str, Description], title: str) -> bytes:
    """Draw radial distributions, coordination and densities as a PNG file, all by name of what was described."""
    from uqbench.figures.structure import Line, structure_figure

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


def duplicate_counts(structures: Structures, tolerance: float = 1e-4) -> tuple[int, int]:
    """Return how many frames repeat the geometry of an earlier one, and how many of those differ in energy (eV)."""
    first = structures.geometry_groups()
    repeats = np.flatnonzero(first != np.arange(len(first)))
    differ = np.abs(structures.energies[repeats] - structures.energies[first[repeats]]) > tolerance
    return len(repeats), int(differ.sum())


def pair_name(pair: tuple[int, int]) -> str:
    """Return a pair of elements in symbols, such as Si–O."""
    return "–".join(chemical_symbols[number] for number in pair)


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for k, header in enumerate(headers):
        table.add_column(header, justify="left" if k == 0 or len(headers) == 2 else "right", overflow="fold")
    return table
