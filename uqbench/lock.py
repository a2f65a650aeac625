"""One process per run directory: a lock that the operating system releases however its holder ends."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from uqbench.errors import ConfigError, LockedError

LOCK = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_held: set[int] = set()


def _forget() -> None:
    """A forked child must not keep its parent's locks alive after the parent is gone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def acquire(folder: Path) -> int:
    """Lock a folder, creating it if need be, and return the descriptor that release() takes.

    Raises LockedError when another process holds it, ConfigError when it cannot be written.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder just removed the folder
            continue
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose a place with outputs=DIR") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise LockedError(f"{folder} is in use by {owner}; wait for it or choose another seed") from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            warning = f"uqbench: warning: {folder} is on a file system without locks; never start one run twice there"
            print(warning, file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                break
        os.close(descriptor)  # locked a file that its last holder has removed
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    _held.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Give a lock back; once more is harmless."""
    if descriptor in _held:
        _held.remove(descriptor)
        with contextlib.suppress(OSError):  # there was no lock to take on this file system
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"pid {owner['pid']} on host {owner['host']}"
    except (ValueError, KeyError, TypeError):  # it has locked but not yet signed
        return "another process"
