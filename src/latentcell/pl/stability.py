"""Which latent dimensions come back when the model is fitted again with another seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentcell.errors import InputError
from latentcell.pl._style import ACCENT, INK, MUTED, PALE, SECOND, SMALL, new_figure, note, shortened, styled
from latentcell.pl.factors import LITTLE, PALE_NAMES, answered, holds, signed, used
from latentcell.tl.coded import COMES_BACK

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_DOTS, _ROW = 4.6, 0.3  # inches of the dots with their labels, and height of a row
_FACTOR, _VARIABLE, _LETTER = 24, 18, 0.06  # letters of a name, and inches of one


@styled
def stability(cells: AnnData, *, n: int = 32) -> Figure:
    """Draw how closely each latent dimension is met by its match in each refit.

    One row per dimension in use, the most used first, one dot per refit; filled from an absolute correlation of 0.8,
    where the dimension counts as the same one. At the right the factor that it holds and the variables that it moves
    most.

    Parameters
    ----------
    cells
        As `latentcell.tl.factors` left them.
    n
        Dimensions shown at most.

    Raises
    ------
    InputError
        If no factors were asked for on these cells, or without refits.
    """
    if n < 1:
        raise InputError(f"n is {n}: show at least one latent dimension.")
    result = answered(cells)
    table = result["stability"]
    if not table.shape[1] or bool(table.isna().all(axis=None)):
        raise InputError(
            "The model was not fitted again (seeds=0), so nothing is known of its stability: run "
            "latentcell.tl.factors(cells, model, ..., seeds=3)."
        )
    every = used(result["dimensions"])
    shown = every.iloc[:n]
    values = table.loc[every["dimension"]].to_numpy(float)
    words = [
        (holds(row, _FACTOR), " ".join(shortened(word, _VARIABLE) for word in signed(str(row.name)).split()))
        for row in shown.itertuples()
    ]
    width = _DOTS + 0.7 + _LETTER * sum(max(len(word) for word in column) for column in zip(*words, strict=True))
    figure = new_figure(width, _ROW * len(shown) + 1.5)
    ax = figure.subplots()
    _dots(ax, values[:n])
    _rows(ax, shown, values[:n], words)
    most = (values >= COMES_BACK).mean(axis=1) > 0.5
    ax.set_title(f"{most.sum()} of {len(every)} dimensions come back in most of {values.shape[1]} refits")
    text = (
        "Dots: refits. Dimensions of a refit are matched one to one; line: |correlation| from which one counts as the "
        "same. A dimension that does not come back is one choice among many: what it says of factors holds for this "
        "fit only."
    )
    if (shown["guided_by"].fillna("").astype(str) != "").any():
        text += " Orange: guided by a factor, so held in place."
    if (shown["variance_explained"] < LITTLE).any():
        text += f" {PALE_NAMES}"
    if len(every) > len(shown):
        text += f" Less used dimensions not shown: {len(every) - len(shown)}."
    note(figure, text, width)
    return figure


def _dots(ax: Axes, values: NDArray[np.float64]) -> None:
    for y, row in enumerate(values):
        row = row[~np.isnan(row)]
        if not len(row):
            continue
        ax.plot([row.min(), row.max()], [y, y], color=PALE, linewidth=2.0, zorder=1, solid_capstyle="butt")
        for mask, fill in ((row >= COMES_BACK, ACCENT), (row < COMES_BACK, "white")):
            ax.plot(row[mask], np.full(mask.sum(), y), "o", color=MUTED if fill == "white" else ACCENT,
                    markerfacecolor=fill, markersize=5, markeredgewidth=0.9, zorder=3)  # fmt: skip
    ax.axvline(COMES_BACK, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    ax.set(xlim=(0, 1.02), ylim=(len(values) - 0.5, -0.5), xlabel="|correlation| with its match in a refit")


def _rows(ax: Axes, shown: pd.DataFrame, values: NDArray[np.float64], words: list[tuple[str, str]]) -> None:
    """Dimensions at the left; at the right in how many refits each comes back, what it holds and what it moves."""
    ax.set_yticks(range(len(shown)), [f"$z_{{{k}}}$" for k in shown["dimension"]], fontsize=9)
    ax.tick_params(axis="y", length=0)
    idle = (shown["variance_explained"] < LITTLE).to_numpy()
    guided = (shown["guided_by"].fillna("").astype(str) != "").to_numpy()
    last = 50 + 72 * _LETTER * max(len(held) for held, _ in words)
    for y, (own, (held, moved)) in enumerate(zip(values, words, strict=True)):
        known = own[~np.isnan(own)]
        if idle[y] or guided[y]:
            ax.get_yticklabels()[y].set_color(MUTED if idle[y] else SECOND)
        back = f"{int((known >= COMES_BACK).sum())}/{len(known)}"
        for offset, text, color in (
            (8, back, INK),
            (36, held, MUTED if idle[y] else INK),
            (last, moved, MUTED),
        ):
            ax.annotate(text, (1, y), (offset, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                        va="center", fontsize=SMALL, color=color)  # fmt: skip
