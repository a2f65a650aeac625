"""The contract of a data set, and what the sources share: paths, splits, duplicates."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ase import Atoms
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from uqbench.config.annotations import Fraction
from uqbench.data.structures import Splits, Structures, check_splits
from uqbench.errors import DataError
from uqbench.seeding import numpy_generator

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

Size = NonNegativeInt | Fraction | None


class Dataset(abc.ABC):
    """A source of labelled structures and the rule that splits them.

    Constructors only keep and check their arguments; all reading happens in `load`.

    Attributes:
        subset: the molecule or framework, the `subset` column of metric rows; "" if there is none.
    """

    subset: str = ""

    @abc.abstractmethod
    def load(self) -> Structures:
        """Read the frames (eV, Å, eV/Å); raises DataError, one line that says what is wrong and what to do."""

    @abc.abstractmethod
    def split(self, structures: Structures) -> Splits:
        """Return disjoint frame indices of "train", "validation" and "test" into what `load` returned.

        The same arguments give the same split. A split of size 0 is an empty array. Raises DataError when the sizes
        do not fit.
        """


@runtime_checkable
class Labeller(Protocol):
    """What a data set that makes its frames asks for labels: an oracle of uqbench.oracles."""

    def label(self, frames: Sequence[Atoms]) -> Any:
        """Return `oracles.base.Labels` of frames."""

    def close(self) -> None:
        """Let go of processes."""


def find_file(path: str, data_root: str | None) -> Path:
    """Return the file `path`, relative to `data_root` (or to the working directory when that is null) or absolute.

    Raises DataError with the full path tried.
    """
    if data_root is not None and not Path(path).is_absolute():
        require_root(data_root)
    file = Path(data_root or ".", path).expanduser().absolute()
    if file.is_file():
        return file
    what = "is a folder, not a file" if file.is_dir() else "does not exist"
    raise DataError(f"{file} {what}; set dataset.path, and data_root if the path is relative")


def require_root(data_root: str) -> Path:
    """Return the data root as an absolute path; raises DataError when it is no folder."""
    root = Path(data_root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(
            f"data_root {root} is not a folder; set data_root=FOLDER or the environment variable UQBENCH_DATA"
        )
    return root


def distinct(structures: Structures) -> Structures:
    """Keep the first frame of every geometry, so that no geometry can stand in two splits; logs how many went."""
    kept = structures[np.unique(structures.geometry_groups())]
    dropped = len(structures) - len(kept)
    if dropped:
        log.warning(
            "%s: dropped %d of %d frames, which repeat an earlier geometry", structures.origin, dropped, len(structures)
        )
    return kept


def split_frames(structures: Structures, sizes: Mapping[str, Size], block: int, seed: int) -> Splits:
    """Draw a random split of whole blocks: rows block*k to block*(k+1)-1 of the source never part.

    A size is a number of frames, a fraction of all frames (a float in (0, 1)), or None for all that is left. With
    `block` 1 frames are drawn one by one; for frames of an MD trajectory, which resemble their neighbours, a long
    block keeps those neighbours out of the other splits. Test and validation take as few blocks as hold enough
    frames; the training frames are drawn from all other blocks, and a smaller number of them (same seed) is a subset
    of a larger one, with the same test frames. Raises DataError when the sizes do not fit.
    """
    counts = {name: frame_count(sizes[name], len(structures)) for name in SPLITS}
    if sum(count is None for count in counts.values()) > 1:
        raise DataError("only one of the split sizes can be null (all frames that are left)")
    rng = numpy_generator(seed, "split")
    labels = structures.ids // block
    queue = rng.permutation(np.unique(labels))
    order = sorted(reversed(SPLITS), key=lambda name: counts[name] is None)
    splits: Splits = {}
    for name in order:
        owned = np.cumsum([np.count_nonzero(labels == label) for label in queue]) if len(queue) else np.zeros(0, int)
        left = int(owned[-1]) if len(owned) else 0
        count = left if counts[name] is None else counts[name]
        if count > left:
            raise DataError(
                f"{structures.origin}: split '{name}' needs {count} frames, but {left} of {len(structures)} are left "
                f"in blocks of {block}; choose smaller sizes" + (" or a smaller dataset.block" if block > 1 else "")
            )
        taken = len(queue) if name == order[-1] else int(np.searchsorted(owned, count)) + 1 if count else 0
        pool = np.flatnonzero(np.isin(labels, queue[:taken]))
        splits[name] = np.sort(rng.permutation(pool)[:count])
        queue = queue[taken:]
    return {name: splits[name] for name in SPLITS}


def frame_count(size: Size, n_frames: int) -> int | None:
    """Return the frames that a size means, None for all that is left."""
    return round(size * n_frames) if isinstance(size, float) else size


def read_split_file(path: Path, n_frames: int, names: Sequence[str] = SPLITS) -> Splits:
    """Read a split from JSON, {"train": [...], "validation": [...], "test": [...]}, 0-based frame indices.

    `names` are those of all splits; splits that the file leaves out are empty. Raises DataError for other content,
    frames out of range, or splits that share a frame.
    """
    try:
        content = TypeAdapter(dict[str, list[int]], config=ConfigDict(strict=True)).validate_json(path.read_bytes())
        splits = {name: np.asarray(content.get(name, []), dtype=np.int64) for name in names}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: not a JSON object of lists of frame indices ({where} {first['msg']})") from None
    except (OSError, OverflowError) as error:
        raise DataError(f"{path}: not a JSON object of lists of frame indices ({error})") from None
    if set(content) - set(names):
        raise DataError(f"{path}: expected the lists {', '.join(names)}, found {', '.join(content)}")
    try:
        check_splits({name: indices for name, indices in splits.items() if len(indices)}, n_frames)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return splits
