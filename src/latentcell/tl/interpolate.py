"""Predict the cells between two populations, and compare them with the truth where it is known."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from latentcell import keys
from latentcell.cells.images import set_images
from latentcell.errors import InputError
from latentcell.stats.transport import Path, displace, pair
from latentcell.tl.evaluate import (
    AVERAGE,
    PREDICTION,
    TRUTH,
    Index,
    Representation,
    Table,
    evaluate,
    measurement_averages,
    mixture,
)

if TYPE_CHECKING:
    from latentcell.model.vae import VAE

Pairing = Literal["ot", "random", "centroid"]
Level = str | float
Floats = NDArray[np.floating]

SAMPLED = "sampled"
MAX_EVALUATED = 1_000
"""Cells per population that enter the evaluation; a random subset of this size beyond."""
FEW = 10

logger = logging.getLogger("latentcell")


def interpolate(
    cells: AnnData,
    model: VAE,
    key: str,
    *,
    source: Level,
    target: Level,
    at: float | Sequence[float] = 0.5,
    truth: Level | None = None,
    pairing: Pairing = "ot",
    path: Path = "linear",
    n_cells: int | None = None,
    allow_seen: bool = False,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Predict the population between two stages, times or conditions.

    Cells of the two ends are paired by optimal transport between their posterior means, moved along the path and
    decoded (see `latentcell.stats.transport`). A decoded cell takes the batch of its source cell and, for counts, the
    geometric interpolation of its two cells' library sizes. With `truth`, the prediction is compared with the real
    cells of that level, in two spaces: ``"model"`` (every population encoded and decoded, so that the decoder's blur
    is on both sides) and ``"data"`` (as measured; predictions with the likelihood's noise), on at most 1,000 cells per
    population.

    Parameters
    ----------
    cells
        Cells of both ends, measured as those that the model was fitted on.
    model
        A fitted `latentcell.VAE`.
    key, source, target
        Column of ``cells.obs`` and its levels to start from and to arrive at.
    at
        Position on the path, 0 (source) to 1 (target), or several: the same pairs are then moved to each.
    truth
        Level of `key` to compare with; needs a single `at`.
    pairing
        ``"ot"``, ``"random"``, or ``"centroid"`` (every cell at the two ends' mean position: one cell, not a
        population, for comparison only).
    path
        ``"linear"`` or ``"slerp"``.
    n_cells
        Predicted cells per position; as many as the larger end by default.
    allow_seen
        Compare with truth cells that the model was fitted on. The comparison is then optimistic.

    Returns
    -------
    The predicted cells. The mean, to look at: ``obsm["images"]`` or ``X`` (float32, stored units). One draw with the
    likelihood's noise, to compare populations: ``obsm["sampled"]`` for images, else ``layers["sampled"]``.
    ``obsm["vae"]``: latent positions, float32. ``obs``: ``at``, ``source_cell``, ``target_cell``, and the batch.

    Writes ``cells.uns["interpolate"]``, also on the result: ``params``, and with `truth` ``evaluation`` (DataFrame:
    space, method, metric, value, low, high; the prediction first) and ``verdict`` (one sentence per space).

    Raises
    ------
    InputError
        If the column or a level does not exist, the ends are the same, an end has fewer than two cells, `at` lies
        outside 0 to 1, or truth cells were used in fitting. Fewer than 10 cells at an end only warn.

    Notes
    -----
    Baselines in the evaluation: ``source`` and ``target`` (either end copied), ``mixture`` (cells of both ends,
    1 - at to at), ``random pairs`` and ``centroid`` (the same model, other pairings), ``measurement average``
    (measurements of random pairs averaged; in model space for images and profiles without masks) and, in data space,
    ``PCA + OT`` (of pairs matched by optimal transport in principal components); counts are averaged after
    log-normalisation.
    """
    positions = _positions(at)
    seed = {"rng": rng} if isinstance(rng, int) else {}
    rng = np.random.default_rng(rng)
    if pairing not in get_args(Pairing):
        raise InputError(f"pairing={pairing!r} is unknown; choose one of {', '.join(get_args(Pairing))}.")
    rows_truth = None if truth is None else _truth_rows(cells, model, key, truth, (source, target), allow_seen)
    if rows_truth is not None and len(positions) > 1:
        raise InputError(f"{truth!r} can be compared with one position; `at` holds {len(positions)}. Give one.")
    rows = _end_rows(cells, key, source, target)
    course = _Course(cells, model, _population(cells, model, rows[0]), _population(cells, model, rows[1]), path)
    pairs = course.pairs(pairing, n_cells, rng)
    predicted = _predicted(course, pairs, positions, rng)
    params: dict[str, Any] = {"key": key, "source": source, "target": target, "at": positions, "pairing": pairing}
    params |= {"path": path, "n_source": len(rows[0]), "n_target": len(rows[1]), "n_cells": len(pairs.source.rows)}
    result: dict[str, Any] = {"params": params | seed}
    if rows_truth is not None:
        result["params"] |= {"truth": truth, "n_truth": len(rows_truth), "allow_seen": allow_seen}
        populations, representation = _populations(course, predicted, rows_truth, rng)
        itself = {"random": "random pairs", "centroid": "centroid"}.get(pairing)
        compared = {
            space: {name: values for name, values in methods.items() if name != itself}
            for space, methods in populations.items()
        }
        result["evaluation"], result["verdict"] = evaluate(
            compared, representation, ends=(str(source), str(target)), rng=rng
        )
    cells.uns[keys.INTERPOLATE] = result
    predicted.uns[keys.INTERPOLATE] = result
    logger.info("added %r (cells.uns): %d predicted cells", keys.INTERPOLATE, predicted.n_obs)
    return predicted


