"""The message passing of PaiNN and SchNet: sums over neighbours with exact derivatives of every order.

Each is a multilinear form (see `multilinear`), evaluated over pairs of atoms in pieces that fit the processor's cache.
A faster body need only replace the three functions in a `Form`.
"""

from uqbench.backbones.messages.multilinear import Wanted
from uqbench.backbones.messages.painn import painn_message
from uqbench.backbones.messages.pairs import Pairs
from uqbench.backbones.messages.schnet import schnet_message

__all__ = ["Pairs", "Wanted", "painn_message", "schnet_message"]
