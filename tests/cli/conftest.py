"""A throwaway command, its config and its models, reached the way a user's own extensions are."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import uqbench.cli.commands
import uqbench.config
from uqbench.cli import main

REPOSITORY = Path(uqbench.__file__).parents[1]

FILES = {
    "commands/toy.py": '''
        """Do as told, for tests."""
        import os, signal, time
        from typing import Literal

        from uqbench import config, errors
        from uqbench.runs.run_dir import RunDir

        class Skeleton(config.Skeleton):
            action: Literal["pass", "refuse", "fail", "crash", "late", "wait", "stop", "vanish", "threads", "yield"]

        def run(cfg):
            if cfg.action == "crash":
                raise RuntimeError("out of nowhere")
            with RunDir.open(root=cfg.outputs, command="toy", dataset="d", backbone="b", uq="u", seed=cfg.seed,
                             config=cfg) as run:
                if run.done:
                    print("already done")
                    return
                model = config.build(cfg.model)
                if cfg.action == "refuse":
                    raise errors.DataError("the data is bad")
                run.write_text("result.txt", str(model.rate))
                if cfg.action == "late":
                    run.load_checkpoint("last.pt")
                if cfg.action == "fail":
                    raise errors.TrainingError("diverged")
                if cfg.action == "wait":
                    print("waiting", flush=True)
                    time.sleep(60)
                if cfg.action == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(60)
                if cfg.action == "threads":
                    run.write_text("threads.txt", os.environ.get("OMP_NUM_THREADS", ""))
                if cfg.action == "yield" and not run.resumed:
                    os.kill(os.getpid(), signal.SIGUSR1)
                    time.sleep(60)
                if cfg.action == "vanish":
                    os._exit(9)
                if cfg.seed == 13:
                    raise RuntimeError("unlucky\\nseed")
                run.finish()
                print("finished")
    ''',
    "conf/toy.yaml": """
        defaults:
          - base
          - model: linear
          - experiment: null
          - _self_
        command: toy
        action: pass
    """,
    "conf/model/linear.yaml": "{_target_: toy_models.Linear, width: 4, rate: 0.1, kind: flat}",
    "conf/model/deep.yaml": "{_target_: toy_models.Deep, width: 4, rate: 0.1, depth: 3, sizes: [1, 2]}",
    "conf/model/evil.yaml": "{_target_: os.system, command: touch EVIL}",
    "conf/model/alias.yaml": "{_target_: toy_models.os.system, command: touch EVIL}",
    "conf/model/needs.yaml": "{_target_: toy_models.Linear, width: '???', rate: 0.1, kind: flat}",
    "conf/experiment/trusting.yaml": """
        # @package _global_
        hydra: {job: {env_set: {UQBENCH_TRUSTED: os}}}
    """,
    "conf/experiment/compiling.yaml": """
        # @package _global_
        hydra: {job: {env_set: {CXX: ./EVIL, OMP_NUM_THREADS: 1}}}
    """,
    "conf/experiment/sweeping.yaml": """
        # @package _global_
        hydra: {sweeper: {params: {seed: {_target_: os.system, command: touch EVIL}}}}
    """,
    "conf/experiment/calling.yaml": """
        # @package _global_
        hydra: {callbacks: {mine: {_target_: os.system, command: touch EVIL}}}
    """,
    "conf/experiment/logging.yaml": """
        # @package _global_
        hydra: {job_logging: {root: {handlers: [mine]}, handlers: {mine: {(): os.system, command: touch EVIL}}}}
    """,
    "conf/experiment/broken.yaml": "a: [",
    "conf/experiment/fast.yaml": """
        # @package _global_
        defaults: [{override /model: deep}]
        model: {depth: 9}
    """,
    "conf/experiment/sweep.yaml": """
        # @package _global_
        hydra: {sweeper: {params: {seed: "5,13"}}}
    """,
    "conf/dataset/quickstart.yaml": "{_target_: toy_models.Linear}",
    "conf/experiment/adding.yaml": """
        # @package _global_
        modle: {width: 5}
        model: {dpth: 3}
    """,
    "toy_models.py": """
        import os
        from typing import Literal

        class Model:
            pass

        class Linear(Model):
            def __init__(self, *, width: int, rate: float, kind: Literal["flat", "round"]):
                self.width, self.rate, self.kind = width, rate, kind

        class Deep(Model):
            def __init__(self, *, width: int, rate: float, depth: int, sizes: list[int]):
                self.width, self.rate, self.depth, self.sizes = width, rate, depth, sizes
    """,
    # Seen by every Python process that a test starts, and by those that a launcher starts for it.
    "sitecustomize.py": """
        import pathlib, uqbench.cli.commands, uqbench.config
        uqbench.cli.commands.__path__.append(str(pathlib.Path(__file__).with_name("commands")))
        uqbench.config.SLOTS["model"] = "toy_models.Model"
    """,
    "hydra_plugins/process_launcher.py": '''
        """A Hydra launcher that runs every job in a process of its own."""
        import multiprocessing
        from dataclasses import dataclass

        from hydra.core.config_store import ConfigStore
        from hydra.core.utils import run_job, setup_globals
        from hydra.plugins.launcher import Launcher

        @dataclass
        class ProcessConf:
            _target_: str = "hydra_plugins.process_launcher.ProcessLauncher"

        ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessConf)

        class ProcessLauncher(Launcher):
            def setup(self, *, hydra_context, task_function, config):
                self.context, self.task, self.config = hydra_context, task_function, config

            def launch(self, job_overrides, initial_job_idx):
                setup_globals()
                for number, overrides in enumerate(job_overrides, start=initial_job_idx):
                    job = self.context.config_loader.load_sweep_config(self.config, list(overrides))
                    job.hydra.job.id, job.hydra.job.num = str(number), number
                    keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
                    arguments = {"hydra_context": self.context, "task_function": self.task, "config": job} | keys
                    child = multiprocessing.get_context("fork").Process(target=run_job, kwargs=arguments)
                    child.start()
                    child.join()
                return []
    ''',
}


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the throwaway command and work in a folder beside it."""
    root = tmp_path / "toys"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("UQBENCH_TRUSTED", "toy_models.*")
    for name in ("UQBENCH_DATA", "UQBENCH_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(uqbench.cli.commands, "__path__", [*uqbench.cli.commands.__path__, str(root / "commands")])
    monkeypatch.setitem(uqbench.config.SLOTS, "model", "toy_models.Model")
    monkeypatch.syspath_prepend(str(root))
    for module in ("uqbench.cli.commands.toy", "toy_models"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return root


@pytest.fixture
def uqbench_main(toys: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process: (exit code, standard output, standard error)."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*argv[:1], "--config-dir", str(toys / "conf"), *argv[1:]])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def importing() -> Callable[..., tuple[int, str, str, set[str]]]:
    """Run the program in a new process: (exit code, standard output, standard error, packages imported by its end)."""
    script = "import sys; from uqbench.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"

    def run(*argv: str) -> tuple[int, str, str, set[str]]:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, env=environment)
        *lines, modules = done.stdout.splitlines()
        packages = {name.partition(".")[0] for name in modules.split()}
        return done.returncode, "\n".join(lines), done.stderr, packages

    return run


@pytest.fixture
def start(toys: Path) -> Callable[..., subprocess.Popen]:
    """Start the program in a process of its own."""

    def run(command: str, *argv: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(toys)])}
        line = [sys.executable, "-m", "uqbench", command, "--config-dir", str(toys / "conf"), *argv]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment)

    return run
