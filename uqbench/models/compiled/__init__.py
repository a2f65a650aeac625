"""All compiled code, and its verification: sums over neighbours, and whole networks.

Messages of PaiNN and SchNet are multilinear forms (see `multilinear`) summed over pairs of atoms, with derivatives
of every order; each has a body in torch (`painn`, `schnet`) and one in C++ (`messages.cpp`, `native`) that is built at
first use (`build`). Backbones call them. `use` chooses; what runs is the same to rounding.

Whole networks (`network.cpp`) take the place of a `Potential` by `potential.compile`. Import it from its module: the
backbones, and so the plain potential, need this package first.
"""

from uqbench.models.compiled.choice import scratch_peak, use, using
from uqbench.models.compiled.multilinear import Wanted
from uqbench.models.compiled.painn import painn_message, painn_mix, painn_norm
from uqbench.models.compiled.pairs import Pairs
from uqbench.models.compiled.schnet import schnet_message

__all__ = [
    "Pairs",
    "Wanted",
    "painn_message",
    "painn_mix",
    "painn_norm",
    "schnet_message",
    "scratch_peak",
    "use",
    "using",
]
