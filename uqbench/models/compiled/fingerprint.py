"""Whether modules still have the weights that something was made from."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter

from torch import Tensor, nn


class Fingerprint:
    """Which submodules, parameters and buffers modules have, where these are in memory, and their versions.

    To compare costs some microseconds. What is written past autograd, as fused optimisers and `tensor.data.add_` do,
    is not seen.
    """

    def __init__(self, *modules: nn.Module) -> None:
        owned = [owner for module in modules for owner in module.modules()]
        holders = [(owner._parameters, owner._buffers, owner._modules) for owner in owned]
        self._holders = [holder for three in holders for holder in three if holder]
        self._held = list(self._items())
        self._tensors = [item for item in self._held if isinstance(item, Tensor)]
        self._state = self._read()

    def unchanged(self) -> bool:
        """Return whether nothing has changed since this was made."""
        return self._state == self._read()

    def _items(self) -> chain:
        return chain.from_iterable(map(dict.values, self._holders))

    def _read(self) -> tuple[list[int], list[int], list[int]]:
        addresses, versions = map(Tensor.data_ptr, self._tensors), map(attrgetter("_version"), self._tensors)
        return list(map(id, self._items())), list(addresses), list(versions)
