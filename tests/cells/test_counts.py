"""Counts of a few cells: from any matrix, back to a dense one, and rows of a large one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell.cells.counts import Counts, sparse_rows, take_counts

PATHS = ("compiled", "plain")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compiled loops and plain torch in turn."""
    monkeypatch.setenv("LATENTCELL_KERNELS", "auto" if request.param == "compiled" else "off")
    return request.param


def dense_counts(n: int = 30, n_genes: int = 17, seed: int = 0, share: float = 0.3) -> np.ndarray:
    """Counts of which some cells and genes have none; float64."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(5.0, (n, n_genes)) * (rng.random((n, n_genes)) < share)
    counts[:: max(2, n // 4)] = 0
    counts[:, -1] = 0
    return counts.astype(np.float64)


STORES: dict[str, Callable[[np.ndarray], object]] = {
    "dense": lambda values: values,
    "column_major": np.asfortranarray,
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "coo_matrix": sp.coo_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
}
DTYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint16)


def check_form(counts: Counts, shape: tuple[int, int]) -> None:
    """What kernels rely on."""
    assert counts.starts.dtype == torch.int64
    assert counts.columns.dtype == torch.int32
    assert counts.values.dtype == torch.float32
    assert counts.starts.shape == (shape[0] + 1,)
    assert int(counts.starts[0]) == 0
    assert int(counts.starts[-1]) == len(counts.columns) == len(counts.values)
    assert all(each.is_contiguous() for each in (counts.starts, counts.columns, counts.values))
    assert counts.shape == shape
    assert len(counts) == shape[0]
    assert counts.n_genes == shape[1]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_of_any_matrix_are_its_values(store: str, dtype: type) -> None:
    values = dense_counts().astype(dtype)
    counts = Counts.of(STORES[store](values))
    check_form(counts, values.shape)
    assert counts.dense().dtype == torch.float32
    np.testing.assert_array_equal(counts.dense(), values)
    assert len(counts.values) == np.count_nonzero(values)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (1, 8), (8, 1)])
def test_counts_of_matrices_at_the_limits_come_back(shape: tuple[int, int]) -> None:
    values = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    for matrix in (values, sp.csr_matrix(values)):
        counts = Counts.of(matrix)
        check_form(counts, shape)
        np.testing.assert_array_equal(counts.dense(), values)


def test_values_stored_twice_are_added_in_the_dense_matrix() -> None:
    twice = sp.csr_matrix((np.array([2.0, 3.0, 1.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    np.testing.assert_array_equal(Counts.of(twice).dense(), [[0, 5, 0], [1, 0, 0]])


def test_counts_do_not_share_memory_with_a_matrix_of_another_type() -> None:
    matrix = sp.csr_matrix(dense_counts())
    counts = Counts.of(matrix)
    matrix.data[:] = -1
    matrix.indices[:] = 0
    np.testing.assert_array_equal(counts.dense(), dense_counts())


def test_counts_stay_the_same_on_their_own_device() -> None:
    counts = Counts.of(dense_counts())
    moved = counts.to(torch.device("cpu"))
    check_form(moved, counts.shape)
    np.testing.assert_array_equal(moved.dense(), counts.dense())


ROWS = {
    "in_order": [0, 1, 2, 3],
    "reversed": list(range(29, -1, -1)),
    "repeated": [5, 5, 0, 5, 12, 0],
    "one": [7],
    "without_counts": [0, 7, 14],
    "none": [],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array])
def test_rows_are_taken_in_the_order_asked_for_and_as_often(rows: list[int], kind: type, path: str) -> None:
    values = dense_counts()
    taken = take_counts(kind(values), np.array(rows, dtype=np.int64))
    check_form(taken, (len(rows), 17))
    np.testing.assert_array_equal(taken.dense(), values[rows].reshape(len(rows), 17))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_rows_of_any_type_of_counts_and_indices_are_taken(dtype: type, index: type, path: str) -> None:
    values = dense_counts()
    matrix = sp.csr_matrix(values.astype(dtype))
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    rows = np.array([3, 1, 1, 29])
    taken = take_counts(matrix, rows)
    check_form(taken, (4, 17))
    np.testing.assert_array_equal(taken.dense(), values[rows])


def test_rows_whose_values_are_not_in_order_are_taken(path: str) -> None:
    columns, values = np.array([4, 0, 2, 3, 1]), np.array([1.0, 2, 3, 4, 5])
    matrix = sp.csr_matrix((values, columns, np.array([0, 3, 3, 5])), shape=(3, 5))
    taken = take_counts(matrix, np.array([2, 0, 1]))
    np.testing.assert_array_equal(taken.dense(), [[0, 5, 0, 4, 0], [2, 0, 3, 0, 1], [0, 0, 0, 0, 0]])


def test_the_matrix_that_rows_are_taken_from_is_left_alone(path: str) -> None:
    matrix = sp.csr_matrix(dense_counts().astype(np.float32))
    taken = take_counts(matrix, np.arange(30))
    taken.values.zero_()
    taken.columns.zero_()
    np.testing.assert_array_equal(matrix.toarray(), dense_counts())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 50), st.integers(0, 2**20))
def test_rows_taken_are_those_taken_with_kernels_off(n: int, n_genes: int, k: int, seed: int) -> None:
    matrix = sp.csr_matrix(dense_counts(n, n_genes, seed))
    rows = np.random.default_rng(seed).integers(0, n, k)
    compiled = take_counts(matrix, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTCELL_KERNELS", "off")
        plain = take_counts(matrix, rows)
    for name in ("starts", "columns", "values"):
        found, expected = getattr(compiled, name), getattr(plain, name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert compiled.shape == plain.shape == (k, n_genes)


@pytest.mark.parametrize("n", [1, 30, 1023, 1024, 1025, 2100])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_sparse_rows_hold_the_rows_asked_for_and_no_others(n: int, dtype: type) -> None:
    values = dense_counts(n, 6).astype(dtype)
    rows = np.random.default_rng(1).permutation(n)[: (n + 1) // 2]
    found = sparse_rows(values, rows)
    assert found.format == "csr"
    assert found.shape == values.shape
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found[rows].toarray(), values[rows])
    others = np.setdiff1d(np.arange(n), rows)
    assert found[others].nnz == 0
    assert found.nnz == np.count_nonzero(values[rows])


def test_sparse_rows_leave_the_dense_matrix_alone() -> None:
    values = dense_counts()
    sparse_rows(values, np.array([1, 2]))
    np.testing.assert_array_equal(values, dense_counts())


def test_sparse_rows_of_no_rows_are_empty() -> None:
    assert sparse_rows(dense_counts(), np.array([], dtype=np.int64)).nnz == 0


def test_rows_taken_from_sparse_rows_are_those_of_the_dense_matrix(path: str) -> None:
    values, rows = dense_counts(), np.array([9, 1, 22])
    found, expected = take_counts(sparse_rows(values, rows), rows), Counts.of(values[rows])
    for name in ("starts", "columns", "values"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
