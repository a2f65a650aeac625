"""The training loop: learning, exact resume, schedules, clipping, divergence."""

import copy
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import graphs_of, short_training, small_method
from torch.optim.lr_scheduler import ReduceLROnPlateau

from uqbench.errors import CheckpointError, TrainingError
from uqbench.models.normalisation import Normalisation
from uqbench.runs import signals
from uqbench.runs.checkpoints import TrainingState
from uqbench.runs.run_dir import load_checkpoint
from uqbench.training.loop import POINT_LOSSES, BatchLoss, clip_members, epoch_batches, train
from uqbench.training.schedule import Schedule
from uqbench.uq.base import KCAL_PER_MOL

pytestmark = pytest.mark.numerics


@pytest.fixture
def parts(ethanol):
    return ethanol[:24], ethanol[24:36]


def build(parts, uq="ensemble", seed=0, **changes):
    changes = {"uq.members": 2, **changes} if uq == "ensemble" else changes
    return small_method(parts[0], "painn_small", uq, seed, **changes)


def fit(parts, folder, seed=0, uq="ensemble", **settings):
    folder.mkdir(exist_ok=True)
    train(build(parts, uq, seed), *parts, short_training(precision="float64", **settings), seed, folder)
    return pd.read_csv(folder / "history.csv")


def weights(folder, name="best.pt"):
    return load_checkpoint(folder / name)["method"]


def assert_equal_runs(a, b):
    assert (a / "history.csv").read_bytes() == (b / "history.csv").read_bytes()
    first, second = load_checkpoint(a / "best.pt"), load_checkpoint(b / "best.pt")
    assert first["epoch"] == second["epoch"]
    assert first["method"].keys() == second["method"].keys()
    assert all(torch.equal(first["method"][name], second["method"][name]) for name in first["method"])


def test_training_learns_and_keeps_the_best_epoch(parts, tmp_path):
    history = fit(parts, tmp_path, epochs=12, lr=5e-3)
    assert history.epoch.tolist() == list(range(1, 13))
    # Without learning the same frames keep their loss, to rounding; with ten seeds it fell to 0.13 to 0.36 of it.
    assert history.train_loss.iloc[-1] < 0.9 * history.train_loss.iloc[0]
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == history.epoch[history.validation_loss.idxmin()]
    # The history's last column is what the kept weights really give.
    method = build(parts)
    method.load_state_dict(best["method"])
    graphs = graphs_of(parts[1])
    predicted = method.predict(graphs.batch(range(len(graphs)))).forces
    mae = np.abs(predicted.numpy() - parts[1].forces).mean() / KCAL_PER_MOL
    assert mae == pytest.approx(history.validation_force_mae[history.validation_loss.idxmin()], rel=1e-9)


def test_the_epoch_with_the_lowest_validation_loss_is_kept():
    state, method = TrainingState(), torch.nn.Linear(1, 1)
    for epoch, loss in enumerate((3.0, 1.0, 2.0), start=1):
        with torch.no_grad():
            method.weight.fill_(epoch)
        state.record({"epoch": epoch, "validation_loss": loss}, method)
    assert state.best["epoch"] == 2 and float(state.best["method"]["weight"]) == 2.0
    assert len(state.history) == 3


def test_same_seed_same_bits_and_another_seed_another_model(parts, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(parts, tmp_path / name, seed)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_equal_runs(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    "settings", [{"schedule": "cosine", "ema_decay": 0.9}, {"schedule": "plateau", "ema_decay": None}]
)
def test_resume_continues_to_the_same_bits(parts, tmp_path, settings, monkeypatch):
    settings |= {"epochs": 4, "patience": 1}
    fit(parts, tmp_path / "uncut", **settings)
    from uqbench.training import loop

    original, seen = loop.validate, []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, tmp_path / "cut", **settings)
    monkeypatch.undo()
    assert len(pd.read_csv(tmp_path / "cut" / "history.csv")) == 2
    fit(parts, tmp_path / "cut", **settings)
    assert_equal_runs(tmp_path / "uncut", tmp_path / "cut")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2])
