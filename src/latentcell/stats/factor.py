"""A generative factor as arrays: what an annotation says of each cell, whatever its kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["continuous", "ordinal", "cyclic", "categorical"]

N_BINS = 20
"""Classes that numbers are cut into where a statistic counts (as in Locatello et al. 2019)."""


@dataclass(frozen=True)
class Factor:
    """One annotation of n cells.

    Attributes
    ----------
    name
        Name for tables and messages.
    kind
        ``"continuous"``: numbers; ``"ordinal"``: levels with an order; ``"cyclic"``: a place on a circle, such as the
        phase of the cell cycle; ``"categorical"``: levels without an order.
    value
        ``(n,)`` float64, NaN where unknown: the number; the index into `levels`; or for a cyclic factor the share of a
        turn in ``[0, 1)``.
    levels
        Names of the levels (ordinal, categorical).
    period
        Length of a turn of a cyclic factor in the units of its column.
    """

    name: str
    kind: Kind
    value: Array
    levels: tuple[str, ...] = ()
    period: float = 1.0

    @property
    def text(self) -> str:
        """How it is asked for: ``name:kind``."""
        return f"{self.name}:{self.kind}" + (f"={self.period:.17g}" if self.kind == "cyclic" else "")

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which cells are annotated, ``(n,)``."""
        return ~np.isnan(self.value)

    def take(self, rows: NDArray[Any]) -> Factor:
        """Same factor of the cells `rows`."""
        return replace(self, value=self.value[rows])

    def present(self) -> Factor:
        """Same factor without levels that no cell has."""
        if not self.levels:
            return self
        used, codes = np.unique(self.value[self.known], return_inverse=True)
        value = np.full(len(self.value), np.nan)
        value[self.known] = codes
        return replace(self, value=value, levels=tuple(self.levels[int(i)] for i in used))

    def classes(self, n_bins: int = N_BINS) -> NDArray[np.intp]:
        """Class of each cell, ``(n,)`` from 0, -1 where unknown.

        Levels are classes. Numbers are cut into `n_bins` classes of about as many cells, ties together (fewer where
        there are fewer distinct values); a circle into `n_bins` arcs of equal length.
        """
        found = np.full(len(self.value), -1, dtype=np.intp)
        known = self.known
        numbers = self.value[known]
        if self.kind == "cyclic":
            found[known] = np.minimum((numbers * n_bins).astype(np.intp), n_bins - 1)
        elif self.kind == "continuous" and len(numbers):
            found[known] = equal_frequency(numbers, n_bins)
        else:
            found[known] = numbers.astype(np.intp)
        return found

    def columns(self) -> tuple[Array, list[str]]:
        """Numeric columns ``(n, p)`` that a covariance can be taken with, and the name of each.

        A number or rank is itself; a circle gives its cosine and sine; a factor of two levels the indicator of the
        second, of more levels the indicator of each. NaN where unknown.
        """
        if self.kind == "cyclic":
            angle = 2 * np.pi * self.value
            return np.column_stack([np.cos(angle), np.sin(angle)]), [f"{self.name} (cos)", f"{self.name} (sin)"]
        if self.kind != "categorical":
            return self.value[:, None], [self.name]
        shown = range(1, 2) if len(self.levels) == 2 else range(len(self.levels))
        columns = np.stack([np.where(self.known, self.value == level, np.nan) for level in shown], axis=1)
        return columns, [f"{self.name}={self.levels[level]}" for level in shown]


def equal_frequency(values: Array, n_bins: int) -> NDArray[np.intp]:
    """Class of each number, ``(n,)`` from 0: at most `n_bins`, of about as many numbers each, ties together."""
    distinct = np.unique(values)
    edges = distinct[1:]
    if len(distinct) > n_bins:
        quantiles = np.unique(np.quantile(values, np.arange(1, n_bins) / n_bins))
        # where nearly all are tied at the least, as doses at 0, what is above it is a class
        edges = quantiles[quantiles > distinct[0]] if quantiles[-1] > distinct[0] else distinct[1:2]
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1].astype(np.intp)
