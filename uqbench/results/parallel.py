"""Work on many items in processes of their own, where it is worth starting them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

MOST = 8  # processes


def mapped(function: Callable[[Any], Any], items: Sequence[Any], *, worth: int) -> Iterator[Any]:
    """Yield the results of a function, in the order of the items.

    worth: items that take as long as starting a process does; for fewer than twice as many none is started. Function
    and items must be picklable.
    """
    workers = min(os.cpu_count() or 1, len(items) // worth, MOST)
    if workers < 2:
        yield from map(function, items)
        return
    # Not forked: pyarrow has threads, which do not survive it.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=max(1, min(100, len(items) // (4 * workers))))
