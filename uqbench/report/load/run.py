"""One run directory: its record, its settings, and its metric rows with what they were scored on."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import yaml

from uqbench import config
from uqbench.config import yamlfile
from uqbench.config.run_id import UNDIGESTED_OF
from uqbench.errors import DataError
from uqbench.families import FAMILIES
from uqbench.runs.metrics_table import METRICS
from uqbench.runs.run_dir import CONFIG, INFO, SCHEMA, Run
from uqbench.runs.tables import COLUMNS

TYPES = {"string": pa.string(), "Int64": pa.int64(), "float64": pa.float64()}
CONVERT = pa.csv.ConvertOptions(
    column_types={name: TYPES[kind] for name, kind in COLUMNS.items()}, strings_can_be_null=True
)
NEEDED = ("uq", "seed", "target", "population", "metric", "unit")  # columns without which a row says nothing
# What values of run.json must be, where they are there.
KINDS = {"choices": dict, "source": str, "source_settings": dict}
READ = pa.csv.ReadOptions(use_threads=False)  # of tables as small as these, threads only cost
PART = re.compile(r"(?m)^(?=[^\s#-])")  # a config is written without anything that spans its keys of the top level
ACTIVE_LEARNING = "al"  # the command whose run directories hold runs of their own
ACQUISITION = "acquisition"  # target of rows that belong to no scored structures
# Families of runs made before methods declared theirs.
FAMILY_OF = {
    "uqbench.uq.deterministic.Deterministic": "baseline",
    "uqbench.uq.ensemble.Ensemble": "ensemble",
    "uqbench.uq.evidential.Evidential": "single",
    "uqbench.uq.gmm.GMM": "layer",
    "uqbench.uq.mve.MVE": "single",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A finished run.

    Attributes:
        path: its folder.
        info: content of run.json.
        settings: by dotted name, all that can change a result; of an evaluation also those of the run that it is of.
        foreign: whether it is an evaluation on other data than the run was trained with.
        count: of its metric rows.
        sources: for each row, the folder of the run that has its bootstrap values, or one for all.
        frames: for each row, or for all: equal for runs scored on the same labelled structures.
    """

    path: Path
    info: dict[str, Any]
    settings: dict[str, Any]
    foreign: bool
    count: int
    sources: str | list[str]
    frames: str | list[str]

    @property
    def labels(self) -> dict[str, Any]:
        """Data set, subset, backbone, uq and seed."""
        return self.info["labels"]

    @property
    def command(self) -> str:
        """What made the run: train, evaluate or al."""
        return str(self.settings["command"])

    @property
    def trained_on(self) -> str:
        """Data that the model was trained on: data set and subset; of an evaluation, of the run that it is of."""
        labels = self.labels
        if self.info.get("source"):
            try:
                labels = _read_info(Path(self.info["source"])).get("labels") or labels
            except DataError:
                pass  # since moved or removed: the evaluation still stands
        return "-".join(str(labels[name]) for name in ("dataset", "subset") if labels.get(name))

    @property
    def family(self) -> str | None:
        """Family of the method, one of `families.FAMILIES`; None where it is not known."""
        family = self.info.get("family", FAMILY_OF.get(str(self.settings.get("uq._target_"))))
        return family if family in FAMILIES else None

    @property
    def choices(self) -> dict[str, str]:
        """Option chosen of each group of the config; empty for runs that did not record it."""
        return self.info.get("choices") or {}

    def option(self, group: str) -> str:
        """Option chosen of a group, or else the name of its class; empty where there is neither."""
        return str(self.choices.get(group) or "") or str(self.settings.get(f"{group}._target_", "")).rpartition(".")[2]


