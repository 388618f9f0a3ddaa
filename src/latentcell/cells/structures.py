"""Cells that each show some of several structures: pairs of a cell and a structure, as a conditional model sees them.

A pair's images are the structure, scaled by the range of that structure, and the reference channels. Its covariates are
one-hot the structure, then 1 for each reference channel that is told (`hidden` sets these and the channel to 0), then
one-hot the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from latentcell.cells.batches import Batch, Source
from latentcell.cells.images import channel_names, measured, take_rows
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("latentcell")

# cells of a structure below which its model is a guess
_FEW = 10
# cells looked through at once, and pairs of a structure behind its intensity range
_BLOCK, _RANGE_CELLS = 256, 500
_PERCENTILES = (0.1, 99.9)
# column that names structures in the simulator, in public data and in most tables
_NAMING = "structure"


@dataclass(frozen=True)
class Pairs:
    """Which structure is shown where.

    Attributes
    ----------
    cell
        Row of each pair's cell, ``(m,)``.
    structure
        Number of each pair's structure, ``(m,)``.
    channel
        Channel that shows it, ``(m,)``.
    structures
        Names of the structures.
    """

    cell: np.ndarray
    structure: np.ndarray
    channel: np.ndarray
    structures: list[str]

    def __len__(self) -> int:
        return len(self.cell)

    def of(self, cells: np.ndarray) -> np.ndarray:
        """Pairs whose cell is one of `cells`, in order."""
        return np.flatnonzero(np.isin(self.cell, cells))


@dataclass(frozen=True, kw_only=True)
class PairSource(Source):
    """Pairs read from the images of their cells.

    Attributes
    ----------
    pairs
        Which they are, those of a cell side by side.
    reference
        Reference channels in the model's order.
    ranges
        Location and scale of each structure, ``(S, 2)``.
    blind
        Whether the reference is hidden from all.
    """

    pairs: Pairs
    reference: Sequence[int]
    ranges: np.ndarray
    blind: bool

    def __len__(self) -> int:
        return len(self.pairs)

    def raw(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Images ``(n, 1 + R, ...)`` and cell masks of pairs; the structure scaled, the reference as stored."""
        cells = self.pairs.cell[rows]
        stored = take_rows(self.array, cells)
        shown = stored[np.arange(len(rows)), self.pairs.channel[rows]].astype(np.float32)
        location, scale = self.ranges[self.pairs.structure[rows]].T.reshape(2, -1, *[1] * (shown.ndim - 1))
        values = np.empty((len(rows), 1 + len(self.reference), *shown.shape[1:]), dtype=np.float32)
        values[:, 0] = (shown - location) / scale
        values[:, 1:] = self.location[1:] if self.blind else stored[:, list(self.reference)]
        return values, None if self.masks is None else take_rows(self.masks, cells) > 0

    def held(self, rows: np.ndarray) -> PairSource:
        """The pairs `rows` with the images of their cells in memory, numbered from 0."""
        cells, cell = np.unique(self.pairs.cell[rows], return_inverse=True)
        pairs = Pairs(cell, self.pairs.structure[rows], self.pairs.channel[rows], self.pairs.structures)
        return replace(
            self,
            array=take_rows(self.array, cells),
            names=self.names[rows],
            covariates=None if self.covariates is None else self.covariates[rows],
            masks=None if self.masks is None else take_rows(self.masks, cells),
            pairs=pairs,
        )


