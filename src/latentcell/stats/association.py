"""How strongly each dimension of a code goes with each factor, by the statistics that disentanglement scores need.

`mutual_information`, `correlation`, `linear_score` and `single_dimension` return an array ``(d, k)`` for codes
``(n, d)`` and k factors. Each factor counts on the cells where it is known. A dimension or factor that does not vary
there gives 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import entr
from scipy.stats import rankdata
from sklearn.tree import ExtraTreeRegressor

from latentcell.errors import InputError
from latentcell.stats.factor import N_BINS, Factor

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
T = TypeVar("T")

MAX_CELLS = 2_000
"""Cells that a forest is grown on, at most."""

N_TREES = 30
N_FOLDS = 5
_COARSE = 5  # classes of a number where two factors are tabulated: with more, a small table is mostly empty
_CONSTANT = 1e-12  # relative: a range below this is rounding


class Importance(NamedTuple):
    """How a forest tells factors from all dimensions together; see `importance`.

    Attributes
    ----------
    matrix
        Share of each dimension in telling each factor, ``(d, k)``; columns sum to 1.
    informativeness
        How well each factor is told, out of bag, ``(k,)``.
    """

    matrix: Array
    informativeness: Array


class _Fold(NamedTuple):
    """One fold of a cross-validation on bins of single dimensions.

    `place` ``(d, n)`` numbers the bins of all dimensions through, so that one count serves all.
    """

    train: Rows
    test: Rows
    place: Rows
    n_places: int


def checked_codes(codes: NDArray[np.floating], factors: Sequence[Factor]) -> Array:
    """Codes as float64, refusing missing values, no factor, and factors of other cells."""
    z = np.asarray(codes, dtype=np.float64)
    if z.ndim != 2 or 0 in z.shape:
        raise InputError(f"Codes must be (cells, dimensions) and hold at least one of each, found shape {z.shape}.")
    if not np.isfinite(z).all():
        cell, dimension = np.argwhere(~np.isfinite(z))[0]
        raise InputError(
            f"The code of cell {cell} is missing or infinite in dimension {dimension}; drop such cells first."
        )
    if not factors:
        raise InputError("No factor was given: name at least one annotation to compare the codes with.")
    for factor in factors:
        if len(factor.value) != len(z):
            raise InputError(
                f"The factor {factor.name!r} annotates {len(factor.value)} cells but there are codes of {len(z)}: "
                "both must describe the same cells in the same order."
            )
    return z


def mutual_information(codes: NDArray[np.floating], factors: Sequence[Factor]) -> Array:
    """Mutual information of each dimension and factor in nats, ``(d, k)``, by counting.

    A dimension is cut into 20 bins of equal width between its extremes, as in Locatello et al. 2019, a factor into
    `Factor.classes`. Counting overestimates by about ``(bins - 1)(classes - 1) / 2n``.

    Parameters
    ----------
    codes
        ``(n, d)``.
    factors
        k factors of the n cells.
    """
    return _columns(checked_codes(codes, factors), factors, _equal_width, _information)


def entropy(factor: Factor) -> float:
    """Entropy in nats of a factor's classes among the cells where it is known."""
    counts = np.bincount(factor.classes()[factor.known])
    return float(entr(counts / max(1, counts.sum())).sum())


def correlation(codes: NDArray[np.floating], factors: Sequence[Factor]) -> Array:
    """Correlation of each dimension with each factor, ``(d, k)``, from 0 to 1 whatever the kind of factor.

    Absolute Spearman correlation with a continuous or ordinal factor; multiple correlation with the cosine and sine of
    a cyclic one; correlation ratio (root of eta squared) with a categorical one, which for two levels is the absolute
    Pearson correlation with 0 and 1 (as in Kimmel 2020).
    """
    return _columns(checked_codes(codes, factors), factors, lambda z: (z, rankdata(z, axis=1)), _correlation)


def linear_score(codes: NDArray[np.floating], factors: Sequence[Factor]) -> Array:
    """Score of the linear prediction of each factor from each dimension, ``(d, k)``, for SAP (Kumar et al. 2018).

    Squared Pearson correlation with a continuous or ordinal factor; share of variance that the cosine and sine of a
    cyclic one explain. A categorical factor is predicted by the nearest class mean, which is linear discriminant
    analysis with equal priors in one dimension; the balanced accuracy, each cell left out of the means in turn, is
    rescaled so that chance is 0 and perfection 1, and cut at 0. The reference trains a support vector machine and
    reports its accuracy, whose gap cannot exceed 1 minus chance; here categorical factors count like the others.
    """
    return _columns(checked_codes(codes, factors), factors, _standardised, _linear_score)


