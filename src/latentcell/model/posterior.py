"""Codes of a batch of cells as a distribution, and what else is known of the cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Known(NamedTuple):
    """What is known of cells beside their measurements.

    Attributes
    ----------
    position
        Where each cell's factors say its code lies a priori, ``(n, d)``; NaN in free dimensions and where a factor is
        unknown.
    spread
        SD of codes around that position.
    nuisance
        What the code should not tell, as numeric columns ``(n, k)``, or None.
    """

    position: Tensor
    spread: float
    nuisance: Tensor | None

    def deviation(self, mu: Tensor) -> Tensor:
        """What factors leave unsaid of codes ``(n, d)``: the code itself where none are known."""
        return mu - self.position.nan_to_num(0.0)

    def misplaced(self, mu: Tensor, log_var: Tensor) -> Tensor:
        """Expected squared distance of codes from their positions in units of 2 spread^2, ``(n,)`` nats."""
        square = self.deviation(mu).square() + log_var.exp()
        return (square * ~self.position.isnan()).sum(1) / (2 * self.spread**2)


class Posterior(NamedTuple):
    """Approximate posterior q(z | x) = N(mu, exp(log_var)), each ``(n, d)``, and what else is known of the cells.

    The prior is N(0, I); where a factor u is known, that of its dimensions is N(position(u), spread^2) instead, the
    conditional prior of Khemakhem et al. (2020, eq. 3).
    """

    mu: Tensor
    log_var: Tensor
    known: Known | None = None

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per cell by the reparameterisation trick (Kingma and Welling 2014), ``(n, d)``."""
        noise = torch.randn(self.mu.shape, generator=generator, dtype=self.mu.dtype)
        return self.mu + (0.5 * self.log_var).exp() * noise.to(self.mu.device)

    def kl(self) -> Tensor:
        """KL from the prior of each cell and dimension in nats, ``(n, d)`` (Kingma and Welling 2014, app. B)."""
        if self.known is None:
            return 0.5 * (self.mu.square() + self.log_var.exp() - 1 - self.log_var)
        guided = ~self.known.position.isnan()
        log_prior = guided * (2 * math.log(self.known.spread))
        square = self.known.deviation(self.mu).square() + self.log_var.exp()
        return 0.5 * (square * torch.exp(-log_prior) - 1 - self.log_var + log_prior)
