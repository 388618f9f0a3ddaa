"""Whole fits: the same with compiled loops and without, however counts are stored, and after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from tiny import SETTINGS, count_cells, image_cells, profile_cells

import latentcell as lc
from latentcell.model.training import Hooks

LIKELIHOODS = ("nb", "zinb", "poisson")


@pytest.fixture(autouse=True)
def _kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTCELL_KERNELS", raising=False)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Counts with unequal library sizes; tests must not change them."""
    return lc.cells.simulate.counts(200, 50, rng=0)


def fitted(cells: AnnData, *, epochs: int = 3, checkpoint: Path | None = None, **options) -> lc.VAE:
    options = {"n_latent": 4} | options
    return lc.VAE(**options).fit(cells, epochs=epochs, settings=SETTINGS, checkpoint=checkpoint, rng=0)


def check_alike(one: lc.VAE, other: lc.VAE, cells: AnnData) -> None:
    history = [model.history_.drop(columns="seconds") for model in (one, other)]
    assert list(history[0].columns) == list(history[1].columns)
    assert not (history[0]["loss"] == history[1]["loss"]).all()
    np.testing.assert_allclose(*history, rtol=1e-4, atol=1e-6)
    for a, b in zip(one.encode(cells), other.encode(cells), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert one.report_["held_out_nll"] == pytest.approx(other.report_["held_out_nll"], rel=1e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_fit_of_counts_is_the_same_with_kernels_on_and_off(likelihood: str, cells: AnnData, off: Callable) -> None:
    compiled = fitted(cells, likelihood=likelihood)
    plain = off(fitted, cells, likelihood=likelihood)
    check_alike(compiled, plain, cells)
    np.testing.assert_allclose(compiled.encode(cells).mu, off(compiled.encode, cells).mu, atol=1e-5)


def test_a_guided_fit_with_batches_is_the_same_with_kernels_on_and_off(off: Callable) -> None:
    batches = lc.cells.simulate.counts(150, 40, n_batches=2, rng=1)
    options = {"batch_key": "batch", "factors": lc.Factors(guided=["programme_3"]), "objective": "tc=4"}
    check_alike(fitted(batches, **options), off(fitted, batches, **options), batches)


def test_a_fit_of_profiles_is_the_same_with_kernels_on_and_off(off: Callable) -> None:
    profiles = profile_cells(100, 9)
    check_alike(fitted(profiles), off(fitted, profiles), profiles)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_model_saved_with_kernels_on_reads_the_same_with_them_off(
    likelihood: str, cells: AnnData, off: Callable, tmp_path: Path
) -> None:
    model = fitted(cells, likelihood=likelihood)
    model.save(tmp_path / "model")
    loaded = lc.VAE.load(tmp_path / "model")
    assert loaded.sha256() == model.sha256()
    np.testing.assert_array_equal(loaded.encode(cells).mu, model.encode(cells).mu)
    plain = off(lc.VAE.load, tmp_path / "model")
    np.testing.assert_allclose(off(plain.encode, cells).mu, model.encode(cells).mu, atol=1e-5)
    np.testing.assert_allclose(plain.reconstruct(cells), model.reconstruct(cells), rtol=1e-4, atol=1e-5)


def unsorted(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with the values of each row in falling order of the gene."""
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)])
    mixed = sp.csr_matrix((matrix.data[order], matrix.indices[order], matrix.indptr), shape=matrix.shape)
    assert not mixed.has_sorted_indices
    return mixed


def long_indices(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with 64-bit indices, as files of many cells have."""
    wide = matrix.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    return wide


STORES: dict[str, Callable[[sp.csr_matrix], object]] = {
    "dense_float32": lambda m: m.toarray().astype(np.float32),
    "dense_float64": lambda m: m.toarray().astype(np.float64),
    "dense_int64": lambda m: m.toarray().astype(np.int64),
    "dense_uint16": lambda m: m.toarray().astype(np.uint16),
    "dense_column_major": lambda m: np.asfortranarray(m.toarray()),
    "csr_float64": lambda m: m.astype(np.float64),
    "csr_int32": lambda m: m.astype(np.int32),
    "csr_int64": lambda m: m.astype(np.int64),
    "csr_long_indices": long_indices,
    "csr_array": sp.csr_array,
    "csc_float32": lambda m: m.tocsc(),
    "csc_int64": lambda m: m.astype(np.int64).tocsc(),
}


def stored_as(cells: AnnData, matrix: object) -> AnnData:
    return AnnData(matrix, obs=cells.obs.copy(), var=cells.var.copy())


@pytest.fixture(scope="module")
def from_csr(cells: AnnData) -> lc.VAE:
    """The model of the cells as simulated."""
    return fitted(cells)


@pytest.mark.parametrize("store", STORES)
def test_the_model_is_bitwise_the_same_however_counts_are_stored(store: str, cells: AnnData, from_csr: lc.VAE) -> None:
    stored = stored_as(cells, STORES[store](cells.X))
    model = fitted(stored)
    assert model.sha256() == from_csr.sha256()
    for a, b in zip(model.encode(stored), from_csr.encode(cells), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_model_is_the_same_where_genes_are_not_in_order(cells: AnnData, from_csr: lc.VAE) -> None:
    mixed = stored_as(cells, unsorted(cells.X))
    model = fitted(mixed)
    np.testing.assert_allclose(model.encode(mixed).mu, from_csr.encode(cells).mu, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "zinb"])
def test_stored_zeros_do_not_change_the_model(likelihood: str, cells: AnnData) -> None:
    """As arrays of filtered or corrected counts hold them."""
    matrix = cells.X.copy()
    matrix.data[::3] = 0
    without = matrix.copy()
    without.eliminate_zeros()
    models = [fitted(stored_as(cells, each), likelihood=likelihood) for each in (matrix, without)]
    np.testing.assert_allclose(*[model.encode(stored_as(cells, without)).mu for model in models], atol=1e-4)


def test_counts_that_are_stored_in_parts_count_as_their_sum(cells: AnnData, from_csr: lc.VAE) -> None:
    matrix = cells.X
    ones = (matrix.data >= 2).astype(np.float32)
    data = np.stack([matrix.data - ones, ones], 1).ravel()
    parts = sp.csr_matrix((data, np.repeat(matrix.indices, 2), 2 * matrix.indptr), shape=matrix.shape)
    np.testing.assert_array_equal(parts.toarray(), matrix.toarray())
    np.testing.assert_allclose(
        from_csr.encode(stored_as(cells, parts)).mu, from_csr.encode(cells).mu, atol=1e-4, rtol=1e-4
    )


def stop_after(epochs: int) -> Callable:
    """An `on_epoch` that interrupts the fit like Ctrl-C when this many epochs are done."""

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] + 1 == epochs:
            raise KeyboardInterrupt

    return on_epoch


def large_and_strided(model: lc.VAE) -> int:
    """Number of weights that the optimiser moves in a memory order of their own."""
    return sum(each.numel() >= 8192 and not each.is_contiguous() for each in model._module.parameters())


WIDE = {
    "images": (lambda: image_cells(24, (16, 16)), {"width": 16}),
    "images_with_masks": (lambda: image_cells(24, (16, 16), masks=True), {"width": 16}),
    "volumes": (lambda: image_cells(20, (4, 10, 10)), {"width": 16}),
    "counts": (lambda: count_cells(60, 1100), {"width": 8}),
    "counts_with_extra_zeros": (lambda: count_cells(60, 1100), {"width": 8, "likelihood": "zinb"}),
    "counts_with_a_critic": (lambda: count_cells(60, 1100), {"width": 8, "objective": "factorvae=5"}),
}


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("path", ["compiled", "plain"])
def test_an_interrupted_fit_of_strided_weights_goes_on_exactly(
    kind: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTCELL_KERNELS", "auto" if path == "compiled" else "off")
    make, options = WIDE[kind]
    cells = make()
    expected = fitted(cells, epochs=4, n_latent=2, **options)
    assert large_and_strided(expected) > 0
    again = partial(fitted, cells, epochs=4, checkpoint=tmp_path / "c", n_latent=2, **options)
    with monkeypatch.context() as patch:
        patch.setattr(
            "latentcell.model.fit.Hooks", lambda file, identity, _, **__: Hooks(file, identity, stop_after(3), every=0)
        )
        with pytest.raises(KeyboardInterrupt):
            again()
    assert (tmp_path / "c").exists()
    resumed = again()
    assert len(resumed.history_) == 4
    assert resumed.sha256() == expected.sha256()
    np.testing.assert_array_equal(resumed.encode(cells).mu, expected.encode(cells).mu)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_fit_is_bitwise_repeatable(likelihood: str, cells: AnnData) -> None:
    first, second = (fitted(cells, likelihood=likelihood) for _ in range(2))
    assert first.sha256() == second.sha256()


def test_a_fit_leaves_the_cells_as_they_were(cells: AnnData) -> None:
    before = cells.X.copy()
    fitted(cells)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(cells.X, name), getattr(before, name))


def test_fitting_with_kernels_leaves_the_number_of_threads_alone(cells: AnnData) -> None:
    before = torch.get_num_threads()
    fitted(cells, epochs=1)
    assert torch.get_num_threads() == before