def test_signal_in_mid_epoch_loses_no_step(parts, tmp_path, number, monkeypatch):
    """Every step ends with a signal, so that a launch does one; yet all steps are done, to the same bits."""
    settings = {"epochs": 2, "schedule": "cosine", "ema_decay": 0.9, "checkpoint_seconds": 1000.0}
    fit(parts, tmp_path / "uncut", **settings)
    from uqbench.training import loop

    original, steps = loop.check_finite, []

    def signalling(*arguments):
        steps.append(1)
        os.kill(os.getpid(), number)
        original(*arguments)

    monkeypatch.setattr(loop, "check_finite", signalling)
    for launch in range(2 * 3):
        with pytest.raises(KeyboardInterrupt), signals.at_once(replacing=False):
            fit(parts, tmp_path / "cut", **settings)
        assert len(steps) == launch + 1
    fit(parts, tmp_path / "cut", **settings)  # no step is left, but the last validation is
    assert_equal_runs(tmp_path / "uncut", tmp_path / "cut")


@pytest.mark.parametrize("left", ["nothing", "what an earlier epoch was best at"])
def test_killed_between_its_last_two_files_a_training_makes_the_others_anew(left, parts, tmp_path):
    settings = {"epochs": 3, "checkpoint_seconds": 0.0}
    fit(parts, tmp_path / "uncut", **settings)
    fit(parts, tmp_path / "cut", **settings)
    if left == "nothing":
        (tmp_path / "cut" / "best.pt").unlink()
        (tmp_path / "cut" / "history.csv").unlink()
    else:
        fit(parts, tmp_path / "early", **settings | {"epochs": 1})
        for name in ("best.pt", "history.csv"):
            shutil.copy(tmp_path / "early" / name, tmp_path / "cut" / name)
    fit(parts, tmp_path / "cut", **settings)
    assert_equal_runs(tmp_path / "uncut", tmp_path / "cut")


def test_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), signals.postponed() as must_stop:
        assert not must_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert must_stop()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was postponed too")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_after_the_last_step_is_not_forgotten():
    with pytest.raises(KeyboardInterrupt), signals.postponed():
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_of_others_stay():
    calls = []
    signal.signal(signal.SIGUSR2, lambda *_: calls.append(1))
    try:
        with signals.at_once(replacing=False), signals.postponed():
            os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(KeyboardInterrupt), signals.at_once(replacing=True):
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    assert calls == [1]


def test_a_finished_training_is_not_repeated(parts, tmp_path):
    fit(parts, tmp_path)
    before = (tmp_path / "last.pt").stat().st_mtime_ns
    fit(parts, tmp_path)
    assert (tmp_path / "last.pt").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_model_is_refused(parts, tmp_path):
    fit(parts, tmp_path)
    with pytest.raises(CheckpointError, match="does not belong to this model"):
        train(build(parts, **{"uq.members": 3}), *parts, short_training(epochs=5, precision="float64"), 0, tmp_path)


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [torch.cat(list(epoch_batches(50, 8, seed, epoch))) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[3])
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)


def test_non_finite_training_stops_with_one_line(parts, tmp_path):
    with pytest.raises(TrainingError, match=r"diverged in epoch \d+: the (loss|gradient) is (nan|inf).*training.lr"):
        fit(parts, tmp_path, lr=1e12, warmup_steps=0)


def test_non_finite_gradients_are_not_skipped(parts, tmp_path, monkeypatch):
    # sqrt at zero: the loss is finite, its gradient is not.
    monkeypatch.setitem(POINT_LOSSES, "norm", lambda residual: (residual * 0).sum(-1).sqrt())
    with pytest.raises(TrainingError, match="gradient is nan"):
        fit(parts, tmp_path)


def test_a_wall_clock_budget_ends_training_annealed(parts, tmp_path):
    history = fit(parts, tmp_path, epochs=100_000, max_seconds=1.0)
    assert 1 <= len(history) < 5000
    assert history.lr.iloc[-1] < 0.2 * history.lr.max()


# ------------------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("members", [1, 2])
def test_the_objective_is_the_weighted_loss_in_kcal_per_mol(parts, members):
    method = build(parts) if members == 2 else build(parts, "deterministic")
    settings = short_training(energy_weight=0.3, force_weight=2.0, force_loss="mae", precision="float64")
    graphs = graphs_of(parts[0])
    batch = graphs.batch(range(6))
    loss, terms = BatchLoss(method, settings)(graphs, torch.arange(6), (6, len(batch.numbers)))
    output = method.potential(batch)
    energy = (output.energy - batch.energies).abs().mean(-1).sum() * 23.060548
    forces = (output.forces - batch.forces).abs().mean((-2, -1)).sum() * 23.060548
    assert float(loss) == pytest.approx(float(0.3 * energy + 2.0 * forces), rel=1e-6)
    assert terms.shape == (4,)


