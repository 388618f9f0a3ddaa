"""Counts of a few cells as a sparse matrix, on their way through a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from latentcell import kernels

# rows of a dense matrix looked through at once
_BLOCK = 1024


@dataclass(frozen=True)
class Counts:
    """Rows of a sparse matrix of counts.

    Attributes
    ----------
    starts
        Where each cell begins in `columns` and `values`, and where the last ends, ``(n + 1,)`` int64.
    columns
        Gene of each stored value, int32.
    values
        Stored values, float32; all other counts are 0.
    n_genes
        Number of genes.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    n_genes: int

    @classmethod
    def of(cls, matrix: Any) -> Counts:
        """Counts of a SciPy sparse matrix or an array ``(n, n_genes)``."""
        rows = sp.csr_matrix(matrix)
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        return cls(
            torch.from_numpy(rows.indptr.astype(np.int64)),
            torch.from_numpy(rows.indices.astype(np.int32)),
            torch.from_numpy(rows.data.astype(np.float32)),
            rows.shape[1],
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of genes."""
        return len(self), self.n_genes

    def to(self, device: torch.device) -> Counts:
        """The same counts on another device."""
        return Counts(self.starts.to(device), self.columns.to(device), self.values.to(device), self.n_genes)

    def dense(self) -> Tensor:
        """The counts as ``(n, n_genes)`` float32."""
        cells = torch.repeat_interleave(torch.arange(len(self), device=self.starts.device), self.starts.diff())
        out = self.values.new_zeros(self.shape)
        return out.index_put_((cells, self.columns.long()), self.values, accumulate=True)


def take_counts(matrix: sp.csr_matrix | sp.csr_array, rows: np.ndarray) -> Counts:
    """Rows of a CSR matrix without duplicate entries, in the order asked for."""
    if not kernels.in_use(torch.device("cpu")):
        return Counts.of(matrix[rows])
    from latentcell.kernels.sparse import gather

    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(matrix.indptr[rows + 1] - matrix.indptr[rows], out=starts[1:])
    columns, values = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.float32)
    kernels.share_threads()
    gather(matrix.indptr, matrix.indices, matrix.data, rows, starts, columns, values)
    return Counts(torch.from_numpy(starts), torch.from_numpy(columns), torch.from_numpy(values), matrix.shape[1])


def sparse_rows(array: np.ndarray, rows: np.ndarray) -> sp.csr_matrix:
    """CSR matrix of the shape of a dense one that holds the values of `rows`; other rows are zero."""
    kept = np.zeros(len(array), dtype=bool)
    kept[rows] = True
    blocks = range(0, len(array), _BLOCK)
    return sp.vstack([sp.csr_matrix(array[at : at + _BLOCK] * kept[at : at + _BLOCK, None]) for at in blocks], "csr")
