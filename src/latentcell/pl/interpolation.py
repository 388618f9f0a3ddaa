"""From source to target: the decoded path, the true cells between, and how near the prediction comes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell import keys
from latentcell.pl._images import (
    DRAWN,
    Display,
    Pixels,
    channel_key,
    check_sharp,
    draw_tiles,
    projected_blocks,
    scale_bar,
    seed_of_texture,
)
from latentcell.pl._route import SOURCE, TARGET, TRUTH, Route, some
from latentcell.pl._style import new_figure, note, styled
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
from latentcell.pl.evaluation import draw_evaluation, height_of, of_metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.pl._route import Index

_TILE = 0.92  # inches
_N_STEPS, _N_MAP_STEPS = 5, 9
_N_VARIABLES = 25
_HEAT_NOTE = (
    "Measured columns show the change from the measured source, decoded ones from the decoded source. A decoder draws "
    "changes weaker than measured, most of all those of variables that it hardly learnt."
)
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
    sharp: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw a predicted path between two populations, beside the truth where it is known, and its evaluation.

    Images: a film strip of `n` matched pairs, one per row: the measured source cell, decoded means along the path,
    the measured target cell; then measured and decoded cells of the true level (not matched: no cell is followed).
    Counts and profiles: heat map of the 25 variables that change most along the path, averaged over pairs, between
    the measured means of source, target and truth. Below: each method's distance to the truth (see `evaluation`).

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
    sharp
        For images: decoded tiles with drawn texture (after ``model.fit_refiner``), labelled so. A row keeps its
        texture from step to step.
    rng
        Chooses pairs and true cells, and draws the texture.

    Raises
    ------
    InputError
        If `predicted` does not come from `latentcell.tl.interpolate`, its cells are not in `cells`, the metric was not
        evaluated, or the model cannot draw sharp images.
    """
    check_sharp(model, sharp)
    route = Route.of(predicted, cells, model)
    result = predicted.uns[keys.INTERPOLATE]
    table = of_metric(result.get("evaluation"), metric)
    rng = np.random.default_rng(rng)
    if model.modality_ == "images":
        strip = _Strip(route, route.some_pairs(n, rng), sharp, rng)
        width, height, draw = strip.width, strip.height, strip.draw
    else:
        width, height = 7.8 + label_width(model.names_), 2.2 + 0.2 * min(_N_VARIABLES, len(model.names_))
        draw = partial(_draw_heat_map, route, rng, width)
    if table is None:
        figure = new_figure(width, height)
        draw(figure)
        return figure
    width = max(width, 8.0)
    below = height_of(table, width)
    figure = new_figure(width, height + below)
    halves = figure.add_gridspec(2, 1, height_ratios=[height, below])
    draw(figure.add_subfigure(halves[0]))
    draw_evaluation(figure.add_subfigure(halves[1]), table, dict(result.get("verdict", {})), width)
    return figure


