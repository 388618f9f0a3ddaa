"""The predicted path on a map of real cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke

from latentcell import keys
from latentcell.cells.levels import column, times
from latentcell.pl._route import SOURCE, TARGET, TRUTH, Route, some
from latentcell.pl._style import INK, LEVELS, PALE, SECOND, new_figure, note, root_figure, shortened, styled
from latentcell.pl.latent import Components

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.pl._route import Index

    Points = NDArray[np.float64]

_MAX_CELLS, _MAX_NAMED, _MAX_PREDICTED = 3_000, 500, 150
_N_STEPS = {"geodesic": 5}  # each step of a geodesic is an optimisation; other paths have 17
_WIDTH, _HEIGHT = 7.0, 5.0  # inches
_MANY_TIMES = 12  # from which on a colour bar is easier to read than a list
_ROLE_COLORS = {SOURCE: "#0072b2", TARGET: "#009e73", TRUTH: "#e69f00"}
_FAR = "#c1121f"


@styled
def path(
    predicted: AnnData,
    cells: AnnData,
    model: VAE,
    *,
    n: int = 25,
    ax: Axes | None = None,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw the way of a prediction through the latent space, over the real cells.

    The map shows the posterior means of at most 3,000 real cells, coloured by level or time, on the first two principal
    components of those of source, target and truth (at most 500 each). Lines: the ways of `n` pairs of cells, arrows
    towards the target. White dots: predicted cells, at most 150; crosses: predicted cells farther from measured ones
    than these are from one another (``obs["plausible"]``, judged in all dimensions). Rings: cells of the truth. Large
    marks give the means of prediction and truth.

    Parameters
    ----------
    predicted
        Result of `latentcell.tl.interpolate`.
    cells
        The cells that it was made from; those of other levels show where cells are.
    model
        The model that it was made with.
    n
        Pairs whose way is drawn.
    ax
        Axes to draw into; by default a new figure.
    rng
        Chooses cells and pairs.

    Returns
    -------
    The figure, that of `ax` if given.

    Raises
    ------
    InputError
        If `predicted` does not come from `latentcell.tl.interpolate`, or its cells are not in `cells`.
    """
    route, rng = Route.of(predicted, cells, model), np.random.default_rng(rng)
    rows = _shown_rows(route, rng)
    z = np.asarray(model.encode(cells[rows]).mu, dtype=np.float64)
    named = np.concatenate([route.course.source.rows, route.course.target.rows, route.truth])
    plane = Components.of(z[np.isin(rows, named)])
    figure = new_figure(_WIDTH, _HEIGHT) if ax is None else root_figure(ax)
    own, ax = ax is None, figure.subplots() if ax is None else ax
    points = plane.project(z)
    entries = _draw_cells(ax, route, rows, points)
    for way in _ways(route, route.some_pairs(n, rng), plane):
        _draw_way(ax, way)
    if len(route.truth):
        entries += _draw_truth(ax, points[np.isin(rows, route.truth)], _dot_size(len(rows)))
    entries += _draw_predicted(ax, plane.project(predicted.obsm[keys.VAE]), predicted.obs, route, rng)
    ax.set(xlabel=plane.labels[0], ylabel=plane.labels[1], xticks=[], yticks=[])
    ax.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handletextpad=0.4)
    if own:
        note(figure, _seen(route, plane, predicted), _WIDTH)
    return figure


def _shown_rows(route: Route, rng: np.random.Generator) -> Index:
    """Rows of the cells on the map: of the named levels always some, of all others as many as fit."""
    populations = (route.course.source.rows, route.course.target.rows, route.truth)
    named = np.concatenate([some(rows, _MAX_NAMED, rng) for rows in populations])
    known = np.flatnonzero(column(route.course.cells, route.params["key"]).notna().to_numpy())
    others = np.setdiff1d(known, np.concatenate(populations))
    return np.sort(np.concatenate([named, some(others, _MAX_CELLS - len(named), rng)]))


