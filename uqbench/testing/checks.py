"""Named checks, run one and all, and what they compare with."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from uqbench.errors import UqbenchError

Subject = TypeVar("Subject")
Check = Callable[[Subject], None]


class CheckFailure(AssertionError):
    """What a check has seen; other AssertionErrors are those of the part itself."""


class Checks(Generic[Subject]):
    """Checks of one kind of part by name, in the order of their definition; used as a decorator, it takes one in.

    A check is a function of the subject that raises CheckFailure with what it saw where the subject fails it. Its
    name, with spaces for underscores, is a sentence that is true of a sound subject.
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self.by_name: dict[str, Check[Subject]] = {}

    def __call__(self, check: Check[Subject]) -> Check[Subject]:
        self.by_name[check.__name__] = check
        return check

    def failures(self, subject: Subject) -> dict[str, str]:
        """Run all checks and return what those that failed have seen; whatever a part raises is such a failure."""
        messages = {}
        for name, check in self.by_name.items():
            try:
                check(subject)
            except CheckFailure as failure:
                messages[name] = str(failure)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                message = " ".join(str(error).split())
                messages[name] = f"{type(error).__name__}: {message} ({last.filename}, line {last.lineno})"
        return messages

    def run(self, subject: Subject) -> None:
        """Run all checks; raises one AssertionError with all that failed."""
        self.report(self.failures(subject))

    def report(self, messages: dict[str, str], total: int | None = None) -> None:
        """Raise an AssertionError that lists the messages, if there are any."""
        if messages:
            total = len(self.by_name) if total is None else total
            lines = [f"- {name}: {message}" for name, message in messages.items()]
            raise AssertionError(f"{self.function}: {len(messages)} of {total} checks failed\n" + "\n".join(lines))


def require(condition: object, message: str) -> None:
    """Raise CheckFailure with the message unless the condition holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise CheckFailure(message)


def require_close(
    value: ArrayLike | Tensor,
    expected: ArrayLike | Tensor,
    what: str,
    *,
    rtol: float = 1e-9,
    atol: float = 0.0,
) -> None:
    """Raise CheckFailure unless two arrays agree to `rtol` of each number plus 1e-11 of the largest, or to `atol`."""
    a, b = as_array(value), as_array(expected)
    require(a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}")
    if not a.size:
        return
    require(np.isfinite(a).all() and np.isfinite(b).all(), f"{what}: not finite")
    allowed = rtol * np.abs(b) + max(1e-11 * np.abs(b).max(), atol)
    excess = np.abs(a - b) - allowed
    if (excess > 0).any():
        worst = np.unravel_index(np.argmax(excess), a.shape)
        index = ", ".join(map(str, worst))
        raise CheckFailure(
            f"{what}: {(excess > 0).sum()} of {a.size} numbers differ, at [{index}] {a[worst]:.10g} instead of "
            f"{b[worst]:.10g}"
        )


def require_equal(value: ArrayLike | Tensor, expected: ArrayLike | Tensor, what: str) -> None:
    """Raise CheckFailure unless two arrays are the same, to the bit."""
    a, b = as_array(value), as_array(expected)
    same = a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)
    largest = f", by up to {np.abs(a - b).max():.3g}" if a.shape == b.shape and a.size and not same else ""
    require(same, f"{what}: not the same bits{largest}")


def refusal(function: Callable[[], object], what: str) -> str:
    """Return the message of the error of this program that a call raises, which must be one line."""
    try:
        function()
    except UqbenchError as error:
        require("\n" not in str(error), f"{what}: the message has several lines: {error}")
        return str(error)
    raise CheckFailure(f"{what}: was not refused")


def require_slopes(
    gradient: Tensor | NDArray,
    function: Callable[[NDArray], float],
    at: NDArray,
    entries: Iterable[tuple[int, int]],
    what: str,
    *,
    rtol: float,
    step: float = 1e-4,
    atol: float | None = None,
) -> None:
    """Compare entries of a gradient with differences of the function, exact to the fourth order.

    The error of central differences, of second order, would be a matter of how sharply a potential bends, and so of
    its weights. Numbers below `atol`, a millionth of the largest by default, are left out of the comparison.

    Args:
        gradient: as `at`.
        function: of an array such as `at`.
        at: where, (N, 3) Å.
        entries: indices of the gradient's entries that are looked at.
        what: of what it is the gradient, for the message.
        rtol: relative to the slope.
        step: Å.
        atol: absolute.
    """
    slopes = as_array(gradient)
    least = 1e-6 * float(np.abs(slopes).max()) if atol is None else atol
    for entry in entries:
        shift = np.zeros_like(at)
        shift[entry] = step
        near, far = (function(at + k * shift) - function(at - k * shift) for k in (1, 2))
        expected = (8 * near - far) / (12 * step)
        require(
            abs(slopes[entry] - expected) <= max(rtol * abs(expected), least),
            f"{what}: {slopes[entry]:.8g} at atom {entry[0]}, axis {entry[1]}; finite differences give {expected:.8g}",
        )


def spread(n_atoms: int, count: int) -> list[tuple[int, int]]:
    """Return entries (atom, axis) of a gradient (N, 3), spread over all atoms and axes."""
    return [(k * (n_atoms - 1) // max(count - 1, 1), k % 3) for k in range(count)]


def as_array(value: ArrayLike | Tensor) -> NDArray:
    """Return a tensor or whatever else as an array."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
