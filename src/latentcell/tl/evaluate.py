"""How near a predicted population comes to the true one, beside what could be had without the model.

Arrays in, tables out: `Representation` turns measurements into variables that no method was trained on, and
`evaluate` compares populations in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from latentcell.cells.images import Modality
from latentcell.stats.distances import (
    Array,
    Statistic,
    energy_distance,
    energy_statistic,
    mean_shift_statistic,
    median_distance,
    mmd_statistic,
    percentile_interval,
    resampled_counts,
    wasserstein_statistic,
)
from latentcell.stats.transport import pair

Index = NDArray[np.intp]
Table = Array

PREDICTION, TRUTH, FLOOR, AVERAGE = "prediction", "truth", "floor", "measurement average"
RECONSTRUCTED, MOVED, CURVED = "reconstructed truth", "moved measurements", "PCA + OT, curved"

NO_BASELINES = (PREDICTION, FLOOR, RECONSTRUCTED, MOVED)
"""Rows of an evaluation that the verdict does not hold the prediction against."""

ENERGY = "energy distance"
N_COMPONENTS = 5
N_VARIABLE_GENES = 1_000
N_RESAMPLES = 200
FARTHEST = 10.0
FEWEST_REPLICATES = 3


@dataclass(frozen=True)
class Representation:
    """Variables and coordinates of a cell, fitted on the two ends of an interpolation and then fixed.

    - images: the hand-made features of `latentcell.stats.image_features`, standardised; features that are constant in
      the ends are left out and values are cut at 10 SD, so that no single feature decides. The coordinates are the
      variables. With `block` above 1, images are first averaged over squares of that many pixels: the coarse scale, at
      which camera noise and a decoder's blur count little.
    - counts: log1p of counts scaled to the ends' median library size, the 1,000 most variable genes, standardised.
      The coordinates are the first 5 principal components of the unstandardised log values, whitened.
    - profiles: the features, standardised. The coordinates are their first 5 principal components, whitened.
    """

    modality: Modality
    channel_names: Sequence[str]
    block: int
    library_size: float
    columns: Index
    mean: Array
    sd: Array
    rotation: Array | None

    @classmethod
    def fit(
        cls,
        ends: NDArray[Any],
        modality: Modality,
        channel_names: Sequence[str] = (),
        *,
        block: int = 1,
        library_size: float | None = None,
    ) -> Representation:
        """Fit on the measurements of source and target cells together, in stored units."""
        library = library_size or (float(np.median(ends.sum(axis=1))) if modality == "counts" else 1.0)
        blank = cls(modality, channel_names, block, library, np.arange(0), np.zeros(0), np.ones(0), None)
        values = blank._table(blank.comparable(ends))
        sd = values.std(axis=0)
        columns = np.flatnonzero(sd > 1e-9 * np.maximum(1e-9, np.abs(values).max(axis=0)))
        if modality == "counts" and len(columns) > N_VARIABLE_GENES:
            columns = np.sort(columns[np.argsort(-sd[columns], kind="stable")[:N_VARIABLE_GENES]])
        fitted = replace(blank, columns=columns, mean=values[:, columns].mean(axis=0), sd=sd[columns])
        return fitted if modality == "images" else replace(fitted, rotation=fitted._whitening(values[:, columns]))

    def comparable(self, measured: NDArray[Any]) -> NDArray[np.floating]:
        """Measurements on the scale on which cells may be averaged: log-normalised counts, others as stored."""
        if self.modality != "counts":
            return np.asarray(measured, dtype=np.float32)
        return log_normalised(measured, self.library_size)

    def variables(self, comparable: NDArray[np.floating]) -> Array:
        """Standardised variables ``(n, V)`` of measurements on the comparable scale."""
        standardised = (self._table(comparable)[:, self.columns] - self.mean) / self.sd
        return np.clip(standardised, -FARTHEST, FARTHEST) if self.modality == "images" else standardised

    def coordinates(self, variables: Array) -> Array:
        """Position ``(n, k)`` in which distances between populations are measured."""
        return variables if self.rotation is None else variables @ self.rotation

    def _table(self, comparable: NDArray[np.floating]) -> Array:
        if self.modality != "images":
            return np.asarray(comparable, dtype=np.float64)
        from latentcell.stats.features import image_features

        return image_features(_averaged(comparable, self.block), channel_names=self.channel_names).to_numpy()

    def _whitening(self, values: Array) -> Array:
        from sklearn.decomposition import PCA

        # genes keep their variance, so that the noise of rarely seen ones does not count as much as a marker
        weight = self.sd if self.modality == "counts" else np.ones_like(self.sd)
        pca = PCA(min(N_COMPONENTS, len(values) - 1, values.shape[1]), random_state=0)
        pca.fit((values - self.mean) / self.sd * weight)
        used = pca.explained_variance_ > 1e-9 * pca.explained_variance_[0]
        return np.asarray(weight[:, None] * pca.components_[used].T / np.sqrt(pca.explained_variance_[used]))


def log_normalised(counts: NDArray[Any], library_size: float) -> NDArray[np.float32]:
    """log1p of counts ``(n, G)`` scaled to a common total."""
    size = np.maximum(counts.sum(axis=1, keepdims=True, dtype=np.float64), 1e-12)
    return np.asarray(np.log1p(counts * (library_size / size)), dtype=np.float32)


def _averaged(images: NDArray[Any], block: int) -> NDArray[Any]:
    """Images with every `block` x `block` pixels of a plane averaged; a rest at the right and lower border is cut."""
    if block == 1:
        return images
    height, width = (length // block for length in images.shape[-2:])
    cut = images[..., : height * block, : width * block]
    return np.asarray(cut.reshape(*images.shape[:-2], height, block, width, block).mean(axis=(-3, -1)))


class Sample(NamedTuple):
    """A population to compare: standardised variables ``(n, V)`` and the replicate of each cell ``(n,)`` or None."""

    variables: Array
    replicates: NDArray[Any] | None = None


class Space(NamedTuple):
    """Populations by method, ``"prediction"`` and ``"truth"`` among them, in one fixed representation."""

    representation: Representation
    samples: Mapping[str, Sample]


def evaluate(
    spaces: Mapping[str, Space],
    *,
    ends: tuple[str, str] = ("the source", "the target"),
    rng: int | np.random.Generator | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Compare every population with the truth, space by space.

    Parameters
    ----------
    spaces
        By name. All methods but prediction and truth are baselines; their order is the order of the table.
    ends
        What source and target are called in the verdict.

    Returns
    -------
    table
        Columns space, method, metric, value, low, high. Metrics: energy distance and squared MMD (both unbiased), W1,
        W2, and the per-variable error (mean absolute difference of means, in SD of the ends' cells). The MMD's kernel
        width is the truth's median distance, per space. Intervals: 95 %, 200 bootstrap resamples on both sides, the
        same draws of the truth for every method: of replicates where a population has at least three, else of cells.
        The row ``floor`` is the truth split in two at random, replicates kept whole where both halves have three.
    verdict
        One sentence per space, judged by the energy distance and the bootstrap of its difference to each baseline;
        another where the ends are nearer to one another than to the truth.
    """
    rng = np.random.default_rng(rng)
    rows, verdicts = [], {}
    for name, space in spaces.items():
        draws = _draws(space, rng)
        for (method, metric), values in draws.items():
            rows.append((name, method, metric, *percentile_interval(values)))
        energy = {method: values for (method, metric), values in draws.items() if metric == ENERGY}
        verdicts[name] = verdict(energy, space=name, ends=ends) + _beyond(space, energy, ends)
    return pd.DataFrame(rows, columns=["space", "method", "metric", "value", "low", "high"]), verdicts


