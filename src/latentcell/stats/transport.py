"""Pairing cells of two populations, and moving along the path between paired cells."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from latentcell.errors import InputError
from latentcell.stats.distances import MAX_EXACT, Array, checked_populations

Method = Literal["ot", "random"]
Path = Literal["linear", "slerp"]
Side = Literal["source", "target", "both"]
Index = NDArray[np.intp]

MAX_SINKHORN = 5_000
"""Cells per side that enter entropic transport; a random subset of this size beyond."""

SINKHORN_REGULARISATION = 0.02
"""Entropy weight of Sinkhorn's plan, in units of the median reduced cost."""


def pair(
    source: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    method: Method = "ot",
    n_pairs: int | None = None,
    growth: NDArray[np.floating] | None = None,
    unbalanced: float | None = None,
    rng: int | np.random.Generator | None = None,
) -> tuple[Index, Index]:
    """Pair cells of two populations.

    ``"ot"`` minimises the total squared Euclidean distance, uncentred, every cell carrying the same mass: the exact
    assignment for equal sizes, the exact plan for unequal sizes or masses up to 2,000 cells per side, and beyond that
    Sinkhorn's plan (Cuturi 2013) on at most 5,000 cells per side, with an entropy weight of 0.02 times the median cost
    after each cell's smallest cost is taken off (its total cost is then a few per cent above the exact one). Pairs are
    drawn from a plan by systematic sampling, so that every source cell is used in proportion to its mass; target cells
    are too where the plan is exact, else on average. ``"random"`` pairs shuffled cells, each used equally often.

    Parameters
    ----------
    source, target
        Populations ``(n, p)`` and ``(m, p)``.
    n_pairs
        Number of pairs; ``max(n, m)`` by default.
    growth
        Descendants that each source cell has at the target ``(n,)``, up to a factor: its mass is proportional to it
        (Schiebinger et al. 2019). By default every cell has the same number.
    unbalanced
        Weight of the Kullback-Leibler penalty on the cells' masses, in units of the median cost (Chizat et al. 2018):
        cells that only a long way could pair may lose mass to death or gain it by proliferation. 1 is mild, 0.05
        strong; at most 2,000 cells per side. By default masses are kept.

    Returns
    -------
    i, j
        Rows of `source` and of `target`, one pair per position, in random order of pairs.
    """
    if method not in get_args(Method):
        raise InputError(f"Pairing {method!r} is unknown; choose one of {', '.join(get_args(Method))}.")
    source, target = checked_populations(source, target, least=1)
    rng = np.random.default_rng(rng)
    n_pairs = max(len(source), len(target)) if n_pairs is None else n_pairs
    if n_pairs < 1:
        raise InputError(f"n_pairs={n_pairs}: ask for at least one pair.")
    if method == "random":
        if growth is not None or unbalanced is not None:
            raise InputError("Growth and unbalanced masses are for pairing by optimal transport, not for random pairs.")
        return _shuffled(len(source), n_pairs, rng), _shuffled(len(target), n_pairs, rng)
    mass = None if growth is None else _checked_growth(growth, len(source))
    if mass is None and unbalanced is None and len(source) == len(target) <= MAX_EXACT:
        i, j = linear_sum_assignment(_squared_cost(source, target))
        drawn = _shuffled(len(i), n_pairs, rng)
        return i[drawn], j[drawn]
    most = MAX_SINKHORN if unbalanced is None else MAX_EXACT
    rows, columns = (_subset(len(z), most, rng) for z in (source, target))
    plan = _plan(source[rows], target[columns], None if mass is None else mass[rows], unbalanced)
    i, j = _draw(plan, n_pairs, rng)
    return rows[i], columns[j]


def displace(
    z_source: NDArray[np.floating], z_target: NDArray[np.floating], t: float | Array, path: Path = "linear"
) -> Array:
    """Move paired positions from source (t = 0) to target (t = 1).

    ``"linear"`` is z_t = (1 - t) z_source + t z_target. ``"slerp"`` (Shoemake 1985) follows the arc,
    z_t = [sin((1 - t) w) z_source + sin(t w) z_target] / sin w with w the angle between the two, and the line where
    the angle is 0 or 180 degrees.

    Parameters
    ----------
    z_source, z_target
        Positions ``(n, d)``, paired by row.
    t
        One position on the path, or one per pair ``(n,)``.
    """
    if path not in get_args(Path):
        raise InputError(f"Path {path!r} is unknown; choose one of {', '.join(get_args(Path))}.")
    a, b = np.asarray(z_source, dtype=np.float64), np.asarray(z_target, dtype=np.float64)
    share = np.broadcast_to(np.asarray(t, dtype=np.float64), len(a))[:, None]
    linear = (1 - share) * a + share * b
    if path == "linear":
        return np.asarray(linear)
    norms = np.linalg.norm(a, axis=1, keepdims=True) * np.linalg.norm(b, axis=1, keepdims=True)
    cosine = (a * b).sum(axis=1, keepdims=True) / np.where(norms > 0, norms, 1.0)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    sine = np.sin(angle)
    curved = (norms > 0) & (sine > 1e-6)
    arc = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.where(curved, sine, 1.0)
    return np.where(curved, arc, linear)


