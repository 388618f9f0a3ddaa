"""How much knowing the reference channels helps to place each structure."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell.cells.levels import column
from latentcell.errors import InputError
from latentcell.stats.distances import resampled_counts

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.integrated import IntegratedCell

_CONFIDENCE = (2.5, 97.5)
# cells (or replicates) below which an interval is not drawn
_FEWEST = 5


def coupling(
    cells: AnnData,
    model: IntegratedCell,
    *,
    replicate: str | None = None,
    n_samples: int = 20,
    n_resamples: int = 1000,
    allow_seen: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Nats per cell by which reference channels raise the likelihood of each structure.

    The likelihood of a structure under what the model is told, log p(t | told, c), is importance-weighted (Burda et al.
    2016) with the same noise for all sets of channels. The model was trained with every set, so none is strange to it.

    Parameters
    ----------
    cells
        Cells that the model has not seen.
    replicate
        Column of ``obs`` (plate, donor) that is resampled whole for the intervals; by default cells are.
    n_samples
        Draws of z_t behind each likelihood.
    allow_seen
        Accept cells that the model was fitted on; intervals then say nothing of new cells.

    Returns
    -------
    One row per structure and question, columns ``structure``, ``channel``, ``question``, ``nats``, ``low``, ``high``
    (95 % bootstrap percentiles), ``n_cells``, ``n_units``. Questions:

    ``all``
        All reference channels (channel ``all``) against none.
    ``alone``
        One channel against none.
    ``beyond``
        All channels against all but this one: what only this one tells.
    ``mean``
        All reference channels against the average image of the structure in training (channel ``all``).

    Raises
    ------
    InputError
        If the model has seen cells, or there are too few.
    """
    seen = model.seen(cells)
    if seen.any() and not allow_seen:
        raise InputError(
            f"The model was fitted on {int(seen.sum())} of these {cells.n_obs} cells, which it knows too well. Give "
            "cells that were excluded from the fit, fit(cells, exclude={...}), or allow it with allow_seen=True."
        )
    seed = int(np.random.default_rng(rng).integers(2**31))
    names = model.reference
    sets: list[tuple[str, ...]] = [(), tuple(names), *((name,) for name in names)]
    sets += [tuple(each) for each in combinations(names, len(names) - 1)]
    nll = {}
    for told in dict.fromkeys(sets):
        table = model.nll(cells, told=told, n_samples=n_samples, rng=seed)
        nll[told] = table["nll"].to_numpy()
    average = model.mean_nll(cells)["nll"].to_numpy()
    everything = nll[tuple(names)]
    gains = {("all", "all"): nll[()] - everything, ("all", "mean"): average - everything}
    for name in names:
        others = tuple(other for other in names if other != name)
        gains[(name, "alone")] = nll[()] - nll[(name,)]
        gains[(name, "beyond")] = nll[others] - everything
    units = None if replicate is None else column(cells, replicate).to_numpy()[table["cell"].to_numpy()]
    rows = []
    for structure in model.structures_:
        members = np.flatnonzero(table["structure"] == structure)
        if not len(members):
            continue
        of = None if units is None else units[members]
        for (channel, question), gain in gains.items():
            about = {"structure": structure, "channel": channel, "question": question}
            rows.append(about | _interval(gain[members], of, n_resamples, seed))
    return pd.DataFrame(rows)


def recognised(
    cells: AnnData,
    model: IntegratedCell,
    train: AnnData,
    *,
    n_components: int = 30,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """How often a classifier that learnt structures from real images names them in real and in predicted ones.

    A linear classifier on principal components of the structure's image and the reference, trained on `train`, is shown
    `cells`: as measured, and with the structure that each cell shows predicted from its reference (one draw of z_t).

    Returns
    -------
    Rows ``measured``, ``predicted`` and ``chance`` (the most frequent structure); columns ``accuracy``, ``low``,
    ``high`` (95 % bootstrap over cells) and ``n_cells``.
    """
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline

    seed = int(np.random.default_rng(rng).integers(2**31))
    known, labels = model.pictures(train)
    shown, truth = model.pictures(cells)
    drawn, _ = model.pictures(cells, predicted=True, rng=seed)
    classifier = make_pipeline(
        PCA(min(n_components, len(known) - 1, known.shape[1]), random_state=seed), LinearDiscriminantAnalysis()
    ).fit(known, labels)
    most = pd.Series(labels).mode()[0]
    right = {
        "measured": classifier.predict(shown) == truth,
        "predicted": classifier.predict(drawn) == truth,
        "chance": truth == most,
    }
    rows = []
    for name, hits in right.items():
        found = _interval(hits.astype(float), None, 1000, seed)
        rows.append({"images": name, "accuracy": found["nats"], "low": found["low"], "high": found["high"]})
    return pd.DataFrame(rows).assign(n_cells=len(truth))


def _interval(values: np.ndarray, units: np.ndarray | None, n: int, seed: int) -> dict[str, float]:
    counts = resampled_counts(len(values), n=n, replicates=units, rng=np.random.default_rng(seed))[1:]
    n_units = len(values) if units is None else len(set(units))
    low, high = np.nan, np.nan
    if n_units >= _FEWEST:
        low, high = np.percentile(counts @ values / counts.sum(1), _CONFIDENCE)
    return {
        "nats": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n_cells": len(values),
        "n_units": n_units,
    }
