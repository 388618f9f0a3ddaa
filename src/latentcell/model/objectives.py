"""Objectives: what training maximises, the evidence lower bound or a reweighting of it.

An objective is called with the log likelihood of each cell in nats, the posterior, the draw z, the number of training
cells and the step, and returns `Terms`. Whatever it optimises, it always reports the true bound (beta = 1, no free
bits), on which early stopping and every comparison between models rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from latentcell.errors import InputError


class Posterior(NamedTuple):
    """Approximate posterior q(z | x) = N(mu, exp(log_var)), each ``(n, d)``."""

    mu: Tensor
    log_var: Tensor

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per cell by the reparameterisation trick (Kingma and Welling 2014), ``(n, d)``."""
        noise = torch.randn(self.mu.shape, generator=generator, dtype=self.mu.dtype)
        return self.mu + (0.5 * self.log_var).exp() * noise.to(self.mu.device)

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each cell and dimension in nats, ``(n, d)`` (Kingma and Welling 2014, app. B)."""
        return 0.5 * (self.mu.square() + self.log_var.exp() - 1 - self.log_var)


@dataclass(frozen=True)
class Terms:
    """What an objective returns.

    Attributes
    ----------
    loss
        Scalar to minimise, nats per cell.
    elbo
        True evidence lower bound of each cell in nats, ``(n,)``.
    kl_per_dim
        KL of each latent dimension averaged over the batch, ``(d,)``.
    extras
        Further named scalars to log, such as the current beta.
    """

    loss: Tensor
    elbo: Tensor
    kl_per_dim: Tensor
    extras: dict[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """The seam between training and what is optimised."""

    @property
    def schedule_steps(self) -> int:
        """Optimiser steps after which the objective no longer changes."""
        ...

    @property
    def optimises_elbo(self) -> bool:
        """Whether the final objective is the ELBO itself, so that any weights may be judged by it."""
        ...

    def within(self, n_steps: int) -> Objective:
        """Return the same objective with a schedule that leaves most of `n_steps` to the final objective."""
        ...

    def __call__(self, log_px: Tensor, posterior: Posterior, z: Tensor, n_train: int, step: int) -> Terms:
        """Terms of one batch; `log_px` is ``(n,)`` in nats, `z` ``(n, d)``, `step` counts optimiser steps."""
        ...


@dataclass(frozen=True)
class Beta:
    """KL weighed by beta (Higgins et al. 2017), with a linear warm-up and free bits.

    Parameters
    ----------
    beta
        Weight of the KL. The same as dividing the likelihood's log density by beta.
    warmup
        Optimiser steps over which the weight rises linearly from 0 to beta; at most a third of a fit. With too short
        a warm-up weak factors are given up before they are found.
    free_bits
        Nats per latent dimension that cost nothing: sum_j max(free_bits, batch-mean KL_j) (Kingma et al. 2016).
    """

    beta: float = 4.0
    warmup: int = 1000
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= value < math.inf for value in (self.beta, self.warmup, self.free_bits)):
            raise InputError(f"{self}: beta, warmup and free_bits must be finite and not negative.")

    @property
    def schedule_steps(self) -> int:
        """Optimiser steps of the warm-up."""
        return self.warmup

    @property
    def optimises_elbo(self) -> bool:
        """Whether beta is 1 and no bits are free."""
        return self.beta == 1 and self.free_bits == 0

    def within(self, n_steps: int) -> Self:
        """Return the same objective, warmed up within the first third of `n_steps`."""
        return replace(self, warmup=min(self.warmup, n_steps // 3))

    def __call__(self, log_px: Tensor, posterior: Posterior, z: Tensor, n_train: int, step: int) -> Terms:
        """Terms of one batch."""
        kl = posterior.kl()
        kl_per_dim = kl.mean(0)
        weight = self.beta * min(1.0, (step + 1) / self.warmup) if self.warmup else self.beta
        loss = weight * kl_per_dim.clamp(min=self.free_bits).sum() - log_px.mean()
        return Terms(loss, log_px - kl.sum(1), kl_per_dim, {"beta": weight})


@dataclass(frozen=True)
class ELBO(Beta):
    """The evidence lower bound itself: `Beta` with beta = 1."""

    beta: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class Capacity:
    """KL held at a capacity that grows linearly (Burgess et al. 2018, eq. 8): gamma |batch-mean KL - C(step)|.

    Parameters
    ----------
    capacity
        Final capacity C in nats per cell.
    gamma
        Weight of the deviation.
    steps
        Optimiser steps over which C grows from 0.
    """

    capacity: float = 10.0
    gamma: float = 10.0
    steps: int = 1000

    def __post_init__(self) -> None:
        if not (0 <= self.capacity < math.inf and 0 < self.gamma < math.inf and self.steps >= 1):
            raise InputError(f"{self}: capacity must be finite and not negative; gamma and steps must be positive.")

    @property
    def schedule_steps(self) -> int:
        """Optimiser steps over which the capacity grows."""
        return self.steps

    @property
    def optimises_elbo(self) -> bool:
        """Never: the KL is held at the capacity."""
        return False

    def within(self, n_steps: int) -> Self:
        """Return the same objective, grown to its capacity within the first two thirds of `n_steps`."""
        return replace(self, steps=max(1, min(self.steps, 2 * n_steps // 3)))

    def __call__(self, log_px: Tensor, posterior: Posterior, z: Tensor, n_train: int, step: int) -> Terms:
        """Terms of one batch."""
        kl = posterior.kl()
        target = self.capacity * min(1.0, (step + 1) / self.steps)
        loss = self.gamma * torch.abs(kl.sum(1).mean() - target) - log_px.mean()
        return Terms(loss, log_px - kl.sum(1), kl.mean(0), {"capacity": target})


def parse(text: str) -> Objective:
    """Objective from its command-line form: ``elbo``, ``beta=4``, ``capacity=10``, ``beta=4,free_bits=0.1``.

    Raises
    ------
    InputError
        If the name, a parameter or a value is not understood.
    """
    head, *rest = (part.strip() for part in text.split(","))
    name, _, value = head.partition("=")
    kinds = {"elbo": ELBO, "beta": Beta, "capacity": Capacity}
    try:
        kind = kinds[name.lower()]
        options: dict[str, float] = {name.lower(): float(value)} if value else {}
        for part in rest:
            key, _, number = part.partition("=")
            options[key] = int(number) if key in {"warmup", "steps"} else float(number)
        return kind(**options)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The objective {text!r} is not understood. Write elbo, beta=4 or capacity=10, optionally followed by "
            "comma-separated options such as beta=4,warmup=500,free_bits=0.1."
        ) from None


def describe(objective: Objective) -> dict[str, object]:
    """Name and parameters of an objective, for reports and model files."""
    return {"name": type(objective).__name__, **vars(objective)}


def from_description(stored: dict[str, object]) -> Objective:
    """Inverse of `describe`."""
    options = {key: value for key, value in stored.items() if key != "name"}
    if stored["name"] == "ELBO":
        options.pop("beta", None)
    kind = {"ELBO": ELBO, "Beta": Beta, "Capacity": Capacity}[str(stored["name"])]
    return kind(**options)
