"""Downloads that resume and are checked, and unpacking that takes single files out of an archive."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from uqbench.errors import DataError
from uqbench.runs.files import atomic_write, locked

log = logging.getLogger(__name__)

# Some data servers turn away anything that does not look like a browser.
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
ATTEMPTS = 5
WAIT = 1.0  # s before the second attempt, doubled each time
TIMEOUT = 60.0  # s without a byte
CHUNK = 1 << 13  # what a break can cost


def cache_folder(cache: str | None) -> Path:
    """Return the folder of downloads: `cache`, or the operating system's own place for caches."""
    if cache is not None:
        return Path(cache).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("uqbench"))


def fetch(url: str, md5: str, target: Path, advice: str) -> Path:
    """Download `url` to `target` unless a file with this md5 is there; an interrupted download goes on where it ended.

    A second process that wants the same file waits for the first. Raises DataError, ending in `advice`, when there is
    no connection, the server refuses, or the content has another checksum.
    """
    import pooch
    import requests

    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            pooch.retrieve(url, f"md5:{md5}", target.name, target.parent, downloader=Resumable(part))
    except requests.RequestException as error:
        bytes_kept = part.stat().st_size if part.exists() else 0
        kept = f"; {bytes_kept} bytes are kept in {part}, run again to go on" if bytes_kept else ""
        raise DataError(f"cannot download {url} ({_reason(error, url)}){kept}; {advice}") from None
    except ValueError:
        raise DataError(f"{url}: what was downloaded has not the md5 {md5} and was removed; {advice}") from None
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}); set the environment UQBENCH_CACHE"
        ) from None
    return target


class Resumable:
    """A pooch downloader that collects the bytes in `part`, asks the server only for the rest, and tries again."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Download `url` and move it to `output_file`; raises requests.RequestException, and `part` stays."""
        import requests

        for attempt in range(ATTEMPTS):
            before = self._size()
            try:
                self._transfer(url)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                # Nothing received at all: the network is down, and waiting would only hide that.
                if self._size() <= before or attempt + 1 == ATTEMPTS:
                    raise
                log.warning("%s: interrupted after %d bytes (%s), going on", url, self._size(), _reason(error, url))
                time.sleep(WAIT * 2**attempt)
        os.replace(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, url: str) -> None:
        import requests

        have = self._size()
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # no byte is missing, or the part is not of this file: the checksum tells
            if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
                raise requests.HTTPError(f"the server answered {response.status_code} {response.reason}")
            if response.status_code == requests.codes.ok:
                have = 0  # the server sends the whole file whatever was asked
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with open(self.part, "ab" if have else "wb") as file, _progress(total, have) as advance:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
        if total is not None and self._size() != total:
            raise requests.ConnectionError(f"closed after {self._size()} of {total} bytes")


@contextlib.contextmanager
def _progress(total: int | None, have: int) -> Iterator:
    """Yield advance(bytes): a bar on a terminal, one log line elsewhere."""
    if not sys.stderr.isatty():
        log.info("downloading%s", f" {total - have} of {total} bytes" if total else "")
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=have)
        yield lambda n: progress.advance(task, n)


def _reason(error: Exception, url: str) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.HTTPError) or str(error).startswith("closed after"):
        return str(error)
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {urlsplit(url).hostname}"
    return type(error).__name__


def unpack(archive: Path, members: set[str], folder: Path) -> None:
    """Copy the named regular files of a tar archive into `folder`, each written whole or not at all.

    Nothing else in the archive is touched and no name from it becomes a path, so it cannot write elsewhere. Members
    that stand there already are kept; a second process waits for the first. Raises DataError for a damaged archive
    or members that it lacks.

    Not `pooch.Untar(members=...)`: it lists a compressed archive before it seeks the members, and took 2.3 to 3.3 times
    as long (60 MB laid out as rMD17's: 4.5 to 9.2 s); on Python 3.11 it follows links out of the folder; a member that
    is missing is no error, and a file that an interruption left half written counts as unpacked.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            wanted = {name for name in members if not (folder / name).is_file()}
            log.info("unpacking %d files of %s into %s", len(wanted), archive, folder)
            with tarfile.open(archive, "r|*") as tar:
                _copy_members(tar, wanted, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): it is damaged, fetch it again") from None
    except OSError as error:
        raise DataError(f"cannot unpack {archive} into {folder} ({error.strerror or error})") from None
    if wanted:
        raise DataError(f"{archive} has no {', '.join(sorted(wanted))}; is it the right archive?")


def _copy_members(tar: tarfile.TarFile, wanted: set[str], folder: Path) -> None:
    """Copy and strike off `wanted` what the archive has of it; stop reading when nothing is left."""
    for member in tar if wanted else ():
        name = str(PurePosixPath(member.name))
        if name not in wanted or not member.isfile():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary, open(temporary, "wb") as file:
            shutil.copyfileobj(tar.extractfile(member), file, 1 << 20)
        wanted.remove(name)
        if not wanted:
            return
