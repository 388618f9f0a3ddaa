"""What all figures share: size of type, colours, and figures that belong to nobody's global state."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from latentcell.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

DPI, SVG_DPI = 150, 100
SMALL = 7.5
"""Points of the type of notes."""
_NOTE_PER_INCH = 17.0  # characters
INK, MUTED, PALE = "#222222", "#777777", "#d9d9d9"
ACCENT, SECOND = "#0072b2", "#d55e00"
# Okabe and Ito (2008) without black and yellow, which are lost on white; then Tol's muted colours
LEVELS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#332288", "#999933",
    "#882255", "#44aa99", "#ddcc77", "#aa4499", "#117733", "#cc6677", "#6699cc", "#661100",
    "#a6d854", "#b15928",
)  # fmt: skip

styled = mpl.rc_context(
    {
        "font.size": 9.0,
        "axes.titlesize": 10.0,
        "axes.labelsize": 9.0,
        "xtick.labelsize": 8.0,
        "ytick.labelsize": 8.0,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "lines.linewidth": 1.6,
        "savefig.facecolor": "white",
        "figure.facecolor": "white",
    }
)
"""Decorator: draw in latentcell's style and leave the user's settings as they were."""


class Drawing(Figure):
    """A figure outside pyplot's registry, so that none leaks, which a notebook still shows."""

    def _repr_png_(self) -> bytes:
        memory = io.BytesIO()
        self.savefig(memory, format="png", dpi=DPI, bbox_inches="tight")
        return memory.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of a size in inches that keeps its labels apart."""
    figure = Drawing(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def root_figure(ax: Axes) -> Figure:
    """Figure that holds `ax`, also when it lies in a subfigure."""
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def filled(text: str, inches: float) -> str:
    """`text` broken into lines that are `inches` wide at most in the small type of notes."""
    return textwrap.fill(text, max(20, int(_NOTE_PER_INCH * inches)))


def note(figure: Figure | SubFigure, text: str, inches: float) -> None:
    """Say below a figure, `inches` wide, what its reader must know."""
    figure.supxlabel(filled(text, inches), x=0.02, ha="left", fontsize=SMALL, color=MUTED)


def shortened(name: str, length: int = 44) -> str:
    """`name` with its middle left out if it is longer than `length`: both ends tell features apart."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PNG (150 dpi) and SVG (text editable, images as pixels).

    Parameters
    ----------
    figure
        Any matplotlib figure.
    path
        Where to: ``run/figures/latent``, also with either suffix, gives ``latent.png`` and ``latent.svg``. Folders are
        made.

    Returns
    -------
    The two paths. Either file appears whole or not at all.
    """
    path = Path(path)
    path = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    written = []
    for suffix in ("png", "svg"):
        target = path.with_name(f"{path.name}.{suffix}")
        # a fixed salt and no date: the same figure gives the same file
        metadata = {"Date": None} if suffix == "svg" else None
        with replacing(target) as temporary, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "latentcell"}):
            # the dpi of an SVG is that of the images in it
            figure.savefig(
                temporary,
                dpi=DPI if suffix == "png" else SVG_DPI,
                bbox_inches="tight",
                pad_inches=0.08,
                metadata=metadata,
            )
        written.append(target)
    return written