def shift(
    z_source: NDArray[np.floating], z_target: NDArray[np.floating], t: float, delta: NDArray[np.floating], side: Side
) -> Array:
    """Move cells by the difference of the two populations' means, as scGen does (Lotfollahi et al. 2019).

    ``"source"``: z_source + t delta; ``"target"``: z_target - (1 - t) delta; ``"both"``: a share t of the pairs, evenly
    spread over their order, from the target and the others from the source. The spread of the ends is kept, which
    averages of paired cells shrink; how cells of different kinds move differently is not seen.

    Parameters
    ----------
    z_source, z_target
        Positions ``(n, d)``, paired by row.
    t
        Position on the path, 0 to 1.
    delta
        Mean of the target minus mean of the source, ``(d,)`` or one per pair ``(n, d)``.
    """
    if side not in get_args(Side):
        raise InputError(f"Side {side!r} is unknown; choose one of {', '.join(get_args(Side))}.")
    a, b = np.asarray(z_source, dtype=np.float64), np.asarray(z_target, dtype=np.float64)
    onward, back = a + t * delta, b - (1 - t) * delta
    if side == "both":
        # multiples of the golden ratio are spread evenly, so that any run of pairs holds about a share t
        from_target = (np.arange(len(a)) * 0.6180339887498949 + 0.5) % 1.0 < t
        return np.where(from_target[:, None], back, onward)
    return onward if side == "source" else back


def _squared_cost(source: Array, target: Array) -> Array:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(source, target, "sqeuclidean"))


def _checked_growth(growth: NDArray[np.floating], n: int) -> Array:
    mass = np.asarray(growth, dtype=np.float64)
    if mass.shape != (n,):
        raise InputError(f"growth has shape {mass.shape}, but there are {n} source cells: give one number per cell.")
    bad = ~(np.isfinite(mass) & (mass >= 0))
    if bad.any() or mass.sum() == 0:
        found = f"cell {int(np.argmax(bad))} has {mass[bad][0]:g}" if bad.any() else "all are 0"
        raise InputError(f"growth must be a number of descendants per source cell, 0 or more, but {found}.")
    return mass


def _subset(n: int, most: int, rng: np.random.Generator) -> Index:
    return np.sort(rng.choice(n, most, replace=False)) if n > most else np.arange(n)


def _plan(source: Array, target: Array, mass: Array | None, unbalanced: float | None) -> NDArray[np.floating]:
    """Transport plan ``(n, m)``: exact when small and balanced, entropic otherwise."""
    import ot

    cost = _squared_cost(source, target)
    weights = np.ones(len(source)) if mass is None else mass
    masses = weights / weights.sum(), np.full(len(target), 1 / len(target))
    if unbalanced is not None:
        if not 0 < unbalanced < np.inf:
            raise InputError(f"unbalanced={unbalanced}: give a positive weight, such as 0.1, or None to keep masses.")
        scale = float(np.median(cost)) or 1.0
        # a cell far from all others must not make its row of exp(-cost / regularisation) vanish
        cost = np.minimum(cost, 500 * SINKHORN_REGULARISATION * scale)
        return np.asarray(
            ot.unbalanced.sinkhorn_knopp_unbalanced(
                *masses, cost, SINKHORN_REGULARISATION * scale, unbalanced * scale, numItermax=1_000, stopThr=1e-5
            )
        )
    if max(cost.shape) <= MAX_EXACT:
        return np.asarray(ot.emd(*masses, cost, numItermax=10_000_000))
    # a shift of a row or a column leaves the plan as it is and keeps exp(-cost / regularisation) from vanishing
    cost -= cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0)
    regularisation = SINKHORN_REGULARISATION * float(np.median(cost))
    if regularisation == 0:
        return np.outer(*masses)
    cost /= -regularisation
    return _scaled(np.exp(cost, out=cost).astype(np.float32), *masses)


def _scaled(kernel: NDArray[np.float32], rows: Array, columns: Array) -> NDArray[np.float32]:
    """Scale rows and columns of a kernel, in place, to the given sums (Sinkhorn 1967).

    In single precision and one array of 4 n m bytes, where libraries hold three in double.
    """
    a, b = rows.astype(np.float32), columns.astype(np.float32)
    v = np.ones(len(b), dtype=np.float32)
    for iteration in range(1_000):
        u = a / np.maximum(kernel @ v, 1e-30)
        reached = v * (u @ kernel)
        if iteration % 10 == 0 and np.linalg.norm(reached - b) < 1e-5:
            break
        v = b * v / np.maximum(reached, 1e-30)
    kernel *= u[:, None]
    kernel *= v
    return kernel


def _draw(plan: NDArray[np.floating], n_pairs: int, rng: np.random.Generator) -> tuple[Index, Index]:
    """Systematic sample of pairs from a plan: equally spaced points on its cumulative mass, one random start."""
    cumulative = np.cumsum(plan, dtype=np.float64)
    points = (np.arange(n_pairs) + rng.random()) * (cumulative[-1] / n_pairs)
    flat = np.minimum(np.searchsorted(cumulative, points, side="right"), cumulative.size - 1)
    i, j = np.divmod(rng.permutation(flat), plan.shape[1])
    return i, j


def _shuffled(n: int, length: int, rng: np.random.Generator) -> Index:
    """Rows 0..n-1 in random order, repeated until `length` are drawn, each row equally often to within one."""
    rounds = [rng.permutation(n) for _ in range(-(-length // n))]
    return np.concatenate(rounds)[:length]
