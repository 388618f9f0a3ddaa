"""One pass over the cells gives what encoding, ELBO and decoding give one by one, and reads no further than asked."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from tiny import fit, image_cells, profile_cells

import latentcell as lc
from latentcell.errors import InputError
from latentcell.model import vae
from latentcell.model.placing import Placed

UNNOISED = ("rows", "mu", "var", "kl", "residual")


def joined(blocks: list[Placed]) -> Placed:
    return Placed(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def placed(model: lc.VAE, cells: AnnData, *, rng: int = 0) -> Placed:
    return joined(list(model.place(cells, rng=rng)))


def scale(model: lc.VAE) -> np.ndarray:
    """Stored units per unit of the model, to be broadcast against measurements."""
    return np.asarray(model.schema_.scale, dtype=np.float32).reshape(-1, *[1] * (len(model.schema_.shape) - 1))


@pytest.fixture(scope="module")
def masked() -> tuple[lc.VAE, AnnData]:
    cells = image_cells(masks=True)
    return fit(cells, orientation="as_is"), cells


def test_cells_are_placed_in_order_where_encoding_places_them(model_and_cells) -> None:
    model, cells = model_and_cells
    found, latent = placed(model, cells), model.encode(cells)
    np.testing.assert_array_equal(found.rows, np.arange(cells.n_obs))
    np.testing.assert_array_equal(found.mu, latent.mu)
    np.testing.assert_array_equal(found.var, latent.var)
    assert {each.dtype for each in found[1:]} == {np.dtype(np.float32)}


@pytest.mark.parametrize("seed", [0, 5])
def test_terms_are_those_of_the_elbo_of_the_same_seed(model_and_cells, seed: int) -> None:
    model, cells = model_and_cells
    found, terms = placed(model, cells, rng=seed), model.elbo(cells, rng=seed)
    np.testing.assert_array_equal(found.log_px, terms["log_px"])
    np.testing.assert_array_equal(found.kl, terms["kl"])
    np.testing.assert_array_equal(found.log_px - found.kl, terms["elbo"])


def test_the_seed_moves_the_likelihood_and_nothing_else(model_and_cells) -> None:
    model, cells = model_and_cells
    first, second = placed(model, cells, rng=0), placed(model, cells, rng=1)
    assert not np.array_equal(first.log_px, second.log_px)
    for name in UNNOISED:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("size", [5, 16])
def test_where_blocks_are_cut_changes_no_code_and_no_residual(
    model_and_cells, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cells = model_and_cells
    whole = placed(model, cells)
    monkeypatch.setattr(vae, "_BLOCK", size)
    blocks = list(model.place(cells))
    assert [len(block.rows) for block in blocks[:-1]] == [size] * (-(-cells.n_obs // size) - 1)
    cut = joined(blocks)
    np.testing.assert_array_equal(cut.rows, whole.rows)
    for name in UNNOISED[1:]:
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["profiles", "images"])
def test_residuals_are_measured_minus_decoded_in_the_scale_of_the_model(fitted, kind: str) -> None:
    model, cells = fitted[kind]
    expected = (model.measurements(cells) - model.reconstruct(cells)) / scale(model)
    found = placed(model, cells).residual
    assert found.shape == (cells.n_obs, *model.schema_.shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found).mean() > 0.01


def test_residuals_of_counts_are_differences_of_square_roots_at_the_cells_own_library_size(counts) -> None:
    model, cells = counts
    expected = np.sqrt(model.measurements(cells)) - np.sqrt(model.reconstruct(cells))
    np.testing.assert_allclose(placed(model, cells).residual, expected, atol=1e-4)
    cells.X = cells.X * 4
    np.testing.assert_allclose(
        placed(model, cells).residual, np.sqrt(model.measurements(cells)) - np.sqrt(model.reconstruct(cells)), atol=1e-4
    )


def test_residuals_are_held_against_the_decoder_of_the_cells_own_batch() -> None:
    cells = profile_cells()
    cells.X[(cells.obs["plate"] == "p2").to_numpy()] += 3
    model = fit(cells, batch_key="plate", epochs=5)
    own = model.decode(model.encode(cells).mu, batch=cells.obs["plate"].to_numpy())
    other = model.decode(model.encode(cells).mu, batch=cells.obs["plate"].map({"p1": "p2", "p2": "p1"}).to_numpy())
    measured, found = model.measurements(cells), placed(model, cells).residual
    np.testing.assert_allclose(found, (measured - own) / scale(model), atol=1e-4)
    assert np.abs(found - (measured - other) / scale(model)).max() > 1e-2


def test_residuals_are_zero_outside_the_mask_of_a_cell_and_its_margin_and_only_there(masked) -> None:
    model, cells = masked
    region = model.schema_.source(cells).batch(np.arange(cells.n_obs)).mask.numpy() > 0
    inside = np.broadcast_to(region, (cells.n_obs, *model.schema_.shape))
    residual = placed(model, cells).residual
    assert 0.05 < (~inside).mean() < 0.95
    assert not residual[~inside].any()
    assert (residual[inside] != 0).all()


def test_what_lies_outside_the_mask_of_a_cell_changes_nothing(masked) -> None:
    model, cells = masked
    region = model.schema_.source(cells).batch(np.arange(cells.n_obs)).mask.numpy() > 0
    crowded = cells.copy()
    crowded.obsm["images"] = np.where(region, cells.obsm["images"], 255).astype(np.uint8)
    assert (crowded.obsm["images"] != cells.obsm["images"]).any()
    for before, after in zip(placed(model, cells), placed(model, crowded), strict=True):
        np.testing.assert_array_equal(after, before)


def test_blocks_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, fitted) -> None:
    model, cells = fitted["profiles"][0], fitted["profiles"][1].copy()
    cells.X[20, 2] = np.nan
    monkeypatch.setattr(vae, "_BLOCK", 8)
    blocks = model.place(cells)
    assert [next(blocks).rows[0] for _ in range(2)] == [0, 8]
    with pytest.raises(InputError, match="cell_20"):
        next(blocks)
