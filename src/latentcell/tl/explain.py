"""Why a perturbation is called: what moved, by how much, how surely, and what it resembles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import norm, rankdata

from latentcell.stats.features import image_features
from latentcell.stats.relabelling import (
    Array,
    Layout,
    accounted_for,
    block_shifts,
    centred,
    precision,
    share_as_extreme,
    shift,
)
from latentcell.stats.shrinkage import sphered
from latentcell.tl.design import rank_within

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.tl.design import Design

PER_WELL, MOST_CELLS = 50, 20_000
_FEWEST_DF, _MANY = 3, 10
_PRIOR_DF = 4.0  # weight of the median variance over variables in that of each (Smyth 2004 estimates it; this is mild)
_PER_LOG = 1e4
_BLOCK = 1_024


class Effects(NamedTuple):
    """Shift of every variable in units of `sd`, with its 95 % interval, each ``(p,)``.

    `unit` says whose SD that is: ``"replicates"``, or ``"cells"`` where there are too few replicates to tell theirs;
    there is no interval then.
    """

    value: Array
    low: Array
    high: Array
    sd: Array
    unit: str


def well_variables(
    cells: AnnData, model: VAE, design: Design, *, rng: np.random.Generator
) -> tuple[pd.DataFrame, Array]:
    """Mean of every variable by replicate, ``(n_wells, variables)``, and the SD of cells in one ``(variables,)``.

    Counts as log1p of counts per 10,000; profiles as stored; images by `latentcell.stats.image_features` of at most 50
    cells per replicate. The SD is NaN where every replicate is a single cell.
    """
    source, n_wells = model.schema_.source(cells), len(design.wells)
    rows = np.arange(cells.n_obs)
    if model.modality_ == "images":
        most = max(5, min(PER_WELL, MOST_CELLS // n_wells))
        order = rng.permutation(cells.n_obs)
        rows = np.sort(order[rank_within(design.well[order]) < most])
    n_cells = np.bincount(design.well[rows], minlength=n_wells)
    names: list[str] = model.names_
    total, square = np.zeros((n_wells, 0)), np.zeros(0)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        optical = model.modality_ == "images"
        table = described(model, model.measurements(cells, block) if optical else source.stored(block))
        names, values = list(table.columns), table.to_numpy(np.float64)
        member = sp.csr_matrix(
            (np.ones(len(block)), (design.well[block], np.arange(len(block)))), (n_wells, len(block))
        )
        if start == 0:
            total, square = np.zeros((n_wells, values.shape[1])), np.zeros(values.shape[1])
        total += member @ values
        square += (values**2).sum(axis=0)
    means = total / n_cells[:, None]
    within = square - (n_cells[:, None] * means**2).sum(axis=0)
    f = len(rows) - n_wells
    sd = np.sqrt(np.maximum(within, 0) / f) if f > 0 else np.full(means.shape[1], np.nan)
    return pd.DataFrame(means, columns=names), sd


def described(model: VAE, measurements: NDArray[np.floating]) -> pd.DataFrame:
    """Named variables of measurements in stored units: features of images, log-normalised counts, or profiles."""
    if model.modality_ == "images":
        return image_features(measurements, channel_names=model.names_)
    if model.modality_ == "counts":
        size = np.maximum(measurements.sum(axis=1, keepdims=True), 1)
        return pd.DataFrame(np.log1p(_PER_LOG * measurements / size), columns=model.names_)
    return pd.DataFrame(measurements, columns=model.names_)


def effects(values: Array, design: Layout, others: list[NDArray[np.intp]], cell_sd: Array) -> Effects:
    """Shift of a group from its controls, variable by variable.

    The SD is that of replicates (see `noise`), with fewer than three degrees of freedom that of cells within a
    replicate. Variances of ten or more variables are moderated by their median in units of `cell_sd`, so that a
    variable that hardly varies among controls does not lead the list. Intervals are those of a shift in units of an
    estimated SD (Hedges and Olkin 1985, large-sample variance).

    Parameters
    ----------
    cell_sd
        SD of cells within a replicate, ``(p,)``.
    """
    value, (residuals, f) = shift(values, design), noise(values, design, others)
    if f < _FEWEST_DF:
        sd, unknown = np.where(cell_sd > 0, cell_sd, np.nan), np.full(len(cell_sd), np.nan)
        return Effects(value / sd, unknown, unknown, sd, "cells")
    variance, prior = (residuals**2).sum(axis=0) / f, _PRIOR_DF if (cell_sd > 0).sum() >= _MANY else 0.0
    if prior:
        unit = np.where(cell_sd > 0, np.square(cell_sd), np.nan)
        drawn = np.nanmedian(variance / unit) * unit
        variance = np.where(unit > 0, (f * variance + prior * drawn) / (f + prior), variance)
    sd = np.sqrt(np.maximum(variance, 1e-24))
    effect, df = value / sd, f + prior
    half = norm.ppf(0.975) * np.sqrt(1 / precision(design).sum() + effect**2 / (2 * df))
    return Effects(effect, effect - half, effect + half, sd, "replicates")


def distance(values: Array, design: Layout, others: list[NDArray[np.intp]], cell_sd: Array) -> tuple[float, str]:
    """Length of a group's shift in SD of replicates, correlations accounted for, and whose SD it is (see `effects`)."""
    residuals, f = noise(values, design, others)
    moved = shift(values, design)
    if f < _FEWEST_DF:
        return float(np.linalg.norm(np.nan_to_num(moved / np.where(cell_sd > 0, cell_sd, np.nan)))), "cells"
    return float(np.linalg.norm(sphered(moved[None], residuals, f))), "replicates"


