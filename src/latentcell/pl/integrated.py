"""Cells with all their structures: sampled, predicted, or walked through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from latentcell import keys
from latentcell.cells.images import channel_names
from latentcell.cells.levels import column
from latentcell.errors import InputError
from latentcell.pl._images import Display, Pixels, channel_key, draw_tiles, projected, scale_bar
from latentcell.pl._style import MUTED, SMALL, new_figure, note, styled

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from latentcell.model.integrated import IntegratedCell

_TILE = 1.25  # inches
_AXES = {"xy": 2, "xz": 3, "yz": 4}
# channels whose whole range can be laid over each other before everything is white
_FEW = 3


@styled
def integrated(
    cells: AnnData, *, n: int = 6, channels: Sequence[str] | None = None, label: str | None = None
) -> Figure:
    """Draw cells with all their structures, one cell per row.

    Parameters
    ----------
    cells
        From `IntegratedCell.sample` or `IntegratedCell.predict`, or any cells with images.
    n
        Cells at most, the first ones.
    channels
        Which to show; all by default.
    label
        Column of ``obs`` written beside each row.

    Returns
    -------
    Columns: a composite of the first six channels in false colours, then every channel in grey, each with one range
    for all cells. Of volumes the composite is shown as three orthogonal maximum projections, and the channels as
    projections along z. A composite of more than three channels shows the brighter half of each channel's range.
    """
    names = channel_names(cells)
    wanted = names if channels is None else list(channels)
    unknown = [name for name in wanted if name not in names]
    if unknown or not len(cells):
        raise InputError(f"These cells have the channels {', '.join(names)}; asked for: {', '.join(wanted)}.")
    images = np.asarray(cells.obsm[keys.IMAGES][:n])[:, [names.index(name) for name in wanted]].astype(np.float32)
    volumes = images.ndim == 5
    flat = projected(images)
    display = Display.of(flat, wanted)
    bright = _brighter(display) if len(display.in_composite) > _FEW else display
    first = _orthogonal(images, bright) if volumes else next(bright.panels(flat, "composite"))[1]
    grey = [tiles for _, tiles in display.panels(flat, "side_by_side")]
    width = first.shape[2] / flat.shape[3]
    figure = new_figure(_TILE * (width + len(wanted)) + 0.4, _TILE * len(flat) * first.shape[1] / flat.shape[2] + 0.9)
    axes = figure.subplots(1, 1 + len(wanted), width_ratios=[width, *[1] * len(wanted)], squeeze=False)[0]
    draw_tiles(axes[0], first, 1, gap=2)
    axes[0].set_title("xy, xz, yz" if volumes else "composite", loc="center", fontsize=8)
    if label is not None:
        axes[0].set_yticks(range(len(flat)), column(cells, label).astype(str)[:n])
    for i, (ax, name, tiles) in enumerate(zip(axes[1:], wanted, grey, strict=True)):
        draw_tiles(ax, _padded(tiles, first.shape[1]), 1, gap=2)
        ax.set_title(name, loc="center", fontsize=8)
        if i in display.in_composite:
            # its colour in the composite
            ax.plot([0, 1], [1, 1], transform=ax.transAxes, color=display.colors[i], linewidth=4, clip_on=False)
    said = ", the composite shows the brighter half of each channel" if bright is not display else ""
    figure.supxlabel(f"tiles are {flat.shape[3]} pixels wide{said}", x=0.02, ha="left", fontsize=SMALL, color=MUTED)
    return figure


@styled
def organisation(
    model: IntegratedCell,
    cells: AnnData,
    structure: str,
    *,
    vary: Literal["organisation", "shape"] = "organisation",
    n: int = 7,
    n_rows: int = 5,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Walk through one half of the model with the other fixed.

    Parameters
    ----------
    cells
        Cells whose shapes are shown; the first `n_rows` (organisation), or whose codes the walk of shape starts from.
    structure
        Which is drawn, over the reference.
    vary
        ``"organisation"``: each row is a real cell; along it the most used dimension of z_t goes from -2 to 2 SD of its
        prior. ``"shape"``: each row is one organisation, drawn as those of training cells
        are; along it the most used dimension of
        z_r goes from -2 to 2.
    """
    if vary not in ("organisation", "shape"):
        raise InputError(f"vary={vary!r} is unknown; choose 'organisation' or 'shape'.")
    steps, generator = np.linspace(-2, 2, n), np.random.default_rng(rng)
    if vary == "organisation":
        n_rows = min(n_rows, cells.n_obs)
        dimension = int(model.latent_.sort_values("kl", ascending=False)["dimension"].iloc[0])
        given = model.shapes(cells, np.repeat(np.arange(n_rows), n))
        z = np.zeros((n_rows * n, model.n_latent[1]), dtype=np.float32)
        z[:, dimension] = np.tile(steps, n_rows)
        walked = f"organisation, dimension {dimension}"
    else:
        dimension = model.reference_.dimensions_[0]
        shape = np.zeros((n_rows * n, model.n_latent[0]), dtype=np.float32)
        shape[:, dimension] = np.tile(steps, n_rows)
        given = model.shapes_at(shape)
        z = np.repeat(model.organisations(structure, n_rows, generator), n, axis=0)
        walked = f"shape, dimension {dimension}"
    drawn = model.decode(given, z, structure)
    images = projected(np.concatenate([given.reference, drawn[:, None]], axis=1))
    display = Display.of(images, [*model.reference, structure])
    figure = new_figure(_TILE * n + 0.6, _TILE * n_rows * images.shape[2] / images.shape[3] + 1.1)
    ax = figure.subplots()
    draw_tiles(ax, next(display.panels(images, "composite"))[1], n)
    ax.set_xticks(range(n), [f"{step:.1f}" for step in steps])
    ax.set(xlabel=f"{walked} (SD of the prior)", ylabel="cells" if vary == "organisation" else "organisations")
    scale_bar(ax, images.shape[3])
    channel_key(ax, display, "composite")
    return figure


