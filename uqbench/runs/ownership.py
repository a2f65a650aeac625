"""Who else could have put a file where it is: asked of all that is run because it lies in some place.

As OpenSSH asks of keys: what others may write, or put something else in the place of, is theirs.
"""

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

ROOT = 0
OTHERS = stat.S_IWGRP | stat.S_IWOTH
MAX_LINKS = 40


def weakness(path: str | os.PathLike) -> str | None:
    """Why another user could decide what is found at a path; None where only this user and root can.

    Asked are the file or folder itself, every folder above it, and every symbolic link on the way with all that is
    above its target: each has to belong to this user or to root, and nobody else may write to it. A folder on the way
    may be open to all where its sticky bit keeps them from each other's files, as /tmp. What does not exist yet, in a
    place that is found safe, is safe.

    It goes from the root down, so that nobody can change any more what has been asked.
    """
    ahead = list(reversed(Path(path).absolute().parts))
    folder, links = Path(ahead.pop()), 0
    while True:
        try:
            status = os.lstat(folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{folder} cannot be examined ({error.strerror})"
        if status.st_uid not in (os.geteuid(), ROOT):
            return f"{folder} belongs to {_name(status.st_uid)}"
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                return f"{folder} is one of too many symbolic links"
            target = Path(os.readlink(folder))
            ahead += reversed(target.parts)
            folder = folder.parent
        else:
            shared = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and ahead
            if status.st_mode & OTHERS and not shared:
                return f"{folder} can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
        if not ahead:
            return None
        part = ahead.pop()
        folder = folder.parent if part == os.pardir else folder / part


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Create a folder, and those above it that are missing, so that no umask lets others write there."""
    if not folder.parent.exists():
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode)


@contextlib.contextmanager
def unshared() -> Iterator[int]:
    """Let nobody else write to what is made meanwhile, here and by programs started here; yields the umask before."""
    before = os.umask(OTHERS)
    os.umask(before | OTHERS)
    try:
        yield before
    finally:
        os.umask(before)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
