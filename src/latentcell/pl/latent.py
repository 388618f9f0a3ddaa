"""Cells in the latent space, seen in two dimensions."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from latentcell import keys
from latentcell.errors import InputError
from latentcell.pl._style import ACCENT, LEVELS, PALE, new_figure, root_figure, shortened, styled

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_SIDE = 4.8  # inches of the map

Map = Literal["pca", "umap"] | tuple[int, int]


@styled
def latent(
    cells: AnnData,
    *,
    color: str | None = None,
    key: str = keys.VAE,
    method: Map = "pca",
    ax: Axes | None = None,
) -> Figure:
    """Draw cells where they lie in the latent space, coloured by an annotation.

    Parameters
    ----------
    cells
        Embedded cells (`latentcell.tl.embed`).
    color
        Column of ``obs``: text, categories and booleans with one colour per level (the 18 most frequent; the rest in
        grey), numbers with a colour bar. Missing values are grey.
    key
        Embedding in ``obsm``, ``(n, d)``.
    method
        ``"pca"`` of the posterior means, their two dimensions such as ``(0, 3)``, or ``"umap"`` (needs umap-learn;
        distances in it mean little).
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The figure, that of `ax` if given.

    Raises
    ------
    InputError
        If the embedding, column or dimensions do not exist.
    """
    if key not in cells.obsm:
        raise InputError(f"The cells have no embedding {key!r} in obsm: run latentcell.tl.embed(cells, model) first.")
    if color is not None and color not in cells.obs:
        present = ", ".join(map(repr, cells.obs.columns)) or "none"
        raise InputError(f"The cells have no column {color!r} to colour by; columns of obs: {present}.")
    points, labels = _mapped(np.asarray(cells.obsm[key], dtype=np.float64), method)
    own = ax is None
    figure = new_figure(_SIDE, 4.6) if ax is None else root_figure(ax)
    ax = figure.subplots() if ax is None else ax
    if color is None:
        _scatter(ax, points, len(points), color=ACCENT)
    else:
        column = cells.obs[color]
        missing = column.isna().to_numpy()
        if missing.any():
            _scatter(ax, points[missing], len(points), color=PALE)
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            _numeric(ax, points[~missing], column[~missing], len(points))
        else:
            _levels(ax, points, column, len(points))
    ax.set(xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])
    if own and color is not None:
        _widen(figure, ax)
    return figure


def _widen(figure: Figure, ax: Axes) -> None:
    """Add to the width of the figure what legend or colour bar take, so that the cells keep their space."""
    legend = ax.get_legend()
    extra = 1.0 if legend is None else legend.get_window_extent().width / figure.dpi + 0.1
    figure.set_size_inches(_SIDE + extra, figure.get_figheight())


def _mapped(mu: NDArray[np.float64], method: Map) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """Positions in two dimensions ``(n, 2)`` and the names of the axes."""
    if method == "umap":
        return _umap(mu), ("UMAP 1", "UMAP 2")
    if method == "pca":
        components = Components.of(mu)
        return components.project(mu), components.labels
    dims = tuple(method) if isinstance(method, tuple | list) else ()
    if len(dims) != 2 or not all(isinstance(dim, int | np.integer) and 0 <= dim < mu.shape[1] for dim in dims):
        raise InputError(
            f"method={method!r} is unknown: choose 'pca', 'umap' or two of the {mu.shape[1]} latent dimensions, "
            "counted from 0, such as (0, 1)."
        )
    return mu[:, list(dims)], (f"$z_{{{dims[0]}}}$", f"$z_{{{dims[1]}}}$")


@dataclass(frozen=True)
class Components:
    """Plane of the first two principal components of cells, onto which other positions can be put.

    Attributes
    ----------
    mean, axes
        Centre ``(d,)`` and the two directions ``(d, 2)``; a direction that does not exist is 0.
    labels
        Names of the axes with their shares of the variance.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    labels: tuple[str, str]

    @classmethod
    def of(cls, mu: NDArray[np.float64]) -> Components:
        """Components of positions ``(n, d)``."""
        mean = mu.mean(axis=0) if len(mu) else np.zeros(mu.shape[1])
        _, s, vt = np.linalg.svd(mu - mean, full_matrices=False)
        # the sign of a component is arbitrary: make its largest loading positive, so that figures repeat
        signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
        axes = (vt * signs[:, None])[:2].T
        share = np.pad(s**2 / max(float((s**2).sum()), 1e-12), (0, 2))
        labels = (f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%} of variance)")
        return cls(mean, np.pad(axes, ((0, 0), (0, 2 - axes.shape[1]))), labels)

    def project(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """Positions ``(..., d)`` on the plane, ``(..., 2)``."""
        return np.asarray((z - self.mean) @ self.axes)


def _umap(mu: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError as error:
        raise InputError("method='umap' needs umap-learn: pip install umap-learn, or use method='pca'.") from error
    return np.asarray(umap.UMAP(random_state=0, n_jobs=1).fit_transform(mu), dtype=np.float64)


def _scatter(ax: Axes, points: NDArray[np.float64], n_cells: int, **colors: Any) -> Any:
    """Dots that cover about the same area however many cells there are."""
    size = float(np.clip(9000 / max(n_cells, 1), 1.5, 26))
    alpha = 0.85 if n_cells < 5000 else 0.6
    return ax.scatter(points[:, 0], points[:, 1], s=size, alpha=alpha, linewidths=0, rasterized=True, **colors)


def _numeric(ax: Axes, points: NDArray[np.float64], values: pd.Series[Any], n_cells: int) -> None:
    numbers = values.to_numpy(dtype=np.float64)
    # a few extreme cells must not take the colours from all others
    low, high = np.percentile(numbers, [1, 99]) if numbers.size else (0.0, 1.0)
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}
    extend = beyond.get((bool((numbers < low).any()), bool((numbers > high).any())), "neither")
    drawn = _scatter(ax, points, n_cells, c=numbers, cmap="viridis", vmin=low, vmax=high)
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.6, aspect=25, extend=extend, label=str(values.name))
    bar.outline.set_linewidth(0.5)
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)


def _levels(ax: Axes, points: NDArray[np.float64], column: pd.Series[Any], n_cells: int) -> None:
    categories = column.astype("category").cat.remove_unused_categories()
    frequent = set(categories.value_counts().index[: len(LEVELS)])
    named = [level for level in categories.cat.categories if level in frequent]
    rest = len(categories.cat.categories) - len(named)
    colors = dict(zip(named, LEVELS, strict=False))
    rows = np.flatnonzero(categories.notna().to_numpy())
    # drawn in random order: no level lies on top of the others
    rows = np.random.default_rng(0).permutation(rows)
    of_cell = [colors.get(level, "#8c8c8c") for level in categories.iloc[rows]]
    _scatter(ax, points[rows], n_cells, c=of_cell)
    entries = [(shortened(str(level)), colors[level]) for level in named]
    entries += [(f"{rest} rarer levels", "#8c8c8c")] * bool(rest)
    entries += [("missing", PALE)] * bool(categories.isna().any())
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=6, markeredgewidth=0, color=shade, label=label)
        for label, shade in entries
    ]
    ax.legend(
        handles=handles, title=str(column.name), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0,
        alignment="left", handletextpad=0.3, ncols=1 + (len(handles) - 1) // 16,
    )  # fmt: skip
