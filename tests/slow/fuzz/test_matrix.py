"""Every key of active learning and of evaluations times wrong values: refused in a line that names it, or it works.

`make test` takes a few of them, `make test-fuzz` all.
"""

import json
import os
import random
import re

import pytest
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow
SAMPLE = 2  # cases of each command that `make test` takes
EVERYTHING = "UQBENCH_FUZZ" in os.environ
VALUES = ["null", "-1", "x", "[]", "{}", "nan", str(2**63), "'${nowhere}'", "../..", "true"]
TINY = ["backbone.features=8", "backbone.layers=1", "training.epochs=1", "evaluation.bootstrap=4"]
TINY += ["evaluation.ideal_draws=1", "evaluations.out_of_domain=null"]
FRAMES = ["dataset.n_train=20", "dataset.n_validation=10", "dataset.n_test=10", "dataset.block=10"]
LEARN = ["al", "uq=gmm", "dataset=ammonia", *TINY, "al.generations=2", "al.proposals=4", "al.batch=2"]
MD = ["evaluation.replicas=1", "evaluation.protocol.duration_ps=0.02", "evaluation.protocol.equilibration_ps=0.005"]
# By name: the command, and the keys below which all are tried. It is the words of the command that keep it short.
COMMANDS = {
    "adversarial": ([*LEARN, "acquisition=adversarial", "acquisition.steps=3"], ("al", "acquisition", "selection")),
    "dynamics": ([*LEARN, "acquisition=md", "selection=top"], ("acquisition", "selection")),
    "random": ([*LEARN, "acquisition=random"], ("acquisition",)),
    "xtb": ([*LEARN, "oracle=xtb"], ("oracle",)),
    "lammps": ([*LEARN, "oracle=lammps"], ("oracle",)),
    "md": (["evaluate", "run={run}", "evaluation=md", *MD, "evaluation.temperatures=[300]"], ("evaluation",)),
    "neb": (["evaluate", "run={run}", "evaluation=neb", "evaluation.steps=2", "evaluation.images=3"], ("evaluation",)),
    "structure": (["evaluate", "run={run}", "evaluation=structure"], ("evaluation",)),
    "beside": (["train", "uq=mve", *TINY[:-1], *FRAMES], ("evaluations",)),
}
# What is said at the end where nothing was wrong with the value, as these commands have no reaction or potential.
FITS = re.compile("there is no potential for [CHN, ]+, only for Si, O|the model has not been trained on N; it knows")
# Where nothing is wrong with the value: any text is a name or a place.
TEXTS = {"oracle.cache", "evaluation.oracle.cache", "evaluation.path"}


def wrong(node, below, path=""):
    """Every key at any depth below some, with every wrong value; nothing is no wrong value for a group of keys."""
    for key, value in node.items():
        name = f"{path}.{key}".lstrip(".")
        if path:
            yield from ((name, bad) for bad in VALUES if bad != "{}" or not isinstance(value, dict))
        if isinstance(value, dict) and (path or key in below):
            yield from wrong(value, below, name)


@pytest.fixture(scope="module")
def trained(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    process = program.start(["train", "uq=mve", *TINY, *FRAMES], figures=False, folder=str(folder))
    assert process.wait() == 0, process.err
    (path,) = folder.glob("outputs/train/*/*/*/*")
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_values_are_refused_in_a_line_or_work(name, program, trained, tmp_path):
    words, below = COMMANDS[name]
    words = [word.format(run=trained) for word in words]
    shown = program.start([*words, "--cfg", "job"], folder=str(tmp_path))
    assert shown.wait() == 0, shown.err
    tree = OmegaConf.to_container(OmegaConf.create(shown.out), resolve=False)
    cases = list(wrong(tree, below))
    assert cases
    before = sorted(trained.rglob("*"))
    findings = []
    for k, (key, value) in enumerate(cases if EVERYTHING else random.Random(0).sample(cases, SAMPLE)):
        folder = tmp_path / str(k)
        folder.mkdir()
        process = program.start(
            [*words, f"{key}={value}"], figures=False, folder=str(folder), limits={"RLIMIT_CPU": 60}
        )
        code, text = process.wait(600.0), process.err
        left = [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
        problems = []
        if FITS.search(text):
            continue
        if code not in (0, 2) and not (code == 1 and key in text):
            problems.append(f"exit {code}")
        if "raceback" in text:
            problems.append("internal")
        if code == 0 and value in ("{}", "nan", str(2**63), "'${nowhere}'") and key not in TEXTS:
            problems.append("accepted")
        if code == 2 and key.split(".")[-1] not in text and value.strip("'") not in text:
            problems.append("unnamed")
        if code == 2 and (left or sorted(trained.rglob("*")) != before):
            problems.append(f"left {left}")
        if problems:
            lines = text.strip().splitlines()
            findings.append({"case": f"{key}={value}", "problems": problems, "said": lines[-1:]})
            before = sorted(trained.rglob("*"))
    print(f"\n{name}: {len(cases)} cases, {len(findings)} findings")
    assert not findings, json.dumps(findings, indent=1, ensure_ascii=False)
