"""The variables that change most along a predicted path, each in a panel of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell.errors import InputError
from latentcell.pl._images import panel_axes
from latentcell.pl._route import SOURCE, TARGET, TRUTH, Route, some
from latentcell.pl._style import ACCENT, INK, SECOND, new_figure, note, shortened, styled
from latentcell.pl._variables import LIBRARY, Table, change, decoded_variables, most_changed, normalised
from latentcell.stats.distances import resampled_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.pl._route import Index

_MAX_CELLS = 500  # pairs, and measured cells of a population
_N_RESAMPLES = 500
_CUT = 2.5  # height of a panel of counts over the highest mean
_COLUMNS, _PANEL = 4, (2.35, 1.75)  # inches
_NOTE = (
    "Dark band: 95 % bootstrap interval of the mean over pairs, the model taken as it is. Pale band: 5th to 95th "
    "percentile of the decoded cells, without measurement noise, cut where it leaves the panel. Bars: 95 % bootstrap "
    "intervals of measured means."
)


@styled
def changes(
    predicted: AnnData,
    cells: AnnData,
    model: VAE,
    *,
    n: int = 12,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw the variables that change most along a predicted path, decoded and measured.

    Line: mean of the decoded cells at nine places of the path and where was predicted, with its 95 % bootstrap interval
    over pairs (the model's own error is not in it) and, paler, the 5th to 95th percentile of the cells. Points: means
    measured in source, target and truth with 95 % bootstrap intervals. Counts are per 10,000 of a cell, profiles in
    stored units; at most 500 pairs, and 500 cells of a population. A pair is resampled with all its places, and
    together with the pairs that share its cell of the smaller end. Where the prediction named replicates, these are
    resampled instead of pairs and cells.

    Parameters
    ----------
    predicted
        Result of `latentcell.tl.interpolate` for counts or profiles.
    cells
        The cells that it was made from.
    model
        The model that it was made with.
    n
        Variables shown, by the range of their decoded mean: log2 fold change of counts per 10,000 (one added), or SD
        of the training cells. Those that rise most come first.
    rng
        Chooses pairs and cells, and resamples them.

    Raises
    ------
    InputError
        If the model is one of images, `predicted` does not come from `latentcell.tl.interpolate`, or its cells are not
        in `cells`.
    """
    if model.modality_ == "images":
        raise InputError("Images have no variables to follow one by one: use pl.interpolation, or pl.path.")
    if n < 1:
        raise InputError(f"n is {n}: show at least one variable.")
    route, rng = Route.of(predicted, cells, model), np.random.default_rng(rng)
    steps = route.steps(9)
    index = some(np.arange(len(route.pairs)), _MAX_CELLS, rng)
    batch = route.batch(index)
    decoded = [decoded_variables(model, route.located(index, t), batch).astype(np.float32) for t in steps]
    means = np.stack([np.asarray(values.mean(axis=0), dtype=np.float64) for values in decoded])
    kept = most_changed(change(model, means, means[0]), min(n, means.shape[1]))
    curve = _Curve.of(np.stack([values[:, kept] for values in decoded]), _units(route, index), rng)
    measured = {role: _measured(route, rows, kept, rng) for role, rows in _populations(route).items()}
    return _drawn(route, steps, [model.names_[j] for j in kept], curve, measured)


@dataclass(frozen=True)
class _Curve:
    """Mean along the path, its interval and the range of the cells, each ``(steps, n)``."""

    mean: Table
    interval: Table
    cells: Table

    @classmethod
    def of(cls, values: NDArray[Any], replicates: NDArray[Any] | None, rng: np.random.Generator) -> _Curve:
        """From the decoded cells ``(steps, pairs, n)``; a pair is resampled with all its steps."""
        interval = _bootstrapped(np.moveaxis(values, 1, 0), replicates, rng)
        return cls(np.asarray(values.mean(axis=1)), interval, np.percentile(values, [5, 95], axis=1))


