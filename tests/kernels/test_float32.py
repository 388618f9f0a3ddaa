"""Elementary functions of the compiled loops, as these inline them, against double precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from latentcell.kernels import float32

TINY = np.finfo(np.float32).tiny
Loop = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Build:
    """The functions in compiled loops, and the relative errors that they may have there."""

    exp: Loop
    log1p: Loop
    exp_error: float
    log1p_error: float


def build(fastmath: bool, *errors: float) -> Build:
    # not kept on disk, where numba would not notice a change in another file
    compiled = njit(fastmath=fastmath, error_model="numpy")

    @compiled
    def exp(x, out):
        for i in range(x.size):
            out[i] = float32.exp(x[i])

    @compiled
    def log1p(x, out):
        for i in range(x.size):
            out[i] = float32.log1p(x[i])

    return Build(exp, log1p, *errors)


# in the kernels sums may be taken in any order, which costs some of the last bit
BUILDS = {"as_written": build(False, 1.2e-7, 2.5e-7), "as_inlined_in_kernels": build(True, 4e-7, 4e-7)}
each_build = pytest.mark.parametrize("compiled", BUILDS.values(), ids=BUILDS.keys())


@njit(fastmath=True, error_model="numpy")
def highest(values):
    return float32.highest(values)


def applied(function: Loop, values: np.ndarray | Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    out = np.empty_like(values)
    function(values, out)
    return out


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert np.isfinite(found).all()
    return float((np.abs(found.astype(np.float64) - expected) / np.abs(expected)).max())


def floats(low: float, high: float) -> st.SearchStrategy[list[float]]:
    one = st.floats(float(np.float32(low)), float(np.float32(high)), width=32)
    return st.lists(one, min_size=1, max_size=40)


@each_build
@settings(max_examples=200, deadline=None)
@given(floats(-87, 88))
def test_exp_keeps_its_precision_over_its_range(compiled: Build, x: list[float]) -> None:
    assert relative_error(applied(compiled.exp, x), np.exp(np.array(x))) <= compiled.exp_error


@each_build
def test_exp_keeps_its_precision_on_a_fine_grid(compiled: Build) -> None:
    x = np.linspace(-87, 88, 400_001, dtype=np.float32)
    assert relative_error(applied(compiled.exp, x), np.exp(x.astype(np.float64))) <= compiled.exp_error


@each_build
def test_exp_of_zero_and_of_tiny_numbers_is_one(compiled: Build) -> None:
    np.testing.assert_array_equal(applied(compiled.exp, [0.0, -0.0, 1e-30, -1e-30, TINY, -TINY, 1e-45]), 1)


@each_build
def test_exp_beyond_its_range_stays_at_the_value_of_the_nearer_end(compiled: Build) -> None:
    found = applied(compiled.exp, [-87.0, -87.5, -1e4, -3e38, 88.0, 88.5, 1e4, 3e38])
    assert (found[:4] == found[0]).all()
    assert (found[4:] == found[4]).all()
    assert 0 < found[0] < 2e-38
    assert np.isfinite(found).all()


@each_build
@settings(max_examples=200, deadline=None)
@given(floats(0, 3e38))
def test_log1p_of_what_is_not_negative_keeps_its_precision(compiled: Build, u: list[float]) -> None:
    values = np.array([each for each in u if each > TINY] or [1.0])
    assert relative_error(applied(compiled.log1p, values), np.log1p(values)) <= compiled.log1p_error


@each_build
@pytest.mark.parametrize(("low", "high"), [(-37, 0), (-8, 8), (0, 38)])
def test_log1p_keeps_its_precision_at_all_magnitudes(compiled: Build, low: int, high: int) -> None:
    u = np.logspace(low, high, 200_001).astype(np.float32)
    assert relative_error(applied(compiled.log1p, u), np.log1p(u.astype(np.float64))) <= compiled.log1p_error


@each_build
@settings(max_examples=200, deadline=None)
@given(floats(-0.9999999, -1e-37))
def test_log1p_is_precise_for_negative_numbers_above_minus_one(compiled: Build, u: list[float]) -> None:
    assert relative_error(applied(compiled.log1p, u), np.log1p(np.array(u))) <= compiled.log1p_error


@each_build
def test_log1p_is_precise_next_to_minus_one_and_for_tiny_negative_numbers(compiled: Build) -> None:
    near = np.nextafter(np.float32(-1), np.float32(0))
    grid = np.linspace(near, -1e-6, 200_001, dtype=np.float32)
    for u in (grid, -np.logspace(-37, -1, 100_001).astype(np.float32)):
        assert relative_error(applied(compiled.log1p, u), np.log1p(u.astype(np.float64))) <= compiled.log1p_error


@each_build
def test_log1p_of_zero_is_exactly_zero(compiled: Build) -> None:
    np.testing.assert_array_equal(applied(compiled.log1p, [0.0, -0.0]), 0)


@each_build
def test_log1p_of_counts_is_that_of_numpy(compiled: Build) -> None:
    counts = np.arange(100_000, dtype=np.float32)
    np.testing.assert_allclose(
        applied(compiled.log1p, counts), np.log1p(counts.astype(np.float64)), rtol=compiled.log1p_error
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70))
def test_highest_is_the_maximum_of_any_numbers(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert highest(array) == array.max()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, max_value=-float(TINY), allow_nan=False), min_size=1, max_size=70))
def test_highest_of_negative_numbers_is_the_one_nearest_to_zero(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert highest(array) == array.max() < 0


@pytest.mark.parametrize("values", [[0.0, -0.0], [-0.0, -1.0], [-3e38, 3e38], [-np.inf, -3e38], [-1e-40, -1.0], [7.0]])
def test_highest_at_the_ends_of_the_number_line(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert highest(array) == array.max()
    assert highest(array[::-1].copy()) == array.max()


@pytest.mark.parametrize("at", [0, 1, 500, 998, 999])
def test_highest_finds_the_largest_wherever_it_stands(at: int) -> None:
    values = -np.random.default_rng(0).uniform(1, 1000, 999 + 1).astype(np.float32)
    values[at] = -0.5
    assert highest(values) == np.float32(-0.5)
