"""The estimator: the same cell gives the same answer however it arrives."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from tiny import SETTINGS, count_cells, fit, image_cells, profile_cells

import latentcell as lc
from latentcell.cells.images import set_images
from latentcell.errors import InputError


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_codes_do_not_depend_on_order_subset_or_block(model_and_cells, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cells = model_and_cells
    whole = model.encode(cells)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    for rows in (order, np.array([3]), np.arange(5, 12)):
        part = model.encode(cells[rows])
        close(part.mu, whole.mu[rows])
        close(part.var, whole.var[rows])
    monkeypatch.setattr("latentcell.model.vae._BLOCK", 7)
    close(model.encode(cells).mu, whole.mu)


def test_codes_are_float32_with_positive_variance(model_and_cells) -> None:
    model, cells = model_and_cells
    mu, var = model.encode(cells)
    assert mu.shape == var.shape == (cells.n_obs, 3)
    assert mu.dtype == var.dtype == np.float32
    assert (var > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint16"])
@pytest.mark.parametrize("storage", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_counts_give_the_same_codes_in_any_dtype_and_storage(counts, dtype: str, storage) -> None:
    model, cells = counts
    expected = model.encode(cells).mu
    cells.X = storage(cells.X.toarray().astype(dtype))
    np.testing.assert_array_equal(model.encode(cells).mu, expected)


def test_images_give_the_same_codes_as_integers_and_floats(fitted) -> None:
    model, cells = fitted["images"]
    as_float = cells.copy()
    as_float.obsm["images"] = cells.obsm["images"].astype(np.float64)
    np.testing.assert_array_equal(model.encode(as_float).mu, model.encode(cells).mu)


@pytest.mark.parametrize("kind", ["counts", "profiles"])
@pytest.mark.parametrize("dense", [True, False])
def test_permuted_genes_are_put_in_order_exactly(fitted, kind: str, dense: bool) -> None:
    model, cells = fitted[kind]
    permuted = cells[:, np.random.default_rng(1).permutation(cells.n_vars)].copy()
    permuted.X = np.asarray(sp.csr_matrix(permuted.X).todense()) if dense else sp.csr_matrix(permuted.X)
    np.testing.assert_array_equal(model.encode(permuted).mu, model.encode(cells).mu)
    np.testing.assert_array_equal(model.reconstruct(permuted), model.reconstruct(cells))
    pd.testing.assert_frame_equal(model.elbo(permuted), model.elbo(cells))


@pytest.mark.parametrize("dense", [True, False])
def test_genes_unknown_to_the_model_change_nothing(counts, dense: bool) -> None:
    model, cells = counts
    extra = AnnData(sp.csr_matrix(np.full((cells.n_obs, 2), 50.0, dtype=np.float32)), obs=cells.obs)
    extra.var_names = ["unknown_1", "unknown_2"]
    more = AnnData(sp.hstack([extra.X, cells.X]).tocsr(), obs=cells.obs)
    more.var_names = [*extra.var_names, *cells.var_names]
    if dense:
        more.X = more.X.toarray()
    pd.testing.assert_frame_equal(model.elbo(more), model.elbo(cells))


def test_channels_in_another_order_are_put_in_order(fitted) -> None:
    model, cells = fitted["images"]
    swapped = AnnData(obs=cells.obs)
    set_images(swapped, cells.obsm["images"][:, ::-1], channel_names=["actin", "dna"])
    np.testing.assert_array_equal(model.encode(swapped).mu, model.encode(cells).mu)


def test_a_model_of_images_refuses_cells_without_images(fitted) -> None:
    model, _ = fitted["images"]
    with pytest.raises(InputError, match="images"):
        model.encode(count_cells())


def test_a_model_of_counts_reads_the_matrix_of_cells_that_also_have_images(counts) -> None:
    model, cells = counts
    expected = model.encode(cells).mu
    set_images(cells, np.zeros((cells.n_obs, 1, 8, 8), dtype=np.uint8))
    np.testing.assert_array_equal(model.encode(cells).mu, expected)


@pytest.mark.parametrize("size", [(14, 16), (5, 12, 13)], ids=["2d", "3d"])
@pytest.mark.parametrize("orientation", ["as_is", "augment", "align"])
def test_masked_images_and_volumes_fit_in_every_orientation(size: tuple[int, ...], orientation: str) -> None:
    cells = image_cells(12, size=size, masks=True)
    model = fit(cells, epochs=1, width=2, orientation=orientation)
    assert np.isfinite(model.elbo(cells)).all(axis=None)
    assert model.reconstruct(cells).shape == cells.obsm["images"].shape
    del cells.obsm["masks"]
    with pytest.raises(InputError, match="masks"):
        model.encode(cells)


def test_an_unseen_batch_warns_and_is_decoded_as_the_average() -> None:
    cells = count_cells()
    model = fit(cells, batch_key="plate")
    z = model.encode(cells).mu
    new = cells.copy()
    new.obs["plate"] = "p9"
    with pytest.warns(UserWarning, match="p9"):
        codes = model.encode(new).mu
    np.testing.assert_array_equal(codes, z)
    with pytest.warns(UserWarning, match="p9"):
        expression = model.normalized_expression(new)
    close(expression, model.decode(z, library_size=1e4))


def test_decoding_at_a_batch_level_that_does_not_exist_is_not_silent() -> None:
    model = fit(count_cells(), batch_key="plate")
    with pytest.warns(UserWarning, match="typo"):
        model.decode(np.zeros((1, 3)), batch="typo")


def test_batch_changes_the_decoded_cell_but_not_its_code() -> None:
    cells = count_cells()
    model = fit(cells, batch_key="plate", epochs=10)
    first, second = (model.decode(np.zeros((1, 3)), batch=level) for level in ("p1", "p2"))
    assert not np.allclose(first, second)
    each = model.decode(np.zeros((2, 3)), batch=["p1", "p2"])
    close(each, np.concatenate([first, second]))


def test_no_cells_have_no_codes(model_and_cells) -> None:
    model, cells = model_and_cells
    mu, var = model.encode(cells[:0])
    assert mu.shape == var.shape == (0, 3)


def test_excluded_cells_change_nothing_about_the_fit() -> None:
    """Not the weights, the scaling or the report: the same model comes out if their measurements are other ones."""
    cells = profile_cells()
    out = (cells.obs["stage"] == "late").to_numpy()
    changed = cells.copy()
    changed.X[out] = 1e3 * np.random.default_rng(9).normal(size=changed.X[out].shape)
    models = [fit(c, exclude={"stage": ["late"]}) for c in (cells, changed)]
    assert models[0].sha256() == models[1].sha256()
    assert models[0].schema_ == models[1].schema_
    assert models[0].report_["n_excluded"] == out.sum()


def test_groups_of_the_split_key_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = count_cells()
    cells.obs["donor"] = pd.Categorical([f"donor_{i % 7}" for i in range(cells.n_obs)])
    splits = []

    def spy(module, source, split, **options):
        splits.append(split)
        raise KeyboardInterrupt

    monkeypatch.setattr("latentcell.model.vae.fit_module", spy)
    with pytest.raises(KeyboardInterrupt):
        lc.VAE(2).fit(cells, split_key="donor", rng=0)
    donors = cells.obs["donor"].to_numpy()
    assert not set(donors[splits[0].train]) & set(donors[splits[0].held_out])
    assert len(splits[0].train) + len(splits[0].held_out) == cells.n_obs


def test_seen_knows_fitted_cells_by_their_measurements() -> None:
    cells = count_cells()
    model = fit(cells, exclude={"stage": ["late"]})
    expected = (cells.obs["stage"] != "late").to_numpy()
    np.testing.assert_array_equal(model.seen(cells), expected)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    other = cells[order, np.arange(cells.n_vars)[::-1].copy()].copy()
    other.obs_names = [f"renamed_{i}" for i in range(other.n_obs)]
    other.X = other.X.toarray().astype(np.float64)
    np.testing.assert_array_equal(model.seen(other), expected[order])
    assert not model.seen(count_cells(seed=5)).any()


def test_seen_knows_fitted_images() -> None:
    cells = image_cells()
    model = fit(cells, exclude={"stage": ["late"]}, epochs=1)
    np.testing.assert_array_equal(model.seen(cells), cells.obs["stage"] != "late")


def test_library_size_scales_decoded_counts(counts) -> None:
    model, _ = counts
    z = np.random.default_rng(0).normal(size=(4, 3))
    once, twice = (model.decode(z, library_size=size) for size in (100, 200))
    np.testing.assert_allclose(once.sum(1), 100, rtol=1e-4)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4)
    each = model.decode(z, library_size=np.array([1.0, 10.0, 100.0, 1000.0]))
    np.testing.assert_allclose(each.sum(1), [1, 10, 100, 1000], rtol=1e-4)
    np.testing.assert_allclose(model.decode(z).sum(1), model.schema_.library_size, rtol=1e-4)


def test_normalised_expression_sums_to_the_library_size(counts) -> None:
    model, cells = counts
    np.testing.assert_allclose(model.normalized_expression(cells).sum(1), 1e4, rtol=1e-4)


def test_reconstruction_has_each_cells_own_library_size(counts) -> None:
    model, cells = counts
    np.testing.assert_allclose(model.reconstruct(cells).sum(1), cells.X.toarray().sum(1), rtol=1e-4)


def test_noise_is_reproducible_by_its_seed(model_and_cells) -> None:
    model, cells = model_and_cells
    z = model.encode(cells).mu
    first, second, other = (model.decode(z, noise=True, rng=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(model.sample(3, noise=True, rng=1), model.sample(3, noise=True, rng=1))
    assert not np.array_equal(model.sample(3, rng=1), model.sample(3, rng=2))


def test_decoded_cells_are_in_stored_units(model_and_cells) -> None:
    model, cells = model_and_cells
    stored = model.measurements(cells)
    decoded = model.reconstruct(cells)
    assert decoded.shape == stored.shape
    assert decoded.dtype == np.float32
    spread = stored.max() - stored.min()
    assert abs(decoded.mean() - stored.mean()) < 0.5 * spread


def test_measurements_are_those_stored_where_nothing_is_turned(counts) -> None:
    model, cells = counts
    np.testing.assert_array_equal(model.measurements(cells[:, ::-1]), cells.X.toarray())


def test_per_cell_terms_add_up_and_repeat(model_and_cells) -> None:
    model, cells = model_and_cells
    terms = model.elbo(cells, rng=3)
    np.testing.assert_allclose(terms["elbo"], terms["log_px"] - terms["kl"], rtol=1e-5)
    assert (terms["kl"] >= 0).all()
    pd.testing.assert_frame_equal(terms, model.elbo(cells, rng=3))
    assert list(terms.index) == list(cells.obs_names)


def test_importance_nll_is_tighter_than_the_bound(model_and_cells) -> None:
    model, cells = model_and_cells
    nll = model.nll(cells, n_samples=50)
    assert (nll["ess"].between(1 - 1e-6, 50 + 1e-6)).all()
    assert -nll["nll"].mean() > model.elbo(cells)["elbo"].mean()


def test_the_report_is_json_and_complete(model_and_cells) -> None:
    model, cells = model_and_cells
    report = json.loads(json.dumps(model.report_, allow_nan=False))
    assert report == model.report_
    assert report["n_train"] + report["n_held_out"] + report["n_excluded"] == cells.n_obs
    assert len(report["latent"]["kl"]) == 3
    assert report["seed"] == 0
    assert report["held_out_elbo"] == pytest.approx(report["held_out_log_px"] - report["held_out_kl"], rel=1e-9)
    assert sorted(model.dimensions_) == [0, 1, 2]
    assert np.all(np.diff(model.latent_["kl"].to_numpy()[model.dimensions_]) <= 0)


def test_a_decoder_that_ignores_the_code_is_called_collapsed() -> None:
    cells = AnnData(np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32))
    model = lc.VAE(2, width=8, objective="beta=200").fit(cells, epochs=150, settings=SETTINGS, rng=0)
    assert model.report_["n_active"] == 0
    assert model.report_["verdict"].startswith("Collapsed")
    assert model.latent_["nll_change"].abs().max() < 0.05


IMAGE_LIKELIHOODS = [
    "gaussian",
    "student_t",
    "continuous_bernoulli",
    "discretized_logistic",
    "poisson_gaussian",
    "poisson_gaussian=2.2",
]


@pytest.mark.parametrize(
    ("make", "likelihood"),
    [*((count_cells, name) for name in ("nb", "zinb", "poisson")), (profile_cells, "student_t")]
    + [(image_cells, name) for name in IMAGE_LIKELIHOODS],
)
def test_every_likelihood_fits_decodes_and_scores(make, likelihood: str) -> None:
    cells = make()
    model = fit(cells, likelihood=likelihood, epochs=1)
    assert np.isfinite(model.elbo(cells)).all(axis=None)
    assert np.isfinite(model.reconstruct(cells)).all()
    assert np.isfinite(model.sample(5, noise=True, rng=0)).all()


def test_two_valued_images_are_taken_for_masks() -> None:
    cells = image_cells()
    cells.obsm["images"] = (255 * (cells.obsm["images"] > 60)).astype(np.uint8)
    model = fit(cells, orientation="as_is")
    assert model.report_["likelihood"] == "bernoulli"
    assert set(np.unique(model.sample(4, noise=True, rng=0))) <= {0.0, 255.0}


@pytest.mark.parametrize("unit", [1e-12, 1e6])
def test_the_unit_of_a_feature_does_not_matter(unit: float) -> None:
    cells = profile_cells()
    cells.X = cells.X.astype(np.float64)
    other = cells.copy()
    other.X[:, 1] *= unit
    close(fit(cells).encode(cells).mu, fit(other).encode(other).mu)


def test_a_feature_that_never_changes_is_allowed() -> None:
    cells = profile_cells()
    cells.X[:, 3] = 0.1
    model = fit(cells)
    assert np.isfinite(model.elbo(cells)).all(axis=None)
    np.testing.assert_allclose(model.reconstruct(cells)[:, 3], 0.1, atol=1.5)


def test_a_layer_is_read_instead_of_x() -> None:
    cells = count_cells()
    cells.layers["counts"] = cells.X.copy()
    expected = fit(cells).encode(cells).mu
    cells.X = np.log1p(cells.X)
    np.testing.assert_array_equal(fit(cells, layer="counts").encode(cells).mu, expected)
    with pytest.raises(InputError, match=r"no layer 'raw'.*'counts'"):
        fit(cells, layer="raw")


def test_fitting_does_not_change_the_cells(model_and_cells) -> None:
    _, cells = model_and_cells
    before = cells.copy()
    fit(cells, epochs=1)
    assert set(cells.obs.columns) == set(before.obs.columns)
    assert set(cells.obsm) == set(before.obsm)
    assert set(cells.uns) == set(before.uns)
    if cells.X is not None:
        assert abs(cells.X - before.X).max() == 0
    else:
        np.testing.assert_array_equal(cells.obsm["images"], before.obsm["images"])


def test_more_epochs_explain_held_out_cells_better() -> None:
    cells = count_cells(200)
    short, long = fit(cells, epochs=1), fit(cells, epochs=60)
    assert long.report_["held_out_nll"] < short.report_["held_out_nll"] - 1
    assert len(long.history_) <= 60
    assert long.history_["val_elbo"].max() == pytest.approx(long.report_["held_out_elbo"])


def test_torch_gradients_are_not_kept_after_encoding(counts) -> None:
    model, cells = counts
    model.encode(cells)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("likelihood", "modality"), [("auto", "counts"), ("gaussian", "profiles")])
def test_a_named_likelihood_decides_what_whole_numbers_are_taken_for(likelihood: str, modality: str) -> None:
    assert fit(count_cells(), likelihood=likelihood, epochs=1).modality_ == modality


def test_channels_without_names_are_taken_in_the_models_order() -> None:
    cells = image_cells()
    model = fit(cells)
    unnamed = cells.copy()
    del unnamed.uns["images"]
    np.testing.assert_array_equal(model.encode(unnamed).mu, model.encode(cells).mu)


def masked_cells() -> AnnData:
    """Bright discs on a bright, structured surrounding that the mask leaves out."""
    rng = np.random.default_rng(0)
    grid = np.hypot(*np.mgrid[-7.5:8:1, -7.5:8:1])
    radius = rng.uniform(2, 4, 80)
    masks = grid < radius[:, None, None]
    images = np.where(masks, 150, rng.integers(50, 250, (80, 16, 16)))[:, None].astype(np.uint8)
    cells = AnnData(obs={"radius": radius})
    set_images(cells, images, channel_names=["DNA"], masks=masks)
    return cells


def test_what_lies_outside_the_mask_does_not_change_the_code() -> None:
    cells = masked_cells()
    model = fit(cells, orientation="as_is")
    changed = cells.copy()
    far = np.ones((16, 16), dtype=bool)
    far[1:15, 1:15] = False
    changed.obsm["images"][:, :, far] = 255
    np.testing.assert_array_equal(model.encode(changed).mu, model.encode(cells).mu)


def test_a_masked_model_decodes_the_cells_region_and_background_outside() -> None:
    cells = masked_cells()
    model = lc.VAE(2, width=8, orientation="as_is").fit(cells, epochs=120, rng=0)
    decoded = model.reconstruct(cells)[:, 0]
    corner, centre = decoded[:, 0, 0], decoded[:, 8, 8]
    assert np.abs(corner - model.schema_.location[0]).max() < 20
    assert np.abs(centre - 150).mean() < 20
    area = (decoded > 75).sum((1, 2))
    assert np.corrcoef(area, cells.obs["radius"])[0, 1] > 0.8
