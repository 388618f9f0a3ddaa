"""Where on the cell each latent dimension and each factor acts, channel by channel."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell import keys
from latentcell.errors import InputError, listed
from latentcell.pl._images import Pixels, projected
from latentcell.pl._style import INK, MUTED, SMALL, new_figure, note, shortened, styled
from latentcell.pl.factors import LEVEL, answered, dimension_titles, used

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE

CORRELATION, DIFFERENCE = "correlation", "difference in SD"
"""Units of effects: of numbers, and of the levels of a factor, which are either there or not."""

_TILE, _WIDEST, _LABEL = 0.95, 9.0, 1.3  # inches of a map, of all maps, and of the names of a block
_FADED = 0.22  # opacity of pixels that are not significant
_LETTERS, _CHANNEL = 20, 14  # characters in a line of a name, and of a channel


@styled
def effects(cells: AnnData, model: VAE, names: Sequence[str | int] | None = None, *, n: int = 8) -> Figure:
    """Draw the effect of each factor and each latent dimension on each pixel, as maps over the mean cell.

    Red: brighter where the factor or dimension is higher; blue: darker. Pixels whose q exceeds 0.05 are faded. Lines:
    outline of the mean cell (decoded from the mean code, on top) at half of its brightness. One symmetric range of
    colours for all correlations, another for all differences between levels. Volumes: the strongest effect along z
    with its sign.

    Parameters
    ----------
    cells
        Images as `latentcell.tl.factors` left them.
    model
        The model that it was run with.
    names
        What to show: dimensions (``3`` or ``"z3"``), factors (``"stage"``) or single levels (``"stage=late"``). By
        default the factors and the most used dimensions, `n` of each at most.
    n
        Factors, and dimensions, shown at most where no names are given.

    Raises
    ------
    InputError
        If no factors were asked for on these cells, they are no images, the model is another one, or a name is unknown.
    """
    result = answered(cells)
    if model.modality_ != "images" or "maps" not in result:
        raise InputError("Effect maps need images; for counts and profiles use latentcell.pl.volcano(cells).")
    effect, q = (np.asarray(result["maps"][name], dtype=np.float64) for name in ("effect", "q"))
    if effect.shape[1:] != tuple(model.schema_.shape):
        raise InputError(
            f"The maps are of images {effect.shape[1:]}, but the model decodes {tuple(model.schema_.shape)}: give the "
            "model that latentcell.tl.factors was run with."
        )
    named = [str(name) for name in result["map_names"]]
    blocks = _blocks(result, named, names, n)
    maps = {
        name: _Maps(*_strongest(effect[i], q[i]), unit(cells, name))
        for i, name in enumerate(named)
        if any(name in block for block in blocks.values())
    }
    code = np.asarray(cells.obsm[keys.FACTORS]).mean(0, keepdims=True)
    mean = projected(model.decode(code))[0]
    figure = _drawn(blocks, maps, mean, model.names_, dimension_titles(cells))
    note(figure, _said(maps, len(named), result["effects"]), figure.get_figwidth())
    return figure


@dataclass(frozen=True)
class _Maps:
    """Effects of one column on pixels and their q, each ``(C, H, W)``, and the unit."""

    effect: NDArray[np.float64]
    q: NDArray[np.float64]
    unit: str


def unit(cells: AnnData, name: str) -> str:
    """Unit of the effect of the column `name` of ``uns["factors"]``.

    The effect of what has two values, such as a level of a factor, is a difference in SD; of anything else a
    correlation.
    """
    two = name in cells.obs and cells.obs[name].nunique() == 2
    return DIFFERENCE if two or "=" in name else CORRELATION


def chosen(named: Sequence[str], asked: Sequence[str | int]) -> list[str]:
    """Those columns `named` in ``uns["factors"]`` that are `asked` for, factors with all of their columns.

    Raises
    ------
    InputError
        If one is unknown.
    """
    found: list[str] = []
    for each in asked:
        name = str(each) if isinstance(each, str) else f"z{each}"
        columns = [column for column in named if column == name or column.startswith((f"{name}=", f"{name} ("))]
        if not columns:
            raise InputError(f"{name!r} is no dimension in use and no factor here; there are: {listed(named, 24)}.")
        found += columns
    return list(dict.fromkeys(found))


def defaults(result: dict[str, Any], named: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns `named` in ``uns["factors"]``: factors as asked for; dimensions, the best of each first, then by use."""
    related = result["relations"]
    found = related[related["p"] <= LEVEL].sort_values("correlation", ascending=False, kind="stable")
    best = found.drop_duplicates("factor").sort_index()["dimension"]
    order = list(dict.fromkeys([*(f"z{k}" for k in best), *(f"z{k}" for k in used(result["dimensions"])["dimension"])]))
    dimensions = [name for name in order if name in named]
    of = result["effects"].drop_duplicates("name").set_index("name")["of"]
    return [name for name in named if of.get(name, "factor") == "factor"], dimensions


def _blocks(
    result: dict[str, Any], named: list[str], names: Sequence[str | int] | None, n: int
) -> dict[str, list[str]]:
    """Columns to draw: those of factors and those of dimensions."""
    factors, dimensions = defaults(result, named)
    if names is None:
        if n < 1:
            raise InputError(f"n is {n}: show at least one factor and dimension.")
        blocks = {"Factors": factors[:n], "Latent dimensions": dimensions[:n]}
    else:
        few = chosen(named, names)
        blocks = {
            "Factors": [name for name in few if name in factors],
            "Latent dimensions": [name for name in few if name not in factors],
        }
    blocks = {title: members for title, members in blocks.items() if members}
    if not blocks:
        raise InputError("names is empty: name at least one dimension or factor.")
    return blocks


