"""Writes a report: tables for further work, Markdown, and a page of HTML that holds everything."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import joblib
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from uqbench.errors import ConfigError
from uqbench.report.load.runs import processes
from uqbench.report.render.page import page
from uqbench.runs.files import atomic_write
from uqbench.runs.tables import COLUMNS

ROWS, ROWS_CSV, REPORT, PAGE = "metrics.parquet", "metrics.csv", "report.md", "report.html"
ADDED = ("path", "variant", "acquisition", "setting", "domain", "trained_on", "frames", "family")  # columns
WORTH_A_PROCESS = 5  # figures that take as long to draw as a process takes to start

Drawing = Callable[[], bytes]
"""Draws a figure as a PNG file, here or in another process."""


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """A part of a report: lines of Markdown, what draws its figures by file name, and what could not be used."""

    lines: Sequence[str] = ()
    figures: Mapping[str, Drawing] = dataclasses.field(default_factory=dict)
    problems: Sequence[str] = ()


def write_files(
    folder: Path, sections: Sequence[Section], tables: Mapping[str, pd.DataFrame], rows: pd.DataFrame, *, title: str
) -> None:
    """Write all files of a report into a folder: all of them take their places together, or none does.

    tables: by file name, as CSV. rows: of all runs, as in `load.Runs`, which become `metrics.parquet` and
    `metrics.csv`. The sections become `*.png`, `report.md`, and `report.html`, which holds all of them.
    """
    text = "\n".join(line for section in sections for line in section.lines) + "\n"
    drawings = {file: drawing for section in sections for file, drawing in section.figures.items()}
    parallel = joblib.Parallel(processes(drawings, worth=WORTH_A_PROCESS))
    figures = dict(zip(drawings, parallel(joblib.delayed(drawing)() for drawing in drawings.values()), strict=True))
    content = {file: table.to_csv(index=False).encode() for file, table in tables.items()} | figures
    content[REPORT] = f"# {title}\n\n{text}".encode()
    content[PAGE] = page(text, figures, title=title).encode()
    table = pa.Table.from_pandas(rows[[*COLUMNS, *ADDED]], preserve_index=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            paths = {file: stack.enter_context(atomic_write(folder / file)) for file in (*content, ROWS, ROWS_CSV)}
            for file, data in content.items():
                paths[file].write_bytes(data)
            pa.parquet.write_table(table, paths[ROWS])
            pa.csv.write_csv(_without_dictionaries(table), paths[ROWS_CSV])
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror or error}); choose another output=DIR") from error


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """The same with plain texts, as CSV knows no others."""
    fields = [pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))