def _ways(route: Route, index: Index, plane: Components) -> Points:
    """Ways of some pairs on the map ``(n, steps, 2)``, interrupted by NaN where a cell changes its end."""
    steps = np.linspace(0.0, 1.0, _N_STEPS.get(route.course.path, 17))
    z = np.stack([route.located(index, t) for t in steps], axis=1)
    ways = plane.project(z)
    if route.course.path != "shift":
        return ways
    # a share of the cells goes on from the source and the rest back from the target: no cell makes the jump between
    walked = route.pairs.delta[index][:, None] / (len(steps) - 1)
    jumps = np.linalg.norm(np.diff(z, axis=1) - walked, axis=2) > 1e-3 * np.linalg.norm(walked, axis=2)
    broken = np.repeat(ways, 2, axis=1)
    broken[:, 1:-1:2][jumps] = np.nan
    return broken


def _draw_way(ax: Axes, way: Points) -> None:
    """A thin line with an arrow at three quarters of each of its parts, beyond most predictions."""
    ax.plot(way[:, 0], way[:, 1], color=INK, linewidth=0.6, alpha=0.55, zorder=2)
    parts = np.split(way, np.flatnonzero(np.isnan(way[:, 0])))
    for part in (each[~np.isnan(each[:, 0])] for each in parts):
        lengths = np.linalg.norm(np.diff(part, axis=0), axis=1)
        if lengths.sum() == 0:
            continue
        place = int(np.searchsorted(np.cumsum(lengths), 0.75 * lengths.sum()))
        arrow = FancyArrowPatch(
            part[place], part[place + 1], arrowstyle="-|>", mutation_scale=8, linewidth=0, color=INK, alpha=0.7,
            shrinkA=0, shrinkB=0, zorder=2,
        )  # fmt: skip
        ax.add_patch(arrow)


def _draw_cells(ax: Axes, route: Route, rows: Index, points: Points) -> list[Line2D]:
    """Real cells in the colours of their levels, those of other levels than the named ones paler."""
    cells, key = route.course.cells, route.params["key"]
    order = np.random.default_rng(0).permutation(len(rows))
    x, y = points[order].T
    dots: dict[str, Any] = {"s": _dot_size(len(rows)), "linewidths": 0, "rasterized": True, "zorder": 1}
    numbers = times(cells, key)
    if numbers is not None and len(np.unique(numbers[rows])) > _MANY_TIMES:
        drawn = ax.scatter(x, y, c=numbers[rows][order], cmap="viridis", alpha=0.6, **dots)
        bar = ax.figure.colorbar(drawn, ax=ax, location="top", shrink=0.6, aspect=30, pad=0.02, label=key)
        bar.outline.set_linewidth(0.5)
        if bar.solids is not None:
            bar.solids.set_alpha(1.0)
        return []
    names = column(cells, key).astype(str).to_numpy()[rows] if numbers is None else numbers[rows].astype(str)
    levels = {role: route.params[role] for role in (SOURCE, TARGET, TRUTH) if role in route.params}
    roles = {str(level if numbers is None else float(level)): role for role, level in levels.items()}
    colors = _level_colors(column(cells, key).iloc[rows], roles) if numbers is None else _time_colors(numbers[rows])
    alphas = np.where(np.isin(names, list(roles)), 0.85, 0.35 if numbers is None else 0.6)
    ax.scatter(x, y, c=[to_rgba(colors[names[i]], alphas[i]) for i in order], **dots)
    return [
        Line2D([], [], marker="o", linestyle="", markersize=6, markeredgewidth=0, color=color,
               alpha=alphas[names == name][0], label=_entry(name, key, roles, numbers is not None))
        for name, color in colors.items() if color != PALE
    ]  # fmt: skip


def _dot_size(n_cells: int) -> float:
    """Area of a dot: all dots cover about the same, however many there are."""
    return float(np.clip(9000 / n_cells, 4, 20))


def _level_colors(levels: pd.Series[Any], roles: dict[str, str]) -> dict[str, str]:
    """Colour of each level in its order: fixed for source, target and truth; grey where the palette ends."""
    names = map(str, levels.astype("category").cat.remove_unused_categories().cat.categories)
    others = iter([color for color in LEVELS if color not in _ROLE_COLORS.values()])
    return {name: _ROLE_COLORS[roles[name]] if name in roles else next(others, PALE) for name in names}


