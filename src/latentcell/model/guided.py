"""The objective of a model with guided or nuisance factors: another objective and what factors add to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentcell.model.aggregate import dependence
from latentcell.model.critic import Critic
from latentcell.model.objectives import Objective, Terms
from latentcell.model.posterior import Posterior


@dataclass(frozen=True)
class Guided:
    """Another objective for a model with guided or nuisance factors; see `latentcell.Factors`.

    Parameters
    ----------
    objective
        What is optimised beside.
    weight
        Weight of the expected log density of each cell's position given its code, beyond what the prior asks for
        (the label term of Kingma et al. 2014, eq. 9).
    independence
        Weight in nats of the dependence between nuisance and what factors leave unsaid of the code (the constraint of
        Lopez et al. 2018).
    """

    objective: Objective
    weight: float
    independence: float

    @property
    def schedule_steps(self) -> int:
        """Those of the other objective."""
        return self.objective.schedule_steps

    @property
    def optimises_elbo(self) -> bool:
        """Never: the early part of a fit must not win by leaving factors alone."""
        return False

    @property
    def fits_posterior(self) -> bool:
        """As the other objective."""
        return self.objective.fits_posterior

    @property
    def compares_cells(self) -> bool:
        """As the other objective, or to tell how the code depends on a nuisance."""
        return self.independence > 0 or self.objective.compares_cells

    @property
    def critic(self) -> Critic | None:
        """That of the other objective."""
        return self.objective.critic

    def merit(self, log_px: Tensor, posterior: Posterior) -> Tensor:
        """That of the other objective, less what positions of held-out cells cost."""
        merit = self.objective.merit(log_px, posterior)
        if posterior.known is None:
            return merit
        return merit - self.weight * posterior.known.misplaced(posterior.mu, posterior.log_var)

    def within(self, n_steps: int) -> Objective:
        """Return the same with the other objective's schedule within `n_steps`."""
        return replace(self, objective=self.objective.within(n_steps))

    def started(self, n_latent: int, seed: int, device: torch.device) -> Objective:
        """Return the same with the other objective ready."""
        return replace(self, objective=self.objective.started(n_latent, seed, device))

    def __call__(self, log_px: Tensor, posterior: Posterior, z: Tensor, n_train: int, step: int) -> Terms:
        """Terms of one batch."""
        terms = self.objective(log_px, posterior, z, n_train, step)
        known = posterior.known
        if known is None:
            return terms
        loss, extras = terms.loss, dict(terms.extras)
        if self.weight and not bool(known.position.isnan().all()):
            misplaced = known.misplaced(posterior.mu, posterior.log_var).mean()
            loss, extras["misplaced"] = loss + self.weight * misplaced, float(misplaced.detach())
        if self.independence and known.nuisance is not None and len(z) > 3:
            told = dependence(known.deviation(posterior.mu), known.nuisance)
            loss, extras["nuisance"] = loss + self.independence * told, float(told.detach())
        return replace(terms, loss=loss, extras=extras)
