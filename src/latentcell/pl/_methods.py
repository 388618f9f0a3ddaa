"""Methods against the truth: a dot plot with intervals and the floor."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from latentcell.errors import InputError
from latentcell.pl._style import ACCENT, INK, MUTED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SPACES = {"model": "Model space: every population decoded", "data": "Data space: populations as measured"}
_FIRST, _FLOOR = "prediction", "floor"
_NOTE = (
    "Source, target, mixture, measurement average and PCA + OT need no model; random pairs and centroid are this model "
    "with cells paired otherwise. Floor: the truth split in two, near 0 and by chance below. A decoder's mean is "
    "blurred and its noise is white, which data space counts against every decoded population; model space does not."
)
_PER_INCH = 15.5  # characters of a verdict


def of_metric(evaluation: pd.DataFrame | None, metric: str) -> pd.DataFrame | None:
    """Rows of one metric; None where nothing was evaluated."""
    if evaluation is None:
        return None
    table = evaluation[evaluation["metric"] == metric]
    if table.empty:
        known = ", ".join(map(repr, evaluation["metric"].unique()))
        raise InputError(f"The evaluation has no metric {metric!r}; choose one of {known}.")
    return table


def draw_evaluation(figure: Figure | SubFigure, table: pd.DataFrame, verdicts: dict[str, str], width: float) -> None:
    """One panel per space on `width` inches: each method's distance to the truth, and the verdict in words."""
    spaces = list(dict.fromkeys(table["space"]))
    axes = figure.subplots(1, len(spaces), squeeze=False)[0]
    metric = table["metric"].iloc[0]
    for ax, space in zip(axes, spaces, strict=True):
        _draw_methods(ax, table[table["space"] == space])
        verdict = textwrap.fill(verdicts.get(space, ""), int(_PER_INCH * (width / len(spaces) - 1.2)))
        ax.set_title(verdict, fontsize=8, color=MUTED)
        ax.annotate(
            _SPACES.get(space, space), (0.0, 1.0), (0, 10 + 9.6 * len(verdict.splitlines())), xycoords="axes fraction",
            textcoords="offset points", fontsize=9.5, annotation_clip=False,
        )  # fmt: skip
        ax.set_xlabel(f"{metric} to the truth (left is better)")
    figure.supxlabel(textwrap.fill(_NOTE, int(_PER_INCH * width)), x=0.02, ha="left", fontsize=7.5, color=MUTED)


def _draw_methods(ax: Axes, table: pd.DataFrame) -> None:
    floor = table[table["method"] == _FLOOR]
    methods = table[table["method"] != _FLOOR]
    ranges = methods[["low", "value", "high"]].to_numpy(dtype=float)
    for place, (name, (low, value, high)) in enumerate(zip(methods["method"], ranges, strict=True)):
        color = ACCENT if name == _FIRST else INK
        ax.plot([low, high], [place, place], color=color, linewidth=1.6, solid_capstyle="round")
        ax.plot(value, place, "o", color=color, markersize=6 if name == _FIRST else 4.5)
    for value in floor["value"]:
        ax.axvline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.annotate("floor", (value, 1.0), (3, 0), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                    va="top", color=MUTED, fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(methods)), methods["method"])
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == _FIRST else "normal")
    ax.set_ylim(len(methods) - 0.5, -0.7)
    ax.set_xlim(left=min(0.0, float(table["low"].min())))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#ececec", linewidth=0.8)
    ax.set_axisbelow(True)
