"""Whether a prediction can be believed: real cells nearby, ends that hang together, time that is no batch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentcell.errors import listed
from latentcell.tl.course import Course, Floats, Index, Population
from latentcell.tl.evaluate import Representation

PERCENTILE = 99.0
MAX_REAL = 1_000
"""Real cells that predictions are held against; a random subset of this size beyond."""

_TECHNICAL = ("batch", "plate", "library", "lane", "run", "sample", "donor", "replicate", "experiment")
_DEPTH_RATIO = 2.0
_WIDE = 2.0  # a hidden stage alone leaves a gap somewhat above 1


class Surroundings:
    """Real cells as the model draws them, in fixed variables, and how near to one another they lie.

    Attributes
    ----------
    limit
        99th percentile of the distance from a real cell to the nearest other one.
    """

    def __init__(self, course: Course, rows: Index, rng: np.random.Generator) -> None:
        rows = rows if len(rows) <= MAX_REAL else np.sort(rng.choice(rows, MAX_REAL, replace=False))
        self.real = Population.of(course.cells, course.model, rows)
        drawn = course.reconstruct(self.real)
        # decoded means are smooth, so that a coarser picture of at least 16 pixels tells as much, sooner
        block = int(np.clip(drawn.shape[-1] // 16, 1, 4)) if course.model.modality_ == "images" else 1
        self._representation = Representation.fit(drawn, course.model.modality_, course.model.names_, block=block)
        self._coordinates = self._located(drawn)
        self.limit = float(np.percentile(nearest(self._coordinates, self._coordinates), PERCENTILE))

    def near(self, decoded: Floats) -> NDArray[np.bool_]:
        """Which decoded cells ``(n, ...)`` lie within `limit` of a real cell."""
        return nearest(self._located(decoded), self._coordinates) <= self.limit

    def gap(self, source: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
        """Widest step on the best chain of real cells from a source to a target cell, over the usual distance.

        The usual distance is the 99th percentile of nearest neighbours in the latent space; well above 1, no chain of
        neighbours leads from one end to the other.
        """
        usual = float(np.percentile(nearest(self.real.z, self.real.z), PERCENTILE))
        return widest_step(self.real.z, source, target) / max(usual, 1e-12)

    def _located(self, decoded: Floats) -> NDArray[np.float64]:
        fixed = self._representation
        return fixed.coordinates(fixed.variables(fixed.comparable(decoded)))


def nearest(x: Floats, real: Floats) -> NDArray[np.float64]:
    """Distance from each row of `x` to the nearest row of `real`; to the nearest other one where they are the same."""
    from scipy.spatial import KDTree

    distances, _ = KDTree(real).query(x, k=2 if x is real else 1)
    return np.asarray(distances[:, 1] if x is real else distances)


def widest_step(z: Floats, source: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Smallest possible widest step of a chain of cells ``(n, d)`` that leads from a source to a target cell."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
    from scipy.spatial.distance import cdist

    # a shortest spanning tree holds, between any two cells, the chain whose widest step is smallest; one is added to
    # every distance because a sparse graph takes zero, between cells that coincide, for no edge
    edges = minimum_spanning_tree(1.0 + cdist(z, z)).tocoo()
    order = np.argsort(edges.data)
    i, j, widths = edges.row[order], edges.col[order], edges.data[order] - 1.0

    def joined(n: int) -> bool:
        tree = coo_array((np.ones(n), (i[:n], j[:n])), shape=(len(z), len(z)))
        _, labels = connected_components(tree, directed=False)
        return bool(np.isin(labels[source], labels[target]).any())

    low, high = 0, len(widths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if joined(middle) else (middle + 1, high)
    return float(widths[low - 1]) if low else 0.0


def warn_of_empty_space(shares: Sequence[float], at: NDArray[np.float64], gap: float, ends: tuple[str, str]) -> None:
    """Warn where most predicted cells are far from all real ones, and where no chain of real cells joins the ends."""
    empty = [f"{place:g} ({share:.0%})" for place, share in zip(at, shares, strict=True) if share < 0.5]
    if empty:
        warnings.warn(
            f"The path crosses empty space: at {', '.join(empty)} fewer than half of the predicted cells lie as near "
            f"to measured cells as {PERCENTILE:g}% of measured cells lie to one another. There the prediction rests on "
            "the model alone.",
            UserWarning,
            stacklevel=3,
        )
    if gap > _WIDE:
        warnings.warn(
            f"{ends[0]!r} and {ends[1]!r} are disconnected in the latent space: the best chain of measured cells "
            f"between them has a step {gap:.1f} times as wide as {PERCENTILE:g}% of the distances between neighbours. "
            "They may be separate populations rather than stages of one process.",
            UserWarning,
            stacklevel=3,
        )


def warn_of_confounding(course: Course, key: str, ends: tuple[str, str], extra: Sequence[str | None]) -> None:
    """Warn where the ends share no batch, or differ in sequencing depth: their difference may be technical.

    Looks at the columns in `extra` and at those whose name has a word such as batch, plate or donor.
    """
    obs = course.cells.obs
    named = [name for name in obs if set(re.split(r"[^a-z]+", str(name).lower())) & set(_TECHNICAL)]
    columns = [name for name in dict.fromkeys([*extra, *named]) if name is not None and name in obs and name != key]
    separate = []
    for name in columns:
        a, b = (set(obs[name].iloc[end.rows].dropna()) for end in (course.source, course.target))
        if a and b and not a & b and obs[name].nunique() < 0.5 * len(obs):
            separate.append(str(name))
    if separate:
        warnings.warn(
            f"{key!r} and {listed(separate)} coincide: {ends[0]!r} and {ends[1]!r} share no level, so what differs "
            "between them may be technical, and so may be what is predicted between.",
            UserWarning,
            stacklevel=3,
        )
    sizes = course.source.library_size, course.target.library_size
    if sizes[0] is not None and sizes[1] is not None:
        depths = float(np.median(sizes[0])), float(np.median(sizes[1]))
        if max(depths) > _DEPTH_RATIO * min(depths):
            warnings.warn(
                f"Cells of {ends[0]!r} have a median of {depths[0]:,.0f} counts, those of {ends[1]!r} "
                f"{depths[1]:,.0f}: each may be a library of its own, and the gap between them technical.",
                UserWarning,
                stacklevel=3,
            )
