"""Minibatches: rows of any store of measurements, scaled for the model, as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from latentcell.cells.counts import Counts, sparse_rows, take_counts
from latentcell.cells.images import on_disk, take_rows
from latentcell.errors import InputError, listed

# consecutive rows read together from a store on disk, and how many such blocks are mixed in memory
_BLOCK_ROWS = 128
_BLOCKS_MIXED = 32
# pixels around a cell's mask that still count: its edge is part of its shape
_MARGIN = 3


@dataclass(frozen=True)
class Batch:
    """Cells on their way through the model.

    Attributes
    ----------
    x
        Scaled measurements, ``(n, ...)`` float32; of counts, which are not scaled, a sparse matrix.
    size
        Library size of each cell, ``(n,)``, or None.
    covariates
        One-hot batch membership, ``(n, k)``, or None.
    mask
        1 in the cell's mask and a margin, where the likelihood counts; 0 outside, where `x` is 0; ``(n, 1, ...)`` or
        None.
    index
        Row number of each cell in its source, ``(n,)``.
    target
        What the decoder is asked for where that differs from what the encoder sees, else None.
    position
        Where factors place each cell's code, ``(n, d)``, NaN where they do not; or None.
    """

    x: Tensor | Counts
    size: Tensor | None
    covariates: Tensor | None
    mask: Tensor | None
    index: np.ndarray
    target: Tensor | None = None
    position: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dense(self) -> Tensor:
        """`x` as an array, ``(n, ...)``."""
        return self.x.dense() if isinstance(self.x, Counts) else self.x

    @property
    def n_measured(self) -> int:
        """Measured values of one cell."""
        return math.prod(self.x.shape[1:])

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self

        def move(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device, non_blocking=True)

        return replace(
            self,
            x=self.x.to(device),
            size=move(self.size),
            covariates=move(self.covariates),
            mask=move(self.mask),
            target=move(self.target),
            position=move(self.position),
        )


@dataclass(frozen=True)
class Source:
    """Measurements of all cells and what the model needs to read them.

    Attributes
    ----------
    names
        Name of each cell, ``(n,)``, for messages.
    array
        ``(n, ...)``: ndarray, CSR matrix, memmap, h5py dataset or zarr array; kept as stored.
    location, scale
        The model sees ``(array - location) / scale``; they broadcast against one cell.
    clip
        Whether scaled values are cut to [0, 1].
    columns
        Order in which channels or variables are taken from `array`, or None.
    counts
        Whether the measurements are counts, which the model takes as they are, in sparse rows.
    size
        Library sizes ``(n,)`` or None.
    covariates
        ``(n, k)`` float32 or None.
    masks
        ``(n, ...)`` cell masks or None; any store.
    position
        Where factors place each cell's code, ``(n, d)``, or None.
    prepare
        Applied to raw measurements and masks of a block before scaling, such as turning to a canonical orientation.
    """

    names: Any
    array: Any
    location: np.ndarray
    scale: np.ndarray
    clip: bool = False
    columns: np.ndarray | None = None
    counts: bool = False
    size: np.ndarray | None = None
    covariates: np.ndarray | None = None
    masks: Any | None = None
    position: np.ndarray | None = None
    prepare: Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]] | None = None

    def __len__(self) -> int:
        return int(self.array.shape[0])

    @property
    def on_disk(self) -> bool:
        """Whether reading random rows is slow."""
        return on_disk(self.array)

    def rows(self, rows: np.ndarray) -> Any:
        """Measurements of `rows` as stored, in the model's order."""
        values = take_rows(self.array, rows)
        return values if self.columns is None else values[:, self.columns]

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Measurements of `rows` in stored units and the model's order, float32."""
        values = self.rows(rows)
        dense = values.toarray() if sp.issparse(values) else values
        return dense.astype(np.float32, copy=False)

    def raw(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """`stored` measurements and cell masks after `prepare`."""
        values = self.stored(rows)
        masks = None if self.masks is None else take_rows(self.masks, rows) > 0
        return (values, masks) if self.prepare is None else self.prepare(values, masks)

    def prepared(self, rows: np.ndarray) -> Source:
        """The same source with what takes time done once for `rows`; other rows stay zero.

        Only for arrays already in memory: each epoch then reads instead of turning, or of looking for nonzeros.
        Images are kept in the stored dtype.
        """
        if self.on_disk:
            return self
        if self.counts and not sp.issparse(self.array):
            return replace(self, array=sparse_rows(self.array, rows))
        if self.prepare is None:
            return self
        values = np.zeros_like(self.array)
        masks = None if self.masks is None else np.zeros(self.masks.shape, dtype=bool)
        whole = np.issubdtype(values.dtype, np.integer)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            turned, turned_masks = self.raw(block)
            values[block] = np.rint(turned) if whole else turned
            if masks is not None:
                masks[block] = turned_masks
        return replace(self, array=values, masks=masks, columns=None, prepare=None)

    def held(self, rows: np.ndarray) -> Source:
        """The cells `rows` as a source in memory, in the stored dtype, numbered from 0."""
        return replace(
            self,
            array=take_rows(self.array, rows),
            names=self.names[rows],
            size=None if self.size is None else self.size[rows],
            covariates=None if self.covariates is None else self.covariates[rows],
            masks=None if self.masks is None else take_rows(self.masks, rows),
            position=None if self.position is None else self.position[rows],
        )

    def batch(self, rows: np.ndarray) -> Batch:
        """Cells `rows` as the model sees them.

        Raises
        ------
        InputError
            If a cell holds a value that is not finite.
        """
        if self.counts:
            sparse = take_counts(self.array, rows) if sp.issparse(self.array) else Counts.of(self.rows(rows))
            return self._assembled(sparse, None, rows)
        values, masks = self.raw(rows)
        # torch does on all cores what NumPy does on one
        x = torch.from_numpy(np.ascontiguousarray(values)) - torch.as_tensor(self.location)
        x.div_(torch.as_tensor(self.scale))
        if self.clip:
            x.clamp_(0, 1)
        region = None if masks is None else with_margin(masks)
        if region is not None:
            # what lies outside, such as neighbours, is not this cell's measurement
            x.mul_(region)
        return self._assembled(x, region, rows)

    def _assembled(self, x: Tensor | Counts, region: Tensor | None, rows: np.ndarray) -> Batch:
        size, covariates, position = (
            None if each is None else torch.from_numpy(each[rows])
            for each in (self.size, self.covariates, self.position)
        )
        batch = Batch(x, size, covariates, region, rows, position=position)
        # a sum is finite where all values are, and is found sooner than whether each is
        if not math.isfinite(float((x.values if isinstance(x, Counts) else x).sum())):
            broken = ~batch.dense.isfinite().flatten(1).all(1).numpy()
            if broken.any():
                raise InputError(
                    f"{int(broken.sum())} cells hold missing or infinite values ({listed(self.names[rows[broken]])}): "
                    "they have no place in a latent space. Leave them out, or leave out the variables that are missing."
                )
        return batch


def with_margin(masks: np.ndarray) -> Tensor:
    """Masks grown by `_MARGIN` pixels in the plane, ``(n, 1, ...)`` float32."""
    mask = torch.from_numpy(masks[:, None].astype(np.float32))
    flat = mask.flatten(1, -3)
    grown = F.max_pool2d(flat, 2 * _MARGIN + 1, stride=1, padding=_MARGIN)
    return grown.view(mask.shape)


def in_order(source: Source, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Cells `rows` in the order given."""
    for start in range(0, len(rows), batch_size):
        yield source.batch(rows[start : start + batch_size])


def read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read the next minibatch while the last is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def shuffled(source: Source, rows: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Cells `rows` once each in random order; a last batch of a single cell is left out.

    From a store on disk, blocks of consecutive rows are read in random order and mixed in memory, so that one
    chunk is not read again for every cell in it.
    """
    if not source.on_disk:
        order = rng.permutation(rows)
        yield from (batch for batch in in_order(source, order, batch_size) if len(batch) > 1 or len(rows) == 1)
        return
    ordered = np.sort(rows)
    blocks = np.array_split(ordered, max(1, len(ordered) // _BLOCK_ROWS))
    order = rng.permutation(len(blocks))
    for start in range(0, len(blocks), _BLOCKS_MIXED):
        members = np.sort(np.concatenate([blocks[i] for i in order[start : start + _BLOCKS_MIXED]]))
        held = source.held(members)
        for batch in in_order(held, rng.permutation(len(members)), batch_size):
            if len(batch) > 1 or len(rows) == 1:
                yield replace(batch, index=members[batch.index])
