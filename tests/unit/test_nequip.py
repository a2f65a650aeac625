"""The NequIP backbone against nequip's own model, and what building it leaves behind in the process."""

import copy
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from helpers import CONF

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.models import nequip as module
from uqbench.models.blocks import Initialiser
from uqbench.models.nequip import NequIP
from uqbench.models.normalisation import Normalisation
from uqbench.models.potential import Potential, pair_vectors

pytestmark = pytest.mark.numerics

CUTOFF = 4.0
SIZES = {
    "even": {"features": 8, "layers": 3, "l_max": 2, "parity": False, "radial_layers": 2, "activation": "silu"},
    "both": {"features": 4, "layers": 3, "l_max": 1, "parity": True, "radial_layers": 1, "activation": "silu"},
    "plus": {
        "features": 4,
        "layers": 2,
        "l_max": 2,
        "parity": True,
        "radial_layers": 0,
        "activation": "shifted_softplus",
    },
}
FIXED = {"radial_functions": 8, "radial_features": 8, "cutoff": CUTOFF, "polynomial_cutoff_p": 6.0}
FIXED["average_neighbours"] = 5.0


def frames(name):
    rng = np.random.default_rng(0)
    # 4 Å of cutoff in a cell of 3.0 Å: several images of every atom, itself included, are neighbours.
    made = [molecule("CH3CONH2"), molecule("H2O")] if name == "molecules" else [bulk("MgO", "rocksalt", a=4.3)]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return made


def potential_of(elements, sizes, seed=3):
    init = Initialiser(seed, None)
    backbone = NequIP(**{**FIXED, **sizes}, n_species=len(elements), init=init)
    constants = Normalisation(tuple(elements), (0.0,) * len(elements), 1.0)
    return Potential(backbone, heads={}, normalisation=constants, activation="silu", init=init).double()


def our_batch(made):
    for atoms in made:
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.zeros_like(atoms.positions)
    structures = Structures.from_atoms(made, origin="test", energy_key="energy", force_key="forces")
    return GraphSet(structures, CUTOFF, dtype=torch.float64).batch(range(len(structures)))


def their_model(elements, sizes, monkeypatch):
    """nequip's own model with its own readout and derivatives, the weights drawn from the same seed."""
    from nequip.model import NequIPGNNModel

    # Its settings of the process are not wanted here either; the builder only asks whether they were made.
    monkeypatch.setattr("nequip.model.utils.global_state_initialized", lambda: True)
    (seed,) = Initialiser(3, None).seeds()
    activation = {"silu": "silu", "shifted_softplus": "ssp"}[sizes["activation"]]
    return NequIPGNNModel(
        seed=seed,
        model_dtype="float64",
        type_names=[f"element{k}" for k in range(len(elements))],
        r_max=CUTOFF,
        num_layers=sizes["layers"],
        l_max=sizes["l_max"],
        parity=sizes["parity"],
        num_features=sizes["features"],
        radial_mlp_depth=sizes["radial_layers"],
        radial_mlp_width=8,
        num_bessels=8,
        polynomial_cutoff_p=6,
        avg_num_neighbors=5.0,
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        convnet_nonlinearity_scalars={"e": activation, "o": "tanh"},
        convnet_nonlinearity_gates={"e": activation, "o": "tanh"},
        do_derivatives=True,
    )


def their_data(made, elements):
    """The frames as nequip reads them, with its own neighbour list."""
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
    from nequip.utils import torch_default_dtype

    data = []
    with torch_default_dtype(torch.float64):
        for atoms in made:
            one = compute_neighborlist_(from_ase(atoms), CUTOFF)
            one["atom_types"] = torch.as_tensor(np.searchsorted(elements, atoms.numbers))
            data.append(one)
    return AtomicDataDict.batched_from_list(data)