@dataclass(frozen=True)
class _Population:
    """Cells of one level: their rows, latent positions (n, d) and, for counts, library sizes (n,)."""

    rows: Index
    z: Floats
    library_size: Floats | None

    def take(self, index: Index) -> _Population:
        sizes = None if self.library_size is None else self.library_size[index]
        return _Population(self.rows[index], self.z[index], sizes)

    def gathered(self) -> _Population:
        """Return the same cells, all at their mean position."""
        return _Population(self.rows, np.broadcast_to(self.z.mean(axis=0), self.z.shape), self.library_size)


class _Pairs(NamedTuple):
    """Paired cells, row by row."""

    source: _Population
    target: _Population


@dataclass(frozen=True)
class _Course:
    """The two ends, the path between them, and the model that decodes what lies on it."""

    cells: AnnData
    model: VAE
    source: _Population
    target: _Population
    path: Path

    def pairs(self, pairing: Pairing, n_pairs: int | None, rng: np.random.Generator) -> _Pairs:
        i, j = pair(
            self.source.z, self.target.z, method="ot" if pairing == "ot" else "random", n_pairs=n_pairs, rng=rng
        )
        if pairing == "centroid":
            return _Pairs(self.source.gathered().take(i), self.target.gathered().take(j))
        return _Pairs(self.source.take(i), self.target.take(j))

    def positions(self, pairs: _Pairs, t: float) -> NDArray[np.float32]:
        return displace(pairs.source.z, pairs.target.z, t, self.path).astype(np.float32)

    def decode(self, pairs: _Pairs, t: float, *, noise: np.random.Generator | None = None) -> Floats:
        """Mean of the cells at `t`, or one draw when given a generator of noise."""
        options: dict[str, Any] = {}
        if self.model.batch_key is not None:
            options["batch"] = self.cells.obs[self.model.batch_key].to_numpy()[pairs.source.rows]
        sizes = pairs.source.library_size, pairs.target.library_size
        if sizes[0] is not None and sizes[1] is not None:
            options["library_size"] = np.maximum(sizes[0], 1.0) ** (1 - t) * np.maximum(sizes[1], 1.0) ** t
        z = self.positions(pairs, t)
        return np.asarray(self.model.decode(z, noise=noise is not None, rng=noise, **options), dtype=np.float32)


