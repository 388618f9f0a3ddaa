"""Methods against the truth: a dot plot with intervals and the floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell.errors import InputError
from latentcell.pl._style import ACCENT, INK, MUTED, SMALL, filled, new_figure, note, shortened, styled
from latentcell.tl.evaluate import ENERGY, FLOOR, MOVED, PREDICTION, RECONSTRUCTED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SPACES = {
    "model": "Model space: all decoded",
    "data": "Data space: as measured",
    "data, coarse": "Data space, 4 x 4 pixels averaged",
}
_COLUMNS = ("space", "method", "metric", "value", "low", "high")
_NOTE = (
    "Farther left is better. Bars: 95 % intervals. Each space has its own unit: distances compare within a panel. "
    "Broken line, floor: the truth split in two, near 0 and by chance below. Source, target, mixture, measurement "
    "average and PCA + OT need no model; random pairs and centroid are this model with cells paired otherwise. An "
    "empty row: not compared in that space."
)
_HOLLOW = {
    RECONSTRUCTED: " Hollow, no baselines: reconstructed truth is what decoding alone loses of the true cells; where "
    "it lies far out, every decoded population does.",
    MOVED: " Moved measurements are the paired cells' own, averaged along the path without the decoder.",
}
_JUDGED = " The sentences are judged by the energy distance."
_LABELS, _ROW = 1.5, 0.21  # inches that the names of methods take, and of one method
_WIDTHS = {1: 6.0, 2: 8.6, 3: 11.0}  # inches of a figure by its number of spaces


@styled
def evaluation(table: pd.DataFrame, *, metric: str = ENERGY, verdicts: Mapping[str, Any] | None = None) -> Figure:
    """Draw how near a prediction and its baselines come to the truth, with 95 % intervals.

    One panel per space; hollow dots are no baselines. Of leave-one-out, one row of panels per level held out, each
    space on one axis.

    Parameters
    ----------
    table
        ``predicted.uns["interpolate"]["evaluation"]``, or the result of `latentcell.tl.leave_one_out`.
    metric
        Which distance to show.
    verdicts
        Sentences by space (``predicted.uns["interpolate"]["verdict"]``), of leave-one-out by level and space; by
        default those in ``table.attrs["verdicts"]``.

    Raises
    ------
    InputError
        If the table is no evaluation, or the metric is not in it.
    """
    missing = [name for name in _COLUMNS if name not in table]
    if missing or table.empty:
        found = f"the column {missing[0]!r} is missing" if missing else "it has no rows"
        raise InputError(
            f"This is no evaluation: {found}. Give predicted.uns['interpolate']['evaluation'] or the result of "
            "latentcell.tl.leave_one_out."
        )
    shown = of_metric(table, metric)
    assert shown is not None
    given = dict(table.attrs.get("verdicts", {}) if verdicts is None else verdicts)
    width = _WIDTHS.get(shown["space"].nunique(), 11.0)
    figure = new_figure(width, height_of(shown, width))
    draw_evaluation(figure, shown, given, width)
    return figure


def of_metric(evaluation: pd.DataFrame | None, metric: str) -> pd.DataFrame | None:
    """Rows of one metric; None where nothing was evaluated."""
    if evaluation is None:
        return None
    table = evaluation[evaluation["metric"] == metric]
    if table.empty:
        known = ", ".join(map(repr, evaluation["metric"].unique()))
        raise InputError(f"The evaluation has no metric {metric!r}; choose one of {known}.")
    return table


def height_of(table: pd.DataFrame, width: float) -> float:
    """Inches that `draw_evaluation` needs."""
    lines = len(filled("".join([_NOTE, *_HOLLOW.values(), _JUDGED]), width).splitlines())
    return 0.9 + 0.14 * lines + len(_by_level(table)) * (0.55 + _ROW * len(_methods(table)))


def draw_evaluation(figure: Figure | SubFigure, table: pd.DataFrame, verdicts: Mapping[str, Any], width: float) -> None:
    """Panels on `width` inches: a column per space, a row per level held out; verdicts in words."""
    spaces, methods, parts = list(dict.fromkeys(table["space"])), _methods(table), _by_level(table)
    axes = figure.subplots(len(parts), len(spaces), squeeze=False, sharex="col", sharey=True)
    inches = (width - _LABELS) / len(spaces) - 0.2
    for place, (held_out, part) in enumerate(parts.items()):
        row = axes[place]
        sentences = verdicts if held_out is None else verdicts.get(str(held_out), {})
        words = [filled(str(sentences.get(space, "")).partition(f": {ENERGY}")[0], inches) for space in spaces]
        n_lines = max(len(each.splitlines()) for each in words)
        for ax, space, sentence in zip(row, spaces, words, strict=True):
            _draw_methods(ax, part[part["space"] == space], methods)
            ax.set_title(sentence, fontsize=SMALL, color=MUTED)
            if place == 0:
                _head(ax, _SPACES.get(space, space), 8 + 9.2 * n_lines)
        if held_out is not None:
            row[0].annotate(
                _held_out_label(part), (0.0, 1.0), (-5, 4), xycoords="axes fraction", textcoords="offset points",
                ha="right", va="bottom", fontsize=8, annotation_clip=False,
            )  # fmt: skip
    metric = str(table["metric"].iloc[0])
    for ax, space in zip(axes[-1], spaces, strict=True):
        limits = table.loc[table["space"] == space, ["low", "high"]].to_numpy()
        low, high = min(0.0, float(limits.min())), float(limits.max())
        ax.set_xlim(low - 0.03 * (high - low), high + 0.05 * (high - low))
        ax.set_xlabel(f"{metric} to the truth", fontsize=8)
    hollow = "".join(text for name, text in _HOLLOW.items() if name in methods)
    note(figure, _NOTE + hollow + (_JUDGED if verdicts and metric != ENERGY else ""), width)


def _by_level(table: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    """Rows by the level held out; all under None where the table is not of leave-one-out."""
    if "held_out" not in table:
        return {None: table}
    return {level: table[table["held_out"] == level] for level in dict.fromkeys(table["held_out"])}


def _held_out_label(part: pd.DataFrame) -> str:
    names = [part[name].iloc[0] for name in ("held_out", "source", "target")]
    level, source, target = (f"{each:g}" if isinstance(each, float) else shortened(str(each), 16) for each in names)
    return f"{level} held out,\nfrom {source}\nand {target}"


def _methods(table: pd.DataFrame) -> list[str]:
    """Methods of all spaces in the order of the table, what is no baseline last."""
    by_space = sorted((list(dict.fromkeys(part)) for _, part in table.groupby("space")["method"]), key=len)
    names = [name for methods in reversed(by_space) for name in methods]
    return sorted(dict.fromkeys(name for name in names if name != FLOOR), key=lambda name: name in _HOLLOW)


def _head(ax: Axes, title: str, above: float) -> None:
    """Name of the space, so many points above the panel: over the verdicts."""
    ax.annotate(title, (0.0, 1.0), (0, above), xycoords="axes fraction", textcoords="offset points", fontsize=9.5,
                annotation_clip=False)  # fmt: skip


def _draw_methods(ax: Axes, table: pd.DataFrame, methods: list[str]) -> None:
    ranges = table.set_index("method")[["low", "value", "high"]].astype(float)
    for place, name in enumerate(methods):
        if name in ranges.index:
            _draw_method(ax, place, name, ranges.loc[name].to_numpy())
    if FLOOR in ranges.index:
        ax.axvline(ranges.loc[FLOOR].to_numpy()[1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set_yticks(range(len(methods)), methods)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == PREDICTION else "normal")
        label.set_color(MUTED if label.get_text() in _HOLLOW else INK)
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#ececec", linewidth=0.8)
    ax.set_axisbelow(True)


def _draw_method(ax: Axes, place: int, name: str, estimate: np.ndarray[Any, Any]) -> None:
    low, value, high = estimate
    color = ACCENT if name == PREDICTION else MUTED if name in _HOLLOW else INK
    ax.plot([low, high], [place, place], color=color, linewidth=1.6, solid_capstyle="round", zorder=2)
    ax.plot(
        value, place, "o", color=color, markersize=6 if name == PREDICTION else 4.8, zorder=3,
        markerfacecolor="white" if name in _HOLLOW else color,
    )  # fmt: skip