def _strongest(effect: NDArray[np.float64], q: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Maps ``(C, H, W)``: of volumes ``(C, Z, H, W)`` the voxel with the strongest effect along z, and its q."""
    effect = np.nan_to_num(effect)
    if effect.ndim == 3:
        return effect, q
    most = np.abs(effect).argmax(axis=1)[:, None]
    return np.take_along_axis(effect, most, axis=1)[:, 0], np.take_along_axis(q, most, axis=1)[:, 0]


def _drawn(
    blocks: dict[str, list[str]], maps: dict[str, _Maps], mean: Pixels, channels: Sequence[str], titles: dict[int, str]
) -> Figure:
    n_channels, n_rows = len(channels), max(len(block) for block in blocks.values())
    tile = min(_TILE, _WIDEST / (n_channels * len(blocks)))
    width = len(blocks) * (n_channels * tile + _LABEL) + 0.3
    figure = new_figure(width, (n_rows + 1) * (tile * mean.shape[1] / mean.shape[2] + 0.06) + 1.9)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.01, hspace=0.01)  # type: ignore[union-attr,call-arg]
    axes = figure.subplots(n_rows + 1, n_channels * len(blocks), squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    units = sorted({each.unit for each in maps.values()})
    limits = {kind: max(np.abs(m.effect).max() for m in maps.values() if m.unit == kind) for kind in units}
    drawn = {}
    for i, (title, block) in enumerate(blocks.items()):
        part = axes[:, i * n_channels : (i + 1) * n_channels]
        _mean_cell(part[0], mean, channels)
        part[0, 0].set_title(f"{title}\n{shortened(channels[0], _CHANNEL)}")
        for row, name in zip(part[1:], block, strict=False):
            one = maps[name]
            for ax, effect, q, below in zip(row, one.effect, one.q, mean, strict=True):
                drawn[one.unit] = _map(ax, effect, q, below, max(limits[one.unit], 1e-6))
            _label(row[0], _words(name, titles, one.q))
    for kind, image in sorted(drawn.items()):
        bar = figure.colorbar(image, ax=list(axes.ravel()), location="bottom", shrink=0.45, aspect=32, pad=0.02)
        bar.set_label(f"effect on the pixel: {kind}")
        bar.outline.set_linewidth(0.5)
    return figure


def _mean_cell(axes: NDArray[Any], mean: Pixels, channels: Sequence[str]) -> None:
    for ax, one, channel in zip(axes, mean, channels, strict=True):
        _frame(ax)
        ax.imshow(one, cmap="gray", interpolation="nearest")
        ax.set_title(shortened(channel, _CHANNEL))
    _label(axes[0], "mean cell")


def _map(ax: Axes, effect: NDArray[np.float64], q: NDArray[np.float64], mean: NDArray[Any], limit: float) -> AxesImage:
    """Effects of one channel, faded where they are not significant, under the outline of the mean cell."""
    _frame(ax)
    opacity = np.where(q > LEVEL, _FADED, 1.0)
    image = ax.imshow(effect, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=opacity, interpolation="nearest")
    low, high = np.percentile(mean, [1, 99.7])
    if high > low:
        ax.contour(mean, levels=[(low + high) / 2], colors=INK, linewidths=0.7, alpha=0.7)
    return image


def _frame(ax: Axes) -> None:
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set(color=MUTED, linewidth=0.4)


def _label(ax: Axes, words: str) -> None:
    ax.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=SMALL, labelpad=4)


def _words(name: str, titles: dict[int, str], q: NDArray[np.float64]) -> str:
    """Name of a row; for a dimension what it holds and moves; whether any pixel is significant."""
    lines = textwrap.wrap(name, _LETTERS)
    number = name.removeprefix("z")
    if number.isdigit() and int(number) in titles:
        holds, _, variables = titles[int(number)].partition("  ")
        lines = [f"$z_{{{number}}}$", *textwrap.wrap(holds, _LETTERS)]
        lines += [shortened(word, _LETTERS) for word in variables.split()]
    if np.isfinite(q).any() and not (q <= LEVEL).any():
        lines.append(f"no pixel q ≤ {LEVEL:g}")
    return "\n".join(lines)


def _said(maps: dict[str, _Maps], n_columns: int, table: pd.DataFrame) -> str:
    text = (
        "Red: brighter in cells where the factor or dimension is higher; the sign of a dimension is arbitrary. Faded: "
        f"q > {LEVEL:g} over the pixels of a row. Line: half of the brightness of the mean cell."
    )
    untested = [name for name, one in maps.items() if np.isnan(one.q).all()]
    if untested:
        text += (
            f" Not tested, so not faded: {', '.join(untested)}. A code is not tested on the cells that it was trained "
            "on, and too few others are left."
        )
    n = table.groupby("of")["n"].max()
    if not untested and n.get("dimension", np.inf) < n.get("factor", 0):
        text += (
            " Dimensions are tested on fewer cells than factors, those not trained on, so less of them is significant."
        )
    left = n_columns - len(maps)
    return text + (f" {left} more factors and dimensions are not shown." if left else "")
