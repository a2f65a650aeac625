"""The active-learning loop: train, propose, label, merge, generation after generation."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pandas as pd
from ase import Atoms
from ase.geometry import find_mic
from pydantic import PositiveInt
from scipy.spatial.transform import Rotation

from uqbench.active.acquisition.base import Acquisition, Proposals
from uqbench.active.acquisition.displacement import random_displacements
from uqbench.active.acquisition.objective import score_and_energy
from uqbench.active.journal import Journal
from uqbench.active.latents import structure_latents
from uqbench.active.selection import Selection
from uqbench.config.annotations import Share, Supplied
from uqbench.data.arrays import PACKED, SPLIT, pack, read_npz
from uqbench.data.readers import ase_frames
from uqbench.data.sources.base import Dataset
from uqbench.data.structures import Splits, Structures, check_splits
from uqbench.errors import DataError
from uqbench.evaluations.base import Rows
from uqbench.figures import proposals as figures
from uqbench.figures.canvas import render
from uqbench.inference.prediction_set import predict
from uqbench.inference.trained_model import TrainedModel
from uqbench.oracles.base import Failure, Labels, Oracle
from uqbench.oracles.plausibility import KnownLabels
from uqbench.runs.experiment import Experiment
from uqbench.runs.run_dir import RunDir
from uqbench.seeding import derive, numpy_generator

log = logging.getLogger(__name__)

BATCH = 64  # structures scored at once: a matter of memory only


class Loop:
    """One run of active learning, which goes on after any interruption from the last finished step.

    The run keeps, for each generation k, `data_<k>.npz` (frames and splits, as `dataset=packed` reads them),
    `proposals_<k>.extxyz` (all of them), `history_<k>.parquet` (how they got there), `proposals_<k>.png` and
    `climb_<k>.png`, `selection_<k>.csv` (their fate) and `labels_<k>.csv` (what the model said of the labelled ones,
    and what the oracle), and the journal. Where the oracle fails `failures_<k>.csv` says why, k = 0 for the data set.

    Args:
        generations: trainings; there is one round of proposals less.
        proposals: structures that the acquisition makes in a round.
        batch: of these, how many are labelled at most.
        relabel: whether the oracle labels the frames of the data set too, so that all labels are of one kind.
        validation_share: of the new structures goes to the validation split; the rest is trained on.
        run: the open run directory.
        acquisition, selection, oracle: what is done in a round.
        seed: of acquisitions and splits.
    """

    def __init__(
        self,
        *,
        generations: PositiveInt,
        proposals: PositiveInt,
        batch: PositiveInt,
        relabel: bool,
        validation_share: Share,
        run: RunDir,
        acquisition: Acquisition,
        selection: Selection,
        oracle: Oracle,
        seed: Supplied[int],
    ) -> None:
        self.generations, self.proposals, self.batch = generations, proposals, batch
        self.relabel, self.validation_share = relabel, validation_share
        self.run, self.seed = run, seed
        self.acquisition, self.selection, self.oracle = acquisition, selection, oracle
        self.journal = Journal(run)

    @staticmethod
    def contradictions(*, proposals: int, batch: int, **_: Any) -> Iterator[str]:
        """Yield what is wrong between arguments that are each right alone."""
        if batch > proposals:
            yield f"batch: expected an integer <= proposals ({proposals}), got {batch}"

    @staticmethod
    def data_name(generation: int) -> str:
        """Name of the file with the frames of a generation."""
        return f"data_{generation}.npz"

    def learn(self, experiment: Experiment) -> Rows:
        """Go through all generations from wherever the run stands, and return all metric rows."""
        self.journal.once(1, "data", self.data_name(1), lambda: self._first(experiment.dataset))
        rows = []
        for generation in range(1, self.generations + 1):
            structures, splits = unpack(self.run.path / self.data_name(generation))
            name = self.data_name(generation)
            trained, generation_rows = experiment.generation(generation, name, structures, splits, self.run)
            if generation < self.generations:
                generation_rows = generation_rows + self._extend(generation, structures, splits, trained)
            rows += [row | {"generation": generation} for row in generation_rows]
        return rows

    def _first(self, dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
        """Take frames and splits from the data set, with the oracle's labels where the plan wants them."""
        structures = dataset.load()
        splits = dataset.split(structures)
        check_splits({name: frames for name, frames in splits.items() if len(frames)}, len(structures))
        self.oracle.check(structures)  # also where it is not asked yet: no generation is trained in vain
        if self.relabel:
            log.info("labelling the %d frames of %s", len(structures), structures.origin)
            labels = self.oracle.label(structures, KnownLabels(structures, energies=False))
            for frame, reason in labels.failures.items():
                log.warning("frame %d is left out: %s", structures.ids[frame], reason)
            self._require_enough(labels, 0, "frame", structures.ids.tolist())
            new_index = np.full(len(structures), -1)
            new_index[labels.labelled] = np.arange(len(labels.labelled))
            splits = {name: new_index[frames][new_index[frames] >= 0] for name, frames in splits.items()}
            structures = labels.structures(structures.origin)
        for name in ("train", "validation", "test"):
            if not len(splits[name]):
                raise DataError(f"{structures.origin}: no labelled frame for the {name} split")
        return pack(structures, splits), {"frames": {name: len(frames) for name, frames in splits.items()}}

    def _extend(self, generation: int, structures: Structures, splits: Splits, trained: TrainedModel) -> Rows:
        """Propose, select, label and merge; return rows on how the proposals did."""
        training = structures[splits["train"]]
        method = trained.method.to(trained.device)
        seed = derive(self.seed, "generation", generation)

        def propose() -> tuple[bytes, dict[str, Any]]:
            held_out = [structures[frames] for name, frames in splits.items() if name != "train" and len(frames)]
            proposals = self.acquisition.propose(method, training, self.proposals, held_out=held_out, seed=seed)
            chosen = self.selection.select(
                proposals, training, self.batch, lambda s: structure_latents(method, s, BATCH)
            )
            self.run.write_csv(f"selection_{generation}.csv", chosen.table)
            if not len(chosen.indices):
                fates = ", ".join(f"{count} {fate}" for fate, count in chosen.counts.items() if count)
                log.warning("generation %d: none of the proposals is fit to be labelled: %s", generation, fates)
            self.run.write_parquet(f"history_{generation}.parquet", proposals.history)
            facts = self._against_random(generation, proposals, training, trained, seed)
            return _extxyz(proposals), facts | {"counts": chosen.counts, "chosen": chosen.indices.tolist()}

        proposed = self.journal.once(generation, "propose", f"proposals_{generation}.extxyz", propose)
        remedy = "restore it, or delete the run and repeat it"
        everything = ase_frames(self.run.path / proposed["file"], format="extxyz", index=":", remedy=remedy)
        wanted = [everything[k] for k in proposed["chosen"]]
        known = KnownLabels(structures, energies=True)

        def label() -> tuple[bytes, dict[str, Any]]:
            log.info("generation %d: labelling %d of %d proposals", generation, len(wanted), len(everything))
            labels = self.oracle.label(wanted, known)
            self._require_enough(labels, generation, "proposal", proposed["chosen"])
            table = pd.DataFrame({"proposal": proposed["chosen"]})
            table["failure"] = [labels.failures.get(k, "") for k in range(len(wanted))]
            facts = {"labelled": len(labels.labelled), "force_rmse": None}
            if labels.labelled:
                facts["force_rmse"] = self._compare(table, labels, trained)
            return table.to_csv(index=False).encode(), facts

        labelled = self.journal.once(generation, "label", f"labels_{generation}.csv", label)

        def merge() -> tuple[bytes, dict[str, Any]]:
            new = None
            if labelled["labelled"]:
                # The oracle remembers what it has labelled; what it could not label it would try once more.
                failed = self.run.read_csv(labelled["file"])["failure"].notna()
                good = [atoms for atoms, lost in zip(wanted, failed, strict=True) if not lost]
                new = self.oracle.label(good, known).structures(f"generation {generation}")
            joined, joined_splits = self._merged(structures, splits, new, generation)
            return pack(joined, joined_splits), {"frames": {name: len(f) for name, f in joined_splits.items()}}

        self.journal.once(generation + 1, "data", self.data_name(generation + 1), merge)
        return _rows(proposed, labelled)

    def _require_enough(self, labels: Labels, generation: int, kind: str, numbers: Sequence[int]) -> None:
        """Write down which frames have no label, and why; raises OracleError where there are too many of them."""
        name = f"failures_{generation}.csv"
        rows = [
            {kind: number, "attempts": outcome.attempts, "reason": outcome.reason}
            for number, outcome in zip(numbers, labels.outcomes, strict=True)
            if isinstance(outcome, Failure)
        ]
        if rows:
            self.run.write_csv(name, pd.DataFrame(rows))
        else:
            (self.run.path / name).unlink(missing_ok=True)  # of an earlier attempt
        labels.require_enough([f"{kind} {number}" for number in numbers], str(self.run.path / name))

    def _compare(self, table: pd.DataFrame, labels: Labels, trained: TrainedModel) -> float:
        """Set predictions beside labels, and return the root mean square error of the force components, eV/Å."""
        new = labels.structures("labelled proposals")
        predictions = predict(trained.method, new, batch_size=BATCH, device=trained.device)
        square = np.add.reduceat(((predictions.forces - new.forces) ** 2).mean(axis=1), new.ptr[:-1]) / new.n_atoms
        columns = {"energy": new.energies, "energy_predicted": predictions.energy, "force_rmse": np.sqrt(square)}
        for name, values in columns.items():
            table.loc[labels.labelled, name] = values
        return float(np.sqrt(np.average(square, weights=new.n_atoms)))

    def _against_random(
        self, generation: int, proposals: Proposals, training: Structures, trained: TrainedModel, seed: int
    ) -> dict[str, float]:
        """Mean scores of seeds, proposals, and random displacements of the same seeds by the same lengths; figures."""
        seeds = training[proposals.frames]
        lengths = displacements(seeds, proposals.structures)
        control, _ = random_displacements(training, proposals.frames, lengths, seed)
        uncertainty = getattr(self.acquisition, "uncertainty", "mean")
        (before, low), (random, high) = (
            score_and_energy(trained.method, s, uncertainty, BATCH) for s in (seeds, control)
        )
        groups = {
            "seeds": (before, low / seeds.n_atoms),
            "random, as far away": (random, high / seeds.n_atoms),
            "proposals": (proposals.score, proposals.energy / seeds.n_atoms),
        }
        drawings = figures.drawings(groups, proposals.history, trained.method.score_scale, f"generation {generation}")
        for name, content in render(drawings).items():
            self.run.write_bytes(f"{name}_{generation}.png", content)
        fine = np.isfinite(proposals.score) & np.isfinite(random)
        if not fine.any():
            return dict.fromkeys(("score_seeds", "score_proposals", "score_random", "above_random", "displacement"))
        return {
            "score_seeds": float(before[fine].mean()),
            "score_proposals": float(proposals.score[fine].mean()),
            "score_random": float(random[fine].mean()),
            "above_random": float(np.mean(proposals.score[fine] > random[fine])),
            "displacement": float(np.mean(lengths[fine])),
        }

    def _merged(
        self, structures: Structures, splits: Splits, new: Structures | None, generation: int
    ) -> tuple[Structures, Splits]:
        """Append the new frames; the test frames of the first generation stay those of all."""
        if new is None:
            log.warning("generation %d: nothing was labelled, the next one has the same frames", generation)
            return structures, splits
        order = numpy_generator(self.seed, "new frames", generation).permutation(len(new)) + len(structures)
        held = round(self.validation_share * len(new))
        added = {"validation": np.sort(order[:held]), "train": np.sort(order[held:])}
        nothing = np.zeros(0, np.int64)
        joined = {name: np.concatenate([frames, added.get(name, nothing)]) for name, frames in splits.items()}
        return Structures.concatenate([structures, new]), joined


