"""Ranks and verdicts: against other libraries, and on studies whose outcome is planted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import uqbench.report.sections.study as sections
from uqbench.report.claims import CLAIMS, CONTRADICTED, OPEN, RULES, SUPPORTED, verdicts
from uqbench.report.statistics.contrasts import IN, OUT, SIMULATION, Study, worth
from uqbench.report.statistics.metrics import BARRIER, FORCE_MAE, MISCALIBRATION_RAW, PRINCIPAL
from uqbench.report.statistics.metrics import SPEARMAN as SPEARMAN_OF_FORCES
from uqbench.report.statistics.ranks import mean_ranks, rankings

SPEARMAN = ("forces", "spearman")
MAE = ("forces", "mae")
SURVIVAL = ("md", "survival")
SCORED = [(quantity.target, quantity.metric) for quantity in (*PRINCIPAL, MISCALIBRATION_RAW)]
METHODS = ("ensemble", "mve", "evidential", "gmm")
FAMILIES = {"ensemble": "ensemble", "mve": "single", "evidential": "single", "gmm": "layer"}


def study(
    effects,
    *,
    methods=METHODS,
    blocks=6,
    seeds=2,
    domains=("in", "out"),
    noise=0.003,
    drop=(),
    chance=1,
    quantities=None,
    families=None,
):
    """Rows of a study; `effects` maps (method, target, metric, domain or None) to what is added to the common value."""
    rng, rows = np.random.default_rng(chance), []
    scored = quantities or SCORED
    simulated = [SURVIVAL, ("neb", "barrier_error")] if "out" in domains and not quantities else []
    for domain in domains:
        for target, metric in scored + (simulated if domain == "out" else []):
            for block in range(blocks):
                hard = 0.5 + 0.1 * block / blocks
                for method in methods:
                    for seed in range(seeds):
                        if (method, block, seed) in drop:
                            continue
                        shift = effects.get((method, target, metric, domain), effects.get((method, target, metric), 0))
                        value = hard + shift + noise * rng.normal()
                        split = {"in": "test", "out": "far"}[domain] if target in ("forces", "energy") else "hot"
                        rows.append(
                            {"command": "train", "dataset": "toy", "subset": f"t{block}", "split": split}
                            | {"generation": pd.NA, "backbone": "net", "setting": None, "uq": method, "uq_settings": ""}
                            | {"shared": "", "frames": f"{domain}{block}", "seed": seed, "target": target}
                            | {"population": "all", "metric": metric, "value": value, "domain": domain, "n": 9}
                            | {"source": "", "path": f"{method}{block}{seed}", "acquisition": "", "unit": "1"}
                            | {"family": {**FAMILIES, **(families or {})}.get(method)}
                            | {"ci_low": np.nan, "ci_high": np.nan}
                        )
    return Study(pd.DataFrame(rows).astype({"generation": "Int64"}))


def verdict_of(runs):
    return {one.claim.number: one.verdict for one in verdicts(runs)}


def everywhere(method, shift):
    """A shift on every metric, for the better where it is negative."""
    sign = {"spearman": -1, "roc_auc_80": -1, "survival": -1}
    metrics = [*SCORED, SURVIVAL, ("neb", "barrier_error")]
    return {(method, *metric): sign.get(metric[1], 1) * shift for metric in metrics}


def test_equal_methods_decide_nothing():
    for blocks in (2, 6):
        assert set(verdict_of(study({}, blocks=blocks, seeds=3, noise=0.1)).values()) == {OPEN}


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_equal_methods_are_told_apart_as_rarely_as_the_level_says(blocks):
    studies, wrong = 60, 0
    settings = {"methods": ("a", "b"), "blocks": blocks, "seeds": 3, "domains": ("in",), "quantities": [SPEARMAN]}
    for chance in range(studies):
        one = study({}, **settings, chance=chance).contrast("a", "b", IN, SPEARMAN_OF_FORCES, 0.9)
        wrong += one.better or one.worse
    assert wrong / studies < 0.1 + 3 * np.sqrt(0.1 * 0.9 / studies)


def test_an_ensemble_that_is_better_everywhere():
    found = verdict_of(study(everywhere("ensemble", -0.2)))
    assert found["C1"] == CONTRADICTED and found["C2"] == SUPPORTED and found["C6"] == SUPPORTED
    assert found["C5"] == SUPPORTED and found["C4"] == OPEN


def test_a_method_that_is_better_on_one_metric_breaks_the_rule_of_the_ensemble():
    effects = everywhere("ensemble", -0.2) | {("mve", "forces", "miscalibration_area"): -0.3}
    found = verdict_of(study(effects))
    assert found["C1"] == SUPPORTED, "now every method is beaten somewhere"


def test_mve_good_in_domain_only():
    effects = {("mve", *SPEARMAN, "in"): 0.2, ("mve", *SPEARMAN, "out"): -0.2}
    assert verdict_of(study(effects))["C3"] == SUPPORTED
    assert verdict_of(study({("mve", *SPEARMAN): 0.2}))["C3"] == CONTRADICTED, "good out of domain too"
    assert verdict_of(study({("mve", *SPEARMAN): -0.2}))["C3"] == CONTRADICTED, "bad in domain"
    assert verdict_of(study({("mve", *SPEARMAN, "in"): 0.2}, domains=("in",)))["C3"] == OPEN


def test_what_claims_name_are_methods_that_there_are():
    options = {path.stem for path in (Path(__file__).parents[2] / "conf" / "uq").glob("*.yaml")}
    assert {name for claim in CLAIMS for name in (claim.method, *claim.rivals) if name} <= options
    assert [claim.number for claim in CLAIMS] == list(RULES)


def test_gmm_out_of_domain():
    assert verdict_of(study({("gmm", *SPEARMAN, "out"): 0.2}))["C4"] == SUPPORTED
    assert verdict_of(study({("evidential", *SPEARMAN, "out"): 0.2}))["C4"] == CONTRADICTED
    assert verdict_of(study({("gmm", *SPEARMAN, "in"): 0.2}))["C4"] == OPEN
    without = study({("gmm", *SPEARMAN, "out"): 0.2}, methods=("ensemble", "mve", "gmm"))
    assert verdict_of(without)["C4"] == OPEN, "nothing is said of evidential regression"


def test_evidential_preferred_on_one_metric():
    assert verdict_of(study({("evidential", *MAE, "in"): -0.2}))["C5"] == CONTRADICTED
    assert verdict_of(study(everywhere("evidential", 0.2)))["C5"] == SUPPORTED


def test_a_more_robust_single_model_contradicts_the_ensemble():
    assert verdict_of(study(everywhere("ensemble", -0.2) | {("gmm", *SURVIVAL): 0.4}))["C2"] == CONTRADICTED
    assert verdict_of(study({("gmm", "neb", "barrier_error"): -0.3}))["C2"] == CONTRADICTED


def test_single_models_that_are_level_everywhere_contradict_c6():
    assert verdict_of(study({}, noise=1e-4))["C6"] == CONTRADICTED
    assert verdict_of(study({}, noise=1e-4, domains=("in",)))["C6"] == OPEN, "nothing is known out of domain"


@pytest.mark.parametrize(
    "names", [("ensemble", "no_ensemble"), ("committee", "mve")], ids=["another name that ends alike", "another name"]
)
def test_the_declared_family_says_what_an_ensemble_is_and_not_the_name(names):
    better, other = names
    families = {better: "ensemble", other: "single"}
    planted = everywhere(better, -0.2)
    found = {one.claim.number: one for one in verdicts(study(planted, methods=(better, other), families=families))}
    assert found["C2"].verdict == SUPPORTED and found["C6"].verdict == SUPPORTED
    assert all(f"{other} worse than {better}" in number for number in map(str, found["C6"].contrasts))
    level = study({}, methods=(better, other), families=families, noise=1e-4)
    assert verdict_of(level)["C6"] == CONTRADICTED, "the single model is compared, and level"


def test_two_ensembles_are_beaten_only_together_and_win_only_alone():
    families = {"committee": "ensemble"}
    methods = (*METHODS, "committee")
    found = verdict_of(study(everywhere("committee", -0.2), methods=methods, families=families))
    assert found["C2"] == found["C6"] == SUPPORTED
    one_lost = everywhere("committee", -0.2) | {("gmm", *MAE, "out"): -0.1}
    assert verdict_of(study(one_lost, methods=methods, families=families))["C2"] == SUPPORTED
    both_lost = everywhere("committee", -0.2) | {("gmm", *MAE, "out"): -0.4}
    assert verdict_of(study(both_lost, methods=methods, families=families))["C2"] == CONTRADICTED


@pytest.mark.parametrize("family", [None, pd.NA])
def test_a_method_of_an_unknown_family_is_neither_an_ensemble_nor_a_single_model(family):
    families = {"their_ensemble": family}
    runs = study({}, methods=("ensemble", "their_ensemble", "mve"), families=families, noise=1e-4)
    assert runs.ensembles == ["ensemble"] and runs.others == ["mve"]
    alone = study(everywhere("their_ensemble", -0.2), methods=("their_ensemble", "mve"), families=families)
    assert verdict_of(alone)["C2"] == verdict_of(alone)["C6"] == OPEN


def test_runs_that_disagree_on_the_family_of_a_method_leave_it_unknown():
    rows = study({}, families={"odd": "ensemble"}, methods=("odd",)).rows.drop(columns=["method", "block"])
    rows["family"] = np.where(rows["seed"] == 0, "ensemble", "single")
    rows["domain"] = rows["domain"].map({"in domain": "in", "out of domain": "out", "simulation": "out"})
    assert Study(rows).ensembles == []


def test_single_runs_on_few_data_sets_decide_nothing():
    runs = study(everywhere("ensemble", -0.4), blocks=2, seeds=1)
    assert set(verdict_of(runs).values()) == {OPEN}
    decided = study(everywhere("ensemble", -0.4), blocks=2, seeds=3)
    assert verdict_of(decided)["C6"] == SUPPORTED


def test_numbers_say_direction_level_and_blocks():
    runs = study(everywhere("ensemble", -0.2), drop={("mve", 0, 0), ("mve", 0, 1)})
    one = runs.contrast("mve", "ensemble", IN, FORCE_MAE, 0.99)
    assert one.worse and (one.blocks, one.of) == (5, 6)
    text = str(one)
    assert text.startswith("force MAE, in domain: mve worse than ensemble, +") and "at 99 %; blocks: 5 of 6" in text
    assert runs.contrast("mve", "nobody", IN, FORCE_MAE, 0.95) is None


def test_the_last_generation_after_attacks_is_what_counts():
    rows = study({}, methods=("a",), blocks=1, domains=("out",)).rows
    rows = rows[rows["metric"] == "mae"].drop(columns=["method", "block"])
    parts = []
    for generation, acquisition, value in ((1, "adversarial", 3.0), (2, "adversarial", 2.0), (2, "random", 1.0)):
        parts.append(rows.assign(generation=generation, acquisition=acquisition, value=value, path=acquisition))
    learned = pd.concat(parts, ignore_index=True).astype({"generation": "Int64"}).assign(domain="out", command="al")
    assert set(Study(learned).rows["value"]) == {2.0}


def test_constant_scores_count_as_uninformed():
    assert worth("spearman", np.array([np.nan, 0.5])).tolist() == [0.0, -0.5]
    assert worth("roc_auc_80", np.array([np.nan])).tolist() == [-0.5]
    assert np.isnan(worth("calibrated_miscalibration_area", np.array([np.nan])))[0]
    assert worth("mae", np.array([2.0])) == pytest.approx(np.log(2))


def test_barriers_are_judged_by_their_size():
    runs = study({("gmm", "neb", "barrier_error"): -1.1}, noise=1e-3)
    one = runs.contrast("gmm", "mve", SIMULATION, BARRIER, 0.95)
    assert np.exp(one.excess.mean) == pytest.approx(1.0, rel=0.2), "0.5 - 1.1 is about as bad as 0.6"


def test_ranks_are_means_over_blocks_with_ties_shared():
    blocks = pd.DataFrame({"c": [3.0, 9.0, 6.0], "a": [1.0, 2.0, 5.0], "b": [2.0, 2.0, 2.0]})
    ranks = mean_ranks(blocks)
    assert list(ranks.index) == ["a", "b", "c"]
    assert ranks.tolist() == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0])


def test_a_better_method_ranks_first():
    ranked = rankings(study(everywhere("ensemble", -0.2)))
    assert set(ranked["domain"]) == {IN, OUT}
    first = ranked[ranked["domain"] == IN].iloc[0]
    assert first["method"] == "ensemble" and first["mean_rank"] == 1.0
    assert first["blocks"] == 6 * len(PRINCIPAL) and first["left_out"] == 0


def test_ranks_over_metrics_are_described_and_not_tested():
    """Metrics of one prediction are no independent blocks: nothing like a p-value stands beside their ranks."""
    ranked = rankings(study(everywhere("ensemble", -0.2)))
    assert list(ranked) == ["domain", "method", "mean_rank", "blocks", "left_out"]
    text = " ".join(sections.ranks(ranked).lines)
    assert "Mean ranks over 36 blocks: ensemble 1.00," in text and "There is no p-value" in text
    for word in ("Friedman", "Nemenyi", "Not told apart", "p ="):
        assert word not in text


def test_what_is_decided_is_so_provisionally_and_says_why():
    decided = verdicts(study(everywhere("ensemble", -0.2)))
    shown = "\n".join(sections.claims(decided).lines)
    for one in decided:
        assert bool(one.caveat) == (one.verdict != OPEN)
        assert f"| **{one.verdict}**{', provisionally' if one.caveat else ''} |" in shown and one.caveat in shown
    assert {SUPPORTED, CONTRADICTED, OPEN} == {one.verdict for one in decided}
    assert "only data sets are independent" in shown


def test_blocks_that_lack_a_method_are_counted_and_left_out():
    ranked = rankings(study({}, drop={("gmm", 0, 0), ("gmm", 0, 1)}))
    assert set(ranked["left_out"]) == {len(PRINCIPAL)} and set(ranked["blocks"]) == {5 * len(PRINCIPAL)}


def test_one_method_alone_is_not_ranked():
    assert not len(rankings(study({}, methods=("mve",))))
    assert not sections.ranks(rankings(study({}, methods=("mve",)))).lines
