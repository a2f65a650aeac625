"""Any calculator of ASE, or with ASE's interface, named by its dotted path."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.config import locate, require_trusted
from uqbench.config.annotations import UnitInterval
from uqbench.errors import ConfigError
from uqbench.oracles.base import Compute, Engine, single_point


class ASE(Engine):
    """A calculator class and its keyword arguments; a new object for each geometry.

    The class must be on the allow list of configs: a config cannot extend it, the environment variable
    UQBENCH_TRUSTED can (`UQBENCH_TRUSTED=ase.calculators`).

    Args:
        calculator: such as ase.calculators.emt.EMT. arguments: its keyword arguments.
        revision: any text; another one makes other labels, for files that the calculator reads and that changed.
        executor, workers, threads, timeout_s, memory_gb, retries, max_failed, cache: see `Engine`.
    """

    def __init__(
        self,
        *,
        calculator: str,
        arguments: dict[str, Any],
        revision: str | None,
        executor: Literal["local", "slurm"],
        workers: PositiveInt | None,
        threads: PositiveInt,
        timeout_s: PositiveFloat,
        memory_gb: PositiveFloat | None,
        retries: NonNegativeInt,
        max_failed: UnitInterval,
        cache: str | None,
    ) -> None:
        require_trusted(calculator, calculator, "oracle.calculator")
        settings = {"calculator": calculator, "arguments": dict(arguments), "revision": revision}
        packages = dict.fromkeys(["ase", calculator.partition(".")[0]])
        each = {"workers": workers, "threads": threads, "timeout_s": timeout_s, "memory_gb": memory_gb}
        each |= {"retries": retries, "max_failed": max_failed}
        super().__init__(settings, list(packages), executor=executor, cache=cache, **each)

    @staticmethod
    def engine(*, calculator: str, arguments: dict[str, Any], revision: str | None) -> Compute:
        """See `Engine.engine`."""
        kind = locate(calculator, "oracle.calculator", "ase.calculators.calculator.BaseCalculator")

        def make() -> Any:
            return kind(**arguments)

        try:
            make()
        except TypeError as error:
            raise ConfigError(f"oracle.arguments: {calculator} does not take them: {error}") from error
        return single_point(make)
