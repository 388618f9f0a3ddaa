"""Minibatches of counts as rows of a sparse matrix: gathering them, and their product with a dense one."""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.float32 import compiled, log1p, on_threads

# rows of a result that one thread takes at a time, at least
_PARTS = 64


@on_threads
def gather(indptr, indices, data, rows, starts, columns, values):
    """Copy `rows` of a CSR matrix to `columns` and `values`, the i-th from ``starts[i]``."""
    for i in prange(rows.size):
        first, at = indptr[rows[i]], starts[i]
        for j in range(starts[i + 1] - at):
            columns[at + j] = indices[first + j]
            values[at + j] = data[first + j]


@on_threads
def log1p_of(starts, values, out):
    """``out = log(1 + values)``, row by row, so that what a row gives does not depend on its neighbours."""
    for i in prange(starts.size - 1):
        _log1p_of(values[starts[i] : starts[i + 1]], out[starts[i] : starts[i + 1]])


@compiled
def _log1p_of(values, out):
    for j in range(values.size):
        out[j] = log1p(values[j])


@compiled
def transpose(starts, columns, values, ends, rows, transposed):
    """Fill `rows` and `transposed` with the same values gene by gene, those of gene g before ``ends[g + 1]``.

    `ends` has one more element than there are genes; its first is 0.
    """
    ends[:] = 0
    for j in range(columns.size):
        ends[np.uint32(columns[j]) + np.uint32(1)] += 1
    for g in range(ends.size - 1):
        ends[g + 1] += ends[g]
    for i in range(starts.size - 1):
        for j in range(starts[i], starts[i + 1]):
            gene = np.uint32(columns[j])
            rows[ends[gene]] = i
            transposed[ends[gene]] = values[j]
            ends[gene] += 1
    # each entry has moved on to where its gene ends
    for g in range(ends.size - 1, 0, -1):
        ends[g] = ends[g - 1]
    ends[0] = 0


@on_threads
def product(starts, columns, values, dense, out):
    """``out = X @ dense`` for sparse X ``(n, m)`` and dense ``(m, k)``."""
    n = starts.size - 1
    for part in prange(_PARTS):
        for i in range(part * n // _PARTS, (part + 1) * n // _PARTS):
            for k in range(out.shape[1]):
                out[i, k] = 0
            j, end = starts[i], starts[i + 1]
            # four at a time: the sums are then read and written a quarter as often
            while j + 4 <= end:
                c0, c1 = np.uint32(columns[j]), np.uint32(columns[j + 1])
                c2, c3 = np.uint32(columns[j + 2]), np.uint32(columns[j + 3])
                v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
                for k in range(out.shape[1]):
                    out[i, k] += v0 * dense[c0, k] + v1 * dense[c1, k] + v2 * dense[c2, k] + v3 * dense[c3, k]
                j += 4
            while j < end:
                value, c = values[j], np.uint32(columns[j])
                for k in range(out.shape[1]):
                    out[i, k] += value * dense[c, k]
                j += 1