def unpack(path: Path) -> tuple[Structures, Splits]:
    """Read a file that `datasets.arrays.pack` made; raises DataError when it is missing or damaged."""
    names = [SPLIT + name for name in read_npz(path, {"splits": "splits"})["splits"]]
    arrays = read_npz(path, {name: name for name in (*PACKED, *names)})
    splits = {name.removeprefix(SPLIT): arrays.pop(name) for name in names}
    return Structures.from_arrays(**arrays, origin=str(path)), splits


def displacements(seeds: Structures, moved: Structures) -> np.ndarray:
    """Root mean square displacement over the atoms of each structure (S,), Å.

    A molecule is first laid over its seed as a whole: in a simulation it drifts and turns without getting any newer. In
    a periodic system the nearest images count.
    """
    lengths = []
    for s, (a, b) in enumerate(zip(seeds.ptr, seeds.ptr[1:], strict=False)):
        before, after = seeds.positions[a:b], moved.positions[a:b]
        if seeds.pbc[s].any():
            delta, _ = find_mic(after - before, seeds.cells[s], seeds.pbc[s])
        elif b - a == 1:
            delta = np.zeros((1, 3))
        else:
            before, after = before - before.mean(axis=0), after - after.mean(axis=0)
            with warnings.catch_warnings():
                # Two atoms, or all on a line, leave an angle open, which changes no distance.
                warnings.filterwarnings("ignore", "Optimal rotation is not uniquely", UserWarning)
                rotation, _ = Rotation.align_vectors(before, after)
            delta = rotation.apply(after) - before
        lengths.append(np.sqrt((delta**2).sum(axis=1).mean()))
    return np.array(lengths)


