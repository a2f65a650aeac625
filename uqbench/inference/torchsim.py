"""A trained run as a model of torch-sim, for its batched dynamics and relaxations; importing this needs torch-sim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from uqbench.data.verlet import DynamicGraph
from uqbench.errors import ConfigError, DataError
from uqbench.inference.calculator import SKIN, Model

try:
    from torch_sim import SimState
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ConfigError(f"torch-sim cannot be imported ({error}): pip install 'uqbench[torchsim]'") from error


class TorchSimModel(ModelInterface):
    """Energies, forces and, on request, stresses of all systems of a torch-sim state in one batch.

    Its results, on the device and in the precision of the model whatever those of the state:

    - energy: (S,) eV. In float32 it resolves no more than 1e-7 of itself.
    - forces: (N, 3) eV/Å.
    - stress: (S, 3, 3) eV/Å³, positive under tension, as in ASE and torch-sim; where `compute_stress` is true.
    - score: (N,) what the method ranks atoms by; bigger = less sure, any unit.

    torch-sim 0.3 knows systems that are periodic in all directions or in none, and makes of a slab one that is in none.
    Raises DataError for an element that the model has not seen, coordinates that are not finite, coincident atoms, a
    cell without a volume, and for stresses of systems that are not periodic.
    Source: Cohen et al., torch-sim, arXiv:2508.06628 (2025).

    Args:
        model: what `uqbench.load` returns.
        stress: whether stresses are computed, which dynamics at constant pressure and relaxations of cells need.
        skin: of the neighbour lists, Å; changes the speed, not the numbers.
    """

    def __init__(self, model: Model, *, stress: bool = False, skin: float = SKIN) -> None:
        super().__init__()
        self._model = model
        self._device, self._dtype = torch.device(model.device), model.dtype
        self._compute_forces, self._compute_stress = True, stress
        self._graph = DynamicGraph(model.cutoff, skin=skin, dtype=model.dtype, device=model.device)

    @ModelInterface.compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        """Choose whether stresses are computed."""
        self._compute_stress = compute_stress

    def forward(self, state: SimState | Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        """Evaluate a state of S systems with N atoms, or a mapping of what makes one (masses may be left out)."""
        if not isinstance(state, SimState):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        system = state.system_idx
        if (system.diff() < 0).any():
            raise DataError("system_idx: expected the atoms of the first system first, then those of the second, ...")
        # A truth value in torch-sim 0.3; one for each direction would do as well.
        pbc = torch.as_tensor(state.pbc).expand(len(state.cell), 3)
        if self._compute_stress and not pbc.all():
            raise DataError("stress: the systems are not periodic; take a model with stress=False")
        batch = self._graph.batch(
            state.atomic_numbers,
            state.positions.detach(),
            cells=state.row_vector_cell.detach(),
            pbc=pbc,
            ptr=torch.cat([system.new_zeros(1), system.bincount().cumsum(0)]),
        )
        with torch.no_grad():
            prediction = self._model.method.predict(batch, stress=self._compute_stress)
        results = {"energy": prediction.energy, "forces": prediction.forces, "score": prediction.score}
        if self._compute_stress:
            results["stress"] = prediction.stress
        return {name: values.to(self._dtype) for name, values in results.items()}
