"""What a control-trained model says of each replicate: sums over its cells, gathered in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from latentcell.progress import progress_bar
from latentcell.stats.relabelling import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.model.placing import Placed

MAP_SIDE = 4
"""Residuals of images are kept on a map of 4 x 4 places per channel."""

CENTROID, SPREAD, RESIDUAL, ENERGY, LOG_VAR = "centroid", "spread", "residual", "residual_energy", "log_var"
VIEWS = (CENTROID, SPREAD, RESIDUAL, ENERGY, LOG_VAR)


@dataclass(frozen=True)
class PerCell:
    """Per-cell results of a pass, in the order of the cells, float32.

    Attributes
    ----------
    mu, var
        Codes ``(n, d)``.
    log_px, kl
        ELBO terms in nats, ``(n,)``.
    residual_energy
        Mean squared residual: of images by channel and place ``(n, C * 16)``, else of the cell ``(n, 1)``.
    """

    mu: NDArray[np.float32]
    var: NDArray[np.float32]
    log_px: NDArray[np.float32]
    kl: NDArray[np.float32]
    residual_energy: NDArray[np.float32]


def gather(
    blocks: Iterable[Placed], well: NDArray[np.intp], *, images: bool, used: NDArray[np.bool_] | None = None
) -> tuple[PerCell, dict[str, Array]]:
    """Collect codes per cell and views per replicate from one pass over the cells.

    Parameters
    ----------
    blocks
        As from `latentcell.VAE.place`.
    well
        Replicate of each cell, ``(n,)``, from 0 without gaps.
    images
        Whether residuals are images.
    used
        Which cells count for their replicate, ``(n,)``; by default all.

    Returns
    -------
    Per-cell results, and the views of the replicates ``(n_wells, p)``: ``centroid`` (mean code), ``spread`` (log SD of
    the codes; left out where a replicate has a single cell), ``residual`` (mean residual of every variable, or channel
    and place), ``residual_energy`` (log of its mean square, so that simpler and more complex than control both show)
    and ``log_var`` (mean log posterior variance).
    """
    n, n_wells = len(well), int(well.max()) + 1
    weights = np.ones(n) if used is None else used.astype(np.float64)
    n_cells = np.bincount(well, weights=weights, minlength=n_wells).astype(np.float64)
    kept: dict[str, NDArray[np.float32]] = {}
    sums: dict[str, Array] = {}
    with progress_bar("place", n) as advance:
        done = 0
        for block in blocks:
            signed, energy = pooled(block.residual) if images else (block.residual, np.square(block.residual))
            mine = {
                "mu": block.mu,
                "var": block.var,
                "log_px": block.log_px,
                "kl": block.kl,
                "residual_energy": energy if images else energy.mean(axis=1, keepdims=True),
            }
            summed = {
                "mu": block.mu,
                "square": np.square(block.mu, dtype=np.float64),
                "log_var": np.log(block.var),
                RESIDUAL: signed,
                ENERGY: energy,
            }
            member = sp.csr_matrix(
                (weights[block.rows], (well[block.rows], np.arange(len(block.rows)))),
                shape=(n_wells, len(block.rows)),
            )
            for name, values in mine.items():
                kept.setdefault(name, np.empty((n, *values.shape[1:]), np.float32))[block.rows] = values
            for name, values in summed.items():
                sums[name] = sums.get(name, 0.0) + member @ values.astype(np.float64, copy=False)
            done += len(block.rows)
            advance(done, "cells")
    means = {name: total / n_cells[:, None] for name, total in sums.items()}
    return PerCell(**kept), _views(means, n_cells)


def _views(means: dict[str, Array], n_cells: Array) -> dict[str, Array]:
    views = {CENTROID: means["mu"]}
    if n_cells.min() > 1:
        factor = (n_cells / np.maximum(n_cells - 1, 1))[:, None]
        variance = (means["square"] - means["mu"] ** 2) * factor
        # identical cells have no spread to take the log of
        views[SPREAD] = 0.5 * np.log(np.maximum(variance, 1e-12))
    views[RESIDUAL] = means[RESIDUAL]
    views[ENERGY] = np.log(np.maximum(means[ENERGY], 1e-12))
    views[LOG_VAR] = means["log_var"]
    return views


def pooled(residual: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and mean square of image residuals ``(n, C, [Z,] H, W)`` on a map of places, each ``(n, C * 16)``."""
    x = torch.from_numpy(residual)
    signed, square = (F.adaptive_avg_pool2d(each, MAP_SIDE) for each in (x.flatten(1, -3), x.square().flatten(1, -3)))
    n, channels = residual.shape[:2]
    by_channel = (each.view(n, channels, -1, MAP_SIDE**2).mean(2).flatten(1).numpy() for each in (signed, square))
    first, second = by_channel
    return first, second
