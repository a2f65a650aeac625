"""With the same weights, PaiNN and SchNet give the energies and forces of schnetpack."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.models.blocks import Initialiser
from uqbench.models.compiled.potential import compile
from uqbench.models.normalisation import Normalisation
from uqbench.models.painn import PaiNN
from uqbench.models.potential import Potential
from uqbench.models.schnet import SchNet

pytest.importorskip("schnetpack", reason="schnetpack is not installed; benchmarks/README.md says how")
import schnetpack.properties as keys  # noqa: E402
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances  # noqa: E402
from schnetpack.model import NeuralNetworkPotential  # noqa: E402
from schnetpack.nn import BesselRBF, CosineCutoff, GaussianRBF  # noqa: E402
from schnetpack.representation import PaiNN as TheirPaiNN  # noqa: E402
from schnetpack.representation import SchNet as TheirSchNet  # noqa: E402

pytestmark = pytest.mark.numerics

F, LAYERS, BASIS, CUTOFF = 16, 3, 10, 4.0


def structures(name):
    rng = np.random.default_rng(0)
    frames = {
        "molecules": [molecule(formula) for formula in ("CH3CH2OH", "H2O", "CH3COCH3")],
        # 4 Å of cutoff in a cell of 3.2 Å: several images of every atom are neighbours.
        "crystal": [bulk("MgO", "rocksalt", a=4.3), bulk("MgO", "rocksalt", a=4.5, cubic=True)],
    }[name]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.zeros_like(atoms.positions)
    return Structures.from_atoms(frames, origin=name, energy_key="energy", force_key="forces")


def ours(kind, elements):
    init = Initialiser(0, None)
    arguments = {"features": F, "layers": LAYERS, "radial_functions": BASIS, "cutoff": CUTOFF, "init": init}
    if kind == "painn":
        backbone = PaiNN(**arguments, radial_basis="bessel", activation="silu", n_species=len(elements))
    else:
        backbone = SchNet(**arguments, radial_basis="gaussian", activation="shifted_softplus", n_species=len(elements))
    constants = Normalisation(tuple(elements), (0.0,) * len(elements), 1.0)
    return compile(Potential(backbone, heads={}, normalisation=constants, activation="silu", init=init)).double()


def theirs(kind):
    basis = BesselRBF(BASIS, CUTOFF) if kind == "painn" else GaussianRBF(BASIS, CUTOFF)
    representation = (TheirPaiNN if kind == "painn" else TheirSchNet)(F, LAYERS, basis, CosineCutoff(CUTOFF))
    model = NeuralNetworkPotential(
        representation=representation,
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(n_in=F, output_key="energy"), Forces()],
    )
    model = model.double().eval()
    # Their constants were rounded to single precision before the model became double.
    if kind == "painn":
        basis.freqs.copy_(torch.arange(1, BASIS + 1, dtype=torch.float64) * (np.pi / CUTOFF))
    else:
        basis.offsets.copy_(torch.linspace(0, CUTOFF, BASIS, dtype=torch.float64))
        basis.widths.fill_(CUTOFF / (BASIS - 1))
    return model


@torch.no_grad()
def fill(ours, theirs):
    """Copy one of our layers into one of theirs, whose weights are transposed."""
    theirs.weight.copy_(ours.weight.T)
    if theirs.bias is not None:
        theirs.bias.copy_(ours.bias)


@torch.no_grad()
def fill_part(weight, bias, layer, blocks):
    """Copy channel blocks into the named blocks of their layer; blocks of dead parameters keep their random values."""
    for source, target in enumerate(blocks):
        rows = slice(target * F, (target + 1) * F)
        layer.weight[rows] = weight[:, source * F : (source + 1) * F].T
        layer.bias[rows] = bias[source * F : (source + 1) * F]


@torch.no_grad()
def copy_weights(kind, mine, peer, elements):
    """Give schnetpack's model our weights (its embedding is a table over all elements)."""
    for parameter in mine.parameters():
        parameter.normal_(0, 0.3)
    peer.representation.embedding.weight[list(elements)] = mine.backbone.embedding.weight
    for own, other in zip(mine.heads["energy"].layers, peer.output_modules[0].outnet, strict=True):
        fill(own, other)
    for k, own in enumerate(mine.backbone.interactions):
        other = peer.representation.interactions[k]
        if kind == "schnet":
            for a, b in zip(own.filters.layers, other.filter_network, strict=True):
                fill(a, b)
            fill(own.to_senders, other.in2f)
            for a, b in zip(own.update.layers, other.f2out, strict=True):
                fill(a, b)
            continue
        # Our order of channels is r, s, v; theirs s, r, v. The first layer has no v, where μ = 0.
        order = [1, 0] if k == 0 else [1, 0, 2]
        net = peer.representation.filter_net
        filters = type("Slice", (), {})()
        filters.weight = net.weight[3 * F * k : 3 * F * (k + 1)]
        filters.bias = net.bias[3 * F * k : 3 * F * (k + 1)]
        fill_part(own.filters.weight, own.filters.bias, filters, order)
        fill(own.context.layers[0], other.interatomic_context_net[0])
        fill_part(own.context.layers[1].weight, own.context.layers[1].bias, other.interatomic_context_net[1], order)
        mixing, other = mine.backbone.mixings[k], peer.representation.mixing[k]
        fill(mixing.mix, other.mu_channel_mix)
        fill(mixing.context.layers[0], other.intraatomic_context_net[0])
        # Ours: q, q from μ, μ; theirs: q, μ, q from μ. The last layer's μ is never used.
        order = [0, 2] if mixing.last else [0, 2, 1]
        last = mixing.context.layers[1]
        fill_part(last.weight, last.bias, other.intraatomic_context_net[1], order)


@pytest.mark.parametrize("kind", ["painn", "schnet"])
@pytest.mark.parametrize("name", ["molecules", "crystal"])
def test_energies_and_forces_are_schnetpacks(kind, name):
    frames = structures(name)
    elements = frames.elements
    mine, peer = ours(kind, elements), theirs(kind)
    copy_weights(kind, mine, peer, elements)
    batch = GraphSet(frames, CUTOFF, dtype=torch.float64).batch(range(len(frames)))
    output = mine(batch)
    expected = peer(
        {
            keys.Z: batch.numbers,
            keys.R: batch.positions.clone(),
            keys.idx_i: torch.cat([batch.first, batch.second]),
            keys.idx_j: torch.cat([batch.second, batch.first]),
            keys.offsets: torch.cat([batch.shifts, -batch.shifts]),
            keys.idx_m: batch.system,
            keys.n_atoms: batch.n_atoms,
        }
    )
    assert output.energy.abs().max() > 1e-3 and output.forces.abs().max() > 1e-3
    torch.testing.assert_close(output.energy, expected["energy"].detach(), rtol=1e-10, atol=1e-12)
    scale = float(expected["forces"].abs().max())
    torch.testing.assert_close(output.forces, expected["forces"].detach(), rtol=1e-9, atol=1e-11 * scale)
