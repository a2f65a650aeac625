"""Bad input: one line for each error, exit code 2, no traceback, nothing left behind."""

import os
import pickle
from pathlib import Path

import pytest

BAD = {
    "unknown key": (["modle.rate=1"], ["modle.rate: unknown key; did you mean 'model.rate'?"]),
    "leading part left out": (["rate=1"], ["rate: unknown key; did you mean 'model.rate'?"]),
    "added key": (["+model.extra=1"], ["model.extra: unknown key"]),
    "force-added key": (["++model.widht=1"], ["model.widht: unknown key; did you mean 'model.width'?"]),
    "removed key": (["~model.rate"], ["~model.rate: keys cannot be removed"]),
    "unknown option": (["model=liner"], ["model: no option 'liner'; did you mean 'linear'?"]),
    "no option": (["model=null"], ["model: no option 'null'"]),
    "group of another command": (["backbone=painn"], ["backbone: unknown key"]),
    "wrong type": (["model.width=four"], ["model.width: expected an integer, got 'four'"]),
    "bool is no integer": (["model.width=true"], ["model.width: expected an integer, got True"]),
    "float is no integer": (["model.width=4.5"], ["model.width: expected an integer, got 4.5"]),
    "nan": (["model.rate=nan"], ["model.rate: expected a number, got nan"]),
    "null": (["model.rate=null"], ["model.rate: expected a number, got None"]),
    "wrong literal": (["model.kind=rond"], ["model.kind: expected 'flat' or 'round', got 'rond'; did you mean 'rou"]),
    "wrong element": (["model=deep", "model.sizes=[1,x]"], ["model.sizes: expected a list (an integer), got [1, 'x']"]),
    "wrong top-level type": (["seed=abc"], ["seed: expected an integer >= 0, got 'abc'"]),
    "negative seed": (["seed=-1"], ["seed: expected an integer >= 0, got -1"]),
    "wrong top-level literal": (["action=pas"], ["action: expected 'pass' or"]),
    "missing value": (["model=needs"], ["model.width: no value given; add model.width=..."]),
    "dangling interpolation": (["model.rate=${nowhere}"], ["model.rate: Interpolation key 'nowhere' not found"]),
    "key of another option": (["model.depth=2"], ["model.depth: unknown key"]),
    "sweep without -m": (["model=linear,deep"], ["model=linear,deep: several values need -m"]),
    "no equals sign": (["model"], ["model: not of the form key=value"]),
    "unbalanced": (["model.sizes=[1"], ["model.sizes=[1: not of the form key=value"]),
    "unknown flag": (["--frobnicate"], ["unrecognized arguments: --frobnicate; see uqbench toy --help"]),
    "unknown Hydra key": (["hydra.foo=1"], ["Could not override 'hydra.foo'."]),
    "experiment that adds": (
        ["experiment=adding"],
        ["modle: unknown key in experiment=adding; did you mean 'model'?", "model.dpth: toy_models.Linear takes"],
    ),
    "broken YAML": (["experiment=broken"], ["broken.yaml"]),
    "untrusted override": (["model._target_=os.system"], ["model._target_: 'os.system' is not trusted"]),
    "untrusted file": (["model=evil"], ["model._target_: 'os.system' is not trusted"]),
    "untrusted re-export": (["model=alias"], ["'toy_models.os.system' (really posix.system) is not trusted"]),
    "untrusted nested": (
        ["model.rate={_target_:os.system}"],
        ["model.rate: expected a number", "model.rate._target_: 'os.system' cannot stand here; model.rate is a plain"],
    ),
    "untrusted launcher": (
        ["hydra.launcher._target_=os.system"],
        ["hydra.launcher._target_: 'os.system' is not trusted"],
    ),
    "function of Hydra as launcher": (
        ["hydra.launcher._target_=hydra.utils.call"],
        ["hydra.launcher._target_: 'hydra.utils.call' is not trusted"],
    ),
    "function of Hydra as sweeper": (
        ["hydra.sweeper._target_=hydra.utils.get_method"],
        ["hydra.sweeper._target_: 'hydra.utils.get_method' is not trusted"],
    ),
    "code in the sweeper": (["experiment=sweeping"], ["hydra.sweeper: 'os.system' cannot be built in there"]),
    "callback": (["experiment=calling"], ["hydra.callbacks.mine: there are no callbacks in uqbench"]),
    "code in the logging": (["experiment=logging"], ["hydra.job_logging.handlers.mine.(): 'os.system' is not trusted"]),
    "compiler from a config": (["experiment=compiling"], ["hydra.job.env_set.CXX: set it in the environment"]),
    "self-made trust": (["experiment=trusting"], ["hydra.job.env_set.UQBENCH_TRUSTED: set it in the environment"]),
    "nothing": ([""], ["'': not of the form key=value"]),
    "no key": (["=1"], ["=1: not of the form key=value"]),
    "another command": (["command=train"], ["command: is what stands after uqbench: uqbench train ..."]),
    "no folder": (["outputs=''"], ["outputs: expected a string (not empty), got ''"]),
    "too large for 64 bits": (["model.width=99999999999999999999"], ["model.width: expected an integer, got 9999"]),
    "two at once": (
        ["trainning.lr=1", "model=liner", "seed=x", "model.rate=fast"],
        [
            "model: no option 'liner'; did you mean 'linear'?",
            "trainning.lr: unknown key",
            "seed: expected an integer >= 0, got 'x'",
            "model.rate: expected a number, got 'fast'",
        ],
    ),
    "sweep, each option": (
        ["-m", "model=deep,liner", "seed=1,two"],
        [
            "model: no option 'liner'; did you mean 'linear'?",
            "seed: expected an integer >= 0, got 'two'",
        ],
    ),
    "sweep, key of one": (["-m", "model=linear,deep", "model.depth=2"], ["model.depth: unknown key with model=linear"]),
    "sweep, empty glob": (["-m", "model=glob(z*)"], ["model=glob(z*): matches none of"]),
    "sweep, interval": (["-m", "model.rate=interval(0,1)"], ["an interval cannot be swept"]),
    "bad input found late": (["action=refuse"], ["the data is bad"]),
}


