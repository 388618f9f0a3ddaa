"""Other recipes for calling hits in a screen, by name, to compare with the relabelling test.

Each takes the profile of every replicate as given, centres plates on their controls where the recipe does, and returns
a statistic and a p per group. What they promise differs; see `hit_p_values`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from latentcell.errors import InputError, listed

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Method = Literal["mahalanobis", "mp_value", "energy", "conformal", "map"]

_RIDGE = 1e-6


def hit_p_values(
    method: Method,
    values: Array,
    group: NDArray[Any],
    *,
    control: Any,
    block: NDArray[Any],
    n: int = 999,
    rng: int | np.random.Generator | None = None,
) -> pd.DataFrame:
    """Statistic and p of every group by a recipe of the field.

    - ``"mahalanobis"``: mean over the group's replicates of the squared Mahalanobis distance from the controls that the
      covariance was fitted to, against control replicates drawn from the same plates. Controls lie nearer to their own
      mean than others do, so p is too small.
    - ``"mp_value"``: multidimensional perturbation value (Hutz et al. 2013): distance between group and controls in
      variance-weighted principal components, labels permuted over all replicates.
    - ``"energy"``: energy distance between group and controls, labels permuted within plates.
    - ``"conformal"``: rank of each replicate's distance among those of its plate's controls, each scored by a
      covariance fitted without it, combined over plates by Fisher's method. Directions need not agree.
    - ``"map"``: mean average precision of finding the group's other replicates before controls by cosine similarity
      (Kalinin et al. 2025), against random rankings.

    Parameters
    ----------
    values
        Profiles of the replicates ``(n_replicates, p)``.
    group, control
        Label of each replicate, and that of controls.
    block
        Plate of each replicate.
    n
        Permutations or draws behind each p, ``(1 + #{>=}) / (1 + n)``.

    Returns
    -------
    DataFrame with a row per group in order of appearance: ``statistic`` (larger is farther from control) and ``p``; NaN
    where a recipe needs more replicates.

    Raises
    ------
    InputError
        If the method is unknown, no replicate is a control, a plate has none, or values are missing.
    """
    if method not in get_args(Method):
        raise InputError(f"method={method!r} is unknown; choose one of {', '.join(get_args(Method))}.")
    values, is_control = np.asarray(values, np.float64), np.asarray(group == control)
    _check(values, np.asarray(group), is_control, np.asarray(block), control)
    codes, _ = pd.factorize(np.asarray(block, dtype=object))
    names = [name for name in dict.fromkeys(np.asarray(group).tolist()) if name != control]
    rows = [np.flatnonzero(np.asarray(group) == name) for name in names]
    recipe = _RECIPES[method](_standardised(values, is_control, codes), is_control, codes, n)
    generator = np.random.default_rng(rng)
    tested = [recipe(each, generator) for each in rows]
    return pd.DataFrame(tested, columns=["statistic", "p"], index=pd.Index(names, name="group"))


Recipe = Callable[[Rows, np.random.Generator], tuple[float, float]]


def _mahalanobis(x: Array, is_control: NDArray[np.bool_], codes: Rows, n: int) -> Recipe:
    controls = np.flatnonzero(is_control)
    squared = _squared_lengths(x, _inverse(x[controls]))

    def tested(rows: Rows, rng: np.random.Generator) -> tuple[float, float]:
        drawn = [squared[rng.choice(controls[codes[controls] == codes[row]], size=n)] for row in rows]
        statistic = float(squared[rows].mean())
        return statistic, _p(np.mean(drawn, axis=0), statistic)

    return tested


def _mp_value(x: Array, is_control: NDArray[np.bool_], codes: Rows, n: int) -> Recipe:
    controls = np.flatnonzero(is_control)

    def tested(rows: Rows, rng: np.random.Generator) -> tuple[float, float]:
        pooled = x[np.concatenate([rows, controls])]
        pooled = pooled - pooled.mean(axis=0)
        u, s, _ = np.linalg.svd(pooled, full_matrices=False)
        share = s**2 / (s**2).sum()
        kept = int(np.searchsorted(np.cumsum(share), 0.9)) + 1
        scores = (u * s)[:, :kept] * share[:kept]
        labels = np.arange(len(scores)) < len(rows)
        every = np.stack([labels, *(rng.permutation(labels) for _ in range(n))])
        distances = np.empty(n + 1)
        for i, mine in enumerate(every):
            rest = scores[~mine]
            apart = scores[mine].mean(axis=0) - rest.mean(axis=0)
            covariance = np.cov(rest, rowvar=False, bias=True).reshape(kept, kept)
            distances[i] = apart @ np.linalg.pinv(covariance) @ apart
        return float(np.sqrt(distances[0])), _p(distances[1:], distances[0])

    return tested


def _energy(x: Array, is_control: NDArray[np.bool_], codes: Rows, n: int) -> Recipe:
    def tested(rows: Rows, rng: np.random.Generator) -> tuple[float, float]:
        pooled = np.concatenate([rows, np.flatnonzero(is_control & np.isin(codes, codes[rows]))])
        plate, labels = codes[pooled], np.arange(len(pooled)) < len(rows)
        apart = np.linalg.norm(x[pooled][:, None] - x[pooled][None], axis=-1)
        every = np.empty((n + 1, len(pooled)))
        every[0] = labels
        for name in np.unique(plate):
            mine = np.flatnonzero(plate == name)
            every[1:, mine] = rng.permuted(np.tile(labels[mine].astype(float), (n, 1)), axis=1)
        contrast = every / every.sum(axis=1, keepdims=True) - (1 - every) / (1 - every).sum(axis=1, keepdims=True)
        distances = -np.einsum("ri,ij,rj->r", contrast, apart, contrast)
        return float(distances[0]), _p(distances[1:], distances[0])

    return tested


def _conformal(x: Array, is_control: NDArray[np.bool_], codes: Rows, n: int) -> Recipe:
    controls = np.flatnonzero(is_control)
    by_plate = {code: controls[codes[controls] == code] for code in np.unique(codes[controls])}
    scorer: dict[int, tuple[Array, Array]] = {}
    for left_out in controls.tolist():
        kept = controls[controls != left_out]
        mine = by_plate[codes[left_out]]
        own = mine[mine != left_out]
        centre = x[own].mean(axis=0) if len(own) else np.zeros(x.shape[1])
        parts = [x[rows[rows != left_out]] for rows in by_plate.values()]
        residuals = np.concatenate([part - part.mean(axis=0) for part in parts if len(part)])
        scorer[left_out] = (
            centre,
            np.linalg.inv(residuals.T @ residuals / max(1, len(kept) - len(parts)) + _RIDGE * np.eye(x.shape[1])),
        )

    def score(row: int, left_out: int) -> float:
        centre, inverse = scorer[left_out]
        return float((x[row] - centre) @ inverse @ (x[row] - centre))

    known = {code: np.array([score(row, row) for row in rows.tolist()]) for code, rows in by_plate.items()}

    def tested(rows: Rows, rng: np.random.Generator) -> tuple[float, float]:
        ranks = []
        for row in rows:
            mine = by_plate[codes[row]]
            ranks.append((1 + np.sum(known[codes[row]] >= score(row, int(rng.choice(mine))))) / (len(mine) + 1))
        statistic = float(-2 * np.log(ranks).sum())
        return statistic, float(chi2.sf(statistic, 2 * len(ranks)))

    return tested


def _map(x: Array, is_control: NDArray[np.bool_], codes: Rows, n: int) -> Recipe:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    controls = np.flatnonzero(is_control)
    nulls: dict[int, Array] = {}

    def tested(rows: Rows, rng: np.random.Generator) -> tuple[float, float]:
        if len(rows) < 2:
            return float("nan"), float("nan")
        similar = unit[rows] @ unit[np.concatenate([rows, controls])].T
        positives = len(rows) - 1
        precisions = []
        for i in range(len(rows)):
            others = np.delete(similar[i], i)
            order = np.argsort(-others, kind="stable")
            precisions.append(_average_precision((order < positives)[None])[0])
        if len(rows) not in nulls:
            relevant = np.arange(positives + len(controls)) < positives
            drawn = rng.permuted(np.tile(relevant, (n * len(rows), 1)), axis=1)
            nulls[len(rows)] = _average_precision(drawn).reshape(n, len(rows)).mean(axis=1)
        return float(np.mean(precisions)), _p(nulls[len(rows)], float(np.mean(precisions)))

    return tested


_RECIPES: dict[str, Callable[[Array, NDArray[np.bool_], Rows, int], Recipe]] = {
    "mahalanobis": _mahalanobis,
    "mp_value": _mp_value,
    "energy": _energy,
    "conformal": _conformal,
    "map": _map,
}


def _average_precision(relevant: NDArray[np.bool_]) -> Array:
    """Average precision of rankings ``(r, m)``, best first."""
    hits = np.cumsum(relevant, axis=1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return np.asarray((precision * relevant).sum(axis=1) / relevant.sum(axis=1))


def _standardised(values: Array, is_control: NDArray[np.bool_], codes: Rows) -> Array:
    """Values minus the mean of their plate's controls, over the SD of controls so centred."""
    x = values.copy()
    for code in np.unique(codes):
        mine = codes == code
        x[mine] -= values[mine & is_control].mean(axis=0)
    sd = x[is_control].std(axis=0)
    return np.asarray(x / np.where(sd > 1e-9 * max(1.0, float(sd.max())), sd, 1.0))


def _inverse(x: Array) -> Array:
    return np.asarray(np.linalg.inv(np.cov(x, rowvar=False).reshape(x.shape[1], -1) + _RIDGE * np.eye(x.shape[1])))


def _squared_lengths(x: Array, inverse: Array) -> Array:
    return np.asarray(np.einsum("ni,ij,nj->n", x, inverse, x))


def _p(null: Array, observed: float) -> float:
    return float((1 + np.sum(null >= observed - 1e-12 * abs(observed))) / (1 + len(null)))


def _check(
    values: Array, group: NDArray[Any], is_control: NDArray[np.bool_], block: NDArray[Any], control: Any
) -> None:
    if not is_control.any():
        levels = listed(dict.fromkeys(group.tolist()))
        raise InputError(f"No replicate is a control ({control!r}); groups present: {levels}.")
    if not np.isfinite(values).all():
        row, feature = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"Replicate {row} holds a missing or infinite value in feature {feature}; leave out either.")
    without = [name for name in dict.fromkeys(block.tolist()) if not (is_control & (block == name)).any()]
    if without:
        raise InputError(
            f"Blocks without a control ({listed(without)}) have nothing to compare with; leave their replicates out."
        )
