"""The latent space decoded: a grid over two dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell.errors import InputError
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
)
from latentcell.pl._walk import QUANTILES, Walk, dimension_label, position_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from latentcell.model.vae import VAE

_SIDE, _WIDEST = 7.0, 15.0  # inches of one grid, and of several side by side
_MAP = 4.2  # inches of a heat map
_N_VARIABLES = 25


@styled
def latent_grid(
    model: VAE,
    *,
    dims: tuple[int, int] | None = None,
    n: int = 13,
    cells: AnnData | None = None,
    channels: Channels = "composite",
    batch: Any = None,
    sharp: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw the latent space decoded over two dimensions.

    Images: an `n` x `n` grid of decoded means (Kingma & Welling 2014, figure 4), with one intensity range per channel
    for the whole grid; volumes as maximum projections. Counts and profiles: for each of the two dimensions a heat map
    of the 25 most changed variables, from the centre: log2 fold change of expected counts per 10,000 (one added), or
    SD of the training cells.

    Parameters
    ----------
    model
        A fitted `latentcell.VAE`.
    dims
        Two latent dimensions, along x and along y; by default the two with the highest KL.
    n
        Steps along each dimension, at the quantiles 0.02 to 0.98 of the prior; all other dimensions stay at 0.
    cells
        Walk through the quantiles of these cells' posterior means instead, other dimensions at their median.
    channels
        ``"composite"`` in false colours (six channels at most), or ``"side_by_side"`` in grey with an intensity scale.
    batch
        Level of the batch column to decode; by default the average of the training levels.
    sharp
        For images: tiles with drawn texture instead of decoded means (after ``model.fit_refiner``), labelled so. All
        start from the same noise.
    rng
        Draws the texture.

    Raises
    ------
    InputError
        If the dimensions do not exist or are the same, or `n` is below 2.
    """
    check_channels(channels)
    check_sharp(model, sharp)
    if dims is None and model.n_latent < 2:
        raise InputError("The model has one latent dimension and a grid needs two: use traversal.")
    pair = tuple(model.dimensions_[:2]) if dims is None else tuple(dims)
    if len(pair) != 2 or pair[0] == pair[1]:
        raise InputError(f"dims is {pair}: a grid is drawn over two different latent dimensions, such as (0, 1).")
    walk = Walk.through(model, pair, n, cells)
    if model.modality_ == "images":
        tiles = decoded_tiles(model, walk.plane(), batch, sharp=sharp, rng=rng)
        return _image_grid(model, walk, channels, tiles, "prior" if cells is None else "cells'")
    return _variable_grid(model, walk, batch)


def _image_grid(model: VAE, walk: Walk, channels: Channels, decoded: tuple[Pixels, str], whose: str) -> Figure:
    images, drawn = decoded
    display = Display.of(images, model.names_)
    panels = list(display.panels(images, channels))
    n_columns = min(len(panels), 3)
    side, n_rows = min(_SIDE, _WIDEST / n_columns), -(-len(panels) // n_columns)
    height = side * images.shape[2] / images.shape[3] + (0.75 if channels == "composite" else 1.4)
    figure = new_figure((side + 0.6) * n_columns + 0.2, height * n_rows)
    axes = panel_axes(figure, len(panels), n_columns)
    n = walk.values.shape[1]
    x, y = (
        f"{dimension_label(model, dim)}   ({whose} quantiles {QUANTILES[0]} to {QUANTILES[1]})" for dim in walk.dims
    )
    for channel, (ax, (name, tiles)) in enumerate(zip(axes, panels, strict=True)):
        draw_tiles(ax, tiles, n)
        ax.set_xticks(range(n), position_labels(walk.values[0]))
        ax.set_yticks(range(n), position_labels(walk.values[1][::-1]))
        ax.set(xlabel=x, ylabel=y if channel % n_columns == 0 else "")
        ax.set_title(name, loc="center")
        if channels == "side_by_side":
            intensity_bar(ax, display, channel)
    scale_bar(axes[0], images.shape[3])
    channel_key(axes[0], display, channels)
    if drawn:
        note(figure, drawn, figure.get_figwidth())
    return figure


def _variable_grid(model: VAE, walk: Walk, batch: Any) -> Figure:
    centre = decoded_variables(model, walk.base[None], batch)[0]
    changes = change(model, decoded_variables(model, walk.along_each(), batch), centre)
    n = walk.values.shape[1]
    n_variables = min(_N_VARIABLES, changes.shape[1])
    shown = []
    for i in range(2):
        one = changes[i * n : (i + 1) * n]
        kept = most_changed(one, n_variables)
        shown.append((one[:, kept], [model.names_[j] for j in kept]))
    limit = color_limit([one for one, _ in shown])
    width = 2 * _MAP + sum(label_width(names) for _, names in shown)
    figure = new_figure(width, 1.6 + 0.2 * n_variables)
    axes = figure.subplots(1, 2)
    for ax, dim, values, (one, names) in zip(axes, walk.dims, walk.values, shown, strict=True):
        image = heat_map(ax, one, names, limit)
        ax.set_xticks(range(n), position_labels(values))
        ax.set_xlabel(dimension_label(model, dim))
    change_bar(figure, image, axes, change_label(model, "the centre"))
    return figure
