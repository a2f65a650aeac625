"""Run directories: the only code that writes under `outputs/`.

A run lives in `<outputs>/<command>/<dataset>/<backbone>/<uq>/seed<k>-<digest8>/`. Its name follows from its config, so
the same command finds the same run: done, to be continued, or in use by another process.
"""

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from omegaconf import DictConfig, OmegaConf

from uqbench.config import digest, require_bounded, yamlfile
from uqbench.errors import ConfigError, DataError, LockedError, StorageError, UserError
from uqbench.runs import lock, ownership, provenance
from uqbench.runs.files import BEST, LAYER, TEMPORARY, atomic_write, file_sha256, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    import pandas

__all__ = ["Run", "RunDir", "atomic_write", "find_done", "load_checkpoint", "read", "save_checkpoint", "scratch"]

SCHEMA = 1
# Of run.json, and what they must be.
FIELDS = {"status": str, "seconds": dict, "launches": list, "files": dict}
SMALL = 2**20  # bytes of a file whose content is checked whenever a run is read
CONFIG, INFO, LOG = "config.yaml", "run.json", "error.log"
SCRATCH = ".sweep-"  # begins the names of folders that live as long as a sweep
MADE_FOR = "made_for"  # in run.json: what a run was made for, as long as nobody has asked for the run itself