def _positions(at: float | Sequence[float]) -> NDArray[np.float64]:
    positions = np.atleast_1d(np.asarray(at, dtype=np.float64))
    outside = positions[~((positions >= 0) & (positions <= 1))]
    if positions.ndim != 1 or positions.size == 0 or outside.size:
        found = f"{outside[0]:g}" if outside.size else repr(at)
        raise InputError(f"`at` must lie between 0 (the source) and 1 (the target), found {found}.")
    return positions


def level_rows(cells: AnnData, key: str, level: Level) -> Index:
    """Rows of the cells at a level of an obs column; numbers are compared as numbers, everything else as text."""
    if key not in cells.obs:
        present = ", ".join(map(repr, cells.obs.columns)) or "none"
        raise InputError(f"The cells have no column {key!r}; columns of obs: {present}.")
    column = cells.obs[key]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        wanted = pd.to_numeric(pd.Series([level]), errors="coerce").iloc[0]
        rows = np.flatnonzero(column.to_numpy() == wanted)
    else:
        rows = np.flatnonzero((column.notna() & (column.astype(str) == str(level))).to_numpy())
    if rows.size == 0:
        counts = column.value_counts(sort=False)
        levels = ", ".join(f"{name} ({count})" for name, count in counts[counts > 0].items())
        raise InputError(f"No cell has {key!r} equal to {level!r}; levels present (cells): {levels}.")
    return rows


def _end_rows(cells: AnnData, key: str, source: Level, target: Level) -> tuple[Index, Index]:
    rows = level_rows(cells, key, source), level_rows(cells, key, target)
    if np.array_equal(rows[0], rows[1]):
        raise InputError(f"Source and target are both {source!r}: there is nothing between a population and itself.")
    _check_size(source, len(rows[0]), 2)
    _check_size(target, len(rows[1]), 2)
    return rows


def _check_size(level: Level, n: int, least: int) -> None:
    if n < least:
        raise InputError(f"{level!r} has {n} cells; at least {least} are needed, and {FEW} or more to mean anything.")
    if n < FEW:
        warnings.warn(
            f"{level!r} has only {n} cells: what is predicted or compared with so few says little about a population.",
            UserWarning,
            stacklevel=4,
        )


def _truth_rows(
    cells: AnnData, model: VAE, key: str, truth: Level, ends: tuple[Level, Level], allow_seen: bool
) -> Index:
    rows = level_rows(cells, key, truth)
    if any(np.array_equal(rows, level_rows(cells, key, end)) for end in ends):
        raise InputError(f"The truth {truth!r} is one of the ends: name a level between them.")
    _check_size(truth, len(rows), 4)
    seen = np.asarray(model.seen(cells[rows]), dtype=bool)
    if seen.any() and not allow_seen:
        raise InputError(
            f"{int(seen.sum())} of {len(rows)} cells of {truth!r} were used in fitting the model (the first is "
            f"{cells.obs_names[rows[seen][0]]!r}), so they cannot show what it predicts of cells it never saw. Fit it "
            f"again with exclude={{{key!r}: [{truth!r}]}} (--exclude {key}={truth}), or allow seen cells "
            "(--allow-seen) and read the result as optimistic."
        )
    return rows


