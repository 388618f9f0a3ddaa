"""Factors permuted, and statistics on halves: what makes tests and intervals for any statistic of codes and factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from latentcell.errors import InputError
from latentcell.stats.factor import Array, Factor

Rows = NDArray[np.intp]

_FEWEST_UNITS = 4  # cells or replicates that an interval needs, so that a half holds two


def permuted(
    factor: Factor,
    replicate: NDArray[Any] | None = None,
    block: NDArray[Any] | None = None,
    *,
    rng: int | np.random.Generator | None = None,
) -> Factor:
    """Return the factor as it could have been if it had nothing to do with the cells.

    Values change places among the cells where the factor is known. With replicates, a factor that is constant within
    every one of them was given to replicates, not to cells, so that whole replicates exchange their value; one that
    varies within replicates is permuted among the cells of each replicate.

    Parameters
    ----------
    factor
        Factor of n cells.
    replicate
        Well, donor or embryo of each cell, ``(n,)``.
    block
        Plate or batch of each cell, ``(n,)``: nothing is exchanged between blocks.
    """
    rng = np.random.default_rng(rng)
    n, known = len(factor.value), np.flatnonzero(factor.known)
    values = factor.value[known]
    unit = known if replicate is None else _numbered(replicate, n, "replicate")[known]
    pool = np.zeros(len(known), np.intp) if block is None else _numbered(block, n, "block")[known]
    _, first, member = np.unique(unit, return_index=True, return_inverse=True)
    moved = factor.value.copy()
    if (values != values[first][member]).any():
        moved[known] = values[_shuffled(member * (pool.max() + 1) + pool, rng)]
        return replace(factor, value=moved)
    elsewhere = np.flatnonzero(pool != pool[first][member])
    if len(elsewhere):
        name = np.asarray(replicate)[known[elsewhere[0]]]
        raise InputError(
            f"Replicate {str(name)!r} has cells in several blocks, so that {factor.name!r} cannot be exchanged between "
            "the replicates of a block. Give wells of different plates different names, or leave out the block."
        )
    moved[known] = values[first][_shuffled(pool[first], rng)][member]
    return replace(factor, value=moved)


def half_sample_sd(
    statistic: Callable[[Rows], Array],
    n_cells: int,
    *,
    replicate: NDArray[Any] | None = None,
    n: int = 99,
    rng: int | np.random.Generator | None = None,
) -> Array | float:
    """Standard errors of statistics from random halves of the cells (delete-half jackknife, Shao and Wu 1989).

    A statistic of half the cells has about twice the variance of that of all. Half of it remains when the cells are
    given and only the choice of the half varies, which is the variance wanted.

    Parameters
    ----------
    statistic
        From the rows of a half, drawn without replacement, to m numbers ``(m,)``; NaN where the half cannot tell.
    n_cells
        Number of cells.
    replicate
        Well, donor or embryo of each cell: halves are then of replicates.
    n
        Number of halves.

    Returns
    -------
    numpy.ndarray or float
        ``(m,)``, NaN where fewer than half of the halves tell; NaN for fewer than four cells or replicates.
    """
    rng = np.random.default_rng(rng)
    member = np.arange(n_cells) if replicate is None else _numbered(replicate, n_cells, "replicate")
    n_units = int(member.max()) + 1
    if n_units < _FEWEST_UNITS or n < 2:
        return np.nan
    kept = n_units // 2
    draws = np.stack([statistic(np.flatnonzero(np.isin(member, rng.permutation(n_units)[:kept]))) for _ in range(n)])
    told = [column[~np.isnan(column)] for column in draws.T]
    sd = [each.std(ddof=1) if len(each) >= max(2, n / 2) else np.nan for each in told]
    return np.array(sd) * np.sqrt(kept / (n_units - kept))


def _numbered(labels: NDArray[Any], n: int, name: str) -> Rows:
    """Labels of n cells as numbers from 0, refusing missing ones."""
    if len(labels) != n:
        raise InputError(f"There are {len(labels)} {name} labels for {n} cells: give one per cell.")
    numbers = pd.factorize(np.asarray(labels))[0]
    if (numbers < 0).any():
        raise InputError(f"Cell {int(np.argmin(numbers))} has no {name}: name one for every cell or drop such cells.")
    return numbers.astype(np.intp)


def _shuffled(pool: Rows, rng: np.random.Generator) -> Rows:
    """Permutation of places that exchanges only those of the same pool."""
    source = np.empty(len(pool), dtype=np.intp)
    source[np.argsort(pool, kind="stable")] = np.lexsort((rng.random(len(pool)), pool))
    return source