class Run:
    """A run on disk, read only: folder `path`, resolved `config` or None where it was not read, `info` of run.json."""

    def __init__(self, path: Path, config: DictConfig | None, info: dict[str, Any]) -> None:
        self.path, self.config, self.info = path, config, info

    @property
    def done(self) -> bool:
        """Whether the run has finished and its results are complete."""
        return self.info["status"] == "done"

    def weights_sha256(self) -> str:
        """Digest of what the run predicts with: its weights, or its layer and the weights below that."""
        model = self.info.get("model")
        if model is None:
            return file_sha256(self.path / BEST)
        return hashlib.sha256(f"{file_sha256(self.path / LAYER)} on {model['sha256']}".encode()).hexdigest()

    def load_checkpoint(self, name: str) -> Any:
        """Content of a checkpoint of this run; CheckpointError when it is missing, damaged or foreign."""
        return load_checkpoint(self.path / name)

    def read_json(self, name: str) -> Any:
        """Content of a JSON file of this run; DataError when it is missing or damaged."""
        return _read_json(self.path / name)

    def read_csv(self, name: str) -> "pandas.DataFrame":
        """Table of a CSV file of this run; DataError when it is missing or damaged."""
        import pandas

        try:
            return pandas.read_csv(self.path / name)
        except (OSError, ValueError) as error:
            raise _damaged(self.path / name) from error

    def read_rows(self, name: str, columns: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
        """Rows of a CSV file of this run, each column read by its function, without the long import of pandas.

        Raises DataError when the file is missing or damaged.
        """
        try:
            with open(self.path / name, encoding="utf-8", newline="") as file:
                return [{key: read(row[key]) for key, read in columns.items()} for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(self.path / name) from error

    def check_files(self, names: Collection[str] | None = None) -> None:
        """Raise DataError unless files of the finished run are there as recorded: in size and, small ones, in content.

        names: of files to look at, where they were recorded; all by default.
        """
        digests = self.info.get("sha256", {})  # runs of the first versions have sizes alone
        for name, size in self.info["files"].items():
            if names is not None and name not in names:
                continue
            path = self.path / name
            if not path.is_file() or (path.stat().st_size != size and name != CONFIG):
                raise _damaged(path)
            if path.stat().st_size != size or (name in digests and file_sha256(path) != digests[name]):
                raise _damaged(path, "changed since the run finished" + (self._changes() if name == CONFIG else ""))

    def _changes(self) -> str:
        """What config.yaml says otherwise than when the run began, where run.json has that; for a message."""
        if self.config is None:  # of a run of which nothing but the tables is read
            return ""
        as_it_is = OmegaConf.to_container(self.config, resolve=False)
        before, now = (dict(_leaves(config)) for config in (self.info.get("config", {}), as_it_is))
        keys = [key for key in before | now if before.get(key, _leaves) != now.get(key, _leaves)] if before else []
        changes = [f"{key} is {now.get(key, 'missing')}, was {before.get(key, 'missing')}" for key in keys[:3]]
        made = next(name for name in (BEST, LAYER, "the rest") if name in self.info["files"] or name == "the rest")
        return f" and {made} was made: {'; '.join(changes)}" if changes else ""


class RunDir(Run):
    """A run that this process owns: locked, with its status, provenance and timings kept in run.json.

    Use it as a context manager. Leaving after `finish()` makes the run `done`; leaving with an exception makes it
    `failed` (with error.log) or, on Ctrl-C and SIGTERM, `interrupted`. Bad input leaves nothing of a new run behind.
    """

    def __init__(self, path: Path, config: DictConfig, command: str) -> None:
        # Not Path.exists, which raises for a name that is too long; making the folder tells that better.
        self._created = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
        self._clock: tuple[str, float] | None = None
        self._lock = lock.acquire(path)
        try:
            self.resumed = (path / INFO).exists()
            super().__init__(path, config, _read_info(path) if self.resumed else {})
            fingerprint = digest(config)
            self._check_identity(fingerprint)
            if self.resumed and self.done:
                self.check_files()
            else:
                self._start(command, fingerprint)
        except BaseException:
            if self._is_untouched():
                self._discard()
            lock.release(self._lock)
            raise

    @classmethod
    def open(
        cls,
        *,
        root: str | os.PathLike,
        command: str,
        dataset: str,
        backbone: str,
        uq: str,
        seed: int,
        config: DictConfig,
    ) -> Self:
        """Lock the run that a config names, creating it or taking it up again.

        The labels become folder names. Raises LockedError when another process has it, ConfigError when it cannot be
        written or belongs to another config, DataError when a finished run has lost files.
        """
        labels = [_label(text) for text in (command, dataset, backbone, uq)]
        return cls(Path(root, *labels, _name(seed, digest(config))), config, command)

    def _check_identity(self, fingerprint: str) -> None:
        """The folder name holds 8 digits of the digest; the stored config settles whether it is the same run."""
        stored = self.path / CONFIG
        if stored.exists() and digest(_read_config(stored)) != fingerprint:
            raise ConfigError(f"{stored} differs from the config of this command; restore it or delete {self.path}")

    def _start(self, command: str, fingerprint: str) -> None:
        for leftover in (*self.path.glob(f".*{TEMPORARY}"), self.path / LOG):
            leftover.unlink(missing_ok=True)
        if not (self.path / CONFIG).exists():
            self.write_text(CONFIG, OmegaConf.to_yaml(self.config, resolve=True))
        provenance.reset_peak_memory()
        machine = provenance.describe_machine()
        launch = {"started": provenance.now()} | {key: machine[key] for key in ("hostname", "git", "uqbench")}
        first = {"schema": SCHEMA, "digest": fingerprint, "device": None, "data_sha256": None, "seconds": {}}
        first["config"] = OmegaConf.to_container(self.config, resolve=True)
        self.info = first | {"started": launch["started"], "launches": []} | self.info | machine
        self.info["launches"].append(launch)
        command_line = provenance.command_line(command)
        self.update(status="running", command=command_line, finished=None, error=None, files={})

    # ------------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            if self.done:
                return
            if isinstance(error, UserError) and self._is_untouched():
                self._discard()
            elif isinstance(error, Exception):
                self.write_text(LOG, "".join(traceback.format_exception(error)))
                error.add_note(str(self.path / LOG))
                self.update(status="failed", finished=provenance.now(), error=f"{kind.__name__}: {error}")
            else:
                self.update(status="interrupted", finished=provenance.now())
        except StorageError:
            if error is None:
                raise
            # No room to say more: what is told is why the run failed.
        finally:
            lock.release(self._lock)

    def _is_untouched(self) -> bool:
        return not self.resumed and {entry.name for entry in self.path.iterdir()} <= {CONFIG, INFO, lock.LOCK}

    def _discard(self) -> None:
        """Remove what this opening has created; the lock file goes last, so nobody else can be half-way in."""
        for name in (INFO, CONFIG, lock.LOCK):
            (self.path / name).unlink(missing_ok=True)
        _remove_empty(self._created)

    def finish(self) -> None:
        """Declare the run done and record its files, so that later readers notice when one is lost."""
        bookkeeping = {INFO, LOG, lock.LOCK}
        # Folders are runs of their own, which keep their own record.
        entries = [entry for entry in sorted(self.path.iterdir()) if entry.is_file() and entry.name not in bookkeeping]
        files = {entry.name: entry.stat().st_size for entry in entries}
        digests = {entry.name: file_sha256(entry) for entry in entries if files[entry.name] <= SMALL}
        self.update(status="done", finished=provenance.now(), files=files, sha256=digests)

    # ------------------------------------------------------------------------------------------------ record

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, such as `device` and `data_sha256`, and write it with current timings and memory."""
        self._tick()
        for name, peak in provenance.peak_memory_mb().items():
            self.info[name] = max(peak, self.info.get(name, 0.0))
        self.info |= fields
        self.write_json(INFO, self.info)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to `info["seconds"][name]`, also when the run is killed after a checkpoint."""
        self._clock = (name, time.perf_counter())
        try:
            yield
        finally:
            self._tick()
            self._clock = None
            self.update()

    def _tick(self) -> None:
        if self._clock is not None:
            name, since = self._clock
            self._clock = (name, time.perf_counter())
            self._count(name, self._clock[1] - since)

    def _count(self, stage: str, seconds: float) -> None:
        self.info["seconds"][stage] = self.info["seconds"].get(stage, 0.0) + seconds

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add time that was measured elsewhere to a stage."""
        self._count(stage, seconds)
        self.update()

    # ------------------------------------------------------------------------------------------------ files

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        with atomic_write(self.path / name) as temporary:
            temporary.write_bytes(content)

    def write_text(self, name: str, content: str) -> None:
        """Write a UTF-8 text file atomically."""
        self.write_bytes(name, content.encode())

    def write_json(self, name: str, content: Any) -> None:
        """Write plain values as indented JSON, atomically."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_csv(self, name: str, table: "pandas.DataFrame") -> None:
        """Write a table without its index as CSV, atomically; floats round-trip."""
        with atomic_write(self.path / name) as temporary:
            table.to_csv(temporary, index=False)

    def write_parquet(self, name: str, table: "pandas.DataFrame") -> None:
        """Write a table without its index as Parquet, atomically."""
        with atomic_write(self.path / name) as temporary:
            table.to_parquet(temporary, index=False)

    def save_checkpoint(self, name: str, content: Any) -> None:
        """Write tensors and plain values as a checkpoint, atomically, and bring run.json up to date."""
        save_checkpoint(self.path / name, content)
        self.update()


def read(path: str | os.PathLike) -> Run:
    """Open a finished run for reading, without a lock.

    Raises DataError when there is no run, when it has not finished, or when one of its files is lost.
    """
    path = Path(path)
    if not (path / INFO).is_file():
        below = []
        with contextlib.suppress(OSError):  # a folder that cannot be searched, such as /proc
            below = sorted(path.glob(f"**/{INFO}"))[:3]
        hint = "; runs below it: " + ", ".join(str(info.parent) for info in below) if below else ""
        raise DataError(f"{path}: {'not a run directory' if path.exists() else 'no such run'}{hint}")
    run = Run(path, _read_config(path / CONFIG), _read_info(path))
    if not run.done:
        raise DataError(f"{path}: this run has not finished; first repeat: {run.info.get('command')}")
    run.check_files()
    return run


def record(path: Path) -> dict[str, Any]:
    """Return what run.json says of a run, whatever its state; raises DataError where there is none or it is damaged."""
    return _read_info(path)


def find_done(config: DictConfig) -> Run | None:
    """The finished run that a command's config names, under whichever labels; or None."""
    fingerprint = digest(config)
    folder = Path(config.outputs, _label(config.command))
    # Where the name of the place is too long glob would fail.
    for path in folder.glob(f"*/*/*/{_name(config.seed, fingerprint)}") if os.path.isdir(folder) else ():
        with contextlib.suppress(DataError):  # it has not finished, or lost files: opening it will tell
            run = read(path)
            if digest(run.config) == fingerprint:
                return run
    return None


@contextlib.contextmanager
def scratch(root: str | os.PathLike) -> Iterator[Path]:
    """Yield a folder below `root`, visible to every machine that writes runs there, and remove it at the end.

    What a killed process has left of its own is removed too, unless jobs in a queue may still read from it.
    """
    root = Path(root).absolute()
    created = [folder for folder in (root, *root.parents) if not os.path.exists(folder)]
    try:
        ownership.make_folder(root)  # a launcher may unpickle from below it
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=root))
    except OSError as error:
        raise ConfigError(f"cannot write to {root}: {error.strerror}; choose a place with outputs=DIR") from error
    held = lock.acquire(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release(held)
        _remove_empty(created)


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob(f"{SCRATCH}*"):
        with contextlib.suppress(LockedError, FileNotFoundError):  # another process is at work there, or ends just now
            if any(entry.is_dir() for entry in folder.iterdir()):  # submitit's, for jobs that may wait in a queue
                continue
            held = lock.acquire(folder)
            shutil.rmtree(folder, ignore_errors=True)
            lock.release(held)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # others have moved in
        for folder in folders:
            folder.rmdir()


def _name(seed: int, fingerprint: str) -> str:
    return f"seed{seed}-{fingerprint[:8]}"


def _label(text: str) -> str:
    label = re.sub(r"[^A-Za-z0-9._+=-]+", "-", text).strip("-.")
    if not label:
        raise ConfigError(f"{text!r} cannot be part of a run's folder name")
    return label


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of everything below a config."""
    if not isinstance(config, dict):
        yield key, config
        return
    for name, value in config.items():
        yield from _leaves(value, f"{key}.{name}" if key else str(name))


def _damaged(path: Path, state: str = "damaged") -> DataError:
    state = state if path.exists() else "missing"
    return DataError(f"{path}: {state}; restore it, or delete {path.parent} and run the command again")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path) from error


def _read_info(path: Path) -> dict[str, Any]:
    info = _read_json(path / INFO)
    if not isinstance(info, dict) or any(not isinstance(info.get(key), kind) for key, kind in FIELDS.items()):
        raise _damaged(path / INFO)
    if info["status"] == "done" and not all(isinstance(info.get(key, {}), dict) for key in ("labels", "choices")):
        raise _damaged(path / INFO)
    if info.get("schema") != SCHEMA:
        raise DataError(f"{path / INFO}: schema {info.get('schema')} is unknown to this version of uqbench")
    return info


def _read_config(path: Path) -> DictConfig:
    try:
        config = yamlfile.load(path)
    except yamlfile.Oversized as error:
        raise _damaged(path, f"damaged ({error})") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(path) from error
    if not isinstance(config, DictConfig):
        raise _damaged(path)
    require_bounded(config)
    return config
