"""Names for methods of equal name with different settings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from uqbench.report.load.run import ACTIVE_LEARNING, Record

# Repetitions of one experiment differ in these only, and so in the weights that they evaluate.
REPEATED = ("seed", "dataset.seed", "dataset.split", "evaluation.seed", "source_sha256")
METHOD_GROUP, ACQUISITION_GROUP = "uq", "acquisition"  # of the config
OPTIONAL = "evaluations."  # done with finished models: a run that lacks one is the same experiment

Settings = tuple[tuple[str, str], ...]
"""Settings, as (key, value), in which a run differs from others of its task; mostly none."""


def written(settings: Settings, *, within: str | None = None, without: str | None = None) -> str:
    """Settings as text: all, those within a group of the config, or all but those, equal for runs that differ in it."""
    if within is not None:
        settings = [part for part in settings if _within(part[0], within)]
    if without is not None:
        settings = [part for part in settings if not _within(part[0], without)]
    return ", ".join(f"{key}={value}" for key, value in settings)


def method_name(uq: str, settings: str) -> str:
    """Name of a method with the settings that tell it from others of its name."""
    return f"{uq} ({settings})" if settings else uq


def setting(record: Record) -> str | None:
    """What belongs to the task on which methods are compared and is no label: of active learning, the oracle."""
    return f"oracle={record.option('oracle')}" if record.command == ACTIVE_LEARNING else None


def variants(records: Sequence[Record]) -> list[Settings]:
    """Name each run by the settings in which runs of its method, on its task, differ.

    Seeds and splits repeat an experiment; everything else that differs makes another one, which must never be averaged
    with the first. A setting that varies for one method names the others too, unless it is one of the method itself.
    Where a group of the config explains the difference, the name of its option stands for all its keys.
    """
    tasks: dict[tuple, list[int]] = defaultdict(list)
    for k, record in enumerate(records):
        tasks[_task(record)].append(k)
    settings: dict[int, Settings] = {}
    for members in tasks.values():
        settings |= zip(members, _settings([records[k] for k in members]), strict=True)
    return [settings[k] for k in range(len(records))]


def _task(record: Record) -> tuple:
    labels = [str(record.labels.get(name)) for name in ("dataset", "subset", "backbone")]
    # Evaluations of one run by different means, or on different splits, have different rows anyhow.
    evaluation = record.command == "evaluate" and (record.choices.get("evaluation"), record.settings.get("split"))
    return (record.command, *labels, setting(record), evaluation)


def _settings(records: list[Record]) -> list[Settings]:
    methods: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        methods[str(record.labels.get("uq"))].append(record)
    differing = {uq: _differing(runs) for uq, runs in methods.items()}
    of_method = {uq: {key for key in keys if _within(key, METHOD_GROUP)} for uq, keys in differing.items()}
    common = {key for uq, keys in differing.items() for key in keys - of_method[uq]}
    options, unexplained = _by_option(records, common)
    settings = []
    for k, record in enumerate(records):
        keys = of_method[str(record.labels.get("uq"))] | unexplained[k]
        values = {key: _shown(record.settings.get(key)) for key in keys}
        values |= {prefix: chosen[k] for prefix, chosen in options.items()}
        settings.append(tuple(sorted(values.items())))
    return settings


def _differing(runs: list[Record]) -> set[str]:
    """Keys whose value is not the same in all runs."""
    values: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for record in runs:
        counts.update(record.settings.keys())
        for key, value in record.settings.items():
            values[key].add(repr(value))
    absent = {key for key, count in counts.items() if count < len(runs) and not key.startswith(OPTIONAL)}
    return {key for key, seen in values.items() if key not in REPEATED and (len(seen) > 1 or key in absent)}


def _by_option(records: list[Record], keys: set[str]) -> tuple[dict[str, list[str]], list[set[str]]]:
    """Replace keys by the options of their groups; return the options of the runs by prefix, and the keys left of each.

    A key is left to the runs of one option among which it still differs.
    """
    options: dict[str, list[str]] = {}
    left = [set(keys) for _ in records]
    groups = {group for record in records for group in record.choices}
    # The innermost group first: it explains its own keys better than the one around it.
    for group in sorted(groups, key=lambda name: (-_prefix(name).count("."), name)):
        prefix = _prefix(group)
        inside = {key for key in keys if _within(key, prefix)}
        chosen = [record.choices.get(group) for record in records]
        if not inside or prefix == METHOD_GROUP or None in chosen or len(set(chosen)) < 2:
            continue
        options[prefix] = chosen
        for option in set(chosen):
            alike = [k for k, other in enumerate(chosen) if other == option]
            explained = {key for key in inside if len({repr(records[k].settings.get(key)) for k in alike}) < 2}
            for k in alike:
                left[k] -= explained
    return options, left


def _prefix(group: str) -> str:
    """Where in the config a group stands: `a/b@x.y` at x.y, `a/b` at a.b."""
    name, _, package = group.partition("@")
    return package or name.strip("/").replace("/", ".")


def _within(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