def single_dimension(
    codes: NDArray[np.floating], factors: Sequence[Factor], *, rng: int | np.random.Generator | None = None
) -> Array:
    """How well each dimension by itself predicts each factor of cells not seen, ``(d, k)``.

    A dimension is cut into up to 20 bins of about as many training cells, and a bin predicts its training cells' mean,
    or the class most frequent in it had all classes been equally frequent. Five-fold cross-validation; balanced
    accuracy for a categorical factor (chance: 1 / levels), R^2 for a continuous or ordinal one, joint R^2 of cosine and
    sine for a cyclic one. R^2 is negative where the mean of all cells predicts better.
    """
    z = checked_codes(codes, factors)
    return _columns(z, factors, partial(_folds, rng=np.random.default_rng(rng)), _cross_validated)


def importance(
    codes: NDArray[np.floating], factors: Sequence[Factor], *, rng: int | np.random.Generator | None = None
) -> Importance:
    """Importance of each dimension for telling each factor, and how well all tell it together, for DCI.

    Eastwood and Williams 2018, with a forest of 30 extremely randomised trees (Geurts et al. 2006) per factor, each
    grown on half of at most 2,000 cells and tested on the others. Informativeness is R^2 for a continuous, ordinal or
    cyclic factor (cosine and sine jointly) and balanced accuracy for a categorical one. The forest sees a categorical
    factor as indicators, each divided by the root of its level's frequency: what a split gains is then chi-squared, so
    that rare levels count like common ones.
    """
    z = checked_codes(codes, factors)
    rng = np.random.default_rng(rng)
    result = Importance(np.zeros((z.shape[1], len(factors))), np.zeros(len(factors)))
    for k, factor in enumerate(factors):
        rows = thinned(factor, rng)
        if len(np.unique(factor.value[rows])) > 1:
            x = _standardised(z[rows].T).T
            result.matrix[:, k], result.informativeness[k] = _forest(x, factor.take(rows), rng)
    return result


def thinned(factor: Factor, rng: np.random.Generator) -> Rows:
    """Up to 2,000 random cells where a factor is known, in order."""
    rows = np.flatnonzero(factor.known)
    return rows if len(rows) <= MAX_CELLS else np.sort(rng.choice(rows, MAX_CELLS, replace=False))


def factor_association(factors: Sequence[Factor]) -> pd.DataFrame:
    """Association of each pair of factors, from 0 to 1: which ones an experiment confounds.

    Informational correlation ``sqrt(1 - exp(-2 I))`` (Linfoot 1957), divided by its maximum, so that 1 means that one
    factor determines the other. For two normally distributed numbers it is about their absolute correlation. The
    mutual information I is counted on the cells where both are known, numbers and circles in 5 classes, minus its bias
    ``(rows - 1)(columns - 1) / 2n`` (Miller 1955). NaN where those cells do not tell.

    Returns
    -------
    pandas.DataFrame
        ``(k, k)``, factors by factors, 1 on the diagonal.
    """
    names = [factor.name for factor in factors]
    table = np.eye(len(factors))
    for i, j in itertools.combinations(range(len(factors)), 2):
        table[i, j] = table[j, i] = _informational_correlation(factors[i], factors[j])
    return pd.DataFrame(table, index=names, columns=names)


def _columns(
    z: Array, factors: Sequence[Factor], prepare: Callable[[Array], T], column: Callable[[T, Factor], Array]
) -> Array:
    """Array ``(d, k)`` with ``column(prepare(codes (d, m)), factor)`` of the m cells where each factor is known.

    Factors that are known in the same cells share what `prepare` made of the codes.
    """
    result = np.zeros((z.shape[1], len(factors)))
    members: dict[bytes, list[int]] = {}
    for k, factor in enumerate(factors):
        members.setdefault(factor.known.tobytes(), []).append(k)
    for same in members.values():
        known = factors[same[0]].known
        if known.sum() < 2:
            continue
        codes = np.ascontiguousarray(z[known].T)
        varies = _varies(codes)
        prepared = prepare(codes)
        for k in same:
            factor = factors[k].take(known)
            if _varies(factor.value):
                result[:, k] = np.where(varies, column(prepared, factor), 0.0)
    return result


def _varies(values: Array) -> NDArray[np.bool_]:
    """Whether values differ along the last axis by more than rounding."""
    return np.asarray(np.ptp(values, axis=-1) > _CONSTANT * np.abs(values).max(axis=-1))


