"""Distances between two populations of cells, with bootstrap intervals.

A population is an array ``(n, p)``: n cells, p features or latent dimensions. Every statistic here is written for
weighted cells, so that a bootstrap reuses the pairwise distances of the cells instead of computing them again:
``statistic(x, y, counts_x, counts_y, replicates)`` takes how many times each cell was drawn, one row per resample, and
the replicate of each cell of `x` and of `y` or None, and returns one value per resample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentcell.errors import InputError

Array = NDArray[np.float64]
Replicates = tuple[NDArray[Any] | None, NDArray[Any] | None]
Statistic = Callable[..., Array]

MAX_EXACT = 2_000
"""Cells per side up to which optimal transport is solved exactly; a random subset of this size beyond."""

_BLOCK_VALUES = 8_000_000  # 64 MB of float64 distances at a time


class Interval(NamedTuple):
    """An estimate and its bootstrap percentile interval."""

    value: float
    low: float
    high: float


def energy_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Székely and Rizzo 2013), unbiased.

    The U-statistic leaves out the pairs of a cell with itself. Its expectation does not depend on the numbers of
    cells, so populations of different sizes compare fairly; near zero it can be slightly negative.

    Parameters
    ----------
    x, y
        Populations ``(n, p)`` and ``(m, p)``, at least two cells each.
    """
    return _estimate(energy_statistic, x, y)


