from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from latentcell.stats.exchangeability import (
    controls_apart,
    nearest_places,
    place_effect,
    places_kept,
    rejection_interval,
)

PLACES = np.array([(row, column) for column in range(12) for row in range(8)], float)


def plates(rng, n_controls=16, n_groups=24, *, random=True):
    """Places, controls, labels and plates of three plates."""
    n = n_controls + n_groups
    spots = [rng.permutation(96)[:n] if random else np.arange(n) for _ in range(3)]
    label = np.tile(np.append(["control"] * n_controls, [f"g{i}" for i in range(n_groups)]), 3).astype(object)
    return PLACES[np.concatenate(spots)], label == "control", label, np.repeat(["a", "b", "c"], n).astype(object)


def test_random_layouts_pass_and_contiguous_ones_do_not() -> None:
    apart, kept = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        places, control, label, block = plates(rng)
        apart.append(controls_apart(places, control, block, rng=rng))
        kept.append(places_kept(places[~control], label[~control], block[~control], rng=rng))
    assert sum(p <= 0.01 for p in apart) <= binom.ppf(0.999, 40, 0.01)
    assert sum(p <= 0.01 for p in kept) <= binom.ppf(0.999, 40, 0.01)
    rng = np.random.default_rng(0)
    places, control, label, block = plates(rng, random=False)
    assert controls_apart(places, control, block, rng=rng) == pytest.approx(0.001)
    assert places_kept(places[~control], label[~control], block[~control], rng=rng) == pytest.approx(0.001)


def test_replicates_side_by_side_on_one_plate_are_noticed() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([f"g{i}" for i in range(24)], 4).astype(object)
    one = np.full(96, "a", dtype=object)
    assert places_kept(PLACES, label, one, rng=rng) <= 0.001
    assert places_kept(PLACES, rng.permutation(label), one, rng=rng) > 0.01


def test_layouts_that_cannot_tell_are_not_accused() -> None:
    rng = np.random.default_rng(0)
    places, block = PLACES[:5], np.full(5, "a", dtype=object)
    assert controls_apart(places, np.arange(5) < 1, block, rng=rng) == 1.0
    assert places_kept(places, np.arange(5).astype(str).astype(object), block, rng=rng) == 1.0
    assert place_effect(rng.normal(size=(4, 2)), places[:4], np.array(list("aabb"), dtype=object), rng=rng) == 1.0


def test_place_effect_is_uniform_without_and_small_with_an_effect_of_the_edge() -> None:
    p_values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        places, control, _, block = plates(rng)
        p_values.append(place_effect(rng.normal(size=(48, 5)), places[control], block[control], rng=rng))
    assert sum(p <= 0.05 for p in p_values) <= binom.ppf(0.999, 60, 0.05)
    rng = np.random.default_rng(0)
    places, control, _, block = plates(rng)
    edge = np.isin(places[:, 0], (0, 7)) | np.isin(places[:, 1], (0, 11))
    values = rng.normal(size=(len(places), 5)) + np.outer(edge, [3, 0, 0, 0, 0])
    assert place_effect(values[control], places[control], block[control], rng=rng) <= 0.01


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 20), (10, 10)])
def test_rejection_interval_is_that_of_clopper_and_pearson(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci()
    np.testing.assert_allclose(rejection_interval(k / n, n), (expected.low, expected.high), rtol=1e-9)


def test_nearest_place_is_taken_once() -> None:
    places = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    candidates = np.arange(3)
    assert nearest_places(np.array([0.0, 0.2]), places, candidates, set()) == 0
    assert nearest_places(np.array([0.0, 0.2]), places, candidates, {0}) == 1
    assert nearest_places(np.array([0.0, 0.2]), places, candidates, {0, 1, 2}) is None
