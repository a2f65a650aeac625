"""The claims of the study, and fixed rules by which runs support them, contradict them or leave them open."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

from uqbench.report.statistics.contrasts import IN, OUT, SIMULATION, Contrast, Study, Where
from uqbench.report.statistics.metrics import BARRIER, FORCE_MAE, MD_SURVIVAL, MISCALIBRATION_RAW, PRINCIPAL, SPEARMAN

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "open"
MARGIN = 0.05  # what counts as level: 5 % of an error; 0.05 of a correlation, an area or a nat
COST = "an ensemble costs as much as all of its members and is not compared at equal cost"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the study: its number, its text, the rule in words, and why its verdict is provisional.

    method: the option of `uq` that it is about, and rivals: those that it compares it with, or all others; a claim
    that names no method is about families, which the methods' classes declare.
    """

    number: str
    text: str
    rule: str
    caveat: str
    method: str = ""
    rivals: tuple[str, ...] = ()


CLAIMS = (
    Claim(
        "C1",
        "No method is consistently best across the metrics.",
        "Supported when every method is beaten by another on at least one metric, in or out of domain; contradicted"
        " when one beats every other on every metric. At least three methods.",
        f"{COST}; the intervals of miscalibration areas are too short where a model is nearly calibrated",
    ),
    Claim(
        "C2",
        "Ensembles generalise best and give the most robust potentials (stable MD, barriers).",
        "Supported when an ensemble beats every method of another family on out-of-domain force errors, on the share of"
        " simulations that survive and on the barrier error; contradicted when one of these beats every ensemble on one"
        " of them.",
        COST,
    ),
    Claim(
        "C3",
        "MVE is effective only for in-domain interpolation.",
        f"By the rank correlation of score and error. Supported when in domain no method is better than MVE by {MARGIN}"
        " or more, and out of domain one beats it; contradicted when one is better by more than that in domain, or when"
        " none is out of domain.",
        "a score that knows the element alone ranks errors as well, and is not among the methods",
        method="mve",
    ),
    Claim(
        "C4",
        "GMM is better out of domain.",
        "By the rank correlation out of domain. Supported when GMM beats MVE and evidential regression; contradicted"
        " when one of them beats it.",
        "densities of different elements have different zeros, and are pooled before they are ranked",
        method="gmm",
        rivals=("mve", "evidential"),
    ),
    Claim(
        "C5",
        "Evidential regression is not the preferred choice in any case.",
        "Supported when on every metric, in and out of domain, some method beats it; contradicted when it beats every"
        " other method on one.",
        "at the study's λ = 0.2 the predicted Student t has about two degrees of freedom, and the variance that it is"
        " scored by diverges; λ is to be chosen on validation frames",
        method="evidential",
    ),
    Claim(
        "C6",
        "Cheap single models cannot yet consistently match an ensemble.",
        "Supported when an ensemble beats every single model (every method of another family) on at least one metric;"
        f" contradicted when one single model is worse than every ensemble by less than {MARGIN} (or 5 % of an error)"
        " on every metric, in and out of domain.",
        COST,
    ),
)
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
    """What the runs say of a claim, why, and the contrasts behind it."""

    claim: Claim
    verdict: str
    reason: str
    contrasts: list[Contrast]

    @property
    def caveat(self) -> str:
        """Why a claim that is decided is so provisionally, besides what holds for all of them; empty for open ones."""
        return "" if self.verdict == OPEN else self.claim.caveat

    def record(self) -> dict[str, str]:
        """The verdict as a row of a table."""
        claim = {"claim": self.claim.number, "text": self.claim.text, "rule": self.claim.rule}
        decided = {"verdict": self.verdict, "reason": self.reason, "caveat": self.caveat}
        return claim | decided | {"numbers": "\n".join(map(str, self.contrasts))}


def verdicts(study: Study) -> list[Verdict]:
    """Apply the rule of every claim."""
    return [Verdict(claim, *RULES[claim.number](claim, study)) for claim in CLAIMS]


Decision = tuple[str, str, list[Contrast]]
"""A verdict, the reason for it, and the contrasts behind it."""


def _no_method_is_best(claim: Claim, study: Study) -> Decision:
    pairs = itertools.combinations(study.methods, 2)
    contrasts = study.contrasts(pairs, _in_both_domains(*PRINCIPAL, MISCALIBRATION_RAW))
    if len(study.methods) < 3 or not contrasts:
        return OPEN, "fewer than three methods were compared", []
    decisive, unbeaten = [], []
    for method in study.methods:
        by_metric = _by_metric(contrast for contrast in contrasts if method in (contrast.one, contrast.other))
        involved = list(itertools.chain.from_iterable(by_metric.values()))
        if involved and all(contrast.winner == method for contrast in involved):
            return CONTRADICTED, f"{method} beats every other method on every metric", contrasts
        lost = [contrast for contrast in involved if contrast.loser == method]
        decisive += lost[:1]
        unbeaten += [] if lost else [method]
    if not unbeaten:
        return SUPPORTED, "every method is beaten by another one on some metric", decisive
    return OPEN, f"no method is shown to beat {', '.join(unbeaten)} on any metric", decisive


