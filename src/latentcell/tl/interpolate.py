"""Predict the cells between two populations, and compare them with the truth where it is known."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning

from latentcell import keys
from latentcell.cells.levels import Level, column, level_rows
from latentcell.errors import InputError
from latentcell.tl.arithmetic import with_measurements
from latentcell.tl.compare import Comparison
from latentcell.tl.course import Course, Index, Knots, Method, Pairing, Pairs, Path, Population, population_rows
from latentcell.tl.evaluate import evaluate
from latentcell.tl.plausible import Surroundings, warn_of_confounding, warn_of_empty_space
from latentcell.tl.span import Span

if TYPE_CHECKING:
    from latentcell.model.vae import VAE

FEW = 10

logger = logging.getLogger("latentcell")


def interpolate(
    cells: AnnData,
    model: VAE,
    key: str,
    *,
    source: Level | None = None,
    target: Level | None = None,
    at: float | Sequence[float] | None = None,
    truth: Level | None = None,
    pairing: Pairing | Method = "ot",
    path: Path = "auto",
    n_cells: int | None = None,
    library_size: float | None = None,
    sharp: bool = False,
    replicate: str | None = None,
    allow_seen: bool = False,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Predict the population between two stages, times or conditions.

    Cells of the two ends are paired by optimal transport between their posterior means, moved along the path and
    decoded (see `latentcell.stats.transport`). A decoded cell takes the batch of its source cell. With `truth`, the
    prediction is compared with the real cells of that level, in several spaces, on at most 500 cells per population.
    ``"model"``: every population encoded and decoded, so that the decoder's blur is on both sides. ``"data"``: as
    measured, predictions with noise. For images also ``"data, coarse"``: the same averaged over squares of 4 pixels.

    Parameters
    ----------
    cells
        Cells of both ends, measured as those that the model was fitted on. Other cells in it tell where real cells
        are, and where the path bends.
    model
        A fitted `latentcell.VAE`.
    key
        Column of ``cells.obs``: stages, or times (numbers, also as text).
    source, target
        Levels to start from and to arrive at. By default the neighbours of `truth`, or of the times in `at`: of a
        column of numbers or an ordered categorical.
    at
        Where to predict; several places are reached by the same pairs. With times a time, by default that of `truth`,
        else half-way; with stages a position from 0 (source) to 1 (target), 0.5 by default.
    truth
        Level of `key` to compare with; needs a single `at`.
    pairing
        ``"ot"``, ``"random"``, ``"centroid"``, or a `Pairing`, which can keep to cells of one type and knows of
        proliferation and death.
    path
        ``"linear"``; ``"curve"``: bent and paced as the means of the levels beyond the ends suggest, see
        `latentcell.stats.curves.turn`; ``"slerp"``; ``"shift"``: each cell moves by the difference of the two means, a
        share of the cells from the source and the rest back from the target, as scGen does; ``"shift_source"``,
        ``"shift_target"``; ``"geodesic"``: shortest as decoded, which takes seconds to minutes. ``"auto"`` is the curve
        for three or more known times, else linear.
    n_cells
        Predicted cells per position; as many as the larger end by default.
    library_size
        For counts: total of each predicted cell; by default the geometric interpolation of its two cells' totals.
    sharp
        For images: draw texture instead of white noise, by the model's refiner (`latentcell.VAE.fit_refiner`); about a
        tenth of a second per cell.
    replicate
        Column of ``obs`` (donor, well, embryo, track) whose levels are resampled for the intervals instead of cells.
    allow_seen
        Compare with truth cells that the model was fitted on. The comparison is then optimistic.

    Returns
    -------
    The predicted cells. The mean, to look at: ``obsm["images"]`` or ``X`` (float32, stored units). One draw with noise,
    to compare populations: ``obsm["sampled"]`` for images, else ``layers["sampled"]``. ``layers["moved"]`` for counts
    and profiles: the paired cells' own measurements, averaged along the path without the decoder (log-normalised
    counts, to the ends' median total). ``obsm["vae"]``: latent positions, float32. ``obs``: ``at``, ``position`` (0 to
    1), ``source_cell``, ``target_cell``, ``plausible`` (as near to a measured cell as 99 % of measured cells are to one
    another), and the batch.

    Writes ``cells.uns["interpolate"]``, also on the result: ``params``, ``plausibility`` (DataFrame: at, position,
    share of plausible cells) and with `truth` ``evaluation`` (DataFrame: space, method, metric, value, low, high; the
    prediction first) and ``verdict`` (one sentence per space).

    Raises
    ------
    InputError
        If the column or a level does not exist, the ends are the same, an end has fewer than two cells, `at` lies
        outside the ends, or truth cells were used in fitting.

    Warns
    -----
    UserWarning
        With fewer than 10 cells at an end; where the path crosses empty space or no chain of measured cells joins the
        ends; where the ends share no batch or differ twofold in sequencing depth.

    Notes
    -----
    Baselines in the evaluation: ``source`` and ``target`` (either end copied), ``mixture`` (cells of both ends,
    1 - at to at), ``random pairs`` and ``centroid`` (the same model, other pairings), ``measurement average``
    (measurements of random pairs averaged; in model space for images and profiles without masks) and, in data space,
    ``PCA + OT`` (of pairs matched by optimal transport in principal components); counts are averaged after
    log-normalisation. Where the path is a curve, ``PCA + OT, curved`` follows the same one. No baselines are
    ``reconstructed truth``, what is lost by decoding alone, and ``moved measurements``, ``layers["moved"]``.
    """
    pairing = pairing if isinstance(pairing, Pairing) else Pairing(pairing)
    span = Span.of(cells, key, source=source, target=target, at=at, truth=truth)
    seed = {"rng": int(rng)} if isinstance(rng, int | np.integer) else {}
    rng = np.random.default_rng(rng)
    if replicate is not None and column(cells, replicate).nunique() < 3:
        warnings.warn(
            f"{replicate!r} has fewer than three levels, which cannot be resampled: intervals are over cells.",
            UserWarning,
            stacklevel=2,
        )
    truth_rows = None if truth is None else _truth_rows(cells, model, span, truth, allow_seen)
    if sharp and not model.refined:
        raise InputError(
            "This model cannot draw sharp images yet: train its refiner first, model.fit_refiner(cells) "
            "(latentcell sharpen RUN DATA)."
        )
    course = course_between(cells, model, span, path, hidden=truth, library_size=library_size)
    ends = span.name(span.source), span.name(span.target)
    warn_of_confounding(course, key, ends, (model.batch_key, replicate))
    pairs = course.pairs(pairing, n_cells, rng)
    predicted = _predicted(course, pairs, span, sharp, rng)
    params = _params(course, pairing, span) | {"n_cells": len(pairs), "sharp": sharp, "replicate": replicate} | seed
    real = np.setdiff1d(np.arange(cells.n_obs), [] if truth_rows is None else truth_rows)
    result: dict[str, Any] = {"params": {name: value for name, value in params.items() if value is not None}}
    result["plausibility"] = _plausibility(course, predicted, span, real, rng)
    if truth_rows is not None:
        result["params"] |= {"truth": truth, "n_truth": len(truth_rows), "allow_seen": allow_seen}
        sampled = predicted.obsm[keys.SAMPLED] if model.modality_ == "images" else predicted.layers[keys.SAMPLED]
        comparison = Comparison(course, pairs, float(span.positions[0]), sampled, truth_rows, pairing, replicate, sharp)
        result["evaluation"], result["verdict"] = evaluate(comparison.spaces(rng), ends=ends, rng=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)  # a view becomes cells of its own
        cells.uns[keys.INTERPOLATE] = result
    predicted.uns[keys.INTERPOLATE] = result
    logger.info(
        "added %r (cells.uns): %d cells predicted between %s and %s, pairing %s, path %s",
        keys.INTERPOLATE, predicted.n_obs, *ends, pairing.method, course.path,
    )  # fmt: skip
    return predicted


