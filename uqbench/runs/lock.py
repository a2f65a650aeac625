"""One process per run directory: a lock that the operating system releases however its holder ends.

That holds across machines too, on file systems that lock for them all (NFS, Lustre and others, when mounted so): they
free the locks of a node that is lost. Elsewhere the signature in the lock is asked after: its process on this machine,
or its job in SLURM.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from uqbench.errors import ConfigError, LockedError
from uqbench.runs import slurm

LOCK = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Each is lost only to another process that has just removed the folder, which does not go on for long.
ATTEMPTS = 50
RETRY_S = 0.01
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
    for attempt in range(ATTEMPTS):
        time.sleep(RETRY_S if attempt else 0.0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder just removed the folder; or none can be made, as in /proc
            continue
        except OSError as error:
            raise _unwritable(folder, error.strerror) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise LockedError(f"{folder} is in use by {owner}; wait for it or choose another seed", folder) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            if _lives(_signature(descriptor)):
                owner = _owner(descriptor)
                os.close(descriptor)
                message = f"{folder} is in use by {owner}; if that is gone, delete {folder / LOCK}"
                raise LockedError(message, folder) from error
            warning = f"uqbench: warning: {folder} is on a file system without locks; never start one run twice there"
            print(warning, file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                break
        os.close(descriptor)  # locked a file that its last holder has removed
    else:
        raise _unwritable(folder, "no file can be kept there")
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_own_signature()).encode(), 0)
    _held.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Give a lock back; once more is harmless."""
    if descriptor in _held:
        _held.remove(descriptor)
        os.truncate(descriptor, 0)  # a signature that stays is that of a process which has not ended by itself
        with contextlib.suppress(OSError):  # there was no lock to take on this file system
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _unwritable(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"cannot write to {folder}: {reason}; choose a place with outputs=DIR")


def _own_signature() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "job": slurm.own_job()}


def _signature(descriptor: int) -> dict[str, Any]:
    """What the holder has written into the lock; empty when it has locked but not yet signed."""
    try:
        signature = json.loads(os.pread(descriptor, 1000, 0))
        return {name: signature[name] for name in ("pid", "host", "job")}
    except (ValueError, KeyError, TypeError):
        return {}


def _owner(descriptor: int) -> str:
    signature = _signature(descriptor)
    if not signature:
        return "another process"
    job = f" (SLURM job {signature['job']})" if signature["job"] else ""
    return f"pid {signature['pid']} on host {signature['host']}{job}"


def _lives(signature: dict[str, Any]) -> bool:
    """Whether the process behind a signature may live; asked only where the file system does not know."""
    if not signature:
        return False
    if signature["host"] == socket.gethostname():
        return _runs(signature["pid"])
    if signature["job"] is None:  # on another machine, and nobody to ask
        return True
    if signature["job"] == slurm.own_job():  # an earlier launch of this job, which SLURM has requeued
        return False
    return slurm.state(signature["job"]) not in slurm.ENDED


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
