"""Augmented cells are the same kind of cell, and the same seed gives the same augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_orientation import blobs, relative

from latentcell.cells.augmentation import noisy, turned, varied
from latentcell.cells.batches import Batch
from latentcell.cells.orientation import align


def batch(x: torch.Tensor, mask: torch.Tensor | None = None) -> Batch:
    return Batch(x=x, size=None, covariates=None, mask=mask, index=np.arange(len(x)))


def test_augmentation_is_reproducible_and_turns_each_cell_differently() -> None:
    x = torch.from_numpy(np.repeat(blobs(1)[0], 4, axis=0))
    first, second = (turned(batch(x), torch.Generator().manual_seed(3)).x for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first[0], first[1], atol=1.0)


def test_a_turned_cell_is_the_same_cell_to_alignment() -> None:
    images, masks = blobs()
    mask = torch.from_numpy(masks[:, None].astype(np.float32))
    after = turned(batch(torch.from_numpy(images), mask), torch.Generator().manual_seed(0))
    assert relative(align(images)[0], align(after.x.numpy())[0]) < 0.1
    assert set(after.mask.unique().tolist()) <= {0.0, 1.0}
    recomputed = (after.x[:, :1] - 10) / 100 > 0.15
    assert float((after.mask.bool() != recomputed).float().mean()) < 0.02


def test_about_half_of_augmented_cells_are_mirrored() -> None:
    images, _ = blobs(1)
    x = torch.from_numpy(np.repeat(images, 400, axis=0))
    after = turned(batch(x), torch.Generator().manual_seed(0)).x[:, 0].numpy()
    weight = np.clip(after - 12, 0, None)
    grid = np.stack(np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, indexing="ij"))
    third = (weight * (grid[0] + 1j * grid[1]) ** 3).sum((1, 2))
    first = (weight * (grid[0] + 1j * grid[1])).sum((1, 2))
    # angle between first and third moment changes sign with handedness and not with rotation
    handed = np.imag(third * np.conj(first) ** 3) > 0
    assert 0.4 < handed.mean() < 0.6


@pytest.mark.parametrize("shape", [(3, 2, 20, 30), (3, 2, 5, 20, 30)])
def test_variation_is_small_moves_image_and_mask_together_and_repeats(shape: tuple[int, ...]) -> None:
    grid = torch.linspace(-1, 1, shape[-1])
    x = torch.exp(-((grid / 0.4) ** 2)).expand(shape).clone()
    mask = (x[:, :1] > 0.5).float()
    first, second = (varied(batch(x, mask), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert first.x.shape == x.shape
    assert 0.5 < float(first.x.sum() / x.sum()) < 1.5
    assert float((first.mask != mask).float().mean()) < 0.2
    assert not torch.equal(first.x, x)


def test_noise_has_the_standard_deviation_asked_for() -> None:
    x = noisy(torch.zeros(200, 500), 0.3, torch.Generator().manual_seed(0))
    assert float(x.std()) == pytest.approx(0.3, rel=0.02)
