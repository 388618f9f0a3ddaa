"""Objectives: what training maximises, the evidence lower bound or a reweighting of it.

An objective is called with the log likelihood of each cell in nats, the posterior, the draw z, the number of training
cells and the step, and returns `Terms`. Whatever it optimises, it always reports the true bound (beta = 1, no free
bits), on which early stopping and every comparison between models rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from latentcell.errors import InputError
from latentcell.model.aggregate import decomposition, distance_from_prior, off_diagonal_moments
from latentcell.model.critic import Critic
from latentcell.model.posterior import Posterior


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

    @property
    def fits_posterior(self) -> bool:
        """Whether the KL of every cell counts, so that posterior variances mean something."""
        ...

    @property
    def compares_cells(self) -> bool:
        """Whether it estimates what the cells of a minibatch are like together, which takes many of them."""
        ...

    @property
    def critic(self) -> Critic | None:
        """What is trained beside the model and belongs in a checkpoint."""
        ...

    def within(self, n_steps: int) -> Objective:
        """Return the same objective with a schedule that leaves most of `n_steps` to the final objective."""
        ...

    def merit(self, log_px: Tensor, posterior: Posterior) -> Tensor:
        """What early stopping wants high in each held-out cell, nats, ``(n,)``: the true bound, where that is asked."""
        ...

    def started(self, n_latent: int, seed: int, device: torch.device) -> Objective:
        """Return the same objective, ready to train a model of `n_latent` dimensions."""
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
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise InputError(f"{self}: {each.name} must be finite and not negative.")

    @property
    def schedule_steps(self) -> int:
        """Optimiser steps of the warm-up."""
        return self.warmup

    @property
    def optimises_elbo(self) -> bool:
        """Whether beta is 1, no bits are free and nothing is added."""
        return type(self) in (Beta, ELBO) and self.beta == 1 and self.free_bits == 0

    @property
    def fits_posterior(self) -> bool:
        """Whether the KL has a weight."""
        return self.beta > 0

    @property
    def compares_cells(self) -> bool:
        """Whether a penalty is added: all of them are estimated from the batch."""
        return type(self).penalty is not Beta.penalty

    @property
    def critic(self) -> Critic | None:
        """None."""
        return None

    def within(self, n_steps: int) -> Self:
        """Return the same objective, warmed up within the first third of `n_steps`."""
        return replace(self, warmup=min(self.warmup, n_steps // 3))

    def started(self, n_latent: int, seed: int, device: torch.device) -> Objective:
        """Return the objective itself: it has no state."""
        return self

    def merit(self, log_px: Tensor, posterior: Posterior) -> Tensor:
        """Evidence lower bound; log likelihood where the KL has no weight, and so says nothing against a model."""
        return log_px - posterior.kl().sum(1) if self.fits_posterior else log_px

    def penalty(self, posterior: Posterior, z: Tensor, n_train: int, step: int) -> tuple[Tensor, dict[str, float]]:
        """What is added to the loss after warm-up, in nats per cell, and scalars to log; here nothing."""
        return z.new_zeros(()), {}

    def __call__(self, log_px: Tensor, posterior: Posterior, z: Tensor, n_train: int, step: int) -> Terms:
        """Terms of one batch."""
        ramp = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        kl = posterior.kl()
        kl_per_dim = kl.mean(0)
        penalty, extras = self.penalty(posterior, z, n_train, step)
        loss = ramp * (self.beta * kl_per_dim.clamp(min=self.free_bits).sum() + penalty) - log_px.mean()
        return Terms(loss, log_px - kl.sum(1), kl_per_dim, {"beta": ramp * self.beta, **extras})


@dataclass(frozen=True)
class ELBO(Beta):
    """The evidence lower bound itself: `Beta` with beta = 1."""

    beta: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class BetaTC(Beta):
    """ELBO with more weight on the total correlation, so that dimensions become independent (Chen et al. 2018).

    The KL is index-code information + total correlation + dimension-wise KL (`latentcell.model.aggregate`); the
    weights of the parts are `index_code`, `tc` and `dimension_wise`. Only the excess over 1 is estimated from the
    batch, by minibatch stratified sampling; the KL itself stays in closed form.

    Parameters
    ----------
    tc
        Weight of the total correlation.
    index_code, dimension_wise
        Weights of the other two parts.
    beta, warmup, free_bits
        As in `Beta`; beta multiplies the whole KL.
    """

    beta: float = 1.0
    tc: float = 6.0
    index_code: float = 1.0
    dimension_wise: float = 1.0

    def penalty(self, posterior: Posterior, z: Tensor, n_train: int, step: int) -> tuple[Tensor, dict[str, float]]:
        """Excess weights times the parts of the KL."""
        parts = decomposition(z, posterior.mu, posterior.log_var, n_train)
        excess = (self.index_code - 1, self.tc - 1, self.dimension_wise - 1)
        penalty = sum((w * part for w, part in zip(excess, parts, strict=True)), z.new_zeros(()))
        return penalty, {name: float(part.detach()) for name, part in parts._asdict().items()}


@dataclass(frozen=True)
class DIP(Beta):
    """ELBO with the covariance of codes drawn to the identity (Kumar et al. 2018).

    Parameters
    ----------
    dip
        Weight of the squared covariances between dimensions.
    kind
        1: covariance of posterior means; 2: of draws.
    diagonal
        Weight of the squared distance of the variances from 1, relative to `dip`; by default 10 for kind 1 and 1 for
        kind 2, as in the paper.
    beta, warmup, free_bits
        As in `Beta`.
    """

    beta: float = 1.0
    dip: float = 10.0
    kind: int = 1
    diagonal: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in (1, 2):
            raise InputError(f"{self}: there are two kinds of DIP-VAE, 1 and 2.")

    def penalty(self, posterior: Posterior, z: Tensor, n_train: int, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weight times the distance of the covariance from the identity."""
        diagonal = (10.0 if self.kind == 1 else 1.0) if self.diagonal is None else self.diagonal
        distance = off_diagonal_moments(posterior.mu, posterior.log_var if self.kind == 2 else None, diagonal)
        return self.dip * distance, {"moments": float(distance.detach())}


