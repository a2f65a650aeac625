"""What a person types after a command, checked against the config tree before Hydra runs anything."""

import contextlib
import copy
import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from uqbench.config import did_you_mean, flatten, nearest, require_bounded, validate
from uqbench.errors import ConfigError, UserError
from uqbench.runs import run_dir

LAUNCHER = "hydra/launcher"
IN_PROCESS = ("local", "basic")
HYDRA_PLUGINS = "hydra_plugins."
# What a config may ask of logging, and of the environment of its jobs: nothing that runs code or writes files.
HANDLERS = ("logging.StreamHandler", "logging.NullHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
HARMLESS_VARIABLES = re.compile(r"(OMP|MKL|KMP|OPENBLAS)_[A-Z_]+|CUDA_VISIBLE_DEVICES")


@dataclasses.dataclass(frozen=True)
class Job:
    """One point of a sweep, or the only one: its overrides as Hydra will spell them, its config, its finished run."""

    overrides: tuple[str, ...]
    config: DictConfig
    done: run_dir.Run | None = None


class Request:
    """The overrides of one command line; `errors` collects a line for everything that is wrong with them.

    Raises ConfigError at once only when not even the command's own config can be composed.
    """

    def __init__(self, loader: ConfigLoader, command: str, overrides: list[str], multirun: bool) -> None:
        self.loader, self.command, self.multirun = loader, command, multirun
        self.errors: list[str] = []
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        parsed = [override for text in overrides if (override := self._parse(text))]
        self.hydra = tuple(override.input_line for override in parsed if self._is_for_hydra(override))
        self.base = self._compose(())
        self.groups = _groups(self.base)
        self._add_nested_groups(parsed)
        tasks = [self._check_form(override) for override in parsed if not override.is_hydra_override()]
        # Of several settings of one key the last counts, as for values in Hydra; for groups Hydra would object.
        self.tasks = list({override.get_key_element(): override for override in tasks if override}.values())

    def jobs(
        self, skeleton: type | None, identity: Callable[[DictConfig], DictConfig] = lambda config: config
    ) -> list[Job]:
        """All jobs of the sweep, each composed and, given a skeleton, validated.

        identity: what the run of a config is named by; a finished one needs no look at what its config builds.

        Raises one ConfigError with a line per distinct error of the overrides and of every job's config.
        """
        jobs = [Job(job, self._apply(job)) for job in self._expand()]
        if skeleton:
            jobs = [dataclasses.replace(job, done=self._validate(job.config, skeleton, identity)) for job in jobs]
        if self.errors:
            raise ConfigError("\n".join(dict.fromkeys(self.errors)))
        return jobs

    def _validate(
        self, config: DictConfig, skeleton: type, identity: Callable[[DictConfig], DictConfig]
    ) -> run_dir.Run | None:
        """Note what is wrong with a config, and return its finished run."""
        done = None

        def built(config: DictConfig) -> DictConfig | None:
            nonlocal done
            with contextlib.suppress(UserError):  # what it names is not there: the run itself will tell
                done = run_dir.find_done(identity(config))
            return done and done.config

        try:
            validate(config, skeleton, built)
        except ConfigError as error:
            self.errors += str(error).splitlines()
        return done

    @property
    def arguments(self) -> list[str]:
        """The overrides as Hydra takes them."""
        return [*self.hydra, *(override.input_line for override in self.tasks)]

    def options(self, group: str) -> list[str]:
        """Names that may follow `group=`."""
        return self.loader.get_group_options(group.split("@")[0])

    def choices(self) -> dict[str, str | None]:
        """Every group of the command and the option that is in use."""
        chosen = {task.get_key_element(): task.value() for task in self.tasks if not task.is_sweep_override()}
        return {group: chosen.get(group, default) for group, default in self.groups.items()}

    def names(self, run: run_dir.Run | None) -> bool:
        """Whether a run was made with the options that are in use, so that it is not found under other labels."""
        made = run.info.get("choices", {}) if run else {}
        return run is not None and all(made.get(group) == option for group, option in self.choices().items() if option)

    def preview(self) -> DictConfig:
        """The config of the first job, whatever is wrong with the request."""
        return self._apply(self._expand()[0])

    def plain_keys(self) -> dict[str, Any]:
        """Top-level keys that belong to no group, with their values as written."""
        plain = OmegaConf.to_container(self.base, resolve=False)
        return {key: value for key, value in plain.items() if key not in self.groups and key != "hydra"}

    # ------------------------------------------------------------------------------------------------ steps

    def _add_nested_groups(self, parsed: list[Override]) -> None:
        """Add the groups that chosen options bring with them, such as the oracle of a kind of evaluation."""
        chosen: dict[str, list[str]] = {}
        while True:
            for override in parsed:
                key = override.get_key_element()
                if key in self.groups and not override.is_delete():
                    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
                    chosen[key] = [str(value) for value in values if str(value) in self.options(key)]
            known = len(self.groups)
            # A point of the sweep for each combination: a nested group may need several choices at once.
            for point in itertools.product(*([f"{key}={value}" for value in chosen[key]] for key in chosen)):
                nested = {}
                with contextlib.suppress(ConfigError):  # a choice that does not fit this point is reported by _apply
                    nested = _groups(self._compose(point))
                self.groups |= {group: option for group, option in nested.items() if group not in self.groups}
            if len(self.groups) == known:
                return

    def _parse(self, text: str) -> Override | None:
        try:
            [override] = OverridesParser.create(self.loader).parse_overrides([text])
        except HydraException as error:
            reason = f" ({str(error).splitlines()[0]})" if text else ""
            self.errors.append(f"{text or repr(text)}: not of the form key=value{reason}")
            return None
        if not override.key_or_group:
            self.errors.append(f"{text}: not of the form key=value")
            return None
        if override.is_sweep_override() and not self.multirun:
            listed = f"; a list is written [{override.get_value_string()}]" if override.is_choice_sweep() else ""
            self.errors.append(f"{text}: several values need -m{listed}")
            return None
        if override.is_sweep_override() and not override.is_discrete_sweep():
            self.errors.append(f"{text}: an interval cannot be swept; list its values or use range(...)")
            return None
        return override

    def _is_for_hydra(self, override: Override) -> bool:
        """Whether Hydra itself shall see an override; what is wrong with it is noted."""
        if not override.is_hydra_override():
            return False
        if override.is_sweep_override():
            self.errors.append(f"{override.input_line}: holds for the whole sweep; give one value")
            return False
        if override.key_or_group == LAUNCHER and not self.multirun and override.value() not in IN_PROCESS:
            self.errors.append(f"{override.input_line}: needs -m, also for a single job")
        return True

    def _compose(self, choices: tuple[str, ...]) -> DictConfig:
        """Config of the command with the given group choices and no values set; the caller leaves it as it is."""
        if choices not in self._composed:
            try:
                config = self.loader.load_configuration(self.command, [*self.hydra, *choices], RunMode.RUN)
            except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                # Hydra's own message says what is wrong; its cause, where there is one, says why.
                what = " ".join(re.split("Config search path|To append to your config", str(error))[0].split())
                why = str(error.__cause__ or "").partition("\n")[0]
                raise ConfigError(" ".join(filter(None, [what, why]))) from error
            require_bounded(config)
            self._check_hydra_node(config.hydra)
            self._composed[choices] = config
        return self._composed[choices]

    def _check_hydra_node(self, node: DictConfig) -> None:
        """Hydra builds its plugins and logging itself: no foreign code must slip in there, nor a wider trust."""
        plugins = {kind: Plugins.instance().discover(kind) for kind in (Launcher, Sweeper)}
        for name, kind in (("launcher", Launcher), ("sweeper", Sweeper)):
            target = str(node[name].get("_target_"))
            path = f"hydra.{name}._target_"
            if target not in {f"{plugin.__module__}.{plugin.__qualname__}" for plugin in plugins[kind]}:
                if not target.startswith(HYDRA_PLUGINS) or name == "sweeper":
                    self.errors.append(f"{path}: '{target}' is not trusted; expected a {name} of Hydra's plugins")
                elif self.multirun:
                    choice = node.runtime.choices[LAUNCHER]
                    self.errors.append(
                        f"{LAUNCHER}={choice}: its plugin is not installed; pip install 'uqbench[cluster]'"
                    )
            nested = _targets([value for key, value in _resolved(node[name]).items() if key != "_target_"])
            self.errors += [f"hydra.{name}: '{target}' cannot be built in there" for target in nested]
        for name in node.callbacks or ():
            self.errors.append(f"hydra.callbacks.{name}: there are no callbacks in uqbench")
        for name in ("job_logging", "hydra_logging"):
            self.errors += _logging_errors(_resolved(node[name]), f"hydra.{name}")
        for name in node.job.env_set:
            if not HARMLESS_VARIABLES.fullmatch(str(name)):
                self.errors.append(f"hydra.job.env_set.{name}: set it in the environment, not in a config")

    def _check_form(self, override: Override) -> Override | None:
        """The override as Hydra shall see it; for an error that has been noted its likely meaning, or None."""
        key = override.get_key_element().lstrip("+~")
        if override.is_delete():
            self.errors.append(f"{override.input_line}: keys cannot be removed; set them to null or to a value")
            return None
        if key in self.groups:
            return self._check_choice(override, key)
        if key == "command":
            self.errors.append(f"command: is what stands after uqbench: uqbench {override.get_value_string()} ...")
            return None
        aliases = {alias: group for group in self.groups for alias in group.split("@") if "@" in group}
        if key in aliases:
            self.errors.append(f"{key}: is chosen as a whole by {aliases[key]}={override.get_value_string()}")
            return None
        # `+key=` asks Hydra to add a key; here only known keys mean something, and those need no plus.
        return self._parse(override.input_line.lstrip("+"))

    def _check_choice(self, override: Override, group: str) -> Override | None:
        options = self.options(group) + (["null"] if self.groups[group] is None else [])
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        if not values:
            self.errors.append(f"{override.input_line}: matches none of {', '.join(options)}")
        kept = []
        for value in ("null" if value is None else str(value) for value in values):
            near = value if value in options else nearest(value, options)
            if near != value:
                hint = f"; did you mean '{near}'?" if near else ""
                self.errors.append(f"{group}: no option '{value}'{hint} (options: {', '.join(options)})")
            kept += [near] if near else []
        return self._parse(f"{group}={','.join(kept)}") if kept else None

    def _expand(self) -> list[tuple[str, ...]]:
        """The jobs of the sweep as Hydra's own sweeper will list them, an experiment's `hydra.sweeper.params` first."""
        fixed = (task for task in self.tasks if task.get_key_element() in self.groups and not task.is_sweep_override())
        sweeper = self._compose(tuple(task.input_line for task in fixed)).hydra.sweeper
        params = (sweeper.get("params") if self.multirun else None) or {}
        preset = filter(None, [self._parse(f"{key}={value}") for key, value in params.items()])
        [jobs] = BasicSweeper.split_arguments([*preset, *self.tasks], None)
        return [tuple(job) for job in jobs]

    def _apply(self, job: tuple[str, ...]) -> DictConfig:
        """The config of one job, without Hydra's own node."""
        overrides = OverridesParser.create(self.loader).parse_overrides(list(job))
        choices = tuple(o.input_line for o in overrides if o.get_key_element() in self.groups)
        config = copy.deepcopy(self._compose(choices))
        with open_dict(config):
            del config["hydra"]
        known = set(flatten(config))
        for key in sorted(config.keys() - self.base.keys() - self.groups.keys()):  # brought in by an experiment
            self.errors.append(f"{key}: unknown key in {' '.join(choices)}{did_you_mean(key, self.base)}")
        for override in overrides:
            key = override.get_key_element()
            name = re.sub(r"\[(\w+)\]", r".\1", key)
            if key in self.groups:
                continue
            if name not in known:
                setting = f" with {' '.join(choices)}" if choices and self.multirun else ""
                self.errors.append(f"{key}: unknown key{setting}{did_you_mean(name, [*known, *self.groups])}")
                continue
            try:
                OmegaConf.update(config, name, override.value(), merge=True)
            except (OmegaConfBaseException, ValueError, TypeError) as error:
                self.errors.append(f"{key}: {str(error).splitlines()[0]}")
        require_bounded(config)
        return config


def _groups(config: DictConfig) -> dict[str, str | None]:
    """The groups of a config and the options in use, in the order of the defaults list."""
    choices = reversed(config.hydra.runtime.choices.items())
    return {group: option for group, option in choices if "hydra/" not in group}


def _resolved(node: Any) -> Any:
    """Plain values of a node of Hydra's, which may hold nodes of the config by interpolation."""
    try:
        return OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node or {}
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{node._get_full_key(None)}: {str(error).splitlines()[0]}") from error


def _logging_errors(value: Any, path: str) -> list[str]:
    """What would let `logging.config.dictConfig` call something, or write somewhere."""
    if isinstance(value, list):
        return [error for i, item in enumerate(value) for error in _logging_errors(item, f"{path}[{i}]")]
    if isinstance(value, dict):
        errors = []
        for key, item in value.items():
            wrong = key in ("()", ".") or (key == "class" and item not in HANDLERS)
            inner = [] if wrong else _logging_errors(item, f"{path}.{key}")
            errors += [f"{path}.{key}: '{item}' is not trusted; allowed: {', '.join(HANDLERS)}"] if wrong else inner
        return errors
    if isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in STREAMS:
        return [f"{path}: '{value}' is not trusted; allowed: {', '.join(STREAMS)}"]
    return []


def _targets(value: Any) -> list[Any]:
    if isinstance(value, dict):
        here = [value["_target_"]] if "_target_" in value else []
        return here + [target for item in value.values() for target in _targets(item)]
    return [target for item in value for target in _targets(item)] if isinstance(value, list) else []
