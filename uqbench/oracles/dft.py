"""Density functional theory through PySCF, for molecules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from ase import Atoms
from ase.units import Bohr, Hartree
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.config.annotations import UnitInterval
from uqbench.errors import ConfigError
from uqbench.oracles import electrons
from uqbench.oracles.base import Compute, Engine, frames_of

if TYPE_CHECKING:
    from uqbench.data.structures import Structures


class DFT(Engine):
    """Kohn-Sham energies and gradients: restricted for singlets, unrestricted otherwise.

    Args:
        functional, basis: names of PySCF. dispersion: such as d3bj, d3zero or d4; None for none.
        auxiliary_basis: of the density fitting; None for integrals without it.
        conv_tol: of the energy, Hartree. max_cycle: iterations after which a geometry fails.
        grid_level: 0 to 9. grid_response: derivatives of the grid weights in the forces.
        charge: in e. multiplicity: 2S + 1.
        executor, workers, threads, timeout_s, memory_gb, retries, max_failed, cache: see `Engine`.
    """

    def __init__(
        self,
        *,
        functional: str,
        basis: str,
        dispersion: str | None,
        auxiliary_basis: str | None,
        conv_tol: PositiveFloat,
        max_cycle: PositiveInt,
        grid_level: Annotated[int, Interval(ge=0, le=9)],
        grid_response: bool,
        charge: int,
        multiplicity: PositiveInt,
        executor: Literal["local", "slurm"],
        workers: PositiveInt | None,
        threads: PositiveInt,
        timeout_s: PositiveFloat,
        memory_gb: PositiveFloat | None,
        retries: NonNegativeInt,
        max_failed: UnitInterval,
        cache: str | None,
    ) -> None:
        self.charge, self.multiplicity = charge, multiplicity
        settings = {"functional": functional, "basis": basis, "dispersion": dispersion}
        settings |= {"auxiliary_basis": auxiliary_basis, "conv_tol": conv_tol, "max_cycle": max_cycle}
        settings |= {"grid_level": grid_level, "grid_response": grid_response}
        settings |= {"charge": charge, "multiplicity": multiplicity}
        packages = ["pyscf", "pyscf-dispersion"] if dispersion else ["pyscf"]
        each = {"workers": workers, "threads": threads, "timeout_s": timeout_s, "memory_gb": memory_gb}
        each |= {"retries": retries, "max_failed": max_failed}
        super().__init__(settings, packages, executor=executor, cache=cache, **each)

    def check(self, frames: Sequence[Atoms] | Structures) -> None:
        """Raise ConfigError where the electrons of a frame do not allow the charge or the multiplicity."""
        electrons.require_possible(frames_of(frames), self.charge, self.multiplicity, electrons.all_electrons)

    @staticmethod
    def engine(**settings: Any) -> Compute:
        """See `Engine.engine`."""
        needed = ["pyscf", "pyscf.dispersion"] if settings["dispersion"] else ["pyscf"]
        for module in needed:
            try:
                __import__(module)
            except ImportError as error:
                raise ConfigError(f"oracle=dft needs {module} ({error}): pip install 'uqbench[dft]'") from error
        from pyscf.dft import libxc

        try:
            libxc.parse_xc(settings["functional"])
        except (KeyError, ValueError) as error:
            raise ConfigError(f"oracle.functional: PySCF does not know {settings['functional']!r}") from error

        def compute(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
            return _kohn_sham(atoms, **settings)

        return compute


def _kohn_sham(
    atoms: Atoms,
    *,
    functional: str,
    basis: str,
    dispersion: str | None,
    auxiliary_basis: str | None,
    conv_tol: float,
    max_cycle: int,
    grid_level: int,
    grid_response: bool,
    charge: int,
    multiplicity: int,
) -> tuple[float, NDArray[np.float64]]:
    from pyscf import dft, gto

    if atoms.pbc.any():
        raise ValueError("oracle=dft computes molecules, and this frame is periodic")
    molecule = gto.M(
        atom=list(zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True)),
        unit=Bohr,  # a length in Å: ASE's value, so that one set of constants is used throughout
        basis=basis,
        charge=charge,
        spin=multiplicity - 1,
        verbose=0,
    )
    field = dft.KS(molecule, xc=functional)
    if auxiliary_basis is not None:
        field = field.density_fit(auxbasis=auxiliary_basis)
    field.disp = dispersion
    field.grids.level = grid_level
    field.conv_tol, field.max_cycle = conv_tol, max_cycle
    energy = field.kernel()
    if not field.converged:
        raise RuntimeError(f"not converged after {max_cycle} cycles")
    gradient = field.nuc_grad_method()
    gradient.grid_response = grid_response
    return energy * Hartree, -gradient.kernel() * Hartree / Bohr
