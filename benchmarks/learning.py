"""How fast a recipe learns: seconds until the validation force error falls below some values, then the test.

All arguments are overrides of `uqbench train`; real data come from UQBENCH_DATA. The run is kept where any run is, but
has to be a new one: a finished run is shown and not timed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from uqbench import cli
from uqbench.report.statistics.metrics import EV_IN_KCAL_MOL
from uqbench.training import loop

THRESHOLDS = (2.0, 1.0, 0.7, 0.5, 0.4, 0.35, 0.3)  # kcal/mol/Å


class Timed(loop.Progress):
    """Progress that keeps seconds and validation force MAE (kcal/mol/Å) of every epoch; validation counts as time."""

    rows: list[tuple[float, float]] = []

    def show(self, row: dict[str, float], *, seconds: float, **others: object) -> None:
        """Show and keep the row."""
        self.rows.append((seconds, row["validation_force_mae"]))
        super().show(row, seconds=seconds, **others)


def main() -> None:
    """Train once and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="such as experiment=rmd17_mini training.max_seconds=600")
    options = parser.parse_args()
    loop.Progress = Timed
    with tempfile.TemporaryDirectory() as folder:
        output = [] if any(one.startswith("outputs=") for one in options.overrides) else [f"outputs={folder}"]
        code = cli.main(["train", *options.overrides, *output])
        if code or not Timed.rows:
            raise SystemExit(code or "nothing was trained: is it a finished run?")
        roots = [Path(one.partition("=")[2]) for one in [*options.overrides, *output] if one.startswith("outputs=")]
        newest = max(roots[0].rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
        rows = pd.read_csv(newest)
    print(f"\n{len(Timed.rows)} epochs in {Timed.rows[-1][0]:.0f} s; least validation force MAE")
    for limit in THRESHOLDS:
        reached = next((f"{seconds:.0f} s" for seconds, error in Timed.rows if error <= limit), "not reached")
        print(f"  {limit:4.2f} kcal/mol/Å: {reached}")
    for target, unit in (("forces", "kcal/mol/Å"), ("energy", "kcal/mol")):
        row = rows[(rows["target"] == target) & (rows["metric"] == "mae") & (rows["population"] == "all")].iloc[0]
        value, low, high = (row[key] * EV_IN_KCAL_MOL for key in ("value", "ci_low", "ci_high"))
        print(f"test {target} MAE: {value:.4f} ({low:.4f}-{high:.4f}) {unit}")


if __name__ == "__main__":
    main()
