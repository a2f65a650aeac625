"""Files that are whole or absent: atomic writing, and checkpoints of tensors and plain types."""

import contextlib
import fcntl
import hashlib
import logging
import os
import pickle
import secrets
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uqbench.errors import CheckpointError, StorageError

log = logging.getLogger(__name__)

FORMAT = "uqbench-checkpoint"
FORMAT_VERSION = 1
LAST, BEST, HISTORY = "last.pt", "best.pt", "history.csv"  # what a training leaves in its run
LAYER = "layer.pt"  # what a fit leaves in its run
TEMPORARY = ".tmp"  # suffix of files that are being written; left over only by a killed process


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder that takes the place of `path` on success and vanishes on error."""
    path = Path(path)
    # Random, because a process of another machine may bear the same number on a shared file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in StorageError.NUMBERS:
            raise StorageError(path, error) from error
        raise
    # The rename itself must survive a power cut; some file systems cannot sync a folder and need not.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock file beside `target`; another process that asks for it waits."""
    with open(target.with_name(f"{target.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process that is making %s", target)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_sha256(path: str | os.PathLike) -> str:
    """Return the digest of a file's content; raises CheckpointError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def save_checkpoint(path: str | os.PathLike, content: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values atomically.

    The bytes are a function of the values alone: neither the file's name, nor shared storages, nor which equal
    strings are the same object shows. Raises TypeError, with the place, for any other type.
    """
    import torch

    record = {"format": FORMAT, "version": FORMAT_VERSION, "content": _plain(content, "checkpoint")}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        torch.save(record, file)


def load_checkpoint(path: str | os.PathLike) -> Any:
    """Read what save_checkpoint wrote, tensors on the CPU; unpickles tensors and plain types only.

    Raises CheckpointError for a file that is missing, damaged, foreign, or that holds anything else.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("checksum")
        with warnings.catch_warnings(action="ignore"):  # about a foreign file's protocol; what matters is raised
            record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged file can fail in any way
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"{path}: refused: it holds more than tensors and plain values") from error
        advice = "delete it to start this run again"
        raise CheckpointError(f"{path}: damaged, or not a uqbench checkpoint; {advice}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a uqbench checkpoint")
    if record.get("version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: checkpoint version {record.get('version')} is unknown to this uqbench")
    return record["content"]


def _plain(value: Any, path: str) -> Any:
    """A canonical copy: pickle notices which objects are identical, so everything that it could share is rebuilt."""
    import torch

    if value is None or type(value) in (bool, int, float):
        return value
    if type(value) is str:
        return sys.intern(value)
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{path}: a key of type {type(key).__name__} cannot be stored")
        return {_plain(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{path}[{i}]") for i, item in enumerate(value))
    raise TypeError(f"{path}: a {type(value).__name__} cannot be stored; only tensors and plain values can")
