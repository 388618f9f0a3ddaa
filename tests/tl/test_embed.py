"""Embedding writes what its docstring says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData

import latentcell as lc
from latentcell.errors import InputError
from latentcell.model.settings import Settings


@pytest.fixture(scope="module")
def fitted() -> tuple[lc.VAE, AnnData]:
    rng = np.random.default_rng(0)
    cells = AnnData(rng.poisson(np.exp(rng.normal(size=(40, 1)) + rng.normal(size=8)) + 1).astype(np.float32))
    model = lc.VAE(n_latent=3, width=8).fit(cells, epochs=2, settings=Settings(batch_size=16, threads=1), rng=0)
    return model, cells


def test_embed_writes_codes_terms_and_provenance(fitted) -> None:
    model, cells = fitted[0], fitted[1].copy()
    assert lc.tl.embed(cells, model) is None
    latent, terms = model.encode(cells), model.elbo(cells, rng=0)
    np.testing.assert_array_equal(cells.obsm["vae"], latent.mu)
    np.testing.assert_array_equal(cells.obsm["vae_var"], latent.var)
    assert cells.obsm["vae"].dtype == cells.obsm["vae_var"].dtype == np.float32
    for term in ("elbo", "log_px", "kl"):
        assert cells.obs[f"vae_{term}"].dtype == np.float32
        np.testing.assert_array_equal(cells.obs[f"vae_{term}"], terms[term].astype(np.float32))
    provenance = cells.uns["vae"]
    assert provenance["model_sha256"] == model.sha256()
    assert provenance["params"]["n_latent"] == 3
    assert provenance["rng"]["fit"] == 0
    assert set(provenance) == {"params", "versions", "rng", "model_sha256", "var_names_sha256"}
    np.testing.assert_array_equal(cells.obs["vae_seen"], model.seen(cells))
    assert set(cells.obs) == {"vae_elbo", "vae_log_px", "vae_kl", "vae_seen"}
    assert set(cells.obsm) == {"vae", "vae_var"}


def test_a_copy_leaves_the_cells_alone(fitted) -> None:
    model, cells = fitted
    annotated = lc.tl.embed(cells, model, copy=True)
    assert "vae" in annotated.obsm
    assert not cells.obsm
    assert not cells.uns
    assert cells.obs.columns.empty


def test_two_embeddings_stand_side_by_side(fitted) -> None:
    model, cells = fitted[0], fitted[1].copy()
    lc.tl.embed(cells, model)
    lc.tl.embed(cells, model, key_added="second", rng=1)
    np.testing.assert_array_equal(cells.obsm["vae"], cells.obsm["second"])
    assert not np.array_equal(cells.obs["vae_log_px"], cells.obs["second_log_px"])
    np.testing.assert_array_equal(cells.obs["vae_kl"], cells.obs["second_kl"])


def test_embedding_again_gives_the_same(fitted) -> None:
    model, cells = fitted[0], fitted[1].copy()
    lc.tl.embed(cells, model)
    first = cells.copy()
    lc.tl.embed(cells, model)
    np.testing.assert_array_equal(first.obsm["vae"], cells.obsm["vae"])
    np.testing.assert_array_equal(first.obs["vae_elbo"], cells.obs["vae_elbo"])


@pytest.mark.parametrize("key", ["", "a/b"])
def test_keys_that_cannot_be_stored_are_refused_before_anything_is_written(fitted, key: str) -> None:
    model, cells = fitted[0], fitted[1].copy()
    with pytest.raises(InputError, match="key_added"):
        lc.tl.embed(cells, model, key_added=key)
    assert not cells.obsm


def test_cells_that_do_not_match_are_refused_before_anything_is_written(fitted) -> None:
    model, cells = fitted
    other = cells[:, :5].copy()
    with pytest.raises(InputError, match="3 are missing"):
        lc.tl.embed(other, model)
    assert not other.obsm
    assert other.obs.columns.empty


def test_a_view_of_cells_can_be_embedded(fitted) -> None:
    model, cells = fitted
    part = cells[5:15]
    annotated = lc.tl.embed(part, model, copy=True)
    np.testing.assert_allclose(annotated.obsm["vae"], model.encode(cells).mu[5:15], rtol=1e-4, atol=1e-5)


# changes announced by anndata and zarr
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding", "ignore:Consolidated metadata")
@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_embedded_cells_survive_writing_and_reading(fitted, tmp_path: Path, ending: str) -> None:
    cells = lc.tl.embed(fitted[1], fitted[0], copy=True, rng=np.random.default_rng(3))
    file = tmp_path / f"cells.{ending}"
    with anndata.settings.override(zarr_write_format=3):
        getattr(cells, f"write_{ending}")(file)
    back = getattr(anndata, f"read_{ending}")(file)
    np.testing.assert_array_equal(back.obsm["vae"], cells.obsm["vae"])
    assert back.uns["vae"]["model_sha256"] == cells.uns["vae"]["model_sha256"]
    assert back.uns["vae"]["params"]["objective"]["name"] == "ELBO"
    assert back.obs["vae_elbo"].dtype == np.float32


def test_a_loaded_model_leaves_the_same_provenance(fitted, tmp_path: Path) -> None:
    model, cells = fitted
    model.save(tmp_path / "model")
    ours = lc.tl.embed(cells, model, copy=True)
    theirs = lc.tl.embed(cells, lc.VAE.load(tmp_path / "model"), copy=True)
    assert ours.uns["vae"] == theirs.uns["vae"]
