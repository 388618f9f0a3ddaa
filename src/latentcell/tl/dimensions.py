"""What each latent dimension is: how much it carries, which factor it follows, whether it comes back, what it moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell.tl.coded import COMES_BACK
from latentcell.tl.explain import described

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.stats.factor import Array
    from latentcell.tl.coded import Coded

_NAMED = 3
_MOST_DECODED = 1_000


def dimensions_table(
    found: Coded, relations: pd.DataFrame, effects: pd.DataFrame, rows: NDArray[np.intp]
) -> pd.DataFrame:
    """One row per latent dimension of the model, most used first.

    Parameters
    ----------
    relations
        From `latentcell.tl.relations.relations`.
    effects
        From `latentcell.tl.effects.effects_table`.
    rows
        Cells behind the explained variance.

    Returns
    -------
    Columns: ``dimension``; ``kl`` (nats) and ``active`` from the fit; ``variance_explained`` (share of the decoded
    variance lost when the dimension is held at its mean; shares need not sum to 1); ``guided_by``; ``top_factor``,
    ``top_correlation``, ``null_95`` and ``p`` of its strongest factor; ``stability`` (mean |correlation| with its match
    over refits) and ``comes_back`` (share of refits with at least 0.8); ``name`` (its strongest variables).
    """
    model = found.models[0]
    table = model.latent_[["dimension", "kl", "active"]].copy()
    table["variance_explained"] = variance_explained(model, found.codes[0][rows[:_MOST_DECODED]])
    table["guided_by"] = ""
    for guide in model.schema_.guidance.guides:
        table.loc[table["dimension"].isin(guide.dimensions), "guided_by"] = guide.name
    strongest = relations.sort_values("correlation", ascending=False, kind="stable").drop_duplicates("dimension")
    renamed = {"factor": "top_factor", "correlation": "top_correlation"}
    table = table.merge(strongest.rename(columns=renamed), on="dimension", how="left")
    stability = found.stability
    unknown = np.full(len(table), np.nan)
    table["stability"] = stability.mean(0) if len(stability) else unknown
    table["comes_back"] = (stability >= COMES_BACK).mean(0) if len(stability) else unknown
    named = names(effects)
    table["name"] = [named.get(f"z{k}", "") for k in table["dimension"]]
    return table.sort_values("kl", ascending=False, kind="stable").reset_index(drop=True)


def names(effects: pd.DataFrame) -> dict[str, str]:
    """Name of each dimension from the variables with its largest effects: ``+IFIT1 +ISG15 -FTL``."""
    named = {}
    for name, table in effects[effects["of"] == "dimension"].groupby("name", sort=False):
        few = table.loc[table["effect"].abs().sort_values(ascending=False, kind="stable").index[:_NAMED]]
        signs = np.where(few["effect"] < 0, "-", "+")
        named[str(name)] = " ".join(sign + variable for sign, variable in zip(signs, few["variable"], strict=True))
    return named


def variance_explained(model: VAE, codes: Array) -> Array:
    """Share of the variance of decoded cells that goes when each dimension is held at its mean, ``(d,)``.

    Codes ``(n, d)``; images in pixels, counts log-normalised, profiles in SD of the training cells.
    """

    def decoded(z: Array) -> Array:
        values = model.decode(z)
        if model.modality_ == "counts":
            return described(model, values).to_numpy(np.float64)
        return np.asarray(values.reshape(len(z), len(model.names_), -1) / _scale(model), dtype=np.float64)

    whole = decoded(codes)
    total = ((whole - whole.mean(0)) ** 2).sum()
    shares = np.zeros(codes.shape[1])
    for k in range(codes.shape[1]):
        held = codes.copy()
        held[:, k] = codes[:, k].mean()
        shares[k] = ((whole - decoded(held)) ** 2).sum() / max(float(total), 1e-12)
    return np.minimum(shares, 1.0)


def _scale(model: VAE) -> Array:
    return np.asarray(model.schema_.scale, dtype=np.float64).reshape(1, -1, 1)
