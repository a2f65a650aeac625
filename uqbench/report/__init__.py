"""The report on many runs, from their tables alone: load, statistics, claims, sections, render, figures."""

from __future__ import annotations

from collections.abc import Sequence

from uqbench.errors import DataError

TITLE = "Comparison of uncertainty methods"


def write_report(runs: str | Sequence[str], *, against: str, units: str, output: str) -> list[str]:
    """Write the report on all runs at or below some folders, and return what there is to say of it in lines.

    The arguments are the keys of conf/report.yaml; docs/report.md lists the files. Raises DataError where no finished
    run is found.
    """
    # Here, so that a process that only draws a figure need not import all of it.
    from pathlib import Path

    import pandas as pd

    from uqbench.report.claims import verdicts
    from uqbench.report.load.runs import load_runs
    from uqbench.report.render.files import PAGE, write_files
    from uqbench.report.sections import generations, methods, study
    from uqbench.report.statistics.comparison import compare
    from uqbench.report.statistics.contrasts import Study
    from uqbench.report.statistics.ranks import rankings

    try:
        loaded = load_runs([runs] if isinstance(runs, str) else list(runs))
    except DataError as error:
        first, *others = str(error).split("\n")
        first += f"; a report needs finished runs, those of against={against} among them"
        raise DataError("\n".join([first, *others])) from None
    comparison = compare(loaded, against=against, units=units)
    pooled = Study(loaded.rows)
    decided, ranked = verdicts(pooled), rankings(pooled)
    sections = [
        study.claims(decided),
        study.ranks(ranked),
        study.domains(comparison.summary),
        study.costs(comparison.summary),
        *methods.sections(loaded, comparison),
        *generations.sections(loaded, comparison),
    ]
    opening = study.opening(loaded, comparison, [line for section in sections for line in section.problems])
    tables = {
        "summary.csv": comparison.summary.drop(columns="values"),
        "differences.csv": pd.concat([comparison.differences, comparison.acquisitions]),
        "claims.csv": pd.DataFrame([verdict.record() for verdict in decided]),
        "ranks.csv": ranked,
    }
    write_files(Path(output), [opening, *sections], tables, loaded.rows, title=TITLE)
    return [
        *(f"left out: {line}" for line in loaded.problems),
        *(f"damaged: {line}" for line in comparison.problems),
        *(f"missing: {line}" for line in comparison.missing),
        f"{loaded.rows['path'].nunique()} runs: {Path(output) / PAGE}",
    ]
