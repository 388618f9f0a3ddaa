"""The Integrated Cell: what it is told, what it draws, and that it says no."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import latentcell as lc
from latentcell.cells.images import channel_names, measured, with_channels
from latentcell.errors import InputError, NotFittedError
from latentcell.model.conditional import ConditionalModule, ConditionalNet
from latentcell.model.integrated import Shape
from latentcell.model.population import Population
from latentcell.model.settings import Settings
from latentcell.tl.coupling import average_nll

SETTINGS = Settings(threads=1)
REFERENCE = ["membrane", "DNA"]


def unfitted(**options) -> lc.IntegratedCell:
    given = {"structure_key": "structure", "n_latent": (3, 4), "width": 4} | options
    return lc.IntegratedCell(REFERENCE, "structure", **given)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Must not be changed."""
    return lc.cells.simulate.organisation(80, size=32, rng=0)


@pytest.fixture(scope="module")
def model(cells) -> lc.IntegratedCell:
    return unfitted().fit(cells, epochs=2, settings=SETTINGS, rng=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 20, 33), (4, 6, 16, 17)])
def test_networks_take_images_and_stacks_of_any_size(shape: tuple[int, ...]) -> None:
    net = ConditionalNet(shape, 5, n_told=7, width=4)
    x, told = torch.rand(3, *shape), torch.rand(3, 7)
    posterior = net.encode(x, told)
    assert posterior.mu.shape == (3, 5)
    assert net.decode(posterior.mu, x[:, 1:], told).shape == (3, 1, *shape[1:])


def test_the_drawing_depends_on_code_reference_and_structure() -> None:
    torch.manual_seed(0)
    net = ConditionalNet((3, 16, 16), 2, n_told=4, width=4)
    z, reference, told = torch.randn(1, 2), torch.rand(1, 2, 16, 16), torch.rand(1, 4)
    drawn = net.decode(z, reference, told)
    for other in ((z + 1, reference, told), (z, 1 - reference, told), (z, reference, told + 1)):
        assert (net.decode(*other) - drawn).abs().max() > 1e-4


@pytest.mark.parametrize("orientation", ["align", "as_is"])
def test_images_on_disk_stay_there_and_give_the_same_codes(cells, tmp_path: Path, orientation: str) -> None:
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(tmp_path / "images.zarr", data=cells.obsm["images"], chunks=(16, 3, 32, 32))
    lazy = ad.AnnData(obs=cells.obs.copy())
    lc.cells.set_images(lazy, stored, channel_names=cells.uns["images"]["channel_names"])
    part = with_channels(lazy, ["DNA", "membrane"])
    assert channel_names(part) == ["DNA", "membrane"]
    assert not isinstance(measured(part), np.ndarray)
    order = [list(cells.uns["images"]["channel_names"]).index(name) for name in ("DNA", "membrane")]
    for rows in (slice(3, 9), np.array([5, 2, 5])):
        np.testing.assert_array_equal(measured(part)[rows], cells.obsm["images"][rows][:, order])
    fitted = unfitted(orientation=orientation).fit(lazy, epochs=1, settings=SETTINGS, rng=0)
    for found, expected in zip(fitted.encode(lazy), fitted.encode(cells), strict=True):
        np.testing.assert_allclose(found.mu, expected.mu, atol=1e-5)
    again = unfitted(orientation=orientation).fit(lazy, epochs=1, settings=SETTINGS, rng=0)
    np.testing.assert_array_equal(again.encode(cells).shape.mu, fitted.encode(cells).shape.mu)


def test_each_structure_has_its_own_noise() -> None:
    module = ConditionalModule((2, 8, 8), 2, "gaussian", n_latent=2, n_told=3, width=4).train()
    batch = lc_batch(np.array([0, 1, 0, 1]))
    target, params = torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)
    target[1::2] = 3.0
    module.log_prob(batch, target, params)
    assert float(module.likelihood[0].variance) < 1e-3
    assert float(module.likelihood[1].variance) == pytest.approx(9.0)


def test_the_likelihood_of_a_pair_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    module = ConditionalModule((2, 8, 8), 2, "gaussian", n_latent=2, n_told=3, width=4).eval()
    batch, z = lc_batch(np.array([0, 1, 0, 1])), torch.randn(4, 2)
    whole = module.log_likelihood(batch, z)
    for i in range(4):
        part = lc_batch(np.array([0, 1, 0, 1]), slice(i, i + 1))
        torch.testing.assert_close(module.log_likelihood(part, z[i : i + 1]), whole[i : i + 1], rtol=1e-4, atol=1e-3)


