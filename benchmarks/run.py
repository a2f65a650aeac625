"""Times every workload against its peer, in turn, and sets both beside the time of the arithmetic alone."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attack
import density
import inference
import md_step
import neighbours
import torch
import train_step
from common import Race, configure, interleaved, parser_of
from torch.utils.flop_counter import FlopCounterMode

from uqbench.models import compiled

SIZE = 1024  # of the matrices that give the machine's rate
BEGIN, END = "<!-- table: benchmarks/run.py --table -->", "<!-- end of table -->"
HEAD = "| workload | ours, ms | peer | peer, ms | peer / ours | floor, ms |\n|---|---|---|---|---|---|"


def operations(race: Race, mode: str) -> float:
    """Return the floating-point operations of one call of ours: all that its matrix products in plain torch need."""
    if race.flops is not None:
        return race.flops
    with compiled.using("torch"), FlopCounterMode(display=False) as counter:
        race.ours()
    return counter.get_total_flops()


def measure(name: str, race: Race, options: argparse.Namespace, clock: Callable[[], float]) -> dict:
    """Return a row: both times, their ratio, and the time that the operations need at the rate of a matrix product."""
    flops = operations(race, options.kernels)
    square = torch.rand(SIZE, SIZE, dtype=race.dtype)
    functions = [race.ours, lambda: square @ square, *([race.peer] if race.peer else [])]
    ours, product, *peer = interleaved(functions, options.repeats, clock)
    return {
        "workload": name,
        "ours_ms": ours,
        "peer": race.peer_name,
        "peer_ms": peer[0] if peer else None,
        "ratio": peer[0] / ours if peer else None,
        "floor_ms": flops / (2 * SIZE**3) * product if flops else None,
    }


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, and a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def table(rows: list[dict], conditions: str) -> str:
    """Return the rows as Markdown, under a line that says how they were measured."""
    lines = [conditions, "", HEAD]
    for row in rows:
        times = [number(row["ours_ms"]), row["peer"], number(row["peer_ms"])]
        lines.append(
            " | ".join(["| " + row["workload"], *times, number(row["ratio"], 2), number(row["floor_ms"])]) + " |"
        )
    return "\n".join(lines)


def parts(document: Path) -> tuple[str, str]:
    """Return what stands before and after the table of a document; exits where it has no place for one."""
    before, begin, rest = document.read_text().partition(BEGIN) if document.is_file() else ("", "", "")
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{document}: no lines {BEGIN} and {END} for the table to stand between")
    return before, after


def main() -> None:
    """Run what was asked for; a line for each workload as soon as it is done."""
    parser = parser_of(__doc__)
    parser.add_argument("--table", type=Path, metavar="FILE", help="renew the table in this Markdown document")
    parser.add_argument("--cpu-time", action="store_true", help="for a busy machine; with --threads 1 alone")
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time adds up the time of all threads: it needs --threads 1")
    if options.table:
        parts(options.table)  # better now than after an hour
    modules = (train_step, inference, md_step, attack, density, neighbours)
    chosen = {
        name: build
        for module in modules
        for name, build in module.workloads().items()
        if options.only.lower() in name.lower()
    }
    if not chosen:
        parser.error(f"--only: no workload's name contains '{options.only}'")
    conditions = f"{configure(options)}; {'processor' if options.cpu_time else 'wall'} time; Python "
    conditions += f"{platform.python_version()}, {datetime.date.today():%-d %B %Y}."
    print(conditions)
    print(f"{'workload':<56}{'ours, ms':>10}  {'peer':<14}{'peer, ms':>10}{'peer/ours':>11}{'floor, ms':>11}")
    rows = []
    for name, build in chosen.items():
        row = measure(name, build(), options, time.process_time if options.cpu_time else time.perf_counter)
        rows.append(row)
        theirs = f"{row['peer']:<14}{number(row['peer_ms']):>10}{number(row['ratio'], 2):>11}"
        print(f"{name:<56}{number(row['ours_ms']):>10}  {theirs}{number(row['floor_ms']):>11}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.table:
        before, after = parts(options.table)
        options.table.write_text(f"{before}{BEGIN}\n{table(rows, conditions)}\n{END}{after}")


if __name__ == "__main__":
    main()
