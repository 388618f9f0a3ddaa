"""A conditional flow that puts back what the decoder's mean washes out.

The mean of p(x | z) is an average over all cells with the code z, so it holds no texture. The refiner draws one of
them: it carries Gaussian noise around the decoded mean to a cell along a learned velocity field. It knows tensors
only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentcell.model.levels import cropped, folded, padding, unfolded

# an axis is folded into channels, or halved, while it is longer than this
_SHORT = 8
_LEVELS = 3
_TIME_FEATURES = 32
# the flow is solved at times (k / steps) ** _GRID
_GRID = 1.5


class Refiner(nn.Module):
    """Flow matching from the decoded mean to the cell (Lipman et al. 2023; Liu et al. 2023).

    With mean m(z), residual SD s per channel and noise e ~ N(0, I), the path of a cell x is the straight line
    u_t = (1 - t) e + t (x - m) / s, whose velocity is (x - m) / s - e. The network v(u_t, t, m) is fitted to it by
    least squares (eq. 23 with the optimal-transport path, sigma_min = 0); its flow then carries m + s e, a draw of a
    Gaussian likelihood, to a draw of p(x | m). As m is a function of z, that is p(x | z).

    The network is a U-Net on images folded by 2 x 2 pixels into channels, which makes it four times faster. Time
    scales and shifts its features.

    Parameters
    ----------
    image_shape
        ``(C, H, W)`` or ``(C, Z, H, W)``, any size.
    width
        Channels of the first level.
    """

    spread: Tensor
    limits: Tensor

    def __init__(self, image_shape: Sequence[int], *, width: int = 32) -> None:
        super().__init__()
        channels, *size = image_shape
        self.size = tuple(size)
        self.fold = tuple(2 if length > _SHORT else 1 for length in size)
        shrunk = [math.ceil(length / step) for length, step in zip(size, self.fold, strict=True)]
        strides = []
        for _ in range(_LEVELS - 1):
            strides.append(tuple(2 if length > _SHORT else 1 for length in shrunk))
            shrunk = [math.ceil(length / step) for length, step in zip(shrunk, strides[-1], strict=True)]
        self.padding, _ = padding(size, [self.fold, *strides])
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("limits", torch.tensor([-math.inf, math.inf]).repeat(channels, 1))
        pixels = math.prod(self.fold)
        self.net = _UNet(2 * channels * pixels, channels * pixels, [width, 2 * width, 3 * width], strides)

    def scale_to(self, residuals: Tensor, limits: Tensor) -> None:
        """Set the residual SD of each channel from ``(n, C, ...)``, and the lowest and highest value, ``(C, 2)``."""
        self.spread.copy_(residuals.transpose(0, 1).flatten(1).std(1).clamp(min=1e-4))
        self.limits.copy_(limits)

    def velocity(self, u: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        """Velocity of the flow at `u`, shape of `u`.

        Parameters
        ----------
        u
            Standardised residuals on their path ``(n, C, ...)``.
        mean
            Decoded means ``(n, C, ...)``, scaled.
        t
            Time in [0, 1], ``(n,)``.
        """
        both = folded(F.pad(torch.cat([u, mean], 1), self.padding), self.fold)
        return cropped(unfolded(self.net(both, _time_features(t)), self.fold), self.size)

    def loss(self, x: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the velocity at a random time and noise, mean over the values of each cell, ``(n,)``."""
        residual = (x - mean) / self._spread_like(x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        # one time per cell, spread evenly over the batch: less variance than independent times
        t = ((torch.rand(1, generator=generator) + torch.arange(len(x)) / len(x)) % 1).to(x)
        t = t[torch.randperm(len(x), generator=generator).to(t.device)]
        at = t.view(-1, *[1] * (x.dim() - 1))
        v = self.velocity((1 - at) * noise + at * residual, mean, t)
        return (v - (residual - noise)).square().flatten(1).mean(1)

    def draw(self, mean: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Carry `noise` ``(n, C, ...)`` around `mean` to cells by `steps` steps of Heun's method."""
        # short steps first: there the coarse features of the cell are decided, and curved paths blur it
        times = (torch.arange(steps + 1) / steps) ** _GRID
        u = noise
        for start, end in pairwise(times):
            v = self.velocity(u, mean, start.expand(len(u)).to(u))
            ahead = u + (end - start) * v
            if end < 1:
                v = (v + self.velocity(ahead, mean, end.expand(len(u)).to(u))) / 2
            # the last step is Euler's, which from t to 1 gives the expected cell
            u = u + (end - start) * v
        x = mean + self._spread_like(mean) * u
        low, high = (limit.view(1, -1, *[1] * (x.dim() - 2)) for limit in self.limits.unbind(1))
        return torch.minimum(torch.maximum(x, low), high)

    def _spread_like(self, x: Tensor) -> Tensor:
        return self.spread.view(1, -1, *[1] * (x.dim() - 2))


class _UNet(nn.Module):
    """Residual U-Net with one block per level down and up; `features` scale and shift every block."""

    def __init__(self, n_in: int, n_out: int, widths: Sequence[int], strides: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        three_d = len(strides[0]) == 3
        conv: Any = nn.Conv3d if three_d else nn.Conv2d
        self.strides = [tuple(float(step) for step in stride) for stride in strides]
        self.embed = nn.Sequential(nn.Linear(_TIME_FEATURES, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.first = conv(n_in, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(conv, w, w) for w in widths)
        pairs = list(zip(widths, widths[1:], strides, strict=False))
        self.shrink = nn.ModuleList(conv(a, b, 3, stride, padding=1) for a, b, stride in pairs)
        self.middle = _Block(conv, widths[-1], widths[-1])
        self.up = nn.ModuleList(_Block(conv, a + b, a) for a, b, _ in reversed(pairs))
        last = conv(widths[0], n_out, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.last = nn.Sequential(_norm(widths[0]), nn.SiLU(), last)
        # several times faster on a CPU
        self.layout = torch.channels_last_3d if three_d else torch.channels_last
        for weights in self.parameters():
            if weights.dim() == len(strides[0]) + 2:
                weights.data = weights.data.contiguous(memory_format=self.layout)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        e = self.embed(features)
        h = self.first(x.contiguous(memory_format=self.layout))
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=False):
            h = block(h, e)
            kept.append(h)
            h = shrink(h)
        h = self.middle(self.down[-1](h, e), e)
        for block, stride in zip(self.up, reversed(self.strides), strict=True):
            h = F.interpolate(h, scale_factor=stride, mode="nearest")
            h = block(torch.cat([h, kept.pop()], 1), e)
        return self.last(h)


class _Block(nn.Module):
    """Residual block of two convolutions, the second's input scaled and shifted by the embedding."""

    def __init__(self, conv: Any, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(n_in), nn.SiLU(), conv(n_in, n_out, 3, padding=1))
        self.film = nn.Linear(128, 2 * n_out)
        self.norm = _norm(n_out)
        self.second = conv(n_out, n_out, 3, padding=1)
        self.skip = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.first(x)
        scale, shift = self.film(e).view(len(x), -1, *[1] * (x.dim() - 2)).chunk(2, 1)
        return self.skip(x) + self.second(F.silu(self.norm(h) * (1 + scale) + shift))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _time_features(t: Tensor) -> Tensor:
    """Sines and cosines of the time, ``(n, _TIME_FEATURES)``."""
    frequency = math.pi * 2.0 ** torch.linspace(-1, 5, _TIME_FEATURES // 2).to(t)
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)
