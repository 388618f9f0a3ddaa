"""From source to target: the decoded path, the true cells between, and how near the prediction comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell import keys
from latentcell.errors import InputError
from latentcell.pl._images import Display, Pixels, channel_key, draw_tiles, projected_blocks, scale_bar
from latentcell.pl._methods import draw_evaluation, of_metric
from latentcell.pl._style import new_figure, shortened, styled
from latentcell.pl._variables import (
    change,
    change_bar,
    change_label,
    color_limit,
    decoded_variables,
    heat_map,
    label_width,
    most_changed,
    normalised,
)
from latentcell.stats.transport import displace
from latentcell.tl.interpolate import level_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE

    Index = NDArray[np.intp]

_TILE = 0.92  # inches
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_N_VARIABLES = 25
# pairs or cells behind an average of counts or profiles
_MAX_CELLS = 300


@styled
def interpolation(
    predicted: AnnData,
    cells: AnnData,
    model: VAE,
    *,
    n: int = 6,
    metric: str = "energy distance",
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw a predicted path between two stages, beside the truth where it is known, and its evaluation.

    Images: a film strip of `n` matched pairs, one per row: the measured source cell, decoded means along the path,
    the measured target cell; then measured and decoded cells of the true stage (not matched: no cell is followed).
    Counts and profiles: heat map of the 25 variables that change most along the path, averaged over pairs, between
    the measured means of source, target and truth. Below: each method's distance to the truth with its 95 % interval;
    the broken line is the floor, the truth split in two.

    Parameters
    ----------
    predicted
        Result of `latentcell.tl.interpolate`.
    cells
        The cells that it was made from.
    model
        The model that it was made with.
    n
        Pairs shown as images.
    metric
        Metric of the evaluation table to show.
    rng
        Chooses pairs and true cells.

    Raises
    ------
    InputError
        If `predicted` does not come from `latentcell.tl.interpolate`, its cells are not in `cells`, or the metric was
        not evaluated.
    """
    result = predicted.uns.get(keys.INTERPOLATE)
    if result is None or not {"source_cell", "target_cell"} <= set(predicted.obs):
        raise InputError("These are not predicted cells: give the result of latentcell.tl.interpolate.")
    path = _Path(predicted, cells, model, result["params"], np.random.default_rng(rng))
    if model.modality_ == "images":
        width, height, draw = _strip_size(path, n)
    else:
        width = 7.8 + label_width(model.names_)
        height, draw = 1.8 + 0.2 * min(_N_VARIABLES, len(model.names_)), _draw_changes
    table = of_metric(result.get("evaluation"), metric)
    if table is None:
        figure = new_figure(width, height)
        draw(figure, path, n)
        return figure
    width = max(width, 8.0)
    below = 2.5 + 0.24 * table.groupby("space")["method"].nunique().max()
    figure = new_figure(width, height + below)
    halves = figure.add_gridspec(2, 1, height_ratios=[height, below])
    draw(figure.add_subfigure(halves[0]), path, n)
    draw_evaluation(figure.add_subfigure(halves[1]), table, dict(result.get("verdict", {})), width)
    return figure


