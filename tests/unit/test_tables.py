"""Metric frames and their drawing on the terminal."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from ase import units as ase_units

from uqbench.report.statistics.metrics import convert_units
from uqbench.runs.tables import COLUMNS, READERS, metric_frame, render

BASE = {
    "run_id": "train/quickstart", "command": "train", "dataset": "quickstart", "subset": None, "split": "test",
    "generation": None, "backbone": "painn_small", "uq": "ensemble", "seed": 3, "target": "forces",
    "population": "all", "metric": "mae", "value": 0.02, "unit": "eV/Å", "n": 900, "ci_low": 0.0187, "ci_high": 0.0234,
}  # fmt: skip


def row(**changes):
    return BASE | changes


@pytest.fixture
def frame():
    one = {"unit": "1", "ci_low": np.nan, "ci_high": np.nan}
    rows = [
        row(),
        row(metric="rmse", value=0.031),
        row(metric="spearman", value=0.4321, **one | {"ci_low": 0.40, "ci_high": 0.46}),
        row(metric="spearman_ideal", value=0.7654, **one),
        row(metric="nll", value=np.nan, **one),
        row(metric="calibrated_miscalibration_area_norm", value=0.1321, **one),
        row(metric="ence", value=0.2468, **one),
        row(target="energy", metric="mae", value=0.005, unit="eV", n=100),
        row(target="energy", metric="mae_per_atom", value=0.00055, unit="eV/atom", n=100),
        row(target="cost", metric="train_seconds", value=83.25, unit="s", n=None, ci_low=None, ci_high=None),
    ]
    return metric_frame(rows[::-1])


def test_columns_are_those_of_the_design_in_order(frame):
    design = "run_id command dataset subset split generation backbone uq seed target population metric value unit n"
    assert list(frame.columns) == [*design.split(), "ci_low", "ci_high"]
    assert frame["seed"].dtype == "Int64" and frame["generation"].isna().all() and frame["subset"].isna().all()
    assert frame["value"].dtype == np.float64 and np.isnan(frame["ci_low"].iloc[0])
    shuffled = {c: BASE[c] for c in reversed(BASE)}
    assert list(metric_frame([shuffled]).columns) == list(COLUMNS)
    assert list(metric_frame([]).columns) == list(COLUMNS)


def test_wrong_columns_and_repeated_metrics_are_named():
    with pytest.raises(ValueError, match=r"row 1: missing columns \['unit'\], unknown columns \['units'\]"):
        metric_frame([row(), {c: v for c, v in row().items() if c != "unit"} | {"units": "eV"}])
    with pytest.raises(ValueError, match="two rows for forces/all/mae of run train/quickstart"):
        metric_frame([row(), row(value=0.3)])
    assert len(metric_frame([row(), row(seed=4), row(population="element=C")])) == 3


def test_units_convert_energies_and_nothing_else(frame):
    converted = convert_units(frame, "kcal/mol")
    factor = ase_units.mol / ase_units.kcal
    assert factor == pytest.approx(1 / 0.0433641039)
    for before, after in zip(frame.itertuples(), converted.itertuples(), strict=True):
        if before.unit.startswith("eV"):
            assert after.unit == before.unit.replace("eV", "kcal/mol")
            assert (after.value, after.ci_high) == pytest.approx((factor * before.value, factor * before.ci_high))
        else:
            assert (after.value, after.unit) == pytest.approx((before.value, before.unit), nan_ok=True)
    assert frame.equals(convert_units(frame, "eV")) and "eV/Å" in set(frame["unit"])
    with pytest.raises(ValueError, match="units"):
        convert_units(frame, "Hartree")


def written(frame):
    """The rows of a frame after they have been written and read."""
    rows = csv.DictReader(io.StringIO(frame.to_csv(index=False)))
    return [{column: read(row[column]) for column, read in READERS.items()} for row in rows]


def lines(frame, *, units="eV", **options):
    return render(written(convert_units(frame, units)), **options).splitlines()


def cells(text, metric):
    (line,) = (line for line in text if line.startswith(metric + " "))
    return line.split()


def test_table_shows_values_intervals_and_ideals(frame):
    text = lines(frame, width=80)
    assert text[0] == "quickstart, painn_small, ensemble, seed 3, split test"
    sections = [text.index(title) for title in ("Forces, 900 atoms", "Energies, 100 structures", "Cost")]
    assert sections == sorted(sections)
    assert cells(text, "rmse")[1:] == ["0.0310", "0.0187", "…", "0.0234", "eV/Å"]
    assert cells(text, "spearman")[1:] == ["0.4321", "0.4000", "…", "0.4600", "0.7654"]
    assert cells(text, "nll")[1:] == ["n/a"]
    assert cells(text, "mae_per_atom")[1] == "0.000550"
    assert cells(text, "train_seconds")[1:] == ["83.25", "s"]
    assert not any("_ideal" in line for line in text), "ideals have a column of their own"
    assert not any(line.startswith("ence") for line in text)
    complete = lines(frame, width=80, everything=True)
    assert cells(complete, "ence")[1] == "0.2468" and not any("_ideal" in line for line in complete)
    assert cells(lines(frame, width=80, units="kcal/mol"), "rmse")[1:] == [
        "0.7149", "0.4312", "…", "0.5396", "kcal/mol/Å",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [60, 76, 80, 200])
@pytest.mark.parametrize("units", ["eV", "kcal/mol"])
def test_table_is_plain_fits_and_breaks_no_name(frame, width, units):
    text = lines(frame, width=width, units=units, everything=True)
    assert max(map(len, text)) <= width
    assert "\x1b" not in "".join(text)
    if (width, units) != (60, "kcal/mol"):
        assert cells(text, "calibrated_miscalibration_area_norm")[1] == "0.1321"


def test_width_comes_from_the_terminal_and_is_80_in_a_pipe(frame, monkeypatch):
    monkeypatch.setenv("COLUMNS", "61")
    narrow = lines(frame, everything=True)
    assert narrow == lines(frame, everything=True, width=61) != lines(frame, everything=True, width=80)
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.__stdout__", io.StringIO())
    assert lines(frame, everything=True) == lines(frame, everything=True, width=80)


def test_rows_are_read_as_they_were_written(frame):
    again = metric_frame(written(frame))
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    assert {row["subset"] for row in written(frame)} == {None}


def test_several_runs_and_populations_stay_apart():
    rows = [row(), row(uq="mve", value=0.5), row(population="element=C", n=200, generation=2), row(split="valid")]
    text = "\n".join(lines(metric_frame(rows), width=80))
    assert text.count("split") == 4 and "Forces, element=C, 200 atoms" in text and "generation 2" in text
