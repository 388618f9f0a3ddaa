"""Counts too large for memory: read by rows from zarr and h5ad, for every use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import latentcell as lc
from latentcell.cells import stores
from latentcell.cells.batches import read_ahead
from latentcell.cells.images import is_sparse, on_disk, take_rows
from latentcell.errors import InputError


@pytest.fixture(scope="module")
def cells() -> AnnData:
    simulated = lc.cells.simulate.counts(300, 40, rng=0)
    return AnnData(sp.csr_matrix(simulated.X), obs=simulated.obs, var=simulated.var)


@pytest.fixture(scope="module")
def model(cells: AnnData) -> lc.VAE:
    return lc.VAE(3, width=16).fit(cells, epochs=2, rng=0)


@pytest.fixture(params=["sparse.zarr", "sparse.h5ad", "dense.zarr", "dense.h5ad"])
def lying(request: pytest.FixtureRequest, cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnnData:
    """The cells as a file whose matrix stays on disk."""
    path = tmp_path / request.param
    written = cells.copy() if "sparse" in request.param else AnnData(cells.X.toarray(), obs=cells.obs, var=cells.var)
    (lc.cells.write_zarr if path.suffix == ".zarr" else lc.cells.write_h5ad)(written, path)
    monkeypatch.setattr(stores, "LAZY_BYTES", 100)
    return lc.read(path)


def test_a_large_matrix_stays_on_disk(lying: AnnData, cells: AnnData) -> None:
    assert on_disk(lying.X)
    rows = np.array([7, 3, 3, 250])
    read = take_rows(lying.X, rows)
    assert sp.issparse(read) == is_sparse(lying.X)
    np.testing.assert_array_equal(read.toarray() if sp.issparse(read) else read, cells.X[rows].toarray())


def test_codes_of_cells_on_disk_are_those_of_cells_in_memory(lying: AnnData, cells: AnnData, model: lc.VAE) -> None:
    found, expected = model.encode(lying), model.encode(cells)
    np.testing.assert_array_equal(found.mu, expected.mu)
    np.testing.assert_array_equal(found.var, expected.var)
    np.testing.assert_array_equal(model.seen(lying), model.seen(cells))


def test_a_model_fits_cells_on_disk(lying: AnnData, cells: AnnData, model: lc.VAE) -> None:
    fitted = lc.VAE(3, width=16).fit(lying, epochs=2, rng=0)
    assert fitted.modality_ == "counts"
    # minibatches are mixed differently from disk
    assert fitted.report_["held_out_elbo"] == pytest.approx(model.report_["held_out_elbo"], rel=0.02)


def test_genes_on_disk_in_another_order_are_found_by_name(lying: AnnData, cells: AnnData) -> None:
    order = np.random.default_rng(0).permutation(cells.n_vars)
    model = lc.VAE(3, width=16).fit(cells[:, order].copy(), epochs=1, rng=0)
    np.testing.assert_allclose(model.encode(lying).mu, model.encode(cells).mu, atol=1e-6)


def test_values_on_disk_that_no_count_can_have_are_refused_before_a_fit(
    cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = cells.copy()
    broken.X.data[100] = np.nan
    path = tmp_path / "broken.zarr"
    lc.cells.write_zarr(broken, path)
    monkeypatch.setattr(stores, "LAZY_BYTES", 100)
    with pytest.raises(InputError):
        lc.VAE(3).fit(lc.read(path), epochs=1, rng=0)


def test_reading_ahead_keeps_order_and_raises_what_reading_raises() -> None:
    assert list(read_ahead(iter([1, 2, 3]))) == [1, 2, 3]

    def failing():
        yield 1
        raise InputError("damaged")

    read = read_ahead(failing())
    assert next(read) == 1
    with pytest.raises(InputError, match="damaged"):
        next(read)
