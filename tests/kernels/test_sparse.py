"""Rows of sparse matrices in compiled loops, against SciPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell import kernels
from latentcell.kernels import sparse


def random_matrix(n: int, m: int, density: float, seed: int = 0) -> sp.csr_matrix:
    """Counts with about a share `density` of nonzeros; float32 and int32."""
    rng = np.random.default_rng(seed)
    dense = rng.poisson(3.0, (n, m)) * (rng.random((n, m)) < density)
    return sp.csr_matrix(dense.astype(np.float32))


def unsorted(matrix: sp.csr_matrix, seed: int = 0) -> sp.csr_matrix:
    """The same matrix with the values of each row in random order."""
    rng = np.random.default_rng(seed)
    shuffled = matrix.copy()
    for low, high in pairwise(matrix.indptr):
        order = low + rng.permutation(high - low)
        shuffled.indices[low:high] = matrix.indices[order]
        shuffled.data[low:high] = matrix.data[order]
    shuffled.has_sorted_indices = False
    return shuffled


def parts(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, columns and values in the dtypes that models use."""
    return (
        matrix.indptr.astype(np.int64),
        matrix.indices.astype(np.int32),
        matrix.data.astype(np.float32),
    )


def gathered(matrix: sp.csr_matrix, rows: list[int] | np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.int64)
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(matrix.indptr[rows + 1] - matrix.indptr[rows], out=starts[1:])
    columns, values = np.full(starts[-1], -1, dtype=np.int32), np.full(starts[-1], np.nan, dtype=np.float32)
    sparse.gather(matrix.indptr, matrix.indices, matrix.data, rows, starts, columns, values)
    return sp.csr_matrix((values, columns, starts), shape=(len(rows), matrix.shape[1])).toarray()


def transposed(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts, columns, values = parts(matrix)
    ends = np.full(matrix.shape[1] + 1, -5, dtype=np.int64)
    rows, by_gene = np.full_like(columns, -1), np.full_like(values, np.nan)
    sparse.transpose(starts, columns, values, ends, rows, by_gene)
    return ends, rows, by_gene


def multiplied(matrix: sp.csr_matrix, dense: np.ndarray) -> np.ndarray:
    out = np.full((matrix.shape[0], dense.shape[1]), np.nan, dtype=np.float32)
    kernels.share_threads()
    sparse.product(*parts(matrix), dense, out)
    return out


def check_product(matrix: sp.csr_matrix, n_columns: int, seed: int = 0) -> None:
    dense = np.random.default_rng(seed).normal(size=(matrix.shape[1], n_columns)).astype(np.float32)
    exact, wide = matrix.toarray().astype(np.float64), dense.astype(np.float64)
    # each sum may be off by some units in the last place of its terms
    bound = 1e-6 * (np.abs(exact) @ np.abs(wide)) + 1e-30
    assert (np.abs(multiplied(matrix, dense) - exact @ wide) <= bound).all()


def check_transpose(matrix: sp.csr_matrix) -> None:
    ends, rows, by_gene = transposed(matrix)
    assert ends[0] == 0
    assert ends[-1] == matrix.nnz
    found = sp.csr_matrix((by_gene, rows, ends), shape=matrix.shape[::-1])
    np.testing.assert_array_equal(found.toarray(), matrix.toarray().T)
    # cells come in their order within a gene, so that sums over them have one order
    for low, high in pairwise(ends):
        assert (np.diff(rows[low:high]) >= 0).all()


MATRICES = {
    "usual": random_matrix(90, 37, 0.3),
    "dense": random_matrix(20, 15, 1.0),
    "unsorted": unsorted(random_matrix(30, 25, 0.5)),
    "with_empty_rows": random_matrix(40, 5, 0.05),
    "without_values": sp.csr_matrix((7, 5), dtype=np.float32),
    "without_rows": sp.csr_matrix((0, 5), dtype=np.float32),
    "of_one_row": random_matrix(1, 30, 0.6),
    "of_one_column": random_matrix(200, 1, 0.5),
    "of_one_value": sp.csr_matrix(np.array([[2.0]], dtype=np.float32)),
    "with_a_last_empty_column": sp.csr_matrix(np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]], dtype=np.float32)),
}

each_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())


@each_matrix
def test_gathered_rows_are_scipys(matrix: sp.csr_matrix) -> None:
    rows = np.random.default_rng(0).integers(0, max(1, matrix.shape[0]), 50 if matrix.shape[0] else 0)
    np.testing.assert_array_equal(gathered(matrix, rows), matrix[rows].toarray())


