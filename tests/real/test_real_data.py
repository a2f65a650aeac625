"""The loaders on real files; set UQBENCH_DATA to the folder that holds rmd17/, ammonia/, zeolite/."""

import os
from pathlib import Path

import numpy as np
import pytest
from ase import units
from omegaconf import OmegaConf

from uqbench import config
from uqbench.data.sources.zeolite import distance_to
from uqbench.data.structures import check_splits, duplicates_across
from uqbench.errors import DataError
from uqbench.models.normalisation import Normalisation

ROOT = os.environ.get("UQBENCH_DATA")
pytestmark = pytest.mark.skipif(ROOT is None, reason="UQBENCH_DATA is not set: no real data here")
KCAL = units.kcal / units.mol


def dataset(option, needs, **settings):
    if not Path(ROOT, needs).exists():
        pytest.skip(f"{Path(ROOT, needs)} is not there")
    cfg = OmegaConf.create({"seed": 0, "data_root": ROOT})
    cfg.dataset = OmegaConf.merge(OmegaConf.load(config.conf_dir() / "dataset" / f"{option}.yaml"), settings)
    return config.build(cfg.dataset)


@pytest.mark.parametrize("molecule, n_atoms", [("ethanol", 9), ("malonaldehyde", 9), ("aspirin", 21)])
@pytest.mark.parametrize("split", [1, 5])
def test_rmd17_official_splits(molecule, n_atoms, split):
    source = dataset("rmd17", f"rmd17/npz_data/rmd17_{molecule}.npz", molecule=molecule, split=split)
    structures = source.load()
    splits = source.split(structures)
    assert {name: len(chosen) for name, chosen in splits.items()} == {"train": 800, "validation": 200, "test": 1000}
    check_splits(splits, len(structures))
    assert duplicates_across(structures, splits) == []
    assert set(structures.n_atoms) == {n_atoms}
    # An independent reading of the official files.
    rows = np.loadtxt(Path(ROOT, f"rmd17/splits/index_test_{split:02d}.csv"), dtype=int)
    with np.load(Path(ROOT, f"rmd17/npz_data/rmd17_{molecule}.npz")) as archive:
        energies, forces = archive["energies"][rows] * KCAL, archive["forces"][rows] * KCAL
    test = structures[splits["test"]]
    order = np.argsort(rows)
    np.testing.assert_allclose(test.energies, energies[order])
    np.testing.assert_allclose(test.forces.reshape(-1, n_atoms, 3), forces[order])


def test_ammonia_generations_and_duplicates():
    needs = "ammonia/ammonia.pth.tar"
    everything = dataset("nff", needs, path=needs, deduplicate=False)
    structures = everything.load()
    assert len(structures) == 138 and everything.subset == "ammonia"
    # The ranges that the data sheet states: kcal/mol, and kcal/mol/Å of the largest component.
    for rows, energy, force in ((slice(0, 78), 4.8, 104), (slice(78, 108), 42.4, 267), (slice(108, 138), 20.0, 149)):
        part = structures[rows]
        assert part.energies.max() / KCAL == pytest.approx(energy, abs=0.05)
        assert np.abs(part.forces).max() / KCAL == pytest.approx(force, abs=0.5)
    # About 120 of the 138 geometries are distinct; some would stand on both sides of a split.
    assert duplicates_across(structures, everything.split(structures))
    source = dataset("nff", needs, path=needs)
    distinct = source.load()
    assert 115 <= len(distinct) <= 125
    assert duplicates_across(distinct, source.split(distinct)) == []
    first = dataset("nff", needs, path=needs, rows=[0, 78], deduplicate=False).load()
    assert first.sha256() == structures[:78].sha256()


def test_ammonia_duplicates_have_equal_energies():
    needs = "ammonia/ammonia.pth.tar"
    structures = dataset("nff", needs, path=needs, deduplicate=False).load()
    first = structures.geometry_groups()
    assert np.abs(structures.energies - structures.energies[first]).max() < 1e-4


