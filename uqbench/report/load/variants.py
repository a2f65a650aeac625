"""Names for methods of equal name with different settings."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from uqbench.report.load.run import OUTER, Record

# Repetitions of one experiment differ in these only, and so in the weights that they evaluate.
REPEATED = ("seed", "dataset.seed", "dataset.split", "evaluation.seed", "source_sha256")
METHOD_GROUP, ACQUISITION_GROUP = "uq", "acquisition"
OPTIONAL = "evaluations."  # done with finished models: a run that lacks one is the same experiment

Parts = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings, as (key, value), in which a run differs from others of its place; mostly none."""

    parts: Parts

    def __str__(self) -> str:
        return self._text(lambda key: True)

    @property
    def shared(self) -> str:
        """Without settings of the UQ method: equal for different methods run under the same conditions."""
        return self._text(lambda key: not _within(key, METHOD_GROUP))

    @property
    def own(self) -> str:
        """Settings of the UQ method alone."""
        return self._text(lambda key: _within(key, METHOD_GROUP))

    @property
    def without_acquisition(self) -> str:
        """Equal for runs that differ in the acquisition alone."""
        return self._text(lambda key: not _within(key, ACQUISITION_GROUP))

    def _text(self, wanted: Any) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.parts if wanted(key))


def setting(record: Record) -> str | None:
    """What belongs to the place where methods are compared and is no label: of active learning, the oracle."""
    if record.command != OUTER:
        return None
    oracle = record.choices.get("oracle") or str(record.settings.get("oracle._target_", "")).rpartition(".")[2]
    return f"oracle={oracle}"


def variants(records: Sequence[Record]) -> list[Variant]:
    """Name each run by the settings in which runs of its method, at its place, differ.

    Seeds and splits repeat an experiment; everything else that differs makes another one, which must never be averaged
    with the first. A setting that varies for one method names the others too, unless it is one of the method itself.
    Where a group of the config explains the difference, the name of its option stands for all its keys.
    """
    places: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        places[_place(record)].append(record)
    named: dict[int, Variant] = {}
    for members in places.values():
        for record, parts in zip(members, _parts(members), strict=True):
            named[id(record)] = Variant(parts)
    return [named[id(record)] for record in records]


def _place(record: Record) -> tuple:
    labels = [str(record.labels.get(name)) for name in ("dataset", "subset", "backbone")]
    # Evaluations of one run by different means, or on different splits, have different rows anyhow.
    evaluation = record.command == "evaluate" and (record.choices.get("evaluation"), record.settings.get("split"))
    return (record.command, *labels, setting(record), evaluation)


def _parts(members: list[Record]) -> list[Parts]:
    methods: dict[str, list[Record]] = defaultdict(list)
    for record in members:
        methods[str(record.labels.get("uq"))].append(record)
    own = {uq: _differing(runs) for uq, runs in methods.items()}
    common = {key for keys in own.values() for key in keys if not _within(key, METHOD_GROUP)}
    options, kept = _by_option(members, common)
    found = []
    for record in members:
        mine = own[str(record.labels.get("uq"))]
        keys = {key for key in mine if _within(key, METHOD_GROUP)} | kept[id(record)]
        values = {key: _shown(record.settings.get(key)) for key in keys}
        values |= {prefix: chosen[id(record)] for prefix, chosen in options.items()}
        found.append(tuple(sorted(values.items())))
    return found


def _differing(runs: list[Record]) -> set[str]:
    """Keys whose value is not the same in all runs."""
    seen: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = defaultdict(int)
    for record in runs:
        for key, value in record.settings.items():
            seen[key].add(repr(value))
            count[key] += 1
    absent = {key for key, n in count.items() if n < len(runs) and not key.startswith(OPTIONAL)}
    return {key for key, values in seen.items() if key not in REPEATED and (len(values) > 1 or key in absent)}


def _by_option(members: list[Record], keys: set[str]) -> tuple[dict[str, dict[int, str]], dict[int, set[str]]]:
    """Replace keys by the options of their groups; return option by prefix and run, and the keys kept of each run.

    A key is kept for the runs of one option among which it still differs.
    """
    options: dict[str, dict[int, str]] = {}
    kept = {id(record): set(keys) for record in members}
    # The innermost group first: it explains its own keys better than the one around it.
    groups = {group for record in members for group in record.choices}
    for group in sorted(groups, key=lambda name: -_prefix(name).count(".")):
        prefix = _prefix(group)
        inside = {key for key in keys if _within(key, prefix)}
        chosen = {id(record): record.choices.get(group) for record in members}
        if not inside or prefix == METHOD_GROUP or None in chosen.values() or len(set(chosen.values())) < 2:
            continue
        options[prefix] = chosen
        for option in set(chosen.values()):
            alike = [record for record in members if chosen[id(record)] == option]
            left = _differing_between(alike, inside)
            for record in alike:
                kept[id(record)] -= inside - left
    return options, kept


def _differing_between(members: list[Record], keys: Iterable[str]) -> set[str]:
    return {key for key in keys if len({repr(record.settings.get(key)) for record in members}) > 1}


def _prefix(group: str) -> str:
    """Where in the config a group stands: `a/b@x.y` at x.y, `a/b` at a.b."""
    name, _, package = group.partition("@")
    return package or name.strip("/").replace("/", ".")


def _within(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
