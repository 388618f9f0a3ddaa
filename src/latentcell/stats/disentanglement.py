"""Disentanglement scores of a code against annotated factors, with permutation nulls and intervals.

Scores are functions of the arrays ``(d, k)`` that `latentcell.stats.association` gives for d dimensions and k factors.
`metrics` computes all of them, how large they become when factors are permuted, and how much they vary between halves
of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import entr

from latentcell.errors import InputError
from latentcell.stats.association import (
    Array,
    Rows,
    checked_codes,
    correlation,
    entropy,
    importance,
    linear_score,
    mutual_information,
    single_dimension,
    thinned,
)
from latentcell.stats.factor import Factor
from latentcell.stats.relabelling import share_as_extreme
from latentcell.stats.resampling import half_sample_sd, permuted

PER_FACTOR = ("mig", "sap", "max_correlation", "single_dimension", "completeness", "informativeness")
"""Metrics with a value for every factor, and for their mean under the name "all"."""

OVERALL = ("modularity", "disentanglement", "factor_vae_score")
"""Metrics of all factors together."""

_UNBOUNDED = ("single_dimension", "informativeness")  # an R^2 has no lower bound, the others are never below 0
_DEAD = 1e-3  # share of the largest variance below which a dimension has no vote
_Z = 1.96


class ByDimension(NamedTuple):
    """A score of each dimension ``(d,)``, NaN where it tells of no factor, and the mean over dimensions."""

    score: Array
    mean: float


class _Estimate(NamedTuple):
    """All metrics, and the best dimension or -1: `PER_FACTOR` by factors and "all", row by row, then `OVERALL`."""

    value: Array
    dimension: Rows


def mig(information: Array, entropies: Array) -> Array:
    """Mutual information gap of each factor, ``(k,)`` (Chen et al. 2018, eq. 6).

    What the most informative dimension tells more than the next, as a share of the factor's entropy; NaN where that
    is 0. A perfect code reaches 1 only if its bins of equal width separate the factor's classes: for a number cut into
    classes of equal frequency about 0.9 if it is evenly spread, 0.7 if normally distributed.

    Parameters
    ----------
    information
        From `mutual_information`, ``(d, k)``.
    entropies
        From `entropy`, ``(k,)``.
    """
    return np.where(entropies > 0, sap(information) / np.where(entropies > 0, entropies, 1.0), np.nan)


def sap(score: Array) -> Array:
    """Separated attribute predictability of each factor, ``(k,)``: gap between its two best dimensions.

    Kumar et al. 2018, on ``score (d, k)`` from `linear_score`. A single dimension is compared with 0.
    """
    first, second = np.sort(np.concatenate([score, np.zeros_like(score[:1])]), axis=0)[::-1][:2]
    return np.asarray(first - second)


def modularity(information: Array) -> ByDimension:
    """How far each dimension tells of one factor only (Ridgeway and Mozer 2018).

    1 minus the squared information on all other factors, relative to the largest and per other factor. The mean leaves
    out dimensions without information; NaN for a single factor. The bias of counting differs between factors, so that
    noise scores high too: compare with permuted factors.

    Parameters
    ----------
    information
        From `mutual_information`, ``(d, k)``.
    """
    squared, k = information**2, information.shape[1]
    largest = squared.max(axis=1)
    defined = (largest > 0) & (k > 1)
    score = np.full(len(information), np.nan)
    score[defined] = 1 - (squared[defined].sum(axis=1) / largest[defined] - 1) / max(1, k - 1)
    return ByDimension(score, float(score[defined].mean()) if defined.any() else np.nan)


def disentanglement(importances: Array) -> ByDimension:
    """DCI disentanglement (Eastwood and Williams 2018): 1 minus the entropy of each dimension's importances over log k.

    The mean weighs dimensions by their share of all importance. NaN for a single factor.

    Parameters
    ----------
    importances
        From `importance`, ``(d, k)``, non-negative.
    """
    score, total = completeness(importances.T), importances.sum(axis=1)
    defined = ~np.isnan(score)
    return ByDimension(score, float(np.average(score[defined], weights=total[defined])) if defined.any() else np.nan)


def completeness(importances: Array) -> Array:
    """DCI completeness of each factor, ``(k,)``: 1 minus the entropy of its importances ``(d, k)`` over log d.

    NaN for a code of one dimension, or where no dimension is important.
    """
    d, total = len(importances), importances.sum(axis=0)
    defined = (total > 0) & (d > 1)
    score = np.full(importances.shape[1], np.nan)
    score[defined] = 1 - entr(importances[:, defined] / total[defined]).sum(axis=0) / np.log(max(2, d))
    return score


def factor_vae_score(
    codes: NDArray[np.floating],
    factors: Sequence[Factor],
    *,
    n_cells: int = 64,
    n_votes: int = 800,
    rng: int | np.random.Generator | None = None,
) -> float:
    """Accuracy of telling which factor was held fixed from the dimension that varies least (Kim and Mnih 2018).

    Factors of observed cells cannot be fixed, so a vote takes the cells that are nearest to a random cell in a random
    factor: of the same level, or close in number or on the circle, ties at random. The dimension whose variance among
    them is the smallest share of its variance among all cells votes for that factor. Half of the votes make the
    majority table, the other half are told by it.

    Dimensions whose variance is below a thousandth of the largest have no vote: a collapsed dimension is constant for
    reasons other than the factor. NaN for a single factor, which any dimension tells.

    Parameters
    ----------
    codes
        ``(n, d)``.
    factors
        k factors of the n cells; chance is about 1 / k.
    n_cells
        Cells per vote, at most a fifth of those where the factor is known.
    n_votes
        Number of votes.
    """
    z = checked_codes(codes, factors)
    if len(factors) == 1:
        return np.nan
    rng = np.random.default_rng(rng)
    overall = z.var(axis=0)
    alive = overall > _DEAD * overall.max()
    if not alive.any():
        return 1 / len(factors)
    z = z[:, alive] / np.sqrt(overall[alive])
    votable = [k for k, factor in enumerate(factors) if factor.known.any()]
    held = rng.choice(votable, n_votes)
    winner = np.empty(n_votes, dtype=np.intp)
    for k in votable:
        votes = np.flatnonzero(held == k)
        known = factors[k].known
        rows, used = _nearest(factors[k].take(known), len(votes), n_cells, rng)
        winner[votes] = _variances(z[known], rows, used).argmin(axis=1)
    half = n_votes // 2
    table = np.zeros((z.shape[1], len(factors)))
    np.add.at(table, (winner[:half], held[:half]), 1)
    return float(np.mean(table.argmax(axis=1)[winner[half:]] == held[half:]))


def metrics(
    codes: NDArray[np.floating],
    factors: Sequence[Factor],
    *,
    n_permutations: int = 99,
    n_resamples: int = 99,
    replicate: NDArray[Any] | None = None,
    block: NDArray[Any] | None = None,
    rng: int | np.random.Generator | None = None,
) -> pd.DataFrame:
    """Score codes against factors by every metric, with a permutation test and an interval.

    The test permutes factors (see `permuted`) and searches for the best dimensions anew every time, so that p is fair
    to the search: ``(1 + #{null >= value}) / (1 + B)``. Factors known in the same cells move together, so that those
    that go with each other still do. Folds, forests and votes draw the same random numbers every time.

    The interval is the value plus and minus 1.96 standard errors from random halves of the cells, or of the replicates
    where given (see `half_sample_sd`), cut to the range of the metric. A bootstrap would repeat cells, which adds
    information between codes and factors and puts a cell among its own neighbours. Halves in which a factor does not
    vary are left out. Counting is more biased in half the cells, so that for few cells (hundreds) the interval of
    modularity is too narrow.

    Parameters
    ----------
    codes
        ``(n, d)``.
    factors
        k factors of the n cells, each with at least two values.
    n_permutations, n_resamples
        Permutations behind p and halves behind the interval; 0 leaves those columns NaN.
    replicate, block
        As for `permuted`.

    Returns
    -------
    pandas.DataFrame
        One row per metric and factor, ``factor="all"`` for the mean over factors and for metrics of all factors
        together, which are NaN for a single factor. Columns: ``metric``, ``factor``, ``dimension`` (the best one; -1
        where that has no sense), ``value``, ``low``, ``high``, ``null_mean``, ``null_95`` (95th percentile), ``p``.
    """
    z = checked_codes(codes, factors)
    for factor in factors:
        if _constant(factor):
            raise InputError(f"The factor {factor.name!r} has no two different values among its annotated cells.")
    rng = np.random.default_rng(rng)
    grown = [np.isin(np.arange(len(z)), thinned(factor, rng)) for factor in factors]
    seed = int(rng.integers(2**63))
    estimate = _estimate(z, factors, grown, seed)
    null = []
    for draw in rng.integers(2**63, size=n_permutations):
        moved = [permuted(factor, replicate, block, rng=int(draw)) for factor in factors]
        null.append(_estimate(z, moved, grown, seed).value)

    def on(rows: Rows) -> Array:
        return _estimate(z[rows], [each.take(rows) for each in factors], [each[rows] for each in grown], seed).value

    sd = half_sample_sd(on, len(z), replicate=replicate, n=n_resamples, rng=rng)
    return _table(factors, estimate, np.array(null), sd)


def _table(factors: Sequence[Factor], estimate: _Estimate, null: Array, sd: Array | float) -> pd.DataFrame:
    names = [*(factor.name for factor in factors), "all"]
    rows = [(metric, name) for metric in PER_FACTOR for name in names] + [(metric, "all") for metric in OVERALL]
    table = pd.DataFrame(rows, columns=["metric", "factor"])
    value = estimate.value
    floor = np.where(table["metric"].isin(_UNBOUNDED), -np.inf, 0.0)
    table["dimension"] = estimate.dimension
    table["value"] = value
    table["low"], table["high"] = np.maximum(value - _Z * sd, floor), np.minimum(value + _Z * sd, 1.0)
    table[["null_mean", "null_95", "p"]] = np.nan
    if len(null):
        table["null_mean"], table["null_95"] = null.mean(axis=0), np.quantile(null, 0.95, axis=0)
        p = [share_as_extreme(column) for column in np.concatenate([value[None], null]).T]
        table["p"] = np.where(np.isnan(value), np.nan, p)
    return table


def _estimate(z: Array, factors: Sequence[Factor], grown: Sequence[NDArray[np.bool_]], seed: int) -> _Estimate:
    """All metrics; `grown` says for each factor on which cells its forest is grown."""
    rng = np.random.default_rng(seed)
    information, entropies = mutual_information(z, factors), np.array([entropy(factor) for factor in factors])
    score, correlated, single = linear_score(z, factors), correlation(z, factors), single_dimension(z, factors, rng=rng)
    grounds = zip(factors, grown, strict=True)
    forest = importance(z, [replace(f, value=np.where(rows, f.value, np.nan)) for f, rows in grounds], rng=rng)
    told = [mig(information, entropies), sap(score), correlated.max(axis=0), single.max(axis=0)]
    per_factor = np.stack([*told, completeness(forest.matrix), forest.informativeness])
    together = factor_vae_score(z, factors, rng=rng)
    overall = np.array([modularity(information).mean, disentanglement(forest.matrix).mean, together])
    constant = [_constant(factor) for factor in factors]
    per_factor[:, constant] = np.nan
    overall[:] = np.where(any(constant), np.nan, overall)
    best = [matrix.argmax(axis=0) for matrix in (information, score, correlated, single, forest.matrix)]
    dimension = np.full((len(PER_FACTOR), len(factors) + 1), -1)
    dimension[: len(best), :-1] = best
    return _Estimate(
        np.concatenate([np.column_stack([per_factor, per_factor.mean(axis=1)]).ravel(), overall]),
        np.concatenate([dimension.ravel(), np.full(len(OVERALL), -1)]),
    )


def _constant(factor: Factor) -> bool:
    return len(np.unique(factor.value[factor.known])) < 2


def _nearest(factor: Factor, n: int, n_cells: int, rng: np.random.Generator) -> tuple[Rows, Array]:
    """Cells near n random ones in a factor known everywhere: rows ``(n, m)``, and 1 where they count, else 0."""
    size = len(factor.value)
    m = min(size, max(2, min(n_cells, size // 5)))
    order = rng.permutation(size)
    order = order[np.argsort(factor.value[order], kind="stable")]
    ordered = factor.value[order]
    at = rng.choice(ordered, n)
    if factor.kind in ("ordinal", "categorical"):
        # a random stretch of the level, around its end to its start; all of a level of fewer than m cells
        begin, end = (np.searchsorted(ordered, at, side=side) for side in ("left", "right"))
        offset = rng.integers(end - begin)[:, None] + np.arange(m)
        used = np.arange(m) < (end - begin)[:, None]
        return order[begin[:, None] + offset % (end - begin)[:, None]], used.astype(np.float64)
    if factor.kind == "cyclic":
        ordered = np.concatenate([ordered - 1, ordered, ordered + 1])
    # stretch s is nearest where its cell s is no farther than the cell s + m behind it: x[s] + x[s+m] >= 2 x
    ends = ordered[: len(ordered) - m] + ordered[m:]
    start = rng.integers(np.searchsorted(ends, 2 * at, side="left"), np.searchsorted(ends, 2 * at, side="right") + 1)
    return order[(start[:, None] + np.arange(m)) % size], np.ones((n, m))


def _variances(z: Array, rows: Rows, used: Array) -> Array:
    """Variance of codes ``(n, d)`` among the used rows ``(v, m)`` of each vote, ``(v, d)``."""
    share = used / used.sum(axis=1, keepdims=True)
    values = z[rows]
    values -= np.einsum("vm,vmd->vd", share, values)[:, None]
    return np.einsum("vm,vmd->vd", share, values**2)