def _extxyz(proposals: Proposals) -> bytes:
    """All proposals with score, predicted energy, seed frame and how they ended."""
    s, frames = proposals.structures, []
    for k, (a, b) in enumerate(zip(s.ptr, s.ptr[1:], strict=False)):
        atoms = Atoms(s.numbers[a:b], s.positions[a:b], cell=s.cells[k], pbc=s.pbc[k])
        atoms.info |= {"frame": int(proposals.frames[k]), "score": float(proposals.score[k])}
        atoms.info |= {"energy_predicted": float(proposals.energy[k]), "stopped": str(proposals.stopped[k]) or "no"}
        frames.append(atoms)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    return text.getvalue().encode()


def _rows(proposed: dict[str, Any], labelled: dict[str, Any]) -> Rows:
    """Metric rows of target `acquisition`."""
    values = {name: (proposed[name], "1") for name in ("score_seeds", "score_proposals", "score_random")}
    values |= {"above_random": (proposed["above_random"], "1"), "displacement": (proposed["displacement"], "Å")}
    values |= {f"count_{name.replace(' ', '_')}": (count, "1") for name, count in proposed["counts"].items()}
    values |= {"labelled": (labelled["labelled"], "1"), "force_rmse": (labelled["force_rmse"], "eV/Å")}
    n = sum(proposed["counts"].values())
    return [
        {"target": "acquisition", "population": "all", "metric": name, "value": value, "unit": unit}
        | {"n": n, "ci_low": None, "ci_high": None}
        for name, (value, unit) in values.items()
    ]
