"""Which perturbations do the same: cosine between the shifts of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from latentcell.errors import InputError
from latentcell.pl._style import new_figure, note, shortened, styled
from latentcell.pl.screen import screened

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

_NOTE = (
    "Cosine between the shifts of groups from their controls (mean code and residuals, in units in which "
    "controls vary "
    "evenly); the best-ranked groups, ordered by average linkage. 1: the same direction, whatever the size; 0: "
    "nothing in "
    "common."
)


@styled
def similarity(cells: AnnData, *, n: int = 40) -> Figure:
    """Draw the cosine between the shifts of the `n` best-ranked groups, similar ones side by side.

    Parameters
    ----------
    cells
        As `latentcell.tl.screen` left them.
    n
        Groups shown at most.

    Raises
    ------
    InputError
        If no screen was run, or fewer than two groups could be compared with controls.
    """
    result = screened(cells)
    table = np.asarray(result["similarity"], dtype=float)
    known = np.flatnonzero(np.isfinite(table.diagonal()))[:n]
    if len(known) < 2:
        raise InputError(f"Similarity needs two groups or more with controls in their blocks, found {len(known)}.")
    best, cosine = list(result["hits"]["label"].iloc[known]), table[np.ix_(known, known)]
    if len(best) > 2:
        apart = squareform(np.clip(1 - cosine, 0, 2), checks=False)
        order = leaves_list(optimal_leaf_ordering(linkage(apart, "average"), apart))
        cosine, best = cosine[np.ix_(order, order)], [best[i] for i in order]
    side = max(2.6, 0.17 * len(best))
    figure = new_figure(side + 3.2, side + 2.2)
    ax = figure.subplots()
    image = ax.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    names = [shortened(str(label), 30) for label in best]
    ax.set_xticks(range(len(best)), names, rotation=90)
    ax.set_yticks(range(len(best)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, aspect=20)
    bar.set_label("cosine of shifts")
    ax.set_title("Which groups do the same")
    note(figure, _NOTE, side + 3.0)
    return figure