def course_between(
    cells: AnnData,
    model: VAE,
    span: Span,
    path: Path,
    *,
    hidden: Level | None = None,
    library_size: float | None = None,
) -> Course:
    """Encode the two ends, and where the path bends the known levels beyond them."""
    rows = [population_rows(cells, span.key, level, 2, FEW) for level in (span.source, span.target)]
    ends = [Population.of(cells, model, each) for each in rows]
    if library_size is not None and model.modality_ != "counts":
        raise InputError(f"library_size is for counts; this model was fitted on {model.modality_}.")
    if library_size is not None and not 0 < library_size < np.inf:
        raise InputError(f"library_size={library_size}: give the total counts of a predicted cell, a positive number.")
    straight = Course(cells, model, ends[0], ends[1], "linear", None, library_size)
    if path not in ("auto", "curve"):
        return replace(straight, path=path)
    if path == "auto" and not span.numeric:
        return straight
    known = span.known_levels(cells, hidden)
    if path == "auto" and len(known) < 3:
        return straight
    return replace(straight, path="curve", knots=_knots(straight, span, known))


def _knots(course: Course, span: Span, known: dict[Level, float]) -> Knots:
    """Means of the cells at each known level, in the latent space and as measured."""
    latent, measured = [], []
    for level in known:
        rows = level_rows(course.cells, span.key, level)
        z = np.asarray(course.model.encode(course.cells[rows]).mu, dtype=np.float64).mean(axis=0)
        latent.append(z)
        measured.append(z if course.model.modality_ == "images" else course.mean_measured(rows))
    return Knots(np.array(list(known.values())), np.array(latent), np.array(measured))


def _params(course: Course, pairing: Pairing, span: Span) -> dict[str, Any]:
    return {
        "key": span.key,
        "source": span.source,
        "target": span.target,
        "at": span.at,
        "pairing": pairing.method,
        "within": pairing.within,
        "growth": pairing.growth,
        "unbalanced": pairing.unbalanced,
        "path": course.path,
        "library_size": course.library_size,
        "n_source": len(course.source.rows),
        "n_target": len(course.target.rows),
    }