def read_run(path: Path) -> tuple[Record, pa.Table]:
    """Read a finished run and its metric rows, as in `tables.COLUMNS`.

    Raises DataError, which names the run, when it is damaged, unfinished or of another schema.
    """
    info = _read_info(path)
    if info["status"] != "done":
        raise DataError(f"{path}: {info['status']}, not finished; to finish it: {info.get('command')}")
    Run(path, None, info).check_files((CONFIG, METRICS))  # the checkpoints may have been removed to save space
    written = _read_settings(path / CONFIG)
    settings = (info.get("source_settings") or {}) | written
    if "command" not in settings or not isinstance(info.get("labels"), dict):
        raise DataError(f"{path}: not a run of a model, or damaged")
    rows = _read_metrics(path / METRICS)
    sources, frames = str(path), _frames(info)
    if settings["command"] == ACTIVE_LEARNING:
        sources, frames = _by_generation(path, rows)
    foreign = settings["command"] == "evaluate" and any(key.startswith("dataset.") for key in written)
    return Record(path, info, settings, foreign, rows.num_rows, sources, frames), rows


def _read_info(path: Path) -> dict[str, Any]:
    if not (path / INFO).is_file():  # nothing is to be waited for, as at a pipe
        raise DataError(f"{path / INFO}: missing, or not a file")
    try:
        info = json.loads((path / INFO).read_bytes())
        json.dumps(info, ensure_ascii=False).encode()  # half of a character can be written as \u in JSON
        schema, complete = info.get("schema"), "status" in info and isinstance(info.get("files"), dict)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path / INFO}: damaged ({error})") from error
    if schema != SCHEMA:
        raise DataError(f"{path / INFO}: schema {schema}, which this version of uqbench does not read ({SCHEMA})")
    if not complete:
        raise DataError(f"{path / INFO}: damaged (it lacks status or files)")
    for key, kind in KINDS.items():
        if not isinstance(info.get(key), kind | None):
            raise DataError(f"{path / INFO}: damaged ({key} is not a {kind.__name__})")
    return info


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = {}
        values = 0
        for text in filter(None, PART.split(yamlfile.read(path))):
            part, count = _part(text)
            values += count
            yamlfile.bound(values)
            settings |= part
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    # A part does not know what command it belongs to.
    undigested = UNDIGESTED_OF.get(settings.get("command"), ())
    return {key: value for key, value in settings.items() if key.partition(".")[0] not in undigested}


@functools.lru_cache(1024)  # the runs of a study have most parts in common
def _part(text: str) -> tuple[dict[str, Any], int]:
    """Settings of a part of a config, and the number of its values."""
    count = yamlfile.check(text)
    content = yaml.load(text, yamlfile.LOADER)
    if not isinstance(content, dict):
        raise ValueError("not a mapping of settings")
    return config.settings(content), count


def _read_metrics(path: Path) -> pa.Table:
    try:
        table = pa.csv.read_csv(path, read_options=READ, convert_options=CONVERT)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a table of metrics ({str(error).splitlines()[0]})") from error
    if table.column_names != list(COLUMNS):
        odd = sorted(set(table.column_names) ^ set(COLUMNS))
        raise DataError(f"{path}: not a table of metrics (missing or unknown columns: {', '.join(odd)})")
    empty = [name for name in NEEDED if table[name].null_count]
    if empty:
        raise DataError(f"{path}: damaged (rows without {', '.join(empty)})")
    return table


def _frames(info: dict[str, Any]) -> str:
    return str(info.get("scored_sha256") or info.get("data_sha256"))


def _by_generation(path: Path, rows: pa.Table) -> tuple[list[str], list[str]]:
    """Say for the rows of an active-learning run which of the runs inside it they come from, and their frames."""
    keys = list(zip(*(rows[name].to_pylist() for name in ("generation", "split", "target")), strict=True))
    origins: dict[tuple, tuple[str, str]] = {}
    for generation, split, target in dict.fromkeys(keys):
        # Proposals are made anew by each run: only their seeds can be alike.
        origin = "", ACQUISITION
        if target != ACQUISITION:
            folder = path / (f"generation_{generation}" + ("" if split == "test" else f"_{split}"))
            if not os.path.exists(folder / INFO):  # unlike Path.exists, also of names that no file can have
                raise DataError(f"{path}: {folder.name} is missing; restore it, or delete the run and repeat it")
            origin = str(folder), _frames(_read_info(folder))
        origins[generation, split, target] = origin
    return [origins[key][0] for key in keys], [origins[key][1] for key in keys]
