"""A second fit of the same settings: on exactly the cells asked for, its dimensions matched with those of the first."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import latentcell as lc
from latentcell.cells.images import set_images
from latentcell.errors import InputError
from latentcell.model.settings import Settings
from latentcell.model.training import Hooks
from latentcell.tl.refit import fit_rows, match_dimensions

FIT = {"epochs": 2, "settings": Settings(batch_size=16, threads=1)}

# matching


@given(st.permutations(range(5)), st.lists(st.sampled_from([-1.0, 1.0]), min_size=5, max_size=5), st.integers(0, 2**31))
def test_permuted_and_mirrored_dimensions_are_found_exactly(order: list[int], sign: list[float], seed: int) -> None:
    reference = np.random.default_rng(seed).normal(size=(40, 5))
    other = np.empty_like(reference)
    other[:, order] = reference * sign
    found = match_dimensions(reference, other)
    assert found.order.tolist() == order
    assert found.sign.tolist() == sign
    np.testing.assert_allclose(found.correlation, 1)
    np.testing.assert_array_equal(other[:, found.order] * found.sign, reference)


def test_scale_and_place_of_codes_do_not_matter() -> None:
    reference = np.random.default_rng(0).normal(size=(40, 3))
    found = match_dimensions(100 + 5 * reference, -0.01 * reference[:, [2, 0, 1]] - 3)
    assert found.order.tolist() == [1, 2, 0]
    assert found.sign.tolist() == [-1] * 3
    np.testing.assert_allclose(found.correlation, 1)


@pytest.mark.parametrize("n_fixed", [0, 1, 2, 4])
def test_fixed_dimensions_answer_each_other_as_they_stand(n_fixed: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(60, 4))
    found = match_dimensions(reference, -reference[:, ::-1], n_fixed)
    assert found.order[:n_fixed].tolist() == list(range(n_fixed))
    assert found.sign[:n_fixed].tolist() == [1] * n_fixed
    assert sorted(found.order) == [0, 1, 2, 3]
    expected = [abs(np.corrcoef(reference[:, j], reference[:, 3 - found.order[j]])[0, 1]) for j in range(4)]
    np.testing.assert_allclose(found.correlation, expected)


def test_free_dimensions_behind_fixed_ones_are_matched() -> None:
    reference = np.random.default_rng(0).normal(size=(60, 5))
    found = match_dimensions(reference, reference[:, [0, 1, 4, 2, 3]] * [1, 1, -1, 1, -1], 2)
    assert found.order.tolist() == [0, 1, 3, 4, 2]
    assert found.sign.tolist() == [1, 1, 1, -1, -1]


@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(0, 2))
def test_no_other_one_to_one_match_has_a_larger_sum_of_correlations(seed: int, d: int, n_fixed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(12, d))
    other = reference @ rng.normal(size=(d, d)) + rng.normal(size=(12, d))
    n_fixed = min(n_fixed, d)
    correlation = np.abs(np.corrcoef(reference.T, other.T)[:d, d:])
    found = match_dimensions(reference, other, n_fixed)
    np.testing.assert_allclose(found.correlation, correlation[np.arange(d), found.order])
    orders = ([*range(n_fixed), *order] for order in itertools.permutations(range(n_fixed, d)))
    best = max(correlation[np.arange(d), order].sum() for order in orders)
    assert found.correlation.sum() == pytest.approx(best)
    assert sorted(found.order) == list(range(d))


def test_dimensions_that_do_not_vary_match_what_is_left_at_no_correlation() -> None:
    reference = np.random.default_rng(0).normal(size=(30, 3))
    other = reference[:, [1, 0, 2]].copy()
    other[:, 2] = 0.7
    found = match_dimensions(reference, other)
    assert found.order.tolist() == [1, 0, 2]
    np.testing.assert_allclose(found.correlation, [1, 1, 0], atol=1e-9)
    assert np.isfinite(found.sign).all()


# a second fit


def counted(n: int = 60, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, 1)) * rng.normal(size=(1, 10)) + 1.5)
    cells = AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    cells.obs_names = [f"cell_{i}" for i in range(n)]
    cells.obs["stage"] = pd.Categorical(rng.choice(["early", "late"], n))
    cells.obs["plate"] = pd.Categorical(rng.choice(["p1", "p2"], n))
    cells.obsm["X_pca"] = rng.normal(size=(n, 2))
    return cells


def pictured(n: int = 24) -> AnnData:
    rng = np.random.default_rng(0)
    cells = AnnData(obs=pd.DataFrame({"stage": rng.choice(["early", "late"], n)}, index=[f"c{i}" for i in range(n)]))
    images = rng.integers(0, 255, (n, 1, 8, 8)).astype(np.uint8)
    set_images(cells, images, channel_names=["DNA"], masks=images[:, 0] > 50)
    return cells


ROWS = np.array([50, 3, 7, 8, 20, 33, 41, 5, 59, 11, 12, 40])


@pytest.fixture(scope="module")
def first() -> tuple[lc.VAE, AnnData]:
    """A fitted model and its cells; tests must not change them."""
    cells = counted()
    return lc.VAE(3, width=8, objective="beta=2", batch_key="plate").fit(cells, rng=0, **FIT), cells


@pytest.mark.parametrize("rows", [ROWS, np.arange(60), np.arange(30, 60)], ids=["some", "all", "half"])
def test_the_second_model_has_seen_exactly_the_cells_asked_for(first, rows: np.ndarray) -> None:
    model, cells = first
    fresh = fit_rows(cells, model, rows, fit=FIT, seed=1)
    np.testing.assert_array_equal(fresh.seen(cells), np.isin(np.arange(60), rows))
    assert fresh.report_["n_train"] + fresh.report_["n_held_out"] == len(rows)
    assert fresh.report_["seed"] == 1


def test_its_settings_are_those_of_the_first_whose_weights_stay(first) -> None:
    model, cells = first
    before = model.sha256()
    fresh = fit_rows(cells, model, ROWS, fit=FIT, seed=0)
    assert fresh is not model
    assert model.sha256() == before
    assert (fresh.n_latent, fresh.width, fresh.objective, fresh.batch_key) == (3, 8, model.objective, "plate")
    assert len(fresh.history_) == 2
    assert fresh.sha256() != before


def test_a_model_that_is_not_fitted_gives_its_settings_and_stays_so() -> None:
    cells = counted()
    model = lc.VAE(2, width=8, factors=lc.Factors(guided=["stage"], nuisance=["plate"]))
    fresh = fit_rows(cells, model, np.arange(40), fit=FIT, seed=0)
    assert fresh.factors == model.factors
    assert list(fresh.read_factors(cells)) == ["stage"]
    with pytest.raises(InputError, match="not been fitted"):
        _ = model.schema_


def test_cells_not_asked_for_change_nothing_about_the_model() -> None:
    cells, model = counted(), lc.VAE(2, width=8)
    changed = cells.copy()
    asked_for = np.isin(np.arange(60), ROWS)
    changed.X = sp.csr_matrix(np.where(asked_for[:, None], cells.X.toarray(), 90).astype(np.float32))
    expected = fit_rows(cells, model, ROWS, fit=FIT, seed=0)
    assert fit_rows(changed, model, ROWS, fit=FIT, seed=0).sha256() == expected.sha256()
    assert fit_rows(cells, model, ROWS[::-1], fit=FIT, seed=0).sha256() == expected.sha256()
    assert fit_rows(cells, model, ROWS, fit=FIT, seed=1).sha256() != expected.sha256()


def test_all_cells_are_fitted_as_by_fit_itself(first) -> None:
    model, cells = first
    assert fit_rows(cells, model, np.arange(60), fit=FIT, seed=0).sha256() == model.sha256()


@pytest.mark.parametrize("make", [counted, pictured])
def test_the_cells_are_left_as_they_were_and_their_measurements_shared(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = make()
    cells.layers["raw"] = cells.X.copy() if cells.X is not None else np.empty((cells.n_obs, 0))
    before = cells.copy()
    given = []
    original = lc.VAE.fit

    def spied(self: lc.VAE, shared: AnnData, **options: Any) -> lc.VAE:
        given.append(shared)
        return original(self, shared, **options)

    monkeypatch.setattr(lc.VAE, "fit", spied)
    model = fit_rows(cells, lc.VAE(2, width=4), np.arange(20), fit=FIT, seed=0)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert set(cells.obsm) == set(before.obsm)
    assert set(cells.uns) == set(before.uns)
    if cells.X is None:
        assert np.shares_memory(given[0].obsm["images"], cells.obsm["images"])
        assert np.shares_memory(given[0].obsm["masks"], cells.obsm["masks"])
        assert model.names_ == ["DNA"]
        assert model.schema_.masked
    else:
        assert np.shares_memory(given[0].X.data, cells.X.data)
        assert np.shares_memory(given[0].layers["raw"].data, cells.layers["raw"].data)


def test_a_layer_is_read_as_by_the_first() -> None:
    cells = counted()
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X * 0.5
    fresh = fit_rows(cells, lc.VAE(2, width=8, layer="counts"), ROWS, fit=FIT, seed=0)
    assert fresh.modality_ == "counts"
    np.testing.assert_array_equal(fresh.seen(cells), np.isin(np.arange(60), ROWS))


# kept in a folder


def test_a_model_that_is_stored_is_read_and_not_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first) -> None:
    model, cells = first
    fitted = fit_rows(cells, model, ROWS, fit=FIT, seed=0, stored=tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half"]

    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(lc.VAE, "fit", refuse)
    read = fit_rows(cells, model, ROWS, fit=FIT, seed=0, stored=tmp_path / "half")
    assert read.sha256() == fitted.sha256()
    np.testing.assert_array_equal(read.seen(cells), fitted.seen(cells))


def stopped_after(epochs: int, file: Path, identity: dict[str, Any], _: Any, **__: Any) -> Hooks:
    """Hooks that interrupt the fit after some epochs, each of which was saved."""

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] + 1 == epochs:
            raise KeyboardInterrupt

    return Hooks(file, identity, on_epoch, every=0)


def test_an_interrupted_fit_goes_on_and_leaves_the_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first
) -> None:
    model, cells = first
    options = {**FIT, "epochs": 5}
    expected = fit_rows(cells, model, ROWS, fit=options, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr("latentcell.model.fit.Hooks", partial(stopped_after, 3))
        with pytest.raises(KeyboardInterrupt):
            fit_rows(cells, model, ROWS, fit=options, seed=0, stored=tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["half.checkpoint"]
    with pytest.raises(InputError, match="another fit"):
        fit_rows(cells, model, ROWS[:-1], fit=options, seed=0, stored=tmp_path / "half")
    resumed = fit_rows(cells, model, ROWS, fit=options, seed=0, stored=tmp_path / "half")
    assert resumed.sha256() == expected.sha256()
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first) -> None:
    monkeypatch.chdir(tmp_path)
    fit_rows(first[1], first[0], ROWS, fit=FIT, seed=0)
    assert not list(tmp_path.iterdir())
