"""Where reaction paths begin and end: built-in reactions, and files of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.build.rotate import rotation_matrix_from_points
from ase.constraints import FixAtoms
from ase.geometry import find_mic
from ase.io.jsonio import encode

from uqbench.data.readers import ase_frames
from uqbench.errors import ConfigError, DataError

# Å, of any atom: minima that were relaxed from two sides differ by what a soft mode leaves of the forces.
SAME = 0.05
# Å: how far apart two frames may hold a fixed atom, which a file gives with few digits.
SAME_FIXED = 0.01

REACTIONS = {}


def reaction(function):
    """Register a function that returns the frames of a path, at least its two ends, under its name."""
    REACTIONS[function.__name__] = function
    return function


@reaction
def ammonia_inversion() -> list[Atoms]:
    """Pyramidal NH3 and its mirror image with every atom where it was: the umbrella turns inside out.

    The straight path between them leads through the planar D3h geometry, the saddle.
    """
    start = molecule("NH3")  # its threefold axis is z
    start.set_initial_magnetic_moments(None)
    end = start.copy()
    end.positions[:, 2] *= -1
    return [start, end]


def frames_of(path: str | None, name: str) -> tuple[str, list[Atoms]]:
    """Name a reaction and give its frames, from a file or else the built-in one; each lies on the one before it.

    Raises ConfigError for an unknown name, DataError for a file that cannot be used or frames that are no path.
    """
    if path is not None:
        label, frames = Path(path).stem, _read(Path(path))
    elif name in REACTIONS:
        label, frames = name, REACTIONS[name]()
    else:
        raise ConfigError(f"evaluation.reaction: no reaction '{name}' (known: {', '.join(REACTIONS)})")
    _check(frames, path or name)
    aligned = [frames[0]]
    for atoms in frames[1:]:
        aligned.append(laid_on(atoms, aligned[-1]))
    if all(same_geometry(atoms, aligned[0]) for atoms in aligned):
        raise DataError(f"{path or name}: its frames are all the same geometry; there is no path between them")
    return label, aligned


def laid_on(atoms: Atoms, target: Atoms) -> Atoms:
    """Copy a molecule shifted and turned onto another, without mirroring, and with its constraints.

    Periodic frames stay where they are, and so do those with constraints, which hold atoms or directions in space.
    """
    moved = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, constraint=atoms.constraints)
    if not (atoms.pbc.any() or atoms.constraints):
        centred, goal = (a.positions - a.positions.mean(axis=0) for a in (atoms, target))
        turn = rotation_matrix_from_points(centred.T, goal.T)
        moved.positions = centred @ turn.T + target.positions.mean(axis=0)
    return moved


def _read(path: Path) -> list[Atoms]:
    if path.exists() and not (path.is_file() or path.is_dir()):  # nothing is to be waited for, as at a pipe
        raise DataError(f"{path} is not a file; set evaluation.path")
    return ase_frames(path, format=None, index=":", remedy="set evaluation.path")


def _check(frames: list[Atoms], origin: str) -> None:
    if len(frames) < 2:
        raise DataError(f"{origin}: a path needs two frames or more, there is {len(frames)}")
    first = frames[0]
    if len(first) == 0:
        raise DataError(f"{origin}: frame 0 has no atoms")
    for i, atoms in enumerate(frames):
        if len(atoms) != len(first):
            raise DataError(f"{origin}: frame {i} has {len(atoms)} atoms, frame 0 has {len(first)}")
        if np.any(atoms.numbers != first.numbers):
            raise DataError(f"{origin}: frame {i} has other elements than frame 0, or another order of atoms")
        if np.any(atoms.pbc != first.pbc) or np.abs((atoms.cell - first.cell)[first.pbc]).max(initial=0) > 1e-6:
            raise DataError(f"{origin}: frame {i} has another cell than frame 0; the cell must stay the same")
        if not np.isfinite(atoms.positions).all():
            raise DataError(f"{origin}: frame {i} has positions that are not finite")
    _check_constraints(frames, origin)


def _check_constraints(frames: list[Atoms], origin: str) -> None:
    """Raise DataError unless one set of constraints holds all along the path."""
    first, (constraints, *others) = frames[0], map(_constraints, frames)
    for i, (atoms, those) in enumerate(zip(frames[1:], others, strict=True), start=1):
        if those != constraints:
            raise DataError(
                f"{origin}: frame {i} has other constraints ({_names(atoms)}) than frame 0 ({_names(first)}); "
                "they must be the same all along the path"
            )
        fixed = sorted({int(k) for c in first.constraints if isinstance(c, FixAtoms) for k in c.get_indices()})
        apart = np.linalg.norm(find_mic((atoms.positions - first.positions)[fixed], first.cell, first.pbc)[0], axis=1)
        if apart.max(initial=0.0) > SAME_FIXED:
            k = int(apart.argmax())
            raise DataError(
                f"{origin}: frame {i} fixes atom {fixed[k]} {apart[k]:.2g} Å from where frame 0 does; fixed atoms must "
                "be in the same place all along the path"
            )


def _constraints(atoms: Atoms) -> list[str]:
    return sorted(encode(constraint.todict()) for constraint in atoms.constraints)


def _names(atoms: Atoms) -> str:
    return ", ".join(type(constraint).__name__ for constraint in atoms.constraints) or "none"


def same_geometry(first: Atoms, second: Atoms) -> bool:
    """Whether two aligned frames have all atoms at the same places."""
    vectors, _ = find_mic(first.positions - second.positions, first.cell, first.pbc)
    return bool(np.linalg.norm(vectors, axis=1).max() < SAME)