def _standardised(z: Array) -> Array:
    """Values ``(d, n)`` of mean 0 and variance 1 along the last axis; 0 where constant."""
    varies = _varies(z)[..., None]
    centred = z - z.mean(axis=-1, keepdims=True)
    return np.where(varies, centred / np.where(varies, z.std(axis=-1, keepdims=True), 1.0), 0.0)


def _equal_width(z: Array) -> Rows:
    """Bin of each code ``(d, n)`` between edges that are those of `numpy.histogram`."""
    inner = [np.linspace(row.min(), row.max(), N_BINS + 1)[1:-1] for row in z]
    return np.stack([np.searchsorted(edges, row, side="right") for edges, row in zip(inner, z, strict=True)])


def _information(bins: Rows, factor: Factor) -> Array:
    classes = factor.classes()
    joint = _counts(bins + N_BINS * np.arange(len(bins))[:, None], classes, N_BINS * len(bins))
    return _shared(joint.reshape(len(bins), N_BINS, -1) / len(classes))


def _shared(share: Array) -> Array:
    """Mutual information in nats of joint distributions ``(d, rows, columns)``, ``(d,)``."""
    marginals = entr(share.sum(axis=2)).sum(axis=1) + entr(share.sum(axis=1)).sum(axis=1)
    return np.maximum(marginals - entr(share).sum(axis=(1, 2)), 0.0)


def _counts(place: Rows, classes: Rows, n_places: int) -> Array:
    """How many cells of each class ``(n,)`` lie at each place ``(d, n)``: ``(n_places, n_classes)``."""
    n_classes = int(classes.max()) + 1
    counts = np.bincount((place * n_classes + classes).ravel(), minlength=n_places * n_classes)
    return counts.reshape(n_places, n_classes).astype(np.float64)


def _correlation(prepared: tuple[Array, Array], factor: Factor) -> Array:
    codes, ranks = prepared
    if factor.kind in ("continuous", "ordinal"):
        ranked = _standardised(rankdata(factor.value))
        return np.minimum(np.abs(_standardised(ranks) @ ranked) / len(ranked), 1.0)
    return np.sqrt(_explained(_standardised(codes), factor))


def _linear_score(codes: Array, factor: Factor) -> Array:
    if factor.kind != "categorical":
        return _explained(codes, factor)
    n_present = len(np.unique(factor.value))
    accuracy = _nearest_mean_accuracy(codes, factor.classes())
    return np.maximum((accuracy - 1 / n_present) / (1 - 1 / n_present), 0.0)


def _explained(codes: Array, factor: Factor) -> Array:
    """Share of the variance of standardised codes ``(d, n)`` that a factor explains linearly, ``(d,)``."""
    if factor.kind == "categorical":
        classes = factor.classes()
        between = _class_means(codes, classes) ** 2 @ np.bincount(classes)
    else:
        columns, _ = factor.columns()
        u, s, _ = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
        between = ((codes @ u[:, s > _CONSTANT * np.linalg.norm(columns)]) ** 2).sum(axis=1)
    return np.minimum(between / codes.shape[1], 1.0)


def _class_means(values: Array, classes: Rows) -> Array:
    """Mean of values ``(d, n)`` in each class, ``(d, n_classes)``; 0 in a class without cells."""
    counts = np.maximum(np.bincount(classes), 1)
    return np.stack([np.bincount(classes, weights=row) for row in values]) / counts


def _balanced_accuracy(correct: NDArray[np.bool_], classes: Rows) -> Array:
    """Mean over the classes that occur of the share of their cells that are correct ``(d, n)``: ``(d,)``."""
    return np.asarray(_class_means(correct.astype(np.float64), classes)[:, np.unique(classes)].mean(axis=1))


def _nearest_mean_accuracy(codes: Array, classes: Rows) -> Array:
    """Balanced accuracy of the nearest class mean in each dimension ``(d, n)``, each cell left out in turn."""
    counts = np.bincount(classes)
    own, other = np.full_like(codes, np.inf), np.full_like(codes, np.inf)
    for level in np.unique(classes):
        mine = classes == level
        distance = np.abs(codes - codes[:, mine].mean(axis=1, keepdims=True))
        other[:, ~mine] = np.minimum(other[:, ~mine], distance[:, ~mine])
        if counts[level] > 1:
            # without the cell, its class mean lies n / (n - 1) times as far from it
            own[:, mine] = distance[:, mine] * counts[level] / (counts[level] - 1)
    return _balanced_accuracy(own < other, classes)


