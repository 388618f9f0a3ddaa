"""Likelihoods p(x | z): what noise the decoder allows.

A likelihood turns the raw outputs of a decoder (`params`) into a normalised distribution over the measurements. It
knows tensors only. Axis 1 is the channel of an image or the gene or feature of a vector, and every likelihood sums
its log density in nats over all measured values of a cell: averaging over pixels instead would imply a noise variance
of D/2 and a collapsed latent space.

Shapes: `x` is ``(n, channels, ...)``, `params` ``(n, n_outputs(channels), ...)``, `size` the library size ``(n,)``
(counts only), `mask` broadcasts against `x` (1 inside the cell, 0 outside).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Support = Literal["real", "unit", "nonnegative", "counts"]

_LOG_2PI = math.log(2 * math.pi)
_EPS = 1e-8
# bounds of the log dispersion: beyond, a gene is Poisson or almost always 0
LOG_THETA = (-10.0, 10.0)
# logit of an extra zero before training: most zeros are those of a low mean, and extra ones are slow to unlearn
_FEW_EXTRA_ZEROS = -3.0


class Likelihood(nn.Module, ABC):
    """Base of all likelihoods; a new one defines `pointwise`, `mean` and `sample`.

    Attributes
    ----------
    support
        Which values `x` may take; the estimator scales measurements to fit: ``"real"`` anything, ``"unit"`` [0, 1],
        ``"nonnegative"`` zero point kept, ``"counts"`` whole numbers, unscaled.
    outputs_per_channel
        How many numbers the decoder must give for each channel.
    """

    support: ClassVar[Support] = "real"
    outputs_per_channel: ClassVar[int] = 1

    def n_outputs(self, channels: int) -> int:
        """Number of decoder outputs for `channels` measured channels."""
        return channels * self.outputs_per_channel

    def log_prob(self, x: Tensor, params: Tensor, size: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Log density of each cell in nats, ``(n,)``, summed over the values inside `mask`.

        In training mode a likelihood with an analytic noise level also updates it from the residuals.
        """
        if self.training:
            self.track(x, params, mask)
        log_p = self.pointwise(x, params, size)
        if mask is not None:
            # not a product: outside the mask the density may be infinite
            log_p = torch.where(mask > 0, log_p, torch.zeros_like(log_p))
        return log_p.flatten(1).sum(1)

    def track(self, x: Tensor, params: Tensor, mask: Tensor | None) -> None:
        """Update parameters that have a closed-form optimum; nothing to do by default."""

    @abstractmethod
    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log density of every value, shape of `x`."""

    @abstractmethod
    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected measurement, shape of `x`."""

    @abstractmethod
    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """One draw of the measurement per cell, shape of `x`."""


class _TrackedVariance(Likelihood):
    """A residual variance per channel at its analytic optimum (sigma-VAE: Rybkin et al. 2021, eq. 4).

    The optimum of the expected log density over sigma is the mean squared residual. It is tracked by a moving average
    over minibatches and held fixed in the loss: the gradient for the network equals that of the batch-wise optimum,
    while the density of one cell does not depend on the other cells of its batch.
    """

    variance: Tensor
    n_updates: Tensor

    def __init__(self, n_channels: int, *, floor: float = 1e-4, memory: float = 0.98) -> None:
        super().__init__()
        self.floor = floor
        self.memory = memory
        self.register_buffer("variance", torch.ones(n_channels))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def _track_squares(self, squares: Tensor, mask: Tensor | None) -> None:
        axes = [0, *range(2, squares.dim())]
        if mask is None:
            batch = squares.mean(axes)
        else:
            weight = mask.expand_as(squares)
            batch = (squares * weight).sum(axes) / weight.sum(axes).clamp(min=1)
        self.n_updates += 1
        # the first batches weigh equally, later ones decay: no bias towards the initial value
        keep = torch.clamp(1 - 1 / self.n_updates.to(batch.dtype), max=self.memory)
        self.variance.mul_(keep).add_(batch.clamp(min=self.floor**2).to(self.variance) * (1 - keep))

    def _variance(self, x: Tensor) -> Tensor:
        return _per_channel(self.variance, x).clamp(min=self.floor**2)


