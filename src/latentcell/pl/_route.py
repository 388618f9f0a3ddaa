"""A prediction replayed for the page: where its pairs of cells are at every step, in the units of its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentcell.cells.levels import level_rows, times
from latentcell.pl._style import shortened
from latentcell.tl.course import labels
from latentcell.tl.interpolate import replay

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE
    from latentcell.tl.course import Course, Pairs

Index = NDArray[np.intp]

SOURCE, TARGET, TRUTH = "source", "target", "truth"
_WIDE = 3  # predicted places from which on no others are shown between them


@dataclass(frozen=True)
class Route:
    """The path behind a prediction.

    Attributes
    ----------
    params
        Those of the interpolation.
    positions
        Where was predicted, 0 (source) to 1 (target).
    truth
        Rows of the true cells; empty where no truth was named.
    numeric
        Whether the key holds times.
    """

    course: Course
    pairs: Pairs
    params: dict[str, Any]
    positions: NDArray[np.float64]
    truth: Index
    numeric: bool

    @classmethod
    def of(cls, predicted: AnnData, cells: AnnData, model: VAE) -> Route:
        """Replay a prediction; refuses what is none."""
        course, pairs = replay(predicted, cells, model)
        params = dict(predicted.uns["interpolate"]["params"])
        truth = level_rows(cells, params["key"], params[TRUTH]) if TRUTH in params else np.arange(0)
        positions = np.unique(predicted.obs["position"].to_numpy(dtype=np.float64))
        return cls(course, pairs, params, positions, truth, times(cells, params["key"]) is not None)

    def steps(self, n: int) -> NDArray[np.float64]:
        """`n` evenly spaced positions and the predicted ones; where many were predicted, these and the ends."""
        even = np.linspace(0.0, 1.0, n if len(self.positions) < _WIDE else 2)
        others = even[np.abs(even[:, None] - self.positions).min(axis=1) > 1e-9]
        return np.sort(np.concatenate([others, self.positions]))

    def located(self, index: Index, t: float) -> NDArray[np.float32]:
        """Latent positions ``(n, d)`` of some pairs at `t`."""
        if self.course.path == "shift":  # which end a pair starts from depends on its place among all
            return self.course.positions(self.pairs, t)[index]
        return self.course.positions(self.pairs.take(index), t)

    def batch(self, index: Index) -> Any:
        """Batch in which some pairs are decoded."""
        return self.course.batch(self.pairs.take(index))

    def some_pairs(self, n: int, rng: np.random.Generator) -> Index:
        """At most `n` random pairs, each source cell once where there are enough."""
        order = rng.permutation(len(self.pairs))
        _, first = np.unique(self.pairs.source.rows[order], return_index=True)
        again = np.setdiff1d(np.arange(len(order)), first)
        return np.asarray(order[np.concatenate([np.sort(first), again])][:n])

    def replicates(self, rows: Index) -> NDArray[Any] | None:
        """Replicate of each of some cells, where the prediction named a column of them with several."""
        name = self.params.get("replicate")
        if name is None:
            return None
        values = labels(self.course.cells, name)[rows]
        return values if len(np.unique(values)) > 1 else None

    def place(self, t: float) -> float:
        """Position 0 to 1 in the unit of the key: a time, or the position itself."""
        if not self.numeric:
            return float(t)
        start, end = float(self.params[SOURCE]), float(self.params[TARGET])
        return start + t * (end - start)

    @property
    def truth_place(self) -> float:
        """Where the truth stands: at its time, or among stages where it was predicted."""
        return float(self.params[TRUTH]) if self.numeric else float(self.positions[0])

    def labels(self, steps: NDArray[np.float64]) -> list[str]:
        """Steps in the unit of the key."""
        return [f"{round(self.place(t), 3):g}".replace("-", "−") for t in steps]

    @property
    def axis(self) -> str:
        """Name of the axis along the path."""
        return str(self.params["key"]) if self.numeric else "position on the path"

    def level(self, role: str, length: int = 24) -> str:
        """Name of the level that is source, target or truth."""
        value = self.params[role]
        name = f"{self.params['key']} {float(value):g}" if self.numeric else str(value)
        return shortened(name, length)


def some(rows: Index, n: int, rng: np.random.Generator) -> Index:
    """At most `n` random ones of `rows`, in order."""
    return np.sort(rng.choice(rows, min(n, len(rows)), replace=False))