@dataclass(frozen=True)
class MMD(Beta):
    """InfoVAE: all codes together drawn to the prior instead of each (Zhao et al. 2019, eq. 6).

    With the default weight 0 of each cell's KL the posterior may be as narrow as it likes: its variance means nothing
    and is not given out.

    Parameters
    ----------
    mmd
        Weight of the squared maximum mean discrepancy between codes and prior, in nats.
    beta, warmup, free_bits
        As in `Beta`.
    """

    beta: float = 0.0
    mmd: float = 1000.0

    def penalty(self, posterior: Posterior, z: Tensor, n_train: int, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weight times the squared discrepancy."""
        distance = distance_from_prior(z)
        return self.mmd * distance, {"mmd": float(distance.detach())}


@dataclass(frozen=True)
class FactorVAE(Beta):
    """ELBO with a weight on the total correlation as a critic estimates it (Kim and Mnih 2018, eq. 2).

    Parameters
    ----------
    tc
        Weight added to the total correlation (the paper's gamma).
    beta, warmup, free_bits
        As in `Beta`.
    """

    beta: float = 1.0
    tc: float = 10.0
    trained: Critic | None = field(default=None, repr=False, compare=False)

    @property
    def critic(self) -> Critic | None:
        """The discriminator between codes and shuffled codes."""
        return self.trained

    def started(self, n_latent: int, seed: int, device: torch.device) -> Objective:
        """Return the same objective with a new critic."""
        return replace(self, trained=Critic(n_latent, seed, device))

    def penalty(self, posterior: Posterior, z: Tensor, n_train: int, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weight times the critic's estimate, after a step of the critic on the same codes."""
        if self.trained is None:
            raise RuntimeError("FactorVAE has no critic before started()")
        self.trained.learn(z.detach(), step)
        estimate = self.trained.total_correlation(z)
        return self.tc * estimate, {"total_correlation": float(estimate.detach())}


@dataclass(frozen=True)
class Capacity:
    """KL held at a capacity that grows linearly (Burgess et al. 2018, eq. 8): ``gamma |batch-mean KL - C(step)|``.

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

    @property
    def compares_cells(self) -> bool:
        """Not: it looks at the mean KL only."""
        return False

    @property
    def fits_posterior(self) -> bool:
        """Always."""
        return True

    @property
    def critic(self) -> Critic | None:
        """None."""
        return None

    def started(self, n_latent: int, seed: int, device: torch.device) -> Objective:
        """Return the objective itself: it has no state."""
        return self

    def merit(self, log_px: Tensor, posterior: Posterior) -> Tensor:
        """Evidence lower bound."""
        return log_px - posterior.kl().sum(1)

    def within(self, n_steps: int) -> Self:
        """Return the same objective, grown to its capacity within the first two thirds of `n_steps`."""
        return replace(self, steps=max(1, min(self.steps, 2 * n_steps // 3)))

    def __call__(self, log_px: Tensor, posterior: Posterior, z: Tensor, n_train: int, step: int) -> Terms:
        """Terms of one batch."""
        kl = posterior.kl()
        target = self.capacity * min(1.0, (step + 1) / self.steps)
        loss = self.gamma * torch.abs(kl.sum(1).mean() - target) - log_px.mean()
        return Terms(loss, log_px - kl.sum(1), kl.mean(0), {"capacity": target})


# name on the command line -> class and the field that the number behind the name sets
_KINDS: dict[str, tuple[type, str]] = {
    "elbo": (ELBO, "elbo"),
    "beta": (Beta, "beta"),
    "capacity": (Capacity, "capacity"),
    "tc": (BetaTC, "tc"),
    "dip": (DIP, "dip"),
    "mmd": (MMD, "mmd"),
    "factorvae": (FactorVAE, "tc"),
}
_WHOLE = ("warmup", "steps", "kind")


def parse(text: str) -> Objective:
    """Objective from its command-line form, such as ``elbo``, ``beta=4``, ``tc=6`` or ``beta=4,free_bits=0.1``.

    Names: ``elbo``, ``beta``, ``capacity``, ``tc`` (`BetaTC`), ``dip``, ``mmd``, ``factorvae``; further parameters of
    the class follow, separated by commas.

    Raises
    ------
    InputError
        If the name, a parameter or a value is not understood.
    """
    head, *rest = (part.strip() for part in text.split(","))
    name, _, value = head.partition("=")
    try:
        kind, main = _KINDS[name.lower()]
        options: dict[str, float] = {main: float(value)} if value else {}
        for part in rest:
            key, _, number = part.partition("=")
            if key == "trained":
                raise KeyError(key)
            options[key] = int(number) if key in _WHOLE else float(number)
        return kind(**options)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The objective {text!r} is not understood. Write elbo, beta=4, capacity=10, tc=6, dip=10, mmd=1000 or "
            "factorvae=10, optionally followed by comma-separated options such as beta=4,warmup=500,free_bits=0.1."
        ) from None


def describe(objective: Objective) -> dict[str, object]:
    """Name and parameters of an objective, for reports and model files."""
    stored = {name: value for name, value in vars(objective).items() if name != "trained"}
    return {"name": type(objective).__name__, **stored}


def from_description(stored: dict[str, object]) -> Objective:
    """Inverse of `describe`."""
    kind = {each.__name__: each for each, _ in _KINDS.values()}[str(stored["name"])]
    settable = {each.name for each in fields(kind) if each.init}
    return kind(**{key: value for key, value in stored.items() if key in settable})
