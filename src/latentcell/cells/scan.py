"""One pass over measurements of any size, block by block, collecting what the checks and summaries need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from latentcell.cells.images import is_sparse, take_rows

# memory for one block of rows
BLOCK_BYTES = 2**24


class Offending:
    """Entries with one fault, by variable or channel.

    Attributes
    ----------
    n_cells
        ``(k,)`` cells with the fault in each variable or channel.
    first
        ``(k,)`` row of the first such cell, -1 without any.
    """

    def __init__(self, n_columns: int) -> None:
        self.n_cells = np.zeros(n_columns, np.int64)
        self.first = np.full(n_columns, -1, np.int64)

    def add(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Add entries at `rows` (ascending) and `columns`."""
        if not len(rows):
            return
        self.n_cells += np.bincount(columns, minlength=len(self.n_cells))
        first = np.full(len(self.first), -1, np.int64)
        # the last assignment to an index stays, so assigning backwards keeps the first row
        first[columns[::-1]] = rows[::-1]
        self.first = np.where(self.first >= 0, self.first, first)


@dataclass
class MatrixScan:
    """What one pass over a matrix ``(n, G)`` finds; rows are positions in the whole matrix.

    Attributes
    ----------
    rows
        ``(n,)`` rows that were looked at.
    totals, smallest
        ``(n,)`` sum and smallest nonzero value of each cell (NaN for a cell without).
    low, high
        ``(G,)`` range of the finite values of each variable (inf, -inf without any).
    whole
        ``(G,)`` whether all finite values of a variable are whole numbers.
    n_zero
        Number of zeros.
    not_finite, negative, fractional
        Entries that are NaN or infinite, below zero, or not whole numbers.
    """

    rows: np.ndarray
    totals: np.ndarray
    smallest: np.ndarray
    low: np.ndarray
    high: np.ndarray
    whole: np.ndarray
    not_finite: Offending
    negative: Offending
    fractional: Offending
    n_zero: int = 0


@dataclass
class ImageScan:
    """What one pass over images ``(n, C, ...)`` finds.

    Attributes
    ----------
    rows
        ``(n,)`` rows that were looked at.
    low, high
        ``(C,)`` range of the finite values of each channel.
    empty
        ``(n,)`` whether all pixels of a crop are zero.
    not_finite
        Crops with NaN or infinite pixels, by channel.
    """

    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    empty: np.ndarray
    not_finite: Offending


def scan_images(images: Any, rows: np.ndarray | None = None) -> ImageScan:
    """Look at every pixel of `images`, ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, or of the given rows."""
    rows = np.arange(images.shape[0]) if rows is None else np.asarray(rows)
    n_channels = images.shape[1]
    scan = ImageScan(
        rows=rows,
        low=np.full(n_channels, np.inf),
        high=np.full(n_channels, -np.inf),
        empty=np.zeros(len(rows), bool),
        not_finite=Offending(n_channels),
    )
    done = 0
    for some in _row_blocks(rows, int(np.prod(images.shape[1:])) * images.dtype.itemsize):
        block = take_rows(images, some).reshape(len(some), n_channels, -1)
        scan.empty[done : done + len(some)] = ~block.any(axis=(1, 2))
        done += len(some)
        low, high = block.min(axis=2), block.max(axis=2)
        # a NaN or infinite pixel shows in the extremes, so finite blocks need no second look
        if block.dtype.kind == "f" and not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = ~np.isfinite(block)
            cells, channels = np.nonzero(bad.any(axis=2))
            scan.not_finite.add(some[cells], channels)
            low, high = np.where(bad, np.inf, block).min(axis=2), np.where(bad, -np.inf, block).max(axis=2)
        scan.low = np.minimum(scan.low, low.min(axis=0))
        scan.high = np.maximum(scan.high, high.max(axis=0))
    return scan


def scan_matrix(matrix: Any, rows: np.ndarray | None = None) -> MatrixScan:
    """Look at every value of a dense or sparse matrix ``(n, G)``, or of the given rows; sparse stays sparse."""
    n_cells, n_variables = matrix.shape
    rows = np.arange(n_cells) if rows is None else np.asarray(rows)
    if sp.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    scan = MatrixScan(
        rows=rows,
        totals=np.zeros(len(rows)),
        smallest=np.full(len(rows), np.nan),
        low=np.full(n_variables, np.inf),
        high=np.full(n_variables, -np.inf),
        whole=np.ones(n_variables, bool),
        not_finite=Offending(n_variables),
        negative=Offending(n_variables),
        fractional=Offending(n_variables),
    )
    done = 0
    for some in _row_blocks(rows, max(1, n_variables) * 8):
        part = slice(done, done + len(some))
        done += len(some)
        if is_sparse(matrix):
            _scan_sparse(scan, take_rows(matrix, some), some, part)
        else:
            _scan_dense(scan, take_rows(matrix, some), some, part)
    return scan


def _scan_dense(scan: MatrixScan, block: np.ndarray, some: np.ndarray, part: slice) -> None:
    finite = np.isfinite(block)
    values = np.where(finite, block, 0)
    scan.totals[part] = values.sum(axis=1, dtype=np.float64)
    nonzero = np.where(finite & (block != 0), block, np.inf).min(axis=1, initial=np.inf)
    scan.smallest[part] = np.where(np.isfinite(nonzero), nonzero, np.nan)
    scan.low = np.minimum(scan.low, np.where(finite, block, np.inf).min(axis=0))
    scan.high = np.maximum(scan.high, np.where(finite, block, -np.inf).max(axis=0))
    fractional = values != np.floor(values)
    scan.whole &= ~fractional.any(axis=0)
    scan.n_zero += int((block == 0).sum())
    for offending, bad in (
        (scan.not_finite, ~finite),
        (scan.negative, values < 0),
        (scan.fractional, fractional),
    ):
        cells, variables = np.nonzero(bad)
        offending.add(some[cells], variables)


def _scan_sparse(scan: MatrixScan, block: sp.csr_matrix, some: np.ndarray, part: slice) -> None:
    values, variables, starts = block.data, block.indices, block.indptr
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, 0)
    filled = np.flatnonzero(np.diff(starts))
    if filled.size:
        scan.totals[part][filled] = np.add.reduceat(values.astype(np.float64), starts[filled])
        smallest = np.minimum.reduceat(np.where((values != 0) & finite, values, np.inf), starts[filled])
        scan.smallest[part][filled] = np.where(np.isfinite(smallest), smallest, np.nan)
    n_stored = np.bincount(variables, minlength=block.shape[1])
    # a variable that some cell does not store is zero there
    np.minimum(scan.low, 0, out=scan.low, where=n_stored < len(some))
    np.maximum(scan.high, 0, out=scan.high, where=n_stored < len(some))
    # of one dtype: between two, these take ten times as long
    known = np.where(finite, values, np.nan).astype(np.float64)
    np.fmin.at(scan.low, variables, known)
    np.fmax.at(scan.high, variables, known)
    fractional = values != np.floor(values)
    scan.whole[variables[fractional]] = False
    scan.n_zero += len(some) * block.shape[1] - int(np.count_nonzero(values)) - int((~finite).sum())

    def locate(offending: Offending, bad: np.ndarray) -> None:
        entries = np.flatnonzero(bad)
        offending.add(some[np.searchsorted(starts, entries, side="right") - 1], variables[entries])

    locate(scan.not_finite, ~finite)
    locate(scan.negative, values < 0)
    locate(scan.fractional, fractional)


def _row_blocks(rows: np.ndarray, row_bytes: int) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