class Gaussian(_TrackedVariance):
    """Normal noise, one variance per image channel or per feature, at its analytic optimum.

    Parameters
    ----------
    n_channels
        Number of channels or features.
    floor
        Smallest standard deviation, in scaled units.
    """

    def track(self, x: Tensor, params: Tensor, mask: Tensor | None) -> None:
        """Move the variances towards the mean squared residual of the batch."""
        self._track_squares((x - params.detach()).square(), mask)

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log density of every value."""
        variance = self._variance(x)
        return -0.5 * ((x - params).square() / variance + variance.log() + _LOG_2PI)

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected measurement."""
        return params

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw measurements."""
        noise = torch.from_numpy(rng.standard_normal(tuple(params.shape), dtype=np.float32)).to(params)
        return params + self._variance(params).sqrt() * noise


class StudentT(Likelihood):
    """Student's t noise with a learned scale and degrees of freedom per feature: robust to outliers."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((n_channels,), -0.5))
        self.raw_df = nn.Parameter(torch.full((n_channels,), 1.0))

    def _distribution(self, params: Tensor) -> torch.distributions.StudentT:
        scale = _per_channel(self.log_scale, params).clamp(min=-7).exp()
        df = 2 + F.softplus(_per_channel(self.raw_df, params)) * 4  # above 2, so that the variance exists
        return torch.distributions.StudentT(df.expand_as(params), params, scale.expand_as(params), validate_args=False)

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log density of every value."""
        return self._distribution(params).log_prob(x)

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected measurement."""
        return params

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw measurements."""
        distribution = self._distribution(params)
        draw = rng.standard_t(distribution.df.cpu().numpy())
        return params + distribution.scale * torch.from_numpy(draw).to(params)


class Bernoulli(Likelihood):
    """Two-valued pixels: masks."""

    support = "unit"

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log probability of every value; values that resampling has left between 0 and 1 count as the nearer."""
        return -F.binary_cross_entropy_with_logits(params, (x > 0.5).to(params), reduction="none")

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Probability of one."""
        return torch.sigmoid(params)

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw zeros and ones."""
        return (_uniform_like(params, rng) < torch.sigmoid(params)).to(params)


class ContinuousBernoulli(Likelihood):
    """Density on [0, 1] with the Bernoulli's form, normalised (Loaiza-Ganem and Cunningham 2019).

    Its mean is not its parameter: `mean` returns the mean.
    """

    support = "unit"

    @staticmethod
    def _distribution(params: Tensor) -> torch.distributions.ContinuousBernoulli:
        # beyond 15 the normalising constant's sigmoid rounds to one in float32
        return torch.distributions.ContinuousBernoulli(logits=params.clamp(-15, 15), validate_args=False)

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log density of every value."""
        return self._distribution(params).log_prob(x)

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected measurement."""
        return self._distribution(params).mean

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw measurements through the inverse distribution function."""
        return self._distribution(params).icdf(_uniform_like(params, rng))


class DiscretizedLogistic(Likelihood):
    """Logistic noise integrated over the camera's grey levels (Salimans et al. 2017): probabilities, not densities.

    Parameters
    ----------
    bin_width
        Width of one grey level in scaled units, per channel.
    low, high
        Lowest and highest grey level in scaled units, per channel; they take the tails.
    """

    bin_width: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bin_width: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("bin_width", bin_width), ("low", low), ("high", high)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))
        self.log_scale = nn.Parameter(torch.full((len(bin_width),), -2.5))

    def _scale(self, like: Tensor) -> Tensor:
        return _per_channel(self.log_scale, like).clamp(min=-8).exp()

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log probability of the grey level nearest to every value."""
        scale, width, lowest = self._scale(x), _per_channel(self.bin_width, x), _per_channel(self.low, x)
        x = lowest + ((x - lowest) / width).round() * width
        upper = (x + width / 2 - params) / scale
        lower = (x - width / 2 - params) / scale
        # sigmoid(u) - sigmoid(l) = (1 - exp(l - u)) sigmoid(u) sigmoid(-l), exact where the difference underflows
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width / scale))
        at_low = x < lowest + width / 2
        at_high = x > _per_channel(self.high, x) - width / 2
        return torch.where(at_low, F.logsigmoid(upper), torch.where(at_high, F.logsigmoid(-lower), inside))

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Location clipped to the grey levels (the mean, but for the cut tails)."""
        return torch.minimum(torch.maximum(params, _per_channel(self.low, params)), _per_channel(self.high, params))

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw grey levels."""
        u = _uniform_like(params, rng).clamp(1e-6, 1 - 1e-6)
        draw = params + self._scale(params) * torch.logit(u)
        low, width = _per_channel(self.low, params), _per_channel(self.bin_width, params)
        return self.mean(low + ((draw - low) / width).round() * width)


