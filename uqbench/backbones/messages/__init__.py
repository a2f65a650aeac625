"""The message passing of PaiNN and SchNet: sums over neighbours with exact derivatives of every order.

Each is a multilinear form (see `multilinear`) summed over pairs of atoms. A faster body need only replace the three
functions in its `Form`.
"""

from uqbench.backbones.messages.multilinear import Wanted
from uqbench.backbones.messages.painn import painn_message
from uqbench.backbones.messages.pairs import Pairs
from uqbench.backbones.messages.schnet import schnet_message

__all__ = ["Pairs", "Wanted", "painn_message", "schnet_message"]
