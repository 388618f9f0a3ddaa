from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell.errors import InputError
from latentcell.stats import displace, pair, transport
from latentcell.stats.transport import shift


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


def two_clusters(near: int, far: int, seed: int) -> np.ndarray:
    """`near` cells around 0 and `far` cells around 20 along the first of two dimensions."""
    place = np.repeat([[0.0, 0.0], [20.0, 0.0]], [near, far], axis=0)
    return place + np.random.default_rng(seed).normal(size=place.shape)


@pytest.mark.parametrize("weight", [0.01, 0.05, 0.2])
def test_unbalanced_masses_grow_and_shrink_instead_of_crossing_between_clusters(weight: float) -> None:
    x, y = two_clusters(80, 20, 0), two_clusters(20, 80, 1)
    crossing = []
    for unbalanced in (None, weight):
        i, j = pair(x, y, unbalanced=unbalanced, n_pairs=1_000, rng=0)
        crossing.append(((x[i, 0] > 10) != (y[j, 0] > 10)).mean())
    assert crossing[0] == pytest.approx(0.6, abs=0.01)
    assert crossing[1] == 0
    assert set(i) >= set(range(80, 100))  # every cell of the growing cluster has descendants
    assert np.bincount(i)[80:].mean() > 2 * np.bincount(i)[:80].mean()


def test_a_mild_unbalanced_weight_moves_less_mass_than_a_strong_one() -> None:
    x, y = two_clusters(80, 20, 0), two_clusters(20, 80, 1)
    crossing = []
    for weight in (100.0, 1.0, 0.1):
        i, j = pair(x, y, unbalanced=weight, n_pairs=1_000, rng=0)
        crossing.append(((x[i, 0] > 10) != (y[j, 0] > 10)).mean())
    assert crossing[0] > 0.5 > crossing[1] > crossing[2]


def test_unbalanced_pairing_does_not_depend_on_the_unit_of_the_coordinates() -> None:
    x, y = two_clusters(30, 20, 0), two_clusters(20, 30, 1)
    plain, scaled = (pair(x * unit, y * unit, unbalanced=0.1, rng=0) for unit in (1.0, 1024.0))
    np.testing.assert_array_equal(plain, scaled)


def test_unbalanced_transport_of_many_cells_uses_a_random_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_EXACT", 20)
    rng = np.random.default_rng(0)
    i, j = pair(rng.normal(size=(50, 2)), rng.normal(size=(60, 2)), unbalanced=0.5, n_pairs=400, rng=0)
    assert len(np.unique(i)) <= 20
    assert len(np.unique(j)) <= 20
    assert max(i) >= 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000), st.integers(2, 12), st.integers(2, 12))
def test_a_source_cell_is_used_in_proportion_to_its_growth_and_target_cells_equally(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    growth = rng.integers(0, 5, size=n).astype(float)
    growth[0] = 1
    i, j = pair(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), growth=growth, n_pairs=600, rng=seed)
    np.testing.assert_allclose(np.bincount(i, minlength=n), 600 * growth / growth.sum(), atol=1 + 1e-9)
    np.testing.assert_allclose(np.bincount(j, minlength=m), 600 / m, atol=n + m)
    assert set(i) == set(np.flatnonzero(growth))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000))
