"""Factors of every kind for tests of what is computed from codes and factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from latentcell.stats.factor import Factor

KINDS = ("continuous", "ordinal", "cyclic", "categorical")


def drawn(kind, n, rng, n_levels=4):
    """A factor of evenly spread values."""
    if kind in ("continuous", "cyclic"):
        return Factor(kind, kind, rng.random(n))
    return Factor(kind, kind, rng.integers(n_levels, size=n).astype(float), tuple("abcdefgh"[:n_levels]))


def numbers(name, values):
    return Factor(name, "continuous", np.asarray(values, dtype=float))


def levels(name, values):
    values = np.asarray(values, dtype=float)
    return Factor(name, "categorical", values, tuple(f"level {i}" for i in range(int(np.nanmax(values)) + 1)))


def hidden(factor, where):
    return replace(factor, value=np.where(where, np.nan, factor.value))


def value_of(table, metric, factor="all"):
    return table.set_index(["metric", "factor"]).loc[(metric, factor)]
