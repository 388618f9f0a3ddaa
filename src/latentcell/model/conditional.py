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
from latentcell.model.levels import Levels, cropped, down, folded, transposed, unfolded
from latentcell.model.networks import posterior_of
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
        self.size, levels = tuple(size), Levels.of(size, width)
        self.levels, widths, strides = levels, levels.widths, levels.strides
        three_d, n_reference = len(size) == 3, channels - 1
        self.encoder = nn.ModuleList(
            _Level(down(a, b, stride, three_d), b, n_told)
            for a, b, stride in zip([channels, *widths], widths, strides, strict=False)
        )
        self.to_posterior = nn.Linear(levels.n_bottom + n_told, 2 * n_latent)
        self.from_code = nn.Linear(n_latent + n_told, levels.n_bottom)
        self.decoder = nn.ModuleList(
            _Level(transposed(a + n_reference, b, stride, three_d), b, n_told)
            for a, b, stride in zip(widths[:0:-1], widths[-2::-1], strides[:0:-1], strict=True)
        )
        # values of the finest level are channels of the one before, at which convolutions take a fraction of the time
        per_pixel, plain = math.prod(strides[0]), (1,) * len(size)
        self.finest = _Level(down(widths[0] + per_pixel * n_reference, widths[0], plain, three_d), widths[0], n_told)
        self.last = down(widths[0], per_pixel, plain, three_d)
        levels.lay_out(self)

    def encode(self, x: Any, told: Tensor | None) -> Posterior:
        """Posterior of the structure from ``(n, 1 + R, ...)`` and what is told ``(n, n_told)``."""
        assert told is not None
        x = self.levels.padded(x)
        for level in self.encoder:
            x = level(x, told)
        return posterior_of(self.to_posterior(torch.cat([x.flatten(1), told], 1)))

    def decode(self, z: Tensor, reference: Tensor, told: Tensor) -> Tensor:
        """Structure ``(n, 1, ...)`` at codes `z` ``(n, d)`` in cells of the given reference ``(n, R, ...)``."""
        scales, strides = [self.levels.padded(reference)], self.levels.strides
        pool = F.avg_pool3d if len(self.size) == 3 else F.avg_pool2d
        for stride in strides:
            scales.append(pool(scales[-1], stride))
        scales[1] = folded(scales[0], strides[0])
        x = self.levels.at_bottom(self.from_code(torch.cat([z, told], 1)))
        for level, scale in zip([*self.decoder, self.finest], scales[:0:-1], strict=True):
            x = level(torch.cat([x, scale], 1).contiguous(memory_format=self.levels.layout), told)
        return cropped(unfolded(self.last(x), strides[0]), self.size)


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
