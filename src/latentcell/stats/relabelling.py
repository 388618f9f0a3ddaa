"""Exact test of one group of replicates against controls by relabelling within blocks.

The unit is the replicate: a well, a donor, an embryo. Within a block (plate, batch) a group that does nothing is
exchangeable with the controls, so every choice of "treated" replicates in each block is as likely as the true one. The
statistic is recomputed for every choice, its centre and covariance refitted each time, and ``p = (1 + #{>=}) / (1 +
B)`` holds whatever the distribution of the replicates and however few there are (Fisher 1935; Phipson and Smyth 2010).

With x the replicates centred on the mean of their block and t_b the shift of treated from control in block b, the
scatter within labels is the total scatter minus a term of rank one per block:

    S = S_total - sum_b (m_b n_b / N_b) t_b t_b',    T = t' ((1 - a) S / f + a D)^-1 t,    t = sum_b w_b t_b

S_total, the degrees of freedom f, the shrinkage a and its target D do not depend on the labels. By Woodbury's identity
T then needs no more than the Gram matrix of the replicates under the inverse of the total, so that refitting costs a
few products per relabelling, in any number of features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from latentcell.stats.shrinkage import oas_shrinkage

Array = NDArray[np.float64]

N_RELABELLINGS = 9_999
_TIES = 1e-9  # relative: statistics this close are the same relabelling computed in another order
_BLOCK_VALUES = 4_000_000
_NORMAL_IQR = 1.349  # interquartile range of a standard normal


class Layout(NamedTuple):
    """Rows of one group and of its controls, block by block.

    Attributes
    ----------
    rows
        Per block, row numbers of the group's replicates, then of the block's controls.
    n_treated
        Per block, how many of those are the group's.
    """

    rows: tuple[NDArray[np.intp], ...]
    n_treated: tuple[int, ...]

    @property
    def n_distinct(self) -> int:
        """Number of distinct relabellings."""
        return math.prod(math.comb(len(rows), m) for rows, m in zip(self.rows, self.n_treated, strict=True))

    @property
    def mirrored(self) -> bool:
        """Whether exchanging group and controls everywhere is a relabelling too, with the same statistic."""
        return all(2 * m == len(rows) for rows, m in zip(self.rows, self.n_treated, strict=True))

    def smallest_p(self, n_relabellings: int = N_RELABELLINGS) -> float:
        """Smallest p that the design can give: ``(1 + n_controls)^-blocks`` for single wells, if all are enumerated."""
        if self.n_distinct <= n_relabellings + 1:
            return (2 if self.mirrored else 1) / self.n_distinct
        return 1 / (1 + n_relabellings)


class Relabelled(NamedTuple):
    """Result of `relabelling_test`.

    Attributes
    ----------
    statistic
        Harmonic mean over views of the approximate p of T (see `combined`), as -log10: how extreme the group is, beyond
        the resolution of p.
    p
        ``(1 + #{>=}) / (1 + B)``; the share of relabellings at least as extreme where all were enumerated.
    smallest_p
        Smallest p attainable.
    p_views
        p of each view by itself, ``(n_views,)``.
    distances
        Square root of T of each view: how far the group lies from its controls, in SD of replicates, ``(n_views,)``.
    """

    statistic: float
    p: float
    smallest_p: float
    p_views: Array
    distances: Array


def layout(treated: NDArray[np.bool_], control: NDArray[np.bool_], block: NDArray[Any]) -> Layout:
    """Rows of the replicates `treated` and of the controls in the same blocks; blocks without both are left out.

    Parameters
    ----------
    treated, control
        Which replicates are the group's and which are controls, ``(n,)``.
    block
        Block of each replicate, ``(n,)``.
    """
    rows, n_treated = [], []
    for name in dict.fromkeys(block[treated].tolist()):
        ours, theirs = (np.flatnonzero(each & (block == name)) for each in (treated, control))
        if len(theirs):
            rows.append(np.concatenate([ours, theirs]))
            n_treated.append(len(ours))
    return Layout(tuple(rows), tuple(n_treated))


def relabellings(design: Layout, *, n: int = N_RELABELLINGS, rng: np.random.Generator) -> NDArray[np.intp]:
    """Places of the treated replicates within their blocks ``(1 + B, sum of n_treated)``, the true one first.

    All distinct ones where there are at most ``n + 1`` of them, else `n` independent draws.
    """
    sizes = [len(rows) for rows in design.rows]
    if design.n_distinct <= n + 1:
        choices = [itertools.combinations(range(size), m) for size, m in zip(sizes, design.n_treated, strict=True)]
        every = [list(itertools.chain.from_iterable(each)) for each in itertools.product(*choices)]
        return np.asarray(every, dtype=np.intp)
    drawn = []
    for size, m in zip(sizes, design.n_treated, strict=True):
        if m == 1:
            places = rng.integers(size, size=(n, 1))
        else:
            places = np.sort(np.argpartition(rng.random((n, size)), m - 1, axis=1)[:, :m], axis=1)
        drawn.append(np.concatenate([np.arange(m)[None], places]))
    return np.concatenate(drawn, axis=1)


def relabelling_test(
    views: Sequence[Array],
    design: Layout,
    *,
    control: NDArray[np.bool_],
    block: NDArray[Any],
    weights: Sequence[float] | None = None,
    n_relabellings: int = N_RELABELLINGS,
    rng: int | np.random.Generator | None = None,
) -> Relabelled:
    """Test whether a group of replicates deviates from its controls, in one or several descriptions jointly.

    Each view gives T (see the module). The T of all views are combined for every relabelling in the same way
    (`combined`; nonparametric combination, Pesarin and Salmaso 2010), so that the joint test holds whatever the
    dependence between views.

    Parameters
    ----------
    views
        Descriptions of the replicates, each ``(n, p_v)``; any p_v.
    design
        Rows of the group and of its controls; see `layout`.
    control, block
        As for `layout`: controls of other blocks add to the covariance, their labels are not exchanged.
    weights
        Of the views in the combination; by default all alike.
    n_relabellings
        B, where not all relabellings are enumerated.
    """
    drawn = relabellings(design, n=n_relabellings, rng=np.random.default_rng(rng))
    every = np.stack([statistics(view, design, drawn, control=control, block=block) for view in views], axis=1)
    joint = combined(every, weights)
    return Relabelled(
        statistic=float(joint[0]),
        p=share_as_extreme(joint),
        smallest_p=design.smallest_p(n_relabellings),
        p_views=np.array([share_as_extreme(one / max(one[0], 1e-300)) for one in every.T]),
        distances=np.sqrt(every[0]),
    )


def combined(every: Array, weights: Sequence[float] | None = None) -> Array:
    """-log10 of the weighted harmonic mean p over views (Wilson 2019), roughly, of every relabelling, ``(1 + B,)``.

    The harmonic mean follows the smallest p, so that a change that one view sees is not drowned by views that see none.
    The cube root of T, close to normal as that of a chi-square is (Wilson and Hilferty 1931), is measured from its
    median over relabellings in units of its interquartile range, which the true labels hardly move. The test's p does
    not depend on how good that is: the combination is relabelled itself.

    Parameters
    ----------
    every
        T of every relabelling and view, ``(1 + B, n_views)``.
    weights
        Of the views, ``(n_views,)``; by default all alike.
    """
    share = np.ones(every.shape[1]) if weights is None else np.asarray(weights, np.float64)
    root = np.cbrt(every)
    low, middle, high = np.quantile(root, (0.25, 0.5, 0.75), axis=0)
    tiny = _TIES * middle
    scale = np.where(high - low > tiny, (high - low) / _NORMAL_IQR, root.std(axis=0))
    log_p = np.where(scale > tiny, log_ndtr((middle - root) / np.where(scale > tiny, scale, 1.0)), 0.0)
    return np.asarray(logsumexp(-log_p, axis=1, b=share / share.sum()) / np.log(10))


def share_as_extreme(values: Array) -> float:
    """Share of relabellings with a statistic at least as large as the first, itself included."""
    return float(np.mean(values >= values[0] - _TIES * max(1.0, abs(values[0]))))


def statistics(
    values: Array,
    design: Layout,
    drawn: NDArray[np.intp],
    *,
    control: NDArray[np.bool_],
    block: NDArray[Any],
) -> Array:
    """T of every relabelling, ``(1 + B,)``; see the module for its definition.

    Parameters
    ----------
    values
        Replicates ``(n, p)``.
    drawn
        As from `relabellings`.
    """
    gram, share, f = _gram(values, design, control, block)
    # the shift of block b is the sum of its treated rows (centred) times 1/m + 1/n
    size, m = np.array([len(rows) for rows in design.rows]), np.array(design.n_treated)
    weight = precision(design)
    scale = 1 / np.sqrt(weight)  # of u_b = sqrt(m n / N) t_b, so that S = S_total - sum u u'
    v = np.sqrt(weight) / weight.sum()  # t = sum_b w_b t_b with w_b = m n / N, in terms of u_b
    last = np.cumsum(m)
    members = [range(end - number, end) for end, number in zip(last, m, strict=True)]
    where = drawn + np.repeat(np.cumsum(size) - size, m)
    result = np.empty(len(drawn))
    step = max(1, _BLOCK_VALUES // where.shape[1] ** 2)
    k = len(scale)
    for start in range(0, len(drawn), step):
        rows = where[start : start + step]
        inner = np.empty((len(rows), k, k))
        for a, b in itertools.combinations_with_replacement(range(k), 2):
            pairs = gram[rows[:, members[a]][:, :, None], rows[:, members[b]][:, None, :]].sum(axis=(1, 2))
            inner[:, a, b] = inner[:, b, a] = scale[a] * scale[b] * pairs
        rest = np.eye(k) - share / f * inner
        solved = np.linalg.solve(rest, np.broadcast_to(v[:, None], (len(rows), k, 1)))[..., 0]
        result[start : start + step] = np.einsum("a,rab,rb->r", v, inner, solved)
    return np.maximum(result, np.finfo(float).tiny)


def precision(design: Layout) -> Array:
    """Weight of each block's shift, m n / N: its inverse variance in units of that of replicates, ``(n_blocks,)``."""
    size, m = np.array([len(rows) for rows in design.rows]), np.array(design.n_treated)
    return np.asarray(m * (size - m) / size, dtype=np.float64)


def shift(values: Array, design: Layout) -> Array:
    """Mean over blocks of treated minus control, weighted by `precision`, ``(p,)``."""
    weight = precision(design)
    return np.asarray(weight @ block_shifts(values, design) / weight.sum())


def block_shifts(values: Array, design: Layout) -> Array:
    """Mean of treated minus mean of control in every block, ``(n_blocks, p)``."""
    shifts = [
        values[rows[:m]].mean(axis=0) - values[rows[m:]].mean(axis=0)
        for rows, m in zip(design.rows, design.n_treated, strict=True)
    ]
    return np.stack(shifts)


def accounted_for(values: Array, covariates: Array, blocks: Sequence[NDArray[np.intp]]) -> Array:
    """Values minus their regression on `covariates` within blocks, fitted without labels.

    Parameters
    ----------
    values, covariates
        ``(n, p)`` and ``(n, k)``.
    blocks
        Rows that belong together: a group's replicates and its controls.
    """
    x, y = centred(covariates, blocks), centred(values, blocks)
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    return np.asarray(values - covariates @ slopes)


def centred(values: Array, rows: Sequence[NDArray[np.intp]]) -> Array:
    """Replicates of each set of rows minus their mean, stacked."""
    return np.concatenate([values[each] - values[each].mean(axis=0) for each in rows])


def _gram(values: Array, design: Layout, control: NDArray[np.bool_], block: NDArray[Any]) -> tuple[Array, float, int]:
    """Gram matrix of the design's replicates under the inverse total, 1 - shrinkage, and degrees of freedom.

    Features are scaled to unit variance within blocks and shrunk towards no correlation (OAS, Chen et al. 2010, on
    the total scatter). Nothing here depends on the labels.
    """
    ours = {str(block[rows[0]]) for rows in design.rows}
    others = [np.flatnonzero(control & (block == name)) for name in dict.fromkeys(block[control].tolist())]
    others = [rows for rows in others if str(block[rows[0]]) not in ours and len(rows) > 1]
    n_ours = sum(len(rows) for rows in design.rows)
    x = centred(values, [*design.rows, *others])
    f = max(1, len(x) - len(design.rows) - len(others))
    sd = np.sqrt((x**2).sum(axis=0) / f)
    x = x[:, sd > 1e-9 * max(1.0, float(sd.max()))] / sd[sd > 1e-9 * max(1.0, float(sd.max()))]
    p = max(1, x.shape[1])
    share = 1 - oas_shrinkage(x, f)
    inner = x @ x.T
    if p < len(x):
        total = share * (x.T @ x) / f + (1 - share) * np.eye(p)
        ours_x = x[:n_ours]
        return ours_x @ np.linalg.solve(total, ours_x.T), share, f
    # the same in the space of the replicates: X (c X'X + s I)^-1 X' has the eigenvectors of X X'
    eigenvalues, vectors = np.linalg.eigh(inner)
    kept = np.maximum(eigenvalues, 0)
    gram = (vectors * (kept / (share / f * kept + 1 - share))) @ vectors.T
    return gram[:n_ours, :n_ours], share, f