class _Path:
    """Pairs of cells, the way between them, and the cells of the true stage."""

    def __init__(
        self, predicted: AnnData, cells: AnnData, model: VAE, params: dict[str, Any], rng: np.random.Generator
    ) -> None:
        first = predicted.obs[predicted.obs["at"] == predicted.obs["at"].iloc[0]]
        self.cells, self.model, self.params, self.rng = cells, model, params, rng
        self.source, self.target = (_rows(cells, first[column]) for column in ("source_cell", "target_cell"))
        self.truth = level_rows(cells, params["key"], params["truth"]) if "truth" in params else np.arange(0)
        at = predicted.obs["at"].unique().astype(float)
        self.steps = np.union1d(_STEPS if len(at) < 3 else _STEPS[:: len(_STEPS) - 1], at)
        self.titles = [self._title("source"), "decoded along the path\n", self._title("target")]
        if "truth" in params:
            self.titles.append(self._title("truth"))

    def _title(self, role: str) -> str:
        return f"{role}\n{shortened(str(self.params[role]), 16)}"

    def pairs(self, n: int) -> tuple[Index, Index]:
        """Rows of `n` random pairs, each source cell once where there are enough."""
        order = self.rng.permutation(len(self.source))
        _, first = np.unique(self.source[order], return_index=True)
        again = np.setdiff1d(np.arange(len(order)), first)
        chosen = order[np.concatenate([np.sort(first), again])][:n]
        return self.source[chosen], self.target[chosen]

    def some(self, rows: Index, n: int) -> Index:
        """At most `n` random ones of `rows`."""
        return np.sort(self.rng.choice(rows, min(n, len(rows)), replace=False))

    def positions(self, source: Index, target: Index, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Latent positions ``(pairs * steps, d)`` along the way of each pair, pair after pair."""
        start, end = self._ends(source, self.source), self._ends(target, self.target)
        kind = self.params.get("path", "linear")
        return np.stack([displace(start, end, t, kind) for t in steps], axis=1).reshape(-1, start.shape[1])

    def batch(self, source: Index, n_steps: int) -> Any:
        """Batch to decode each position in: that of its source cell."""
        if self.model.batch_key is None:
            return None
        return np.repeat(self.cells.obs[self.model.batch_key].to_numpy()[source], n_steps)

    def _ends(self, rows: Index, all_rows: Index) -> NDArray[np.float64]:
        """Positions of cells, all at their population's mean where the pairing is between centroids."""
        if self.params.get("pairing") != "centroid":
            return np.asarray(self.model.encode(self.cells[rows]).mu, dtype=np.float64)
        mean = np.asarray(self.model.encode(self.cells[np.unique(all_rows)]).mu, dtype=np.float64).mean(axis=0)
        return np.tile(mean, (len(rows), 1))


def _rows(cells: AnnData, names: pd.Series[Any]) -> Index:
    rows = cells.obs_names.get_indexer(pd.Index(names))
    if (rows < 0).any():
        raise InputError(
            f"{int((rows < 0).sum())} of the cells that the prediction started from are not among these (the first is "
            f"{names.iloc[int(np.argmax(rows < 0))]!r}). Give the cells that were interpolated."
        )
    return np.asarray(rows)


def _strip_size(path: _Path, n: int) -> tuple[float, float, Any]:
    rows = min(n, len(path.source))
    shape = path.model.schema_.shape
    n_tiles = len(path.steps) + 2 + 2 * (len(path.truth) > 0)
    return n_tiles * _TILE + 1.2, rows * _TILE * shape[-2] / shape[-1] + 1.1, _draw_strip


def _draw_strip(figure: Figure | SubFigure, path: _Path, n: int) -> None:
    """Panels side by side: measured source, decoded steps, measured target and, where known, the true stage."""
    model, shape, cells = path.model, path.model.schema_.shape, path.cells
    source, target = path.pairs(n)
    n_rows, n_steps = len(source), len(path.steps)
    z, batch = path.positions(source, target, path.steps), path.batch(source, n_steps)

    def decoded(rows: slice) -> NDArray[Any]:
        return model.decode(z[rows], batch=None if batch is None else batch[rows])

    def measured(rows: Index) -> Pixels:
        return projected_blocks(lambda part: model.measurements(cells[rows[part]]), len(rows), shape)

    steps = projected_blocks(decoded, len(z), shape)
    columns = [measured(source), *(steps[i::n_steps] for i in range(n_steps)), measured(target)]
    groups = [(["measured"], 1), ([f"{t:g}" for t in path.steps], n_steps), (["measured"], 1)]
    if len(path.truth):
        true = path.some(path.truth, n_rows)
        back = projected_blocks(lambda part: model.reconstruct(cells[true[part]]), len(true), shape)
        columns += [_filled(measured(true), n_rows), _filled(back, n_rows)]
        groups.append((["measured", "decoded"], 2))
    ends = np.concatenate([columns[0], columns[n_steps + 1]])
    display = Display.of(ends, model.names_)
    _draw_groups(figure, columns, groups, path.titles, display)


def _filled(images: Pixels, n: int) -> Pixels:
    """Fewer true cells than rows: the rest of the column stays background."""
    blank = np.full((n - len(images), *images.shape[1:]), -np.inf, dtype=np.float32)
    return np.concatenate([images, blank])


def _draw_groups(
    figure: Figure | SubFigure,
    columns: list[Pixels],
    groups: list[tuple[list[str], int]],
    titles: list[str],
    display: Display,
) -> None:
    tile_width = columns[0].shape[3]
    gap, start = max(2, tile_width // 24), 0
    # in pixels, so that tiles come out equally large in every panel
    widths = [width * (tile_width + gap) - gap for _, width in groups]
    axes = figure.subplots(1, len(groups), gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
    for ax, (labels, width), title in zip(axes, groups, titles, strict=True):
        rows = np.stack(columns[start : start + width], axis=1).reshape(-1, *columns[0].shape[1:])
        ((_, tiles),) = display.panels(rows, "composite")
        draw_tiles(ax, tiles, width, gap=gap)
        ax.set_xticks(range(width), labels)
        ax.set_title(title, loc="center", fontsize=8.5)
        start += width
    axes[0].set_ylabel("matched pairs")
    axes[1].set_xlabel("position on the path")
    scale_bar(axes[1], tile_width, gap=gap)
    channel_key(axes[1], display, "composite")


def _draw_changes(figure: Figure | SubFigure, path: _Path, n: int) -> None:
    """Heat map of measured source, decoded path, measured target and measured truth.

    Measured columns show the change from the measured source, decoded ones from the decoded source: what the decoder
    gets wrong at both is no change.
    """
    model, cells = path.model, path.cells
    source, target = path.pairs(_MAX_CELLS)
    steps = np.linspace(0.0, 1.0, 9)
    z, batch = path.positions(source, target, steps), path.batch(source, len(steps))
    decoded = decoded_variables(model, z, batch).reshape(len(source), len(steps), -1).mean(axis=0)

    def mean(rows: Index) -> NDArray[np.float64]:
        some = cells[path.some(np.unique(rows), _MAX_CELLS)]
        return np.asarray(normalised(model, model.measurements(some)).mean(axis=0, keepdims=True))

    start = mean(path.source)
    columns = [start, decoded, mean(path.target), *([mean(path.truth)] if len(path.truth) else [])]
    changes = [change(model, values, decoded[0] if values is decoded else start[0]) for values in columns]
    kept = most_changed(np.concatenate([changes[0], changes[2]]), min(_N_VARIABLES, decoded.shape[1]))
    shown = [one[:, kept] for one in changes]
    limit = color_limit(shown)
    widths = [max(len(one), 1.3) for one in shown]
    axes = figure.subplots(1, len(shown), sharey=True, gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
    for ax, title, one in zip(axes, path.titles, shown, strict=True):
        image = heat_map(ax, one, [model.names_[j] for j in kept], limit)
        ticks = [0, len(steps) // 2, len(steps) - 1] if len(one) > 1 else []
        ax.set_xticks(ticks, [f"{steps[i]:g}" for i in ticks])
        ax.set_title(title, loc="center", fontsize=8.5)
        ax.tick_params(axis="y", labelleft=ax is axes[0])
    axes[1].set_xlabel("position on the path")
    change_bar(figure, image, axes, change_label(model, str(path.params["source"])))
