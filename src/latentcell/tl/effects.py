"""How each latent dimension and each factor covaries with each measured variable."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from latentcell.errors import InputError
from latentcell.stats.covariance import Covariance, covariance_test
from latentcell.stats.gene_sets import enrichment
from latentcell.tl.explain import described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.stats.factor import Array, Factor
    from latentcell.tl.coded import Coded

logger = logging.getLogger("latentcell")

MOST_CELLS = 5_000
"""Cells that covariances are taken over, at most."""

_MOST_DECODED = 1_000
_N_PERMUTATIONS = 999
_FEWEST_UNTRAINED = 50
_BLOCK = 1_024


@dataclass(frozen=True)
class Column:
    """One number per cell whose covariance with the measured variables is asked for.

    Attributes
    ----------
    of
        ``"dimension"`` or ``"factor"``.
    name
        ``z3``, ``dose``, ``stage=late``.
    value
        ``(n,)``, NaN where unknown.
    by_model
        The same as each fit has it, ``(1 + S, n)``: a dimension by the refit's own code.
    tested
        Whether p may be given: a code does not test the cells that it was trained on.
    """

    of: str
    name: str
    value: Array
    by_model: Array
    tested: bool


@dataclass(frozen=True)
class Design:
    """What covariances are adjusted for, and the unit; see `latentcell.stats.covariance`.

    Attributes
    ----------
    replicate, stratum
        ``(n,)`` or None.
    nuisance
        Numbers to adjust for, ``(n, q)``, or None.
    """

    replicate: NDArray[Any] | None
    stratum: NDArray[Any] | None
    nuisance: Array | None

    @classmethod
    def of(cls, nuisance: Sequence[Factor], replicate: NDArray[Any] | None) -> Design:
        """Levels of nuisance factors become strata, numbers are adjusted for; unknown ones count as the average."""
        strata: NDArray[Any] | None = None
        for factor in (each for each in nuisance if each.levels):
            codes = np.where(factor.known, factor.value, -1.0)
            strata = codes if strata is None else strata * (len(factor.levels) + 1) + codes
        numbers = [factor.columns()[0] for factor in nuisance if not factor.levels]
        columns = np.hstack(numbers) if numbers else None
        if columns is not None:
            columns = np.where(np.isnan(columns), np.nanmean(columns, axis=0), columns)
        return cls(replicate, strata, columns)

    def take(self, rows: NDArray[Any]) -> Design:
        """Same design of the cells `rows`."""
        return Design(*(None if each is None else each[rows] for each in (self.replicate, self.stratum, self.nuisance)))

    def test(self, column: Column, v: Array, x: NDArray[Any], *, keep_permuted: bool, rng: int) -> Covariance | None:
        """Covariance of a column's values `v` with each of `x`; None, with a warning, where it cannot be had."""
        try:
            return covariance_test(
                v,
                x,
                replicate=self.replicate,
                stratum=self.stratum,
                nuisance=self.nuisance,
                n_permutations=_N_PERMUTATIONS,
                keep_permuted=keep_permuted,
                rng=rng,
            )
        except InputError as error:
            # one level without cells among those drawn must not cost hours of fits
            logger.warning("covariances of %s are left out: %s", column.name, error)
            return None

    def freed(self, v: Array) -> Array:
        """Column ``(n,)`` without what strata and nuisance tell of it, mean 0."""
        parts = [np.ones((len(v), 1))]
        if self.stratum is not None:
            parts.append((self.stratum[:, None] == np.unique(self.stratum)).astype(np.float64))
        if self.nuisance is not None:
            parts.append(self.nuisance)
        design = np.hstack(parts)
        return np.asarray(v - design @ np.linalg.lstsq(design, v, rcond=None)[0])


def columns_of(
    found: Coded, factors: Sequence[Factor], dimensions: Sequence[int], rows: NDArray[np.intp] | None = None
) -> list[Column]:
    """Columns of the latent `dimensions` and of the factors, to be held against the cells `rows` or all."""
    untrained = found.untrained if rows is None else found.untrained[rows]
    enough = untrained.sum() >= _FEWEST_UNTRAINED
    columns = []
    for k in dimensions:
        value = np.where(found.untrained, found.mu[:, k], np.nan) if enough else found.mu[:, k]
        columns.append(Column("dimension", f"z{k}", value, found.codes[:, :, k], bool(enough)))
    for factor in factors:
        values, names = factor.columns()
        for value, name in zip(values.T, names, strict=True):
            columns.append(Column("factor", name, value, np.tile(value, (len(found.models), 1)), True))
    return columns


def measured_variables(cells: AnnData, model: VAE, rows: NDArray[np.intp]) -> pd.DataFrame:
    """Named variables of the cells `rows` (see `latentcell.tl.explain.described`), ``(n, variables)`` float32."""
    source = model.schema_.source(cells)
    optical = model.modality_ == "images"
    blocks = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        blocks.append(described(model, model.measurements(cells, block) if optical else source.stored(block)))
    table = pd.concat(blocks, ignore_index=True)
    return table.astype(np.float32)