def noise(values: Array, design: Layout, others: list[NDArray[np.intp]]) -> tuple[Array, int]:
    """Residuals of replicates within labels and blocks ``(m, p)``, and their degrees of freedom.

    `others` (controls of other blocks) are included. Where no block has two replicates of a label, residuals of the
    shifts between blocks, scaled to those of single replicates.
    """
    within = [part for rows, m in zip(design.rows, design.n_treated, strict=True) for part in (rows[:m], rows[m:])]
    within = [rows for rows in [*within, *others] if len(rows) > 1]
    f = sum(len(rows) - 1 for rows in within)
    if f >= _FEWEST_DF:
        return centred(values, within), f
    shifts = block_shifts(values, design)
    return np.sqrt(precision(design))[:, None] * (shifts - shift(values, design)), len(shifts) - 1


def count_share(values: Array, log_count: Array, design: Layout, others: list[NDArray[np.intp]]) -> float:
    """Share of a group's shift, in sphered units, that its cell count alone explains, 0 to 1.

    Controls with more or fewer cells look different; their slope times the group's change in log count is the shift to
    be expected of it. NaN where no block has three controls.
    """
    blocks = [rows[m:] for rows, m in zip(design.rows, design.n_treated, strict=True)]
    blocks = [rows for rows in [*blocks, *others] if len(rows) > 2]
    if not blocks or np.ptp(np.concatenate([log_count[rows] for rows in blocks])) == 0:
        return float("nan")
    left = accounted_for(values, log_count[:, None], blocks)
    f = sum(len(rows) - 1 for rows in blocks)
    residuals = centred(values, blocks)
    whole, rest = sphered(np.stack([shift(values, design), shift(left, design)]), residuals, f)
    return float(np.clip(whole @ (whole - rest) / max(float(whole @ whole), 1e-24), 0.0, 1.0))


def group_profiles(views: list[Array], design: Design, control: NDArray[np.bool_], labels: list[str]) -> Array:
    """Sphered shift of every label from the controls `control`, ``(n_labels, p)``; NaN for a label without any."""
    values = np.concatenate(views, axis=1)
    blocks = [np.flatnonzero(control & (design.block == name)) for name in dict.fromkeys(design.block.tolist())]
    blocks = [rows for rows in blocks if len(rows) > 1]
    if blocks:
        f = sum(len(rows) - 1 for rows in blocks)
        values = sphered(values, centred(values, blocks), f)
    plans = [design.layout(label, control) for label in labels]
    return np.stack([shift(values, plan) if plan.rows else np.full(values.shape[1], np.nan) for plan in plans])


def similarity(profiles: Array) -> Array:
    """Cosine between profiles ``(n, n)``; NaN rows stay NaN."""
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    unit = profiles / np.maximum(length, 1e-24)
    return np.asarray(unit @ unit.T)


def dose_trend(
    values: Array, dose: Array, block: NDArray[np.object_], *, n: int = 999, rng: np.random.Generator
) -> tuple[float, float]:
    """Spearman correlation between dose and effect over a group's replicates, and its p by permuting doses in blocks.

    The effect of a replicate is its place along the mean of all, which does not depend on the doses. NaN where either
    does not vary.

    Parameters
    ----------
    values
        Shifts of the replicates from the controls of their block ``(n, p)``, at all doses.
    dose, block
        ``(n,)``.
    """
    effect = rankdata(values @ values.mean(axis=0))
    if len(np.unique(effect)) == 1 or len(np.unique(dose)) == 1:
        return float("nan"), float("nan")
    blocks = [np.flatnonzero(block == name) for name in dict.fromkeys(block.tolist())]
    rho, permuted = np.empty(1 + n), dose
    for i in range(1 + n):
        rho[i] = np.corrcoef(effect, rankdata(permuted))[0, 1]
        permuted = dose.copy()
        for rows in blocks:
            permuted[rows] = dose[rng.permutation(rows)]
    return float(rho[0]), share_as_extreme(np.abs(rho))


def most_typical(codes: NDArray[np.floating], rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Those `n` of the cells `rows` whose codes lie nearest to their mean, nearest first."""
    apart = np.linalg.norm(codes[rows] - codes[rows].mean(axis=0), axis=1)
    return rows[np.argsort(apart, kind="stable")[:n]]


def counterfactual(
    cells: AnnData, model: VAE, codes: NDArray[np.float32], rows: NDArray[np.intp], moves: Array
) -> pd.DataFrame:
    """Mean change of every variable when control cells `rows` are decoded with their codes moved, a row per move.

    It is what the model, which knows controls only, draws for a shift of the code.

    Parameters
    ----------
    codes
        Posterior means of all cells ``(n, d)``.
    moves
        ``(m, d)``.
    """
    batch = cells.obs[model.batch_key].to_numpy()[rows] if model.batch_key else None
    given = {} if batch is None else {"batch": batch}
    start = described(model, model.decode(codes[rows], **given)).mean()
    moved = [described(model, model.decode(codes[rows] + move, **given)).mean() - start for move in moves]
    return pd.DataFrame(moved)
