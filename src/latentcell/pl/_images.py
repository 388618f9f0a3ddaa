"""Images of cells on the page: one display range per channel and figure, colours, and tiles side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from latentcell.errors import InputError
from latentcell.pl._style import INK

if TYPE_CHECKING:
    from latentcell.model.vae import VAE

Channels = Literal["composite", "side_by_side"]
Pixels = NDArray[np.floating[Any]]

# blue with orange is the pair that everybody tells apart; three channels and more cannot do without green and magenta
_DNA_COLOR = "#3a78ff"
_PARTNER_COLOR = "#ffa000"
_COLORS = ("#ff3fc8", "#2fd65f", "#ffb000", "#35d6e8", "#ff5a3c")
_DNA = re.compile(r"dna|dapi|hoechst|h2b|nucle|histone|chromatin|draq|sytox", re.IGNORECASE)
DRAWN = (
    "Drawn texture: the fine structure of these tiles is drawn by the refiner from what it saw in real cells, not "
    "predicted for a cell."
)
_SAME_TEXTURE = " All tiles start from the same noise, so that they differ by their codes alone."
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


def check_sharp(model: VAE, sharp: bool) -> None:
    """Refuse sharp tiles of a model that cannot draw them."""
    if sharp and model.modality_ != "images":
        raise InputError(f"sharp=True draws images; this model was fitted on {model.modality_}.")
    if sharp and not model.refined:
        raise InputError("This model cannot draw sharp images yet: train its refiner first, model.fit_refiner(cells).")


def seed_of_texture(rng: int | np.random.Generator | None) -> int:
    """Seed with which every call draws the same noise."""
    return int(np.random.default_rng(rng).integers(2**32))


def decoded_tiles(
    model: VAE, z: NDArray[Any], batch: Any, *, sharp: bool, rng: int | np.random.Generator | None
) -> tuple[Pixels, str]:
    """Decoded means ``(n, C, H, W)``, or cells drawn from one and the same noise; with what a note must say of them."""
    if not sharp:
        return projected_blocks(lambda rows: model.decode(z[rows], batch=batch), len(z), model.schema_.shape), ""
    seed = seed_of_texture(rng)
    drawn = [projected(model.decode(one[None], batch=batch, sharp=True, rng=seed)) for one in z]
    return np.concatenate(drawn), DRAWN + _SAME_TEXTURE


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
        """One colour per channel in composites: blue for DNA (or the first of two), white for a single channel."""
        n = len(self.names)
        dna = next((i for i, name in enumerate(self.names) if _DNA.search(name)), 0 if n == 2 else None)
        if n < 3:
            return ["#ffffff"] if n == 1 else [_DNA_COLOR if i == dna else _PARTNER_COLOR for i in range(n)]
        others = iter(_COLORS * (1 + n // len(_COLORS)))
        return [_DNA_COLOR if i == dna else next(others) for i in range(n)]

    @property
    def in_composite(self) -> list[int]:
        """Channels of a composite: more than six cannot be told apart, so DNA and the first five others."""
        colors = self.colors
        order = sorted(range(len(colors)), key=lambda i: colors[i] != _DNA_COLOR)
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
            yield "", _screened(bright, self.colors, self.in_composite)


def _screened(bright: Pixels, colors: Sequence[str], kept: Sequence[int]) -> Pixels:
    """Composite ``(n, H, W, 3)`` of lights laid over each other (screen blending): overlap brightens without a cut."""
    dark = np.ones((len(bright), *bright.shape[2:], 3))
    for channel in kept:
        dark *= 1.0 - bright[:, channel, ..., None] * np.array(to_rgb(colors[channel]))
    return np.asarray(1.0 - dark)


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
    figure = ax.get_figure(root=True)
    assert figure is not None
    above = ax.get_xaxis_transform() + ScaledTranslation(0.0, 6 / 72, figure.dpi_scale_trans)
    ax.plot([left, right], [1, 1], transform=above, color=INK, linewidth=2, clip_on=False, solid_capstyle="butt")
    ax.annotate(
        f"{length} px", (right, 1.0), (4, 6), xycoords=ax.get_xaxis_transform(), textcoords="offset points", va="center"
    )


def channel_key(ax: Axes, display: Display, channels: Channels) -> None:
    """Legend of channel colours above the right end of `ax`; none where channels need none."""
    if channels != "composite" or len(display.names) == 1:
        return
    handles = [Patch(color=display.colors[i], label=display.names[i]) for i in display.in_composite]
    left_out = len(display.names) - len(handles)
    if left_out:
        handles.append(Patch(alpha=0.0, label=f"({left_out} more not shown)"))
    ax.legend(
        handles=handles, ncols=len(handles), handlelength=1.0, handleheight=1.0, handletextpad=0.4,
        columnspacing=1.2, borderpad=0.1, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2,
    )  # fmt: skip


def intensity_bar(ax: Axes, display: Display, channel: int) -> None:
    """Grey scale of one channel in stored units, below its panel."""
    scale = ScalarMappable(Normalize(display.low[channel], display.high[channel]), "gray")
    bar = ax.figure.colorbar(scale, ax=ax, orientation="horizontal", shrink=0.4, aspect=30, pad=0.02)
    bar.set_label("intensity, stored units")
    bar.locator = MaxNLocator(4)
    bar.outline.set_linewidth(0.5)


def panel_axes(figure: Figure, n: int, n_columns: int) -> list[Axes]:
    """Axes for `n` panels in rows of `n_columns`."""
    axes = figure.subplots(-(-n // n_columns), n_columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_axis_off()
    return list(axes[:n])
