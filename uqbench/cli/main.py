"""The `uqbench` program: finds the command, checks its overrides, runs it through Hydra, turns errors into exit codes.

Every module in uqbench/cli/commands is a command: its docstring's first line is the help line, `conf/<command>.yaml`
its config, `run(cfg)` its entry. Optional are
- a class `Skeleton`, the types of its top-level keys;
- `identity(cfg)`, what its run is named by where that is more than its config;
- `show_done(run, cfg)`, which prints what `run` prints of a finished run, or returns False where there is more to do.
"""

import argparse
import ast
import importlib
import io
import os
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# The help answers before omegaconf and Hydra are imported: whatever needs these is imported where it is used.
import uqbench.cli.commands
from uqbench.errors import ConfigError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

    from uqbench.cli.overrides import Request

USAGE = """\
uqbench: benchmark uncertainty quantification for machine-learned interatomic potentials

usage: uqbench COMMAND [group=option ...] [key=value ...]

commands:
{commands}

uqbench COMMAND --help     groups, keys and flags of a command
uqbench COMMAND -m ...     run every combination of comma-separated values
uqbench --version          print the version
uqbench --completion bash  print a completion script; in ~/.bashrc: eval "$(uqbench --completion bash)"
                           (zsh: autoload -U +X bashcompinit && bashcompinit first)

exit codes: 0 done, 1 failed, 2 bad input or run in use, 130 interrupted
"""


COMMAND_HELP = """\
{line}

usage: uqbench {command} [FLAGS] [group=option ...] [key=value ...]

groups (* = in use):
{groups}

keys (all of them: uqbench {command} --cfg job):
{keys}

flags:
  -m, --multirun        run every combination of comma-separated values; hydra/launcher= says where:
                        local (one by one), joblib (on all cores at once), slurm
  --cfg job             print the config instead of running (also: hydra, all); --resolve fills in interpolations
  --package KEY         with --cfg, print only the part below KEY
  --config-dir DIR      take further config files from DIR
  --info defaults-tree  print where the config comes from (also: all, config, defaults, plugins, searchpath)
"""


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    _open_streams()
    # A terminal that cannot show a sign shows another one; the standard error does so by itself.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower().replace("-", "") != "utf8":
        sys.stdout.reconfigure(errors="replace")
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        from uqbench.cli.jobs import INTERRUPTED

        print("uqbench: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from uqbench.cli.jobs import report

        return report(error)


def commands() -> dict[str, str]:
    """Name and help line of every command, read from the sources without importing them."""
    lines = {}
    for module in pkgutil.iter_modules(uqbench.cli.commands.__path__):
        source = Path(module.module_finder.path, f"{module.name}.py").read_text(encoding="utf-8")
        lines[module.name] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return lines


def _dispatch(argv: list[str]) -> int:
    known = commands()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<10} {line}" for name, line in known.items())), end="")
        return 0
    if argv[0] == "--version":
        from uqbench.runs import provenance

        print(f"uqbench {provenance.version('uqbench') or 'not installed'}")
        return 0
    if argv[0] in ("--completion", "--complete"):
        from uqbench.cli import completion

        return completion.main(argv, known)
    if argv[0] not in known:
        from uqbench.config import did_you_mean

        raise ConfigError(f"no command '{argv[0]}'{did_you_mean(argv[0], known)} (commands: {', '.join(known)})")
    return _run_command(argv[0], known[argv[0]], argv[1:])


def _open_streams() -> None:
    """Open what the shell has closed: no other file may come to stand where messages go."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(descriptor)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, open(os.devnull, "w" if descriptor else "r", encoding="utf-8"))


def _check_environment() -> None:
    """Refuse a working directory that is gone, and ignore numbers of threads at which libraries fail when imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value and not (value.strip().isdecimal() and int(value) > 0):
            print(f"uqbench: warning: {name}={value} is no number of threads, and is ignored", file=sys.stderr)
            del os.environ[name]
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the working directory is gone ({error.strerror}); change to one that is there") from error


def _run_command(command: str, line: str, argv: list[str]) -> int:
    from uqbench.cli.hydra_session import open_hydra
    from uqbench.cli.overrides import Request

    _check_environment()
    # Figures go to files alone, and a backend that is not there would end the run.
    os.environ["MPLBACKEND"] = "agg"
    flags = _parse_flags(command, argv)
    with open_hydra(command, flags.config_dir) as hydra:
        request = Request(hydra.config_loader, command, flags.overrides, flags.multirun)
        if flags.help or flags.cfg or flags.info:
            if flags.overrides:
                request.jobs(skeleton=None)
            _show(hydra, request, flags, line)
            return 0
        from uqbench.cli import jobs
        from uqbench.config import Skeleton

        module = importlib.import_module(f"uqbench.cli.commands.{command}")
        options = {"identity": module.identity} if hasattr(module, "identity") else {}
        planned = request.jobs(getattr(module, "Skeleton", Skeleton), **options)
        if flags.multirun:
            return jobs.run_sweep(hydra, command, request.arguments, planned)
        [job] = planned
        # Hydra takes longer to compose a config once more than everything that is left to do.
        if hasattr(module, "show_done") and request.names(job.done) and module.show_done(job.done, job.config):
            return 0
        return hydra.run(command, jobs.run_job, request.arguments).return_value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parse_flags(command: str, argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"uqbench {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-i", "--info", choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"])
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(argv)


def _show(hydra: "Hydra", request: "Request", flags: argparse.Namespace, line: str) -> None:
    if flags.cfg:
        hydra.show_cfg(request.command, request.arguments, flags.cfg, flags.package, flags.resolve)
    elif flags.info:
        hydra.show_info(flags.info, config_name=request.command, overrides=request.arguments)
    else:
        groups = []
        width = max(12, *(len(group) + 2 for group in request.groups))
        for group, chosen in request.choices().items():
            options = [f"{option}*" if option == chosen else option for option in request.options(group)]
            groups.append(f"  {group:<{width}}{', '.join(options) or '(no options)'}")
        keys = [f"  {key}={value}" for key, value in request.plain_keys().items()]
        text = {"command": request.command, "line": line, "groups": "\n".join(groups), "keys": "\n".join(keys)}
        print(COMMAND_HELP.format(**text), end="")
