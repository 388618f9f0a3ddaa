"""Encoders and decoders: plain modules that know shapes, not biology.

Both kinds share one interface: ``encode(x, covariates) -> Posterior`` and ``decode(z, covariates) -> params`` with
`x` ``(n, channels, ...)``, `covariates` ``(n, k)`` one-hot or None, `params` ``(n, n_outputs, ...)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentcell.cells.counts import Counts
from latentcell.model import counted
from latentcell.model.layers import GroupNormSiLU, Layers, NormSiLU
from latentcell.model.levels import Levels, cropped, down, transposed
from latentcell.model.posterior import Posterior

# bounds on the log posterior variance: exp(-15) is beyond float32 noise of mu, exp(5) far wider than the prior
_LOG_VAR = (-15.0, 5.0)


class Network(Protocol):
    """What the model needs of a network."""

    def encode(self, x: Any, covariates: Tensor | None = None) -> Posterior:
        """Posterior of each cell."""
        ...

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Raw likelihood parameters of each cell."""
        ...


class MLP(nn.Module):
    """Fully connected encoder and decoder for counts and profiles.

    Parameters
    ----------
    n_inputs, n_outputs
        Number of genes or features, and of numbers that the likelihood needs for them.
    n_latent
        Latent dimensions d.
    hidden
        Widths of the encoder's hidden layers; the decoder mirrors them.
    n_covariates
        Width k of the one-hot covariates given to the decoder's first layer; the encoder does not see them.
    counts
        Whether inputs are counts: the encoder then sees log(1 + x), and the outer layers are laid out for sparse rows.
    dropout
        Share of hidden units that the encoder loses at random in training, against learning single cells by heart.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        n_latent: int,
        *,
        hidden: Sequence[int] = (128, 128),
        n_covariates: int = 0,
        counts: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(n_inputs, hidden[0])
        self.encoder = Layers(*_dense(hidden), nn.Linear(hidden[-1], 2 * n_latent), dropout=dropout)
        reverse = list(reversed(hidden))
        self.decoder = Layers(nn.Linear(n_latent + n_covariates, reverse[0]), *_dense(reverse))
        self.last = nn.Linear(reverse[-1], n_outputs)
        if counts:
            counted.lay_out(self.first)
            counted.lay_out(self.last)

    def encode(self, x: Tensor | Counts, covariates: Tensor | None = None) -> Posterior:
        """Posterior of each cell from ``(n, n_inputs)``."""
        hidden = counted.log1p_linear(x, self.first) if isinstance(x, Counts) else self.first(x)
        return posterior_of(self.encoder(hidden))

    def hidden(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Last hidden layer of the decoder, ``(n, h)``."""
        return self.decoder(_with_covariates(z, covariates))

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Likelihood parameters ``(n, n_outputs)``."""
        return self.last(self.hidden(z, covariates))


class ConvNet(nn.Module):
    """Strided convolutional encoder and decoder for 2-D and 3-D images of any size.

    Each level halves every axis that is still longer than 4 and doubles the width; levels are added until the longest
    axis is at most 4. Images are padded with zeros to a multiple of the strides and cropped after decoding.

    Parameters
    ----------
    image_shape
        ``(C, H, W)`` or ``(C, Z, H, W)``.
    n_outputs
        Channels that the likelihood needs.
    n_latent
        Latent dimensions d.
    width
        Channels of the first level (16 gives 16-32-64-128 for 64 x 64).
    n_covariates
        Width k of the one-hot covariates given to the decoder's first layer; the encoder does not see them.
    """

    def __init__(
        self, image_shape: Sequence[int], n_outputs: int, n_latent: int, *, width: int = 16, n_covariates: int = 0
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        self.size, levels = tuple(size), Levels.of(size, width)
        self.levels, widths, strides, three_d = levels, levels.widths, levels.strides, len(size) == 3
        shrinking = zip([channels, *widths], widths, strides, strict=False)
        growing = zip(widths[:0:-1], widths[:-1][::-1], strides[:0:-1], strict=True)
        narrow = [nn.Sequential(down(a, b, s, three_d), _norm(b)) for a, b, s in shrinking]
        widen = [nn.Sequential(transposed(a, b, s, three_d), _norm(b)) for a, b, s in growing]
        self.encoder = nn.Sequential(*narrow, nn.Flatten(), nn.Linear(levels.n_bottom, 2 * n_latent))
        self.decoder_input = nn.Linear(n_latent + n_covariates, levels.n_bottom)
        self.decoder = nn.Sequential(*widen, transposed(widths[0], n_outputs, strides[0], three_d))
        levels.lay_out(self)

    def encode(self, x: Tensor, covariates: Tensor | None = None) -> Posterior:
        """Posterior of each cell from ``(n, C, ...)``."""
        return posterior_of(self.encoder(self.levels.padded(x)))

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Likelihood parameters ``(n, n_outputs, ...)`` at the size of the images."""
        flat = self.decoder_input(_with_covariates(z, covariates))
        return cropped(self.decoder(self.levels.at_bottom(flat)), self.size)


def posterior_of(outputs: Tensor) -> Posterior:
    """Posterior from means and log variances side by side, ``(n, 2 d)``."""
    mu, log_var = outputs.chunk(2, 1)
    return Posterior(mu, log_var.clamp(*_LOG_VAR))


def _with_covariates(z: Tensor, covariates: Tensor | None) -> Tensor:
    return z if covariates is None else torch.cat([z, covariates.to(z)], 1)


def _dense(widths: Sequence[int]) -> list[NormSiLU | nn.Linear]:
    """What follows a first linear layer: the activation of each layer, and the linear ones between."""
    layers: list[NormSiLU | nn.Linear] = []
    for i, width in enumerate(widths):
        layers.append(NormSiLU(width))
        if i + 1 < len(widths):
            layers.append(nn.Linear(width, widths[i + 1]))
    return layers


def _norm(channels: int) -> nn.Module:
    return GroupNormSiLU(math.gcd(8, channels), channels)
