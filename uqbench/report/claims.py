"""The claims of the study, and fixed rules by which evidence supports them, contradicts them or leaves them open."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

from uqbench.report.statistics.contrasts import (
    BARRIER,
    IN,
    JUDGED,
    OUT,
    RAW,
    SIMULATION,
    SURVIVAL,
    Contrast,
    Evidence,
    Quantity,
    bonferroni,
)

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "open"
DOMAINS = (IN, OUT)
MARGIN = 0.05  # what counts as level: 5 % of an error; 0.05 of a correlation, an area or a nat
SPEARMAN = JUDGED[2]
FORCES = JUDGED[0]

SHARED_RULE = """\
Methods are compared metric by metric, on the blocks (data set, subset, split, backbone and conditions) that both have;
of active learning, the last generation, after attacks where they were made; of MD, the mean over temperatures. From
five blocks on, the interval is Student's over the blocks; for fewer, it is of the mean over just these, covers
structures and seeds, and decides nothing where a method has a single run. *Beats*: the interval leaves out zero. Its
level is raised so that all comparisons behind a claim hold together at 95 % (Bonferroni). A score that is the same for
all atoms counts as uninformed (ρ = 0, ROC-AUC = 0.5). In domain: the test split; out of domain: other splits, and data
that a model was not trained with. What is an ensemble is said by the family that its class declares; methods of an
unknown family are taken neither for ensembles nor for single models. Numbers are how much worse the first method is: in
per cent of an error, or as a difference of what is small where it is good.
"""
PROVISIONAL = """\
*Provisionally*: the statistics behind these verdicts are being rebuilt. Splits, backbones and conditions of one data
set are taken for independent blocks, but only data sets are independent, and fewer than six show signs and no more.
"""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim (its number and text): the rule in words, the verdict, why, and the numbers.

    caveat: why a claim that is decided is so provisionally, besides what holds for all of them; empty for open ones.
    """

    claim: str
    text: str
    rule: str
    verdict: str
    reason: str
    numbers: list[str]
    caveat: str


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Apply the rule of every claim."""
    found = []
    for claim, text, rule, caveat, decide in CLAIMS:
        verdict, reason, contrasts = decide(evidence)
        numbers = [str(one) for one in contrasts if one is not None]
        found.append(Verdict(claim, text, rule, verdict, reason, numbers, "" if verdict == OPEN else caveat))
    return found


Decision = tuple[str, str, list[Contrast | None]]
Comparison = tuple[str, str, str, Quantity]
"""One method, another, domain, quantity."""


def _contrasts(evidence: Evidence, wanted: Iterable[Comparison]) -> dict[Comparison, Contrast]:
    """All comparisons that have data, at a level at which they hold together."""
    wanted = [one for one in wanted if all(evidence.has(one[2], one[3], method) for method in one[:2])]
    level = bonferroni(wanted)
    found = {one: evidence.contrast(*one[:2], *one[2:], level) for one in wanted}
    return {key: one for key, one in found.items() if one is not None}


def _all_pairs(evidence: Evidence, quantities: Iterable[Quantity]) -> dict[Comparison, Contrast]:
    """Each pair of methods once, on each metric of each domain."""
    pairs = itertools.combinations(evidence.methods, 2)
    return _contrasts(evidence, [(*pair, *where) for pair, where in itertools.product(pairs, _where(quantities))])


def _where(quantities: Iterable[Quantity]) -> list[tuple[str, Quantity]]:
    return list(itertools.product(DOMAINS, quantities))


def _outcomes(found: dict[Comparison, Contrast], method: str) -> dict[tuple[str, Quantity], list[tuple[str, int]]]:
    """By domain and quantity, the rivals of a method, and whether it is beaten by (1), beats (-1) or neither (0)."""
    results: dict[tuple[str, Quantity], list[tuple[str, int]]] = {}
    for (one, other, *where), contrast in found.items():
        if method in (one, other):
            sign = int(contrast.worse) - int(contrast.better)
            rival, sign = (other, sign) if method == one else (one, -sign)
            results.setdefault(tuple(where), []).append((rival, sign))
    return results


def _name(where: tuple[str, Quantity]) -> str:
    return f"{where[1][2]} {where[0]}"


def _c1(evidence: Evidence) -> Decision:
    found = _all_pairs(evidence, (*JUDGED, RAW))
    if len(evidence.methods) < 3 or not found:
        return OPEN, "fewer than three methods were compared", []
    decisive, unbeaten = [], []
    for method in evidence.methods:
        results = _outcomes(found, method)
        if results and all(sign == -1 for rivals in results.values() for _, sign in rivals):
            return CONTRADICTED, f"{method} beats every other method on every metric", list(found.values())
        lost = [(where, rival) for where, rivals in results.items() for rival, sign in rivals if sign == 1]
        if lost:
            (domain, quantity), rival = lost[0]
            decisive.append(
                found.get((method, rival, domain, quantity)) or found.get((rival, method, domain, quantity))
            )
        else:
            unbeaten.append(method)
    if not unbeaten:
        return SUPPORTED, "every method is beaten by another one on some metric", decisive
    return OPEN, f"no method is shown to beat {', '.join(unbeaten)} on any metric", decisive


def _c2(evidence: Evidence) -> Decision:
    ensembles, rivals = evidence.ensembles, evidence.others
    parts = {"out-of-domain forces": (OUT, FORCES), "MD": (SIMULATION, SURVIVAL), "barriers": (SIMULATION, BARRIER)}
    pairs = itertools.product(ensembles, rivals, parts.values())
    found = _contrasts(evidence, [(one, rival, *place) for one, rival, place in pairs])
    for rival, place in itertools.product(rivals, parts.values()):
        against = [one for key, one in found.items() if key[1:] == (rival, *place)]
        if against and all(one.worse for one in against):
            return CONTRADICTED, f"{rival} beats every ensemble on {place[1][2]}", against
    missing = [part for part, place in parts.items() if not any(key[2:] == place for key in found)]
    if missing:
        return OPEN, f"no data on {', '.join(missing)} with an ensemble and others", list(found.values())
    for ensemble in ensembles:
        mine = [one for key, one in found.items() if key[0] == ensemble]
        if {key[2:] for key in found if key[0] == ensemble} == set(parts.values()) and all(one.better for one in mine):
            return SUPPORTED, f"{ensemble} beats every other method on all three", mine
    level = [one for one in found.values() if not one.better]
    return OPEN, f"the intervals do not decide {len(level)} of {len(found)} comparisons", list(found.values())


def _c3(evidence: Evidence) -> Decision:
    if "mve" not in evidence.methods:
        return OPEN, "no runs of mve", []
    rivals = [method for method in evidence.methods if method != "mve"]
    found = _contrasts(evidence, [("mve", rival, domain, SPEARMAN) for rival in rivals for domain in DOMAINS])
    inside = [one for key, one in found.items() if key[2] == IN]
    outside = [one for key, one in found.items() if key[2] == OUT]
    if not inside or not outside:
        lacking = "in" if not inside else "out of"
        return OPEN, f"nothing to compare mve with {lacking} domain", list(found.values())
    good_inside, good_outside = (all(one.gap.high < MARGIN for one in side) for side in (inside, outside))
    bad_inside = any(one.gap.low > MARGIN for one in inside)
    bad_outside = any(one.worse for one in outside)
    if good_inside and bad_outside:
        return SUPPORTED, "level with the best in domain, beaten out of domain", list(found.values())
    if bad_inside:
        return CONTRADICTED, "clearly beaten in domain already", list(found.values())
    if good_outside:
        return CONTRADICTED, "level with the best out of domain too", list(found.values())
    return OPEN, "the intervals do not decide", list(found.values())


def _c4(evidence: Evidence) -> Decision:
    rivals = [method for method in evidence.methods if method.split(" ")[0] in ("mve", "evidential")]
    found = _contrasts(evidence, [("gmm", rival, OUT, SPEARMAN) for rival in rivals])
    families = {key[1].split(" ")[0] for key in found}
    if any(one.worse for one in found.values()):
        return CONTRADICTED, "another single model ranks errors better out of domain", list(found.values())
    if families < {"mve", "evidential"}:
        return OPEN, "gmm, mve and evidential were not all scored out of domain", list(found.values())
    if all(one.better for one in found.values()):
        return SUPPORTED, "gmm ranks errors better than mve and evidential out of domain", list(found.values())
    return OPEN, "the intervals do not decide", list(found.values())


def _c5(evidence: Evidence) -> Decision:
    if "evidential" not in evidence.methods:
        return OPEN, "no runs of evidential", []
    rivals = [method for method in evidence.methods if method != "evidential"]
    wanted = [("evidential", rival, *where) for rival in rivals for where in _where(JUDGED)]
    found = _contrasts(evidence, wanted)
    if not found:
        return OPEN, "nothing to compare evidential with", []
    results = _outcomes(found, "evidential")
    preferred = [where for where, rivals in results.items() if all(sign == -1 for _, sign in rivals)]
    if preferred:
        return CONTRADICTED, f"evidential beats every other method on {_name(preferred[0])}", list(found.values())
    undecided = [where for where, rivals in results.items() if not any(sign == 1 for _, sign in rivals)]
    if undecided:
        return OPEN, f"no method is shown to beat it on {', '.join(map(_name, undecided))}", list(found.values())
    return SUPPORTED, "on every metric some method beats it", [one for one in found.values() if one.worse]


def _c6(evidence: Evidence) -> Decision:
    ensembles, others = evidence.ensembles, evidence.others
    pairs = itertools.product(others, ensembles, _where((*JUDGED, RAW)))
    found = _contrasts(evidence, [(method, one, *where) for method, one, where in pairs])
    if not found:
        return OPEN, "no single model was compared with an ensemble", []
    by_method = {method: [one for one in found.values() if one.one == method] for method in others}
    matching = [
        method
        for method, mine in by_method.items()
        if all(one.gap.high < MARGIN for one in mine) and {one.domain for one in mine} >= set(DOMAINS)
    ]
    if matching:
        reason = f"{', '.join(matching)} is level with every ensemble on every metric"
        return CONTRADICTED, reason, by_method[matching[0]]
    losses = {method: [one for one in mine if one.worse] for method, mine in by_method.items() if mine}
    undecided = [method for method, lost in losses.items() if not lost]
    numbers = [lost[0] for lost in losses.values() if lost]
    if undecided:
        return OPEN, f"no ensemble is shown to beat {', '.join(undecided)} on any metric", numbers
    return SUPPORTED, "every single model is beaten by an ensemble on some metric", numbers


COST = "an ensemble costs as much as all of its members and is not compared at equal cost"
CLAIMS: tuple[tuple[str, str, str, str, Callable[[Evidence], Decision]], ...] = (
    (
        "C1",
        "No method is consistently best across the metrics.",
        "Supported when every method is beaten by another on at least one metric, in or out of domain; contradicted"
        " when one beats every other on every metric. At least three methods.",
        f"{COST}; the intervals of miscalibration areas are too short where a model is nearly calibrated",
        _c1,
    ),
    (
        "C2",
        "Ensembles generalise best and give the most robust potentials (stable MD, barriers).",
        "Supported when an ensemble beats every method of another family on out-of-domain force errors, on the share of"
        " simulations that survive and on the barrier error; contradicted when one of these beats every ensemble on one"
        " of them.",
        COST,
        _c2,
    ),
    (
        "C3",
        "MVE is effective only for in-domain interpolation.",
        f"By the rank correlation of score and error. Supported when in domain no method is better than MVE by {MARGIN}"
        " or more, and out of domain one beats it; contradicted when one is better by more than that in domain, or when"
        " none is out of domain.",
        "a score that knows the element alone ranks errors as well, and is not among the methods",
        _c3,
    ),
    (
        "C4",
        "GMM is better out of domain.",
        "By the rank correlation out of domain. Supported when GMM beats MVE and evidential regression; contradicted"
        " when one of them beats it.",
        "densities of different elements have different zeros, and are pooled before they are ranked",
        _c4,
    ),
    (
        "C5",
        "Evidential regression is not the preferred choice in any case.",
        "Supported when on every metric, in and out of domain, some method beats it; contradicted when it beats every"
        " other method on one.",
        "at the study's λ = 0.2 the predicted Student t has about two degrees of freedom, and the variance that it is"
        " scored by diverges; λ is to be chosen on validation frames",
        _c5,
    ),
    (
        "C6",
        "Cheap single models cannot yet consistently match an ensemble.",
        "Supported when an ensemble beats every single model (every method of another family) on at least one metric;"
        f" contradicted when one single model is worse than every ensemble by less than {MARGIN} (or 5 % of an error)"
        " on every metric, in and out of domain.",
        COST,
        _c6,
    ),
)