def lc_batch(structure: np.ndarray, rows: slice = slice(None)):
    from latentcell.cells.batches import Batch

    n = len(structure)
    x = torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    told = torch.zeros(n, 3)
    told[torch.arange(n), torch.from_numpy(structure)] = 1
    told[:, 2] = 1
    return Batch(x[rows], None, told[rows], None, np.arange(n)[rows])


def test_codes_exist_for_what_each_cell_shows(model, cells) -> None:
    codes = model.encode(cells)
    assert codes.shape.mu.shape == (80, 3)
    assert codes.organisation.mu.shape == (80, 4, 4)
    shown = cells.obs["structure"].cat.codes.to_numpy()
    known = np.isfinite(codes.organisation.mu).all(2)
    order = [model.structures_.index(name) for name in cells.obs["structure"].cat.categories]
    assert (known[np.arange(80), np.asarray(order)[shown]]).all()
    assert known.sum() == 80


def test_codes_do_not_depend_on_other_cells_or_their_order(model, cells) -> None:
    whole, part = model.encode(cells), model.encode(cells[[9, 4, 30]].copy())
    np.testing.assert_allclose(part.organisation.mu, whole.organisation.mu[[9, 4, 30]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(part.shape.mu, whole.shape.mu[[9, 4, 30]], rtol=1e-4, atol=1e-5)


def test_embedding_writes_both_codes(model, cells) -> None:
    embedded = model.embed(cells.copy())
    codes = model.encode(cells)
    np.testing.assert_array_equal(embedded.obsm["shape"], codes.shape.mu)
    assert np.isfinite(embedded.obsm["organisation"]).all()
    assert (embedded.obsm["organisation_var"] > 0).all()


def test_sampled_cells_show_everything_and_repeat_with_their_seed(model) -> None:
    a, b = model.sample(3, rng=1), model.sample(3, rng=1)
    assert a.uns["images"]["channel_names"] == [*REFERENCE, *model.structures_]
    assert a.obsm["images"].shape == (3, 6, 32, 32)
    np.testing.assert_array_equal(a.obsm["images"], b.obsm["images"])
    assert not np.array_equal(a.obsm["images"], model.sample(3, rng=2).obsm["images"])


def test_predicted_cells_keep_their_reference_and_get_all_structures(model, cells) -> None:
    few = cells[:5].copy()
    predicted = model.predict(few, ["beads", "cortex"], n_draws=3, rng=0)
    assert predicted.uns["images"]["channel_names"] == [*REFERENCE, "beads", "cortex"]
    inside = few.obsm["masks"][:, None] > 0
    np.testing.assert_allclose((predicted.obsm["images"][:, :2] - few.obsm["images"][:, :2]) * inside, 0, atol=0.5)
    assert predicted.obsm["spread"].shape == (5, 2, 32, 32)
    assert (predicted.obsm["spread"] > 0).any()
    # what the target channel shows is not looked at
    blind = few.copy()
    blind.obsm["images"][:, 2] = 0
    np.testing.assert_array_equal(model.predict(blind, ["beads", "cortex"], n_draws=3, rng=0).obsm["images"],
                                  predicted.obsm["images"])  # fmt: skip


def test_one_draw_has_no_spread(model, cells) -> None:
    assert model.predict(cells[:2].copy(), n_draws=1).obsm["spread"].max() < 1e-2


def test_hiding_a_channel_makes_the_likelihood_blind_to_it(model, cells) -> None:
    few = cells[:6].copy()
    changed = few.copy()
    changed.obsm["images"][:, 1] = 5 + changed.obsm["images"][:, 1][::-1]
    told = {"told": ["membrane"], "n_samples": 3}
    np.testing.assert_allclose(model.nll(few, **told)["nll"], model.nll(changed, **told)["nll"], rtol=1e-6)
    assert not np.allclose(model.nll(few, n_samples=3)["nll"], model.nll(changed, n_samples=3)["nll"], rtol=1e-6)


def test_the_likelihood_of_the_average_image_is_the_gaussian_one(model, cells) -> None:
    few = cells[:4].copy()
    (mean, variance), source = model.averages_, model._source(few, model.pairs(few))
    x, s = source.batch(np.arange(4)).x[:, 0].numpy(), model.pairs(few).structure
    mask = source.batch(np.arange(4)).mask[:, 0].numpy() > 0
    expected = [
        -np.sum(-0.5 * (x[i] - mean[s[i]])[mask[i]] ** 2 / variance[s[i]] - 0.5 * np.log(2 * np.pi * variance[s[i]]))
        for i in range(4)
    ]
    np.testing.assert_allclose(average_nll(model, few), expected, rtol=1e-4)


def test_a_saved_model_is_the_same_when_loaded(model, cells, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    loaded = lc.IntegratedCell.load(tmp_path / "m")
    few = cells[:6].copy()
    for a, b in zip(model.encode(few).organisation, loaded.encode(few).organisation, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.sample(2, rng=0).obsm["images"], loaded.sample(2, rng=0).obsm["images"])
    np.testing.assert_array_equal(average_nll(model, few), average_nll(loaded, few))
    assert loaded.report_["structures"] == model.structures_


def test_the_same_seed_gives_the_same_model(model, cells) -> None:
    again = unfitted().fit(cells, epochs=2, settings=SETTINGS, rng=0)
    np.testing.assert_array_equal(again.encode(cells).organisation.mu, model.encode(cells).organisation.mu)


def test_an_interrupted_fit_goes_on_where_it_was(cells, model, tmp_path: Path, monkeypatch) -> None:
    from latentcell.model import fit, training

    monkeypatch.setattr(fit, "Hooks", partial(training.Hooks, every=0.0))
    kept, calls = training._held_out, []

    def stopping(module, *rest):
        if isinstance(module, ConditionalModule):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return kept(module, *rest)

    monkeypatch.setattr(training, "_held_out", stopping)
    options = {"epochs": 2, "settings": SETTINGS, "checkpoint": tmp_path / "run.safetensors", "rng": 0}
    with pytest.raises(KeyboardInterrupt):
        unfitted().fit(cells, **options)
    assert (tmp_path / "run-reference.safetensors").exists()
    assert (tmp_path / "run-target.safetensors").exists()
    monkeypatch.setattr(training, "_held_out", kept)
    resumed = unfitted().fit(cells, **options)
    np.testing.assert_array_equal(resumed.encode(cells).organisation.mu, model.encode(cells).organisation.mu)


def test_structures_in_channels_of_their_own_may_be_missing(tmp_path: Path) -> None:
    cells = lc.cells.simulate.organisation(40, size=32, every=True, rng=1)
    cells.obsm["images"][::2, 3] = 0
    targets = list(lc.cells.simulate.STRUCTURES)
    model = lc.IntegratedCell(REFERENCE, targets, n_latent=(2, 2), width=4)
    model.fit(cells, epochs=1, settings=SETTINGS, rng=0)
    codes = model.encode(cells).organisation.mu
    assert np.isnan(codes[::2, 1]).all()
    assert np.isfinite(np.delete(codes, 1, axis=1)).all()
    embedded = model.embed(cells)
    np.testing.assert_array_equal(embedded.obsm["organisation_cortex"], codes[:, 1])


def test_stacks_are_fitted_like_images() -> None:
    stacks = lc.cells.simulate.organisation(24, size=16, depth=6, rng=0)
    model = unfitted(n_latent=(2, 2)).fit(stacks, epochs=1, settings=SETTINGS, rng=0)
    assert model.sample(2, rng=0).obsm["images"].shape == (2, 6, 6, 16, 16)


def test_decoders_are_told_the_batch(cells) -> None:
    two = cells.copy()
    two.obs["plate"] = np.where(np.arange(80) % 2, "p1", "p2")
    model = unfitted(batch_key="plate").fit(two, epochs=1, settings=SETTINGS, rng=0)
    shape, z = model.shapes(two, np.arange(2)), np.zeros((2, 4), dtype=np.float32)
    drawn = [model.decode(shape, z, "cortex", batch=level) for level in ("p1", "p2")]
    assert not np.allclose(*drawn)


def test_drawn_codes_are_distributed_as_those_of_the_cells() -> None:
    rng = np.random.default_rng(0)
    mu = rng.multivariate_normal([2.0, -1.0], [[1.0, 0.8], [0.8, 2.0]], 5000).astype(np.float32)
    drawn = Population.of(mu, np.full((5000, 2), 0.1, dtype=np.float32)).draw(20_000, rng)
    np.testing.assert_allclose(drawn.mean(0), [2, -1], atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), [[1.1, 0.8], [0.8, 2.1]], atol=0.1)


def test_without_cells_codes_are_drawn_from_the_prior() -> None:
    nobody = Population.of(np.empty((0, 3), dtype=np.float32), np.empty((0, 3), dtype=np.float32))
    np.testing.assert_array_equal(nobody.mean, 0)
    np.testing.assert_allclose(nobody.root, np.eye(3), atol=1e-6)


def test_a_model_without_a_reference_never_sees_one(model, cells) -> None:
    blind = unfitted(hide=1.0).fit(cells, epochs=1, settings=SETTINGS, shape=model.reference_, rng=0)
    assert blind.reference_ is model.reference_
    few = cells[:6].copy()
    changed = few.copy()
    changed.obsm["images"] = few.obsm["images"].copy()
    changed.obsm["images"][:, :2] = few.obsm["images"][::-1, :2]
    told = {"n_samples": 2}
    np.testing.assert_allclose(blind.nll(few, **told)["nll"], blind.nll(changed, **told)["nll"], rtol=1e-6)
    np.testing.assert_allclose(blind.nll(few, told=[], **told)["nll"], blind.nll(few, **told)["nll"], rtol=1e-6)
    shape, z = model.shapes(few), np.zeros((6, 4), dtype=np.float32)
    other = Shape(shape.reference[::-1].copy(), shape.region)
    np.testing.assert_array_equal(blind.decode(shape, z, "cortex"), blind.decode(other, z, "cortex"))


def test_a_shape_of_other_channels_is_refused(model, cells) -> None:
    with pytest.raises(InputError, match="shape is a model of 'membrane', 'DNA'; the reference is 'DNA'"):
        lc.IntegratedCell("DNA", "structure", structure_key="structure").fit(cells, shape=model.reference_)


# refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": ["DNA"], "target": "DNA"}, "none as both"),
        ({"reference": [], "target": "x"}, "at least one reference"),
        ({"reference": ["DNA"], "target": "x", "n_latent": (0, 2)}, "at least one dimension each"),
        ({"reference": ["DNA"], "target": "x", "likelihood": "nb"}, "choose one of: gaussian"),
        ({"reference": ["DNA"], "target": "x", "orientation": "augment"}, "'align' or 'as_is'"),
        ({"reference": ["DNA"], "target": "x", "hide": 1.5}, "between 0 and 1"),
    ],
)
def test_settings_that_make_no_model_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lc.IntegratedCell(**arguments)


