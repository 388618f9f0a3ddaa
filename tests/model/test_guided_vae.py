"""Guided and nuisance factors from end to end: cells that no one annotated, and what is left of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from matplotlib import pyplot as plt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from tiny import SETTINGS, count_cells, fit, image_cells, profile_cells

import latentcell as lc
from latentcell.cells import simulate
from latentcell.cells.batches import shuffled
from latentcell.errors import InputError
from latentcell.model.settings import Settings
from latentcell.model.training import Hooks

GUIDED = ("phase:cyclic", "cell_type", "programme_3")
COLUMNS = ["phase", "cell_type", "programme_3"]
MANY = Settings(batch_size=64, threads=1)
N, N_NEW = 600, 150


def simulated(seed: int = 0) -> AnnData:
    """Cells with known factors, the last quarter set apart."""
    cells = simulate.counts(N, 60, rng=seed)
    cells.obs["part"] = np.where(np.arange(N) < N - N_NEW, "old", "new")
    return cells


def fitted_on_old(cells: AnnData, epochs: int = 60, **options: Any) -> lc.VAE:
    options = {"factors": lc.Factors(guided=GUIDED), **options}
    return lc.VAE(6, width=32, **options).fit(cells, epochs=epochs, exclude={"part": ["new"]}, settings=MANY, rng=0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on one thread: several wait for each other where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def guided() -> tuple[lc.VAE, AnnData]:
    """A model told of three factors and its cells; tests must not change them."""
    cells = simulated()
    return fitted_on_old(cells), cells


def check_new_cells_follow(model: lc.VAE, truth: AnnData) -> None:
    """The new cells, none of whose labels the model saw, lie where their factors say."""
    new = truth[truth.obs["part"] == "new"].copy()
    obs = new.obs.copy()
    new.obs = new.obs[["part"]].copy()
    told = model.read_factors(new)
    assert list(told.columns) == COLUMNS
    assert list(told.index) == list(obs.index)
    assert np.corrcoef(told["programme_3"], obs["programme_3"])[0, 1] > 0.8
    assert balanced_accuracy_score(obs["cell_type"].astype(str), told["cell_type"].astype(str)) > 0.85
    assert np.cos(2 * np.pi * (told["phase"] - obs["phase"])).mean() > 0.7
    assert told["phase"].between(0, 1, inclusive="left").all()


# what guided dimensions hold


def test_guided_dimensions_follow_the_factors_of_cells_never_seen(guided) -> None:
    check_new_cells_follow(*guided)


def test_guided_dimensions_follow_factors_that_half_of_the_cells_lack() -> None:
    truth = simulated()
    cells = truth.copy()
    rng = np.random.default_rng(0)
    for name in COLUMNS:
        cells.obs[name] = cells.obs[name].where(rng.random(N) < 0.5)
    check_new_cells_follow(fitted_on_old(cells, 80), truth)


def test_the_first_dimensions_are_those_of_the_factors_and_the_others_are_free(guided) -> None:
    model, cells = guided
    assert [guide.dimensions for guide in model.schema_.guidance.guides] == [[0, 1], [2, 3], [4]]
    mu = model.encode(cells).mu
    assert np.corrcoef(mu[:, 4], cells.obs["programme_3"])[0, 1] > 0.8
    assert abs(np.corrcoef(mu[:, 5], cells.obs["programme_3"])[0, 1]) < 0.4
    changed = mu.copy()
    changed[:, 5] += 3
    for guide in model.schema_.guidance.guides:
        np.testing.assert_array_equal(guide.read(changed), guide.read(mu))


def test_codes_of_guided_dimensions_are_spread_like_the_prior(guided) -> None:
    model, cells = guided
    codes = model.encode(cells)
    spread = codes.mu[:, :5].var(0) + codes.var[:, :5].mean(0)
    assert (np.abs(codes.mu[:, :5].mean(0)) < 0.3).all()
    assert ((spread > 0.3) & (spread < 1.6)).all()


def test_moving_along_a_guided_dimension_moves_the_genes_of_its_factor(guided) -> None:
    model, cells = guided
    at = np.zeros((2, 6))
    at[:, 4] = -2, 2
    low, high = model.decode(at, library_size=1e4)
    change = np.log(high + 1) - np.log(low + 1)
    assert np.corrcoef(change, cells.varm["loadings"]["programme_3"])[0, 1] > 0.8


def test_the_history_tells_how_far_cells_lie_from_their_positions(guided) -> None:
    history = guided[0].history_
    assert history["misplaced"].iloc[-1] < 0.5 * history["misplaced"].iloc[0]
    assert np.isfinite(history).all(axis=None)


# codes need no annotation


@pytest.mark.parametrize("change", ["dropped", "missing", "shuffled"])
def test_codes_do_not_depend_on_the_columns_of_guided_factors(guided, change: str) -> None:
    model, cells = guided
    other = cells[:50].copy()
    if change == "dropped":
        other.obs = other.obs[["part"]].copy()
    else:
        for name in COLUMNS:
            values = other.obs[name].to_numpy()
            other.obs[name] = values[::-1] if change == "shuffled" else None
    expected, found = (model.encode(each) for each in (cells[:50], other))
    np.testing.assert_array_equal(found.mu, expected.mu)
    np.testing.assert_array_equal(found.var, expected.var)
    pd.testing.assert_frame_equal(model.elbo(other), model.elbo(cells[:50].copy()))
    pd.testing.assert_frame_equal(model.read_factors(other), model.read_factors(cells[:50].copy()))
    np.testing.assert_array_equal(model.reconstruct(other), model.reconstruct(cells[:50].copy()))


def test_a_saved_model_reads_the_same_factors(guided, tmp_path: Path) -> None:
    model, cells = guided
    model.save(tmp_path / "model")
    loaded = lc.VAE.load(tmp_path / "model")
    assert loaded.factors == model.factors == lc.Factors(guided=GUIDED)
    assert loaded.schema_ == model.schema_
    assert loaded.schema_.digest() == model.schema_.digest()
    assert loaded.sha256() == model.sha256()
    pd.testing.assert_frame_equal(loaded.read_factors(cells), model.read_factors(cells))
    assert loaded.unfitted().factors == model.factors


def test_a_model_without_guided_factors_has_none_to_read() -> None:
    model = fit(count_cells(), factors=lc.Factors(nuisance=["plate"]), epochs=1)
    with pytest.raises(InputError, match=r"no guided factors.*factors=Factors\(guided"):
        model.read_factors(count_cells())


# nuisance factors


@pytest.fixture(scope="module")
def batches() -> AnnData:
    """Counts of three types whose three batches differ as much as the types do."""
    cells = simulate.counts(N, 60, n_batches=3, rng=0)
    for effect in ("batch_effects", "cell_type_effects"):
        cells.varm[effect] *= 2
    mean = simulate.expected_expression(cells) * cells.obs["library_size"].to_numpy()[:, None]
    cells.X = sp.csr_matrix(np.random.default_rng(1).poisson(mean).astype(np.float32))
    return cells


def told(model: lc.VAE, cells: AnnData, column: str, classifier: Any) -> float:
    """Balanced accuracy with which codes tell a column of cells left out."""
    scores = cross_val_score(classifier, model.encode(cells).mu, cells.obs[column], cv=5, scoring="balanced_accuracy")
    return float(scores.mean())


def test_codes_tell_less_of_a_nuisance_and_still_tell_types(batches: AnnData) -> None:
    plain, without = (
        lc.VAE(6, width=32, factors=lc.Factors(nuisance=names)).fit(batches, epochs=60, settings=MANY, rng=0)
        for names in ((), ("batch",))
    )
    for classifier in (LinearDiscriminantAnalysis(), KNeighborsClassifier(15)):
        assert told(plain, batches, "batch", classifier) > 0.8
        assert told(without, batches, "batch", classifier) < told(plain, batches, "batch", classifier) - 0.2
        assert told(without, batches, "cell_type", classifier) > 0.85
    assert without.history_["nuisance"].iloc[-1] < 0.1


@pytest.fixture(scope="module")
def both() -> tuple[lc.VAE, AnnData]:
    """A small model with a batch key, a guided factor and two nuisance factors."""
    cells = count_cells(80)
    rng = np.random.default_rng(0)
    cells.obs["donor"] = rng.integers(1, 4, 80)
    cells.obs["depth"] = rng.lognormal(size=80)
    factors = lc.Factors(guided=["stage"], nuisance=["donor", "depth"])
    return fit(cells, n_latent=4, batch_key="plate", factors=factors, epochs=15), cells


def test_the_decoder_is_told_the_batch_and_the_nuisance(both) -> None:
    model, cells = both
    assert model.schema_.n_covariates == 2 + 3 + 1
    assert model.schema_.source(cells).covariates.shape == (80, 6)
    assert model.schema_.decoder_covariates("p2", 5).tolist() == [[0, 1, 0, 0, 0, 0]] * 5
    shares = model.schema_.batch_shares
    np.testing.assert_allclose(model.schema_.decoder_covariates(None, 2), [[*shares, 0, 0, 0, 0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(model.schema_.source(cells).covariates[:, 2:].mean(0), 0, atol=0.2)


def test_everything_can_be_decoded_with_batch_and_nuisance_together(both) -> None:
    model, cells = both
    z = np.zeros((3, 4))
    first, second, average = (model.decode(z, batch=batch) for batch in ("p1", "p2", None))
    assert first.shape == (3, 12)
    assert not np.allclose(first, second)
    assert not np.allclose(first, average)
    with pytest.warns(UserWarning, match="p9"):
        np.testing.assert_allclose(model.decode(z, batch="p9"), average, rtol=1e-5)
    assert model.reconstruct(cells).shape == cells.shape
    assert model.sample(5, rng=0).shape == model.sample(5, noise=True, rng=0).shape == (5, 12)
    assert model.normalized_expression(cells).shape == cells.shape
    assert model.geodesic(z, z + 1, 0.5).shape == (3, 4)
    assert np.isfinite(model.nll(cells, n_samples=5)).all(axis=None)
    figure = lc.pl.latent_grid(model, n=3, batch="p1")
    assert len([ax for ax in figure.axes if ax.images]) >= 2
    plt.close(figure)


def test_nuisance_alone_is_decoded_at_its_average() -> None:
    cells = profile_cells()
    model = fit(cells, factors=lc.Factors(nuisance=["plate"]), epochs=1)
    assert model.schema_.decoder_covariates(None, 2).tolist() == [[0, 0]] * 2
    assert model.reconstruct(cells).shape == cells.shape
    with pytest.raises(InputError, match="no batch_key"):
        model.decode(np.zeros((1, 3)), batch="p1")


def test_codes_do_not_depend_on_the_nuisance_and_the_bound_does(both) -> None:
    model, cells = both
    other = cells.copy()
    other.obs["donor"] = cells.obs["donor"].to_numpy()[::-1]
    np.testing.assert_array_equal(model.encode(other).mu, model.encode(cells).mu)
    assert not np.allclose(model.elbo(other)["log_px"], model.elbo(cells)["log_px"])


def test_cells_with_a_new_or_missing_nuisance_are_taken_for_average(both) -> None:
    model, cells = both
    new, missing = cells.copy(), cells.copy()
    new.obs["donor"] = 9
    missing.obs["donor"] = np.nan
    pd.testing.assert_frame_equal(model.elbo(new), model.elbo(missing))
    assert np.isfinite(model.elbo(new)).all(axis=None)


@pytest.mark.parametrize("ask", ["elbo", "reconstruct", "nll", "normalized_expression"])
def test_cells_without_the_nuisance_column_are_refused_by_name(both, ask: str) -> None:
    model, cells = both
    other = cells.copy()
    del other.obs["donor"]
    with pytest.raises(InputError, match="'donor'"):
        getattr(model, ask)(other)


@pytest.mark.parametrize("column", ["stage", "grade"], ids=["ordered names", "numbers"])
def test_ordered_levels_can_be_a_nuisance(column: str) -> None:
    cells = count_cells()
    cells.obs["stage"] = cells.obs["stage"].cat.set_categories(["early", "middle", "late"], ordered=True)
    cells.obs["grade"] = np.arange(60) % 3
    text = column if column == "stage" else "grade:ordinal"
    model = fit(cells, factors=lc.Factors(nuisance=[text]), epochs=1)
    assert np.isfinite(model.elbo(cells)).all(axis=None)
    assert np.isfinite(model.elbo(cells[cells.obs["stage"] == "late"].copy())).all(axis=None)


@pytest.mark.parametrize("make", [profile_cells, image_cells, partial(image_cells, masks=True)])
def test_profiles_and_images_can_be_guided(make: Any) -> None:
    cells = make()
    factors = lc.Factors(guided=["stage"], nuisance=["plate"])
    model = fit(cells, factors=factors, epochs=1)
    assert set(model.read_factors(cells)["stage"]) <= {"early", "middle", "late"}
    assert np.isfinite(model.elbo(cells)).all(axis=None)
    assert np.isfinite(model.history_[["misplaced", "nuisance"]]).all(axis=None)
    assert model.reconstruct(cells).shape == model.measurements(cells).shape


@pytest.mark.parametrize("objective", ["beta=4", "capacity=5", "tc=6", "dip=10", "factorvae=10"])
def test_factors_go_with_every_objective(objective: str) -> None:
    cells = count_cells()
    model = fit(cells, factors=lc.Factors(guided=["stage"], nuisance=["plate"]), objective=objective)
    assert np.isfinite(model.history_[["loss", "misplaced", "nuisance"]]).all(axis=None)
    assert np.isfinite(model.encode(cells).var).all()


def test_guided_codes_without_a_fitted_width_are_read_all_the_same() -> None:
    cells = count_cells()
    model = fit(cells, factors=lc.Factors(guided=["stage"]), objective="mmd")
    assert np.isnan(model.encode(cells).var).all()
    assert model.read_factors(cells).notna().all(axis=None)


def test_embedded_cells_of_a_guided_model_know_what_was_seen(guided) -> None:
    model, cells = guided
    embedded = lc.tl.embed(cells, model, copy=True)
    np.testing.assert_array_equal(embedded.obs["vae_seen"], cells.obs["part"] == "old")
    np.testing.assert_array_equal(embedded.obsm["vae"], model.encode(cells).mu)


# refused


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (lc.Factors(guided=["stage", "plate"]), r"take 3 latent dimensions \(stage 2, plate 1\)"),
        (lc.Factors(guided=["plate"], nuisance=["donor"]), "'plate' cannot be separated from 'donor'"),
        (lc.Factors(guided=["plate"], nuisance=["plate"]), "'plate' is named both"),
        (lc.Factors(guided=["nothing"]), "no column 'nothing'"),
        (lc.Factors(guided=["stage:cyclic"]), "holds names"),
    ],
)
def test_factors_that_cannot_be_fitted_are_refused_in_words(factors: lc.Factors, message: str) -> None:
    cells = count_cells()
    cells.obs["donor"] = cells.obs["plate"].map({"p1": "d1", "p2": "d2"})
    n_latent = 2
    with pytest.raises(InputError, match=message):
        fit(cells, factors=factors, n_latent=n_latent, epochs=1)


def test_a_factor_that_varies_among_excluded_cells_only_is_refused() -> None:
    cells = count_cells()
    cells.obs["drug"] = np.where(cells.obs["stage"] == "late", "yes", "no")
    with pytest.raises(InputError, match="same value in all"):
        fit(cells, factors=lc.Factors(guided=["drug"]), exclude={"stage": ["late"]}, epochs=1)


# determinism, checkpoints, excluded cells

BOTH = lc.Factors(guided=["stage", "score"], nuisance=["plate"])


def scored_cells() -> AnnData:
    cells = count_cells()
    cells.obs["score"] = np.log1p(cells.X.toarray()[:, 0]) + np.random.default_rng(3).normal(size=60)
    return cells


def test_the_same_seed_gives_the_same_guided_model() -> None:
    cells = scored_cells()
    first, second, other = (fit(cells, factors=BOTH, n_latent=4, rng=seed) for seed in (1, 1, 2))
    assert first.sha256() == second.sha256() != other.sha256()
    pd.testing.assert_frame_equal(first.read_factors(cells), second.read_factors(cells))


def test_weights_of_guidance_and_independence_change_the_model() -> None:
    cells = scored_cells()
    models = [
        fit(cells, factors=factors, n_latent=4)
        for factors in (
            BOTH,
            replace(BOTH, weight=0.0),
            replace(BOTH, independence=0.0),
            replace(BOTH, guided=()),
            None,
        )
    ]
    assert len({model.sha256() for model in models}) == 5


def stopped_after(epochs: int, file: Path, identity: dict, _: Any, **__: Any) -> Hooks:
    """Hooks that interrupt the fit after some epochs, each of which was saved."""

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] + 1 == epochs:
            raise KeyboardInterrupt

    return Hooks(file, identity, on_epoch, every=0)


def checkpointed(cells: AnnData, file: Path, factors: lc.Factors = BOTH, objective: str = "elbo") -> lc.VAE:
    model = lc.VAE(4, width=8, factors=factors, objective=objective)
    return model.fit(cells, epochs=5, settings=SETTINGS, checkpoint=file, rng=0)


@pytest.mark.parametrize("objective", ["elbo", "factorvae=10"])
def test_a_guided_fit_resumed_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    cells = scored_cells()
    expected = fit(cells, factors=BOTH, n_latent=4, epochs=5, objective=objective)
    with monkeypatch.context() as patch:
        patch.setattr("latentcell.model.fit.Hooks", partial(stopped_after, 3))
        with pytest.raises(KeyboardInterrupt):
            checkpointed(cells, tmp_path / "c", objective=objective)
    resumed = checkpointed(cells, tmp_path / "c", objective=objective)
    assert resumed.sha256() == expected.sha256()


def relabelled(cells: AnnData) -> AnnData:
    other = cells.copy()
    other.obs["score"] = cells.obs["score"].to_numpy()[::-1]
    return other


@pytest.mark.parametrize("other", ["labels", "weight", "guided", "nuisance"])
def test_a_checkpoint_of_other_labels_or_factors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    cells = scored_cells()
    monkeypatch.setattr("latentcell.model.fit.Hooks", partial(Hooks, every=0))
    checkpointed(cells, tmp_path / "c")
    changed = {
        "labels": BOTH,
        "weight": replace(BOTH, weight=1.0),
        "guided": replace(BOTH, guided=("score", "stage")),
        "nuisance": replace(BOTH, nuisance=()),
    }[other]
    with pytest.raises(InputError, match="another fit"):
        checkpointed(relabelled(cells) if other == "labels" else cells, tmp_path / "c", changed)


def test_labels_of_excluded_cells_are_never_used() -> None:
    cells = scored_cells()
    cells.obs["kind"] = np.random.default_rng(4).choice(list("ab"), 60)
    out = (cells.obs["stage"] == "late").to_numpy()
    changed = cells.copy()
    changed.obs["kind"] = changed.obs["kind"].where(~out, "new")
    changed.obs["plate"] = changed.obs["plate"].astype(str).where(~out, "p9")
    changed.obs["score"] = changed.obs["score"].where(~out, 1e6)
    factors = lc.Factors(guided=["kind", "score"], nuisance=["plate"])
    first, second = (fit(each, factors=factors, exclude={"stage": ["late"]}) for each in (cells, changed))
    assert first.sha256() == second.sha256()
    assert first.schema_ == second.schema_
    assert first.report_["held_out_elbo"] == second.report_["held_out_elbo"]


@pytest.mark.parametrize(
    ("text", "known"),
    [("kind:categorical", ["1", "2"]), ("kind:categorical", ["01", "02"]), ("kind", ["1", "2"])],
    ids=["numbers", "numbers with a leading zero", "of no kind asked for"],
)
def test_labels_that_are_numbers_but_for_excluded_cells_guide_like_any_other(text: str, known: list[str]) -> None:
    """Clusters are numbered, and those that fit none are named and left out."""
    cells = count_cells()
    kind = np.random.default_rng(4).choice(known, 60).astype(object)
    kind[:6] = "none"
    cells.obs["kind"] = kind
    model = fit(cells, factors=lc.Factors(guided=[text]), exclude={"kind": ["none"]})
    assert np.isfinite(model.history_["misplaced"]).all()
    assert set(model.read_factors(cells)["kind"]) <= set(known)


def test_barcodes_of_many_digits_are_told_apart() -> None:
    cells = count_cells()
    cells.obs["plate"] = 1234567 + np.arange(60) % 3
    model = fit(cells, factors=lc.Factors(nuisance=["plate"]), epochs=1)
    assert len(np.unique(model.schema_.source(cells).covariates, axis=0)) == 3


def test_cells_read_in_blocks_from_a_file_keep_their_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store on disk is read in blocks that are mixed in memory: each cell with its own labels."""
    cells = profile_cells()
    cells.obs["score"] = cells.X[:, 0]
    factors = lc.Factors(guided=["stage", "score"], nuisance=["plate"])
    in_memory = fit(cells, factors=factors, epochs=1)
    positions = in_memory.schema_.guidance.positions(cells, 3)
    source = replace(in_memory.schema_.source(cells), position=positions)
    monkeypatch.setattr("latentcell.cells.batches.Source.on_disk", property(lambda self: True))
    monkeypatch.setattr("latentcell.cells.batches._BLOCK_ROWS", 8)
    seen = list(shuffled(source, np.arange(5, 55), 16, np.random.default_rng(0)))
    assert sorted(np.concatenate([batch.index for batch in seen])) == list(range(5, 55))
    for batch in seen:
        np.testing.assert_array_equal(batch.position, positions[batch.index])
        np.testing.assert_array_equal(batch.covariates, source.covariates[batch.index])
    assert np.isfinite(fit(cells, factors=factors, epochs=1).history_["misplaced"]).all()
