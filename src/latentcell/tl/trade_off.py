"""What disentangling costs: alignment with factors against reconstruction, likelihood and clusters, over a setting."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import xlogy
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from latentcell.cells.factors import read_factors
from latentcell.errors import InputError, listed
from latentcell.model import objectives
from latentcell.stats.association import correlation
from latentcell.tl.coded import active_dimensions
from latentcell.tl.refit import fit_rows, fitted_like

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE
    from latentcell.stats.factor import Array, Factor

logger = logging.getLogger("latentcell")

_HELD_OUT = 0.2
_NLL_DRAWS = 50
_NEARLY = 0.95  # share of the best alignment that is as good as the best


def trade_off(
    cells: AnnData,
    model: VAE,
    factors: str | Sequence[str],
    *,
    objective: Mapping[str, Sequence[float]],
    label: str | None = None,
    seeds: int = 3,
    folder: str | Path | None = None,
    fit: Mapping[str, Any] | None = None,
    rng: int = 0,
) -> pd.DataFrame:
    """Fit the model over values of a setting of its objective and say what each gives and takes.

    A fifth of the cells is held out of all fits.

    Parameters
    ----------
    model
        Says how to fit: refits have its settings and none of its weights.
    factors
        As in `factors`.
    objective
        One setting and its values: ``{"beta": [1, 2, 4, 8]}``, ``{"tc": [1, 5, 20]}``.
    label
        Column of ``obs`` whose levels k-means clusters of the codes are held against; by default the first factor with
        levels, if any.
    seeds
        Fits for each value.
    folder, fit
        As in `factors`.

    Returns
    -------
    One row per value and seed: ``objective``, ``value``, ``seed``, ``label``; ``alignment`` (mean over factors of the
    largest correlation of one dimension in use) and ``alignment_<factor>``; of held-out cells ``reconstruction`` (share
    of the variance that decoding explains, of counts of the Poisson deviance) and ``held_out_nll`` (nats,
    importance-weighted); ``ari`` and ``nmi`` of clusters against the label; ``n_active``. ``attrs["verdict"]``:
    sentences.

    Raises
    ------
    InputError
        If a column is no factor, or there are no values.
    """
    if len(objective) != 1 or len(next(iter(objective.values()))) == 0:
        raise InputError(f"objective is {dict(objective)}: name one setting and its values, such as beta: 1, 2, 4.")
    if seeds < 1:
        raise InputError(f"seeds is {seeds}: each value needs at least one fit.")
    name, values = next(iter(objective.items()))
    settings = [f"{name}={value:g}" for value in values]
    for each in settings:
        objectives.parse(each)
    asked = read_factors(cells, [factors] if isinstance(factors, str) else list(factors))
    if not asked:
        raise InputError(f"Name at least one factor; columns of obs: {listed(cells.obs.columns, 12)}.")
    clusters = _label(cells, asked, label)
    shuffled = np.random.default_rng([rng, 5]).permutation(cells.n_obs)
    held_out, rows = np.split(shuffled, [round(_HELD_OUT * cells.n_obs)])
    table, options = [], fitted_like(model, dict(fit or {}))
    for value, setting in zip(values, settings, strict=True):
        for seed in range(seeds):
            logger.info("%s, seed %d of %d", setting, seed + 1, seeds)
            stored = None if folder is None else Path(folder) / f"{setting}_seed_{seed}"
            fitted = fit_rows(
                cells, model.unfitted(setting), np.sort(rows), fit=options, seed=rng + seed, stored=stored
            )
            row = {"objective": setting, "value": value, "seed": seed, "label": clusters.name if clusters else ""}
            table.append(row | _measured(cells, fitted, asked, clusters, np.sort(held_out)))
    whole = pd.DataFrame(table)
    whole.attrs["verdict"] = _verdict(whole)
    return whole


def _measured(
    cells: AnnData, model: VAE, factors: Sequence[Factor], clusters: Factor | None, held_out: Any
) -> dict[str, float]:
    active = active_dimensions(model)
    codes = model.encode(cells).mu.astype(np.float64) * active
    best = correlation(codes, factors).max(0)
    test = cells[held_out]
    row = {"alignment": float(best.mean())}
    row |= {f"alignment_{factor.name}": float(value) for factor, value in zip(factors, best, strict=True)}
    row |= {
        "reconstruction": _explained(test, model),
        "held_out_nll": float(model.nll(test, n_samples=_NLL_DRAWS)["nll"].mean()),
        "ari": np.nan,
        "nmi": np.nan,
        "n_active": int(active.sum()),
    }
    if clusters is not None and active.any():
        known = clusters.known
        found = KMeans(len(clusters.levels), n_init=10, random_state=0).fit_predict(codes[known])
        truth = clusters.value[known]
        row |= {"ari": adjusted_rand_score(truth, found), "nmi": normalized_mutual_info_score(truth, found)}
    return row


def _explained(cells: AnnData, model: VAE) -> float:
    """Share of the variance of measurements that reconstructions explain; of counts, of their Poisson deviance."""
    x = np.asarray(model.measurements(cells), dtype=np.float64)
    y = np.asarray(model.reconstruct(cells), dtype=np.float64)
    if model.modality_ == "counts":
        # logarithms would call every decoded mean of a rare count too large
        null = x.sum(1, keepdims=True) * x.sum(0) / max(x.sum(), 1.0)
        return float(1 - poisson_deviance(x, y) / poisson_deviance(x, null))
    scale = np.asarray(model.schema_.scale, dtype=np.float64).reshape(1, -1, *[1] * (x.ndim - 2))
    x, y = x / scale, y / scale
    return float(1 - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def poisson_deviance(x: Array, mean: Array) -> float:
    """Twice the log likelihood that counts lose against a mean for each of its own, ``2 sum(x log(x / m) - x + m)``."""
    return float(2 * (xlogy(x, x) - xlogy(x, np.maximum(mean, 1e-12)) - x + mean).sum())


def _label(cells: AnnData, factors: Sequence[Factor], label: str | None) -> Factor | None:
    if label is not None:
        named = read_factors(cells, [label if ":" in label else f"{label}:categorical"])[0]
        if not named.levels:
            raise InputError(f"The label {label!r} has no levels for clusters to be held against.")
        return named
    return next((factor for factor in factors if factor.levels), None)


def _verdict(table: pd.DataFrame) -> list[str]:
    """Recommendation: the mildest setting whose alignment is within 5 % of the best, and what it costs."""
    means = (
        table.drop(columns=["seed", "label"], errors="ignore")
        .groupby(["value", "objective"], sort=True)
        .mean()
        .reset_index()
    )
    best = means["alignment"].max()
    chosen = means[means["alignment"] >= _NEARLY * best].iloc[0]
    first = means.iloc[0]
    spread = table.groupby("objective")["alignment"].std().mean()
    seeds = f", SD over seeds {spread:.2f}" if np.isfinite(spread) else ""
    over = ", ".join(f"{row.objective} {row.alignment:.2f}" for row in means.itertuples())
    sentences = [
        f"Mean correlation of the best dimension with each factor: {over}{seeds}. Recommended: {chosen['objective']}, "
        f"the mildest within 5 % of the best."
    ]
    if chosen["objective"] != first["objective"]:
        sentences.append(
            f"Against {first['objective']} that costs {chosen['held_out_nll'] - first['held_out_nll']:.1f} nats per "
            f"held-out cell and {first['reconstruction'] - chosen['reconstruction']:.3f} of the variance explained; "
            f"{first['n_active']:.1f} to {chosen['n_active']:.1f} dimensions in use"
            + (f"; ARI {first['ari']:.2f} to {chosen['ari']:.2f}." if np.isfinite(chosen["ari"]) else ".")
        )
    if not np.isfinite(spread) and len(means) > 1:
        sentences.append("One fit each cannot tell settings from seeds: give more seeds.")
    gain = means["alignment"].max() - first["alignment"]
    if np.isfinite(spread) and len(means) > 1 and gain < 2 * spread:
        sentences.append(
            "The gain over the first setting is within what seeds make: for alignment none is better than another. "
            "To place a factor on a dimension, guide it."
        )
    return sentences
