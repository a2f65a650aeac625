"""What the configs of stored runs say in other words than those of today: names of classes, keys that came later."""

from typing import Any

RENAMED = {
    "uqbench.active.attack.AdversarialAttack": "uqbench.active.acquisition.adversarial.AdversarialAttack",
    "uqbench.active.dynamics.MolecularDynamics": "uqbench.active.acquisition.md.MolecularDynamics",
    "uqbench.active.random.RandomDisplacement": "uqbench.active.acquisition.random.RandomDisplacement",
    "uqbench.backbones.nequip.NequIP": "uqbench.models.nequip.NequIP",
    "uqbench.backbones.painn.PaiNN": "uqbench.models.painn.PaiNN",
    "uqbench.backbones.schnet.SchNet": "uqbench.models.schnet.SchNet",
    "uqbench.datasets.ammonia.Ammonia": "uqbench.data.sources.ammonia.Ammonia",
    "uqbench.datasets.file.AseFile": "uqbench.data.sources.file.AseFile",
    "uqbench.datasets.nff.NFF": "uqbench.data.sources.nff.NFF",
    "uqbench.datasets.npz.Npz": "uqbench.data.sources.npz.Npz",
    "uqbench.datasets.packed.Packed": "uqbench.data.sources.packed.Packed",
    "uqbench.datasets.quickstart.Quickstart": "uqbench.data.sources.quickstart.Quickstart",
    "uqbench.datasets.rmd17.RMD17": "uqbench.data.sources.rmd17.RMD17",
    "uqbench.datasets.silica.Silica": "uqbench.data.sources.silica.Silica",
    "uqbench.datasets.silica_glass.SilicaGlass": "uqbench.data.sources.silica_glass.SilicaGlass",
    "uqbench.datasets.zeolite.Zeolite": "uqbench.data.sources.zeolite.Zeolite",
    "uqbench.evaluation.Metrics": "uqbench.evaluations.metrics.Metrics",
    "uqbench.simulate.comparison.StructureComparison": "uqbench.evaluations.structure.StructureComparison",
    "uqbench.simulate.neb.NudgedElasticBand": "uqbench.evaluations.neb.NudgedElasticBand",
    "uqbench.simulate.stability.Stability": "uqbench.evaluations.md.Stability",
    "uqbench.training.Training": "uqbench.training.settings.Training",
}

# Keys that came later, by dotted name, with what was done before there were any: with that value they change no result,
# and no run's name.
ADDED = {"calibration": {"_target_": "uqbench.uq.calibration.Affine"}, "dataset.missing": "refuse"}
ADDED |= {"oracle.memory_gb": None, "oracle.retries": 0, "oracle.max_failed": 1.0}

_FIRST = {now: before for before, now in RENAMED.items()}


def present_name(target: str) -> str:
    """Return what the class of a `_target_` is called today."""
    return RENAMED.get(target, target)


def first_name(target: str) -> str:
    """Return what the class of a `_target_` was called first: the name of a run must outlive that of a class."""
    return _FIRST.get(target, target)


def is_as_before(name: str, value: Any) -> bool:
    """Return whether a key of a dotted name, which came later, says what was done before it was there."""
    return name in ADDED and value == ADDED[name]


def added_argument(slot: str, name: str) -> Any:
    """Return the value of an argument that a config of an earlier version lacks; KeyError where it never came later."""
    return ADDED[f"{slot}.{name}"]