@pytest.mark.parametrize(
    "key", ["energy_weight", "force_weight", "force_loss", "batch_size", "lr", "ema_decay", "gradient_clip"]
)
def test_every_setting_changes_the_result(parts, tmp_path, key):
    changed = {
        "energy_weight": 0.2, "force_weight": 0.5, "force_loss": "mse", "batch_size": 7, "lr": 1e-3,
        "ema_decay": None, "gradient_clip": 0.1,
    }[key]  # fmt: skip
    fit(parts, tmp_path / "a", epochs=2)
    fit(parts, tmp_path / "b", epochs=2, **{key: changed})
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_members_train_as_they_would_alone(parts, tmp_path):
    """Joint training is a matter of speed: member 0 follows the single model with the same random stream."""
    settings = short_training(precision="float64", epochs=2, ema_decay=None, gradient_clip=0.5)
    for uq in ("ensemble", "deterministic"):
        (tmp_path / uq).mkdir()
        train(build(parts, uq), *parts, settings, 0, tmp_path / uq)
    joint = load_checkpoint(tmp_path / "ensemble" / "last.pt")["model"]
    alone = load_checkpoint(tmp_path / "deterministic" / "last.pt")["model"]
    trained = [name for name, value in joint.items() if value.dim() > 1 or "bias" in name]
    assert trained
    for name in trained:
        assert torch.allclose(joint[name][0], alone[name], rtol=1e-6, atol=1e-9), name
        assert not torch.equal(joint[name][0], joint[name][1]) or "bias" in name, name


def test_clipping_acts_on_each_member_alone(parts):
    method = build(parts)
    generator = torch.Generator().manual_seed(0)
    for parameter in method.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad[1] *= 1e-6
    before = [parameter.grad.clone() for parameter in method.parameters()]
    total = torch.stack([p.grad.square().sum() for p in method.parameters()]).sum().sqrt()
    clip_members(list(method.parameters()), 2, 0.5, total)
    norms = torch.stack([p.grad.flatten(1).square().sum(1) for p in method.parameters()]).sum(0).sqrt()
    assert float(norms[0]) == pytest.approx(0.5, rel=1e-4)
    assert all(torch.equal(p.grad[1], old[1]) for p, old in zip(method.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------------ schedule


def test_plateau_agrees_with_torch():
    settings = short_training(schedule="plateau", patience=2, factor=0.5, lr=1e-2, min_lr=1e-9, warmup_steps=0)
    ours = Schedule(settings, 1000)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    theirs = ReduceLROnPlateau(optimizer, patience=2, factor=0.5, threshold=1e-4, threshold_mode="rel")
    generator = np.random.default_rng(0)
    for loss in 1 + np.exp(-np.arange(60) / 10) * generator.random(60):
        ours.after_epoch(loss)
        theirs.step(loss)
        assert ours.lr(0.0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.lr(0.0) < 1e-2


def test_plateau_ends_below_the_least_learning_rate():
    schedule = Schedule(short_training(schedule="plateau", patience=1, factor=0.1, lr=1e-3, min_lr=1e-5), 10)
    for _ in range(4):
        schedule.after_epoch(1.0)
    assert not schedule.exhausted
    for _ in range(4):
        schedule.after_epoch(1.0)
    assert schedule.exhausted


def test_cosine_warms_up_and_anneals():
    schedule = Schedule(short_training(schedule="cosine", lr=1e-3, min_lr=1e-6, warmup_steps=9), 100)
    rates = []
    for step in range(101):
        schedule.steps = step
        rates.append(schedule.lr(0.0))
    assert rates[0] == pytest.approx(1e-4, rel=1e-2)
    assert rates[50] == pytest.approx(0.5 * (1e-3 + 1e-6))
    assert rates[100] == pytest.approx(1e-6)
    assert copy.copy(schedule).state_dict() == schedule.state_dict()


def test_normalisation_of_a_single_molecule_reproduces_its_mean_energy(ethanol):
    constants = Normalisation.fit(ethanol)
    reference = sum(
        constants.references[constants.elements.index(z)] for z in ethanol.numbers[: ethanol.n_atoms[0]].tolist()
    )
    assert reference == pytest.approx(ethanol.energies.mean(), rel=1e-12)
    assert constants.scale == pytest.approx(np.sqrt((ethanol.forces**2).mean()))


def test_reference_energies_stay_exact_in_single_precision(ethanol):
    """Total energies are thousands of eV: in float32 the references alone would be wrong by a tenth of a meV."""
    method = small_method(ethanol, "painn_small", "deterministic").to(torch.float32)
    assert method.potential.references.dtype == torch.float64
    assert method.potential.references.tolist() == list(Normalisation.fit(ethanol).references)
    assert method.potential.scale.dtype == torch.float32