def _ensembles_are_most_robust(claim: Claim, study: Study) -> Decision:
    parts = {
        "out-of-domain forces": (OUT, FORCE_MAE),
        "MD": (SIMULATION, MD_SURVIVAL),
        "barriers": (SIMULATION, BARRIER),
    }
    contrasts = study.contrasts(itertools.product(study.ensembles, study.others), parts.values())
    for rival, where in itertools.product(study.others, parts.values()):
        against = [contrast for contrast in contrasts if contrast.other == rival and contrast.where == where]
        if against and all(contrast.worse for contrast in against):
            return CONTRADICTED, f"{rival} beats every ensemble on {where[1].label}", against
    missing = [part for part, where in parts.items() if not any(contrast.where == where for contrast in contrasts)]
    if missing:
        return OPEN, f"no data on {', '.join(missing)} with an ensemble and others", contrasts
    for ensemble in study.ensembles:
        against = [contrast for contrast in contrasts if contrast.one == ensemble]
        if {one.where for one in against} == set(parts.values()) and all(one.better for one in against):
            return SUPPORTED, f"{ensemble} beats every other method on all three", against
    undecided = sum(not contrast.better for contrast in contrasts)
    return OPEN, f"the intervals do not decide {undecided} of {len(contrasts)} comparisons", contrasts


def _effective_in_domain_only(claim: Claim, study: Study) -> Decision:
    if claim.method not in study.methods:
        return OPEN, f"no runs of {claim.method}", []
    contrasts = study.contrasts(_against_all(claim, study), _in_both_domains(SPEARMAN))
    inside, outside = ([contrast for contrast in contrasts if contrast.domain == domain] for domain in (IN, OUT))
    if not inside or not outside:
        lacking = "in" if not inside else "out of"
        return OPEN, f"nothing to compare {claim.method} with {lacking} domain", contrasts
    if _level(inside) and any(contrast.worse for contrast in outside):
        return SUPPORTED, "level with the best in domain, beaten out of domain", contrasts
    if any(contrast.excess.low > MARGIN for contrast in inside):
        return CONTRADICTED, "clearly beaten in domain already", contrasts
    if _level(outside):
        return CONTRADICTED, "level with the best out of domain too", contrasts
    return OPEN, "the intervals do not decide", contrasts


def _ranks_better_out_of_domain(claim: Claim, study: Study) -> Decision:
    pairs = [(claim.method, rival) for rival in study.methods if study.uq[rival] in claim.rivals]
    contrasts = study.contrasts(pairs, [(OUT, SPEARMAN)])
    rivals = " and ".join(claim.rivals)
    if any(contrast.worse for contrast in contrasts):
        return CONTRADICTED, "another single model ranks errors better out of domain", contrasts
    if {study.uq[contrast.other] for contrast in contrasts} < set(claim.rivals):
        return OPEN, f"{claim.method}, {rivals} were not all scored out of domain", contrasts
    if all(contrast.better for contrast in contrasts):
        return SUPPORTED, f"{claim.method} ranks errors better than {rivals} out of domain", contrasts
    return OPEN, "the intervals do not decide", contrasts


def _never_preferred(claim: Claim, study: Study) -> Decision:
    if claim.method not in study.methods:
        return OPEN, f"no runs of {claim.method}", []
    contrasts = study.contrasts(_against_all(claim, study), _in_both_domains(*PRINCIPAL))
    if not contrasts:
        return OPEN, f"nothing to compare {claim.method} with", []
    by_metric = _by_metric(contrasts)
    preferred = [where for where, rivals in by_metric.items() if all(one.better for one in rivals)]
    if preferred:
        return CONTRADICTED, f"{claim.method} beats every other method on {_name(preferred[0])}", contrasts
    undecided = [where for where, rivals in by_metric.items() if not any(one.worse for one in rivals)]
    if undecided:
        return OPEN, f"no method is shown to beat it on {', '.join(map(_name, undecided))}", contrasts
    return SUPPORTED, "on every metric some method beats it", [one for one in contrasts if one.worse]


def _single_models_do_not_match(claim: Claim, study: Study) -> Decision:
    pairs = itertools.product(study.others, study.ensembles)
    contrasts = study.contrasts(pairs, _in_both_domains(*PRINCIPAL, MISCALIBRATION_RAW))
    if not contrasts:
        return OPEN, "no single model was compared with an ensemble", []
    by_method = {method: [contrast for contrast in contrasts if contrast.one == method] for method in study.others}
    matching = [
        method
        for method, against in by_method.items()
        if _level(against) and {contrast.domain for contrast in against} >= {IN, OUT}
    ]
    if matching:
        reason = f"{', '.join(matching)} is level with every ensemble on every metric"
        return CONTRADICTED, reason, by_method[matching[0]]
    lost = {method: [one for one in against if one.worse] for method, against in by_method.items() if against}
    unbeaten = [method for method, losses in lost.items() if not losses]
    decisive = [losses[0] for losses in lost.values() if losses]
    if unbeaten:
        return OPEN, f"no ensemble is shown to beat {', '.join(unbeaten)} on any metric", decisive
    return SUPPORTED, "every single model is beaten by an ensemble on some metric", decisive


RULES: dict[str, Callable[[Claim, Study], Decision]] = {
    "C1": _no_method_is_best,
    "C2": _ensembles_are_most_robust,
    "C3": _effective_in_domain_only,
    "C4": _ranks_better_out_of_domain,
    "C5": _never_preferred,
    "C6": _single_models_do_not_match,
}
"""What applies the rule of each claim, by its number."""


def _against_all(claim: Claim, study: Study) -> list[tuple[str, str]]:
    return [(claim.method, rival) for rival in study.methods if rival != claim.method]


def _in_both_domains(*quantities) -> list[Where]:
    return list(itertools.product((IN, OUT), quantities))


def _by_metric(contrasts: Iterable[Contrast]) -> dict[Where, list[Contrast]]:
    groups: dict[Where, list[Contrast]] = {}
    for contrast in contrasts:
        groups.setdefault(contrast.where, []).append(contrast)
    return groups


def _level(contrasts: Iterable[Contrast]) -> bool:
    """Whether no other method is better by the margin or more."""
    return all(contrast.excess.high < MARGIN for contrast in contrasts)


def _name(where: Where) -> str:
    domain, quantity = where
    return f"{quantity.label} {domain}"