def _folds(z: Array, rng: np.random.Generator) -> list[_Fold]:
    """Folds, each with bins of the codes ``(d, n)`` that hold about as many training cells each, ties together."""
    d, n = z.shape
    fold = rng.permutation(n) % N_FOLDS
    n_bins = int(np.clip(n // 10, 2, N_BINS))
    order = np.argsort(z, axis=1)
    ordered = np.take_along_axis(z, order, axis=1)
    rises = np.concatenate([np.zeros((d, 1), bool), ordered[:, 1:] > ordered[:, :-1]], axis=1)
    first_equal = np.maximum.accumulate(np.where(rises, np.arange(n), 0), axis=1)
    folds = []
    for number in range(min(n, N_FOLDS)):
        is_train = fold != number
        taken = is_train[order]
        # a cell's bin is the share of training cells below it
        below = np.take_along_axis(np.cumsum(taken, axis=1) - taken, first_equal, axis=1)
        place = np.empty((d, n), np.intp)
        np.put_along_axis(place, order, np.minimum(below * n_bins // is_train.sum(), n_bins - 1), axis=1)
        place += n_bins * np.arange(d)[:, None]
        folds.append(_Fold(np.flatnonzero(is_train), np.flatnonzero(~is_train), place, n_bins * d))
    return folds


def _cross_validated(folds: list[_Fold], factor: Factor) -> Array:
    """Balanced accuracy or R^2 of bins of single dimensions, ``(d,)``; see `single_dimension`."""
    d, n = folds[0].place.shape
    if factor.kind == "categorical":
        classes = factor.classes()
        correct = np.empty((d, n), bool)
        for train, test, place, n_places in folds:
            frequency = _counts(place[:, train], classes[train], n_places)
            frequency /= np.maximum(frequency.sum(axis=0), 1)
            correct[:, test] = frequency.argmax(axis=1)[place[:, test]] == classes[test]
        return _balanced_accuracy(correct, classes)
    squares = np.zeros(d)
    columns, _ = factor.columns()
    for target in columns.T:
        for train, test, place, n_places in folds:
            where = place[:, train].ravel()
            counts = np.bincount(where, minlength=n_places)
            sums = np.bincount(where, weights=np.tile(target[train], d), minlength=n_places)
            means = np.where(counts > 0, sums / np.maximum(counts, 1), target[train].mean())
            squares += ((means[place[:, test]] - target[test]) ** 2).sum(axis=1)
    return np.asarray(1 - squares / (n * columns.var(axis=0).sum()))


def _forest(x: Array, factor: Factor, rng: np.random.Generator) -> tuple[Array, float]:
    """Importances ``(d,)`` and out-of-bag score of a forest that tells a factor from codes ``(n, d)``."""
    n, classes = len(x), np.unique(factor.classes(), return_inverse=True)[1]
    frequency = np.bincount(classes) / n
    if factor.kind == "categorical":
        targets = (classes[:, None] == np.arange(len(frequency))) / np.sqrt(frequency)
    else:
        targets, _ = factor.columns()
    x, targets = x.astype(np.float32), np.ascontiguousarray(targets)
    gain, told, times = np.zeros(x.shape[1]), np.zeros_like(targets), np.zeros((n, 1))
    # single trees: a forest's checks and copies take as long as growing such small ones
    for _ in range(N_TREES):
        drawn = rng.permutation(n)
        inside, outside = drawn[: n // 2], drawn[n // 2 :]
        tree = ExtraTreeRegressor(min_samples_leaf=max(2, n // 200), random_state=int(rng.integers(2**31)))
        tree.fit(x[inside], targets[inside], check_input=False)
        gain += tree.feature_importances_
        told[outside] += tree.predict(x[outside], check_input=False).reshape(len(outside), -1)
        times[outside] += 1
    told /= np.maximum(times, 1)
    if factor.kind == "categorical":
        score = _balanced_accuracy(((told / np.sqrt(frequency)).argmax(axis=1) == classes)[None], classes)[0]
    else:
        score = 1 - ((told - targets) ** 2).sum() / (n * targets.var(axis=0).sum())
    return gain / max(gain.sum(), np.finfo(float).tiny), float(score)


def _informational_correlation(a: Factor, b: Factor) -> float:
    both = a.known & b.known
    x, y = (np.unique(factor.classes(_COARSE)[both], return_inverse=True)[1] for factor in (a, b))
    n, rows, columns = len(x), len(np.unique(x)), len(np.unique(y))
    if min(rows, columns) < 2:
        return float("nan")
    share = _counts(x[None], y, rows) / n
    information = max(0.0, float(_shared(share[None])[0]) - (rows - 1) * (columns - 1) / (2 * n))
    most = min(entr(share.sum(axis=axis)).sum() for axis in (0, 1))
    return float(np.sqrt(min(1.0, np.expm1(-2 * information) / np.expm1(-2 * most))))
