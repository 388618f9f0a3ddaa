"""One pass over the cells: where each lies in the latent space, and what the model leaves unexplained of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from latentcell.cells.batches import Batch
    from latentcell.model.module import VAEModule


class Placed(NamedTuple):
    """A block of cells as the model sees them.

    Attributes
    ----------
    rows
        Row number of each cell, ``(n,)``.
    mu, var
        Posterior mean and variance, ``(n, d)`` float32.
    log_px, kl
        Terms of the evidence lower bound at one posterior draw, nats, ``(n,)`` float32.
    residual
        Measured minus decoded posterior mean, ``(n, ...)`` float32 in the model's scale; of counts the difference of
        square roots, in which Poisson noise has the same SD (1/2) at any level. 0 outside a cell's mask.
    """

    rows: np.ndarray
    mu: np.ndarray
    var: np.ndarray
    log_px: np.ndarray
    kl: np.ndarray
    residual: np.ndarray


@torch.inference_mode()
def place(module: VAEModule, batches: Iterable[Batch], generator: torch.Generator) -> Iterator[Placed]:
    """Place blocks of cells, each read, encoded and decoded once.

    Parameters
    ----------
    batches
        On the module's device.
    generator
        Source of the one posterior draw behind ``log_px``.
    """
    for batch in batches:
        log_px, posterior, _ = module(batch, generator)
        decoded = module.measurements(posterior.mu, batch.covariates, batch.size, None)
        if batch.size is None:
            residual = batch.dense - decoded
        else:
            residual = batch.dense.clamp_min(0).sqrt() - decoded.clamp_min(0).sqrt()
        if batch.mask is not None:
            residual = residual * batch.mask
        yield Placed(
            batch.index,
            posterior.mu.cpu().numpy(),
            posterior.log_var.exp().cpu().numpy(),
            log_px.cpu().numpy(),
            posterior.kl().sum(1).cpu().numpy(),
            residual.cpu().numpy(),
        )