def find_pairs(cells: AnnData, target: Sequence[str], structure_key: str | None) -> Pairs:
    """Which structures the cells show.

    With a `structure_key`, the one target channel shows what that column of ``obs`` names. Without, every target
    channel is a structure. A channel that is missing (NaN) or 0 throughout a crop was not measured.

    Raises
    ------
    InputError
        If a channel or the column is missing, or a cell shows a structure that has no name.
    """
    names = channel_names(cells)
    columns = find_channels(names, target)
    shown = _measured(measured(cells), columns)
    if structure_key is None:
        named, told = cells.obs[_NAMING].nunique() if _NAMING in cells.obs else 0, listed(list(target))
        if named > len(target):
            what = "obs['%s'] names %d structures, but each channel (%s) is taken for one without structure_key"
            logger.warning(what, _NAMING, named, told)
        cell, structure = np.nonzero(shown)
        return _checked(Pairs(cell, structure, np.asarray(columns)[structure], list(target)))
    if len(target) != 1:
        raise InputError(
            f"structure_key={structure_key!r} names what one target channel shows, but {len(target)} are given "
            f"({listed(list(target))}). Give one, or leave structure_key out if each channel is a structure."
        )
    if structure_key not in cells.obs:
        raise InputError(f"There is no column {structure_key!r} in obs; columns present: {listed(cells.obs.columns)}.")
    labels = cells.obs[structure_key]
    unnamed = shown[:, 0] & (labels.isna() | (labels.astype(str).str.strip() == "")).to_numpy()
    if unnamed.any():
        raise InputError(
            f"{int(unnamed.sum())} cells show something in channel {target[0]!r}, but obs[{structure_key!r}] does not "
            f"say what ({listed(cells.obs_names[unnamed])}). Name it, or set the channel to 0 where nothing was "
            "labelled."
        )
    cell = np.flatnonzero(shown[:, 0])
    levels, codes = np.unique(labels.iloc[cell].astype(str), return_inverse=True)
    return _checked(Pairs(cell, codes, np.full(len(cell), columns[0]), [str(level) for level in levels]))


def check_trained(pairs: Pairs, rows: np.ndarray) -> None:
    """Refuse structures that none of the pairs `rows` shows, and warn of those that few show."""
    counted = np.bincount(pairs.structure[rows], minlength=len(pairs.structures))
    absent = [name for name, n in zip(pairs.structures, counted, strict=True) if n == 0]
    if absent:
        raise InputError(
            f"No training cell shows {listed(absent)}: all that do are excluded or held out for early stopping. Give "
            "the fit some, or leave cells of these structures out altogether."
        )
    few = [f"{name} ({n})" for name, n in zip(pairs.structures, counted, strict=True) if n < _FEW]
    if few:
        logger.warning(
            "fewer than %d training cells show %s: what the model says of them is a guess", _FEW, ", ".join(few)
        )


