"""Running the jobs of a command: one, or all of a sweep, in this process or in those of a Hydra launcher."""

import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqbench.errors import ConfigError, StorageError, UqbenchError
from uqbench.runs import run_dir, signals
from uqbench.text import printable

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

    from uqbench.cli.overrides import Job

INTERRUPTED = 130
DEBUG_VARIABLE = "UQBENCH_DEBUG"


def report(error: Exception) -> int:
    """Print what went wrong, one line per error, and return the exit code."""
    for line in explain(error):
        print(f"uqbench: error: {line}", file=sys.stderr)
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    return getattr(error, "exit_code", 1)


def explain(error: Exception) -> list[str]:
    """The lines that tell a person what went wrong; for an unexpected error also where its traceback is."""
    if isinstance(error, UqbenchError):
        return [printable(line) for line in str(error).splitlines()] or [type(error).__name__]
    if isinstance(error, OSError) and error.errno in StorageError.NUMBERS:
        return [str(StorageError(error.filename or "to standard output", error))]
    if isinstance(error, BrokenPipeError) and error.filename is None:
        # Nor is there anything to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return ["nobody reads what is printed any more; the same command goes on from what is there"]
    log = log_of(error)
    where = f"traceback in {log}" if log else f"{DEBUG_VARIABLE}=1 shows the traceback"
    return [f"{type(error).__name__}: {printable(' '.join(str(error).split()))} ({where})"]


def log_of(error: Exception) -> str | None:
    """Path of the traceback, which a run directory has noted on the error."""
    return next(reversed(getattr(error, "__notes__", [])), None)


def run_job(cfg: "DictConfig") -> int:
    """Run one job and return its exit code; errors are reported here, so that a sweep goes on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    sweeping = settings.mode == RunMode.MULTIRUN
    if sweeping:
        print(f"uqbench: job {settings.job.num}: {shlex.join(settings.overrides.task)}", file=sys.stderr)
    code, reasons, log = INTERRUPTED, ["interrupted"], None
    try:
        with signals.at_once(replacing=False):  # a launcher may have its own handlers
            importlib.import_module(f"uqbench.cli.commands.{settings.job.config_name}").run(cfg)
        code, reasons = 0, []
    except Exception as error:
        code, reasons, log = report(error), explain(error), log_of(error)
    finally:
        if sweeping:
            record = {"overrides": list(settings.overrides.task), "exit_code": code, "reasons": reasons, "log": log}
            write_record(Path(settings.sweep.dir), settings.job.num, record)
    return code


def record_path(folder: Path, number: int) -> Path:
    """The file that a job of a sweep leaves."""
    return folder / f"{number}.json"


def write_record(folder: Path, number: int, record: dict[str, Any]) -> None:
    """Write what became of a job (overrides, exit_code, reasons and log) for the list at the end of its sweep."""
    with run_dir.atomic_write(record_path(folder, number)) as path:
        path.write_text(json.dumps(record), encoding="utf-8")


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """What became of a job, or None when it has not said."""
    path = record_path(folder, number)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_sweep(hydra: "Hydra", command: str, overrides: Sequence[str], jobs: "Sequence[Job]") -> int:
    """Run all jobs through Hydra's launcher, list every failure at the end, and return the exit code.

    Each job leaves a record in a folder of the sweep; a job without one was lost with the process that ran it.
    """
    with run_dir.scratch(jobs[0].config.outputs) as folder:
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        failure = None
        try:
            with signals.at_once(replacing=False):
                hydra.multirun(command, run_job, [*overrides, f"hydra.sweep.dir='{quoted}'", "hydra.mode=MULTIRUN"])
        except KeyboardInterrupt:
            failure = "interrupted"
        except ConfigError:  # of the launcher, which has started nothing
            raise
        except Exception as error:  # whatever a launcher raises when it loses jobs
            failure = " ".join(explain(error))
        records = [record for number in range(len(jobs)) if (record := read_record(folder, number))]
    outcomes = {tuple(record["overrides"]): record for record in records}
    lost = {"exit_code": 1, "reasons": [failure or "its process ended without a word"], "log": None}
    failed = [(job, outcome) for job in jobs if (outcome := outcomes.get(job.overrides, lost))["exit_code"] != 0]
    if failed:
        print(f"uqbench: error: {len(failed)} of {len(jobs)} jobs failed; repeated, only these run:", file=sys.stderr)
    for job, outcome in failed:
        for reason in outcome["reasons"]:
            log = "" if outcome["log"] is None or outcome["log"] in reason else f" (log: {outcome['log']})"
            print(f"uqbench: error:   {shlex.join(job.overrides)}: {reason}{log}", file=sys.stderr)
    if failure == "interrupted":
        return INTERRUPTED
    return 1 if failed or failure else 0
