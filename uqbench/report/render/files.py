"""Writes a report: tables for further work, Markdown, and a page of HTML that holds everything."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from uqbench.report.claims import Verdict, verdicts
from uqbench.report.load.runs import Collected, collect
from uqbench.report.parallel import mapped
from uqbench.report.render.markdown import item
from uqbench.report.render.page import page
from uqbench.report.sections import generations
from uqbench.report.sections import methods as scores
from uqbench.report.sections import study as overview
from uqbench.report.statistics.comparison import Comparison, compare
from uqbench.report.statistics.contrasts import Evidence
from uqbench.report.statistics.ranks import Ranking, rankings
from uqbench.runs.files import atomic_write
from uqbench.runs.tables import COLUMNS

SUMMARY, DIFFERENCES, CLAIMS, RANKS = "summary.csv", "differences.csv", "claims.csv", "ranks.csv"
RUNS, RUNS_CSV, REPORT, PAGE = "metrics.parquet", "metrics.csv", "report.md", "report.html"
WORTH_A_PROCESS = 5  # figures
TITLE = "Comparison of uncertainty methods"
ADDED = ("path", "variant", "acquisition", "setting", "domain", "trained_on", "frames", "family")


def report(runs: str | Sequence[str], *, against: str, units: str, output: str) -> list[str]:
    """Write the report on all runs at or below some folders, and return what there is to say of it in lines.

    The arguments are the keys of conf/report.yaml. Raises DataError where no finished run is found.
    """
    collected = collect([runs] if isinstance(runs, str) else list(runs))
    comparison = compare(collected, against=against, units=units)
    write_report(Path(output), collected, comparison)
    lines = [f"left out: {line}" for line in collected.problems]
    lines += [f"damaged: {line}" for line in comparison.problems]
    lines += [f"missing: {line}" for line in comparison.gaps]
    return [*lines, f"{collected.rows['path'].nunique()} runs: {Path(output) / PAGE}"]


def write_report(folder: Path, collected: Collected, comparison: Comparison) -> list[str]:
    """Write all files of a report into a folder and return their names.

    `metrics.parquet` and `metrics.csv` hold the rows of all runs, `summary.csv` means with intervals, `differences.csv`
    paired differences, `claims.csv` and `ranks.csv` what they are called, `*.png` the figures, `report.md` and
    `report.html` all of it for people.
    """
    evidence = Evidence(collected.rows)
    decided, ranked = verdicts(evidence), list(rankings(evidence))
    parts = [*scores.sections(collected, comparison), *generations.sections(collected, comparison)]
    rank_lines, drawings = overview.ranks(ranked)
    cost_lines, cost_drawings = overview.costs(comparison.summary)
    drawings |= cost_drawings
    for part in parts:
        drawings |= part.figures
    drawn = mapped(operator.call, list(drawings.values()), worth=WORTH_A_PROCESS)
    body = [*_opening(collected, comparison, [line for part in parts for line in part.problems])]
    body += [*overview.claims(decided), *rank_lines, *overview.domains(comparison.summary), *cost_lines]
    body += [line for part in parts for line in part.lines]
    text = "\n".join(body) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:  # all files take their places together, or none does

        def place(file: str) -> Path:
            return stack.enter_context(atomic_write(folder / file))

        rows = pa.Table.from_pandas(collected.rows[[*COLUMNS, *ADDED]], preserve_index=False)
        pa.parquet.write_table(rows, place(RUNS))
        pa.csv.write_csv(_plain(rows), place(RUNS_CSV))
        content = {
            SUMMARY: comparison.summary.drop(columns="values").to_csv(index=False).encode(),
            DIFFERENCES: pd.concat([comparison.differences, comparison.acquisitions]).to_csv(index=False).encode(),
            CLAIMS: _claims_table(decided).to_csv(index=False).encode(),
            RANKS: _ranks_table(ranked).to_csv(index=False).encode(),
            REPORT: f"# {TITLE}\n\n{text}".encode(),
            **dict(zip(drawings, drawn, strict=True)),
        }
        content[PAGE] = page(text, {file: content[file] for file in drawings}, title=TITLE).encode()
        for file, data in content.items():
            place(file).write_bytes(data)
    return [*content, RUNS, RUNS_CSV]


def _plain(rows: pa.Table) -> pa.Table:
    """Without dictionaries, which CSV does not know."""
    fields = [pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in rows.schema]
    return rows.cast(pa.schema(fields))


def _opening(collected: Collected, comparison: Comparison, problems: list[str]) -> list[str]:
    """What was read and what was not, as lines of Markdown."""
    runs = collected.rows["path"].nunique()
    lines = [f"{runs} finished runs."]
    damaged = comparison.problems + problems
    for title, found in (("Left out", collected.problems), ("Damaged", damaged), ("Missing", comparison.gaps)):
        if found:
            lines += ["", f"**{title}**", "", *map(item, found)]
    return [
        *lines,
        "",
        "Means over runs with 95 % intervals, which cover the structures scored (bootstrap) and the seeds (Welch and",
        "Satterthwaite; wide for few seeds). **Bold**: no method is better beyond chance. In brackets:",
        "the value of a perfectly calibrated model with the same variances.",
        "",
    ]


def _claims_table(decided: list[Verdict]) -> pd.DataFrame:
    columns = ["claim", "text", "rule", "verdict", "reason", "caveat"]
    return pd.DataFrame(
        [{key: getattr(one, key) for key in columns} | {"numbers": "\n".join(one.numbers)} for one in decided]
    )


def _ranks_table(ranked: list[Ranking]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"domain": one.domain, "method": method, "mean_rank": value, "blocks": one.blocks, "left_out": one.left_out}
            for one in ranked
            for method, value in zip(one.methods, one.ranks, strict=True)
        ]
    )