def _beyond(space: Space, energy: Mapping[str, Array], ends: tuple[str, str]) -> str:
    """Say so where the truth does not lie between the ends: no interpolation can then be expected to reach it."""
    if not {"source", "target"} <= set(space.samples):
        return ""
    a, b = (space.representation.coordinates(space.samples[end].variables) for end in ("source", "target"))
    apart = energy_distance(a, b)
    if apart >= min(float(energy["source"][0]), float(energy["target"][0])):
        return ""
    return (
        f" The truth does not lie between them: {ends[0]} and {ends[1]} are nearer to one another ({apart:.2g}) "
        "than to it, so no interpolation can be expected to reach it."
    )


def _draws(space: Space, rng: np.random.Generator) -> dict[tuple[str, str], Array]:
    """Estimate and bootstrap draws ``(1 + B,)`` of every metric for every method and the floor."""
    truth, position = space.samples[TRUTH], space.representation.coordinates
    metrics: dict[str, Statistic] = {
        ENERGY: energy_statistic,
        "MMD": mmd_statistic(median_distance(position(truth.variables))),
        "W1": wasserstein_statistic(1),
        "W2": wasserstein_statistic(2),
    }
    counts_truth = _resampled(truth, rng)
    compared = {name: (sample, truth, counts_truth) for name, sample in space.samples.items() if name != TRUTH}
    halves = _halves(truth, rng)
    compared[FLOOR] = (*halves, _resampled(halves[1], rng))
    draws = {}
    for name, (x, y, counts_y) in compared.items():
        counts_x = _resampled(x, rng)
        coordinates = position(x.variables), position(y.variables)
        for metric, statistic in metrics.items():
            draws[name, metric] = statistic(*coordinates, counts_x, counts_y, (_units(x), _units(y)))
        draws[name, "per-variable error"] = mean_shift_statistic(x.variables, y.variables, counts_x, counts_y)
    return draws


def _resampled(sample: Sample, rng: np.random.Generator) -> Array:
    """How often each cell enters each bootstrap sample, whole replicates at a time where there are several."""
    return resampled_counts(len(sample.variables), n=N_RESAMPLES, replicates=_units(sample), rng=rng)


def _units(sample: Sample) -> NDArray[Any] | None:
    """Replicates to resample; None where there are too few, so that cells are."""
    names = sample.replicates
    return names if names is not None and len(np.unique(names)) >= FEWEST_REPLICATES else None