class PoissonGaussian(_TrackedVariance):
    """Photon noise plus read noise, made of equal variance by Anscombe's transform.

    With gain g (stored units per photo-electron, in scaled units) the transform y = 2 sqrt(x / g + 3/8) of a Poisson
    signal has a standard deviation near one (Anscombe 1948). y is modelled as a normal truncated at zero, around
    the decoder's output and with a residual variance per channel at its optimum; the density of x follows by
    the change of variables, so it integrates to one over x > -3 g / 8.

    Parameters
    ----------
    gain
        Stored units per photo-electron in scaled units, per channel.
    """

    support = "nonnegative"
    gain: Tensor

    def __init__(self, gain: Sequence[float]) -> None:
        super().__init__(len(gain), floor=1e-2)
        self.register_buffer("gain", torch.as_tensor(gain, dtype=torch.float32))

    def _transform(self, x: Tensor) -> Tensor:
        return 2 * (x / _per_channel(self.gain, x) + 3 / 8).clamp(min=1e-3).sqrt()

    def _location(self, params: Tensor) -> Tensor:
        # the decoder works on the scale of the data, y / y(1)
        return params * 2 * (1 / _per_channel(self.gain, params) + 3 / 8).sqrt()

    def track(self, x: Tensor, params: Tensor, mask: Tensor | None) -> None:
        """Move the variances towards the mean squared residual of the transformed batch."""
        self._track_squares((self._transform(x) - self._location(params.detach())).square(), mask)

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log density of every value."""
        y, location, variance = self._transform(x), self._location(params), self._variance(x)
        log_normal = -0.5 * ((y - location).square() / variance + variance.log() + _LOG_2PI)
        log_inside = torch.special.log_ndtr(location / variance.sqrt())
        return log_normal - log_inside + torch.log(2 / (_per_channel(self.gain, x) * y))

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected measurement: exact second moment of the truncated normal, transformed back."""
        location, variance = self._location(params), self._variance(params)
        sd = variance.sqrt()
        ratio = location / sd
        hazard = torch.exp(-0.5 * (ratio.square() + _LOG_2PI) - torch.special.log_ndtr(ratio))
        second_moment = location.square() + variance + location * sd * hazard
        # far below zero the terms cancel in float32; there the truncated normal is an exponential of rate -ratio / sd
        second_moment = torch.where(ratio < -10, 2 * variance / ratio.square().clamp(min=1), second_moment)
        return _per_channel(self.gain, params) * (second_moment / 4 - 3 / 8)

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw measurements."""
        location, sd = self._location(params).double(), self._variance(params).double().sqrt()
        below = torch.special.ndtr(-location / sd)
        u = (below + _uniform_like(location, rng) * (1 - below)).clamp(_EPS, 1 - _EPS)
        y = (location + sd * torch.special.ndtri(u)).clamp(min=0).to(params)
        return _per_channel(self.gain, params) * (y.square() / 4 - 3 / 8)


class CountLikelihood(Likelihood):
    """Counts with the mean size * softmax(params)."""

    support = "counts"

    def at_profile(self, profile: Tensor) -> Tensor:
        """Decoder outputs that expect the same expression ``(g,)``, with the sum 1, in every cell."""
        scores = profile.log()
        return scores - scores.mean()


class Dispersed(CountLikelihood):
    """Counts with a dispersion theta per gene: variance mu + mu^2 / theta around the mean mu."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.log_theta = nn.Parameter(torch.zeros(n_channels))


