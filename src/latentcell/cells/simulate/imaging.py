"""Populations of imaged cells with known factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from latentcell.cells.images import set_images
from latentcell.cells.simulate.factors import SCORED, SIZE, draw
from latentcell.cells.simulate.render import CHANNELS, Optics, expose, render
from latentcell.errors import InputError

# from the first to the last time, in standard scores; the middle is 2.5 SD of size from either end
_DRIFT = {"size": (-2.5, 2.5), "texture": (-1.5, 1.5), "n_puncta": (-0.5, 0.5)}
# large cells are brighter, rougher and hold more puncta, at every time
_COUPLED = {"intensity": 0.4, "texture": 0.3, "n_puncta": 0.5}


def images(
    n: int,
    *,
    size: int = SIZE,
    factors: Mapping[str, ArrayLike] | None = None,
    dtype: str = "uint16",
    depth: int | None = None,
    optics: Optics | None = None,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Simulate fluorescence images of an asynchronous population with known factors.

    Parameters
    ----------
    n
        Number of cells.
    size
        Height and width of the crops in pixels, at least 16.
    factors
        Factors to fix (see `render` for their meaning): a number for all cells, one value per cell, or a tuple
        ``(low, high)`` for a uniform draw. By default orientation and phase are uniform and the others log-normal.
    dtype
        ``"uint16"``, ``"uint8"`` or ``"float32"``, see `expose`.
    depth
        Number of planes for stacks ``(n, 3, depth, size, size)``; None for single images.
    optics
        The microscope; `Optics` with its defaults if None.

    Returns
    -------
    AnnData without variables. ``obsm["images"]`` ``(n, 3, H, W)`` of `dtype` (DNA, cell, puncta), ``obsm["masks"]``
    uint8, true factors, ``cell_cycle`` and ``cell_seed`` in ``obs``, parameters and seed in ``uns["simulation"]``.

    Raises
    ------
    InputError
        If a factor is unknown, outside its limits or of the wrong length, or the crop is too small.
    """
    check_number("n", n)
    seed = seed_of(rng)
    generator = np.random.default_rng(seed)
    scores = {name: generator.standard_normal(n) for name in SCORED}
    obs = draw(scores, size=size, overrides=factors, rng=generator)
    params = {"factors": _writable(factors or {}), "size": size, "dtype": dtype, "depth": depth or 0}
    cells = imaged(obs, size=size, dtype=dtype, depth=depth, optics=optics, rng=generator)
    cells.uns["simulation"] = {"function": "images", "seed": seed, **params, "optics": asdict(optics or Optics())}
    return cells


def time_course(
    n_per_time: int = 300,
    times: Sequence[float] = (0.0, 0.5, 1.0),
    *,
    size: int = SIZE,
    paired: bool = False,
    dtype: str = "uint16",
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Simulate images of G1 cells that grow and become rougher with time; any time can be held out.

    In standard scores every cell moves by the same vector, ``score(t) = score(0) + t * drift``: size by 5 SD, texture
    by 3, puncta by 1 between times 0 and 1. Between cells, size is correlated with intensity (0.4), texture (0.3) and
    puncta (0.5) at every time. Optimal transport between two times therefore pairs every cell with its own future, and
    the mixture of two ends is not what lies between: the middle is 2.5 SD of size away from either.

    Parameters
    ----------
    n_per_time
        Cells per time.
    times
        Increasing numbers within ``[0, 1]``.
    size
        Height and width of the crops in pixels.
    paired
        Follow the same cells through all times (``obs["lineage"]`` repeats). By default every time has its own
        cells, as when cells are fixed for imaging.
    dtype
        See `expose`.

    Returns
    -------
    AnnData as from `images`, with ``obs["time"]`` (float), ``obs["stage"]`` (ordered categorical: early, middle, late
    for three times, else ``time_0.25``), ``obs["lineage"]`` (int).

    Raises
    ------
    InputError
        If times do not increase or leave ``[0, 1]``.
    """
    check_number("n_per_time", n_per_time)
    moments, names = checked_times(times)
    seed = seed_of(rng)
    generator = np.random.default_rng(seed)
    n_cohorts = 1 if paired else len(moments)
    cohort = _correlated_scores(n_per_time * n_cohorts, generator)
    lineage = np.tile(np.arange(n_per_time), len(moments)) if paired else np.arange(n_per_time * len(moments))
    time = np.repeat(moments, n_per_time)
    scores = {name: score[lineage] for name, score in cohort.items()}
    for name, (start, end) in _DRIFT.items():
        scores[name] = scores[name] + start + (end - start) * time
    obs = draw(scores, size=size, overrides={"phase": (0.0, 0.4)}, rng=generator)
    obs["time"], obs["lineage"] = time, lineage
    obs["stage"] = pd.Categorical(np.repeat(names, n_per_time), names, ordered=True)
    cells = imaged(obs, size=size, dtype=dtype, rng=generator)
    cells.uns["simulation"] = {
        "function": "time_course", "seed": seed, "times": moments, "size": size, "paired": paired, "dtype": dtype,
    }  # fmt: skip
    return cells


def imaged(
    obs: pd.DataFrame,
    *,
    size: int,
    dtype: str = "uint16",
    depth: int | None = None,
    optics: Optics | None = None,
    rng: np.random.Generator,
) -> AnnData:
    """Render and photograph the cells of a factor table, as an AnnData with images and masks."""
    optics = optics or Optics()
    expected, masks = render(obs, size=size, depth=depth, psf=optics.psf)
    cells = AnnData(obs=obs.set_axis([f"cell_{i}" for i in range(len(obs))]))
    set_images(cells, expose(expected, optics=optics, dtype=dtype, rng=rng), channel_names=CHANNELS, masks=masks)
    return cells


def seed_of(rng: int | np.random.Generator | None) -> int:
    """One whole number from which a simulation can be repeated: `rng` itself, or drawn from it."""
    if isinstance(rng, int | np.integer):
        return int(rng)
    return int(np.random.default_rng(rng).integers(2**32))


def checked_times(times: Sequence[float]) -> tuple[np.ndarray, list[str]]:
    """Times as an array, refused unless they increase within 0 to 1, and what their stages are called."""
    moments = np.asarray(times, dtype=float)
    if moments.ndim != 1 or not moments.size or not (np.diff(moments) > 0).all() or moments[0] < 0 or moments[-1] > 1:
        raise InputError(f"times={list(np.ravel(moments))} must be increasing numbers between 0 and 1.")
    named = ["early", "middle", "late"] if len(moments) == 3 else [f"time_{moment:g}" for moment in moments]
    return moments, named


def check_number(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse a count that is not a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r} must be a whole number of at least {least}.")


def _correlated_scores(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    scores = {name: rng.standard_normal(n) for name in SCORED}
    for name, correlation in _COUPLED.items():
        scores[name] = correlation * scores["size"] + np.sqrt(1 - correlation**2) * scores[name]
    return scores


def _writable(factors: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Numbers and ranges as given; values per cell are in obs, so only the fact is kept."""
    kept = {name: np.asarray(value, dtype=float) for name, value in factors.items()}
    return {
        name: value if isinstance(factors[name], tuple) or not value.ndim else "one value per cell, see obs"
        for name, value in kept.items()
    }