def test_ammonia_forces_are_minus_the_slope_of_the_energy():
    needs = "ammonia/ammonia.pth.tar"
    s = dataset("nff", needs, path=needs).load()
    x, f = s.positions.reshape(-1, 4, 3), s.forces.reshape(-1, 4, 3)
    slopes = []
    for i in range(len(s)):
        for j in range(i):
            step = x[i] - x[j]
            if np.abs(step).max() < 0.05:
                slopes.append((s.energies[i] - s.energies[j], -((f[i] + f[j]) / 2 * step).sum()))
    found, expected = np.array(slopes).T
    assert len(found) > 30 and np.corrcoef(found, expected)[0, 1] > 0.99


def test_periodic_nff():
    needs = "SrIrO3_bulk_55_nff_all_dataset.pth.tar"
    structures = dataset("nff", needs, path=needs).load()
    assert len(structures) == 55 and structures.pbc.all() and structures.elements == [8, 38, 77]
    assert structures.n_atoms.min() >= 38 and structures.n_atoms.max() <= 40
    volumes = np.abs(np.linalg.det(structures.cells)) / structures.n_atoms
    assert volumes.min() > 5 and volumes.max() < 30  # Å^3 per atom of an oxide


@pytest.mark.parametrize("framework", ["sod", "dft", "jbw", "nab", "oso"])
def test_zeolites(framework):
    needs = f"zeolite/{framework}.npz"
    source = dataset("npz", needs, path=needs)
    structures = source.load()
    assert source.subset == framework and structures.pbc.all() and structures.elements == [8, 14]
    silicon = (structures.numbers == 14).sum()
    assert (structures.numbers == 8).sum() == 2 * silicon
    assert np.abs(structures.forces).max() < 20 and duplicates_across(structures, source.split(structures)) == []


def test_half_a_real_file_is_refused(tmp_path):
    needs = Path(ROOT, "zeolite/sod.npz")
    source = dataset("npz", "zeolite/sod.npz", path=str(tmp_path / "half.npz"))
    (tmp_path / "half.npz").write_bytes(needs.read_bytes()[: needs.stat().st_size // 2])
    with pytest.raises(DataError, match="half.npz cannot be read as an npz file"):
        source.load()


def test_zeolites_with_one_held_out():
    source = dataset("zeolite", "zeolite/sod.npz", url=None)
    structures = source.load()
    splits = source.split(structures)
    check_splits(splits, len(structures))
    assert {name: len(frames) for name, frames in splits.items()} == {
        **{"train": 800, "validation": 200, "test": 200, "out_of_domain": 200}
    }
    assert set(structures.n_atoms[splits["out_of_domain"]]) == {27} and 27 not in structures.n_atoms[splits["train"]]
    # One energy per formula unit, fitted on four frameworks, is near that of the fifth: no offset per framework.
    fitted = Normalisation.fit(structures[splits["train"]])
    per_atom = np.dot(fitted.references, [2, 1]) / 3
    outside = structures[splits["out_of_domain"]]
    assert np.abs((outside.energies / outside.n_atoms).mean() - per_atom) < 0.1
    # The trajectories in the files: many frames have a neighbour in time within 0.1 Å. None stands in another split.
    sod = np.flatnonzero(structures.n_atoms == 36)[-1703:]
    test, train = (np.intersect1d(splits[name], sod) for name in ("test", "train"))
    anywhere = distance_to(structures, test, np.setdiff1d(sod, test))
    assert np.mean(anywhere < 0.1) > 0.3 and distance_to(structures, test, train).min() >= 0.2


def test_a_periodic_nff_file_as_silica():
    """The reader and the split of `silica` on a real file of its format, which is of another oxide."""
    needs = "SrIrO3_bulk_55_nff_all_dataset.pth.tar"
    source = dataset("silica", needs, path=needs, block=1)
    structures = source.load()
    assert structures.sha256() == dataset("nff", needs, path=needs).load().sha256()
    splits = source.split(structures)
    check_splits(splits, len(structures))
    largest = [np.abs(structures[splits[name]].forces).max() for name in ("train", "out_of_domain")]
    assert largest[1] >= 2 * largest[0]
