"""What a control-trained model says of each replicate: sums over its cells, gathered in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from latentcell.progress import progress_bar
from latentcell.stats.relabelling import Array, Layout
from latentcell.tl.design import rank_within

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from latentcell.model.placing import Placed
    from latentcell.model.vae import VAE
    from latentcell.tl.design import Design

MAP_SIDE = 4
"""Residuals of images are kept on a map of 4 x 4 places per channel."""

CENTROID, SPREAD, RESIDUAL, ENERGY, LOG_VAR = "centroid", "spread", "residual", "residual_energy", "log_var"

LATENT = (CENTROID, SPREAD, LOG_VAR)
"""Views with a column per latent dimension in use."""

_AS_MANY = 0.8  # of the controls' cells: with fewer, a replicate is noisier than they are
_LOWEST = 1e-12  # of a variance or energy before its log is taken


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


@dataclass(frozen=True)
class Views:
    """Descriptions of the replicates, of all their cells and of as many cells as smaller replicates have.

    Attributes
    ----------
    n_cells
        Cells that count in each replicate, ``(n_wells,)``.
    dimensions
        Latent dimensions behind the columns of ``centroid``, ``spread`` and ``log_var``.
    levels
        Cells per replicate at most, ascending; the last takes all.
    by_level
        For every level the views by name, each ``(n_wells, p)``: ``centroid`` (mean code), ``spread`` (log SD of the
        codes; NaN for a single cell), ``residual`` (mean residual of every variable, or channel and place),
        ``residual_energy`` (log of its mean square by variable; of images mean log energy by channel and octave of
        detail), ``log_var`` (mean log posterior variance). Without ``spread`` and ``residual_energy`` where every
        replicate is a single row.
    """

    n_cells: NDArray[np.intp]
    dimensions: NDArray[np.intp]
    levels: tuple[int, ...]
    by_level: tuple[Mapping[str, Array], ...]

    def __getitem__(self, name: str) -> Array:
        """View `name` of all cells, ``(n_wells, p)``."""
        return self.by_level[-1][name]

    @property
    def everything(self) -> Mapping[str, Array]:
        """Views of all cells."""
        return self.by_level[-1]

    @property
    def code_sd(self) -> Array:
        """SD of cells within a replicate along each latent dimension in use, ``(p,)``; NaN where not known."""
        if SPREAD not in self.everything:
            return np.full(len(self.dimensions), np.nan)
        return np.sqrt(np.nanmean(np.exp(2 * self[SPREAD]), axis=0))

    def matched(self, design: Layout) -> dict[str, Array]:
        """Views in which no replicate of a group is noisier than its controls just because it has fewer cells.

        In blocks where the group has fewer cells than controls have, controls are described by as many, so that a
        drop in cell number alone is no effect. Views that are not known of all replicates are left out.
        """
        level = np.full(len(self.n_cells), len(self.levels) - 1)
        for rows, m in zip(design.rows, design.n_treated, strict=True):
            fewest = needed(self.n_cells, rows, m)
            if fewest is not None:
                level[rows] = max(0, int(np.searchsorted(self.levels, fewest, side="right")) - 1)
        rows = np.concatenate(design.rows)
        views = {}
        for name, values in self.everything.items():
            if (level == len(self.levels) - 1).all():
                chosen = values
            else:
                chosen = values.copy()
                for i in np.unique(level):
                    chosen[level == i] = self.by_level[i][name][level == i]
            if np.isfinite(chosen[rows]).all():
                views[name] = chosen
        return views


def describe(
    cells: AnnData,
    model: VAE,
    design: Design,
    calibrating: NDArray[np.bool_],
    *,
    used: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> tuple[PerCell, Views]:
    """Place every cell of a screen once, and describe its replicates along the latent dimensions that the model uses.

    Parameters
    ----------
    calibrating
        Controls that the groups are to be held against, ``(n_wells,)``.
    used
        Which cells count for their replicate, ``(n,)``; by default all.
    """
    active = model.latent_.sort_values("dimension")["active"].to_numpy(bool)
    n_cells = np.bincount(design.well if used is None else design.well[used], minlength=len(design.wells))
    return gather(
        model.place(cells, rng=seed),
        design.well,
        images=model.modality_ == "images",
        active=active if active.any() else None,
        used=used,
        levels=count_levels(n_cells, (design.layout(label, calibrating) for label in design.labels)),
        rng=np.random.default_rng([seed, 5]),
    )


def needed(n_cells: NDArray[np.intp], rows: NDArray[np.intp], n_treated: int) -> int | None:
    """Fewest cells among treated replicates of a block, where those are fewer than its controls have; else None."""
    fewest = int(n_cells[rows[:n_treated]].min())
    return fewest if fewest < _AS_MANY * np.median(n_cells[rows[n_treated:]]) else None


def count_levels(n_cells: NDArray[np.intp], layouts: Iterable[Layout]) -> tuple[int, ...]:
    """Numbers of cells at which replicates need to be described: steps of 1, 1.5, 2, 3, 4, 6, ... that occur, and all.

    Parameters
    ----------
    n_cells
        Cells of each replicate, ``(n_wells,)``.
    layouts
        Of all groups to be tested.
    """
    most = int(n_cells.max())
    steps = np.unique([step for k in range(most.bit_length()) for step in (2**k, 3 * 2**k)])
    found = (
        needed(n_cells, rows, m) for design in layouts for rows, m in zip(design.rows, design.n_treated, strict=True)
    )
    fewer = {int(steps[np.searchsorted(steps, fewest, side="right") - 1]) for fewest in found if fewest is not None}
    return (*sorted(fewer - {most}), most)


def gather(
    blocks: Iterable[Placed],
    well: NDArray[np.intp],
    *,
    images: bool,
    active: NDArray[np.bool_] | None = None,
    used: NDArray[np.bool_] | None = None,
    levels: Sequence[int] = (),
    rng: np.random.Generator | None = None,
) -> tuple[PerCell, Views]:
    """Collect codes per cell and views per replicate from one pass over the cells.

    Parameters
    ----------
    blocks
        As from `latentcell.VAE.place`.
    well
        Replicate of each cell, ``(n,)``, from 0 without gaps.
    images
        Whether residuals are images.
    active
        Latent dimensions that the model uses, ``(d,)``; the others say nothing and stay out of the views. By default
        all.
    used
        Which cells count for their replicate, ``(n,)``; by default all.
    levels
        As from `count_levels`; by default all cells only.
    rng
        Chooses which cells of a replicate stand for it at lower levels.
    """
    n, n_wells = len(well), int(well.max()) + 1
    used = np.ones(n, dtype=bool) if used is None else used
    n_cells = np.bincount(well[used], minlength=n_wells)
    levels = tuple(levels) or (max(1, int(n_cells.max())),)
    slot = _rings(well, used, levels, rng) * n_wells + well
    kept: dict[str, NDArray[np.float32]] = {}
    sums: dict[str, Array] = {}
    with progress_bar("place", n) as advance:
        done = 0
        for block in blocks:
            mine, summed = _described(block, images, active)
            counted = used[block.rows]
            place = slot[block.rows][counted]
            member = sp.csr_matrix(
                (np.ones(len(place)), (place, np.flatnonzero(counted))), (len(levels) * n_wells, len(block.rows))
            )
            for name, values in mine.items():
                kept.setdefault(name, np.empty((n, *values.shape[1:]), np.float32))[block.rows] = values
            for name, values in summed.items():
                sums[name] = sums.get(name, 0.0) + member @ values.astype(np.float64, copy=False)
            done += len(block.rows)
            advance(done, "cells")
    totals = {name: total.reshape(len(levels), n_wells, -1).cumsum(axis=0) for name, total in sums.items()}
    by_level, several = [], bool((n_cells > 1).any())
    for i, level in enumerate(levels):
        number = np.minimum(n_cells, level)
        means = {name: total[i] / number[:, None] for name, total in totals.items()}
        by_level.append(_views(means, number, images=images, several=several))
    dimensions = np.arange(kept["mu"].shape[1]) if active is None else np.flatnonzero(active)
    return PerCell(**kept), Views(n_cells, dimensions, levels, tuple(by_level))


def _rings(
    well: NDArray[np.intp], used: NDArray[np.bool_], levels: Sequence[int], rng: np.random.Generator | None
) -> NDArray[np.intp]:
    """Lowest level that each cell counts for, cells of a replicate in random order, ``(n,)``."""
    if len(levels) == 1:
        return np.zeros(len(well), dtype=np.intp)
    order = np.random.default_rng(rng).permutation(np.flatnonzero(used))
    rank = np.zeros(len(well), dtype=np.intp)
    rank[order] = rank_within(well[order])
    return np.searchsorted(levels, rank + 1)


def _described(
    block: Placed, images: bool, active: NDArray[np.bool_] | None
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.floating]]]:
    """What is kept of every cell of a block, and what is summed over the cells of a replicate."""
    signed, energy = pooled(block.residual) if images else (block.residual, np.square(block.residual))
    mine = {
        "mu": block.mu,
        "var": block.var,
        "log_px": block.log_px,
        "kl": block.kl,
        "residual_energy": energy if images else energy.mean(axis=1, keepdims=True),
    }
    mu, var = (each if active is None else each[:, active] for each in (block.mu, block.var))
    summed = {
        "mu": mu,
        "square": np.square(mu, dtype=np.float64),
        "log_var": np.log(var),
        RESIDUAL: signed,
        # logs of single cells, so that a few mitotic or dead ones do not drown what all others do
        ENERGY: np.log(np.maximum(octaves(block.residual), _LOWEST)) if images else energy,
    }
    return mine, summed


def _views(means: dict[str, Array], n_cells: NDArray[np.intp], *, images: bool, several: bool) -> dict[str, Array]:
    factor = np.where(n_cells > 1, n_cells / np.maximum(n_cells - 1, 1), np.nan)[:, None]
    variance = (means["square"] - means["mu"] ** 2) * factor
    views = {
        CENTROID: means["mu"],
        SPREAD: 0.5 * np.log(np.maximum(variance, _LOWEST)),
        RESIDUAL: means[RESIDUAL],
        ENERGY: means[ENERGY] if images else np.log(np.maximum(means[ENERGY], _LOWEST)),
        LOG_VAR: means["log_var"],
    }
    if not several:  # of a single row per replicate neither says more than the others do
        del views[SPREAD], views[ENERGY]
    return views


def pooled(residual: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and mean square of image residuals ``(n, C, [Z,] H, W)`` on a map of places, each ``(n, C * 16)``."""
    x = torch.from_numpy(residual)
    signed, square = (F.adaptive_avg_pool2d(each, MAP_SIDE) for each in (x.flatten(1, -3), x.square().flatten(1, -3)))
    n, channels = residual.shape[:2]
    by_channel = (each.view(n, channels, -1, MAP_SIDE**2).mean(2).flatten(1).numpy() for each in (signed, square))
    first, second = by_channel
    return first, second


def octaves(residual: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean square of image residuals by channel and octave of detail, finest first, ``(n, C * octaves)``.

    An octave is what averaging 2 x 2 pixels takes away, again and again until fewer than 3 would be left (the Haar
    decomposition; its energies add up to the mean square where sides halve evenly). Smoother cells lose the fine
    octaves, rougher ones gain them, whatever happens to the rest.
    """
    n, channels = residual.shape[:2]
    x = torch.from_numpy(residual).reshape(n, -1, *residual.shape[-2:])
    energies = [x.square().mean((-1, -2))]
    while min(x.shape[-2:]) >= 6:
        x = F.avg_pool2d(x, 2)
        energies.append(x.square().mean((-1, -2)))
    bands = [a - b for a, b in itertools.pairwise(energies)] + [energies[-1]]
    stacked = torch.stack([band.view(n, channels, -1).mean(-1) for band in bands], -1)
    return np.asarray(stacked.flatten(1).clamp_min(0).numpy())
