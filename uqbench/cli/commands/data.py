"""Fetch or generate a data set, check it, and print its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uqbench.config import Skeleton as CommonSkeleton
from uqbench.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omegaconf import DictConfig
    from rich.table import Table

    from uqbench.data.distributions import Description
    from uqbench.data.structures import Splits, Structures

# Frames of each split, spread over it, whose structure is analysed; and how far, in Å, and how finely.
ANALYSED, REACH, BINS = 50, 7.0, 140


class Skeleton(CommonSkeleton):
    """Top-level keys of this command."""

    figure: str | None


def run(cfg: DictConfig) -> None:
    """Load `cfg.dataset`, split it, and print what it holds; writes the caches and, if asked for, `cfg.figure`.

    Raises DataError for bad files, splits that do not fit, frames that two splits share, and a figure of frames that
    are not periodic.
    """
    from rich.console import Console

    from uqbench import config
    from uqbench.data.structures import check_splits, duplicates_across

    dataset = config.build(cfg.dataset)
    structures = dataset.load()
    splits = dataset.split(structures)
    check_splits({name: frames for name, frames in splits.items() if len(frames)}, len(structures))
    console = Console(highlight=False, markup=False, emoji=False)
    # Paths would be cut or folded in a table.
    console.print(f"source  {printable(structures.origin)}", soft_wrap=True)
    console.print(f"sha256  {structures.sha256()}", soft_wrap=True)
    console.print(overview_table(structures, dataset.subset))
    console.print(splits_table(structures, splits))
    if structures.pbc.all() or cfg.figure is not None:
        described = describe_splits(structures, splits)
        console.print(structure_table(described))
        if cfg.figure is not None:
            write_figure(cfg.figure, described, dataset.subset)
            console.print(f"figure  {printable(cfg.figure)}", soft_wrap=True)
    shared = duplicates_across(structures, splits)
    if shared:
        name, frame, other, twin = shared[0]
        console.print(
            f"warning: {len(shared)} geometries stand in more than one split, such as frame {structures.ids[frame]} "
            f"({printable(name)}) and {structures.ids[twin]} ({printable(other)}): the test is not independent",
            soft_wrap=True,
        )


def overview_table(structures: Structures, subset: str) -> Table:
    """Return frames, atoms, elements, ranges of the labels and duplicates as a table of two columns."""
    import numpy as np
    from ase.data import chemical_symbols

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
    import numpy as np

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
    import numpy as np

    from uqbench.data.distributions import describe

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
    import numpy as np

    from uqbench.figures.distributions import pair_name

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
    from pathlib import Path

    from uqbench.errors import ConfigError
    from uqbench.figures.distributions import portrait
    from uqbench.runs.files import atomic_write

    content = portrait(described, f"Structure: {subset or 'all frames'}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror or error}); choose another figure=FILE") from error


def duplicate_counts(structures: Structures, tolerance: float = 1e-4) -> tuple[int, int]:
    """Return how many frames repeat the geometry of an earlier one, and how many of those differ in energy (eV)."""
    import numpy as np

    first = structures.geometry_groups()
    repeats = np.flatnonzero(first != np.arange(len(first)))
    differ = np.abs(structures.energies[repeats] - structures.energies[first[repeats]]) > tolerance
    return len(repeats), int(differ.sum())


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _table(*headers: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for k, header in enumerate(headers):
        table.add_column(header, justify="left" if k == 0 or len(headers) == 2 else "right", overflow="fold")
    return table
