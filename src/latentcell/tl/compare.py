"""A prediction, the truth and every baseline as populations in the spaces in which they are compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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

MAX_EVALUATED = 500
"""Cells per population that enter the evaluation; a random subset of this size beyond."""
COARSE = 4
"""Pixels along each side of a square that the coarse scale averages."""

Tables = dict[str, NDArray[np.float64]]
Averages = dict[str, tuple[NDArray[np.floating], Index]]

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
        a, b = fixed.comparable(measured["source"]), fixed.comparable(measured["target"])
        averages = measurement_averages(fixed, a, b, t, n=len(self.pairs), curved=course.curved(t), rng=rng)
        others = self._other_pairs(rng)
        rows = {name: pairs.source.rows for name, pairs in {PREDICTION: self.pairs, **others}.items()}
        rows |= {name: end.rows for name, end in real.items()} | {MOVED: rows[PREDICTION], RECONSTRUCTED: truth.rows}
        rows |= {name: course.source.rows[i] for name, (_, i) in averages.items()}

        # in units of the measured ends in all spaces: what a decoder hardly varies should not count for more there
        views = {"data": fixed}
        if model.modality_ == "images":
            views["data, coarse"] = Representation.fit(both, "images", model.names_, block=COARSE)
        tables: dict[str, Tables] = {space: {} for space in ("model", *views)}
        for name, values in self._decoded(real, others, averages):
            tables["model"][name] = fixed.variables(fixed.comparable(values))
        for name, values in self._measured(measured, others, averages, truth, rng):
            for space, view in views.items():
                tables[space][name] = view.variables(values if name in averages else view.comparable(values))
        if model.modality_ != "images" and not self.pairs.gathered:
            tables["data"][MOVED] = fixed.variables(course.moved(self.pairs, t))
        mixed = mixture(len(rows["source"]), len(rows["target"]), t, rng=rng)
        return {space: self._space(views.get(space, fixed), table, rows, mixed) for space, table in tables.items()}

    def _decoded(
        self, real: dict[str, Population], others: dict[str, Pairs], averages: Averages
    ) -> Iterator[tuple[str, Floats]]:
        """Populations as the decoder's mean shows them, one at a time: images of all would fill the memory."""
        course = self.course
        yield PREDICTION, course.decode(self.pairs, self.t)
        for name, end in real.items():
            yield name, course.reconstruct(end)
        for name, pairs in others.items():
            yield name, course.decode(pairs, self.t)
        if course.model.modality_ != "counts" and keys.MASKS not in course.cells.obsm:
            yield AVERAGE, _encoded_average(course, averages[AVERAGE][0])

    def _measured(
        self,
        measured: dict[str, Floats],
        others: dict[str, Pairs],
        averages: Averages,
        truth: Population,
        rng: np.random.Generator,
    ) -> Iterator[tuple[str, Floats]]:
        """Populations as measured or decoded with noise, one at a time, and averages on the comparable scale."""
        yield PREDICTION, self.sampled
        yield from measured.items()
        for name, pairs in others.items():
            yield name, self.course.decode(pairs, self.t, noise=rng, sharp=self.sharp)
        for name, (values, _) in averages.items():
            yield name, values
        yield RECONSTRUCTED, self.course.reconstruct(truth, noise=rng, sharp=self.sharp)

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

    def _space(self, representation: Representation, table: Tables, rows: dict[str, Index], mixed: Index) -> Space:
        """Populations with their replicates: prediction, truth, ends, baselines, and what is no baseline."""
        samples = {name: Sample(values, self._replicates(rows[name])) for name, values in table.items()}
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
