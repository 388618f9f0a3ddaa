"""A prediction, the truth and every baseline as populations in the spaces in which they are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from latentcell import keys
from latentcell.cells.images import set_images
from latentcell.cells.levels import column
from latentcell.tl.course import Course, Floats, Index, Pairing, Pairs, Population
from latentcell.tl.evaluate import (
    AVERAGE,
    PREDICTION,
    RECONSTRUCTED,
    TRUTH,
    Representation,
    Sample,
    Space,
    measurement_averages,
    mixture,
)

MAX_EVALUATED = 1_000
"""Cells per population that enter the evaluation; a random subset of this size beyond."""
COARSE = 4
"""Pixels along each side of a square that the coarse scale averages."""

_OTHERS = {"random pairs": Pairing("random"), "centroid": Pairing("centroid")}


@dataclass(frozen=True)
class Comparison:
    """What is compared: the prediction on its course, and the rows of the true cells.

    Attributes
    ----------
    pairs, t
        The prediction: pairs of cells at a position.
    sampled
        Its measurements with noise, ``(n, ...)``.
    replicate
        Column of ``obs`` whose levels are resampled in the bootstrap, or None.
    sharp
        Whether draws are sharp instead of decoded with the likelihood's noise.
    """

    course: Course
    pairs: Pairs
    t: float
    sampled: Floats
    truth: Index
    pairing: Pairing
    replicate: str | None
    sharp: bool

    def spaces(self, rng: np.random.Generator) -> dict[str, Space]:
        """Populations by space: ``"model"``, ``"data"`` and, for images, ``"data, coarse"``."""
        thinned = self._thinned(rng)
        course, model = thinned.course, thinned.course.model
        truth = Population.of(course.cells, model, thinned.truth)
        real = {"source": course.source, "target": course.target, TRUTH: truth}
        measured = {name: model.measurements(course.cells[end.rows]) for name, end in real.items()}
        both = np.concatenate([measured["source"], measured["target"]])
        representation = Representation.fit(both, model.modality_, model.names_)
        comparable = {name: representation.comparable(values) for name, values in measured.items()}
        averages = measurement_averages(
            representation, comparable["source"], comparable["target"], self.t, n=len(thinned.pairs), rng=rng
        )
        rows = {name: end.rows for name, end in real.items()}
        rows |= {name: course.source.rows[i] for name, (_, i) in averages.items()}
        averaged = {name: values for name, (values, _) in averages.items()}
        mixed = mixture(len(rows["source"]), len(rows["target"]), self.t, rng=rng)

        data: dict[str, tuple[Floats, Index]] = {PREDICTION: (thinned.sampled, thinned.pairs.source.rows)}
        data |= {name: (measured[name], rows[name]) for name in real}
        drawn, decoded = thinned._others(rng)
        reconstructed = {name: course.reconstruct(end) for name, end in real.items()}
        data[RECONSTRUCTED] = thinned._drawn(Pairs(truth, truth, np.zeros_like(truth.z)), 0.0, rng), truth.rows
        seen = thinned._populations(representation, data | drawn, mixed, rows, averaged)
        shown = {PREDICTION: (course.decode(thinned.pairs, self.t), thinned.pairs.source.rows)}
        shown |= {name: (values, rows[name]) for name, values in reconstructed.items()}
        if model.modality_ != "counts" and keys.MASKS not in course.cells.obsm:
            shown[AVERAGE] = _encoded_average(course, averaged[AVERAGE]), rows[AVERAGE]
        # what the decoder cannot draw varies little among decoded cells: each space has the scale of its own ends
        own = Representation.fit(
            np.concatenate([reconstructed["source"], reconstructed["target"]]), model.modality_, model.names_
        )
        spaces = {
            "model": Space(own, thinned._populations(own, shown | decoded, mixed, rows, {})),
            "data": Space(representation, seen),
        }
        if model.modality_ == "images":
            coarse = Representation.fit(both, "images", model.names_, block=COARSE)
            samples = thinned._populations(coarse, data | drawn, mixed, rows, averaged)
            spaces["data, coarse"] = Space(coarse, samples)
        return spaces

    def _thinned(self, rng: np.random.Generator) -> Comparison:
        """The same with at most `MAX_EVALUATED` cells in every population."""
        kept = _some(len(self.pairs), rng)
        ends = [end.take(_some(len(end.rows), rng)) for end in (self.course.source, self.course.target)]
        return replace(
            self,
            course=replace(self.course, source=ends[0], target=ends[1]),
            pairs=self.pairs.take(kept),
            sampled=self.sampled[kept],
            truth=self.truth[_some(len(self.truth), rng)],
        )

    def _others(self, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draws and means, with the rows of the source cells, of the same model with cells paired otherwise."""
        drawn, decoded = {}, {}
        for name, pairing in _OTHERS.items():
            if pairing.method == self.pairing.method:
                continue
            pairs = self.course.pairs(replace(pairing, within=self.pairing.within), len(self.pairs), rng)
            drawn[name] = self._drawn(pairs, self.t, rng), pairs.source.rows
            decoded[name] = self.course.decode(pairs, self.t), pairs.source.rows
        return drawn, decoded

    def _drawn(self, pairs: Pairs, t: float, rng: np.random.Generator) -> Floats:
        return self.course.decode(pairs, t, noise=rng, sharp=self.sharp)

    def _populations(
        self,
        representation: Representation,
        measured: dict[str, tuple[Floats, Index]],
        mixed: Index,
        rows: dict[str, Index],
        averaged: dict[str, Floats],
    ) -> dict[str, Sample]:
        """Variables and replicates of populations given as measurements, of the mixture, and of averages."""
        tables = {
            name: (representation.variables(representation.comparable(values)), where)
            for name, (values, where) in measured.items()
        }
        ends = tables["source"], tables["target"]
        tables["mixture"] = tuple(np.concatenate(parts)[mixed] for parts in zip(*ends, strict=True))  # type: ignore[assignment]
        tables |= {name: (representation.variables(values), rows[name]) for name, values in averaged.items()}
        order = [PREDICTION, TRUTH, "source", "target", "mixture"]
        names = order + [name for name in tables if name not in (*order, RECONSTRUCTED)]
        names += [RECONSTRUCTED] if RECONSTRUCTED in tables else []
        return {name: Sample(tables[name][0], self._replicates(tables[name][1])) for name in names}

    def _replicates(self, rows: Index) -> NDArray[Any] | None:
        if self.replicate is None:
            return None
        return column(self.course.cells, self.replicate).astype(str).to_numpy()[rows]


def _encoded_average(course: Course, measured: Floats) -> Floats:
    """Averaged measurements encoded and decoded, each in the batch of some source cell."""
    model = course.model
    obs = pd.DataFrame(index=pd.Index([f"average_{number}" for number in range(len(measured))]))
    if model.batch_key is not None:
        levels = course.cells.obs[model.batch_key].to_numpy()[course.source.rows]
        obs[model.batch_key] = np.resize(levels, len(measured))
    if model.modality_ == "images":
        averaged = AnnData(obs=obs)
        set_images(averaged, measured, channel_names=model.names_)
    else:
        averaged = AnnData(X=measured, obs=obs, var=pd.DataFrame(index=pd.Index(model.names_)))
        if model.layer is not None:
            averaged.layers[model.layer] = measured
    return np.asarray(model.reconstruct(averaged), dtype=np.float32)


def _some(n: int, rng: np.random.Generator) -> Index:
    return np.sort(rng.choice(n, MAX_EVALUATED, replace=False)) if n > MAX_EVALUATED else np.arange(n)
