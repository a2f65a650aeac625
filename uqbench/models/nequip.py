"""NequIP: E(3)-equivariant message passing (Batzner et al., Nat. Commun. 13, 2453 (2022)), by the `nequip` package."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from uqbench.config.annotations import Supplied
from uqbench.models import blocks
from uqbench.models.blocks import Activation, Backbone, Cutoff, Geometry, Initialiser

# The even activations under nequip's names; features that are odd under inversion always take tanh, as in the paper.
ACTIVATIONS = {"silu": "silu", "shifted_softplus": "ssp"}
READOUT = "per_atom_energy_readout"


class NequIP(Backbone):
    """NequIP's interaction blocks without its energy readout; the latents are the scalar features of the last block.

    Members are evaluated one after the other: their parameters have the leading axis, the `nequip` package has not.

    Args:
        features: channels F of every irreducible representation.
        layers: interaction blocks.
        l_max: highest rotation order of features and spherical harmonics.
        parity: whether features of both parities are kept, or those of the spherical harmonics only.
        radial_functions: size of the Bessel basis.
        radial_layers: hidden layers of the radial network.
        radial_features: width of these.
        cutoff: Å.
        polynomial_cutoff_p: exponent p of the polynomial envelope (Gasteiger et al., arXiv:2003.03123, eq. 8).
        average_neighbours: sums over neighbours are divided by the root of this number, which sets their initial scale.
        activation: of even scalars and gates, `silu` (the paper) or `shifted_softplus`.
        n_species: number of elements.
        init: source of the initial parameters; sets the member axis.
    """

    def __init__(
        self,
        *,
        features: PositiveInt,
        layers: PositiveInt,
        l_max: NonNegativeInt,
        parity: bool,
        radial_functions: PositiveInt,
        radial_layers: NonNegativeInt,
        radial_features: PositiveInt,
        cutoff: Cutoff,
        polynomial_cutoff_p: Annotated[float, Ge(2)],
        average_neighbours: PositiveFloat,
        activation: Activation,
        n_species: Supplied[int],
        init: Initialiser,
    ) -> None:
        super().__init__()
        blocks.activation(activation)
        self.features, self.cutoff, self.members = features, cutoff, init.members
        hidden = [f"{features}x{order}{p}" for order in range(l_max + 1) for p in ("eo" if parity else "eo"[order % 2])]
        arguments = {
            "r_max": cutoff,
            "type_names": [f"element{k}" for k in range(n_species)],
            "irreps_edge_sh": l_max,
            "type_embed_num_features": features,
            "feature_irreps_hidden": ["+".join(hidden)] * (layers - 1) + [f"{features}x0e"],
            "radial_mlp_depth": [radial_layers] * layers,
            "radial_mlp_width": [radial_features] * layers,
            "num_bessels": radial_functions,
            "polynomial_cutoff_p": polynomial_cutoff_p,
            "avg_num_neighbors": average_neighbours,
            "convnet_nonlinearity_scalars": {"e": ACTIVATIONS[activation], "o": "tanh"},
            "convnet_nonlinearity_gates": {"e": ACTIVATIONS[activation], "o": "tanh"},
        }
        networks = [_build(seed, arguments) for seed in init.seeds()]
        self.network = networks[0]
        if self.members is not None:
            parameters = zip(*(network.parameters() for network in networks), strict=True)
            for (name, _), draws in zip(list(self.network.named_parameters()), parameters, strict=True):
                owner, _, leaf = name.rpartition(".")
                setattr(self.network.get_submodule(owner), leaf, nn.Parameter(torch.stack([d.detach() for d in draws])))
        self._exact = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        self.to(torch.get_default_dtype())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NequIP:
        # Coupling coefficients come from double precision each time, so that a model that was once single is exact
        # again as double; and what nequip casts to the type that it was built with follows the type of the parameters.
        super()._apply(fn, recurse)
        for name, exact in self._exact.items():
            owner, _, leaf = name.rpartition(".")
            module, buffer = self.network.get_submodule(owner), self.network.get_buffer(name)
            setattr(module, leaf, exact.to(buffer.device, buffer.dtype, copy=True))
        for module in self.network.modules():
            if hasattr(module, "_output_dtype"):
                module._output_dtype = next(self.parameters()).dtype
        return self

    def forward(self, geometry: Geometry) -> Tensor:
        """Return the latent features of each atom, ([members,] N, features)."""
        if self.members is None:
            return self.network(nequip_graph(geometry, geometry.distances, geometry.directions))["node_features"]
        parameters = {name: stacked.unbind(0) for name, stacked in self.network.named_parameters()}
        latents = []
        for m in range(self.members):
            graph = nequip_graph(geometry, geometry.distances[m], geometry.directions[m])
            parameters_of_member = {name: slices[m] for name, slices in parameters.items()}
            latents.append(functional_call(self.network, parameters_of_member, (graph,))["node_features"])
        return torch.stack(latents)


def nequip_graph(geometry: Geometry, distances: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Return one member's geometry in nequip's terms, every pair as two edges.

    Its edges point from the destination edge_index[0], which sums the messages, to the source edge_index[1].
    """
    destinations, sources = geometry.pairs.edges
    return {
        "atom_types": geometry.species,
        "edge_index": torch.stack([destinations, sources]),
        # Spherical harmonics are normalised: they see the direction only.
        "edge_vectors": torch.cat([directions, -directions]),
        "edge_lengths": torch.cat([distances, distances]).unsqueeze(-1),
    }


def _build(seed: int, arguments: dict[str, object]) -> nn.Sequential:
    """Build the modules before nequip's readout in double precision, their parameters drawn from this seed."""
    with _builder(seed) as build:
        model = build(**arguments, per_type_energy_scales=1.0, per_type_energy_shifts=0.0, do_derivatives=False)
    modules = itertools.takewhile(lambda child: child[0] != READOUT, model.func.named_children())
    return nn.Sequential(OrderedDict(modules))


@contextlib.contextmanager
def _builder(seed: int) -> Iterator[Callable[..., nn.Module]]:
    """Provide nequip's builder, with what it and e3nn read from the process set up, and put all of that back."""
    state = random.getstate()
    # Imported here, since it takes seconds that only those who build a NequIP should wait, and draws random numbers.
    import e3nn
    from nequip.model import FullNequIPGNNModel
    from nequip.utils import conditional_torchscript_mode

    random.setstate(state)
    optimisation, dtype = dict(e3nn.get_optimization_defaults()), torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[]), conditional_torchscript_mode(False):
            torch.random.default_generator.manual_seed(seed)
            torch.set_default_dtype(torch.float64)
            # Without its decorator, which wants the whole process set up as nequip's own: seeds, default type, fusers,
            # TF32, environment variables.
            yield inspect.unwrap(FullNequIPGNNModel)
    finally:
        torch.set_default_dtype(dtype)
        # nequip's own restoration turns e3nn's `eager` into `script`; in this order the last key, the mode, counts.
        e3nn.set_optimization_defaults(**optimisation)