def implied(found: Coded, columns: Sequence[Column], rows: NDArray[np.intp], design: Design) -> tuple[Array, Array]:
    """Covariance of each column with each variable as the model decodes it, and its SD over all fits, ``(columns, G)``.

    Each fit decodes its own codes of the cells `rows`, without noise, in the average batch and at one library size.
    The SD is 0 where there is one fit.
    """
    rows, per_fit = rows[:_MOST_DECODED], []
    given = design.take(rows)
    for i, model in enumerate(found.models):
        own = found.codes[i][rows]
        if i:
            match = found.matches[i - 1]
            back = np.empty_like(own)
            back[:, match.order] = own * match.sign
            own = back
        decoded = described(model, model.decode(own)).to_numpy(np.float64)
        per_fit.append([_covariance(column.by_model[i][rows], decoded, given) for column in columns])
    stacked = np.array(per_fit)
    return stacked[0], stacked.std(0, ddof=1) if len(stacked) > 1 else np.zeros(stacked.shape[1:])


def _covariance(v: Array, x: Array, design: Design) -> Array:
    known = np.flatnonzero(~np.isnan(v))
    if len(known) < 2:
        return np.full(x.shape[1], np.nan)
    freed = design.take(known).freed(v[known])
    return np.asarray(freed @ x[known] / (len(known) - 1))


def effects_table(
    columns: Sequence[Column],
    variables: pd.DataFrame,
    rows: NDArray[np.intp],
    model_covariance: tuple[Array, Array],
    design: Design,
    *,
    gene_sets: Mapping[str, Sequence[str]] | None,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Covariance of each column with each variable, and the gene sets among them.

    Parameters
    ----------
    variables
        Of the cells `rows`.
    model_covariance
        From `implied`.

    Returns
    -------
    Table with one row per column and variable, the strongest first in each column: ``of``, ``name``, ``variable``,
    ``covariance_model``, ``covariance_model_sd`` (over fits), ``covariance``, ``low``, ``high``, ``effect``,
    ``statistic`` (covariance over its standard error), ``p``, ``q`` (Benjamini-Hochberg over the variables of a
    column), ``n`` (units). And one row per column and gene set.
    """
    x, given = variables.to_numpy(), design.take(rows)
    tables, sets = [], []
    for i, column in enumerate(columns):
        found = given.test(column, column.value[rows], x, keep_permuted=gene_sets is not None, rng=seed)
        if found is None:
            continue
        p = found.p if column.tested else np.full(len(found.p), np.nan)
        table = pd.DataFrame(
            {
                "of": column.of,
                "name": column.name,
                "variable": variables.columns,
                "covariance_model": model_covariance[0][i],
                "covariance_model_sd": model_covariance[1][i],
                "covariance": found.covariance,
                "low": found.low,
                "high": found.high,
                "effect": found.effect,
                "statistic": found.statistic,
                "p": p,
                "q": false_discovery_control(p) if column.tested else p,
                "n": found.n_units,
            }
        )
        tables.append(table.iloc[np.argsort(-np.abs(found.statistic), kind="stable")])
        if gene_sets is not None and column.tested:
            enriched = enrichment(found.statistic, found.permuted, list(variables.columns), gene_sets)
            enriched.insert(0, "name", column.name)
            enriched.insert(0, "of", column.of)
            sets.append(enriched)
    if not tables:
        raise InputError("No dimension and no factor varies among the cells, so that nothing covaries with anything.")
    return pd.concat(tables, ignore_index=True), pd.concat(sets, ignore_index=True) if sets else pd.DataFrame()


def effect_maps(
    cells: AnnData, model: VAE, columns: Sequence[Column], rows: NDArray[np.intp], design: Design, *, seed: int
) -> dict[str, Array]:
    """Covariance of each column with each pixel of each channel.

    Returns
    -------
    ``covariance``, ``low``, ``high``, ``effect`` and ``q``, each ``(columns, C, [Z,] H, W)`` float32. Pixels are those
    of cells in the orientation that the model sees; q is over the pixels of a column.
    """
    rows = rows[:_MOST_DECODED]
    pixels = model.measurements(cells, rows)
    flat, given = pixels.reshape(len(rows), -1), design.take(rows)
    maps: dict[str, list[Array]] = {name: [] for name in ("covariance", "low", "high", "effect", "q")}
    for column in columns:
        found = given.test(column, column.value[rows], flat, keep_permuted=False, rng=seed)
        unknown = np.full(flat.shape[1], np.nan)
        q = false_discovery_control(found.p) if found is not None and column.tested else unknown
        for name, values in maps.items():
            values.append(unknown if found is None else q if name == "q" else getattr(found, name))
    shape = (len(columns), *pixels.shape[1:])
    return {name: np.stack(values).reshape(shape).astype(np.float32) for name, values in maps.items()}
