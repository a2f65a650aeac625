"""Work on many items in processes of their own, where it is worth starting them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

MOST = 8  # processes


def mapped(function: Callable[[Any], Any], items: Sequence[Any], *, worth: int) -> Iterator[Any]:
    """Give the results of a function, in the order of the items; processes begin with them at once.

    worth: items that take as long as starting a process does; for fewer than twice as many none is started. Function
    and items must be picklable.
    """
    workers = min(os.cpu_count() or 1, len(items) // worth, MOST)
    if workers < 2:
        return map(function, items)
    # Not forked: pyarrow has threads, which do not survive it.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    return _closing(pool, pool.map(function, items, chunksize=max(1, min(100, len(items) // (4 * workers)))))


def _closing(pool: ProcessPoolExecutor, results: Iterator[Any]) -> Iterator[Any]:
    with pool:
        yield from results
