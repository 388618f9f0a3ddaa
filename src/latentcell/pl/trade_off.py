"""What a stronger objective buys and what it costs: alignment with factors beside everything else that it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from latentcell.errors import InputError, listed
from latentcell.pl._images import panel_axes
from latentcell.pl._style import ACCENT, INK, LEVELS, MUTED, SECOND, SMALL, new_figure, note, shortened, styled
from latentcell.pl.volcano import apart

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_PANEL, _COLUMNS = (3.5, 2.3), 3  # inches
_INSIDE = 2.4  # inches from the first tick of a panel to the last
_NEEDED = ("objective", "value", "alignment", "reconstruction", "held_out_nll", "n_active")
_SPAN = 4.0  # largest over smallest value from which the axis is logarithmic
_LINE = 0.075  # of the height of a panel: one name
_NAMED = 12  # factors whose names fit beside the panel


@dataclass(frozen=True)
class _Panel:
    """Columns of the table that share a panel, with their names."""

    title: str
    columns: dict[str, str]
    share: bool = False
    whole: bool = False


_PANELS = (
    _Panel("Reconstruction (higher is better)", {"reconstruction": "share of variance (counts: deviance)"}, share=True),
    _Panel("Held-out cells (lower is better)", {"held_out_nll": "negative log-likelihood"}),
    _Panel("Clusters against labels (higher is better)", {"ari": "ARI", "nmi": "NMI"}, share=True),
    _Panel("Dimensions in use", {"n_active": "active dimensions"}, whole=True),
)


@styled
def trade_off(table: pd.DataFrame) -> Figure:
    """Draw a sweep over objectives: alignment with factors, reconstruction, likelihood, clusters, dimensions in use.

    Dots are seeds, lines their means; thin lines the alignment of single factors. What is unknown everywhere is left
    out.

    Parameters
    ----------
    table
        One row per fit: ``objective`` (such as ``"beta=4"``), ``value`` (its place on the x axis), ``alignment`` (mean
        over factors of the largest correlation) and ``alignment_<factor>``, ``reconstruction`` (share of variance),
        ``held_out_nll``, ``n_active``, and where known ``seed``, ``ari`` and ``nmi``. Sentences in
        ``attrs["verdict"]`` are said below.

    Raises
    ------
    InputError
        If columns are missing, or no row has a value and an alignment.
    """
    missing = [name for name in _NEEDED if name not in table]
    if missing:
        raise InputError(f"The table of a sweep lacks the columns {listed(missing, 8)}.")
    table = table[np.isfinite(table["value"].to_numpy(float))]
    if not _known(table, "alignment"):
        raise InputError("The table of the sweep has no row in which both value and alignment are known.")
    panels = [panel for panel in _PANELS if any(_known(table, name) for name in panel.columns)]
    n_panels = 1 + len(panels)
    n_columns = 2 if n_panels in (2, 4) else min(_COLUMNS, n_panels)
    n_rows = -(-n_panels // n_columns)
    width = n_columns * _PANEL[0] + 0.3
    figure = new_figure(width, n_rows * _PANEL[1] + 1.2)
    first, *others = panel_axes(figure, n_panels, n_columns)
    _alignment(first, table)
    for ax, panel in zip(others, panels, strict=True):
        _panel(ax, table, panel)
    for ax in (first, *others):
        _along(ax, table)
    note(figure, _said(table), width)
    return figure


def _known(table: pd.DataFrame, name: str) -> bool:
    return name in table and bool(table[name].notna().any())


def _means(table: pd.DataFrame, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values in ascending order and the mean over seeds at each; those without a known one left out."""
    mean = table.groupby("value")[name].mean().dropna().sort_index()
    return mean.index.to_numpy(float), mean.to_numpy(float)


