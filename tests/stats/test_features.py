from __future__ import annotations

import sys

import numpy as np
import pytest

from latentcell.errors import InputError
from latentcell.stats import image_features


def blobs(seed: int = 0, n: int = 4, shape: tuple[int, ...] = (2, 32, 32)) -> np.ndarray:
    """Off-centre ellipses with noise, in every channel."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.arange(size) - size / 2 for size in shape[1:]], indexing="ij")
    images = np.empty((n, *shape))
    for index in np.ndindex(n, shape[0]):
        squared = sum(((g - rng.normal()) / rng.uniform(2, 5)) ** 2 for g in grid)
        images[index] = 200 * np.exp(-squared / 2) + rng.uniform(0, 5, shape[1:])
    return images


def ellipse(long: float, short: float, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return ((x / long) ** 2 + (y / short) ** 2 <= 1).astype(float)[None, None]


@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 32, 24), (2, 5, 24, 24)])
def test_features_do_not_change_when_the_cell_is_turned_or_mirrored(shape: tuple[int, ...]) -> None:
    images = blobs(shape=shape)
    plain = image_features(images)
    turned = [np.rot90(images, k, axes=(-2, -1)) for k in (1, 2, 3)]
    mirrored = [np.flip(images, axis) for axis in range(2, images.ndim)]
    for changed in turned + mirrored:
        np.testing.assert_allclose(image_features(changed), plain, rtol=1e-6, atol=1e-9)


def test_features_of_a_cell_do_not_depend_on_the_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    images = blobs(n=7)
    whole = image_features(images)
    monkeypatch.setattr(sys.modules[image_features.__module__], "_CHUNK_VALUES", 2 * images[0].size)
    np.testing.assert_allclose(image_features(images[::-1])[::-1], whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0])
@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 3, 16, 16)])
def test_blank_images_give_finite_features_without_texture_or_foreground(value: float, shape: tuple[int, ...]) -> None:
    features = image_features(np.full((2, *shape), value))
    assert np.isfinite(features.to_numpy()).all()
    names = [c for c in features if not c.endswith(("mean", "q05", "q25", "q50", "q75", "q95", "q99"))]
    np.testing.assert_allclose(features[names], 0, atol=1e-9)
    np.testing.assert_allclose(features["channel_0_mean"], value)


def test_intensity_moments_are_those_of_the_pixels() -> None:
    images = blobs(n=3)
    features = image_features(images, channel_names=["DNA", "tubulin"])
    np.testing.assert_allclose(features["DNA_mean"], images[:, 0].mean((1, 2)))
    np.testing.assert_allclose(features["tubulin_sd"], images[:, 1].std((1, 2)))
    np.testing.assert_allclose(features["DNA_q50"], np.median(images[:, 0], (1, 2)), rtol=0.02)
    expected = [np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1] for image in images]
    np.testing.assert_allclose(features["DNA_tubulin_correlation"], expected)


def test_shape_features_are_those_of_a_known_ellipse() -> None:
    features = image_features(ellipse(16, 8))
    assert features["channel_0_area"][0] == pytest.approx(np.pi * 16 * 8 / 48**2, rel=0.03)
    assert features["channel_0_aspect"][0] == pytest.approx(2, rel=0.03)
    assert features["channel_0_spread"][0] == pytest.approx(np.sqrt(16**2 + 8**2) / 2, rel=0.03)
    assert features["channel_0_contrast"][0] == pytest.approx(1)


def test_a_longer_a_larger_and_a_rougher_cell_differ_in_the_features_named_for_it() -> None:
    disc, long, large = (image_features(ellipse(*axes)).iloc[0] for axes in ((8, 8), (16, 4), (16, 16)))
    assert long["channel_0_aspect"] > 3 * disc["channel_0_aspect"]
    assert long["channel_0_area"] == pytest.approx(disc["channel_0_area"], rel=0.05)
    assert large["channel_0_area"] > 3.5 * disc["channel_0_area"]
    assert large["channel_0_ring2"] > disc["channel_0_ring2"]
    rough = ellipse(16, 16) * (1 + 0.5 * np.random.default_rng(0).normal(size=(48, 48)))
    assert image_features(rough)["channel_0_gradient"][0] > 1.5 * large["channel_0_gradient"]


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_granularity_peaks_at_the_scale_of_the_grains(scale: int) -> None:
    # the difference of Gaussians of SDs s and 2 s passes most at angular frequency sqrt(2 ln 4 / 3) / s
    frequency = np.sqrt(2 * np.log(4) / 3) / scale
    wave = np.cos(frequency * np.arange(128))
    features = image_features(np.broadcast_to(wave, (1, 1, 128, 128)))
    grains = {s: features[f"channel_0_grain{s}"][0] for s in (1, 2, 4, 8)}
    assert max(grains, key=lambda s: grains[s]) == scale


def test_rings_share_out_the_foreground() -> None:
    features = image_features(blobs())
    rings = features[[f"channel_1_ring{k}" for k in range(5)]]
    np.testing.assert_allclose(rings.sum(axis=1), 1)


def test_integer_images_give_the_features_of_the_same_numbers() -> None:
    images = blobs().astype(np.uint8)
    np.testing.assert_allclose(image_features(images), image_features(images.astype(float)))


def test_no_cells_give_an_empty_table_with_the_usual_columns() -> None:
    empty = image_features(np.zeros((0, 2, 16, 16)))
    assert list(empty.columns) == list(image_features(blobs()).columns)
    assert len(empty) == 0


def test_images_without_a_channel_axis_missing_pixels_and_wrong_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3, 16, 16\)"):
        image_features(np.zeros((3, 16, 16)))
    images = blobs()
    images[2, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="cell 2"):
        image_features(images)
    with pytest.raises(InputError, match="1 channel names"):
        image_features(blobs(), channel_names=["DNA"])
