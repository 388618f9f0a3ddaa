"""The answer to what drives variation in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell.tl.coded import COMES_BACK

if TYPE_CHECKING:
    from latentcell.stats.factor import Factor
    from latentcell.tl.coded import Coded

_LEVEL = 0.05
_LITTLE = 0.001  # share of the decoded variance below which a dimension changes nothing one could see
_TOGETHER = 0.5  # association from which two factors are told to go together


def said(
    result: dict[str, Any], found: Coded, factors: Sequence[Factor], nuisance: Sequence[Factor], replicate: str | None
) -> list[str]:
    """Sentences: each factor, what comes back, what leaks, what cannot be told apart, and what the unit was."""
    sentences = [*_varied(result["dimensions"]), *(_factor(result, factor.name) for factor in factors)]
    for row in result["read_back"].itertuples():
        sentences.append(
            f"{row.factor} (guided) is read from the code of unseen cells with {row.measure} {row.value:.2f} (chance "
            f"{row.chance:.2f})."
        )
    guided = bool(found.models[0].schema_.guidance.guides)
    if guided:
        sentences.append(
            f"Guided factors are judged on cells that the fit had not seen ({len(found.matches)} refits, each without "
            "a part of the cells)."
        )
    if len(found.matches):
        sentences.append(_stability(result["dimensions"], len(found.matches)))
    for row in result["leak"].itertuples():
        what = "R2" if row.chance == 0 else f"balanced accuracy, chance {row.chance:.2f}"
        beyond = "beyond chance" if row.p <= _LEVEL else "not beyond chance"
        sentences.append(
            f"{row.factor} (nuisance) can be told from the latent space by {row.score:.2f} ({what}; permuted up to "
            f"{row.null_95:.2f}): {beyond}."
        )
    sentences += _together(result["association"], [factor.name for factor in factors])
    if replicate is None:
        sentences.append(
            "Cells counted as independent. Those of one well or donor are not: name the replicate where there are any, "
            "or take p-values and intervals as too narrow."
        )
    return sentences


def _factor(result: dict[str, Any], name: str) -> str:
    related = result["relations"]
    best = related[related["factor"] == name].nlargest(1, "correlation").iloc[0]
    scores = result["metrics"]
    pca = scores.query("codes == 'PCA' and metric == 'max_correlation'").set_index("factor")["value"]
    digits = 2 if round(best["correlation"], 2) != round(best["null_95"], 2) else 3
    known = f"{best['correlation']:.{digits}f}, permuted up to {best['null_95']:.{digits}f}, p = {best['p']:.3f}"
    beside = f"; a principal component {pca[name]:.2f}" if name in pca else ""
    if best["p"] > _LEVEL:
        return f"{name}: no dimension follows it beyond chance (correlation {known}{beside})."
    share = result["dimensions"].set_index("dimension")["variance_explained"][best["dimension"]]
    little = "" if share >= _LITTLE else ", but hardly anything decoded depends on that dimension"
    return f"{name}: dimension z{best['dimension']} follows it best (correlation {known}{beside}){little}."


def _varied(dimensions: pd.DataFrame) -> list[str]:
    """Where the decoded variance lies; nothing where no dimension is in use."""
    most = dimensions[dimensions["active"]].nlargest(3, "variance_explained")
    factor = np.where(most["p"] <= _LEVEL, most["top_factor"], "none of these factors")
    shares = zip(most["dimension"], 100 * most["variance_explained"], factor, strict=True)
    each = [f"z{dimension} {share:.0f} % ({name})" for dimension, share, name in shares]
    return [f"Most of the decoded variance goes with {', '.join(each)}."] if each else []


def _stability(dimensions: pd.DataFrame, n_refits: int) -> str:
    active = dimensions[dimensions["active"]]
    if active.empty:
        return "No latent dimension is in use: see the verdict of the fit."
    back = active[active["comes_back"] > 0.5].sort_values("dimension")
    shares = zip(back["dimension"], back["variance_explained"], strict=True)
    which = ", ".join(f"z{dimension} ({share:.0%})" for dimension, share in shares) or "none"
    refits = f"most of {n_refits} refits" if n_refits > 1 else "the refit"
    return (
        f"{len(back)} of {len(active)} active dimensions come back in {refits} (|correlation| at least "
        f"{COMES_BACK:g}), each with its share of the decoded variance: {which}. The others are one choice among many."
    )


def _together(association: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    names, table, sentences = [str(name) for name in association], association.to_numpy(), []
    for i, first in enumerate(names):
        for j, second in enumerate(names[i + 1 :], start=i + 1):
            value = table[i, j]
            if first in factors and value >= _TOGETHER:
                sentences.append(
                    f"{first} and {second} go together in these cells (association {value:.2f} of 1): what is said of "
                    "one may belong to the other."
                )
    return sentences
