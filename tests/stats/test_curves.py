"""The course through known times: exact where it must be, straight where nothing supports a bend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcell.stats import turn
from latentcell.stats.curves import curvature


def arc(times: np.ndarray) -> np.ndarray:
    """Points of a half circle, walked at even speed."""
    return np.stack([np.cos(np.pi * times), np.sin(np.pi * times)], axis=1)


def place(times: np.ndarray, means: np.ndarray, at: float) -> np.ndarray:
    found = turn(times, means, at)
    return (found.line + found.bend) @ means


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_course_passes_every_known_time(n: int) -> None:
    rng = np.random.default_rng(n)
    times, means = np.sort(rng.uniform(0, 5, n)), rng.normal(size=(n, 4))
    for t, mean in zip(times, means, strict=True):
        np.testing.assert_allclose(place(times, means, t), mean, atol=1e-9)


def test_between_two_known_times_it_is_the_line_in_proportion_to_time() -> None:
    found = turn(np.array([2.0, 6.0]), np.array([[0.0, 1.0], [4.0, -1.0]]), 3.0)
    np.testing.assert_allclose(found.line, [0.75, 0.25])
    np.testing.assert_allclose(found.bend, 0)
    assert found.curvature == 0


def test_a_straight_process_at_even_speed_does_not_bend() -> None:
    times = np.array([0.0, 1.0, 2.0, 4.0, 5.0])
    means = times[:, None] * np.array([[1.0, -2.0, 0.5]])
    np.testing.assert_allclose(place(times, means, 3.0), [3.0, -6.0, 1.5], atol=1e-9)


def test_an_arc_is_followed_more_closely_than_by_its_chord() -> None:
    times = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    means = arc(times)
    found, truth = turn(times, means, 0.5), arc(np.array([0.5]))[0]
    assert found.curvature > 0.9
    assert np.linalg.norm(place(times, means, 0.5) - truth) < 0.25 * np.linalg.norm(found.line @ means - truth)


def test_progress_follows_what_changes_not_the_clock() -> None:
    # fast at first, slow later: half-way in time, most of the way is covered
    times, means = np.array([0.0, 1.0, 3.0, 6.0]), np.array([[0.0], [4.0], [5.0], [5.5]])
    line = turn(times, means, 2.0).line
    assert line[2] > 0.5
    assert line.sum() == pytest.approx(1)


def test_fewer_than_four_known_times_support_no_bend() -> None:
    assert curvature(np.array([0.0, 1.0, 2.0]), arc(np.array([0.0, 0.5, 1.0]))) == 0


def test_a_bend_that_mispredicts_the_inner_times_is_not_used() -> None:
    times = np.arange(6.0)
    zigzag = np.stack([times * 3, np.array([0.0, 1, 0, 1, 0, 1])], axis=1)
    assert curvature(times, zigzag) < 0.2


def test_times_at_which_nothing_changes_are_walked_by_the_clock() -> None:
    found = turn(np.array([0.0, 1.0, 2.0]), np.zeros((3, 2)), 0.25)
    np.testing.assert_allclose(found.line, [0.75, 0.25, 0])


@given(st.integers(3, 7), st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_weights_sum_to_one_and_the_bend_to_zero_whatever_the_scale_and_origin(n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.2, 2, n))
    means = rng.normal(size=(n, 3))
    at = float(times[0] + share * (times[-1] - times[0]))
    found, moved = turn(times, means, at), turn(times, 7 * means + 3, at)
    assert found.line.sum() == pytest.approx(1)
    assert found.bend.sum() == pytest.approx(0, abs=1e-9)
    assert 0 <= found.curvature <= 1
    np.testing.assert_allclose(found.line, moved.line, atol=1e-6)
    np.testing.assert_allclose(found.bend, moved.bend, atol=1e-6)
