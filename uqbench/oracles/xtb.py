"""GFN-xTB through tblite: milliseconds for a small molecule."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from uqbench.errors import ConfigError
from uqbench.oracles.base import Compute, Engine, single_point


class XTB(Engine):
    """Extended tight binding, without a memory from geometry to geometry.

    Source: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019), of GFN2-xTB.

    Args:
        method: the Hamiltonian. accuracy: of tblite, smaller is tighter. electronic_temperature: K.
        max_iterations: of the self-consistent charges; a geometry that needs more fails.
        charge: in e. multiplicity: 2S + 1.
        executor, workers, threads, timeout_s, cache: see `Engine`.
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
        cache: str | None,
    ) -> None:
        settings = {"method": method, "accuracy": accuracy, "electronic_temperature": electronic_temperature}
        settings |= {"max_iterations": max_iterations, "charge": charge, "multiplicity": multiplicity}
        each = {"workers": workers, "threads": threads, "timeout_s": timeout_s}
        super().__init__(settings, ["tblite"], executor=executor, cache=cache, **each)

    @staticmethod
    def engine(**settings: Any) -> Compute:
        """See `Engine.engine`."""
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise ConfigError(f"oracle=xtb needs tblite ({error}): pip install 'uqbench[xtb]'") from error
        return single_point(lambda: TBLite(verbosity=0, **settings))
