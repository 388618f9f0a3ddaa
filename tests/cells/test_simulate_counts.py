"""Simulated counts: the stated distribution, around the stated mean."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from latentcell.cells import simulate
from latentcell.cells.simulate.expression import negative_binomial
from latentcell.errors import InputError


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return simulate.counts(1500, 200, n_batches=2, rng=0)


@pytest.mark.parametrize("dispersion", [0.0, 0.2, 2.0])
def test_negative_binomial_has_the_closed_form_mean_and_variance(dispersion):
    mean = np.array([0.3, 4.0, 50.0])
    drawn = negative_binomial(np.tile(mean, (60_000, 1)), dispersion, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), mean, rtol=0.04)
    np.testing.assert_allclose(drawn.var(axis=0), mean + dispersion * mean**2, rtol=0.08)


def test_counts_scatter_around_the_expected_expression_with_the_stated_dispersion(cells):
    mean = simulate.expected_expression(cells) * cells.obs["library_size"].to_numpy()[:, None]
    residual = (cells.X.toarray() - mean) / np.sqrt(mean + 0.2 * mean**2)
    assert abs(residual.mean()) < 0.01
    assert residual.var() == pytest.approx(1, abs=0.05)


def test_counts_are_sparse_whole_numbers_with_readable_names(cells):
    assert sp.issparse(cells.X)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert (cells.X.data == np.round(cells.X.data)).all()
    assert cells.var_names[0] == "gene_0001"
    assert cells.obs["library_size"].median() == pytest.approx(5000, rel=0.05)


def test_the_first_two_programmes_are_the_cell_cycle(cells):
    angle = np.arctan2(cells.obs["programme_2"], cells.obs["programme_1"]) % (2 * np.pi)
    np.testing.assert_allclose(angle, 2 * np.pi * cells.obs["phase"], atol=1e-9)
    cyclic = cells.varm["loadings"][["programme_1", "programme_2"]].to_numpy() != 0
    assert (cyclic[:, 0] == cyclic[:, 1]).all()


def test_raising_a_programme_multiplies_its_genes_by_the_loadings(cells):
    before = np.log(simulate.expected_expression(cells))
    raised = cells.copy()
    raised.obs["programme_3"] += 1
    change = np.log(simulate.expected_expression(raised)) - before
    centred = change - change[:, [0]]
    loading = cells.varm["loadings"]["programme_3"].to_numpy()
    np.testing.assert_allclose(centred, np.tile(loading - loading[0], (cells.n_obs, 1)), atol=1e-9)


def test_batches_differ_by_their_effects_and_a_single_batch_has_none(cells):
    assert (cells.varm["batch_effects"]["batch_1"] == 0).all()
    assert cells.varm["batch_effects"]["batch_2"].std() == pytest.approx(0.3, abs=0.06)
    assert (simulate.counts(5, 20, rng=0).varm["batch_effects"].to_numpy() == 0).all()


def test_cell_types_and_seeds_are_reproducible(cells):
    again, other = simulate.counts(1500, 200, n_batches=2, rng=0), simulate.counts(1500, 200, n_batches=2, rng=1)
    assert (again.X != cells.X).nnz == 0
    assert (other.X != cells.X).nnz > 0
    assert cells.obs["cell_type"].nunique() == 3


def test_no_programmes_leave_only_types_and_noise():
    cells = simulate.counts(20, 30, n_programmes=0, dispersion=np.zeros(30), rng=0)
    shares = simulate.expected_expression(cells)
    assert len(np.unique(shares.round(12), axis=0)) == cells.obs["cell_type"].nunique()


def test_simulated_counts_survive_h5ad(cells, tmp_path: Path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (back.X != cells.X).nnz == 0
    pd.testing.assert_frame_equal(back.varm["loadings"], cells.varm["loadings"])
    np.testing.assert_allclose(simulate.expected_expression(back), simulate.expected_expression(cells))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate.counts(-1), "n=-1"),
        (lambda: simulate.counts(5, 3), "n_genes=3"),
        (lambda: simulate.counts(5, n_programmes=1), "cell cycle"),
        (lambda: simulate.counts(5, library_size=0), "library_size=0"),
        (lambda: simulate.counts(5, dispersion=-1), "dispersion"),
        (lambda: simulate.counts(5, dispersion=[0.1, 0.2]), "one per gene"),
        (lambda: simulate.counts(5, n_batches=0), "n_batches=0"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_course_of_counts_moves_every_cell_by_the_same_activity_and_keeps_types() -> None:
    cells = simulate.count_course(400, n_genes=40, rng=0)
    rise = cells.obs.groupby("stage", observed=True)[["programme_3", "programme_4"]].mean()
    np.testing.assert_allclose(rise.loc["late"] - rise.loc["early"], [5, 2], atol=0.25)
    assert list(cells.obs["stage"].cat.categories) == ["early", "middle", "late"]
    shares = cells.obs.groupby("stage", observed=True)["cell_type"].value_counts(normalize=True)
    assert shares.between(0.25, 0.42).all()
    expected = simulate.expected_expression(cells) * cells.obs["library_size"].to_numpy()[:, None]
    assert cells.X.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_a_course_of_counts_repeats_with_its_seed_and_refuses_times_that_do_not_increase() -> None:
    first, again = (simulate.count_course(20, (0, 0.3), n_genes=15, rng=1) for _ in range(2))
    assert (first.X != again.X).nnz == 0
    assert set(first.obs["stage"]) == {"time_0", "time_0.3"}
    with pytest.raises(InputError, match="increasing"):
        simulate.count_course(20, (0.5, 0.2), rng=1)