def _halves(truth: Sample, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Split the truth in two at random; by whole replicates where both halves then have enough of them."""
    n = len(truth.variables)
    first = np.isin(np.arange(n), rng.permutation(n)[: -(-n // 2)])
    if truth.replicates is not None and len(np.unique(truth.replicates)) >= 2 * FEWEST_REPLICATES:
        order = rng.permutation(np.unique(truth.replicates))
        first = np.isin(truth.replicates, order[: -(-len(order) // 2)])
    names = truth.replicates
    parts = [Sample(truth.variables[m], None if names is None else names[m]) for m in (first, ~first)]
    return parts[0], parts[1]


def verdict(energy: Mapping[str, Array], *, space: str, ends: tuple[str, str]) -> str:
    """Say in one sentence how the prediction compares with the baselines, from draws of the energy distance.

    Better or worse means that the 95 % bootstrap interval of the difference excludes zero.
    """
    baselines = [name for name in energy if name not in NO_BASELINES]
    called = {name: name for name in baselines} | {"source": f"copying {ends[0]}", "target": f"copying {ends[1]}"}
    called |= {"mixture": "a mixture of both ends", "centroid": "the decoded centroid"}
    called |= {AVERAGE: "the measurement average"}
    gaps = {name: percentile_interval(energy[PREDICTION] - energy[name]) for name in baselines}
    ranked = sorted(baselines, key=lambda name: float(energy[name][0]))
    unbeaten = [name for name in ranked if gaps[name].high >= 0]
    worse_than = [name for name in ranked if gaps[name].low > 0]
    if not unbeaten:
        against, words = ranked[0], "better than every baseline (95 % intervals of the differences exclude 0)"
    elif worse_than:
        against = worse_than[0]
        words = f"worse than {called[against]}"
    else:
        against = unbeaten[0]
        words = f"no better than {called[against]}"
    best = ", the best of them" if not unbeaten else ""
    more = ""
    if MOVED in energy and percentile_interval(energy[PREDICTION] - energy[MOVED]).low > 0:
        more = f" The paired cells' own measurements, moved without the decoder, come nearer: {_shown(energy[MOVED])}."
    if RECONSTRUCTED in energy and percentile_interval(energy[RECONSTRUCTED] - energy[against]).low > 0:
        more += (
            f" Decoding alone costs more than that: the true cells, decoded, lie at "
            f"{_shown(energy[RECONSTRUCTED])}, so this space shows the limits of the decoder, not of the path."
        )
    return (
        f"In {_called(space)} the prediction is {words}: energy distance to the truth {_shown(energy[PREDICTION])}, "
        f"against {_shown(energy[against])} for {called[against]}{best}; floor {_shown(energy[FLOOR])}.{more}"
    )


def _called(space: str) -> str:
    name, _, scale = space.partition(", ")
    return f"{name} space" + (f" at {scale} scale" if scale else "")


def _shown(draws: Array) -> str:
    value, low, high = percentile_interval(draws)
    return f"{value:.2g} ({low:.2g} to {high:.2g})"


def mixture(n_source: int, n_target: int, t: float, *, rng: np.random.Generator) -> Index:
    """Rows of stacked source and target cells in proportions 1 - t to t, as many as there are without repeats."""
    n = int(min(n_source / (1 - t) if t < 1 else np.inf, n_target / t if t > 0 else np.inf))
    n_from_target = min(n_target, round(t * n))
    n_from_source = min(n_source, n - n_from_target)
    chosen = rng.choice(n_source, n_from_source, replace=False), rng.choice(n_target, n_from_target, replace=False)
    return np.concatenate([chosen[0], chosen[1] + n_source])


def measurement_averages(
    representation: Representation,
    source: NDArray[np.floating],
    target: NDArray[np.floating],
    t: float,
    *,
    n: int,
    curved: tuple[float, NDArray[np.floating]] | None = None,
    rng: np.random.Generator,
) -> dict[str, tuple[NDArray[np.floating], Index]]:
    """Interpolate without a model: averages of paired cells' measurements, on the comparable scale.

    ``measurement average`` pairs cells at random, ``PCA + OT`` by optimal transport in principal components: those of
    the representation, and for images the first 50 of the pixels. With each average comes the row of its source cell.
    `curved`, progress and bend of a curve through known times, adds ``PCA + OT, curved``.
    """
    if representation.modality == "images":
        from sklearn.decomposition import PCA

        pixels = np.concatenate([source, target]).reshape(len(source) + len(target), -1)
        pca = PCA(min(50, *pixels.shape), svd_solver="randomized", random_state=0)
        positions = np.split(pca.fit_transform(pixels), [len(source)])
    else:
        positions = [representation.coordinates(representation.variables(end)) for end in (source, target)]
    pairs = {
        AVERAGE: pair(*positions, method="random", n_pairs=n, rng=rng),
        "PCA + OT": pair(*positions, method="ot", n_pairs=n, rng=rng),
    }
    averages = {name: ((1 - t) * source[i] + t * target[j], i) for name, (i, j) in pairs.items()}
    if curved is not None:
        i, j = pairs["PCA + OT"]
        averages[CURVED] = (1 - curved[0]) * source[i] + curved[0] * target[j] + curved[1], i
    return averages
