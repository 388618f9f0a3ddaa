from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell.errors import InputError
from latentcell.stats import displace, pair, transport


def test_optimal_pairs_in_one_dimension_are_sorted_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 1)), rng.normal(size=(40, 1))
    i, j = pair(x, y, rng=0)
    assert sorted(i) == sorted(j) == list(range(40))
    assert (x[i, 0].argsort() == y[j, 0].argsort()).all()


def test_optimal_pairs_of_a_stretched_and_moved_cloud_are_its_own_cells() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    symmetric = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]])
    i, j = pair(x, x @ symmetric + [5.0, -2.0, 1.0], rng=0)
    assert (i == j).all()


def test_midpoint_of_optimal_pairs_of_two_gaussians_has_the_mean_of_means_and_of_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1_500, 2)), rng.normal(size=(1_500, 2)) * [3.0, 0.5] + [4.0, 0.0]
    i, j = pair(x, y, rng=0)
    middle = displace(x[i], y[j], 0.5)
    np.testing.assert_allclose(middle.mean(0), [2.0, 0.0], atol=0.1)
    np.testing.assert_allclose(middle.std(0), [2.0, 0.75], rtol=0.06)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_optimal_pairs_follow_the_cells_when_they_are_reordered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(15, 2)), rng.normal(size=(15, 2))
    p, q = rng.permutation(15), rng.permutation(15)
    plain = set(zip(*map(list, pair(x, y, rng=0)), strict=True))
    i, j = pair(x[p], y[q], rng=1)
    assert set(zip(p[i].tolist(), q[j].tolist(), strict=True)) == plain


def test_optimal_pairs_are_never_farther_apart_than_random_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(80, 4))
    cost = [((x[i] - y[j]) ** 2).sum(1).mean() for i, j in (pair(x, y, method=m, rng=0) for m in ("ot", "random"))]
    assert cost[0] < 0.6 * cost[1]


@pytest.mark.parametrize("method", ["ot", "random"])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 60), (60, 20)])
def test_every_cell_is_used_in_proportion_to_its_mass(method: transport.Method, n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    i, j = pair(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), method=method, n_pairs=300, rng=0)
    for rows, size in ((i, n), (j, m)):
        np.testing.assert_allclose(np.bincount(rows, minlength=size), 300 / size, atol=2)


def test_pairs_drawn_from_a_plan_between_unequal_sizes_are_distinct_by_default() -> None:
    rng = np.random.default_rng(0)
    i, j = pair(rng.normal(size=(33, 2)), rng.normal(size=(71, 2)), rng=0)
    assert len(i) == 71
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == 71


def test_sinkhorn_pairs_come_close_to_the_exact_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 3)) + 2
    exact, chance = (
        ((x[i] - y[j]) ** 2).sum(1).mean() for i, j in (pair(x, y, method=m, rng=0) for m in ("ot", "random"))
    )
    monkeypatch.setattr(transport, "MAX_EXACT", 100)
    i, j = pair(x, y, rng=0)
    entropic = ((x[i] - y[j]) ** 2).sum(1).mean()
    assert exact <= entropic < exact + 0.1 * (chance - exact)
    np.testing.assert_allclose(np.bincount(i, minlength=300), 1, atol=1)


def test_large_populations_enter_transport_as_random_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_EXACT", 20)
    monkeypatch.setattr(transport, "MAX_SINKHORN", 30)
    rng = np.random.default_rng(0)
    i, j = pair(rng.normal(size=(100, 2)), rng.normal(size=(25, 2)), n_pairs=90, rng=0)
    assert len(np.unique(i)) <= 30
    assert i.max() > 30
    assert len(np.unique(j)) == 25


@pytest.mark.parametrize("sizes", [(20, 20), (20, 31)])
def test_pairs_repeat_with_their_seed(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 2)) for n in sizes)
    np.testing.assert_array_equal(pair(x, y, n_pairs=12, rng=5), pair(x, y, n_pairs=12, rng=5))
    assert not np.array_equal(pair(x, y, n_pairs=12, rng=5), pair(x, y, n_pairs=12, rng=6))


def test_coinciding_cells_can_be_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_EXACT", 2)
    i, j = pair(np.zeros((5, 2)), np.zeros((4, 2)), n_pairs=20, rng=0)
    assert len(np.unique(i)) == 5
    assert len(np.unique(j)) == 4


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_paths_start_at_the_source_and_end_at_the_target(path: transport.Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 4))
    a[0], b[1], b[2], b[3] = 0, 0, a[2], -a[3]
    np.testing.assert_allclose(displace(a, b, 0, path), a, atol=1e-12)
    np.testing.assert_allclose(displace(a, b, 1, path), b, atol=1e-12)


def test_linear_path_weighs_both_ends() -> None:
    # with the parentheses of (1 - t) z_a left out this would be 1 - 0.25 + 0.5
    np.testing.assert_allclose(displace(np.array([[1.0]]), np.array([[2.0]]), 0.25), [[1.25]])
    np.testing.assert_allclose(displace(np.zeros((2, 1)), np.ones((2, 1)), np.array([0.1, 0.9])), [[0.1], [0.9]])


def test_slerp_keeps_the_distance_from_the_origin_and_halves_the_angle() -> None:
    middle = displace(np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]]), 0.5, "slerp")
    np.testing.assert_allclose(middle, [[np.sqrt(2), np.sqrt(2)]])


def test_unknown_pairings_and_paths_are_refused_with_the_choices() -> None:
    x = np.zeros((3, 2))
    with pytest.raises(InputError, match="ot, random"):
        pair(x, x, method="nearest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="linear, slerp"):
        displace(x, x, 0.5, "geodesic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one"):
        pair(x, x, n_pairs=0)