class _Strip:
    """Panels side by side: measured source, decoded steps, measured target and, where known, the truth."""

    def __init__(self, route: Route, index: Index, sharp: bool, rng: np.random.Generator) -> None:
        self.route, self.index, self.sharp, self.rng = route, index, sharp, rng
        self.steps = route.steps(_N_STEPS)
        shape = route.course.model.schema_.shape
        n_tiles = len(self.steps) + 2 + 2 * (len(route.truth) > 0)
        self.width = n_tiles * _TILE + 1.2
        self.height = len(index) * _TILE * shape[-2] / shape[-1] + 1.1 + 0.3 * sharp

    def draw(self, figure: Figure | SubFigure) -> None:
        """Draw on `width` by `height` inches."""
        route, n_steps = self.route, len(self.steps)
        pairs = route.pairs.take(self.index)
        measured = [self._measured(pairs.source.rows), self._measured(pairs.target.rows)]
        columns = [measured[0], *self._decoded(), measured[1]]
        groups = [(["measured"], 1), (route.labels(self.steps), n_steps), (["measured"], 1)]
        how = "drawn texture" if self.sharp else "decoded"
        titles = [_title(route, SOURCE), f"{how} along the path\n{route.axis}", _title(route, TARGET)]
        if len(route.truth):
            columns += self._truth(len(self.index))
            groups.append((["measured", "drawn" if self.sharp else "decoded"], 2))
            titles.append(_title(route, TRUTH))
        display = Display.of(np.concatenate(measured), route.course.model.names_)
        _draw_groups(figure, columns, groups, titles, display)
        if self.sharp:
            note(figure, DRAWN + " A row keeps its noise along the path.", self.width)

    def _decoded(self) -> list[Pixels]:
        """Tiles of every step; the same texture at every step of a pair."""
        model, batch = self.route.course.model, self.route.batch(self.index)
        options: dict[str, Any] = {"sharp": True, "rng": seed_of_texture(self.rng)} if self.sharp else {}

        def decode(z: NDArray[Any]) -> Callable[[slice], NDArray[Any]]:
            # a block starts anew with the seed, so sharp tiles are drawn in one
            return lambda part: model.decode(z[part], batch=None if batch is None else batch[part], **options)

        positions = [self.route.located(self.index, t) for t in self.steps]
        shape = (1,) if self.sharp else model.schema_.shape
        return [projected_blocks(decode(z), len(z), shape) for z in positions]

    def _measured(self, rows: Index) -> Pixels:
        model, cells = self.route.course.model, self.route.course.cells
        return projected_blocks(lambda part: model.measurements(cells[rows[part]]), len(rows), model.schema_.shape)

    def _truth(self, n: int) -> list[Pixels]:
        """`n` true cells as measured and as decoded, below them background where there are fewer."""
        model, cells = self.route.course.model, self.route.course.cells
        rows = some(self.route.truth, n, self.rng)
        options: dict[str, Any] = {"sharp": True, "rng": self.rng} if self.sharp else {}
        back = projected_blocks(
            lambda part: model.reconstruct(cells[rows[part]], **options), len(rows), model.schema_.shape
        )
        measured = self._measured(rows)
        blank = np.full((n - len(rows), *measured.shape[1:]), -np.inf, dtype=np.float32)
        return [np.concatenate([images, blank]) for images in (measured, back)]


def _title(route: Route, role: str) -> str:
    return f"{role}\n{route.level(role, 16)}"


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
    scale_bar(axes[1], tile_width, gap=gap)
    channel_key(axes[1], display, "composite")


def _draw_heat_map(route: Route, rng: np.random.Generator, width: float, figure: Figure | SubFigure) -> None:
    """Heat map of measured source, decoded path, measured target and measured truth.

    Measured columns show the change from the measured source, decoded ones from the decoded source: what the decoder
    gets wrong at both is no change.
    """
    model, cells = route.course.model, route.course.cells
    steps = np.linspace(0.0, 1.0, _N_MAP_STEPS)
    index = some(np.arange(len(route.pairs)), _MAX_CELLS, rng)
    batch = route.batch(index)
    decoded = np.stack([decoded_variables(model, route.located(index, t), batch).mean(axis=0) for t in steps])

    def mean(rows: Index) -> NDArray[np.float64]:
        measured = model.measurements(cells[some(rows, _MAX_CELLS, rng)])
        return np.asarray(normalised(model, measured).mean(axis=0, keepdims=True))

    start, end = mean(route.course.source.rows), mean(route.course.target.rows)
    columns = {SOURCE: start, "": decoded, TARGET: end} | ({TRUTH: mean(route.truth)} if len(route.truth) else {})
    changes = [change(model, values, decoded[0] if values is decoded else start[0]) for values in columns.values()]
    kept = most_changed(np.concatenate([changes[0], changes[2]]), min(_N_VARIABLES, decoded.shape[1]))
    shown = [one[:, kept] for one in changes]
    limit = color_limit(shown)
    widths = [max(len(one), 1.3) for one in shown]
    axes = figure.subplots(1, len(shown), sharey=True, gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
    for ax, role, one in zip(axes, columns, shown, strict=True):
        image = heat_map(ax, one, [model.names_[j] for j in kept], limit)
        ticks = np.array([0, len(steps) // 2, len(steps) - 1] if len(one) > 1 else [], dtype=int)
        ax.set_xticks(ticks, route.labels(steps[ticks]))
        ax.set_title(_title(route, role) if role else "decoded along the path\n", loc="center", fontsize=8.5)
        ax.tick_params(axis="y", labelleft=ax is axes[0])
    axes[1].set_xlabel(route.axis)
    change_bar(figure, image, axes, change_label(model, route.level(SOURCE)))
    note(figure, _HEAT_NOTE, width)