def test_unknown_channels_are_named_with_those_present(cells) -> None:
    model = lc.IntegratedCell(["membrane", "ER"], "structure", structure_key="structure")
    with pytest.raises(InputError, match="no channel 'ER'; channels present: 'membrane', 'DNA', 'structure'"):
        model.fit(cells)


def test_a_constant_reference_is_refused(cells) -> None:
    flat = cells.copy()
    flat.obsm["images"] = flat.obsm["images"].copy()
    flat.obsm["images"][:, 1] = 7
    with pytest.raises(InputError, match="DNA"):
        unfitted().fit(flat, epochs=1)


def test_a_model_without_a_fit_says_so(cells) -> None:
    with pytest.raises(NotFittedError, match="call fit"):
        unfitted().encode(cells)


def test_structures_that_the_model_has_not_met_are_refused(model, cells) -> None:
    other = cells[:4].copy()
    other.obs["structure"] = pd.Categorical(["tubulin"] * 4)
    with pytest.raises(InputError, match="not fitted on 'tubulin'; it knows"):
        model.encode(other)
    with pytest.raises(InputError, match="no structure 'tubulin'"):
        model.predict(cells[:2].copy(), ["tubulin"])


def test_folders_that_hold_no_model_are_refused(model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no IntegratedCell"):
        lc.IntegratedCell.load(tmp_path)
    model.save(tmp_path / "m")
    (tmp_path / "m" / "target" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError):
        lc.IntegratedCell.load(tmp_path / "m")


def test_structures_are_drawn_in_interpolated_shapes(cells, model) -> None:
    halves = cells.copy()
    halves.obs["half"] = np.where(cells.obs["size"] < cells.obs["size"].median(), "small", "large")
    between = lc.tl.interpolate(halves, model.reference_, "half", source="small", target="large", n_cells=5, rng=0)
    assert between.obsm["masks"].shape == (5, 32, 32)
    predicted = model.predict(between, n_draws=2)
    assert predicted.obsm["images"].shape == (5, 6, 32, 32)
    assert np.isfinite(predicted.obsm["images"]).all()
