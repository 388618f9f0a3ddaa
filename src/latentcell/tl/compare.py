"""A prediction, the truth and every baseline as populations in the spaces in which they are compared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from latentcell import keys
from latentcell.cells.images import set_images
from latentcell.tl.course import Course, Floats, Index, Method, Pairing, Pairs, Population, labels
from latentcell.tl.evaluate import (
    AVERAGE,
    MOVED,
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

_OTHERS: dict[str, Method] = {"random pairs": "random", "centroid": "centroid"}


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
        return self._thinned(rng)._spaces(rng)

    def _spaces(self, rng: np.random.Generator) -> dict[str, Space]:
        course, model, t = self.course, self.course.model, self.t
        truth = Population.of(course.cells, model, self.truth)
        real = {"source": course.source, "target": course.target, TRUTH: truth}
        measured = {name: model.measurements(course.cells[end.rows]) for name, end in real.items()}
        both = np.concatenate([measured["source"], measured["target"]])
        depth = course.depth if model.modality_ == "counts" else None
        fixed = Representation.fit(both, model.modality_, model.names_, library_size=depth)
        known = {name: fixed.comparable(values) for name, values in measured.items()}
        averages = measurement_averages(
            fixed, known["source"], known["target"], t, n=len(self.pairs), curved=course.curved(t), rng=rng
        )
        others = self._other_pairs(rng)
        rows = {name: pairs.source.rows for name, pairs in {PREDICTION: self.pairs, **others}.items()}
        rows |= {name: end.rows for name, end in real.items()} | {MOVED: rows[PREDICTION], RECONSTRUCTED: truth.rows}
        rows |= {name: course.source.rows[i] for name, (_, i) in averages.items()}

        decoded = {PREDICTION: course.decode(self.pairs, t)}
        decoded |= {name: course.reconstruct(end) for name, end in real.items()}
        decoded |= {name: course.decode(pairs, t) for name, pairs in others.items()}
        if model.modality_ != "counts" and keys.MASKS not in course.cells.obsm:
            decoded[AVERAGE] = _encoded_average(course, averages[AVERAGE][0])
        # in units of the measured ends in both spaces: what a decoder hardly varies should not count for more there
        shown = {name: fixed.comparable(values) for name, values in decoded.items()}
        drawn = {name: fixed.comparable(values) for name, values in self._drawn(others, truth, rng).items()}
        data = drawn | known | {name: values for name, (values, _) in averages.items()}
        if model.modality_ != "images" and not self.pairs.gathered:
            data[MOVED] = course.moved(self.pairs, t)

        mixed = mixture(len(rows["source"]), len(rows["target"]), t, rng=rng)
        spaces = {"model": self._space(fixed, shown, rows, mixed), "data": self._space(fixed, data, rows, mixed)}
        if model.modality_ == "images":
            coarse = Representation.fit(both, "images", model.names_, block=COARSE)
            spaces["data, coarse"] = self._space(coarse, data, rows, mixed)
        return spaces

    def _drawn(self, others: dict[str, Pairs], truth: Population, rng: np.random.Generator) -> dict[str, Floats]:
        """Populations decoded with noise: the prediction, the same model's other pairings and the true cells."""
        draws = {name: self.course.decode(pairs, self.t, noise=rng, sharp=self.sharp) for name, pairs in others.items()}
        back = self.course.reconstruct(truth, noise=rng, sharp=self.sharp)
        return {PREDICTION: self.sampled} | draws | {RECONSTRUCTED: back}

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

    def _other_pairs(self, rng: np.random.Generator) -> dict[str, Pairs]:
        """Cells paired in the ways that serve as baselines, but for the prediction's own."""
        others = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of strata left out: told for the prediction
            for name, method in _OTHERS.items():
                if method != self.pairing.method:
                    pairing = Pairing(method, within=self.pairing.within)
                    others[name] = self.course.pairs(pairing, len(self.pairs), rng)
        return others

    def _space(
        self, representation: Representation, comparable: dict[str, Floats], rows: dict[str, Index], mixed: Index
    ) -> Space:
        """Variables and replicates of populations: prediction, truth, ends, baselines, and what is no baseline."""
        samples = {
            name: Sample(representation.variables(values), self._replicates(rows[name]))
            for name, values in comparable.items()
        }
        ends = samples["source"], samples["target"]
        replicates = None if ends[0].replicates is None else np.concatenate([end.replicates for end in ends])[mixed]
        both = Sample(np.concatenate([end.variables for end in ends])[mixed], replicates)
        first = {name: samples.pop(name) for name in (PREDICTION, TRUTH, "source", "target")}
        last = {name: samples.pop(name) for name in (MOVED, RECONSTRUCTED) if name in samples}
        return Space(representation, first | {"mixture": both} | samples | last)

    def _replicates(self, rows: Index) -> NDArray[Any] | None:
        if self.replicate is None:
            return None
        return labels(self.course.cells, self.replicate)[rows]


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
