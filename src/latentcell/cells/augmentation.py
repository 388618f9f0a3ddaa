"""Random changes of training images that leave a cell the same kind of cell."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from latentcell.cells.batches import Batch
from latentcell.cells.orientation import resample, turn

# standard deviations: shift in half image sides, stretch and shear as a share, brightness of a channel as a share
_SHIFT, _STRETCH, _GAIN = 0.03, 0.05, 0.1


def turned(batch: Batch, generator: torch.Generator) -> Batch:
    """Turn each cell by a random angle in the plane and mirror half of them."""
    n, device = len(batch), batch.dense.device
    angle = (torch.rand(n, generator=generator) * 2 * math.pi).to(device)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0).to(device)
    none = torch.ones(n, device=device)
    x = turn(batch.dense, angle, flip, none)
    mask = None if batch.mask is None else turn(batch.mask, angle, flip, none, outside="zeros")
    return replace(batch, x=x, mask=_binary(mask))


def varied(batch: Batch, generator: torch.Generator) -> Batch:
    """Shift, stretch and shear each cell a little and change the brightness of its channels a little.

    Code and target change together, so the latent space still holds size, shape and brightness; what goes is the
    chance to learn single cells by heart.
    """
    n, n_channels = batch.dense.shape[:2]
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, :, :2] += _STRETCH * torch.randn(n, 2, 2, generator=generator)
    theta[:, :, 2] = _SHIFT * torch.randn(n, 2, generator=generator)
    gain = torch.exp(_GAIN * torch.randn(n, n_channels, generator=generator))
    theta, gain = theta.to(batch.dense.device), gain.to(batch.dense.device)
    x = resample(batch.dense, theta) * gain.view(n, n_channels, *[1] * (batch.dense.dim() - 2))
    mask = None if batch.mask is None else resample(batch.mask, theta, outside="zeros")
    return replace(batch, x=x, mask=_binary(mask))


def noisy(x: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Add white noise, drawn where `x` is."""
    if x.device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(x.device).manual_seed(seed)
    return x + sd * torch.randn(x.shape, generator=generator, device=x.device)


def _binary(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else (mask > 0.5).to(mask)
