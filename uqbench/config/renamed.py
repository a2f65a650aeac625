"""Names that classes had in earlier versions, as they stand in the configs of stored runs."""

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

_FIRST = {now: before for before, now in RENAMED.items()}


def present_name(target: str) -> str:
    """Return what the class of a `_target_` is called today."""
    return RENAMED.get(target, target)


def first_name(target: str) -> str:
    """Return what the class of a `_target_` was called first: the name of a run must outlive that of a class."""
    return _FIRST.get(target, target)
