"""How codes go with factors: scores beside their baselines, one table of dimensions by factors, and what leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from latentcell.stats.association import correlation, importance, thinned
from latentcell.stats.disentanglement import metrics
from latentcell.stats.relabelling import share_as_extreme
from latentcell.stats.resampling import permuted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.stats.factor import Array, Factor
    from latentcell.tl.coded import Coded
    from latentcell.tl.effects import Design

N_PERMUTATIONS = 199
_N_RESAMPLES = 99
_MOST_CELLS = 5_000
_PCA_CELLS = 2_000


def scores(
    found: Coded, factors: Sequence[Factor], design: Design, baseline: Array | None, *, rng: np.random.Generator
) -> pd.DataFrame:
    """Disentanglement scores of the codes, with nulls and intervals, and without them of each refit and of PCA.

    Parameters
    ----------
    baseline
        Principal components of the measurements of the same cells, ``(n, d)``.

    Returns
    -------
    `latentcell.stats.disentanglement.metrics` with a first column ``codes``: ``"model"`` (with guided factors
    ``"cross-fitted"``), ``"seed 1"``, ..., ``"PCA"``.
    """
    guided = bool(found.models[0].schema_.guidance.guides)
    rows = np.sort(rng.permutation(len(found.mu))[:_MOST_CELLS])
    kept, given = [factor.take(rows) for factor in factors], design.take(rows)
    first = metrics(
        found.mu[rows],
        kept,
        n_permutations=N_PERMUTATIONS,
        n_resamples=_N_RESAMPLES,
        replicate=given.replicate,
        block=given.stratum,
        rng=rng,
    )
    tables = {"cross-fitted" if guided else "model": first}
    others = {} if guided else {f"seed {i}": found.in_use(i) for i in range(1, len(found.models))}
    if baseline is not None:
        others["PCA"] = baseline
    for name, codes in others.items():
        tables[name] = metrics(codes[rows], kept, n_permutations=0, n_resamples=0, rng=rng)
    return pd.concat(tables, names=["codes"]).reset_index("codes").reset_index(drop=True)


def principal_components(variables: NDArray[np.floating], d: int, *, rng: np.random.Generator) -> Array:
    """Codes ``(n, d)`` by principal component analysis of standardised variables ``(n, G)``: the linear baseline."""
    x = np.asarray(variables, dtype=np.float32)
    sd = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(sd > 0, sd, 1)
    d = min(d, *x.shape)
    few = x[rng.permutation(len(x))[:_PCA_CELLS]]
    fitted = PCA(min(d, len(few)), svd_solver="randomized", random_state=int(rng.integers(2**31))).fit(few)
    return np.asarray(fitted.transform(x), dtype=np.float64)


def relations(mu: Array, factors: Sequence[Factor], design: Design, *, rng: np.random.Generator) -> pd.DataFrame:
    """Correlation of every dimension with every factor, beside what permuted factors reach.

    Returns
    -------
    One row per factor and dimension: ``factor``, ``dimension``, ``correlation`` (see `stats.association.correlation`),
    ``null_95`` (95th percentile of the largest correlation over dimensions when the factor is permuted) and ``p``
    against that largest correlation, so that it holds for all dimensions of a factor together.
    """
    rows = np.sort(rng.permutation(len(mu))[:_MOST_CELLS])
    codes, given = mu[rows], design.take(rows)
    tables = []
    for factor in (each.take(rows) for each in factors):
        value = correlation(codes, [factor])[:, 0]
        draws = [permuted(factor, given.replicate, given.stratum, rng=rng) for _ in range(N_PERMUTATIONS)]
        largest = np.array([correlation(codes, [draw]).max() for draw in draws])
        p = [share_as_extreme(np.concatenate([[one], largest])) for one in value]
        tables.append(
            pd.DataFrame(
                {
                    "factor": factor.name,
                    "dimension": np.arange(len(value)),
                    "correlation": value,
                    "null_95": np.quantile(largest, 0.95),
                    "p": p,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def leak(mu: Array, nuisance: Sequence[Factor], *, rng: np.random.Generator) -> pd.DataFrame:
    """What all dimensions together tell of nuisance factors.

    Returns
    -------
    One row per factor: ``factor``, ``score`` (balanced accuracy of levels, R^2 of numbers, by a forest, out of bag),
    ``chance``, ``null_95`` and ``p`` (factor permuted over cells; at most 2,000 of them).
    """
    table = []
    for factor in nuisance:
        rows = thinned(factor, rng)
        codes, known = mu[rows], factor.take(rows)
        values = [importance(codes, [known], rng=rng).informativeness[0]]
        for _ in range(N_PERMUTATIONS // 2):
            values.append(importance(codes, [permuted(known, rng=rng)], rng=rng).informativeness[0])
        present = len(np.unique(known.value))
        row: dict[str, Any] = {
            "factor": factor.name,
            "score": values[0],
            "chance": 1 / present if factor.kind == "categorical" else 0.0,
            "null_95": np.quantile(values[1:], 0.95),
            "p": share_as_extreme(np.array(values)),
        }
        table.append(row)
    return pd.DataFrame(table, columns=["factor", "score", "chance", "null_95", "p"])


def read_back(found: Coded, factors: Sequence[Factor]) -> pd.DataFrame:
    """How well guided factors are read from the codes of cells that the fit has not seen.

    Returns
    -------
    One row per guided factor: ``factor``, ``measure`` (``"balanced accuracy"`` of levels, ``"R2"`` of numbers,
    ``"mean cosine of the error"`` of a cycle), ``value`` (1 where nothing is misread) and ``chance``, the value of the
    best constant answer.
    """
    guides = {guide.name: guide for guide in found.models[0].schema_.guidance.guides}
    table = []
    for factor in (each for each in factors if each.name in guides):
        known = factor.known
        told, truth = guides[factor.name].read(found.mu[known]), factor.value[known]
        chance = 0.0
        if factor.kind == "continuous":
            measure, value = "R2", 1 - np.mean((told - truth) ** 2) / np.var(truth)
        elif factor.kind == "cyclic":
            measure = "mean cosine of the error"
            value = np.cos(2 * np.pi * (told / factor.period - truth)).mean()
            chance = float(np.abs(np.exp(2j * np.pi * truth).mean()))
        else:
            right = told == np.asarray(factor.levels, dtype=object)[truth.astype(int)]
            measure, value = "balanced accuracy", np.mean([right[truth == level].mean() for level in np.unique(truth)])
            chance = 1 / len(np.unique(truth))
        table.append({"factor": factor.name, "measure": measure, "value": float(value), "chance": chance})
    return pd.DataFrame(table, columns=["factor", "measure", "value", "chance"])