def compare(name, size, monkeypatch):
    """Largest relative deviations of energies and forces."""
    made = frames(name)
    batch = our_batch(made)
    elements = sorted({int(z) for z in batch.numbers})
    potential, model = potential_of(elements, SIZES[size]), their_model(elements, SIZES[size], monkeypatch)
    ours, theirs = dict(potential.backbone.network.named_parameters()), dict(model.model.func.named_parameters())
    # Our parameters were rounded to single precision on the way.
    for key, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[key], rtol=1e-6, atol=0)
        parameter.data.copy_(theirs[key])
    potential.heads["energy"] = model.model.func.per_atom_energy_readout.mlp_module
    output, expected = potential(batch), model(their_data(made, elements))
    pairs = (output.energy, expected["total_energy"].squeeze(-1)), (output.forces, expected["forces"])
    assert all(b.abs().max() > 1e-5 for _, b in pairs), "nothing to compare"
    return [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["molecules", "crystal"])
def test_energies_and_forces_equal_those_of_nequip(name, size, monkeypatch):
    deviations = compare(name, size, monkeypatch)
    print(name, size, deviations)
    assert max(deviations) < 1e-10


@pytest.mark.parametrize("broken", ["second direction lost", "both directions alike", "receivers and senders alike"])
def test_the_comparison_sees_broken_edges(broken, monkeypatch):
    intact = module.nequip_graph

    def breaking(geometry, distances, directions):
        graph = intact(geometry, distances, directions)
        half = len(distances)
        if broken == "second direction lost":
            graph["edge_index"] = graph["edge_index"][:, :half]
            graph["edge_vectors"], graph["edge_lengths"] = graph["edge_vectors"][:half], graph["edge_lengths"][:half]
        elif broken == "both directions alike":
            graph["edge_vectors"] = graph["edge_vectors"].abs()
        else:
            graph["edge_index"] = torch.stack([graph["edge_index"][0]] * 2)
        return graph

    monkeypatch.setattr(module, "nequip_graph", breaking)
    assert max(compare("molecules", "both", monkeypatch)) > 1e-3


@pytest.mark.parametrize("name", ["molecules", "crystal"])
def test_edges_have_the_direction_of_nequip(name):
    """Energies cannot tell: a model that is blind to reflections gives the same with all vectors reversed."""
    from nequip.nn import with_edge_vectors_

    made = frames(name)
    batch = our_batch(made)
    elements = sorted({int(z) for z in batch.numbers})
    geometry = potential_of(elements, SIZES["both"])._geometry(batch, pair_vectors(batch, batch.positions))
    graph = module.nequip_graph(geometry, geometry.distances, geometry.directions)
    theirs = with_edge_vectors_(their_data(made, elements))

    def rows(edge_index, vectors):
        return np.array(sorted(map(tuple, np.column_stack([edge_index.T, vectors.numpy().round(8) + 0.0]))))

    ours = rows(graph["edge_index"], graph["edge_vectors"] * graph["edge_lengths"])
    np.testing.assert_allclose(ours, rows(theirs["edge_index"], theirs["edge_vectors"]), atol=2e-8)
    assert torch.equal(graph["atom_types"], theirs["atom_types"])


def test_every_choice_changes_the_result():
    """A setting that is accepted and then lost would go unnoticed everywhere else."""
    batch = our_batch(frames("molecules"))
    elements = sorted({int(z) for z in batch.numbers})
    # Features of the second parity first arise in the second of three blocks.
    usual = {"layers": 3, "l_max": 1, "features": 4, "parity": False, "radial_layers": 1, "activation": "silu"}
    changes = [{}, {"l_max": 0}, {"parity": True}, {"radial_layers": 2}, {"activation": "shifted_softplus"}]
    changes += [{"radial_features": 7}, {"polynomial_cutoff_p": 5.0}, {"average_neighbours": 6.0}]
    forces = [potential_of(elements, usual | change)(batch).forces for change in changes]
    for one, other in itertools.combinations(forces, 2):
        assert (one - other).abs().max() > 1e-4 * one.abs().max()