def test_growth_equals_duplicated_cells_in_the_exact_plan(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, growth = rng.normal(size=(6, 2)), np.array([1, 2, 3, 1, 2, 1])
    y = rng.normal(size=(10, 2)) + 1
    copies = np.repeat(np.arange(6), growth)
    i, j = pair(x, y, growth=growth, rng=0)
    p, q = pair(x[copies], y, rng=0)
    assert sorted(zip(i, j, strict=True)) == sorted(zip(copies[p], q, strict=True))


def test_only_ratios_of_growth_matter_and_equal_growth_is_no_growth() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 2)), rng.normal(size=(25, 2))
    growth = rng.uniform(0.5, 2, size=25)
    first, second = (pair(x, y, growth=scale * growth, n_pairs=100, rng=0) for scale in (1, 7))
    np.testing.assert_array_equal(first, second)
    plain, ones = (set(zip(*map(list, pair(x, y, growth=g, rng=0)), strict=True)) for g in (None, np.ones(25)))
    assert plain == ones


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": np.ones(4)}, r"growth has shape \(4,\), but there are 5 source cells"),
        ({"growth": np.ones((5, 1))}, r"growth has shape \(5, 1\)"),
        ({"growth": np.array([1, 1, np.nan, 1, 1])}, "cell 2 has nan"),
        ({"growth": np.array([1, 1, 1, -2, 1])}, "cell 3 has -2"),
        ({"growth": np.array([1, np.inf, 1, 1, 1])}, "cell 1 has inf"),
        ({"growth": np.zeros(5)}, "all are 0"),
        ({"unbalanced": 0.0}, "unbalanced=0.0: give a positive weight"),
        ({"unbalanced": -1.0}, "unbalanced=-1.0"),
        ({"unbalanced": float("inf")}, "unbalanced=inf"),
        ({"unbalanced": float("nan")}, "unbalanced=nan"),
        ({"method": "random", "growth": np.ones(5)}, "by optimal transport, not for random pairs"),
        ({"method": "random", "unbalanced": 0.1}, "by optimal transport, not for random pairs"),
    ],
)
def test_masses_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2))
    with pytest.raises(InputError, match=message):
        pair(x, x + 1, **options)


def ends(seed: int, n: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) + 4
    return a, b, b.mean(0) - a.mean(0)


@given(st.integers(0, 1_000), st.floats(0, 1))
def test_shifts_are_those_of_the_closed_form(seed: int, t: float) -> None:
    a, b, delta = ends(seed)
    np.testing.assert_allclose(shift(a, b, t, delta, "source"), a + t * delta)
    np.testing.assert_allclose(shift(a, b, t, delta, "target"), b - (1 - t) * delta)
    both = shift(a, b, t, delta, "both")
    from_target = np.isclose(both, b - (1 - t) * delta).all(axis=1)
    np.testing.assert_allclose(both[~from_target], (a + t * delta)[~from_target])


@given(st.integers(0, 1_000))
def test_a_shift_starts_at_the_source_and_ends_at_the_target(seed: int) -> None:
    a, b, delta = ends(seed)
    np.testing.assert_allclose(shift(a, b, 0, delta, "both"), a)
    np.testing.assert_allclose(shift(a, b, 1, delta, "both"), b)
    np.testing.assert_allclose(shift(a, b, 0, delta, "source"), a)
    np.testing.assert_allclose(shift(a, b, 1, delta, "target"), b)
    for t, mean in ((0, a.mean(0)), (1, b.mean(0)), (0.25, 0.75 * a.mean(0) + 0.25 * b.mean(0))):
        for side in ("source", "target"):
            np.testing.assert_allclose(shift(a, b, t, delta, side).mean(0), mean, atol=1e-9)


@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 250))
def test_any_run_of_pairs_holds_a_share_t_from_the_target(n: int, t: float, start: int) -> None:
    a, b = np.zeros((n, 1)), np.ones((n, 1))
    from_target = shift(a, b, t, np.zeros(1), "both")[:, 0]
    run = from_target[min(start, n - 1) :]
    assert abs(run.sum() - t * len(run)) <= 3


def test_each_pair_may_have_its_own_shift() -> None:
    a, b, _ = ends(0, n=4)
    delta = np.arange(12.0).reshape(4, 3)
    np.testing.assert_allclose(shift(a, b, 0.5, delta, "source"), a + delta / 2)
    np.testing.assert_allclose(shift(a, b, 0.5, delta, "target"), b - delta / 2)


def test_a_shift_from_an_unknown_side_is_refused_with_the_choices() -> None:
    a, b, delta = ends(0)
    with pytest.raises(InputError, match="source, target, both"):
        shift(a, b, 0.5, delta, "left")  # type: ignore[arg-type]