@pytest.mark.parametrize(("argv", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_each_and_leaves_nothing(uqbench_main, argv, expected):
    code, out, err = uqbench_main("toy", *argv)
    lines = err.splitlines()
    assert code == 2
    assert out == ""
    assert len(lines) == len(expected), err
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith("uqbench: error: ") and start in line
    assert os.listdir() == []


REAL = {
    "train trainning.lr=1": ["trainning.lr: unknown key; did you mean 'training.lr'?"],
    "train uq=ensembel": ["uq: no option 'ensembel'; did you mean 'ensemble'?"],
    "train uq._target_=os.system": ["uq._target_: 'os.system' is not trusted"],
    "train backbone.layers=two uq=ensembel": ["uq: no option 'ensembel'", "backbone.layers: expected an integer"],
    "train -m seed=0,1 dataset=rmd17 dataset.sptil=1": ["dataset.sptil: unknown key with dataset=rmd17; did you"],
    "train dataset=rmd17 data_root=/nowhere": ["/nowhere"],
    "evaluate": ["run: no value given; add run=..."],
    "evaluate run=nowhere": ["nowhere: no such run"],
    "evaluate run=x backbone=painn": ["backbone: unknown key"],
    "data dataset=rmd71": ["dataset: no option 'rmd71'; did you mean 'rmd17'?"],
}


@pytest.mark.parametrize("line", REAL)
def test_real_commands_too(uqbench_main, line):
    pytest.importorskip("torch")
    code, _, err = uqbench_main(*line.split())
    assert code == 2 and err.count("\n") == len(REAL[line]), err
    assert all(expected in text for expected, text in zip(REAL[line], err.splitlines(), strict=True))
    assert os.listdir() == []


def test_unknown_command(uqbench_main):
    code, _, err = uqbench_main("tyo")
    assert code == 2
    assert err == "uqbench: error: no command 'tyo'; did you mean 'toy'? " + err[err.index("(commands") :]
    assert err.count("\n") == 1


def test_missing_config_dir(uqbench_main):
    code, _, err = uqbench_main("toy", "--config-dir", "nowhere")
    assert (code, err) == (2, "uqbench: error: --config-dir nowhere: no such folder\n")


def test_outputs_that_cannot_be_a_folder(uqbench_main):
    Path("file").write_text("")
    code, _, err = uqbench_main("toy", "outputs=file/below")
    assert code == 2 and err.count("\n") == 1 and "cannot write to file/below" in err


class Malicious:
    def __reduce__(self):
        return os.system, ("touch EVIL",)


def test_malicious_checkpoint_is_refused(uqbench_main):
    """A run is interrupted, its checkpoint replaced by a pickle that runs a program, the command repeated."""
    torch = pytest.importorskip("torch")
    assert uqbench_main("toy", "action=late")[0] == 2  # leaves result.txt, so the run stays
    [folder] = Path("outputs").glob("toy/d/b/u/*")
    for save in (lambda path: torch.save(Malicious(), path), lambda path: path.write_bytes(pickle.dumps(Malicious()))):
        save(folder / "last.pt")
        code, _, err = uqbench_main("toy", "action=late")
        assert code == 2 and err.count("\n") == 1 and "last.pt" in err
        assert not Path("EVIL").exists()


def test_damaged_run_json(uqbench_main):
    assert uqbench_main("toy")[0] == 0
    [info] = Path("outputs").glob("**/run.json")
    info.write_text(info.read_text()[:100])
    code, _, err = uqbench_main("toy")
    advice = f"restore it, or delete {info.parent} and run the command again"
    assert (code, err) == (2, f"uqbench: error: {info}: damaged; {advice}\n")


def test_finished_run_that_lost_a_file(uqbench_main):
    assert uqbench_main("toy")[0] == 0
    [result] = Path("outputs").glob("**/result.txt")
    result.unlink()
    code, _, err = uqbench_main("toy")
    assert code == 2 and err.count("\n") == 1 and f"{result}: missing" in err


def test_edited_config(uqbench_main):
    assert uqbench_main("toy")[0] == 0
    [config] = Path("outputs").glob("**/config.yaml")
    config.write_text(config.read_text().replace("width: 4", "width: 5"))
    code, _, err = uqbench_main("toy")
    assert code == 2 and err.count("\n") == 1 and "differs from the config of this command" in err