@pytest.mark.parametrize("members", [None, 2])
def test_a_model_that_was_single_is_exact_again_as_double(members):
    """Otherwise the coupling coefficients, rounded to single precision, would break the rotation symmetry."""
    network = NequIP(**SIZES["even"], **FIXED, n_species=2, init=Initialiser(0, members))
    exact = {name: buffer.clone() for name, buffer in copy.deepcopy(network).double().network.named_buffers()}
    again = copy.deepcopy(network.double()).float().double().network
    assert any("w3j" in name and bool((buffer != buffer.float()).any()) for name, buffer in exact.items())
    assert all(torch.equal(buffer, exact[name]) for name, buffer in again.named_buffers())
    assert all(value.dtype == torch.float64 for value in again.state_dict().values())


def test_a_copy_and_a_checkpoint_of_it_give_the_same_bits(tmp_path):
    """As in training: the averaged weights are a deep copy, and its state is what is saved."""
    batch = our_batch(frames("molecules"))
    elements = sorted({int(z) for z in batch.numbers})
    sizes = SIZES["both"]
    potential, fresh = potential_of(elements, sizes), potential_of(elements, sizes, seed=4)
    duplicate = copy.deepcopy(potential)
    torch.save(duplicate.state_dict(), tmp_path / "state.pt")
    expected = potential(batch).forces
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.zero_()
    assert not torch.equal(fresh(batch).forces, expected)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(duplicate(batch).forces, expected) and torch.equal(fresh(batch).forces, expected)


PROCESS = """
import os, random, sys
import e3nn, numpy, torch
from ase.build import molecule
from helpers import graphs_of, small_config
from uqbench.uq.io import build_method
from uqbench.models.normalisation import Normalisation
from uqbench.data.structures import Structures

def state():
    backends = torch.backends
    precision = [getattr(module, "fp32_precision", None) for module in (backends, backends.cuda.matmul, backends.cudnn)]
    fuser = torch.jit.set_fusion_strategy([("STATIC", 2), ("DYNAMIC", 10)])
    torch.jit.set_fusion_strategy(fuser)
    return {
        "default type": torch.get_default_dtype(),
        "random numbers": (random.getstate(), str(numpy.random.get_state()), torch.random.get_rng_state().tolist()),
        "precision": (precision, torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "fuser": (fuser, torch._C._jit_texpr_fuser_enabled(), torch._C._jit_can_fuse_on_cpu()),
        "executor": (torch._C._get_graph_executor_optimize(), torch.are_deterministic_algorithms_enabled()),
        "modes": (torch.get_num_threads(), torch.is_grad_enabled(), torch.multiprocessing.get_sharing_strategy()),
        "environment": dict(os.environ),
        "e3nn": dict(e3nn.get_optimization_defaults()),
    }

atoms = molecule("H2O")
atoms.info["energy"], atoms.arrays["forces"] = 0.0, atoms.positions + 1.0
water = Structures.from_atoms([atoms], origin="test", energy_key="energy", force_key="forces")
assert "nequip" not in sys.modules
before = state()
method = build_method(small_config("nequip", "mve"), Normalisation.fit(water)).double()
method.predict(graphs_of(water).batch([0]))
after = state()
print("left behind:", [name for name in before if before[name] != after[name]])

from nequip.utils.global_state import set_global_state
set_global_state()
after = state()
print("nequip's own:", [name for name in before if before[name] != after[name]])
"""


def test_nothing_in_the_process_changes():
    """In a fresh process, where nequip is imported for the first time, and with what nequip does left alone to see."""
    paths = [str(folder) for folder in (CONF.parent, CONF.parent / "tests")]
    done = subprocess.run(
        [sys.executable, "-c", PROCESS],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = done.stdout.splitlines()[-2:]
    assert ours == "left behind: []"
    assert all(name in theirs for name in ("default type", "random numbers", "fuser", "modes", "environment"))


def test_a_build_that_fails_leaves_nothing_behind(monkeypatch):
    import nequip.model

    def fail(**arguments):
        torch.rand(1)
        raise RuntimeError("no memory")

    monkeypatch.setattr(nequip.model, "FullNequIPGNNModel", fail)
    dtype, numbers = torch.get_default_dtype(), torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="no memory"):
        NequIP(**SIZES["even"], **FIXED, n_species=1, init=Initialiser(0, None))
    assert torch.get_default_dtype() == dtype and torch.equal(torch.random.get_rng_state(), numbers)
