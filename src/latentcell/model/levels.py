"""Sizes of the levels of convolutional networks, and how images pass from one to the next, 2-D and 3-D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Levels:
    """Sizes of the levels between an image and its code.

    Attributes
    ----------
    strides
        Stride of every level along each axis, finest first.
    widths
        Channels of every level.
    padding
        Zeros by which images grow to a multiple of the strides, as `torch.nn.functional.pad` takes them.
    bottom
        Size of the coarsest level.
    layout
        Memory layout of images and weights: channels last are a sixth faster on a CPU.
    """

    strides: list[tuple[int, ...]]
    widths: list[int]
    padding: list[int]
    bottom: list[int]
    layout: torch.memory_format

    @classmethod
    def of(cls, size: Sequence[int], width: int) -> Levels:
        """Levels for images of `size`, the first of `width` channels."""
        strides = level_strides(size)
        widths = [min(width * 2**level, 256) for level in range(len(strides))]
        layout = torch.channels_last_3d if len(size) == 3 else torch.channels_last
        return cls(strides, widths, *padding(size, strides), layout)

    @property
    def n_bottom(self) -> int:
        """Values of the coarsest level."""
        return self.widths[-1] * math.prod(self.bottom)

    def padded(self, x: Tensor) -> Tensor:
        """Images ``(n, C, ...)`` padded, in `layout`."""
        return F.pad(x, self.padding).contiguous(memory_format=self.layout)

    def at_bottom(self, flat: Tensor) -> Tensor:
        """Values ``(n, n_bottom)`` as images of the coarsest level."""
        return flat.view(-1, self.widths[-1], *self.bottom).contiguous(memory_format=self.layout)

    def lay_out(self, network: nn.Module) -> None:
        """Keep the convolutions' weights of a network in `layout`."""
        for weights in network.parameters():
            if weights.dim() == len(self.bottom) + 2:
                weights.data = weights.data.contiguous(memory_format=self.layout)


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` of the last axes of ``(n, C, ...)``."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x


def level_strides(size: Sequence[int]) -> list[tuple[int, ...]]:
    """Stride of every level along each axis: 2 while the axis is longer than 4, else 1."""
    strides: list[tuple[int, ...]] = []
    length = list(size)
    while not strides or max(length) > 4:
        stride = tuple(2 if axis > 4 else 1 for axis in length)
        strides.append(stride)
        length = [math.ceil(axis / step) for axis, step in zip(length, stride, strict=True)]
    return strides


def padding(size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Zeros to add for images of `size` to be divided by all `strides`, as `F.pad` takes them; what they come to."""
    total = [math.prod(level[axis] for level in strides) for axis in range(len(size))]
    padded = [math.ceil(length / step) * step for length, step in zip(size, total, strict=True)]
    zeros = [pad for have, want in zip(size[::-1], padded[::-1], strict=True) for pad in (0, want - have)]
    return zeros, [length // step for length, step in zip(padded, total, strict=True)]


def folded(x: Tensor, fold: Sequence[int]) -> Tensor:
    """Move blocks of `fold` pixels into channels: ``(n, C, H, W)`` to ``(n, C * 4, H / 2, W / 2)`` for (2, 2)."""
    n, channels, *size = x.shape
    split = [part for length, step in zip(size, fold, strict=True) for part in (length // step, step)]
    dims = len(fold)
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    x = x.reshape(n, channels, *split).permute(order)
    return x.reshape(n, channels * math.prod(fold), *split[::2])


def unfolded(x: Tensor, fold: Sequence[int]) -> Tensor:
    """Inverse of `folded`, as a sub-pixel convolution ends (Shi et al. 2016)."""
    n, n_channels, *size = x.shape
    channels, dims = n_channels // math.prod(fold), len(fold)
    order = [0, 1] + [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    x = x.reshape(n, channels, *fold, *size).permute(order)
    return x.reshape(n, channels, *[length * step for length, step in zip(size, fold, strict=True)])


def _kernel(stride: Sequence[int]) -> tuple[int, ...]:
    return tuple(4 if step == 2 else 3 for step in stride)


def down(n_in: int, n_out: int, stride: tuple[int, ...], three_d: bool) -> nn.Module:
    """Convolution to a size smaller by `stride`."""
    conv: Any = nn.Conv3d if three_d else nn.Conv2d
    return conv(n_in, n_out, _kernel(stride), stride, padding=1)


def transposed(n_in: int, n_out: int, stride: tuple[int, ...], three_d: bool) -> nn.Module:
    """Convolution to a size larger by `stride`."""
    conv: Any = nn.ConvTranspose3d if three_d else nn.ConvTranspose2d
    return conv(n_in, n_out, _kernel(stride), stride, padding=1)