def _bootstrapped(values: NDArray[Any], replicates: NDArray[Any] | None, rng: np.random.Generator) -> Table:
    """95 % interval ``(2, ...)`` of the mean over the first axis, its members resampled whole."""
    counts = resampled_counts(len(values), n=_N_RESAMPLES, replicates=replicates, rng=rng)[1:]
    means = np.tensordot(counts / counts.sum(axis=1, keepdims=True), np.asarray(values, dtype=np.float64), axes=1)
    return np.asarray(np.percentile(means, [2.5, 97.5], axis=0))


def _units(route: Route, index: Index) -> NDArray[Any]:
    """What is resampled: replicates, or the cells of the end with fewer, which several pairs may share."""
    pairs = route.pairs.take(index)
    replicates = route.replicates(pairs.source.rows)
    if replicates is not None:
        return replicates
    return min(pairs.source.rows, pairs.target.rows, key=lambda rows: len(np.unique(rows)))


def _populations(route: Route) -> dict[str, Index]:
    rows = {SOURCE: route.course.source.rows, TARGET: route.course.target.rows}
    return rows | ({TRUTH: route.truth} if len(route.truth) else {})


def _measured(route: Route, rows: Index, kept: Index, rng: np.random.Generator) -> tuple[Table, Table]:
    """Mean ``(n,)`` and interval ``(2, n)`` of some variables in a population."""
    model, rows = route.course.model, some(rows, _MAX_CELLS, rng)
    values = normalised(model, model.measurements(route.course.cells[rows]))[:, kept]
    return values.mean(axis=0), _bootstrapped(values, route.replicates(rows), rng)


def _drawn(
    route: Route, steps: Table, names: list[str], curve: _Curve, measured: dict[str, tuple[Table, Table]]
) -> Figure:
    n_columns = min(_COLUMNS, len(names))
    n_rows = -(-len(names) // n_columns)
    width = max(n_columns * _PANEL[0], 4.5) + 0.3
    figure = new_figure(width, n_rows * _PANEL[1] + 1.2 + 1.5 / width)
    axes = panel_axes(figure, len(names), n_columns)
    places = np.array([route.place(t) for t in steps])
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        ax.fill_between(places, *curve.cells[..., i], color=ACCENT, alpha=0.12, linewidth=0, label="decoded cells")
        ax.fill_between(places, *curve.interval[..., i], color=ACCENT, alpha=0.4, linewidth=0)
        ax.plot(places, curve.mean[:, i], color=ACCENT, label="decoded mean")
        for role, (mean, interval) in measured.items():
            _draw_measured(ax, route, role, float(mean[i]), interval[:, i])
        ax.set_title(shortened(name, 28))
        low, high = ax.get_ylim()
        means = np.concatenate([curve.interval[..., i].ravel(), *(one[1][:, i] for one in measured.values())])
        if route.course.model.modality_ == "counts":
            # few cells with high counts must not press the means to the ground
            low, high = 0.0, min(high, _CUT * max(float(means.max()), 1e-9))
        ax.set_ylim(low, high)
        ax.margins(x=0.08)
        ax.tick_params(labelbottom=i + n_columns >= len(names))
        if i + n_columns >= len(names):
            ax.set_xlabel(route.axis)
    unit = f"counts per {LIBRARY:,.0f}" if route.course.model.modality_ == "counts" else "stored units"
    figure.supylabel(unit, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(handles))
    note(figure, _NOTE, width)
    return figure


def _draw_measured(ax: Axes, route: Route, role: str, mean: float, interval: Table) -> None:
    place = route.truth_place if role == TRUTH else route.place(float(role == TARGET))
    color, marker = (SECOND, "D") if role == TRUTH else (INK, "s" if role == TARGET else "o")
    ax.plot([place, place], interval, color=color, linewidth=1.4, zorder=4, clip_on=False)
    ax.plot(place, mean, marker, color=color, markersize=5, zorder=5, linestyle="", clip_on=False,
            label=f"{role} measured: {route.level(role)}")  # fmt: skip
