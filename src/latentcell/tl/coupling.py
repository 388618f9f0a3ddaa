"""How much knowing the reference channels helps to place each structure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from latentcell.cells.levels import column
from latentcell.errors import InputError
from latentcell.stats.distances import Interval, percentile_interval, resampled_counts

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.cells.batches import Batch
    from latentcell.cells.structures import Pairs
    from latentcell.model.integrated import IntegratedCell

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
    others = {name: tuple(other for other in names if other != name) for name in names}
    nll: dict[tuple[str, ...], np.ndarray] = {}
    for told in dict.fromkeys([(), tuple(names), *((name,) for name in names), *others.values()]):
        table = model.nll(cells, told=told, n_samples=n_samples, rng=seed)
        nll[told] = table["nll"].to_numpy()
    average = average_nll(model, cells)
    everything = nll[tuple(names)]
    gains = {("all", "all"): nll[()] - everything, ("all", "mean"): average - everything}
    for name in names:
        gains[(name, "alone")] = nll[()] - nll[(name,)]
        gains[(name, "beyond")] = nll[others[name]] - everything
    units = None if replicate is None else column(cells, replicate).to_numpy()[table["cell"].to_numpy()]
    rows = []
    for structure in model.structures_:
        members = np.flatnonzero(table["structure"] == structure)
        if not len(members):
            continue
        of = None if units is None else units[members]
        for (channel, question), gain in gains.items():
            about = {"structure": structure, "channel": channel, "question": question}
            found = _interval(gain[members], of, n_resamples, seed)
            sizes = {"n_cells": len(members), "n_units": len(members) if of is None else len(set(of))}
            rows.append(about | {"nats": found.value, "low": found.low, "high": found.high} | sizes)
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
    known, labels = _pictures(model, train)
    shown, truth = _pictures(model, cells)
    drawn, _ = _pictures(model, cells, np.random.default_rng(seed))
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
        rows.append({"images": name, "accuracy": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows).assign(n_cells=len(truth))


def average_nll(model: IntegratedCell, cells: AnnData) -> np.ndarray:
    """-log p of what each cell shows under the average image of its structure in training, in nats, ``(m,)``.

    With Gaussian noise of one variance per structure; pairs in the order of `IntegratedCell.nll`.
    """
    pairs, parts = model.pairs(cells), []
    averages, variances = (torch.from_numpy(each) for each in model.averages_)
    for batch in model.batches(cells, pairs):
        shown, x = torch.from_numpy(pairs.structure[batch.index]), batch.dense[:, 0].cpu()
        variance = variances[shown].view(-1, *[1] * (x.dim() - 1))
        nll = 0.5 * ((x - averages[shown]).square() / variance + variance.log() + math.log(2 * math.pi))
        parts.append((nll if batch.mask is None else nll * batch.mask[:, 0].cpu()).flatten(1).double().sum(1).numpy())
    return np.concatenate(parts)


def _pictures(
    model: IntegratedCell, cells: AnnData, drawn_by: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Small images of what each cell shows and of its reference ``(m, k)``, and the names of the structures ``(m,)``.

    Scaled, averaged to at most 16 pixels along each axis; given a generator, the structure is predicted instead.
    """
    pairs, parts = model.pairs(cells), []
    names = np.asarray(model.structures_, dtype=object)[pairs.structure]
    for batch in model.batches(cells, pairs):
        x = batch.dense.cpu()
        if drawn_by is not None:
            x = torch.cat([_predicted(model, cells, batch, pairs, drawn_by), x[:, 1:]], 1)
        pool: Any = F.adaptive_avg_pool3d if x.dim() == 5 else F.adaptive_avg_pool2d
        parts.append(pool(x, [min(16, length) for length in x.shape[2:]]).flatten(1).numpy())
    return np.concatenate(parts), names


def _predicted(
    model: IntegratedCell, cells: AnnData, batch: Batch, pairs: Pairs, rng: np.random.Generator
) -> torch.Tensor:
    """What a batch of pairs shows as the model draws it in their shapes, scaled, ``(n, 1, ...)``."""
    out = torch.empty_like(batch.dense[:, :1].cpu())
    for number in np.unique(pairs.structure[batch.index]):
        rows = np.flatnonzero(pairs.structure[batch.index] == number)
        name = model.structures_[number]
        z = model.organisations(name, len(rows), rng)
        location, scale = model.ranges_[number]
        drawn = model.decode(model.shapes(cells, pairs.cell[batch.index[rows]]), z, name)
        out[torch.from_numpy(rows), 0] = torch.from_numpy((drawn - location) / scale)
    return out


def _interval(values: np.ndarray, units: np.ndarray | None, n: int, seed: int) -> Interval:
    """Mean and its bootstrap interval over cells or `units`; without an interval for few of them."""
    counts = resampled_counts(len(values), n=n, replicates=units, rng=np.random.default_rng(seed))
    found = percentile_interval(counts @ values / counts.sum(1))
    few = len(values if units is None else set(units)) < _FEWEST
    return Interval(found.value, np.nan, np.nan) if few else found