def _population(cells: AnnData, model: VAE, rows: Index) -> _Population:
    sizes = None
    if model.modality_ == "counts":
        blocks = np.array_split(rows, -(-len(rows) // MAX_EVALUATED))
        sizes = np.concatenate([np.asarray(model.measurements(cells[block]).sum(axis=1)) for block in blocks])
    return _Population(rows, np.asarray(model.encode(cells[rows]).mu), sizes)


def _predicted(course: _Course, pairs: _Pairs, positions: Floats, rng: np.random.Generator) -> AnnData:
    """Cells moved to every position, one block of rows per position."""
    cells, model, n_positions = course.cells, course.model, len(positions)
    mean = np.concatenate([course.decode(pairs, t) for t in positions])
    sampled = np.concatenate([course.decode(pairs, t, noise=rng) for t in positions])
    columns = {
        "at": np.repeat(positions, len(pairs.source.rows)),
        "source_cell": np.tile(cells.obs_names[pairs.source.rows].to_numpy(), n_positions),
        "target_cell": np.tile(cells.obs_names[pairs.target.rows].to_numpy(), n_positions),
    }
    if model.batch_key is not None:
        columns[model.batch_key] = np.tile(cells.obs[model.batch_key].to_numpy()[pairs.source.rows], n_positions)
    obs = pd.DataFrame(columns, index=pd.Index([f"predicted_{number}" for number in range(len(mean))]))
    if model.modality_ == "images":
        predicted = AnnData(obs=obs)
        set_images(predicted, mean, channel_names=model.names_)
        predicted.obsm[SAMPLED] = sampled
    else:
        predicted = AnnData(X=mean, obs=obs, var=pd.DataFrame(index=pd.Index(model.names_)))
        predicted.layers[SAMPLED] = sampled
    predicted.obsm[keys.VAE] = np.concatenate([course.positions(pairs, t) for t in positions])
    return predicted


def _populations(
    course: _Course, predicted: AnnData, rows_truth: Index, rng: np.random.Generator
) -> tuple[dict[str, dict[str, Table]], Representation]:
    """Variables of the prediction, the truth and the baselines in both spaces, and the representation they are in."""
    model, t = course.model, float(predicted.obs["at"].iloc[0])
    source, target = (end.take(_thinned(len(end.rows), rng)) for end in (course.source, course.target))
    truth = _population(course.cells, model, rows_truth[_thinned(len(rows_truth), rng)])
    measured = [model.measurements(course.cells[p.rows]) for p in (source, target, truth)]
    fixed = Representation.fit(np.concatenate(measured[:2]), model.modality_, model.names_)
    comparable = [fixed.comparable(values) for values in measured]
    shown = predicted[:MAX_EVALUATED]
    if model.modality_ == "images":
        mean, sampled = shown.obsm[keys.IMAGES], shown.obsm[SAMPLED]
    else:
        mean, sampled = shown.X, shown.layers[SAMPLED]

    def variables(values: Floats) -> Table:
        return fixed.variables(fixed.comparable(values))

    real = {
        "model": [variables(course.decode(_Pairs(p, p), 0.0)) for p in (source, target, truth)],
        "data": [fixed.variables(values) for values in comparable],
    }
    mixed = mixture(len(source.rows), len(target.rows), t, rng=rng)
    spaces: dict[str, dict[str, Table]] = {}
    for space, prediction in (("model", mean), ("data", sampled)):
        a, b, c = real[space]
        ends = {"source": a, "target": b, "mixture": np.concatenate([a, b])[mixed]}
        spaces[space] = {PREDICTION: variables(prediction), TRUTH: c} | ends
    averages = measurement_averages(fixed, comparable[0], comparable[1], t, n=shown.n_obs, rng=rng)
    spaces["data"] |= {name: fixed.variables(values) for name, values in averages.items()}
    if _encodable(course):
        averaged = _reconstructed(course, averages[AVERAGE])
        spaces["model"][AVERAGE] = variables(averaged)
    others: tuple[tuple[str, Pairing], ...] = (("random pairs", "random"), ("centroid", "centroid"))
    for name, pairing in others:
        pairs = course.pairs(pairing, shown.n_obs, rng)
        spaces["model"][name] = variables(course.decode(pairs, t))
        spaces["data"][name] = variables(course.decode(pairs, t, noise=rng))
    return spaces, fixed


def _encodable(course: _Course) -> bool:
    """Whether averaged measurements can pass the encoder: log counts are no counts, and an average has no mask."""
    return course.model.modality_ != "counts" and keys.MASKS not in course.cells.obsm


def _reconstructed(course: _Course, measured: Floats) -> Floats:
    """Measurements encoded and decoded, each in the batch of some source cell."""
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


def _thinned(n: int, rng: np.random.Generator) -> Index:
    return np.sort(rng.choice(n, MAX_EVALUATED, replace=False)) if n > MAX_EVALUATED else np.arange(n)
