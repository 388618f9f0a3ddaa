"""Which cells train, which are held out for early stopping, and which are kept away altogether."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell.cells.levels import column, level_rows
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

_FEWEST = 4


@dataclass(frozen=True)
class Split:
    """Row numbers of the cells that train and of those held out for early stopping, each sorted."""

    train: np.ndarray
    held_out: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Rows that the fit reads at all."""
        return np.sort(np.concatenate([self.train, self.held_out]))


def split_cells(
    cells: AnnData,
    *,
    exclude: Mapping[str, Sequence[Any]] | None,
    split_key: str | None,
    share: float,
    seed: int,
) -> Split:
    """Split the cells that are not excluded.

    Parameters
    ----------
    exclude
        Levels of ``obs`` columns that are kept away; a cell with any of them is out.
    split_key
        Column whose groups stay whole.
    share
        Share of cells (of groups, where `split_key` is given) held out.

    Raises
    ------
    InputError
        If a column or level does not exist, or too few cells or groups are left.
    """
    rows = np.flatnonzero(~is_excluded(cells, exclude or {}))
    if len(rows) < _FEWEST:
        left = "no cell is" if len(rows) == 0 else f"only {len(rows)} of {cells.n_obs} cells are"
        cause = f" after excluding {dict(exclude)}" if exclude else ""
        raise InputError(f"There is nothing to train on: {left} left{cause}. A fit needs at least {_FEWEST} cells.")
    rng = np.random.default_rng([seed, 1])
    if split_key is None:
        order = rng.permutation(rows)
        n_out = min(max(1, round(share * len(rows))), len(rows) - 2)
        return Split(np.sort(order[n_out:]), np.sort(order[:n_out]))
    groups = column(cells, split_key).iloc[rows]
    if groups.isna().any():
        named = listed(cells.obs_names[rows][groups.isna().to_numpy()])
        raise InputError(f"obs[{split_key!r}] is empty for some cells ({named}), so they belong to no group.")
    levels = rng.permutation(groups.unique())
    if len(levels) < 2:
        raise InputError(
            f"obs[{split_key!r}] has a single group ({levels[0]}) among the cells left: nothing can be held out by it. "
            "Choose another split_key or none."
        )
    n_out = min(max(1, round(share * len(levels))), len(levels) - 1)
    out = groups.isin(levels[:n_out]).to_numpy()
    return Split(rows[~out], rows[out])


def is_excluded(cells: AnnData, exclude: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """Which cells have one of the levels to keep away, ``(n,)``."""
    mask = np.zeros(cells.n_obs, dtype=bool)
    for key, levels in exclude.items():
        named: list[Any] = [levels] if np.isscalar(levels) else list(levels)
        for level in named:
            mask[level_rows(cells, key, level)] = True
    return mask