def mmd(x: NDArray[np.floating], y: NDArray[np.floating], *, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012), unbiased.

    Parameters
    ----------
    x, y
        Populations ``(n, p)`` and ``(m, p)``, at least two cells each.
    bandwidth
        Kernel SD in the units of the features; the median distance between pooled cells by default. Fix it when
        several populations are compared with the same one.
    """
    x, y = checked_populations(x, y)
    return _estimate(mmd_statistic(bandwidth or median_distance(np.concatenate([x, y]))), x, y)


def wasserstein(
    x: NDArray[np.floating], y: NDArray[np.floating], *, p: int = 1, rng: int | np.random.Generator | None = None
) -> float:
    """Wasserstein distance W_p (p = 1 or 2) between two populations, Euclidean ground distance.

    Exact up to 2,000 cells per side; beyond, a random subset of 2,000 stands for the population. The estimate is
    biased upwards for few cells in many dimensions, so compare populations of similar sizes only.
    """
    x, y = checked_populations(x, y)
    rng = np.random.default_rng(rng)
    x, y = (z[rng.choice(len(z), MAX_EXACT, replace=False)] if len(z) > MAX_EXACT else z for z in (x, y))
    return _estimate(wasserstein_statistic(p), x, y)


def sliced_wasserstein(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    n_projections: int = 100,
    rng: int | np.random.Generator | None = None,
) -> float:
    """Mean one-dimensional W1 over random directions (Bonneel et al. 2015); any number of cells.

    Directions are uniform on the sphere; each W1 is the exact area between the two quantile functions.
    """
    x, y = checked_populations(x, y)
    directions = np.random.default_rng(rng).normal(size=(x.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    a, b = np.sort(x @ directions, axis=0), np.sort(y @ directions, axis=0)
    # both quantile functions are constant between consecutive multiples of 1/n and 1/m
    steps = np.unique(np.concatenate([np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y)]))
    widths = np.diff(steps, prepend=0.0)
    middle = steps - widths / 2
    gap = np.abs(a[(middle * len(x)).astype(int)] - b[(middle * len(y)).astype(int)])
    return float((widths @ gap).mean())


def bootstrap_interval(
    statistic: Statistic,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    replicates: Replicates = (None, None),
    n: int = 200,
    level: float = 0.95,
    rng: int | np.random.Generator | None = None,
) -> Interval:
    """Estimate a distance and its percentile bootstrap interval, resampling both populations.

    Parameters
    ----------
    statistic
        `energy_statistic`, ``mmd_statistic(bandwidth)``, ``wasserstein_statistic(p)``, `mean_shift_statistic`, or a
        function ``(x, y, counts_x (B, n), counts_y (B, m), replicates) -> (B,)``.
    x, y
        Populations ``(n, p)`` and ``(m, p)``.
    replicates
        Replicate (well, donor, embryo) of each cell of `x` and of `y`. Whole replicates are then resampled, which is
        the honest unit where cells of a replicate resemble each other; without, cells are. At least three each.
    n, level
        Number of resamples and coverage of the interval.
    """
    x, y = checked_populations(x, y)
    for names in replicates:
        if names is not None and len(np.unique(names)) < 3:
            raise InputError(f"{len(np.unique(names))} replicates give no interval: at least three are needed.")
    rng = np.random.default_rng(rng)
    counts_x = resampled_counts(len(x), n=n, replicates=replicates[0], rng=rng)
    counts_y = resampled_counts(len(y), n=n, replicates=replicates[1], rng=rng)
    return percentile_interval(statistic(x, y, counts_x, counts_y, replicates), level=level)


def resampled_counts(
    n_cells: int, *, n: int, rng: np.random.Generator, replicates: NDArray[Any] | None = None
) -> Array:
    """Draw how many times each cell enters each bootstrap sample: ``(1 + n, n_cells)``, the first row all ones.

    Replicates are drawn whole; of three or more, at least two different ones are in every sample.
    """
    if replicates is None:
        drawn = rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=n)
    else:
        _, member = np.unique(np.asarray(replicates), return_inverse=True)
        n_replicates = int(member.max()) + 1
        times = rng.multinomial(n_replicates, np.full(n_replicates, 1 / n_replicates), size=n)
        while n_replicates > 2 and (single := (times > 0).sum(axis=1) < 2).any():
            times[single] = rng.multinomial(n_replicates, np.full(n_replicates, 1 / n_replicates), size=single.sum())
        drawn = times[:, member]
    return np.concatenate([np.ones((1, n_cells)), drawn])


def percentile_interval(draws: Array, *, level: float = 0.95) -> Interval:
    """Read the estimate (first value) and the percentile interval (the others) off a statistic's draws."""
    low, high = np.quantile(draws[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(draws[0]), float(low), float(high))


def energy_statistic(
    x: Array, y: Array, counts_x: Array, counts_y: Array, replicates: Replicates = (None, None)
) -> Array:
    """Energy distance per resample ``(B,)``; see `energy_distance`.

    With replicates, cells of one population are compared across replicates only: those of a replicate resemble each
    other, so that two populations of the same kind would seem to differ.
    """
    return _two_sample(x, y, (counts_x, counts_y), replicates, lambda squared: np.sqrt(squared, out=squared))


def mmd_statistic(bandwidth: float) -> Statistic:
    """Squared MMD per resample, for a fixed kernel SD; see `mmd`."""

    # MMD^2 is the energy distance of the semimetric 1 - k (Sejdinovic et al. 2013), zero between a cell and itself
    def statistic(x: Array, y: Array, counts_x: Array, counts_y: Array, replicates: Replicates = (None, None)) -> Array:
        scale = -0.5 / bandwidth**2
        return _two_sample(x, y, (counts_x, counts_y), replicates, lambda squared: -np.expm1(scale * squared))

    return statistic


def wasserstein_statistic(p: int) -> Statistic:
    """W_p per resample from one exact optimal transport; see `wasserstein`.

    W_p^p is linear in the cells' weights to first order, with the optimal dual potentials as slopes (del Barrio and
    Loubes 2019). Resampling the potentials replaces a transport problem per resample, and stays centred on the
    estimate, where resampled cells would inflate it because they repeat.
    """
    if p not in (1, 2):
        raise InputError(f"The Wasserstein distance is available for p = 1 and p = 2, not p = {p}.")

    def statistic(x: Array, y: Array, counts_x: Array, counts_y: Array, replicates: Replicates = (None, None)) -> Array:
        import ot

        cost = ot.dist(x, y, metric="euclidean" if p == 1 else "sqeuclidean")
        uniform = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
        total, solution = ot.emd2(*uniform, cost, log=True, numItermax=10_000_000)
        change = _mean(counts_x, solution["u"]) - solution["u"].mean()
        change += _mean(counts_y, solution["v"]) - solution["v"].mean()
        return np.asarray(np.maximum(total + change, 0.0) ** (1 / p))

    return statistic


def mean_shift_statistic(
    x: Array, y: Array, counts_x: Array, counts_y: Array, replicates: Replicates = (None, None)
) -> Array:
    """Mean over features of the absolute difference of the two population means, per resample ``(B,)``.

    Each feature keeps the sign of its estimate, because an absolute value would lift every resample of a feature that
    hardly differs; draws therefore centre on the estimate and are cut at 0.
    """
    sign = np.sign(x.mean(axis=0) - y.mean(axis=0))
    return np.asarray(np.maximum(((_mean(counts_x, x) - _mean(counts_y, y)) * sign).mean(axis=1), 0.0))


def median_distance(x: Array, *, max_cells: int = 1_000) -> float:
    """Median distance between distinct cells, the usual Gaussian kernel width; 1 where all cells coincide.

    Larger populations are thinned evenly to `max_cells`.
    """
    x = x[np.linspace(0, len(x) - 1, min(len(x), max_cells)).astype(int)]
    squared = _squared_distances(x, x)[np.triu_indices(len(x), 1)]
    median = float(np.sqrt(np.median(squared))) if squared.size else 0.0
    return median if median > 0 else 1.0


def checked_populations(x: NDArray[np.floating], y: NDArray[np.floating], *, least: int = 2) -> tuple[Array, Array]:
    """Return both populations as float64, refusing shapes that do not match, too few cells and missing values."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"Populations must be (cells, features) with the same features, found shapes {a.shape} and {b.shape}."
        )
    for name, z in (("first", a), ("second", b)):
        if len(z) < least:
            raise InputError(f"The {name} population has {len(z)} cells; at least {least} are needed.")
        if not np.isfinite(z).all():
            cell, feature = np.argwhere(~np.isfinite(z))[0]
            raise InputError(
                f"The {name} population holds a missing or infinite value (cell {cell}, feature {feature}); "
                "drop such cells or features before comparing populations."
            )
    return a, b


def _estimate(statistic: Statistic, x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    x, y = checked_populations(x, y)
    return float(statistic(x, y, np.ones((1, len(x))), np.ones((1, len(y))))[0])


def _two_sample(
    x: Array, y: Array, counts: tuple[Array, Array], replicates: Replicates, semimetric: Callable[[Array], Array]
) -> Array:
    """2 E d(X,Y) - E d(X,X') - E d(Y,Y') per resample, X and X' distinct; `semimetric` maps squared distances.

    Distinct are cells, or cells of different replicates where those are given.
    """
    counts_x, counts_y = counts
    offset = x.mean(axis=0)
    x, y = x - offset, y - offset
    between = _weighted_sum(x, y, counts_x, counts_y, semimetric) / (counts_x.sum(1) * counts_y.sum(1))
    within = np.zeros(len(counts_x))
    for z, drawn, names in zip((x, y), counts, replicates, strict=True):
        # counting pairs of distinct cells only also undoes the bias that repeated cells give to a bootstrap
        total = _weighted_sum(z, z, drawn, drawn, semimetric)
        if names is None:
            within += total / np.maximum(drawn.sum(1) ** 2 - (drawn**2).sum(1), 1)
            continue
        same, pairs = np.zeros(len(drawn)), drawn.sum(1) ** 2
        for name in np.unique(names):
            rows = np.flatnonzero(names == name)
            once = np.ones((1, len(rows)))
            times = drawn[:, rows[0]] ** 2
            same += times * _weighted_sum(z[rows], z[rows], once, once, semimetric)[0]
            pairs = pairs - times * len(rows) ** 2
        within += (total - same) / np.maximum(pairs, 1)
    return np.asarray(2 * between - within)


def _weighted_sum(x: Array, y: Array, counts_x: Array, counts_y: Array, semimetric: Callable[[Array], Array]) -> Array:
    """Sum over pairs (i, j) of counts_x[b, i] counts_y[b, j] d(x_i, y_j), in blocks of rows of x."""
    total = np.zeros(len(counts_x))
    step = max(1, _BLOCK_VALUES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        distances = _squared_distances(x[rows], y)
        if x is y:
            np.fill_diagonal(distances[:, start:], 0.0)
        total += ((counts_x[:, rows] @ semimetric(distances)) * counts_y).sum(axis=1)
    return total


def _squared_distances(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0.0))


def _mean(counts: Array, values: Array) -> Array:
    """Mean of `values` ``(n, ...)`` under each resample ``(B, n)``."""
    total = counts.sum(axis=1)
    return np.asarray((counts @ values) / (total if values.ndim == 1 else total[:, None]))
