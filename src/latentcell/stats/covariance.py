"""Covariance of one number per cell with each measured variable: its interval, and p by permutation.

The number v (a factor, a latent dimension) and the variables x are first freed of what is held fixed: the mean of each
stratum and the regression on nuisance variables (Frisch and Waugh 1933; Lovell 1963). With w and y what is left of
them, and N the degrees of freedom that are left to the cells,

    c = sum_r T_r / N,    T_r = sum of w_i y_i over the cells i of unit r

The unit is the replicate or, where there are none, the cell. Without unit r, all means refitted, c would change by

    e_r = (a_r T_r - N_r c) / (N - N_r),    a_r = 1 / (1 - leverage of r),    N_r = degrees of freedom of r

which is the influence of r on c, and its variance is ``sum_r (1 - 1 / U_s) e_r^2`` over the U_s units of each stratum
(stratified delete-one jackknife, Rust and Rao 1996). It takes v as sampled with the cells, not as set by a design: an
interval for the covariance in the population, wide where v takes a rare value.

p comes from permutations of w (Freedman and Lane 1983), each freed again of what is held fixed, and from c divided by
its standard error: such a studentised statistic keeps its level also where v and x are uncorrelated but dependent, as
when a group of cells only varies more (Janssen 1997; DiCiccio and Romano 2017). Expanding the square,

    sum_r e_r^2 = sum_r (alpha_r T_r)^2 - 2 c sum_r alpha_r nu_r T_r + c^2 sum_r nu_r^2

so that where a unit has one value of w, all permutations and variables cost three products of matrices.

Where v is one value per replicate (a treatment, a donor's age), whole replicates exchange values and sums over
replicates stand for cells. Where v varies within replicates, cells exchange values within them; what differs between
replicates is then held fixed like a stratum, and c is the covariance within replicates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.stats import t as student

from latentcell.errors import InputError

Array = NDArray[np.float64]
Codes = NDArray[np.intp]

N_PERMUTATIONS = 999
LEVEL = 0.95
"""Confidence level of the intervals."""

_TIES = 1e-6  # relative: statistics this close are the same arrangement computed in another order
_NO_VARIANCE = 1e-20  # of the sum of squares: what is left of a constant is rounding
_SMALLEST_VARIANCE = 1e-10  # of its first term: below, the expanded square is rounding
_ALONE = 1e-6  # 1 - leverage of a unit that has a mean or slope to itself
_DEPENDENT = 1e-9  # relative to the length of a nuisance column: what is left of one that others tell
_TILE = (64, 256)
_BLOCK_VALUES = 4_000_000


class Covariance(NamedTuple):
    """Result of `covariance_test`, for each of G variables.

    Attributes
    ----------
    covariance
        ``(G,)``; within strata and adjusted for nuisance where there are any.
    low, high
        95 % interval, ``(G,)``.
    effect
        Standardised, ``(G,)``: where v has two values, mean at the higher minus mean at the lower in SD pooled within
        them; else the correlation.
    statistic
        Covariance divided by its standard error, ``(G,)``.
    p
        Two-sided, of the permutations of v, ``(G,)``; 1 for a variable without variance.
    n_units
        Number of replicates, or of cells where there are no replicates.
    permuted
        `statistic` of every permutation, ``(B, G)`` float32; ``(0, G)`` unless asked for.
    """

    covariance: Array
    low: Array
    high: Array
    effect: Array
    statistic: Array
    p: Array
    n_units: int
    permuted: NDArray[np.float32]


def covariance_test(
    v: ArrayLike,
    x: ArrayLike,
    *,
    replicate: ArrayLike | None = None,
    stratum: ArrayLike | None = None,
    nuisance: ArrayLike | None = None,
    n_permutations: int = N_PERMUTATIONS,
    keep_permuted: bool = False,
    rng: int | np.random.Generator | None = None,
) -> Covariance:
    """Covariance of `v` with each variable, its 95 % interval, and p by permutation of v; see the module.

    Parameters
    ----------
    v
        ``(n,)``, NaN where unknown: those cells are left out.
    x
        Measured variables ``(n, G)``.
    replicate
        Replicate of each cell, ``(n,)``: cells of one replicate are no independent evidence.
    stratum
        ``(n,)``, such as the plate: values are centred, and v is permuted, within strata only. A replicate that spans
        several exchanges values with those that span the same.
    nuisance
        ``(n, q)`` numbers to adjust for, such as the library size; where v is one value per replicate, their means over
        each replicate as well.
    n_permutations
        B; p is at least ``1 / (1 + B)``.
    keep_permuted
        Also return the statistic of every permutation, as `gene_sets.enrichment` needs it.
    """
    if n_permutations < 1:
        raise InputError(f"The number of permutations must be at least 1, not {n_permutations}.")
    measured = np.asarray(x)
    design = _design(_known_cells(v, measured, replicate, stratum, nuisance))
    found = _observed(design, measured)
    least = np.abs(found.statistic) - _TIES * np.maximum(1.0, np.abs(found.statistic))
    as_extreme = np.zeros(len(least), dtype=np.intp)
    permuted = np.empty((n_permutations if keep_permuted else 0, len(least)), dtype=np.float32)
    for draws, w in _permutations(design, n_permutations, np.random.default_rng(rng)):
        for columns, y in _residuals(design, measured, len(w)):
            statistic = _studentised(*_moments(design, w, design.by_row(y)))
            as_extreme[columns] += (np.abs(statistic) >= least[columns]).sum(axis=0)
            if keep_permuted:
                permuted[draws, columns] = statistic
    return found._replace(p=(1 + as_extreme) / (1 + n_permutations), permuted=permuted)


@dataclass(frozen=True)
class _HeldFixed:
    """Takes block means and the regression on nuisance out of m rows that stand for `weight` cells each.

    `mean` is the matrix ``(n_blocks, m)`` of weighted means, `basis` the nuisance within blocks, orthonormal under the
    weights, ``(m, q)``.
    """

    weight: Array
    block: Codes
    mean: csr_array
    basis: Array

    @classmethod
    def of(cls, weight: Array, block: Codes, nuisance: Array) -> _HeldFixed:
        """From nuisance ``(m, q)``, whose columns may depend on each other or on the blocks."""
        mean = csr_array((weight / np.bincount(block, weight)[block], (block, np.arange(len(block)))))
        root = np.sqrt(weight)[:, None]
        length = np.linalg.norm(root * nuisance, axis=0)
        inside = root * (nuisance - (mean @ nuisance)[block]) / np.where(length > 0, length, 1.0)
        left, size, _ = np.linalg.svd(inside, full_matrices=False)
        return cls(weight, block, mean, left[:, size > _DEPENDENT] / root)

    def out_of(self, values: Array) -> Array:
        """What is left of ``(m, k)``."""
        left = values - (self.mean @ values)[self.block]
        if self.basis.shape[1]:
            left -= self.basis @ ((self.weight[:, None] * self.basis).T @ left)
        return left

    @property
    def rank(self) -> int:
        """Number of means and slopes held fixed."""
        return self.mean.shape[0] + self.basis.shape[1]

    @property
    def leverage(self) -> Array:
        """Share of each row in what is held fixed at its own place, ``(m,)``."""
        total = np.bincount(self.block, self.weight)[self.block]
        return self.weight * (1 / total + (self.basis**2).sum(axis=1))


class _Cells(NamedTuple):
    """Cells with a known v, checked, those of one unit together; codes count from 0."""

    rows: Codes
    v: Array
    unit: Codes
    stratum: Codes
    nuisance: Array
    replicated: bool


@dataclass(frozen=True)
class _Design:
    """All that does not depend on the variables. Rows are what exchanges values of v: cells, or whole replicates.

    `held` takes what is held fixed out of the cells, `rows_held` out of the m rows, `w` is what is left of v in each
    row. `row_sums` is the matrix ``(m, n)`` of sums over the cells of each row, None where rows are cells; `units` the
    rows of each unit, None where each row is one. `alpha` and `nu` (see the module) are repeated for the rows of a
    unit, `offset` is the sum of nu^2 over units. `span` is the difference between the two values of v, None where it
    has more; `freedom` and `unit_freedom` are the degrees of freedom of the covariance and of its standard error.
    """

    cells: Codes
    held: _HeldFixed
    rows_held: _HeldFixed
    w: Array
    span: float | None
    row_sums: csr_array | None
    units: tuple[slice, ...] | None
    alpha: Array
    nu: Array
    offset: float
    n_units: int
    freedom: int
    unit_freedom: int

    def by_row(self, y: Array) -> Array:
        """Sums over the cells of each row, ``(m, k)``."""
        return y if self.row_sums is None else np.asarray(self.row_sums @ y)

    @property
    def spread(self) -> float:
        """Sum of squares of w over cells."""
        return float(self.rows_held.weight @ self.w**2)


def _design(cells: _Cells) -> _Design:
    first = np.unique(cells.unit, return_index=True)[1]
    one_each = np.ones(len(cells.v))
    units, row_sums, v = None, None, cells.v
    if cells.replicated and np.all(cells.v == cells.v[first][cells.unit]):
        held, rows_held, row_sums = _between_replicates(cells)
        v = cells.v[first]
    elif cells.replicated:
        units = tuple(slice(a, b) for a, b in itertools.pairwise([*first.tolist(), len(cells.v)]))
        inside = np.unique(np.stack([cells.unit, cells.stratum]), axis=1, return_inverse=True)[1].reshape(-1)
        held = rows_held = _HeldFixed.of(one_each, inside, cells.nuisance)
    else:
        held = rows_held = _HeldFixed.of(one_each, cells.stratum, cells.nuisance)
    freedom = max(1, len(cells.v) - held.rank)
    alpha, nu = _influence(rows_held, freedom, units)
    of_row = slice(None) if units is None else cells.unit
    distinct = np.unique(v)
    design = _Design(
        cells=cells.rows,
        held=held,
        rows_held=rows_held,
        w=rows_held.out_of(v[:, None])[:, 0],
        span=float(distinct[1] - distinct[0]) if len(distinct) == 2 else None,
        row_sums=row_sums,
        units=units,
        alpha=alpha[of_row],
        nu=nu[of_row],
        offset=float(nu @ nu),
        n_units=len(first),
        freedom=freedom,
        unit_freedom=len(first) - (1 if units else rows_held.rank),
    )
    _check_design(design, cells)
    return design


def _between_replicates(cells: _Cells) -> tuple[_HeldFixed, _HeldFixed, csr_array]:
    """What is held fixed of cells and of replicates, and sums over the cells of each replicate.

    With the nuisance enter its means over replicates (Mundlak 1978): what is left of v is then one value per replicate.
    """
    size = np.bincount(cells.unit).astype(np.float64)
    present = np.zeros((len(size), cells.stratum.max() + 1), dtype=bool)
    present[cells.unit, cells.stratum] = True
    stratum = np.unique(present, axis=0, return_inverse=True)[1].reshape(-1)
    columns = cells.nuisance
    if np.any(present.sum(axis=1) > 1):
        columns = np.hstack([columns, np.eye(present.shape[1])[cells.stratum]])
    row_sums = csr_array((np.ones(len(cells.unit)), (cells.unit, np.arange(len(cells.unit)))))
    means = (row_sums @ columns) / size[:, None]
    every = np.hstack([columns, means[cells.unit]])
    held = _HeldFixed.of(np.ones(len(cells.unit)), stratum[cells.unit], every)
    return held, _HeldFixed.of(size, stratum, means), row_sums


def _influence(rows: _HeldFixed, freedom: int, units: tuple[slice, ...] | None) -> tuple[Array, Array]:
    """What T_r and c of each unit contribute to ``sqrt(1 - 1 / U_s) e_r``, ``(U,)`` each."""
    if units is None:
        unit_freedom, n_peers = rows.weight, np.bincount(rows.block)[rows.block]
        refitted = 1 / np.maximum(1 - rows.leverage, _ALONE)
    else:
        # a unit takes its means with it; that slopes on nuisance are refitted is neglected
        unit_freedom = np.array([each.stop - each.start - len(np.unique(rows.block[each])) for each in units])
        n_peers, refitted = np.full(len(units), len(units)), np.ones(len(units))
    scale = np.sqrt(1 - 1 / n_peers) / np.maximum(1, freedom - unit_freedom)
    return scale * refitted, scale * unit_freedom


def _permutations(design: _Design, number: int, rng: np.random.Generator) -> Iterator[tuple[slice, Array]]:
    """Permuted w, freed again of what is held fixed, ``(k, m)``: some draws at a time, and which those are."""
    block = design.rows_held.block
    blocks = np.split(np.argsort(block, kind="stable"), np.cumsum(np.bincount(block))[:-1])
    streams = rng.spawn(len(blocks))  # so that draws do not depend on how many are made at a time
    step = max(1, _BLOCK_VALUES // len(design.w))
    for start in range(0, number, step):
        draws = slice(start, min(start + step, number))
        w = np.tile(design.w, (draws.stop - start, 1))
        for rows, stream in zip(blocks, streams, strict=True):
            w[:, rows] = stream.permuted(w[:, rows], axis=1)
        yield draws, np.ascontiguousarray(design.rows_held.out_of(w.T).T)


def _residuals(design: _Design, x: NDArray[Any], n_draws: int) -> Iterator[tuple[slice, Array]]:
    """What is left of the variables in each cell, ``(n, k)``: some variables at a time, and which those are."""
    step = max(1, 2 * _BLOCK_VALUES // (len(design.cells) + 4 * n_draws))
    for start in range(0, x.shape[1], step):
        columns = slice(start, min(start + step, x.shape[1]))
        values = x[design.cells, columns].astype(np.float64)
        _check_finite(values, "The measured variables", start)
        left = design.held.out_of(values)
        left[:, (left**2).sum(axis=0) <= _NO_VARIANCE * (values**2).sum(axis=0)] = 0.0
        yield columns, left


def _moments(design: _Design, w: Array, y: Array) -> tuple[Array, Array]:
    """Covariance and its variance, ``(k, g)`` each, from draws of w ``(k, m)`` and row sums of variables ``(m, g)``."""
    total, scaled, weight = w @ y, design.alpha[:, None] * y, design.alpha * design.nu
    # units of one size without nuisance weigh the same, which saves a product
    cross = weight[0] * total if np.ptp(weight) == 0 else w @ (weight[:, None] * y)
    square = w**2 @ scaled**2 if design.units is None else _squares(w, scaled, design.units)
    covariance = total / design.freedom
    variance = square + covariance * (design.offset * covariance - 2 * cross)
    return covariance, np.maximum(variance, _SMALLEST_VARIANCE * square)


def _squares(w: Array, y: Array, units: tuple[slice, ...]) -> Array:
    """Sum over units of the squared product of their rows, ``(k, g)``, in tiles that stay in the cache."""
    found = np.zeros((len(w), y.shape[1]))
    for i, j in itertools.product(range(0, len(w), _TILE[0]), range(0, y.shape[1], _TILE[1])):
        total = found[i : i + _TILE[0], j : j + _TILE[1]]
        some_w, some_y = w[i : i + _TILE[0]], np.ascontiguousarray(y[:, j : j + _TILE[1]])
        product = np.empty(total.shape)
        for rows in units:
            np.matmul(some_w[:, rows], some_y[rows], out=product)
            total += np.square(product, out=product)
    return found


def _studentised(covariance: Array, variance: Array) -> Array:
    """Covariance over its standard error; 0 where there is neither."""
    return covariance / np.sqrt(np.where(variance > 0, variance, 1.0))


def _observed(design: _Design, x: NDArray[Any]) -> Covariance:
    """The result but for p, which is 1."""
    covariance, se, statistic, effect = np.empty((4, x.shape[1]))
    for columns, y in _residuals(design, x, 1):
        found, variance = (each[0] for each in _moments(design, design.w[None], design.by_row(y)))
        covariance[columns], se[columns] = found, np.sqrt(variance)
        statistic[columns] = _studentised(found, variance)
        effect[columns] = _effect(design, found, (y**2).sum(axis=0))
    half = float(student.ppf((1 + LEVEL) / 2, design.unit_freedom)) * se
    low, high, p, none = covariance - half, covariance + half, np.ones(len(se)), np.empty((0, len(se)), np.float32)
    return Covariance(covariance, low, high, effect, statistic, p, design.n_units, none)


def _effect(design: _Design, covariance: Array, squares: Array) -> Array:
    """Standardised effect, see `Covariance`, from the sum of squares of each variable over cells."""
    product = covariance * design.freedom
    if design.span is None:
        scale = np.sqrt(design.spread * squares)
        return product / np.where(scale > 0, scale, 1.0)
    within = np.maximum(squares - product**2 / design.spread, _SMALLEST_VARIANCE * squares)
    sd = np.sqrt(within / max(1, design.freedom - 1))
    return design.span * product / design.spread / np.where(sd > 0, sd, 1.0)


def _known_cells(
    v: ArrayLike, x: NDArray[Any], replicate: ArrayLike | None, stratum: ArrayLike | None, nuisance: ArrayLike | None
) -> _Cells:
    """Refuse input that does not fit together, and leave out cells without a value."""
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise InputError(
            f"Measured variables must be a dense table of numbers, cells x variables, not {x.dtype} {x.shape}."
        )
    values = _numbers(v, len(x), "values")
    if values.ndim != 1:
        raise InputError(f"A covariance is taken with one value per cell, not with a table of shape {values.shape}.")
    rows = np.flatnonzero(~np.isnan(values))
    unit = np.arange(len(rows)) if replicate is None else _codes(replicate, rows, len(x), "replicate")
    order = np.argsort(unit, kind="stable")
    rows, unit = rows[order], unit[order]
    if len(rows) == 0 or unit[-1] < 2:
        what = "cells" if replicate is None else "replicates"
        raise InputError(
            f"At least 3 {what} with a known value are needed, to see how much a covariance varies between {what}; "
            f"there are {len(np.unique(unit))}."
        )
    columns = np.empty((len(x), 0)) if nuisance is None else _numbers(nuisance, len(x), "nuisance variables")
    columns = columns[rows].reshape(len(rows), -1)
    _check_finite(values[rows, None], "The values")
    _check_finite(columns, "The nuisance variables")
    block = np.zeros_like(unit) if stratum is None else _codes(stratum, rows, len(x), "stratum")
    return _Cells(rows, values[rows], unit, block, columns, replicated=replicate is not None)


def _numbers(given: ArrayLike, n: int, what: str) -> Array:
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The {what} of cells must be numbers: {error}.") from error
    if found.ndim == 0 or len(found) != n:
        raise InputError(f"There are {n} cells but {what} of shape {found.shape}; each cell needs one.")
    return found


def _codes(labels: ArrayLike, rows: Codes, n: int, what: str) -> Codes:
    """Label of each of the cells `rows` as a number from 0."""
    found = np.asarray(labels)
    if found.shape != (n,):
        raise InputError(f"There are {n} cells but {what} labels of shape {found.shape}; each cell needs one.")
    codes = pd.factorize(found[rows])[0].astype(np.intp)
    if np.any(codes < 0):
        raise InputError(
            f"{np.sum(codes < 0)} cells with a known value have no {what}, the first is cell number "
            f"{rows[np.argmin(codes)]} (counted from 0); give it one or leave those cells out."
        )
    return codes


def _check_finite(values: Array, what: str, first: int = 0) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
    if len(bad):
        raise InputError(
            f"{what} hold a missing or infinite number, first in column {first + bad[0]} (counted from 0); leave out "
            "the cells or the columns concerned."
        )


def _check_design(design: _Design, cells: _Cells) -> None:
    if np.ptp(cells.v) == 0:
        raise InputError(
            f"All {len(cells.v)} cells with a known value have the same one, so nothing can covary with it."
        )
    if design.spread <= _NO_VARIANCE * (cells.v @ cells.v):
        raise InputError(
            "The values do not vary once strata and nuisance variables are accounted for: each stratum holds "
            "one value, or the nuisance variables tell it, so that what goes with either cannot be told apart."
        )
    if design.unit_freedom < 2:
        what = "replicates" if cells.replicated else "cells"
        raise InputError(
            f"{design.n_units} {what} are too few to account for {design.n_units - design.unit_freedom} strata and "
            f"nuisance variables: at least 2 {what} more than those are needed."
        )