class NegativeBinomial(Dispersed):
    """Negative binomial counts."""

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log probability of every count."""
        return _log_negative_binomial(x, _log_mean(params, size), self.log_theta)

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected counts at the library size."""
        return _log_mean(params, size).exp()

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw counts as a gamma mixture of Poissons."""
        return _draw_negative_binomial(self.mean(params, size), self.log_theta.exp(), rng)


class ZeroInflatedNegativeBinomial(Dispersed):
    """Negative binomial with extra zeros; the decoder's second half holds the logit of an extra zero."""

    outputs_per_channel = 2

    def at_profile(self, profile: Tensor) -> Tensor:
        """Decoder outputs that expect the same expression ``(g,)`` in every cell, and few extra zeros."""
        return torch.cat([super().at_profile(profile), torch.full_like(profile, _FEW_EXTRA_ZEROS)])

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log probability of every count."""
        scores, zero_logit = params.chunk(2, 1)
        log_nb = _log_negative_binomial(x, _log_mean(scores, size), self.log_theta)
        log_kept = F.logsigmoid(-zero_logit) + log_nb
        return torch.where(x > 0, log_kept, torch.logaddexp(F.logsigmoid(zero_logit), log_kept))

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected counts at the library size, extra zeros included."""
        scores, zero_logit = params.chunk(2, 1)
        return _log_mean(scores, size).exp() * torch.sigmoid(-zero_logit)

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw counts."""
        scores, zero_logit = params.chunk(2, 1)
        counts = _draw_negative_binomial(_log_mean(scores, size).exp(), self.log_theta.exp(), rng)
        return counts * (_uniform_like(zero_logit, rng) < torch.sigmoid(-zero_logit))


class Poisson(CountLikelihood):
    """Counts whose variance equals their mean."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()

    def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
        """Log probability of every count."""
        log_mu = _log_mean(params, size)
        return x * log_mu - log_mu.exp() - torch.lgamma(x + 1)

    def mean(self, params: Tensor, size: Tensor | None = None) -> Tensor:
        """Expected counts at the library size."""
        return _log_mean(params, size).exp()

    def sample(self, params: Tensor, size: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Draw counts."""
        mu = self.mean(params, size)
        return torch.from_numpy(rng.poisson(mu.double().cpu().numpy())).to(mu)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(channels,)`` to broadcast along axis 1 of `like`."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _uniform_like(like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(tuple(like.shape))).to(like)


def _log_mean(scores: Tensor, size: Tensor | None) -> Tensor:
    """Log of size * softmax(scores); the softmax alone (expression that sums to one) without a size."""
    log_scale = F.log_softmax(scores, dim=1)
    return log_scale if size is None else log_scale + size.clamp(min=_EPS).log().unsqueeze(1)


def _log_negative_binomial(x: Tensor, log_mu: Tensor, log_theta: Tensor) -> Tensor:
    log_theta = log_theta.clamp(*LOG_THETA)
    theta = log_theta.exp()
    log_ratio = log_mu - log_theta
    log_rising = torch.where(theta > 50, _stirling_difference(x, theta), torch.lgamma(x + theta) - torch.lgamma(theta))
    return log_rising - torch.lgamma(x + 1) - theta * F.softplus(log_ratio) - x * F.softplus(-log_ratio)


def _stirling_difference(x: Tensor, theta: Tensor) -> Tensor:
    """Return lgamma(x + theta) - lgamma(theta) for large theta, where float32 loses the difference."""
    total = x + theta
    return (theta - 0.5) * torch.log1p(x / theta) + x * (total.log() - 1) + (1 / total - 1 / theta) / 12


def _draw_negative_binomial(mu: Tensor, theta: Tensor, rng: np.random.Generator) -> Tensor:
    shape = theta.detach().double().cpu().numpy()
    rate = rng.gamma(shape, mu.detach().double().cpu().numpy() / shape)
    return torch.from_numpy(rng.poisson(rate)).to(mu)
