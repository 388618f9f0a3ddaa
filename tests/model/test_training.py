"""The loop: reproducible, resumable, and stopping when it should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from tiny import SETTINGS, count_cells, fit, image_cells, profile_cells

import latentcell as lc
from latentcell.cells.batches import Batch, Source, in_order, shuffled
from latentcell.errors import InputError
from latentcell.model import objectives, training
from latentcell.model.module import VAEModule
from latentcell.model.schema import Schema
from latentcell.model.training import (
    Data,
    Hooks,
    NonFiniteLossError,
    Progress,
    Settings,
    learning_rate,
    train,
)

N_TRAIN, N_HELD_OUT, F = 48, 16, 6
DEFAULT = Settings(batch_size=16, threads=1)
ELBO = objectives.ELBO(warmup=5)


def module_and_data() -> tuple[VAEModule, Data]:
    values = profile_cells(N_TRAIN + N_HELD_OUT, F).X
    cells = AnnData(values)
    rows = np.arange(N_TRAIN)
    schema = Schema.register(
        cells,
        rows,
        also_check=np.arange(N_TRAIN, len(values)),
        modality="profiles",
        layer=None,
        support="real",
        orientation="as_is",
        batch_key=None,
    )
    torch.manual_seed(0)
    module = VAEModule(schema, "gaussian", None, 2, 8)
    source = Source(
        names=cells.obs_names,
        array=values.astype(np.float32),
        location=np.float32(schema.location),
        scale=np.float32(schema.scale),
    )
    data = Data(
        N_TRAIN,
        lambda rng, noise: shuffled(source, rows, 16, rng),
        lambda: in_order(source, np.arange(N_TRAIN, len(values)), 16),
    )
    return module, data


def run(
    *, objective: objectives.Objective = ELBO, settings: Settings = DEFAULT, **options
) -> tuple[VAEModule, Progress]:
    module, data = module_and_data()
    options = {"epochs": 4, "seed": 3} | options
    return module, train(module, data, objective, settings, **options)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def stop_after(epochs: int):
    """An `on_epoch` that interrupts the fit like Ctrl-C when this many epochs are done."""

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] + 1 == epochs:
            raise KeyboardInterrupt

    return on_epoch


def test_the_same_seed_gives_bitwise_the_same_weights() -> None:
    first, second = run()[0], run()[0]
    assert same_weights(first, second)


def test_another_seed_gives_other_weights() -> None:
    assert not same_weights(run()[0], run(seed=4)[0])


def test_training_improves_the_held_out_bound() -> None:
    history = run(epochs=20)[1].history
    assert history[-1]["val_elbo"] > history[0]["val_elbo"] + 0.5


def test_history_terms_add_up_to_the_bound() -> None:
    for row in run(objective=objectives.Beta(3.0, warmup=2))[1].history:
        assert row["elbo"] == pytest.approx(row["log_px"] - row["kl"], rel=1e-5)
        assert row["val_elbo"] == pytest.approx(row["val_log_px"] - row["val_kl"], rel=1e-9)


@pytest.mark.parametrize("interrupted_after", [2, 3, 5])
def test_a_killed_fit_resumed_gives_bitwise_the_weights_of_an_unbroken_one(
    tmp_path: Path, interrupted_after: int
) -> None:
    unbroken, expected = run(epochs=6)
    checkpoint = tmp_path / "fit.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(epochs=6, hooks=Hooks(checkpoint, {"seed": 3}, stop_after(interrupted_after), every=0))
    assert checkpoint.exists()
    epochs_run: list[float] = []
    hooks = Hooks(checkpoint, {"seed": 3}, lambda row: epochs_run.append(row["epoch"]), every=0)
    resumed, progress = run(epochs=6, hooks=hooks)
    assert epochs_run == list(range(interrupted_after - 1, 6))
    assert same_weights(resumed, unbroken)
    assert progress.step == expected.step
    without_time = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in p.history]
        for p in (progress, expected)
    ]
    assert without_time[0] == without_time[1]


def test_a_fit_broken_twice_and_resumed_is_exact(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    for stop in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(epochs=6, hooks=Hooks(checkpoint, {}, stop_after(stop), every=0))
    assert same_weights(run(epochs=6, hooks=Hooks(checkpoint, {}, every=0))[0], run(epochs=6)[0])


def test_a_checkpoint_of_another_fit_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    run(epochs=2, hooks=Hooks(checkpoint, {"seed": 3, "epochs": 2}, every=0))
    with pytest.raises(InputError, match="differs in: epochs"):
        run(hooks=Hooks(checkpoint, {"seed": 3, "epochs": 4}))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    run(epochs=2, hooks=Hooks(checkpoint, {}, every=0))
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    with pytest.raises(InputError, match="truncated"):
        run(hooks=Hooks(checkpoint, {}))


def with_bad_cell(row: int) -> tuple[VAEModule, Data]:
    module, data = module_and_data()

    def train_batches(rng: np.random.Generator, noise: torch.Generator) -> Iterator[Batch]:
        for batch in data.train(rng, noise):
            batch.x[batch.index == row, 2] = torch.inf
            yield batch

    return module, replace(data, train=train_batches)


def test_a_loss_that_is_not_finite_stops_with_the_rows_of_its_batch() -> None:
    module, data = with_bad_cell(17)
    with pytest.raises(NonFiniteLossError) as caught:
        train(module, data, objectives.ELBO(), DEFAULT, epochs=2, seed=0)
    assert 17 in caught.value.index
    assert len(caught.value.index) <= 16


def test_the_cell_whose_measurement_is_not_finite_is_singled_out() -> None:
    module, data = with_bad_cell(17)
    with pytest.raises(NonFiniteLossError) as caught:
        train(module, data, objectives.ELBO(), DEFAULT, epochs=2, seed=0)
    assert caught.value.index.tolist() == [17]


def test_an_exploding_fit_stops_and_names_cells() -> None:
    settings = Settings(batch_size=16, learning_rate=1e6, threads=1)
    cells = profile_cells()
    with pytest.raises(InputError, match=r"cell_\d+.*learning rate"):
        lc.VAE(2, width=8).fit(cells, epochs=30, settings=settings, rng=0)


def test_early_stopping_keeps_the_weights_of_the_best_held_out_bound() -> None:
    settings = Settings(batch_size=16, learning_rate=0.05, patience=3, threads=1)
    module, data = module_and_data()
    progress = train(module, data, objectives.ELBO(warmup=0), settings, epochs=300, seed=0)
    bounds = [row["val_elbo"] for row in progress.history]
    assert len(bounds) < 300
    assert progress.best_epoch == int(np.argmax(bounds)) <= len(bounds) - 1 - settings.patience
    assert held_out_elbo(module, data, seed=0) == pytest.approx(max(bounds), rel=1e-12)
    assert not module.training


def test_when_the_bound_stops_rising_the_rate_is_cut_twice_before_training_stops() -> None:
    settings = Settings(batch_size=16, learning_rate=0.05, patience=3, threads=1)
    module, data = module_and_data()
    progress = train(module, data, objectives.ELBO(warmup=0), settings, epochs=300, seed=0)
    rates = [row["learning_rate"] for row in progress.history]
    levels = sorted({round(float(np.log(rate / 0.05) / np.log(3))) for rate in rates[4:]})
    assert levels == [-2, -1, 0]
    assert progress.cuts == 3


def held_out_elbo(module: VAEModule, data: Data, seed: int) -> float:
    noise = torch.Generator().manual_seed(seed)
    total = []
    with torch.no_grad():
        for batch in data.held_out():
            log_px, posterior, _ = module(batch, noise)
            total.append((log_px.double() - posterior.kl().double().sum(1)).numpy())
    return float(np.concatenate(total).mean())


@pytest.mark.parametrize("objective", [objectives.Beta(2.0, warmup=10), objectives.Capacity(5.0, steps=10)])
def test_weights_from_before_the_end_of_the_schedule_are_never_the_best(objective: objectives.Objective) -> None:
    progress = run(objective=objective, epochs=8, settings=Settings(batch_size=16, learning_rate=1e-9, threads=1))[1]
    # three steps an epoch: the tenth step falls into the fourth epoch
    assert progress.best_epoch >= 3


def test_a_fit_shorter_than_the_schedule_keeps_its_last_weights() -> None:
    module, data = module_and_data()
    progress = train(module, data, objectives.Beta(2.0, warmup=10_000), DEFAULT, epochs=3, seed=0)
    assert progress.best_epoch == -1
    assert held_out_elbo(module, data, seed=0) == pytest.approx(progress.history[-1]["val_elbo"], rel=1e-12)


def test_the_elbo_judges_weights_from_its_own_warm_up_too() -> None:
    settings = Settings(batch_size=16, learning_rate=1e-9, threads=1)
    assert run(objective=objectives.ELBO(warmup=10_000), epochs=8, settings=settings)[1].best_epoch >= 0


def test_a_requested_stop_saves_the_epoch_and_the_fit_goes_on_exactly(tmp_path: Path) -> None:
    expected = run(epochs=5)[0]
    asked = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        run(epochs=5, hooks=Hooks(tmp_path / "c", {}, stop_requested=lambda: next(asked)))
    assert (tmp_path / "c").exists()
    resumed = run(epochs=5, hooks=Hooks(tmp_path / "c", {}))[0]
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_held_out_cells_leave_weights_and_tracked_noise_alone() -> None:
    module, data = module_and_data()
    train(module, data, objectives.ELBO(), DEFAULT, epochs=1, seed=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    held_out_elbo(module, data, seed=0)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_learning_rate_warms_up_stays_and_falls_to_zero_over_the_last_quarter() -> None:
    shares = np.linspace(0, 1, 201)
    rates = np.array([learning_rate(0.01, share) for share in shares])
    assert 0 < rates[0] < 0.002
    np.testing.assert_allclose(rates[(shares > 0.01) & (shares <= 0.75)], 0.01)
    assert (np.diff(rates[shares >= 0.75]) < 0).all()
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert learning_rate(0.01, 1.5) == pytest.approx(0, abs=1e-9)
    assert learning_rate(0.01, 0.5, cuts=2) == pytest.approx(0.01 / 9)


def test_the_learning_rate_reaches_its_end_within_the_epochs() -> None:
    history = run(epochs=30)[1].history
    assert history[-1]["learning_rate"] < 0.1 * max(row["learning_rate"] for row in history)


def test_training_stops_within_the_epoch_in_which_its_minutes_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = module_and_data()
    clock, steps = [0.0], []

    def a_minute_each(rng: np.random.Generator, noise: torch.Generator) -> Iterator[Batch]:
        for batch in data.train(rng, noise):
            steps.append(batch.index)
            yield batch
            clock[0] += 60

    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    slow = replace(data, train=a_minute_each)
    history = train(module, slow, ELBO, DEFAULT, epochs=500, seed=3, max_minutes=4).history
    # three minibatches are an epoch; a fifth is drawn, and not used
    assert len(history) == 2
    assert len(steps) == 5
    assert history[-1]["learning_rate"] == pytest.approx(DEFAULT.learning_rate, rel=1e-6)


def test_an_epoch_has_a_step_however_short_the_time() -> None:
    assert len(run(epochs=500, max_minutes=1e-9)[1].history) == 1


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"learning_rate": 0.0}, {"patience": 0}, {"validation": 0.0}, {"validation": 1.0}]
)
def test_settings_that_cannot_train_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        Settings(**options)


@pytest.mark.parametrize("make", [count_cells, profile_cells, image_cells])
def test_the_same_seed_gives_the_same_model_through_the_estimator(make) -> None:
    cells = make()
    first, second, other = fit(cells, rng=5), fit(cells, rng=5), fit(cells, rng=6)
    assert first.sha256() == second.sha256() != other.sha256()
    assert first.report_["held_out_nll"] == second.report_["held_out_nll"]


def test_fitting_leaves_torchs_own_seed_and_threads_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    fit(profile_cells(), epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that write a checkpoint after every epoch."""
    monkeypatch.setattr("latentcell.model.fit.Hooks", partial(Hooks, every=0))


