"""Whether control and treated replicates could have changed places: checks of a plate layout.

A relabelling test holds where, if nothing acts, treated and control replicates of a block are exchangeable. Random
places make them so. Where each perturbation keeps its place from plate to plate, or controls fill columns of their own,
an effect of the place is indistinguishable from one of the perturbation, and the test calls it one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from latentcell.stats.relabelling import Array, share_as_extreme

N_PERMUTATIONS = 999


def controls_apart(
    places: Array, control: NDArray[np.bool_], block: NDArray[Any], *, rng: np.random.Generator
) -> float:
    """P for controls standing at other places of their block than the other replicates do.

    Energy distance between the two sets of places, against random choices of which replicates are controls; the median
    p over blocks, because plates that share one layout are no independent evidence. 1 where no block can tell.

    Parameters
    ----------
    places
        Row and column of each replicate ``(n, 2)``.
    control, block
        ``(n,)``.
    """
    p_values = []
    for name in dict.fromkeys(block.tolist()):
        rows = np.flatnonzero(block == name)
        is_control = control[rows]
        if 1 < is_control.sum() < len(rows) - 1:
            apart = np.linalg.norm(places[rows][:, None] - places[rows][None], axis=-1)
            labels = np.stack([is_control, *(rng.permutation(is_control) for _ in range(N_PERMUTATIONS))]).astype(float)
            share = labels / labels.sum(axis=1, keepdims=True)
            other = (1 - labels) / (1 - labels).sum(axis=1, keepdims=True)
            contrast = share - other
            p_values.append(share_as_extreme(-np.einsum("ri,ij,rj->r", contrast, apart, contrast)))
    return float(np.median(p_values)) if p_values else 1.0


def places_kept(places: Array, label: NDArray[Any], block: NDArray[Any], *, rng: np.random.Generator) -> float:
    """P for replicates of a perturbation standing nearer to each other, within and across blocks, than chance would.

    Mean distance between the places of replicates of the same label, against labels permuted within blocks; controls
    should be left out. 1 where no label has two replicates.
    """
    order = np.argsort(label.astype(str), kind="stable")
    _, start, count = np.unique(label.astype(str)[order], return_index=True, return_counts=True)
    pairs = [
        (order[first + i], order[first + j])
        for first, number in zip(start, count, strict=True)
        for i in range(number)
        for j in range(i)
    ]
    if not pairs:
        return 1.0
    a, b = np.array(pairs).T
    rows = [np.flatnonzero(block == name) for name in dict.fromkeys(block.tolist())]
    nearness = np.empty(1 + N_PERMUTATIONS)
    permuted = places
    for i in range(1 + N_PERMUTATIONS):
        nearness[i] = -np.linalg.norm(permuted[a] - permuted[b], axis=1).mean()
        permuted = places.copy()
        for each in rows:
            permuted[each] = places[rng.permutation(each)]
    return share_as_extreme(nearness)


def place_effect(values: Array, places: Array, block: NDArray[Any], *, rng: np.random.Generator) -> float:
    """P for replicates at near places, of any block, resembling each other: an effect of the place.

    The Hilbert-Schmidt independence criterion (Gretton et al. 2005) between places (Gaussian kernel; row, column and
    distance from the border) and the whitened values (linear kernel), both centred within blocks, against places
    permuted within blocks.

    Parameters
    ----------
    values
        Control replicates ``(n, p)``.
    """
    blocks = [np.flatnonzero(block == name) for name in dict.fromkeys(block.tolist())]
    blocks = [rows for rows in blocks if len(rows) > 2]
    if not blocks:
        return 1.0
    kept = np.concatenate(blocks)
    x = np.concatenate([values[rows] - values[rows].mean(axis=0) for rows in blocks])
    x = x / np.maximum(x.std(axis=0), 1e-12)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    # ridge-whitened, so that noise in many features does not drown an effect in few
    like = (u * (s**2 / (s**2 + np.mean(s**2)))) @ u.T
    spot = _with_border(places)[kept]
    squared = ((spot[:, None] - spot[None]) ** 2).sum(axis=-1)
    kernel = np.exp(-squared / max(float(np.median(squared[np.triu_indices(len(spot), 1)])), 1e-12))
    centre = np.eye(len(kept))
    first, members = 0, []
    for rows in blocks:
        mine = np.arange(first, first + len(rows))
        centre[np.ix_(mine, mine)] -= 1 / len(rows)
        members.append(mine)
        first += len(rows)
    like = centre @ like @ centre
    criterion = np.empty(1 + N_PERMUTATIONS)
    order = np.arange(len(kept))
    for i in range(1 + N_PERMUTATIONS):
        criterion[i] = (kernel[np.ix_(order, order)] * like).sum()
        order = np.concatenate([rng.permutation(mine) for mine in members])
    return share_as_extreme(criterion)


def rejection_interval(rate: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate among `n` independent trials; `n` and the count need not be whole."""
    k, tail = rate * n, (1 - level) / 2
    low = 0.0 if k <= 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k >= n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def nearest_places(wanted: Array, places: Array, candidates: NDArray[np.intp], taken: set[int]) -> int | None:
    """Candidate row nearest to the place `wanted` ``(2,)`` that is not taken; None where all are."""
    free = np.array([row for row in candidates.tolist() if row not in taken], dtype=np.intp)
    if free.size == 0:
        return None
    return int(free[np.argmin(np.linalg.norm(places[free] - wanted, axis=1))])


def _with_border(places: Array) -> Array:
    """Row, column and distance from the border of the plate that the places span, each of unit SD."""
    low, high = places.min(axis=0), places.max(axis=0)
    border = np.minimum(places - low, high - places).min(axis=1, keepdims=True)
    spot = np.concatenate([places, border], axis=1)
    return np.asarray(spot / np.maximum(spot.std(axis=0), 1e-12))