@styled
def predicted(cells: AnnData, truth: AnnData | None = None, *, structure_key: str | None = None, n: int = 5) -> Figure:
    """Draw structures predicted in real cells, with the spread over organisations.

    Parameters
    ----------
    cells
        From `IntegratedCell.predict`.
    truth
        The same cells with a measured target channel, shown beside; by default not.
    structure_key
        Column of ``obs`` of `truth` that names the structure measured in each cell; written beside its row.

    Returns
    -------
    Per structure the prediction over the reference, and the SD over z_t in grey, one cell per row.
    """
    names, spread = channel_names(cells), cells.obsm[keys.SPREAD]
    n_reference, flat = len(names) - spread.shape[1], projected(np.asarray(cells.obsm[keys.IMAGES][:n]))
    columns: list[tuple[str, Pixels]] = []
    display = Display.of(flat[:, :n_reference], names[:n_reference])
    columns.append(("reference", next(display.panels(flat[:, :n_reference], "composite"))[1]))
    if truth is not None:
        measured = projected(np.asarray(truth.obsm[keys.IMAGES][:n], dtype=np.float32))
        others = [i for i, name in enumerate(channel_names(truth)) if name not in names[:n_reference]]
        for i in others:
            own = Display.of(measured[:, [i]], [channel_names(truth)[i]])
            columns.append((f"measured: {own.names[0]}", next(own.panels(measured[:, [i]], "side_by_side"))[1]))
    for i, name in enumerate(names[n_reference:]):
        shown, sd = flat[:, [n_reference + i]], projected(np.asarray(spread[:n, [i]]))
        both = Display.of(shown, [name])
        columns.append((name, next(both.panels(shown, "side_by_side"))[1]))
        brightest = np.maximum(np.percentile(sd, [99.7]), 1e-12)
        white = float(brightest[0] / (both.high - both.low)[0])
        zeroed = Display(["SD"], np.zeros(1), brightest)
        columns.append((f"SD, white at\n{white:.0%} of range", next(zeroed.panels(sd, "side_by_side"))[1]))
    figure = new_figure(_TILE * len(columns) + 0.3, _TILE * len(flat) * flat.shape[2] / flat.shape[3] + 1.0)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (title, tiles) in zip(axes, columns, strict=True):
        draw_tiles(ax, tiles, 1, gap=2)
        ax.set_title(title, loc="center", fontsize=8)
    if truth is not None and structure_key is not None:
        axes[0].set_yticks(range(len(flat)), column(truth, structure_key).astype(str)[:n])
    note(
        figure,
        "Predictions are means over draws of the organisation; the SD over draws goes from 0 (black) to a share of the "
        "range of the mean. It holds what shape leaves open about the organisation, not noise. Tiles are "
        f"{flat.shape[3]} pixels wide.",
        figure.get_figwidth(),
    )
    return figure


def _brighter(display: Display) -> Display:
    return Display(display.names, (display.low + display.high) / 2, display.high)


def _orthogonal(images: Pixels, display: Display) -> Pixels:
    """Composites of volumes ``(n, C, Z, H, W)`` seen along z, with those along y below and along x to the right."""
    seen = {axis: next(display.panels(images.max(axis=at), "composite"))[1] for axis, at in _AXES.items()}
    n, _, depth, height, width = images.shape
    page = np.ones((n, height + depth + 1, width + depth + 1, 3))
    page[:, :height, :width] = seen["xy"]
    page[:, height + 1 :, :width] = seen["xz"]
    page[:, :height, width + 1 :] = seen["yz"].swapaxes(1, 2)
    return page


def _padded(tiles: Pixels, height: int) -> Pixels:
    """Tiles with white below, as tall as others in their row."""
    page = np.ones((len(tiles), max(height, tiles.shape[1]), *tiles.shape[2:]))
    page[:, : tiles.shape[1]] = tiles
    return page
