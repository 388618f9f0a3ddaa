"""What a fit says about itself: which latent dimensions are in use, and how well held-out cells are explained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from latentcell.cells.batches import Batch
from latentcell.model.aggregate import decomposition, gaussian_total_correlation
from latentcell.model.conditional import ConditionalModule
from latentcell.model.module import VAEModule
from latentcell.model.posterior import Posterior

# variance of the posterior mean over cells above which a dimension counts as active (Burda et al. 2016)
_ACTIVE = 0.01


@torch.inference_mode()
def latent_report(
    module: VAEModule | ConditionalModule, batches: Sequence[Batch], rng: np.random.Generator
) -> pd.DataFrame:
    """Use of each latent dimension on a set of cells.

    Returns
    -------
    One row per dimension: ``dimension``, ``kl`` (mean KL in nats), ``active`` (Var(mu) > 0.01), ``var_mu``,
    ``mean_var`` (mean posterior variance; 1 where the dimension equals the prior), ``nll_change`` (nats per cell that
    the likelihood loses when the dimension is permuted across cells: near 0 means that the decoder ignores it).
    """
    device = next(module.parameters()).device
    moved = [batch.to(device) for batch in batches]
    posteriors = [module.network.encode(batch.x, batch.covariates) for batch in moved]
    mu = torch.cat([posterior.mu for posterior in posteriors])
    kl = torch.cat([posterior.kl() for posterior in posteriors]).mean(0)
    mean_var = torch.cat([posterior.log_var.exp() for posterior in posteriors]).mean(0)
    var_mu = mu.var(0, unbiased=False)

    def log_likelihood(codes: torch.Tensor) -> float:
        parts = codes.split([len(batch) for batch in moved])
        per_batch = [module.log_likelihood(batch, z) for batch, z in zip(moved, parts, strict=True)]
        return float(torch.cat(per_batch).double().mean())

    intact = log_likelihood(mu)
    changes = []
    for dimension in range(mu.shape[1]):
        permuted = mu.clone()
        permuted[:, dimension] = mu[torch.from_numpy(rng.permutation(len(mu))), dimension]
        changes.append(intact - log_likelihood(permuted))
    return pd.DataFrame(
        {
            "dimension": np.arange(mu.shape[1]),
            "kl": kl.cpu().numpy().astype(float),
            "active": (var_mu > _ACTIVE).cpu().numpy(),
            "var_mu": var_mu.cpu().numpy().astype(float),
            "mean_var": mean_var.cpu().numpy().astype(float),
            "nll_change": changes,
        }
    )


class Together(NamedTuple):
    """Dependence between latent dimensions in nats: estimated, and as if codes were jointly Gaussian."""

    total_correlation: float
    gaussian: float


@torch.inference_mode()
def total_correlation(
    module: VAEModule | ConditionalModule, batches: Iterable[Batch], n_train: int, seed: int
) -> Together:
    """Total correlation of the codes of many cells; see `latentcell.model.aggregate`.

    One draw per cell. Dimensions are independent where both are near 0.
    """
    device = next(module.parameters()).device
    module.eval()
    posteriors = [module.network.encode(each.x, each.covariates) for each in (batch.to(device) for batch in batches)]
    mu = torch.cat([posterior.mu for posterior in posteriors])
    log_var = torch.cat([posterior.log_var for posterior in posteriors])
    z = Posterior(mu, log_var).draw(torch.Generator().manual_seed(seed))
    parts = decomposition(z, mu, log_var, n_train)
    return Together(float(parts.total_correlation), float(gaussian_total_correlation(z)))


def collapse_verdict(report: pd.DataFrame, *, still_improving: bool) -> str:
    """Say in a sentence or two which dimensions are in use, from a `latent_report`, and whether the fit had ended."""
    n_active, n = int(report["active"].sum()), len(report)
    unfinished = "The fit was still improving when it stopped: give it more epochs or minutes."
    if n_active == 0:
        found = "no latent dimension is in use, so the decoder gives every cell the same average."
        if still_improving:
            return f"Not trained yet: {found} {unfinished}"
        return f"Collapsed: {found} Use a smaller beta, a longer warm-up or free bits."
    active = f"{n_active} of {n} latent dimensions are active."
    if still_improving:
        return f"{active} {unfinished}"
    return f"{active} Fewer dimensions would do." if n_active < n else active
