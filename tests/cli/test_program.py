"""The program as a person meets it: help, configs, completion, exit codes, sweeps."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import HEAVY

from uqbench.cli.completion import SCRIPT

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("argv", [[], ["--help"], ["data", "--help"], ["train", "--help"], ["--version"]])
def test_help_is_quick_and_light(argv, importing):
    heavy = HEAVY | {"numpy", "ase"} | (set() if len(argv) > 1 else {"omegaconf", "hydra"})
    seconds = []
    for _ in range(3):  # processor time, and the best of three: this tests the program, not the load of the machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, out, err, modules = importing(*argv)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert code == 0 and out and not err
        assert not heavy & modules
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1


def test_help_lists_every_command_and_group(uqbench_main):
    code, out, _ = uqbench_main("toy", "--help", "model=deep")
    assert code == 0
    assert "Do as told, for tests." in out and "alias, deep*, evil" in out and "seed=0" in out
    from uqbench.cli import main

    assert main([]) == 0


def test_cfg_prints_the_config_and_runs_nothing(uqbench_main):
    code, out, err = uqbench_main("toy", "--cfg", "job", "model=deep", "seed=3")
    shown = yaml.safe_load(out)
    assert (code, err) == (0, "")
    assert shown["model"]["depth"] == 3 and shown["seed"] == 3 and "hydra" not in shown
    assert os.listdir() == []
    assert uqbench_main("toy", "--cfg", "job", "sed=3")[0] == 2


def test_config_dir_adds_and_never_replaces(uqbench_main):
    _, shipped, _ = uqbench_main("data", "--cfg", "job", "--package", "dataset")
    assert "Quickstart" in shipped and "toy_models" not in shipped


def test_experiment_overrides_and_is_overridden(uqbench_main):
    shown = yaml.safe_load(uqbench_main("toy", "--cfg", "job", "experiment=fast", "model.width=8")[1])
    assert shown["model"] == {"_target_": "toy_models.Deep", "width": 8, "rate": 0.1, "depth": 9, "sizes": [1, 2]}
    assert uqbench_main("toy", "experiment=fast")[:2] == (0, "finished\n")


def test_done_run_is_not_repeated(uqbench_main):
    assert uqbench_main("toy")[1] == "finished\n"
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("**/[!.]*")}
    assert uqbench_main("toy", "data_root=elsewhere")[:2] == (0, "already done\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert uqbench_main("toy", "model.rate=0.2")[1] == "finished\n"
    assert sorted(os.listdir()) == ["outputs"]


def test_failures_and_their_logs(uqbench_main, monkeypatch):
    code, _, err = uqbench_main("toy", "action=fail")
    assert (code, err) == (1, "uqbench: error: diverged\n")
    code, _, err = uqbench_main("toy", "seed=13")
    log = err.rpartition("traceback in ")[2].rstrip(")\n")
    assert code == 1 and err.startswith("uqbench: error: RuntimeError: unlucky seed (") and err.count("\n") == 1
    assert "Traceback" in Path(log).read_text()
    assert json.loads(Path(log).with_name("run.json").read_text())["status"] == "failed"
    assert uqbench_main("toy", "action=crash")[2].count("\n") == 1
    monkeypatch.setenv("UQBENCH_DEBUG", "1")
    assert "Traceback" in uqbench_main("toy", "action=crash")[2]


def wait_for(process: subprocess.Popen, text: str) -> None:
    assert process.stdout.readline() == f"{text}\n", process.communicate()[1]


def test_second_process_on_one_run_exits_2_and_a_killed_one_frees_it(start, uqbench_main):
    first = start("toy", "action=wait")
    wait_for(first, "waiting")
    code, _, err = uqbench_main("toy", "action=wait")
    assert code == 2 and err.count("\n") == 1 and f"in use by pid {first.pid} on host" in err
    [info] = Path("outputs").glob("**/run.json")
    assert json.loads(info.read_text())["status"] == "running"
    first.kill()
    first.communicate()
    again = start("toy", "action=wait")
    wait_for(again, "waiting")
    again.send_signal(signal.SIGINT)
    _, err = again.communicate(timeout=20)
    assert again.returncode == 130 and "Traceback" not in err
    info = json.loads(info.read_text())
    assert info["status"] == "interrupted" and len(info["launches"]) == 2


def test_sigterm_is_a_clean_interruption(start):
    process = start("toy", "action=stop")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.count("\n") == 1
    [info] = Path("outputs").glob("**/run.json")
    assert json.loads(info.read_text())["status"] == "interrupted"


def test_sweep_goes_on_after_a_failure_and_repeats_only_what_is_missing(uqbench_main):
    argv = ["toy", "-m", "model=linear,deep", "seed=13,14"]
    code, out, err = uqbench_main(*argv)
    assert code == 1 and out == "finished\n" * 2
    summary = err[err.index("2 of 4 jobs failed") :].splitlines()
    assert [line.split(": ")[2].strip() for line in summary[1:]] == ["model=linear seed=13", "model=deep seed=13"]
    assert all("unlucky seed (traceback in outputs/" in line for line in summary[1:])
    code, out, err = uqbench_main("toy", "-m", "model=linear,deep", "seed=14")
    assert code == 0 and out == "already done\n" * 2 and "error" not in err
    assert os.listdir() == ["outputs"] and os.listdir("outputs") == ["toy"]


def test_sweep_that_an_experiment_defines(uqbench_main):
    code, out, err = uqbench_main("toy", "-m", "experiment=sweep")
    assert (code, out) == (1, "finished\n") and "1 of 2 jobs failed" in err


def test_sweep_in_other_processes_reports_lost_jobs(start):
    argv = ["-m", "hydra/launcher=process", "action=pass,vanish,fail"]
    process = start("toy", *argv)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "finished\n"
    assert "2 of 3 jobs failed" in err
    assert "action=vanish: its process ended without a word" in err and "action=fail: diverged" in err


def test_completion_in_bash(toys):
    program = toys / "bin" / "uqbench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m uqbench "$@"\n')
    program.chmod(0o755)
    lines = {
        "uqbench da": ["data "],
        "uqbench data dataset=quick": ["quickstart"],  # readline keeps what stands before the equals sign
        "uqbench data dataset=rmd17 dataset.mol": ["dataset.molecule="],
        "uqbench data -m dataset=rmd17,quick": ["rmd17,quickstart"],
        "uqbench data --mul": ["--multirun "],
        "uqbench data data_root=": [],
    }
    for line, expected in lines.items():
        ask = f"COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _uqbench; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", SCRIPT + ask], capture_output=True, text=True, env=environment)
        assert [text for text in done.stdout.split("\n") if text] == expected, line
