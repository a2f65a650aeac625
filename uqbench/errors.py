"""Errors that the command line turns into one line and an exit code."""

import errno
import os
from pathlib import Path


class UqbenchError(Exception):
    """Base of all errors raised on purpose; the run failed although its input was accepted (exit code 1)."""

    exit_code = 1


class UserError(UqbenchError):
    """The input is wrong; the message says what is wrong and what to do (exit code 2)."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration or override that cannot be used."""


class DataError(UserError):
    """A data file that is missing, damaged or inconsistent."""


class LockedError(UserError):
    """A run directory that another process is using.

    folder: of the run.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


class CheckpointError(UserError):
    """A checkpoint that is missing, foreign or damaged."""


class StorageError(UqbenchError):
    """There is no room for a file; what was written before is whole, and the same command goes on from it."""

    # Of a disk, of a quota, of the size that one file may have.
    NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

    def __init__(self, path: object, error: OSError) -> None:
        reason = os.strerror(error.errno)
        super().__init__(f"cannot write {path}: {reason}; make room, and the same command goes on from what is there")


class TrainingError(UqbenchError):
    """Training that cannot go on, such as a non-finite loss."""


class OutOfMemory(UqbenchError):
    """A computation for which there was no memory."""


class OracleError(UqbenchError):
    """An oracle that cannot label anything at all."""