def _truth_rows(cells: AnnData, model: VAE, span: Span, truth: Level, allow_seen: bool) -> Index:
    if len(span.at) > 1:
        raise InputError(f"{truth!r} can be compared with one position; `at` holds {len(span.at)}. Give one.")
    rows = level_rows(cells, span.key, truth)
    if any(np.array_equal(rows, level_rows(cells, span.key, end)) for end in (span.source, span.target)):
        raise InputError(f"The truth {truth!r} is one of the ends: name a level between them.")
    population_rows(cells, span.key, truth, 4, FEW)
    seen = np.asarray(model.seen(cells[rows]), dtype=bool)
    if seen.any() and not allow_seen:
        raise InputError(
            f"{int(seen.sum())} of {len(rows)} cells of {truth!r} were used in fitting the model (the first is "
            f"{cells.obs_names[rows[seen][0]]!r}), so they cannot show what it predicts of cells it never saw. Fit it "
            f"again with exclude={{{span.key!r}: [{truth!r}]}} (--exclude {span.key}={truth}), or allow seen cells "
            "(allow_seen=True, --allow-seen) and read the result as optimistic."
        )
    return rows


def _predicted(course: Course, pairs: Pairs, span: Span, sharp: bool, rng: np.random.Generator) -> AnnData:
    """Cells moved to every position, one block of rows per position."""
    cells, model, positions = course.cells, course.model, span.positions
    n, n_positions = len(pairs), len(positions)
    places = [course.positions(pairs, t) for t in positions]
    mean = _stacked([course.decode(pairs, t, z=z) for t, z in zip(positions, places, strict=True)])
    sampled = _stacked(
        [course.decode(pairs, t, z=z, noise=rng, sharp=sharp) for t, z in zip(positions, places, strict=True)]
    )
    columns = {
        "at": np.repeat(span.at, n),
        "position": np.repeat(positions, n),
        "source_cell": np.tile(cells.obs_names[pairs.source.rows].to_numpy(), n_positions),
        "target_cell": np.tile(cells.obs_names[pairs.target.rows].to_numpy(), n_positions),
    }
    if model.batch_key is not None:
        columns[model.batch_key] = np.tile(course.batch(pairs), n_positions)
    obs = pd.DataFrame(columns, index=pd.Index([f"predicted_{number}" for number in range(len(mean))]))
    predicted = with_measurements(model, obs, mean, sampled, _stacked(places))
    if model.modality_ != "images" and not pairs.gathered:
        predicted.layers[keys.MOVED] = _stacked([course.moved(pairs, t) for t in positions])
    return predicted


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Join arrays; one alone is not copied, which would double what large images take."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _plausibility(
    course: Course, predicted: AnnData, span: Span, real: Index, rng: np.random.Generator
) -> pd.DataFrame:
    """Write ``obs["plausible"]``, warn of empty space, and tabulate the share of plausible cells per position."""
    around = Surroundings(course, real, rng)
    mean = predicted.obsm[keys.IMAGES] if course.model.modality_ == "images" else predicted.X
    predicted.obs["plausible"] = around.near(np.asarray(mean))
    places = predicted.obs["position"].to_numpy()
    shares = [float(predicted.obs["plausible"][places == t].mean()) for t in span.positions]
    source, target = (np.isin(around.real.rows, end.rows) for end in (course.source, course.target))
    gap = around.gap(source, target) if source.any() and target.any() else 0.0
    warn_of_empty_space(shares, span.at, gap, (span.name(span.source), span.name(span.target)))
    return pd.DataFrame({"at": span.at, "position": span.positions, "plausible": shares})


def replay(predicted: AnnData, cells: AnnData, model: VAE) -> tuple[Course, Pairs]:
    """Recover the course and the pairs of cells behind a prediction, to decode more steps of the same path.

    Raises
    ------
    InputError
        If `predicted` does not come from `interpolate`, or its cells are not among `cells`.
    """
    result = predicted.uns.get(keys.INTERPOLATE)
    if result is None or not {"source_cell", "target_cell", "position"} <= set(predicted.obs):
        raise InputError("These are not predicted cells: give the result of latentcell.tl.interpolate.")
    params = dict(result["params"])
    span = Span.of(
        cells, params["key"], source=params["source"], target=params["target"], at=list(params["at"]), truth=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few cells: told when they were predicted
        course = course_between(
            cells, model, span, params["path"], hidden=params.get("truth"), library_size=params.get("library_size")
        )
    first = predicted.obs.iloc[: int(params["n_cells"])]
    places = []
    for end, name in ((course.source, "source_cell"), (course.target, "target_cell")):
        found = cells.obs_names[end.rows].get_indexer(pd.Index(first[name]))
        if (found < 0).any():
            raise InputError(
                f"{int((found < 0).sum())} of the cells that the prediction started from are not among these (the "
                f"first is {first[name].iloc[int(np.argmax(found < 0))]!r}). Give the cells that were interpolated."
            )
        places.append(found)
    return course, course.matched(places[0], places[1], Pairing(params["pairing"], within=params.get("within")))
