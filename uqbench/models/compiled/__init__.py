"""The message passing of PaiNN and SchNet: sums over neighbours with exact derivatives of every order.

Each is a multilinear form (see `multilinear`) summed over pairs of atoms, with a body in torch (`painn`, `schnet`) and
one in C++ (`messages.cpp`, `native`) that is built at first use (`build`). `use` chooses; what runs is the same to
rounding.
"""

from uqbench.models.compiled.choice import use
from uqbench.models.compiled.mixing import painn_mix, painn_norm
from uqbench.models.compiled.multilinear import Wanted
from uqbench.models.compiled.painn import painn_message
from uqbench.models.compiled.pairs import Pairs
from uqbench.models.compiled.schnet import schnet_message

__all__ = ["Pairs", "Wanted", "painn_message", "painn_mix", "painn_norm", "schnet_message", "use"]