def _alignment(ax: Axes, table: pd.DataFrame) -> None:
    """Mean over factors bold with its seeds; each factor thin, named at its end."""
    prefix = "alignment_"
    factors = [str(name) for name in table if str(name).startswith(prefix) and _known(table, str(name))]
    ends = []
    for i, name in enumerate(factors):
        color = LEVELS[i % len(LEVELS)] if len(factors) <= _NAMED else MUTED
        x, y = _means(table, name)
        ax.plot(x, y, ".-", color=color, linewidth=0.9, markersize=3, alpha=0.9, zorder=2)
        ends.append((y[-1], name.removeprefix(prefix), color))
    x, y = _means(table, "alignment")
    ax.plot(table["value"], table["alignment"], "o", color=INK, markersize=3.5, alpha=0.55, zorder=3)
    ax.plot(x, y, color=INK, linewidth=2.6, zorder=4)
    if len(factors) > _NAMED:
        ends = [(float(np.median([end[0] for end in ends])), f"{len(factors)} factors", MUTED)]
    ends.append((y[-1], "mean", INK))
    ax.set(ylim=(-0.02, 1.02), ylabel="largest correlation")
    ax.set_title("Alignment with factors (higher is better)")
    _ends(ax, ends, (0.0, 1.0))


def _panel(ax: Axes, table: pd.DataFrame, panel: _Panel) -> None:
    columns = {name: words for name, words in panel.columns.items() if _known(table, name)}
    ends = []
    for color, (name, words) in zip((ACCENT, SECOND), columns.items(), strict=False):
        x, y = _means(table, name)
        ax.plot(table["value"], table[name], "o", color=color, markersize=3.5, alpha=0.55, zorder=3)
        ax.plot(x, y, color=color, linewidth=2.0)
        ends.append((y[-1], words, color))
    ax.set_title(panel.title)
    if panel.share:
        ax.set_ylim(min(-0.02, ax.get_ylim()[0]), 1.02)
    if panel.whole:
        ax.set_ylim(0, float(np.nanmax(table[list(columns)].to_numpy(float))) * 1.12 + 0.5)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(columns) > 1:
        _ends(ax, ends, ax.get_ylim())
    else:
        ax.set_ylabel(next(iter(columns.values())))


def _ends(ax: Axes, ends: list[tuple[float, str, str]], limits: tuple[float, float]) -> None:
    """Names of lines behind their right ends, moved apart."""
    low, high = limits
    places = apart([end[0] for end in ends], _LINE * (high - low), low, high)
    for place, (_, words, color) in zip(places, ends, strict=True):
        ax.annotate(
            shortened(words, 18), (1, place), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=SMALL, color=color, fontweight="bold" if words == "mean" else "normal",
        )  # fmt: skip


def _along(ax: Axes, table: pd.DataFrame) -> None:
    """The x axis: a tick per objective, logarithmic where values span widely."""
    named = table.groupby("value")["objective"].agg(lambda each: " / ".join(dict.fromkeys(map(str, each)))).sort_index()
    values = named.index.to_numpy(float)
    positive = values[values > 0]
    if values[0] >= 0 and len(positive) and positive[-1] > _SPAN * positive[0]:
        # linear up to the smallest value above 0, so that 0 has a place
        ax.set_xscale("symlog", linthresh=positive[0]) if values[0] == 0 else ax.set_xscale("log")
    scale = ax.xaxis.get_transform()
    places = scale.transform(values)
    pad = 0.05 * np.ptp(places) or 1.0
    ax.set_xlim(*scale.inverted().transform(np.array([places[0] - pad, places[-1] + pad])))
    families = {text.partition("=")[0] for text in named}
    same = len(families) == 1 and all("=" in text for text in named)
    labels = [text.partition("=")[2] if same else text for text in named]
    letters = np.array([len(label) for label in labels])
    inches = _INSIDE * np.diff(places) / max(float(np.ptp(places)), 1e-9)
    turned = bool((inches < 0.07 * (letters[1:] + letters[:-1]) / 2 + 0.06).any())
    ax.set_xticks(values, labels, rotation=45 if turned else 0, ha="right" if turned else "center")
    if turned:
        for label in ax.get_xticklabels():
            label.set_rotation_mode("anchor")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(families.pop() if same else "objective")


def _said(table: pd.DataFrame) -> str:
    verdict = [str(sentence) for sentence in table.attrs.get("verdict", [])]
    n = int(table.groupby("value").size().max())
    seeds = "One fit each." if n == 1 else f"Dots: up to {n} seeds; lines: their means."
    return " ".join([*verdict, f"{seeds} Thin lines: single factors."])