def _time_colors(numbers: Points) -> dict[str, str]:
    known = np.unique(numbers)
    scale = Normalize(known[0], known[-1])
    return {str(time): to_hex(colormaps["viridis"](scale(time))) for time in known}


def _entry(name: str, key: str, roles: dict[str, str], numeric: bool) -> str:
    shown = f"{key} {float(name):g}" if numeric else shortened(name, 24)
    return f"{shown} ({roles[name]})" if name in roles else shown


def _draw_truth(ax: Axes, points: Points, size: float) -> list[Line2D]:
    """Rings that just hold the dots of the true cells, and their mean."""
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=1.3 * size,
        facecolors="none",
        edgecolors=SECOND,
        linewidths=0.8,
        zorder=3,
        rasterized=True,
    )
    # open and larger, to be seen around a prediction that meets it
    ax.plot(*points.mean(axis=0), "D", color=SECOND, markersize=12, markerfacecolor="none", markeredgewidth=2, zorder=8)
    return [
        _mark("o", SECOND, "cells of the truth", markerfacecolor="none", markersize=6),
        _mark("D", SECOND, "mean of the truth", markersize=8, markerfacecolor="none", markeredgewidth=1.6),
    ]


def _draw_predicted(
    ax: Axes, points: Points, obs: pd.DataFrame, route: Route, rng: np.random.Generator
) -> list[Line2D]:
    """Predicted cells of every place, with the mean of each place, named where there are several."""
    plausible, places = obs["plausible"].to_numpy(dtype=bool), obs["position"].to_numpy()
    shown = some(np.arange(len(obs)), _MAX_PREDICTED, rng)
    good, bad = (points[shown[plausible[shown] == value]] for value in (True, False))
    ax.scatter(
        good[:, 0], good[:, 1], s=16, facecolors="white", edgecolors=INK, linewidths=0.8, zorder=4, rasterized=True
    )
    ax.scatter(bad[:, 0], bad[:, 1], s=20, marker="x", color=_FAR, linewidths=1.1, zorder=4, rasterized=True)
    for t, label in zip(route.positions, route.labels(route.positions), strict=True):
        mean = points[places == t].mean(axis=0)
        ax.plot(*mean, "o", color=INK, markersize=9, markeredgecolor="white", zorder=6)
        if len(route.positions) > 1:
            text = ax.annotate(label, mean, (7, 0), textcoords="offset points", va="center", zorder=7)
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    entries = [_mark("o", INK, "predicted cells", markerfacecolor="white", markersize=5)]
    if len(bad):
        entries.append(_mark("x", _FAR, "predicted, implausible", markersize=5))
    return [*entries, _mark("o", INK, "mean of the prediction", markersize=7.5)]


def _mark(marker: str, color: str, label: str, **options: Any) -> Line2D:
    """Entry of the legend."""
    return Line2D([], [], marker=marker, linestyle="", color=color, label=label, **options)


def _seen(route: Route, plane: Components, predicted: AnnData) -> str:
    """How much of the way the map shows, and how plausible the cells are where all dimensions count."""
    between = route.course.target.z.mean(axis=0) - route.course.source.z.mean(axis=0)
    share = float(np.linalg.norm(between @ plane.axes) / max(float(np.linalg.norm(between)), 1e-12))
    parts = [
        f"{part['plausible'].mean():.0%} at {route.labels(np.array([t]))[0]}"
        for t, part in predicted.obs.groupby("position", sort=True)
    ]
    return (
        "Axes: principal components of the cells of "
        f"{'source, target and truth' if len(route.truth) else 'source and target'}. They show {share:.0%} of the "
        "distance between the means of source and target; what lies apart in other dimensions may coincide here. "
        "Predicted cells as near to measured ones as these are to one another, judged in all dimensions "
        f"(99th percentile): {', '.join(parts)}."
    )
