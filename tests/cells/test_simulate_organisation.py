"""Simulated structures lie where they are said to lie."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, distance_transform_edt

import latentcell as lc

STRUCTURES = lc.cells.simulate.STRUCTURES


@pytest.fixture(scope="module")
def cells():
    return lc.cells.simulate.organisation(60, every=True, rng=0)


def distances(cells) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the nucleus and depth under the membrane of every pixel, in pixels."""
    dna = cells.obsm["images"][:, 1].astype(float)
    floor = np.median(dna, (1, 2), keepdims=True)
    nucleus = dna - floor > 0.35 * (dna - floor).max((1, 2), keepdims=True)
    outside = np.stack([distance_transform_edt(~binary_fill_holes(each)) for each in nucleus])
    return outside, np.stack([distance_transform_edt(each) for each in cells.obsm["masks"]])


def where(cells, structure: str, values: np.ndarray) -> np.ndarray:
    """Intensity-weighted mean of `values` in each cell."""
    image = cells.obsm["images"][:, 2 + STRUCTURES.index(structure)].astype(float)
    light = np.clip(image - np.percentile(image, 85, (1, 2), keepdims=True), 0, None)
    return (light * values).sum((1, 2)) / light.sum((1, 2))


def test_structures_lie_where_the_table_says(cells) -> None:
    outside, inside = distances(cells)
    assert where(cells, "perinuclear", outside).mean() < 2.5
    assert where(cells, "cortex", inside).mean() < 4
    share = outside / np.maximum(outside + inside, 1e-6)
    assert where(cells, "midway", share).mean() == pytest.approx(0.5, abs=0.1)


def test_beads_lie_anywhere(cells) -> None:
    image = cells.obsm["images"][:, 2 + STRUCTURES.index("beads")].astype(float)
    bright = image > np.percentile(image, 99)
    in_cell = (bright & (cells.obsm["masks"] > 0)).sum() / bright.sum()
    assert in_cell == pytest.approx((cells.obsm["masks"] > 0).mean(), abs=0.1)


def test_the_lit_side_is_the_one_in_obs(cells) -> None:
    image = cells.obsm["images"][:, 2 + STRUCTURES.index("perinuclear")].astype(float)
    image -= np.median(image, (1, 2), keepdims=True)
    y, x = np.mgrid[:64, :64] - 31.5
    found = np.angle((image * np.exp(1j * np.arctan2(y, x))).sum((1, 2)))
    off = np.angle(np.exp(1j * (found - cells.obs["side"].to_numpy())))
    assert np.median(np.abs(off)) < 0.4


def test_every_cell_shows_one_structure_and_all_as_often() -> None:
    one = lc.cells.simulate.organisation(40, size=32, rng=1)
    assert one.obsm["images"].shape == (40, 3, 32, 32)
    assert one.uns["images"]["channel_names"] == ["membrane", "DNA", "structure"]
    assert (one.obs["structure"].value_counts() == 10).all()


def test_stacks_have_the_same_channels() -> None:
    stacks = lc.cells.simulate.organisation(4, size=32, depth=12, every=True, rng=0)
    assert stacks.obsm["images"].shape == (4, 6, 12, 32, 32)
    assert (stacks.obsm["images"].reshape(4, 6, -1).std(2) > 0).all()


def test_the_same_seed_gives_the_same_cells() -> None:
    a, b = (lc.cells.simulate.organisation(6, size=32, rng=3) for _ in range(2))
    assert np.array_equal(a.obsm["images"], b.obsm["images"])
    assert a.obs.equals(b.obs)
