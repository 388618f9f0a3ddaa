"""Alignment undoes rotations and mirrors, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

from latentcell.cells.orientation import align


def blobs(
    n: int = 6, size: tuple[int, int] = (40, 40), angles: np.ndarray | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two channels of an elongated cell with a heavier end and a heavier side; images and masks."""
    rng = np.random.default_rng(seed)
    if angles is None:
        angles = rng.uniform(0, 2 * np.pi, n)
    height, width = size
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    unit = min(size) / (40 if size[0] == size[1] else 60)  # room for every angle
    images, masks = [], []
    for angle in angles:
        along = (x * np.cos(angle) + y * np.sin(angle)) / unit
        across = (-x * np.sin(angle) + y * np.cos(angle)) / unit

        def spot(a: float, b: float, long: float, wide: float, along=along, across=across) -> np.ndarray:
            return np.exp(-(((along - a) / long) ** 2) - ((across - b) / wide) ** 2)

        body = spot(0, 0, 11, 5) + 0.8 * spot(8, 0, 4, 4) + 0.7 * spot(2, 4, 4, 3)
        images.append([100 * body + 10, 50 * spot(5, 2, 3, 3) + 5])
        masks.append(body > 0.15)
    return np.array(images, dtype=np.float32), np.array(masks)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference as a share of the spread of `a`."""
    return float(np.abs(a - b).mean() / a.std())


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_quarter_turns_of_the_input_change_nothing(quarters: int, masked: bool) -> None:
    images, masks = blobs()
    given = masks if masked else None
    turned_masks = np.rot90(masks, quarters, (-2, -1)) if masked else None
    expected, expected_masks = align(images, given)
    found, found_masks = align(np.rot90(images, quarters, (-2, -1)), turned_masks)
    assert relative(expected, found) < 1e-3
    if masked:
        assert (expected_masks != found_masks).mean() < 2e-3


@pytest.mark.parametrize("axis", [-1, -2])
def test_mirroring_the_input_changes_nothing(axis: int) -> None:
    images, _ = blobs()
    assert relative(align(images)[0], align(np.flip(images, axis).copy())[0]) < 1e-3


def test_any_angle_gives_the_same_cell_up_to_interpolation() -> None:
    aligned, _ = align(blobs(angles=np.linspace(0, 2 * np.pi, 13)[:-1])[0])
    for cell in aligned[1:]:
        assert relative(aligned[0], cell) < 0.1


def test_without_alignment_the_same_cells_differ() -> None:
    images, _ = blobs(angles=np.linspace(0, 2 * np.pi, 13)[:-1])
    assert relative(images[0], images[3]) > 0.3


def test_aligning_twice_is_aligning_once() -> None:
    once, _ = align(blobs()[0])
    assert relative(once, align(once)[0]) < 0.05


def test_the_long_axis_comes_to_lie_horizontal_and_the_heavy_sides_right_and_below() -> None:
    aligned, _ = align(blobs()[0])
    weight = np.clip(aligned[:, 0] - np.median(aligned[:, 0], axis=(1, 2), keepdims=True), 0, None)
    position = np.arange(40) - 19.5
    total = weight.sum((1, 2))
    across = (weight.sum(2) * position**2).sum(1) / total
    along = (weight.sum(1) * position**2).sum(1) / total
    assert (along > 1.5 * across).all()
    assert ((weight.sum(1) * position**3).sum(1) > 0).all()
    assert ((weight.sum(2) * position**3).sum(1) > 0).all()


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (41, 40)])
@pytest.mark.parametrize("masked", [False, True])
def test_images_that_are_not_square_keep_their_shape_and_proportions(size: tuple[int, int], masked: bool) -> None:
    images, masks = blobs(size=size, angles=np.linspace(0, 2 * np.pi, 9)[:-1])
    aligned, turned = align(images, masks if masked else None)
    assert aligned.shape == (8, 2, *size)
    assert turned is None or turned.shape == (8, *size)
    for cell in aligned[1:]:
        assert relative(aligned[0], cell) < 0.15


def test_volumes_turn_in_the_plane_alike_in_every_slice() -> None:
    images, masks = blobs()
    depth = np.array([0.2, 1.0, 0.5], dtype=np.float32)[:, None, None]
    volume, volume_masks = images[:, :, None] * depth, np.repeat(masks[:, None], 3, axis=1)
    turned, turned_masks = align(volume, volume_masks)
    plane, plane_masks = align(images, masks)
    assert turned.shape == volume.shape
    np.testing.assert_allclose(turned, plane[:, :, None] * depth, atol=0.05)
    np.testing.assert_array_equal(turned_masks, np.repeat(plane_masks[:, None], 3, axis=1))


def test_masks_move_with_their_images() -> None:
    images, masks = blobs()
    aligned, turned = align(images, masks)
    assert turned.dtype == bool
    recomputed = (aligned[:, 0] - 10) / 100 > 0.15
    assert (turned != recomputed).mean() < 0.01
    np.testing.assert_allclose(turned.sum((1, 2)), masks.sum((1, 2)), rtol=0.05)


def test_a_cells_orientation_does_not_depend_on_the_other_cells() -> None:
    images, masks = blobs()
    whole, whole_masks = align(images, masks)
    for i in range(len(images)):
        alone, alone_mask = align(images[i : i + 1], masks[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-4)
        np.testing.assert_array_equal(alone_mask[0], whole_masks[i])


@pytest.mark.parametrize("factor", [0.01, 300.0])
def test_the_intensity_unit_does_not_matter(factor: float) -> None:
    images, _ = blobs()
    np.testing.assert_allclose(align(images * factor)[0] / factor, align(images)[0], rtol=1e-3, atol=0.05)


def test_integer_images_are_aligned_as_their_values() -> None:
    images = blobs()[0].astype(np.uint16)
    np.testing.assert_array_equal(align(images)[0], align(images.astype(np.float32))[0])


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_empty_crops_come_back_as_they_are(value: float) -> None:
    images = np.full((2, 1, 9, 9), value, dtype=np.float32)
    np.testing.assert_allclose(align(images)[0], images, rtol=1e-6)
    aligned, masks = align(images, np.zeros((2, 9, 9), dtype=bool))
    assert np.isfinite(aligned).all()
    assert not masks.any()


def test_aligning_does_not_change_its_input() -> None:
    images, masks = blobs()
    before = images.copy(), masks.copy()
    align(images, masks)
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(masks, before[1])