@pytest.mark.parametrize("rows", [[], [3], [3, 3, 3], [5, 0, 5, 0], list(range(19, -1, -1))], ids=str)
def test_gathered_rows_come_in_the_order_asked_for_and_as_often(rows: list[int]) -> None:
    matrix = random_matrix(20, 11, 0.4)
    np.testing.assert_array_equal(gathered(matrix, rows), matrix.toarray()[rows].reshape(len(rows), 11))


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("data", [np.float32, np.float64, np.int64, np.int32, np.uint16])
def test_gathering_reads_any_type_of_indices_and_data(index: type, data: type) -> None:
    matrix = random_matrix(20, 11, 0.4)
    stored = matrix.astype(data)
    stored.indices, stored.indptr = stored.indices.astype(index), stored.indptr.astype(index)
    rows = [4, 4, 19, 0]
    np.testing.assert_array_equal(gathered(stored, rows), matrix[rows].toarray())


def test_gathering_keeps_the_order_of_values_within_a_row() -> None:
    matrix = unsorted(random_matrix(6, 20, 0.7))
    rows, starts = np.array([2]), np.array([0, np.diff(matrix.indptr)[2]])
    columns, values = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.float32)
    sparse.gather(matrix.indptr, matrix.indices, matrix.data, rows, starts, columns, values)
    low, high = matrix.indptr[2:4]
    np.testing.assert_array_equal(columns, matrix.indices[low:high])
    np.testing.assert_array_equal(values, matrix.data[low:high])


@each_matrix
def test_the_transpose_holds_the_same_values_gene_by_gene(matrix: sp.csr_matrix) -> None:
    check_transpose(matrix)


@each_matrix
@pytest.mark.parametrize("n_columns", [1, 8, 13])
def test_the_product_with_a_dense_matrix_is_scipys(matrix: sp.csr_matrix, n_columns: int) -> None:
    check_product(matrix, n_columns)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 129])
def test_fewer_or_more_rows_than_parts_are_all_multiplied(n: int) -> None:
    check_product(random_matrix(n, 12, 0.5), 4)


@pytest.mark.parametrize("length", range(10))
def test_rows_of_any_number_of_values_are_multiplied_whole(length: int) -> None:
    matrix = sp.csr_matrix(np.where(np.arange(12) < length, np.arange(12) + 1.0, 0)[None])
    assert matrix.nnz == length
    np.testing.assert_array_equal(multiplied(matrix, np.eye(12, dtype=np.float32)), matrix.toarray())


def test_the_product_of_the_transpose_is_the_transposed_product() -> None:
    matrix = random_matrix(70, 33, 0.2)
    dense = np.random.default_rng(1).normal(size=(70, 6)).astype(np.float32)
    out = np.empty((33, 6), dtype=np.float32)
    sparse.product(*transposed(matrix), dense, out)
    np.testing.assert_allclose(out, matrix.T @ dense, rtol=1e-4, atol=1e-4)


def test_what_stands_in_the_result_before_does_not_matter() -> None:
    matrix, dense = MATRICES["with_empty_rows"], np.ones((5, 3), dtype=np.float32)
    out = np.full((40, 3), 1e30, dtype=np.float32)
    sparse.product(*parts(matrix), dense, out)
    np.testing.assert_allclose(out, matrix @ dense, rtol=1e-6)


@each_matrix
def test_log1p_of_stored_values_is_numpys(matrix: sp.csr_matrix) -> None:
    out = np.full_like(matrix.data, np.nan)
    sparse.log1p_of(matrix.indptr, matrix.data, out)
    np.testing.assert_allclose(out, np.log1p(matrix.data), rtol=5e-7)


SHAPES = (st.integers(0, 80), st.integers(1, 40), st.sampled_from([0.0, 0.05, 0.4, 1.0]), st.integers(0, 2**20))


@settings(max_examples=60, deadline=None)
@given(*SHAPES, st.booleans(), st.integers(0, 60))
def test_rows_of_any_matrix_are_gathered(n: int, m: int, density: float, seed: int, mix: bool, k: int) -> None:
    matrix = random_matrix(n, m, density, seed)
    matrix = unsorted(matrix, seed) if mix else matrix
    rows = np.random.default_rng(seed).integers(0, n, k) if n else np.empty(0, dtype=np.int64)
    np.testing.assert_array_equal(gathered(matrix, rows), matrix.toarray()[rows])


@settings(max_examples=60, deadline=None)
@given(*SHAPES, st.booleans())
def test_any_matrix_is_transposed(n: int, m: int, density: float, seed: int, mix: bool) -> None:
    matrix = random_matrix(n, m, density, seed)
    check_transpose(unsorted(matrix, seed) if mix else matrix)


@settings(max_examples=60, deadline=None)
@given(*SHAPES, st.integers(1, 9))
def test_any_matrix_is_multiplied(n: int, m: int, density: float, seed: int, n_columns: int) -> None:
    check_product(random_matrix(n, m, density, seed), n_columns, seed)


@pytest.fixture
def restored_threads():
    """Give torch its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    kernels.share_threads()


@pytest.mark.usefixtures("restored_threads")
def test_products_are_bitwise_the_same_with_any_number_of_threads() -> None:
    matrix = random_matrix(150, 60, 0.4)
    dense = np.random.default_rng(0).normal(size=(60, 17)).astype(np.float32)
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        found.append(multiplied(matrix, dense))
    np.testing.assert_array_equal(*found)
