"""Changes of counts and profiles on the page: heat maps of the variables that move most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from latentcell.pl._style import shortened

if TYPE_CHECKING:
    from latentcell.model.vae import VAE

Table = NDArray[np.float64]

LIBRARY = 1e4
"""Total counts per cell at which counts are shown; one count is added before logarithms, so that noise at zero does
not look like change."""


def decoded_variables(model: VAE, z: NDArray[Any], batch: Any = None) -> Table:
    """Decoded means ``(n, F)``: profiles in stored units, counts per 10,000."""
    size = LIBRARY if model.modality_ == "counts" else None
    return np.asarray(model.decode(z, batch=batch, library_size=size), dtype=np.float64)


def normalised(model: VAE, measured: NDArray[Any]) -> Table:
    """Measurements ``(n, F)`` on the scale of `decoded_variables`."""
    values = np.asarray(measured, dtype=np.float64)
    if model.modality_ != "counts":
        return values
    return np.asarray(values * (LIBRARY / np.maximum(values.sum(axis=1, keepdims=True), 1.0)))


def change(model: VAE, values: Table, reference: Table) -> Table:
    """Change of `values` ``(n, F)`` from `reference` ``(F,)``: log2 fold change of counts, SD of profiles."""
    if model.modality_ == "counts":
        return np.asarray(np.log2((values + 1.0) / (reference + 1.0)))
    return np.asarray((values - reference) / np.asarray(model.schema_.scale))


def change_label(model: VAE, reference: str) -> str:
    """Unit of `change`, for the colour bar."""
    if model.modality_ == "counts":
        return f"log2 fold change from {reference} (counts per 10,000, + 1)"
    return f"change from {reference} in SD of the training cells"


def most_changed(changes: Table, n: int) -> NDArray[np.intp]:
    """Variables of ``(steps, F)`` with the widest range, those that rise most first, those that fall most last."""
    widest = np.argsort(-np.ptp(changes, axis=0), kind="stable")[:n]
    return widest[np.argsort(-(changes[-1] - changes[0])[widest], kind="stable")]


def color_limit(changes: Sequence[Table]) -> float:
    """End of the symmetric colour range: nearly all of what is shown lies within."""
    return max(float(np.percentile(np.abs(np.concatenate([one.ravel() for one in changes])), 99)), 1e-6)


def label_width(names: Sequence[str]) -> float:
    """Inches that the names of variables take beside a heat map."""
    return 0.1 + 0.065 * max(len(shortened(name)) for name in names)


def heat_map(ax: Axes, changes: Table, names: Sequence[str], limit: float) -> AxesImage:
    """Variables as rows, steps as columns; blue falls, red rises."""
    image = ax.imshow(changes.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(names)), [shortened(name) for name in names])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return image


def change_bar(figure: Figure | SubFigure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """Colour bar below all `axes`; its ends are open because values beyond the range exist."""
    bar = figure.colorbar(image, ax=list(axes), location="bottom", shrink=0.5, aspect=35, extend="both", pad=0.03)
    bar.set_label(label)
    bar.outline.set_linewidth(0.5)
