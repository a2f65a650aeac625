"""Work that need not be done twice: active-learning runs that began alike share what they have in common.

Runs that differ in their acquisition only train the same first model, and a generation that got no new frames would
train the last one's again. On the CPU both would come to the same bits, so the finished files are copied instead.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

from omegaconf import OmegaConf

from uqbench.config import digest
from uqbench.errors import UqbenchError
from uqbench.runs import run_dir
from uqbench.runs.metrics_table import METRICS
from uqbench.runs.run_dir import CONFIG, Run, RunDir

ADOPTED = "adopted_from"
NOT_COPIED = {"schema", "digest", "status", "command", "error", "files", "sha256", "launches", "started", "finished"}


def find_equal_run(opened: RunDir, data: Path) -> Run | None:
    """Return a finished training, by this run or one beside it, of the same frames, splits, settings and seed.

    opened: a generation of an active-learning run. data: the file with its frames and splits.
    """
    for path in sorted(opened.path.parent.parent.glob("*/generation_*")):
        run = _finished(path) if path != opened.path else None
        if run is None or run.config.get("command") != "train":
            continue
        theirs = OmegaConf.merge(run.config, {"dataset": {"path": data.name}})
        file = path.parent / str(run.config.dataset.path)
        if digest(theirs) == digest(opened.config) and file.is_file() and filecmp.cmp(file, data, shallow=False):
            return run
    return None


def find_evaluation(opened: RunDir, trained: Run, name: str) -> Run | None:
    """Return the finished evaluation of the same kind beside the training that `trained` was adopted from."""
    source = trained.info.get(ADOPTED)
    run = _finished(Path(f"{source}_{name}")) if source else None
    return run if run is not None and digest(run.config) == digest(opened.config) else None


def adopt(opened: RunDir, equal_run: Run, generation: int) -> None:
    """Finish a run with copies of a finished one's files and record, under its own name and generation."""
    for name in equal_run.info["files"]:
        if name not in (CONFIG, METRICS):
            opened.write_bytes(name, (equal_run.path / name).read_bytes())
    table = equal_run.read_csv(METRICS)
    opened.write_csv(METRICS, table.assign(run_id=opened.path.name, generation=generation))
    facts = {key: value for key, value in equal_run.info.items() if key not in NOT_COPIED}
    opened.update(**facts | {ADOPTED: str(equal_run.path)})
    opened.finish()


def _finished(path: Path) -> Run | None:
    try:
        return run_dir.read(path)
    except UqbenchError:
        return None
