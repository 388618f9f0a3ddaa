"""Images sampled by compiled loops are those that torch samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell.cells.orientation import resample, turn


def by_torch(x: torch.Tensor, theta: torch.Tensor, outside: str) -> torch.Tensor:
    planes = x.flatten(1, -3)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode=outside, align_corners=False).view(x.shape)


@pytest.mark.parametrize("outside", ["reflection", "zeros"])
@pytest.mark.parametrize("shape", [(3, 2, 20, 31), (2, 1, 4, 9, 8), (2, 3, 1, 5)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_compiled_sampling_is_that_of_torch(shape: tuple[int, ...], outside: str, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    theta = torch.eye(2, 3) + spread * torch.randn(shape[0], 2, 3, generator=generator)
    torch.testing.assert_close(resample(x, theta, outside), by_torch(x, theta, outside), atol=2e-4, rtol=0)


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 12), width=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_any_map_gives_weighted_means_of_pixels(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 2, height, width, generator=generator)
    theta = 3 * torch.randn(2, 2, 3, generator=generator)
    mirrored = resample(x, theta, "reflection").flatten(2)
    low, high = x.flatten(2).amin(2, keepdim=True), x.flatten(2).amax(2, keepdim=True)
    assert ((mirrored >= low - 1e-5) & (mirrored <= high + 1e-5)).all()
    cut = resample(x, theta, "zeros")
    assert ((cut >= 0) & (cut <= 1 + 1e-5)).all()


def test_a_quarter_turn_moves_every_pixel_to_its_place() -> None:
    x = torch.arange(2 * 6 * 6, dtype=torch.float32).view(1, 2, 6, 6)
    quarter = turn(x, torch.tensor([np.pi / 2]), torch.ones(1), torch.ones(1))
    assert any(torch.allclose(quarter, torch.rot90(x, k, (2, 3)), atol=1e-3) for k in (1, 3))


def test_without_the_compiled_loops_the_same_cells_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    angle, flip = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([1.0, -1.0, 1.0])
    compiled = turn(x, angle, flip, torch.ones(3))
    monkeypatch.setenv("LATENTCELL_KERNELS", "off")
    torch.testing.assert_close(turn(x, angle, flip, torch.ones(3)), compiled, atol=1e-5, rtol=0)
    assert turn(x.double(), angle.double(), flip.double(), torch.ones(3).double()).dtype == torch.float64
