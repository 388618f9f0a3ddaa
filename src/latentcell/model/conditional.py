"""A target structure given the rest of its cell: q(z | t, r, c) and p(t | z, r, c).

Johnson et al. 2017; Donovan-Maiye et al. 2022. `t` is the image of a structure, `r` the reference images of the same
cell, `c` which structure it is. The reference enters the decoder at every scale, the structure every level of both
networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentcell.cells.batches import Batch
from latentcell.model import likelihoods as lk
from latentcell.model.layers import GroupNormSiLU
from latentcell.model.networks import down, level_strides, posterior_of, transposed
from latentcell.model.posterior import Posterior

LIKELIHOODS: dict[str, type[lk.Gaussian] | type[lk.StudentT]] = {"gaussian": lk.Gaussian, "student_t": lk.StudentT}


class _Level(nn.Module):
    """A convolution, its channels scaled and shifted by what is told of the cell, normalisation and SiLU.

    The scale lets a structure ignore what others need (Perez et al. 2018).
    """

    def __init__(self, convolution: nn.Module, channels: int, n_told: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.told = nn.Linear(n_told, 2 * channels)
        self.activation = GroupNormSiLU(math.gcd(8, channels), channels)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told).view(len(x), 2, -1, *[1] * (x.dim() - 2)).unbind(1)
        return self.activation(torch.addcmul(shift, self.convolution(x), 1 + scale))


class ConditionalNet(nn.Module):
    """Strided convolutional encoder and decoder of one structure, 2-D and 3-D.

    Levels and widths are those of `latentcell.model.networks.ConvNet`.

    Parameters
    ----------
    image_shape
        ``(1 + R, H, W)`` or ``(1 + R, Z, H, W)``: the structure, then R reference channels.
    n_latent
        Latent dimensions d.
    n_told
        Width of what is told of each cell beside its reference.
    width
        Channels of the first level.
    """

    def __init__(self, image_shape: Sequence[int], n_latent: int, *, n_told: int, width: int = 16) -> None:
        super().__init__()
        channels, *size = image_shape
        self.size = tuple(size)
        strides = level_strides(self.size)
        total = [math.prod(level[axis] for level in strides) for axis in range(len(size))]
        padded = [math.ceil(length / step) * step for length, step in zip(size, total, strict=True)]
        self.padding = [pad for have, want in zip(size[::-1], padded[::-1], strict=True) for pad in (0, want - have)]
        self.bottom = [length // step for length, step in zip(padded, total, strict=True)]
        self.strides = strides
        widths = [min(width * 2**level, 256) for level in range(len(strides))]
        three_d, n_reference = len(size) == 3, channels - 1
        self.layout = torch.channels_last_3d if three_d else torch.channels_last
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _Level(down(a, b, stride, three_d), b, n_told) for a, b, stride in zip(inputs, widths, strides, strict=True)
        )
        self.flat = widths[-1] * math.prod(self.bottom)
        self.to_posterior = nn.Linear(self.flat + n_told, 2 * n_latent)
        self.from_code = nn.Linear(n_latent + n_told, self.flat)
        self.decoder = nn.ModuleList(
            _Level(transposed(a + n_reference, b, stride, three_d), b, n_told)
            for a, b, stride in zip(widths[:0:-1], widths[-2::-1], strides[:0:-1], strict=True)
        )
        # values of the finest level are channels of the one before, at which convolutions take a fraction of the time
        per_pixel, plain = math.prod(strides[0]), (1,) * len(size)
        self.finest = _Level(down(widths[0] + per_pixel * n_reference, widths[0], plain, three_d), widths[0], n_told)
        self.last = down(widths[0], per_pixel, plain, three_d)
        for weights in self.parameters():
            if weights.dim() == len(size) + 2:
                weights.data = weights.data.contiguous(memory_format=self.layout)

    def encode(self, x: Any, told: Tensor | None) -> Posterior:
        """Posterior of the structure from ``(n, 1 + R, ...)`` and what is told ``(n, n_told)``."""
        assert told is not None
        x = F.pad(x, self.padding).contiguous(memory_format=self.layout)
        for level in self.encoder:
            x = level(x, told)
        return posterior_of(self.to_posterior(torch.cat([x.flatten(1), told], 1)))

    def decode(self, z: Tensor, reference: Tensor, told: Tensor) -> Tensor:
        """Structure ``(n, 1, ...)`` at codes `z` ``(n, d)`` in cells of the given reference ``(n, R, ...)``."""
        scales = [F.pad(reference, self.padding)]
        pool = F.avg_pool3d if len(self.size) == 3 else F.avg_pool2d
        for stride in self.strides:
            scales.append(pool(scales[-1], stride))
        scales[1] = apart(scales[0], self.strides[0])
        x = self.from_code(torch.cat([z, told], 1)).view(len(z), -1, *self.bottom)
        for level, scale in zip([*self.decoder, self.finest], scales[:0:-1], strict=True):
            x = level(torch.cat([x, scale], 1).contiguous(memory_format=self.layout), told)
        x = together(self.last(x), self.strides[0])
        for axis, length in enumerate(self.size, start=2):
            x = x.narrow(axis, 0, length)
        return x


def apart(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Images ``(n, c, ...)`` with the pixels of each block of `stride` as channels of one (space to depth)."""
    n, channels, *size = x.shape
    blocks = x.view(
        n, channels, *(part for length, step in zip(size, stride, strict=True) for part in (length // step, step))
    )
    within = [3 + 2 * axis for axis in range(len(size))]
    between = [2 + 2 * axis for axis in range(len(size))]
    moved = blocks.permute(0, 1, *within, *between)
    return moved.reshape(n, -1, *moved.shape[2 + len(size) :])


def together(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The inverse of `apart`, as a sub-pixel convolution ends (Shi et al. 2016)."""
    n, _, *size = x.shape
    blocks = x.reshape(n, -1, *stride, *size)
    order = [place for axis in range(len(size)) for place in (2 + len(size) + axis, 2 + axis)]
    joined = [length * step for length, step in zip(size, stride, strict=True)]
    return blocks.permute(0, 1, *order).reshape(n, -1, *joined)


class ConditionalModule(nn.Module):
    """Network and likelihood of structures; what a batch holds is described in `latentcell.cells.structures`.

    Parameters
    ----------
    image_shape
        ``(1 + R, ...)``.
    n_structures
        Number of structures; each has its own noise.
    likelihood
        A key of `LIKELIHOODS`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        n_structures: int,
        likelihood: str,
        *,
        n_latent: int,
        n_told: int,
        width: int,
    ) -> None:
        super().__init__()
        self.n_latent, self.n_structures = n_latent, n_structures
        self.likelihood = nn.ModuleList(LIKELIHOODS[likelihood](1) for _ in range(n_structures))
        self.network = ConditionalNet(image_shape, n_latent, n_told=n_told, width=width)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Posterior, Tensor]:
        """Log likelihood ``(n,)`` at one posterior draw, the posterior and the draw ``(n, d)``."""
        posterior = self.network.encode(batch.dense, batch.covariates)
        z = posterior.draw(generator)
        return self.log_likelihood(batch, z), posterior, z

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Log p(t | z, r, c) of each structure in nats, ``(n,)``."""
        assert batch.covariates is not None
        target, reference = batch.dense[:, :1], batch.dense[:, 1:]
        return self.log_prob(batch, target, self.network.decode(z, reference, batch.covariates))

    def log_prob(self, batch: Batch, target: Tensor, params: Tensor) -> Tensor:
        """Log density of `target` under decoded `params`, each by the noise of its structure, ``(n,)``."""
        assert batch.covariates is not None
        shown = batch.covariates[:, : self.n_structures].argmax(1)
        log_p = target.new_zeros(len(target))
        for structure in shown.unique():
            rows = (shown == structure).nonzero()[:, 0]
            mask = None if batch.mask is None else batch.mask[rows]
            likelihood: Any = self.likelihood[int(structure)]
            log_p = log_p.index_put((rows,), likelihood.log_prob(target[rows], params[rows], None, mask))
        return log_p
