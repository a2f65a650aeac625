"""What every backbone in conf/backbone must hold: a potential made of it, and the plainest method on that."""

import pytest
from helpers import DEFAULT_KERNELS, KERNELS, distinct_backbones, small_config
from omegaconf import DictConfig

from uqbench import config
from uqbench.models.blocks import Backbone
from uqbench.testing import check_backbone, check_method
from uqbench.uq.deterministic import Deterministic

pytestmark = pytest.mark.numerics

# Each kind of kernels on one backbone; the compiled code of others has tests of its own.
PAIRS = [
    (backbone, kernels)
    for backbone in distinct_backbones()
    for kernels in (KERNELS if backbone == "painn_small" else [DEFAULT_KERNELS])
]


def builder(cfg: DictConfig):
    def build(*, n_species, init) -> Backbone:
        return config.build(cfg, slot="backbone", n_species=n_species, init=init)

    return build


def test_the_pair_with_all_kernels_is_there():
    assert {("painn_small", kernels) for kernels in KERNELS} <= set(PAIRS)


@pytest.mark.parametrize(("backbone", "kernels"), PAIRS, indirect=["kernels"])
def test_symmetries_forces_periodicity_cutoff_and_members_of_a_backbone(backbone, kernels):
    cfg = small_config(backbone, "deterministic").backbone
    check_backbone(builder(cfg), activation=cfg.activation)


@pytest.mark.parametrize(("backbone", "kernels"), PAIRS, indirect=["kernels"])
def test_predictions_losses_and_checkpoints_of_a_method_on_a_backbone(backbone, kernels):
    cfg = small_config(backbone, "deterministic").backbone
    check_method(Deterministic, backbone=builder(cfg), activation=cfg.activation)
