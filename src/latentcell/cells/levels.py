"""Levels of an obs column: which cells are at a stage or time, and in which order levels come."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell import keys
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

Level = str | float

logger = logging.getLogger("latentcell")


def column(cells: AnnData, key: str) -> pd.Series[Any]:
    """Column `key` of ``cells.obs``.

    Raises
    ------
    InputError
        If there is none; the message lists the columns.
    """
    if key not in cells.obs:
        present = ", ".join(map(repr, cells.obs.columns)) or "none"
        measured = key in cells.var_names
        hint = f" {key!r} is a measured variable: name it with obs_columns (--obs-columns)." if measured else ""
        raise InputError(f"The cells have no column {key!r}; columns of obs: {present}.{hint}")
    return cells.obs[key]


def times(cells: AnnData, key: str) -> NDArray[np.float64] | None:
    """Value of a numeric column for each cell ``(n,)``, missing as NaN; None where the levels are names.

    Numbers stored as text, as they come from many tables, are numbers.
    """
    values = column(cells, key)
    if pd.api.types.infer_dtype(values.astype(object), skipna=True) == "boolean":
        return None
    if not pd.api.types.is_numeric_dtype(values):
        values = values.astype(object).where(values.notna(), None)
    numbers = pd.to_numeric(values, errors="coerce")
    readable = numbers.notna().to_numpy() == column(cells, key).notna().to_numpy()
    return numbers.to_numpy(dtype=np.float64) if readable.all() and numbers.notna().any() else None


def level_rows(cells: AnnData, key: str, level: Level) -> NDArray[np.intp]:
    """Rows of the cells at a level of an obs column; numbers are compared as numbers, everything else as text.

    Raises
    ------
    InputError
        If the column does not exist or no cell has the level; the message lists those present.
    """
    values, numbers = column(cells, key), times(cells, key)
    if numbers is not None:
        rows = np.flatnonzero(numbers == _number(level))
    else:
        rows = np.flatnonzero((values.notna() & (values.astype(str) == str(level))).to_numpy())
    if rows.size == 0:
        counts = values.value_counts(sort=False)
        present = ", ".join(f"{name} ({count})" for name, count in counts[counts > 0].items())
        raise InputError(f"No cell has {key!r} equal to {level!r}; levels present (cells): {present}.")
    return rows


def ordered_levels(cells: AnnData, key: str) -> list[Any]:
    """Levels present, in their order: numbers by size, ordered categories as ordered.

    Raises
    ------
    InputError
        If the levels are names without an order.
    """
    numbers = times(cells, key)
    if numbers is not None:
        return [float(value) for value in np.unique(numbers[~np.isnan(numbers)])]
    values = column(cells, key)
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered:
        return list(values.cat.remove_unused_categories().cat.categories)
    raise InputError(
        f"The levels of {key!r} are names without an order ({listed(sorted(values.dropna().astype(str).unique()), 12)}"
        f"), so none lies between others. Name source and target, or order them: cells.obs[{key!r}] = "
        "pandas.Categorical(..., categories=[...], ordered=True), on the command line --order first,second,third."
    )


def ordered(cells: AnnData, key: str, order: Sequence[Level]) -> AnnData:
    """Cells of the named levels only, with ``obs[key]`` an ordered categorical in that order; numbers stay numbers.

    Raises
    ------
    InputError
        If a level of `order` has no cells.
    """
    rows = np.sort(np.concatenate([level_rows(cells, key, level) for level in order]))
    kept = cells[rows].copy()
    if times(cells, key) is None:
        kept.obs[key] = pd.Categorical(kept.obs[key].astype(str), categories=list(map(str, order)), ordered=True)
    if len(kept) < len(cells):
        logger.info("%d cells at other levels of %r are left out", len(cells) - len(kept), key)
    return kept


def _number(level: Level) -> float:
    try:
        return float(level)
    except ValueError:
        return float("nan")


def keep_out(
    cells: AnnData, share: float = 0.2, *, by: str | None = None, rng: int | np.random.Generator | None = 0
) -> dict[str, list[Any]]:
    """Choose cells that no fit may see, for measuring afterwards what was learnt.

    Writes ``obs["kept_out"]``: ``"yes"`` for about `share` of the cells, or of the groups of the column `by`, else
    ``"no"``.

    Returns
    -------
    What to give to a fit as ``exclude``.

    Raises
    ------
    InputError
        If nothing, or everything, would be kept out.
    """
    generator = np.random.default_rng(rng)
    groups = np.arange(cells.n_obs) if by is None else column(cells, by).astype(str).to_numpy()
    levels = generator.permutation(np.unique(groups))
    n_out = max(1, round(share * len(levels)))
    if not 0 < share < 1 or n_out >= len(levels):
        raise InputError(f"A share of {share:g} of {len(levels)} {by or 'cells'} cannot be kept out.")
    out = np.isin(groups, levels[:n_out])
    cells.obs[keys.KEPT_OUT] = pd.Categorical(np.where(out, "yes", "no"), ["no", "yes"])
    return {keys.KEPT_OUT: ["yes"]}
