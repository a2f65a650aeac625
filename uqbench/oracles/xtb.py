"""GFN-xTB through tblite: milliseconds for a small molecule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ase import Atoms
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.config.annotations import UnitInterval
from uqbench.errors import ConfigError
from uqbench.oracles import electrons
from uqbench.oracles.base import Compute, Engine, frames_of, single_point

if TYPE_CHECKING:
    from uqbench.data.structures import Structures


class XTB(Engine):
    """Extended tight binding, without a memory from geometry to geometry.

    Source: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019), of GFN2-xTB.

    Args:
        method: the Hamiltonian. accuracy: of tblite, smaller is tighter. electronic_temperature: K.
        max_iterations: of the self-consistent charges; a geometry that needs more fails.
        charge: in e. multiplicity: 2S + 1.
        executor, workers, threads, timeout_s, memory_gb, retries, max_failed, cache: see `Engine`.
    """

    def __init__(
        self,
        *,
        method: Literal["GFN2-xTB", "GFN1-xTB", "IPEA1-xTB"],
        accuracy: PositiveFloat,
        electronic_temperature: PositiveFloat,
        max_iterations: PositiveInt,
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
        settings = {"method": method, "accuracy": accuracy, "electronic_temperature": electronic_temperature}
        settings |= {"max_iterations": max_iterations, "charge": charge, "multiplicity": multiplicity}
        each = {"workers": workers, "threads": threads, "timeout_s": timeout_s, "memory_gb": memory_gb}
        each |= {"retries": retries, "max_failed": max_failed}
        super().__init__(settings, ["tblite"], executor=executor, cache=cache, **each)

    def check(self, frames: Sequence[Atoms] | Structures) -> None:
        """Raise ConfigError where the electrons of a frame do not allow the charge or the multiplicity."""
        electrons.require_possible(
            frames_of(frames), self.charge, self.multiplicity, electrons.xtb_electrons, "valence electrons"
        )

    @staticmethod
    def engine(**settings: Any) -> Compute:
        """See `Engine.engine`."""
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise ConfigError(f"oracle=xtb needs tblite ({error}): pip install 'uqbench[xtb]'") from error
        return single_point(lambda: TBLite(verbosity=0, **settings))
