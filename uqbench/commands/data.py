"""Fetch or generate a data set, check it, and print its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table

    from uqbench.structures import Splits, Structures


def run(cfg: DictConfig) -> None:
    """Load `cfg.dataset`, split it, and print what it holds; writes nothing but the download cache.

    Raises DataError for bad files, splits that do not fit, and frames that two splits share.
    """
    from rich.console import Console

    from uqbench import config
    from uqbench.structures import check_splits, duplicates_across

    dataset = config.build(cfg.dataset)
    structures = dataset.load()
    splits = dataset.split(structures)
    check_splits({name: frames for name, frames in splits.items() if len(frames)}, len(structures))
    console = Console(highlight=False)
    # Paths would be cut or folded in a table.
    console.print(f"source  {structures.origin}", soft_wrap=True, markup=False)
    console.print(f"sha256  {structures.sha256()}", soft_wrap=True, markup=False)
    console.print(overview_table(structures, dataset.subset))
    console.print(splits_table(structures, splits))
    shared = duplicates_across(structures, splits)
    if shared:
        name, frame, other, twin = shared[0]
        console.print(
            f"warning: {len(shared)} geometries stand in more than one split, such as frame {structures.ids[frame]} "
            f"({name}) and {structures.ids[twin]} ({other}): the test is not independent",
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
        table.add_row(name, value)
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
        table.add_row(name, f"{len(frames)}", *values)
    rest = len(structures) - sum(map(len, splits.values()))
    if rest:
        table.add_row("unused", f"{rest}", "", "", "")
    return table


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
