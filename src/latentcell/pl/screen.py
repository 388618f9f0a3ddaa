"""A screen at a glance: who leaves the controls, whether the p-values hold, and what cell counts do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from latentcell import keys
from latentcell.errors import InputError
from latentcell.pl._style import ACCENT, INK, MUTED, PALE, SECOND, SMALL, filled, new_figure, note, shortened, styled
from latentcell.tl.hits import FDR, ranked_by

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 10.5, 8.4
_NAMED = 8
_NOTE = (
    "Deviation: -log10 of the harmonic mean p of all views, extrapolated beyond what the design can give; ranks follow "
    "p, then deviation. Effect: distance of the mean latent code of a group from the controls of its blocks, in SD of "
    "replicates; noise alone gives more than 0. Filled: false discovery rate at most 0.05. Cell counts are tested by "
    "themselves and are no part of p."
)


@styled
def screen(cells: AnnData) -> Figure:
    """Draw the hits of a screen, its p-values against their calibration, and cell counts.

    Four panels: deviation by rank; p by effect, with the smallest p of the design and the false discovery rate;
    quantiles of the p of groups, and of controls posing as perturbations, against uniform ones; effect by change of
    cell count.
    Where p-values do not hold, the reason stands in their place.

    Parameters
    ----------
    cells
        As `latentcell.tl.screen` left them: ``uns["screen"]``.

    Raises
    ------
    InputError
        If no screen was run on these cells.
    """
    result = screened(cells)
    hits, params = result["hits"], result["params"]
    figure = new_figure(_WIDTH, _HEIGHT)
    (by_rank, by_p), (quantiles, by_count) = figure.subplots(2, 2)
    called, sure = (hits["q"] <= FDR).to_numpy(), bool(hits["p"].notna().any())
    _ranks(by_rank, hits, called, by="statistic" if sure else ranked_by(hits))
    if sure:
        _volcano(by_p, hits, called)
    else:
        _said(by_p, "p-values", str(result["verdict"][0]))
    _quantiles(quantiles, hits, result["calibration"], params)
    if hits["count_effect"].notna().any():
        _counts(by_count, hits, called)
    else:
        _said(by_count, "Cell counts", "Every replicate is a single row: the number of its cells is not known.")
    title = (
        str(result["verdict"][0])
        if sure
        else "No p-values hold for this screen: groups are ranked by how far they lie from controls."
    )
    figure.suptitle(filled(title, _WIDTH - 2.5), x=0.02, ha="left", fontsize=11)
    note(figure, _NOTE, _WIDTH)
    return figure


def screened(cells: AnnData) -> dict[str, Any]:
    """Tables of the last screen of these cells.

    Raises
    ------
    InputError
        If there was none.
    """
    if keys.SCREEN not in cells.uns:
        raise InputError('These cells have no uns["screen"]: run latentcell.tl.screen(cells, ...) first.')
    return dict(cells.uns[keys.SCREEN])


def _ranks(ax: Axes, hits: pd.DataFrame, called: np.ndarray[Any, Any], *, by: str) -> None:
    known = hits[by].notna().to_numpy()
    x, y = hits["rank"].to_numpy(float), hits[by].to_numpy(float)
    _dots(ax, x[known], y[known], called[known])
    top = y[known].max(initial=1.0)
    shown = hits[known].head(_NAMED)
    last = x.max(initial=1.0)
    # names stand in a column behind the last rank, tied to their dots by thin lines, so that they never overlap
    places = top * (1.03 - 0.085 * np.arange(len(shown)))
    for place, rank, value, label in zip(places, shown["rank"], shown[by], shown["label"], strict=True):
        ax.annotate(
            shortened(str(label), 24), (rank, value), (1.07 * last + 0.5, place), fontsize=SMALL, va="center",
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}, zorder=1,
        )  # fmt: skip
    unit = "deviation" if by == "statistic" else "effect (SD of replicates)"
    ax.set(xlabel="rank", ylabel=unit, xlim=(0, 1.55 * last + 1), ylim=(0, top * 1.1))
    ax.set_xticks([tick for tick in MaxNLocator(5, integer=True).tick_values(0, last) if 0 < tick <= last])
    ax.set_title("Ranked only" if hits["p"].isna().all() else f"{len(hits)} groups, {int(called.sum())} called")


def _volcano(ax: Axes, hits: pd.DataFrame, called: np.ndarray[Any, Any]) -> None:
    known = hits["p"].notna().to_numpy()
    effect, p = hits["effect"].to_numpy(float)[known], hits["p"].to_numpy(float)[known]
    _dots(ax, effect, -np.log10(p), called[known])
    least = float(hits.loc[known, "min_p"].min())
    height = max(-np.log10(least), 1.4) * 1.12
    ax.axhline(-np.log10(least), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    words = f"smallest p that the design gives: {least:.2g}"
    offset: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": SMALL}
    ax.annotate(words, (0.0, -np.log10(least)), (3, 3), color=MUTED, **offset)
    if called.any():
        edge = float(hits.loc[called, "p"].max())
        ax.axhline(-np.log10(edge), color=ACCENT, linewidth=0.9)
        if edge > 1.3 * least:
            ax.annotate(
                f"called up to p = {edge:.2g}", (1.0, -np.log10(edge)), (-3, -9), ha="right", color=ACCENT, **offset
            )
    noises = hits.loc[known, "effect_noise"].dropna()
    if len(noises):
        noise = float(noises.median())
        ax.axvline(noise, color=PALE, linewidth=0.9, zorder=0)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate("noise alone", (noise, 0.02), (3, 0), fontsize=SMALL, color=MUTED, **place)
    ax.set(xlabel="effect (SD of replicates)", ylabel="−log10 p", ylim=(-0.03 * height, height))
    ax.set_xlim(0, effect.max(initial=1.0) * 1.06)
    ax.set_title("p and effect")


def _quantiles(ax: Axes, hits: pd.DataFrame, calibration: pd.DataFrame, params: dict[str, Any]) -> None:
    if calibration.empty and not hits["p"].notna().any():
        _said(ax, "Calibration", "No p-values, so there is nothing to calibrate.")
        return
    grid = np.linspace(0, 1, 50)
    ax.plot(grid, grid, color=MUTED, linewidth=0.9)
    series = [("groups", hits["p"].dropna().to_numpy(), INK)]
    if not calibration.empty:
        series.append(("controls posing", calibration["p"].to_numpy(), SECOND))
    for name, p, color in series:
        if len(p):
            ax.plot((np.arange(len(p)) + 0.5) / len(p), np.sort(p), "o", color=color, markersize=3, label=name,
                    markerfacecolor="none" if color == INK else color, markeredgewidth=0.8)  # fmt: skip
    ax.set(xlabel="expected p (uniform)", ylabel="observed p", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, 0.86))
    rate = float(params["rejection_rate"])
    words = "too few controls to pose"
    if np.isfinite(rate):
        words = (
            f"controls reach p ≤ 0.05 in {rate:.1%}\n(95 % interval {float(params['rejection_low']):.0%} to "
            f"{float(params['rejection_high']):.0%})"
        )
    ax.annotate(words, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=8, color=SECOND)
    ax.set_title("Do the p-values hold?")


def _counts(ax: Axes, hits: pd.DataFrame, called: np.ndarray[Any, Any]) -> None:
    known = hits["count_effect"].notna().to_numpy()
    x, y = hits["count_effect"].to_numpy(float)[known], hits["effect"].to_numpy(float)[known]
    _dots(ax, x, y, called[known])
    fewer = (hits["q_count"] <= FDR).to_numpy()[known]
    if fewer.any():
        ax.plot(x[fewer], y[fewer], "o", color=SECOND, markersize=8.5, markerfacecolor="none", markeredgewidth=1.2,
                label=f"cell number differs, FDR {FDR:g}")  # fmt: skip
        named = zip(hits.loc[known, "label"][fewer].head(_NAMED), x[fewer], y[fewer], strict=False)
        for label, across, up in named:
            style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL, "color": SECOND}
            ax.annotate(shortened(str(label), 18), (across, up), (0, 7), **style)
        ax.legend(loc="best")
    ax.axvline(0, color=PALE, linewidth=0.9, zorder=0)
    reach = max(0.5, 1.15 * float(np.abs(x).max(initial=0.0)))
    ax.set(
        xlabel="cells per replicate against control (log2)", ylabel="effect (SD of replicates)", xlim=(-reach, reach)
    )
    ax.set_ylim(0, y.max(initial=1.0) * 1.1)
    ax.set_title("Effect and cell count")


def _dots(ax: Axes, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], called: np.ndarray[Any, Any]) -> None:
    size = 5.0 if len(x) <= 200 else 3.0
    ax.plot(x[~called], y[~called], "o", color=MUTED, markersize=size, markerfacecolor="white", markeredgewidth=0.9)
    ax.plot(x[called], y[called], "o", color=ACCENT, markersize=size, markeredgewidth=0.9)


def _said(ax: Axes, title: str, words: str) -> None:
    """A sentence where a panel would be."""
    ax.set_axis_off()
    ax.set_title(title)
    ax.annotate(filled(words, 3.6), (0.0, 0.95), xycoords="axes fraction", va="top", fontsize=9, color=INK)
