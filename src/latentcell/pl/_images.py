"""Images of cells on the page: one display range per channel and figure, colours, and tiles side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from latentcell.errors import InputError
from latentcell.pl._style import INK

Channels = Literal["composite", "side_by_side"]
Pixels = NDArray[np.floating[Any]]

# colours that add up to near white, so that overlap is seen; told apart by colour-blind readers also by brightness
_DNA_COLOR = "#3a78ff"
_COLORS = ("#2fd65f", "#ff3fc8", "#ffb000", "#35d6e8", "#ff5a3c")
_DNA = re.compile(r"dna|dapi|hoechst|h2b|nucle|histone|chromatin|draq|sytox", re.IGNORECASE)
# decoded pixels held at once while volumes are projected
_BLOCK_VALUES = 2**25


def projected(images: NDArray[Any]) -> Pixels:
    """Maximum over z of volumes ``(n, C, Z, H, W)``; flat images as they are; float32."""
    flat = images.max(axis=2) if images.ndim == 5 else images
    return np.asarray(flat, dtype=np.float32)


def projected_blocks(make: Callable[[slice], NDArray[Any]], n: int, shape: Sequence[int]) -> Pixels:
    """Images ``(n, C, H, W)`` made block by block, so that decoded volumes never lie in memory all at once."""
    step = max(1, _BLOCK_VALUES // int(np.prod(shape)))
    return np.concatenate([projected(make(slice(start, min(start + step, n)))) for start in range(0, n, step)])


@dataclass(frozen=True)
class Display:
    """How intensities become brightness: one linear range per channel, the same for every tile of a figure."""

    names: list[str]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, images: Pixels, names: Sequence[str], percentiles: tuple[float, float] = (1.0, 99.7)) -> Display:
        """Range of each channel of ``(n, C, H, W)``: from its background to its bright structures."""
        values = np.moveaxis(images, 1, 0).reshape(images.shape[1], -1)
        low, high = np.percentile(values, percentiles, axis=1)
        return cls(list(names), low, np.where(high > low, high, low + 1.0))

    @property
    def colors(self) -> list[str]:
        """One colour per channel in composites: blue for DNA, white for a single channel."""
        if len(self.names) == 1:
            return ["#ffffff"]
        others = iter(_COLORS * (1 + len(self.names) // len(_COLORS)))
        dna = next((i for i, name in enumerate(self.names) if _DNA.search(name)), None)
        return [_DNA_COLOR if i == dna else next(others) for i in range(len(self.names))]

    @property
    def in_composite(self) -> list[int]:
        """Channels of a composite: more than six cannot be told apart, so DNA and the first five others."""
        order = sorted(range(len(self.names)), key=lambda i: self.colors[i] != _DNA_COLOR)
        return sorted(order[: len(_COLORS) + 1])

    def brightness(self, images: Pixels) -> Pixels:
        """``(n, C, H, W)`` in stored units to 0..1."""
        per_channel = (1, -1, 1, 1)
        span = (self.high - self.low).reshape(per_channel)
        return np.asarray(np.clip((images - self.low.reshape(per_channel)) / span, 0.0, 1.0))

    def panels(self, images: Pixels, channels: Channels) -> Iterator[tuple[str, Pixels]]:
        """Title and tiles ``(n, H, W, 3)`` of each panel: one composite, or one grey panel per channel."""
        bright = self.brightness(images)
        if channels == "side_by_side":
            for name, one in zip(self.names, np.moveaxis(bright, 1, 0), strict=True):
                yield name, np.repeat(one[..., None], 3, axis=-1)
        else:
            kept = self.in_composite
            colors = np.array([to_rgb(self.colors[i]) for i in kept])
            yield "", np.clip(np.einsum("nchw,ck->nhwk", bright[:, kept], colors), 0.0, 1.0)


def check_channels(channels: str) -> None:
    """Refuse an unknown way to show channels."""
    if channels not in get_args(Channels):
        raise InputError(f"channels={channels!r} is unknown; choose 'composite' or 'side_by_side'.")


def montage(tiles: Pixels, n_columns: int, gap: int = 0) -> Pixels:
    """Tiles ``(n, H, W, 3)`` row by row on one white page ``(h, w, 3)``, `gap` pixels apart."""
    n, height, width, _ = tiles.shape
    n_rows = -(-n // n_columns)
    page = np.ones((n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, 3))
    for i, tile in enumerate(tiles):
        row, column = divmod(i, n_columns)
        y, x = row * (height + gap), column * (width + gap)
        page[y : y + height, x : x + width] = tile
    return page


def draw_tiles(ax: Axes, tiles: Pixels, n_columns: int, *, gap: int = 0) -> None:
    """Show a montage with tile (row i, column j) centred at data position (j, i), pixels square, no frame."""
    page = montage(tiles, n_columns, gap)
    height, width = tiles.shape[1] + gap, tiles.shape[2] + gap
    left, top = -tiles.shape[2] / 2 / width, -tiles.shape[1] / 2 / height
    extent = (left, left + page.shape[1] / width, top + page.shape[0] / height, top)
    ax.imshow(page, extent=extent, aspect=height / width, interpolation="antialiased")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set(xticks=[], yticks=[])


def scale_bar(ax: Axes, tile_width: int, *, gap: int = 0) -> None:
    """Bar of a round number of pixels above the upper left corner of a montage."""
    lengths = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    length = max((one for one in lengths if one <= 0.4 * tile_width), default=1)
    left = -tile_width / 2 / (tile_width + gap)
    right = left + length / (tile_width + gap)
    place = ax.get_xaxis_transform()
    ax.plot([left, right], [1.0, 1.0], transform=place, color=INK, linewidth=0, clip_on=False)
    ax.annotate(
        "", (left, 1.0), (right, 1.0), xycoords=place, textcoords=place,
        arrowprops={"arrowstyle": "-", "linewidth": 2.0, "color": INK, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    ax.annotate(f"{length} px", (left, 1.0), (0, 5), xycoords=place, textcoords="offset points", va="bottom")


def channel_key(figure: Figure | SubFigure, display: Display, channels: Channels) -> None:
    """Legend of channel colours at the upper right; nothing where there is one channel or channels stand apart."""
    if channels != "composite" or len(display.names) == 1:
        return
    handles = [Patch(color=display.colors[i], label=display.names[i]) for i in display.in_composite]
    left_out = len(display.names) - len(handles)
    title = f"{left_out} more channels not shown" if left_out else None
    figure.legend(
        handles=handles, loc="outside upper right", ncols=len(handles), title=title,
        handlelength=1.0, handleheight=1.0, handletextpad=0.4, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def intensity_bar(ax: Axes, display: Display, channel: int) -> None:
    """Grey scale of one channel in stored units, beside its panel."""
    scale = ScalarMappable(Normalize(display.low[channel], display.high[channel]), "gray")
    bar = ax.figure.colorbar(scale, ax=ax, orientation="horizontal", shrink=0.5, aspect=25, pad=0.02)
    bar.set_label("intensity, stored units")
    bar.locator = MaxNLocator(4)
    bar.outline.set_linewidth(0.5)
