"""What every backbone must hold as a potential: symmetries, forces as derivatives, the cutoff, members."""

import pytest
import torch
from helpers import options, small_config, small_method
from model_checks import CHECKS, check_members, known_elements

from uqbench.backbones.blocks import Initialiser
from uqbench.config import build
from uqbench.errors import ConfigError
from uqbench.model import build_method
from uqbench.potential import Normalisation, Potential


@pytest.fixture(scope="module", params=options("backbone"))
def backbone(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def potential(backbone) -> Potential:
    """A potential for H, C, N, O, Mg with lively random weights in float64."""
    method = small_method(known_elements(), backbone, "deterministic")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return method.potential


@pytest.mark.parametrize("name", CHECKS)
def test_it_holds_that(name, potential):
    CHECKS[name](potential)


def test_members_equal_single_models_of_the_same_streams(backbone):
    cfg = small_config(backbone, "deterministic")
    constants = Normalisation.fit(known_elements())

    def make(members, first):
        init = Initialiser(3, members, first)
        net = build(cfg.backbone, n_species=len(constants.elements), init=init)
        return Potential(net, heads={}, normalisation=constants, activation="silu", init=init).double()

    check_members(make)


@pytest.mark.parametrize(
    "key", ["backbone.features", "backbone.layers", "backbone.radial_functions", "backbone.cutoff"]
)
def test_impossible_sizes_are_refused(backbone, ethanol, key):
    with pytest.raises(ConfigError):
        build_method(small_config(backbone, "deterministic", **{key: 0}), Normalisation.fit(ethanol))
