"""Factors of cells: columns of obs read as continuous, ordinal, cyclic or categorical, and what cannot be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from latentcell.cells.levels import column, times
from latentcell.errors import InputError, listed
from latentcell.stats.factor import Factor, Kind

if TYPE_CHECKING:
    from anndata import AnnData

# distinct numbers up to which a nuisance is taken as levels: plates are numbered, library sizes are counted
_FEW_NUMBERS = 20


def read_factors(cells: AnnData, names: Sequence[str], *, varying: bool = True) -> list[Factor]:
    """Factors from columns of ``obs``, each written ``name`` or ``name:kind``.

    Without a kind, numbers are continuous, ordered categories ordinal, anything else categorical. A cyclic factor must
    be said: ``phase:cyclic`` for shares of a turn in ``[0, 1)``, ``hour:cyclic=24`` for another period; ordered
    categories may be cyclic too.

    Parameters
    ----------
    varying
        Refuse what does not vary between cells; False to read again of some cells what varies among others.

    Raises
    ------
    InputError
        If a column is missing, repeated, empty, constant, or names every cell; or if a kind does not fit.
    """
    read = [_read(cells, text) for text in names]
    for factor in read if varying else ():
        refuse_unvarying(factor)
    repeated = pd.Index([factor.name for factor in read])
    if repeated.has_duplicates:
        raise InputError(f"The factor {repeated[repeated.duplicated()][0]!r} is named twice.")
    return read


def read_nuisance(cells: AnnData, names: Sequence[str]) -> list[Factor]:
    """Nuisance factors, as `read_factors`, but a few distinct numbers (plates, donors) are taken as levels."""
    read = []
    for text in names:
        key, kind = text.partition(":")[::2]
        numbers = times(cells, key) if not kind else None
        few = numbers is not None and len(np.unique(numbers[~np.isnan(numbers)])) <= _FEW_NUMBERS
        read.append(f"{key}:categorical" if few else text)
    return read_factors(cells, read)


def refuse_inseparable(factors: Sequence[Factor], nuisance: Sequence[Factor]) -> None:
    """Refuse a factor that does not vary within any level of a nuisance factor.

    Raises
    ------
    InputError
        Naming both: whatever differs between the factor's levels may as well come from the nuisance.
    """
    for factor in factors:
        for other in nuisance:
            if factor.name == other.name:
                raise InputError(f"{factor.name!r} is named both as a factor and as a nuisance; it can be one of them.")
            both = factor.known & other.known
            if other.kind == "continuous" or not both.any():
                continue
            pairs = np.unique(np.column_stack([other.value, factor.value])[both], axis=0)
            if len(pairs) == len(np.unique(pairs[:, 0])):
                raise InputError(
                    f"{factor.name!r} cannot be separated from {other.name!r}: within each level of {other.name!r} "
                    f"({listed(other.levels)}) all cells have the same {factor.name!r}, so what differs may come from "
                    f"either. Leave {other.name!r} out of the nuisance factors and read the result as that of both, or "
                    "add cells that break the tie."
                )


def _read(cells: AnnData, text: str) -> Factor:
    name, asked = text.partition(":")[::2]
    kind, period = asked.partition("=")[::2]
    if asked and kind not in get_args(Kind):
        raise InputError(f"The kind {asked!r} of factor {name!r} is unknown; choose {', '.join(get_args(Kind))}.")
    if period and kind != "cyclic":
        raise InputError(f"{text!r}: only a cyclic factor has a period.")
    values, numbers = column(cells, name), times(cells, name)
    if numbers is not None and np.isinf(numbers).any():
        raise InputError(
            f"obs[{name!r}] is infinite in {int(np.isinf(numbers).sum())} cells "
            f"({listed(cells.obs_names[np.isinf(numbers)])}): leave the value empty or the cells out."
        )
    ordered = isinstance(values.dtype, pd.CategoricalDtype) and bool(values.cat.ordered)
    none = bool(values.isna().all())
    kind = kind or ("ordinal" if ordered else "categorical" if numbers is None and not none else "continuous")
    if kind == "continuous" or (kind == "cyclic" and not ordered):
        if numbers is None and not none:
            raise InputError(
                f"obs[{name!r}] is to be {kind} but holds names ({listed(values.dropna().unique())}): give numbers, or "
                f"order them: cells.obs[{name!r}] = pandas.Categorical(..., categories=[...], ordered=True)."
            )
        known = np.full(len(values), np.nan) if numbers is None else numbers
        return _turned(name, known, period) if kind == "cyclic" else Factor(name, "continuous", known)
    if kind == "cyclic":
        # evenly spaced, the categories without cells included
        codes = np.where(values.isna(), np.nan, values.cat.codes)
        return Factor(name, "cyclic", codes / len(values.cat.categories), period=len(values.cat.categories))
    if kind == "ordinal" and not ordered and numbers is None and not none:
        raise InputError(
            f"The levels of {name!r} ({listed(values.dropna().unique())}) have no order. Give one: cells.obs[{name!r}] "
            "= pandas.Categorical(..., categories=[...], ordered=True)."
        )
    codes, levels = _levels(values, numbers, ordered)
    return Factor(name, "ordinal" if kind == "ordinal" else "categorical", codes, levels)


def _levels(values: pd.Series[Any], numbers: Any, ordered: bool) -> tuple[Any, tuple[str, ...]]:
    """Index of each cell's level, NaN where unknown, and the levels present, as ordered, by size, or sorted."""
    known = values.notna().to_numpy()
    numeric = pd.api.types.is_numeric_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype)
    spelt = values.astype(object) if numeric else values.astype(str)
    text = np.array([_text(value) for value in spelt], dtype=object)
    if ordered:
        names = [_text(level) for level in values.cat.remove_unused_categories().cat.categories]
    elif numbers is not None:
        # text that reads as a number keeps its spelling: 01 is a name
        size = dict(zip(text[known], numbers[known], strict=True))
        names = sorted(size, key=lambda name: (size[name], name))
    else:
        names = sorted(set(text[known]))
    index = {level: i for i, level in enumerate(names)}
    codes = [index[name] if there else np.nan for name, there in zip(text, known, strict=True)]
    return np.asarray(codes, dtype=np.float64), tuple(names)


