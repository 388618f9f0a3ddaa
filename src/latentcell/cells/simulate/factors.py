"""The true factors of simulated cells: their scale, their limits and how they are drawn.

A cell is described by standard scores (0 is a typical cell, 1 is one standard deviation up); `from_scores` turns
them into factors with units. Asynchronous populations, time courses and screens differ only in how they draw scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from latentcell.errors import InputError

MAX_PUNCTA = 60
SIZE = 64


class Factor(NamedTuple):
    """A shifted log-normal factor: ``floor + scale * exp(spread * score)``, valid within ``[low, high]``."""

    floor: float
    scale: float
    spread: float
    low: float
    high: float


# size is in pixels of a crop of 64 pixels and scales with the crop
SCORED = {
    "size": Factor(0.0, 16.0, 0.12, 6.0, SIZE / 2),
    "nucleus_ratio": Factor(0.0, 0.5, 0.08, 0.2, 0.75),
    "elongation": Factor(1.0, 0.25, 0.5, 1.0, 4.0),
    "intensity": Factor(0.0, 1.0, 0.25, 0.0, 50.0),
    "texture": Factor(0.0, 0.25, 0.35, 0.0, 2.0),
    "n_puncta": Factor(0.0, 10.0, 0.35, 0.0, MAX_PUNCTA),
}
UNIFORM = {"orientation": (0.0, np.pi), "phase": (0.0, 1.0)}
NAMES = (*SCORED, *UNIFORM)
CYCLE = {"G1": 0.0, "S": 0.45, "G2": 0.75, "M": 0.94}


def from_scores(scores: Mapping[str, ArrayLike], *, size: int = SIZE) -> pd.DataFrame:
    """Turn standard scores into factors with units.

    Parameters
    ----------
    scores
        One array ``(n,)`` of standard scores per name in ``SCORED``.
    size
        Width of the crop in pixels, to which the cell radius is proportional.

    Returns
    -------
    DataFrame ``(n, 6)``: values clipped to their limits, ``n_puncta`` rounded to whole puncta.
    """
    table = {}
    for name, factor in SCORED.items():
        value = factor.floor + factor.scale * np.exp(factor.spread * np.asarray(scores[name], dtype=float))
        table[name] = np.clip(value, factor.low, factor.high)
    table["size"] *= size / SIZE
    table["n_puncta"] = np.round(table["n_puncta"])
    return pd.DataFrame(table)


def to_scores(factors: pd.DataFrame, *, size: int = SIZE) -> pd.DataFrame:
    """Turn factors into standard scores, the inverse of `from_scores`, for the linear read-outs.

    The cell-cycle phase becomes two columns, ``phase_cos`` and ``phase_sin``; orientation has none, because neither a
    profile nor a transcriptome depends on how a cell lies. Zero puncta are read as half a punctum.
    """
    table = {}
    for name, factor in SCORED.items():
        value = factors[name].to_numpy(dtype=float)
        value = value * SIZE / size if name == "size" else value
        smallest = 0.5 if name == "n_puncta" else 1e-3
        table[name] = np.log(np.maximum(value - factor.floor, smallest) / factor.scale) / factor.spread
    angle = 2 * np.pi * factors["phase"].to_numpy(dtype=float)
    table["phase_cos"], table["phase_sin"] = np.cos(angle), np.sin(angle)
    return pd.DataFrame(table, index=factors.index)


def draw(
    scores: Mapping[str, ArrayLike],
    *,
    size: int,
    overrides: Mapping[str, ArrayLike] | None = None,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Complete scores to a table of cells: factors, uniform orientation and phase, and one seed per cell.

    Parameters
    ----------
    scores
        As in `from_scores`.
    overrides
        Factors to fix: a scalar, an array ``(n,)``, or a tuple ``(low, high)`` for a uniform draw.

    Returns
    -------
    DataFrame with the columns ``NAMES``, ``cell_cycle`` (categorical) and ``cell_seed`` (int64).
    """
    table = from_scores(scores, size=size)
    n = len(table)
    for name, (low, high) in UNIFORM.items():
        table[name] = rng.uniform(low, high, n)
    seeds = rng.integers(2**32, size=n)
    for name, value in (overrides or {}).items():
        table[name] = _override(name, value, n, rng)
    table["n_puncta"] = table["n_puncta"].round()
    check(table, size=size)
    table["cell_cycle"] = cell_cycle(table["phase"].to_numpy())
    table["cell_seed"] = seeds
    return table


def cell_cycle(phase: np.ndarray) -> pd.Categorical:
    """Name the stage (G1, S, G2, M) of every phase in ``[0, 1)``."""
    stage = np.searchsorted(list(CYCLE.values()), phase, side="right") - 1
    return pd.Categorical(np.array(list(CYCLE))[stage], list(CYCLE), ordered=True)


def check(factors: pd.DataFrame, *, size: int) -> None:
    """Refuse factor tables with missing columns, missing values or values outside the limits of the renderer."""
    missing = [name for name in NAMES if name not in factors]
    if missing:
        raise InputError(f"The factor table lacks {', '.join(missing)}; a cell needs all of {', '.join(NAMES)}.")
    limits = {name: (factor.low, factor.high) for name, factor in SCORED.items()}
    limits |= {"size": (limits["size"][0] * size / SIZE, size / 2), "orientation": (-np.inf, np.inf)}
    limits["phase"] = (0.0, np.nextafter(1.0, 0.0))
    for name, (low, high) in limits.items():
        value = factors[name].to_numpy(dtype=float)
        wrong = np.flatnonzero(~(np.isfinite(value) & (value >= low) & (value <= high)))
        if wrong.size:
            raise InputError(
                f"Factor {name!r} is {value[wrong[0]]:g} in cell {wrong[0]} ({wrong.size} cells in all): it must lie "
                f"between {low:g} and {high:.4g} for crops of {size} pixels."
            )


def _override(name: str, value: ArrayLike, n: int, rng: np.random.Generator) -> np.ndarray:
    if name not in NAMES:
        raise InputError(f"There is no factor {name!r}; the factors are {', '.join(NAMES)}.")
    values = np.asarray(value, dtype=float)
    if isinstance(value, tuple):
        if values.shape != (2,) or not values[0] <= values[1]:
            raise InputError(f"Factor {name!r} was given as the tuple {value}: a range is (low, high), low <= high.")
        return rng.uniform(values[0], values[1], n)
    if values.shape not in ((), (n,)):
        raise InputError(
            f"Factor {name!r} has shape {values.shape} for {n} cells: give a number, (low, high) or one value per cell."
        )
    return np.broadcast_to(values, n).copy()
