"""Each latent dimension walked by itself."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell.errors import InputError, listed
from latentcell.pl._images import (
    Channels,
    Display,
    Pixels,
    channel_key,
    check_channels,
    check_sharp,
    decoded_tiles,
    draw_tiles,
    intensity_bar,
    panel_axes,
    scale_bar,
)
from latentcell.pl._style import SMALL, new_figure, note, styled
from latentcell.pl._variables import (
    change,
    change_bar,
    change_label,
    color_limit,
    decoded_variables,
    heat_map,
    label_width,
    most_changed,
)
from latentcell.pl._walk import QUANTILES, Walk, dimension_label, position_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from latentcell.model.vae import VAE

_TILE = 0.72  # inches
_N_VARIABLES = 10
_LETTERS, _LETTER, _LINE = 24, 0.062, 0.135  # in a line of a title; inches of a letter and of a line
_COLUMNS, _MAP, _WIDEST = 4, 2.2, 14.0  # heat maps in a row; inches of one, and of all with their names


@styled
def traversal(
    model: VAE,
    *,
    n_dims: int = 8,
    n: int = 9,
    cells: AnnData | None = None,
    channels: Channels = "composite",
    batch: Any = None,
    sharp: bool = False,
    titles: Mapping[int, str] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw what each latent dimension does, the most used first.

    Images: one row per dimension, walked at the quantiles 0.02 to 0.98 of the prior with all others at 0 (decoded
    means, one intensity range per channel, volumes as maximum projections). Counts and profiles: one heat map per
    dimension of its 10 most changed variables (see `latent_grid`).

    Parameters
    ----------
    model
        A fitted `latentcell.VAE`.
    n_dims
        Dimensions shown, by their KL; all if there are fewer.
    n
        Steps along each.
    cells
        Walk through the quantiles of these cells' posterior means instead, other dimensions at their median.
    channels
        ``"composite"`` or ``"side_by_side"`` (see `latent_grid`).
    batch
        Level of the batch column to decode; by default the average of the training levels.
    sharp
        For images: tiles with drawn texture instead of decoded means (after ``model.fit_refiner``), labelled so. All
        start from the same noise.
    titles
        What each dimension is, in words, said below its name; `latentcell.pl.dimension_titles` makes them from
        factors.
    rng
        Draws the texture.

    Raises
    ------
    InputError
        If no dimension is asked for, `n` is below 2, or `titles` names a dimension that the model has not.
    """
    check_channels(channels)
    check_sharp(model, sharp)
    if n_dims < 1:
        raise InputError(f"n_dims is {n_dims}: show at least one latent dimension.")
    unknown = sorted(set(titles or {}) - set(range(model.n_latent)), key=str)
    if unknown:
        raise InputError(
            f"titles names {listed(unknown)}, but the model has {model.n_latent} latent dimensions, counted from 0."
        )
    active = set(model.latent_.loc[model.latent_["active"], "dimension"])
    dims = [dim for dim in model.dimensions_ if dim in active] or model.dimensions_
    walk = Walk.through(model, dims[:n_dims], n, cells)
    if model.modality_ != "images":
        return _heat_maps(model, walk, batch, titles or {})
    decoded = decoded_tiles(model, walk.along_each(), batch, sharp=sharp, rng=rng)
    return _image_rows(model, walk, channels, decoded, titles or {})


def _labels(
    model: VAE, walk: Walk, titles: Mapping[int, str], letters: int, most: int = 6
) -> tuple[list[str], list[list[str]]]:
    """Label of each dimension walked, with its title below, and the lines of its title, `most` of them."""
    lines = []
    for dim in walk.dims:
        below = [line for part in titles.get(dim, "").split("  ") for line in textwrap.wrap(part, letters)]
        lines.append(below if len(below) <= most else [*below[: most - 1], f"{below[most - 1]} …"])
    labels = [dimension_label(model, dim) for dim in walk.dims]
    return ["\n".join([label, *below]) for label, below in zip(labels, lines, strict=True)], lines


def _image_rows(
    model: VAE, walk: Walk, channels: Channels, decoded: tuple[Pixels, str], titles: Mapping[int, str]
) -> Figure:
    images, drawn = decoded
    display = Display.of(images, model.names_)
    panels = list(display.panels(images, channels))
    n_dims, n = walk.values.shape
    n_columns = min(len(panels), 2)
    n_rows, gap = -(-len(panels) // n_columns), max(2, images.shape[3] // 24)
    tile = _TILE * images.shape[2] / images.shape[3]
    height = n_dims * tile + (0.75 if channels == "composite" else 1.4)
    labels, lines = _labels(model, walk, titles, _LETTERS, max(1, int(tile / _LINE) - 1))
    longest = max((len(line) for below in lines for line in below), default=0)
    figure = new_figure((n * _TILE + 0.2) * n_columns + max(1.2, _LETTER * longest + 0.2), height * n_rows)
    axes = panel_axes(figure, len(panels), n_columns)
    same = bool(np.allclose(walk.values, walk.values[0]))
    for channel, (ax, (name, tiles)) in enumerate(zip(axes, panels, strict=True)):
        draw_tiles(ax, tiles, n, gap=gap)
        if channel % n_columns == 0:
            ax.set_yticks(range(n_dims), labels)
            ax.tick_params(axis="y", labelsize=SMALL if longest else 9)
        steps = position_labels(walk.values[0]) if same else [f"{q:.2f}" for q in np.linspace(*QUANTILES, n)]
        ax.set_xticks(range(n), steps)
        ax.set_xlabel("latent position" if same else "quantile of the cells' positions")
        ax.set_title(name, loc="center")
        if channels == "side_by_side":
            intensity_bar(ax, display, channel)
    scale_bar(axes[0], images.shape[3], gap=gap)
    channel_key(axes[0], display, channels)
    if drawn:
        note(figure, drawn, figure.get_figwidth())
    return figure


def _heat_maps(model: VAE, walk: Walk, batch: Any, titles: Mapping[int, str]) -> Figure:
    centre = decoded_variables(model, walk.base[None], batch)[0]
    changes = change(model, decoded_variables(model, walk.along_each(), batch), centre)
    n_dims, n = walk.values.shape
    n_variables = min(_N_VARIABLES, changes.shape[1])
    per_dim = [changes[i * n : (i + 1) * n] for i in range(n_dims)]
    kept = [most_changed(one, n_variables) for one in per_dim]
    limit = color_limit([one[:, few] for one, few in zip(per_dim, kept, strict=True)])
    names = [[model.names_[j] for j in few] for few in kept]
    width = _MAP + max(label_width(few) for few in names)
    n_columns = max(1, min(_COLUMNS, n_dims, int(_WIDEST / width)))
    n_rows = -(-n_dims // n_columns)
    labels, lines = _labels(model, walk, titles, max(_LETTERS, int(_MAP / _LETTER)))
    above = _LINE * max(len(below) for below in lines)
    figure = new_figure(width * n_columns + 0.2, n_rows * (0.7 + above + 0.19 * n_variables) + 0.9)
    axes = panel_axes(figure, n_dims, n_columns)
    for i, ax in enumerate(axes):
        image = heat_map(ax, per_dim[i][:, kept[i]], names[i], limit)
        few = sorted({0, n // 2, n - 1})
        ax.set_xticks(few, position_labels(walk.values[i][few]))
        ax.set_title(labels[i], fontsize=8.5 if above else None)
    change_bar(figure, image, axes, change_label(model, "the centre"))
    return figure
