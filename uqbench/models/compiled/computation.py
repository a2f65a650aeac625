"""What a tree of modules computes, and whether it still has the weights that something was made from.

What is known of one compiled network is never believed of another.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import chain
from operator import attrgetter

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from uqbench.models.compiled.activation import ACTIVATIONS

# Classes whose forward pass the compiled code repeats say so in their own body. A subclass, which may compute something
# else, has to say it again.
MARK = "repeated_by_compiled_code"
CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_PLAIN = (bool, int, float, str, type(None))
_OF_TORCH = frozenset(nn.Module().__dict__)
# The four kinds of hooks that take part when a module is called; those of state dicts do not.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
hooks_of = attrgetter(*_HOOKS)
# The same of all modules at once. torch has no public way to ask for them.
_global_hooks = [getattr(torch_module, f"_global{name}") for name in _HOOKS]
_functions = {function: name for name, function in ACTIVATIONS.items()}


class Computation:
    """What a module computes, for as long as it gets no hooks; see `description` for the arguments.

    Attributes:
        description: as of when this was made.
    """

    def __init__(self, module: nn.Module, ignored: frozenset[str]) -> None:
        self.description = description(module, ignored)
        self._hooks = _global_hooks + [hooks for one in module.modules() for hooks in hooks_of(one)]

    @property
    def known(self) -> bool:
        """Whether compiled code may take its place."""
        return self.description is not None and not any(self._hooks)


def description(module: nn.Module, ignored: frozenset[str] = frozenset()) -> Hashable | None:
    """Return the classes, flags and sizes of a module and of all below it; None where one is not wholly known.

    Not wholly known is a class that does not carry MARK, one with hooks, and one with an attribute that is neither
    plain nor a known activation: no compiled code repeats what that does.

    Args:
        module: the root.
        ignored: attributes of the root that have no part in what it computes.
    """
    parts = []
    for name, one in module.named_modules():
        kind = type(one)
        if (MARK not in kind.__dict__ and kind not in CONTAINERS) or any(hooks_of(one)):
            return None
        attributes = {key: value for key, value in one.__dict__.items() if key not in _OF_TORCH}
        flags = [(key, _flag(value)) for key, value in attributes.items() if one is not module or key not in ignored]
        if any(flag is NotImplemented for _, flag in flags):
            return None
        parts.append((name, kind.__module__, kind.__qualname__, *flags, *_shapes(one)))
    return tuple(parts)


def _shapes(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            yield name, None if tensor is None else tuple(tensor.shape)


def _flag(value: object) -> Hashable:
    """The value as a key, or NotImplemented for one that says nothing of what is computed."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        items = [(key, _flag(item)) for key, item in value.items()]
        return NotImplemented if any(item is NotImplemented for _, item in items) else tuple(items)
    try:
        return _functions.get(value, NotImplemented)
    except TypeError:  # not hashable
        return NotImplemented


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