def checkpointed(cells: AnnData, file: Path, fit_options: dict | None = None, **options) -> lc.VAE:
    fit_options = {"epochs": 3, "rng": 0} | (fit_options or {})
    options = {"n_latent": 2, "width": 8} | options
    return lc.VAE(**options).fit(cells, settings=SETTINGS, checkpoint=file, **fit_options)


@pytest.mark.usefixtures("eager_checkpoints")
def test_a_fit_resumed_through_the_estimator_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = count_cells()
    expected = fit(cells, epochs=5, n_latent=2)
    with monkeypatch.context() as patch:
        patch.setattr(
            "latentcell.model.fit.Hooks", lambda file, identity, _, **__: Hooks(file, identity, stop_after(3), every=0)
        )
        with pytest.raises(KeyboardInterrupt):
            checkpointed(cells, tmp_path / "c", {"epochs": 5})
    resumed = checkpointed(cells, tmp_path / "c", {"epochs": 5})
    assert resumed.sha256() == expected.sha256()


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize(
    ("options", "fit_options"),
    [
        ({"objective": "beta=2"}, {}),
        ({"n_latent": 3}, {}),
        ({}, {"rng": 1}),
        ({}, {"exclude": {"stage": ["late"]}}),
        ({}, {"split_key": "donor"}),
        ({"likelihood": "poisson"}, {}),
        ({"likelihood": "zinb"}, {}),
        ({"layer": "other"}, {}),
        ({"batch_key": "plate"}, {}),
    ],
    ids=lambda value: ",".join(value) or "-",
)
def test_a_checkpoint_of_a_fit_with_other_choices_is_refused(tmp_path: Path, options: dict, fit_options: dict) -> None:
    cells = count_cells()
    cells.layers["other"] = cells.X[:, ::-1].copy()
    cells.obs["donor"] = [f"donor_{i % 7}" for i in range(cells.n_obs)]
    checkpointed(cells, tmp_path / "c")
    with pytest.raises(InputError, match="another fit"):
        checkpointed(cells, tmp_path / "c", fit_options, **options)


@pytest.mark.usefixtures("eager_checkpoints")
def test_a_checkpoint_of_profiles_with_another_likelihood_is_refused(tmp_path: Path) -> None:
    cells = image_cells()
    checkpointed(cells, tmp_path / "c", likelihood="gaussian")
    with pytest.raises(InputError, match="another fit"):
        checkpointed(cells, tmp_path / "c", likelihood="continuous_bernoulli")


def test_the_objectives_schedule_keeps_pace_with_a_limit_of_time() -> None:
    limited = run(objective=objectives.ELBO(warmup=3000), epochs=3000, max_minutes=0.02)[1].history
    assert len(limited) < 3000
    assert limited[-1]["beta"] > 0.9
