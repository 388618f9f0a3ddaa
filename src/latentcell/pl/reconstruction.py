"""What the model keeps of real cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from latentcell.errors import InputError
from latentcell.pl._images import (
    DRAWN,
    Channels,
    Display,
    channel_key,
    check_channels,
    check_sharp,
    draw_tiles,
    intensity_bar,
    projected_blocks,
    scale_bar,
)
from latentcell.pl._style import ACCENT, INK, MUTED, SECOND, new_figure, note, styled
from latentcell.pl._variables import Table

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from latentcell.model.vae import VAE

_TILE = 0.95  # inches
# from a blue that a single value is still seen in
_DENSITY = LinearSegmentedColormap.from_list("density", ["#c3d9ee", "#4292c6", "#08306b"])
# cells behind the scatter plots of counts and profiles
_MAX_CELLS = 1000


@styled
def reconstruction(
    model: VAE,
    cells: AnnData,
    *,
    n: int = 10,
    channels: Channels = "composite",
    sharp: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Draw measured cells and what the model makes of them.

    Images: `n` random cells as the model sees them (turned, if it aligns) above their reconstructions, with the same
    intensity range. Counts and profiles, for at most 1,000 random cells: observed against expected values, counts as
    log1p at each cell's own library size, profiles in SD of the training cells; on the left the means per variable
    (counts) or the correlation within each variable (profiles), on the right the correlation within each cell.

    Parameters
    ----------
    model
        A fitted `latentcell.VAE`.
    cells
        Cells to show; held-out ones show what the model learnt rather than remembered.
    n
        Images shown.
    channels
        ``"composite"`` or ``"side_by_side"`` (see `latent_grid`).
    sharp
        For images: a third row with drawn texture (after ``model.fit_refiner``).
    rng
        Chooses the cells and draws the texture.

    Raises
    ------
    InputError
        If there are no cells, or they do not match the model.
    """
    check_channels(channels)
    check_sharp(model, sharp)
    if cells.n_obs == 0 or n < 1:
        raise InputError(f"There is nothing to show: {cells.n_obs} cells, n is {n}.")
    wanted = n if model.modality_ == "images" else _MAX_CELLS
    rng = np.random.default_rng(rng)
    rows = np.sort(rng.choice(cells.n_obs, min(wanted, cells.n_obs), replace=False))
    if model.modality_ != "images":
        return _values(model, cells[rows])
    return _images(model, cells[rows], channels, rng if sharp else None)


def _images(model: VAE, cells: AnnData, channels: Channels, texture: np.random.Generator | None) -> Figure:
    shape, n = model.schema_.shape, cells.n_obs
    measured = projected_blocks(lambda part: model.measurements(cells[part]), n, shape)
    rows = {"measured": measured, "decoded": projected_blocks(lambda part: model.reconstruct(cells[part]), n, shape)}
    if texture is not None:
        rows["drawn texture"] = projected_blocks(
            lambda part: model.reconstruct(cells[part], sharp=True, rng=texture), n, shape
        )
    display = Display.of(measured, model.names_)
    panels = list(display.panels(np.concatenate(list(rows.values())), channels))
    gap = max(2, measured.shape[3] // 24)
    height = len(rows) * _TILE * measured.shape[2] / measured.shape[3] + 0.25
    bar = 0.6 if channels == "side_by_side" else 0.0
    figure = new_figure(n * _TILE + 0.9, (height + bar) * len(panels) + 0.35)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for channel, (ax, (name, tiles)) in enumerate(zip(axes, panels, strict=True)):
        draw_tiles(ax, tiles, n, gap=gap)
        ax.set_yticks(range(len(rows)), list(rows), fontsize=9)
        ax.set_title(name, loc="center")
        if channels == "side_by_side":
            intensity_bar(ax, display, channel)
    scale_bar(axes[0], measured.shape[3], gap=gap)
    channel_key(axes[0], display, channels)
    if texture is not None:
        note(figure, DRAWN, figure.get_figwidth())
    return figure


def _values(model: VAE, cells: AnnData) -> Figure:
    measured = np.asarray(model.measurements(cells), dtype=np.float64)
    decoded = np.asarray(model.reconstruct(cells), dtype=np.float64)
    figure = new_figure(10.5, 3.5)
    by_variable, by_value, by_cell = figure.subplots(1, 3)
    if model.modality_ == "counts":
        unit, observed, expected = "log1p counts", np.log1p(measured), np.log1p(decoded)
        _means(by_variable, np.log1p(measured.mean(axis=0)), np.log1p(decoded.mean(axis=0)))
    else:
        # units differ between features: without scaling, the largest would make every correlation look perfect
        location, scale = np.asarray(model.schema_.location), np.asarray(model.schema_.scale)
        unit, observed, expected = "SD", (measured - location) / scale, (decoded - location) / scale
        _correlations(by_variable, observed.T, expected.T, "variables")
    by_value.hexbin(
        observed.ravel(), expected.ravel(), gridsize=50, bins="log", cmap=_DENSITY, mincnt=1, linewidths=0,
        rasterized=True,
    )  # fmt: skip
    _identity(by_value, observed, expected)
    by_value.set(xlabel=f"observed ({unit})", ylabel=f"expected ({unit})")
    by_value.set_title(f"every value of {cells.n_obs:,} cells")
    _correlations(by_cell, observed, expected, "cells")
    return figure


def _means(ax: Axes, observed: Table, expected: Table) -> None:
    ax.plot(observed, expected, ".", color=ACCENT, alpha=0.4, markersize=4, markeredgewidth=0, rasterized=True)
    _identity(ax, observed, expected)
    ax.set(xlabel="observed mean (log1p)", ylabel="expected mean (log1p)")
    ax.set_title(f"{len(observed):,} variables, r = {_correlation(observed, expected):.3f}")


def _identity(ax: Axes, observed: Table, expected: Table) -> None:
    """Line of agreement, and room for all values along both axes alike."""
    ends = min(observed.min(), expected.min()), max(observed.max(), expected.max())
    ax.plot(ends, ends, color=MUTED, linewidth=0.8, zorder=3)


def _correlations(ax: Axes, observed: Table, expected: Table, of: str) -> None:
    """Histogram of the correlation within each row: over the variables of a cell, or the cells of a variable."""
    r = np.array([_correlation(x, y) for x, y in zip(observed, expected, strict=True)])
    r = r[np.isfinite(r)]
    ax.set(xlabel="correlation of observed and expected", ylabel=of)
    if not r.size:
        ax.set_title(f"{of} do not vary")
        return
    ax.hist(r, bins=min(30, max(5, len(r) // 10)), color=ACCENT, alpha=0.75)
    ax.axvline(float(np.median(r)), color=SECOND)
    ax.set_title(f"within {of}, median r = {np.median(r):.3f}", color=INK)


def _correlation(x: Table, y: Table) -> float:
    """Pearson correlation; NaN where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    length = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / length) if length > 0 else float("nan")