def find_channels(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where channels stand, by name.

    Raises
    ------
    InputError
        If there is none of a name.
    """
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"There is no channel {listed(missing)}; channels present: {listed(list(names))}.")
    return [list(names).index(name) for name in wanted]


def check_varied(cells: AnnData, names: Sequence[str]) -> None:
    """Refuse reference channels that have one value throughout."""
    columns, images = find_channels(channel_names(cells), names), measured(cells)
    lowest, highest = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    for start in range(0, cells.n_obs, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, cells.n_obs))
        values = take_rows(images, rows)[:, columns].swapaxes(0, 1).reshape(len(columns), -1)
        lowest, highest = np.minimum(lowest, values.min(1)), np.maximum(highest, values.max(1))
        if (lowest < highest).all():
            return
    flat = [name for name, low, high in zip(names, lowest, highest, strict=True) if low == high]
    if flat:
        raise InputError(
            f"The reference channel {listed(flat)} has one value in every pixel of every cell: it tells nothing of a "
            "cell's shape. Look at how the images were read, or leave the channel out."
        )


def ranges(array: Any, pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """Location and scale of each structure by its intensity range among the pairs `rows`, ``(S, 2)`` float32."""
    found = np.tile(np.array([0.0, 1.0], dtype=np.float32), (len(pairs.structures), 1))
    for structure in range(len(pairs.structures)):
        members = rows[pairs.structure[rows] == structure]
        members = members[np.linspace(0, len(members) - 1, min(len(members), _RANGE_CELLS)).astype(int)]
        if not len(members):
            continue
        values = take_rows(array, pairs.cell[members])[np.arange(len(members)), pairs.channel[members]]
        low, high = np.percentile(values, _PERCENTILES)
        if not high > low:
            # a structure of a few pixels, such as centrioles
            low, high = values.min(), values.max()
        if not high > low:
            raise InputError(
                f"The structure {pairs.structures[structure]!r} has the same grey value, {low:g}, in all its training "
                "cells: there is nothing to learn from it. Leave it out, or look at how the images were read."
            )
        found[structure] = low, high - low
    return found


def average_images(batches: Iterable[Batch], n_structures: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean image of each structure, ``(S, ...)``, and the mean squared deviation from it, ``(S,)``, float32.

    As the model sees them; with masks, of the values within.
    """
    sums: np.ndarray | None = None
    for batch in batches:
        assert batch.covariates is not None
        x = batch.dense[:, 0].double()
        weight = torch.ones_like(x) if batch.mask is None else batch.mask[:, 0].double()
        shown = batch.covariates[:, :n_structures].double().flatten(1).t()
        part = np.stack([(shown @ each.flatten(1)).numpy() for each in (weight, weight * x, weight * x * x)])
        sums = part if sums is None else sums + part
        shape = x.shape[1:]
    assert sums is not None
    n, total, squares = sums
    mean = total / np.maximum(n, 1)
    variance = (squares - mean * total).sum(1) / np.maximum(n.sum(1), 1)
    return mean.reshape(-1, *shape).astype(np.float32), np.maximum(variance, 1e-8).astype(np.float32)


def pair_source(
    cells: AnnData,
    pairs: Pairs,
    *,
    reference: Sequence[int],
    scaling: tuple[np.ndarray, np.ndarray],
    found: np.ndarray,
    batches: np.ndarray | None,
    masks: Any | None,
    blind: bool,
) -> PairSource:
    """Source of `pairs`; `scaling` are location and scale of the reference ``(R,)``, `batches` one-hot ``(n, b)``."""
    array = measured(cells)
    per_cell = (-1, *[1] * (len(array.shape) - 2))
    location, scale = (
        np.concatenate([[first], values]).astype(np.float32).reshape(per_cell)
        for first, values in zip((0, 1), scaling, strict=True)
    )
    told = [np.eye(len(pairs.structures))[pairs.structure], np.full((len(pairs), len(reference)), float(not blind))]
    if batches is not None:
        told.append(batches[pairs.cell])
    shown = np.asarray(pairs.structures, dtype=object)[pairs.structure]
    return PairSource(
        names=pd.Index([f"{cells.obs_names[c]} ({s})" for c, s in zip(pairs.cell, shown, strict=True)]),
        array=array,
        location=location,
        scale=scale,
        covariates=np.concatenate(told, axis=1).astype(np.float32),
        masks=masks,
        pairs=pairs,
        reference=reference,
        ranges=found,
        blind=blind,
    )


def hidden(batch: Batch, kept: Tensor, n_structures: int) -> Batch:
    """The same pairs with reference channels hidden where `kept` ``(n, R)`` is 0."""
    assert batch.covariates is not None
    x, covariates = batch.dense.clone(), batch.covariates.clone()
    n_reference = kept.shape[1]
    x[:, 1:] *= kept.view(*kept.shape, *[1] * (x.dim() - 2))
    covariates[:, n_structures : n_structures + n_reference] *= kept
    return replace(batch, x=x, covariates=covariates)


def hidden_at_random(batch: Batch, share: float, n_structures: int, generator: torch.Generator) -> Batch:
    """Hide a random subset of the reference channels in about `share` of the pairs, every subset as often."""
    n, n_reference = len(batch), batch.dense.shape[1] - 1
    kept = torch.rand(n, n_reference, generator=generator) < 0.5
    kept |= (torch.rand(n, generator=generator) >= share)[:, None]
    return hidden(batch, kept.float(), n_structures)


def _measured(array: Any, columns: Sequence[int]) -> np.ndarray:
    """Which of some channels each cell was measured in, ``(n, k)``."""
    shown = np.zeros((array.shape[0], len(columns)), dtype=bool)
    for start in range(0, len(shown), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(shown)))
        values = take_rows(array, rows)[:, list(columns)]
        values = values.reshape(len(rows), len(columns), -1)
        shown[rows] = (np.nan_to_num(values) != 0).any(2) if values.dtype.kind == "f" else (values != 0).any(2)
    return shown


def _checked(pairs: Pairs) -> Pairs:
    counted = np.bincount(pairs.structure, minlength=len(pairs.structures))
    absent = [name for name, n in zip(pairs.structures, counted, strict=True) if n == 0]
    if absent or not len(pairs):
        raise InputError(
            f"No cell shows {listed(absent) if absent else 'a structure'}: the channel is 0 or missing throughout."
        )
    return pairs