def _text(value: Any) -> str:
    """Name of a level: numbers without the digits that they do not need."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _turned(name: str, numbers: Any, period: str) -> Factor:
    """Cyclic factor from numbers with a period."""
    try:
        length = float(period) if period else 1.0
    except ValueError:
        length = np.nan
    if not length > 0 or not np.isfinite(length):
        raise InputError(f"The period {period!r} of {name!r} must be a positive number, such as {name}:cyclic=24.")
    known = numbers[~np.isnan(numbers)]
    if len(known) and (known.min() < 0 or known.max() > length):
        raise InputError(
            f"{name!r} goes from {known.min():g} to {known.max():g}, outside its period of {length:g} (1 where "
            f"none is given). Say the length of a turn: {name}:cyclic={np.ceil(known.max()):g}, 24 for hours, 6.2832 "
            "for radians."
        )
    return Factor(name, "cyclic", (numbers / length) % 1.0, period=length)


def refuse_unvarying(factor: Factor) -> None:
    """Refuse a factor without values, with one, or with as many levels as cells.

    Raises
    ------
    InputError
        Naming it and its levels.
    """
    known = factor.value[factor.known]
    if len(known) == 0:
        raise InputError(f"obs[{factor.name!r}] is empty for all cells: there is no factor to look for.")
    if len(np.unique(known)) < 2:
        raise InputError(
            f"obs[{factor.name!r}] has the same value in all {len(known)} annotated cells: a factor needs at least two "
            "levels."
        )
    if len(factor.levels) > len(known) / 2:
        raise InputError(
            f"obs[{factor.name!r}] has {len(factor.levels)} levels for {len(known)} cells ({listed(factor.levels)}): "
            "it names cells rather than a factor that cells share."
        )
