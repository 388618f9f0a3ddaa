"""The covariance of a number with many variables: closed forms, intervals that cover, p that hold their level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import kstest, ttest_ind

from latentcell.errors import InputError
from latentcell.stats import covariance as module
from latentcell.stats.covariance import Covariance, covariance_test

MEASURED = ("covariance", "low", "high", "effect", "statistic")


def same(a: Covariance, b: Covariance, fields=MEASURED, **tolerance) -> None:
    for field in fields:
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), **{"rtol": 1e-7, "atol": 1e-10} | tolerance)


def indicators(labels) -> np.ndarray:
    return (np.asarray(labels)[:, None] == np.unique(labels)).astype(float)


def refitted(v, x, fixed) -> np.ndarray:
    """Covariance given the columns `fixed`, by least squares."""
    both = np.column_stack([v, x])
    left = both - fixed @ np.linalg.lstsq(fixed, both, rcond=None)[0]
    return left[:, 0] @ left[:, 1:] / (len(v) - np.linalg.matrix_rank(fixed))


def jackknife(v, x, unit, stratum, fixed) -> tuple[np.ndarray, np.ndarray]:
    """Covariance and its standard error, leaving out one unit at a time and refitting everything."""
    whole = refitted(v, x, fixed)
    variance = np.zeros(x.shape[1])
    for u in np.unique(unit):
        kept = unit != u
        n_peers = len(np.unique(unit[stratum == stratum[unit == u][0]]))
        variance += (1 - 1 / n_peers) * (refitted(v[kept], x[kept], fixed[kept]) - whole) ** 2
    return whole, np.sqrt(variance)


# ---- what it computes


def test_covariance_and_effect_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    v, x = rng.normal(size=40), rng.normal(size=(40, 3)) + 100
    found = covariance_test(v, x, rng=0)
    np.testing.assert_allclose(found.covariance, np.cov(v, x, rowvar=False)[0, 1:])
    np.testing.assert_allclose(found.effect, np.corrcoef(v, x, rowvar=False)[0, 1:])
    treated = v > 0.3
    found = covariance_test(treated, x, rng=0)
    a, b = x[treated], x[~treated]
    pooled = np.sqrt((a.var(0) * len(a) + b.var(0) * len(b)) / (len(x) - 2))
    np.testing.assert_allclose(found.effect, (a.mean(0) - b.mean(0)) / pooled)
    assert found.n_units == 40


def test_standard_error_is_that_of_an_influence_function_and_of_welch_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(1)
    n = 5000
    v = rng.exponential(size=n)
    x = v[:, None] * [0.0, 0.5, 2.0] + rng.normal(size=(n, 3))
    found = covariance_test(v, x, n_permutations=1, rng=0)
    influence = (v - v.mean())[:, None] * (x - x.mean(0)) - found.covariance
    np.testing.assert_allclose(found.covariance / found.statistic, influence.std(0) / np.sqrt(n), rtol=0.01)
    rare = (rng.random(n) < 0.1).astype(float)
    noise = rng.normal(size=(n, 1)) * (1 + 3 * rare[:, None])
    noise -= np.where(rare[:, None] > 0, noise[rare > 0].mean(0), noise[rare == 0].mean(0)) - 0.02 * rare[:, None]
    found = covariance_test(rare, noise, n_permutations=1, rng=0)
    welch = ttest_ind(noise[rare > 0], noise[rare == 0], equal_var=False).statistic
    np.testing.assert_allclose(found.statistic, welch, rtol=0.02)


@pytest.mark.parametrize("case", ["cells", "plates", "slopes", "donors", "donors in plates", "donor slopes", "within"])
def test_standard_error_is_a_jackknife_that_refits_everything(case) -> None:
    rng = np.random.default_rng(2)
    donor = np.repeat(np.arange(9), [3, 5, 4, 8, 2, 6, 4, 4, 5])
    plate = np.arange(9)[donor] % 2
    n = len(donor)
    x, z = rng.normal(size=(n, 4)) + rng.normal(size=(9, 4))[donor], rng.normal(size=(n, 2)) + plate[:, None]
    by_cell, by_donor = rng.normal(size=n) + plate, (rng.normal(size=9) + np.arange(9) % 2)[donor]
    one, cell = np.zeros(n), np.arange(n)
    z_means = np.stack([z[donor == d].mean(0) for d in range(9)])[donor]
    v, given, unit, stratum, fixed = {
        "cells": (by_cell, {}, cell, one, np.ones((n, 1))),
        "plates": (by_cell, {"stratum": plate}, cell, plate, indicators(plate)),
        "slopes": (by_cell, {"nuisance": z}, cell, one, np.column_stack([np.ones(n), z])),
        "donors": (by_donor, {"replicate": donor}, donor, one, np.ones((n, 1))),
        "donors in plates": (by_donor, {"replicate": donor, "stratum": plate}, donor, plate, indicators(plate)),
        "donor slopes": (
            by_donor,
            {"replicate": donor, "nuisance": z},
            donor,
            one,
            np.column_stack([np.ones(n), z, z_means]),
        ),
        "within": (by_cell, {"replicate": donor}, donor, one, indicators(donor)),
    }[case]
    found = covariance_test(v, x, n_permutations=1, rng=0, **given)
    expected, se = jackknife(v, x, unit, stratum, fixed)
    np.testing.assert_allclose(found.covariance, expected)
    np.testing.assert_allclose(found.statistic, expected / se)
    assert found.n_units == len(np.unique(unit))


@pytest.mark.parametrize("case", ["cells", "plates", "donors of unequal size", "donors in plates", "within donors"])
def test_every_permuted_statistic_is_that_of_cells_that_exchanged_values_within_their_limits(case) -> None:
    rng = np.random.default_rng(3)
    if case in ("cells", "plates"):
        n, unit = 6, np.arange(6)
        plate = np.array([0, 0, 0, 1, 1, 1]) if case == "plates" else np.zeros(6, int)
        orders = [o for o in itertools.permutations(range(n)) if np.all(plate[list(o)] == plate)]
        v, given = rng.normal(size=n) + plate, {"stratum": plate}
        arrangements = [v[list(o)] for o in orders]
    elif case == "within donors":
        unit = np.repeat(np.arange(3), [2, 3, 3])
        orders = [o for o in itertools.permutations(range(8)) if np.all(unit[list(o)] == unit)]
        v, given = rng.normal(size=8), {"replicate": unit}
        arrangements = [v[list(o)] for o in orders]
    else:
        unit = np.repeat(np.arange(6), [2, 1, 4, 3, 2, 5])
        plate = (np.arange(6) // 3 if case == "donors in plates" else np.zeros(6, int))[unit]
        values = rng.normal(size=6) + (np.arange(6) // 3)
        given = {"replicate": unit, "stratum": plate}
        v = values[unit]
        orders = itertools.permutations(range(6))
        first = np.unique(unit, return_index=True)[1]
        arrangements = [values[list(o)][unit] for o in orders if np.all(plate[first][list(o)] == plate[first])]
    x = rng.normal(size=(len(v), 3))
    found = covariance_test(v, x, n_permutations=60, keep_permuted=True, rng=0, **given)
    possible = np.stack([covariance_test(a, x, n_permutations=1, rng=0, **given).statistic for a in arrangements])
    apart = np.abs(found.permuted[:, None] - possible[None]).max(axis=2).min(axis=1)
    assert found.permuted.shape == (60, 3)
    assert apart.max() < 1e-4 * np.abs(possible).max()
    assert len(np.unique(found.permuted[:, 0].round(4))) > 0.3 * min(60, len(possible))


def test_p_is_the_share_of_permutations_as_extreme_ties_included() -> None:
    treated = np.repeat([0.0, 1.0], 4)
    x = np.column_stack([treated, [0, 0, 1, 0, 1, 1, 0, 1]])
    found = covariance_test(treated, x, n_permutations=5000, keep_permuted=True, rng=0)
    np.testing.assert_allclose(found.p, [2 / 70, 34 / 70], atol=0.02)
    as_extreme = np.abs(found.permuted) >= np.abs(found.statistic) * (1 - 1e-5)
    np.testing.assert_allclose(found.p, (1 + as_extreme.sum(0)) / 5001)


def test_a_variable_without_variance_has_no_covariance_and_p_1() -> None:
    rng = np.random.default_rng(4)
    x = np.column_stack([np.full(30, 0.1), np.zeros(30), rng.normal(size=30)]).astype(np.float32)
    for v in (rng.normal(size=30), np.arange(30) % 2):
        found = covariance_test(v, x, nuisance=rng.normal(size=30), rng=0)
        for field in MEASURED:
            np.testing.assert_array_equal(getattr(found, field)[:2], 0.0)
        np.testing.assert_array_equal(found.p[:2], 1.0)


def test_a_variable_that_equals_v_gets_a_finite_statistic_and_the_smallest_p() -> None:
    donor = np.repeat(np.arange(5), 4)
    for v, given in ((np.arange(20) % 2, {"replicate": donor}), (np.arange(20) % 2, {}), (np.arange(20.0), {})):
        found = covariance_test(v, np.asarray(v, float)[:, None], n_permutations=99, rng=0, **given)
        assert np.isfinite(found.statistic).all()
        assert found.statistic > 3
        assert np.isfinite(found.effect).all()
        assert found.p <= 0.02


# ---- what it leaves out


def test_nuisance_takes_out_a_confounder_that_reverses_the_covariance() -> None:
    rng = np.random.default_rng(5)
    depth = rng.normal(size=400)
    v = depth + rng.normal(size=400)
    x = (2 * depth - 0.5 * v)[:, None] + rng.normal(size=(400, 1))
    raw, adjusted = covariance_test(v, x, rng=0), covariance_test(v, x, nuisance=depth, rng=0)
    assert raw.covariance > 0
    assert raw.p < 0.01
    assert adjusted.covariance < 0
    assert adjusted.p < 0.01
    assert adjusted.low < -0.5 < adjusted.high
    fixed = np.column_stack([np.ones(400), depth])
    np.testing.assert_allclose(adjusted.covariance, refitted(v, x, fixed))


def test_strata_are_a_one_hot_nuisance_with_permutations_inside() -> None:
    rng = np.random.default_rng(6)
    plate = rng.integers(4, size=200)
    v, x = rng.normal(size=200) + plate, rng.normal(size=(200, 5)) + 3 * plate[:, None]
    inside = covariance_test(v, x, stratum=plate.astype(str), rng=0)
    np.testing.assert_allclose(inside.covariance, refitted(v, x, indicators(plate)))
    same(inside, covariance_test(v, x, nuisance=indicators(plate), rng=0), fields=("covariance", "effect"))
    assert covariance_test(v, x, rng=0).p.max() < 0.01
    assert inside.p.max() > 0.05


def test_donors_on_several_plates_keep_their_values_together_and_plates_are_taken_out() -> None:
    rng = np.random.default_rng(7)
    donor, plate = np.repeat(np.arange(10), 12), np.tile(np.repeat(np.arange(3), 4), 10)
    v = rng.normal(size=10)[donor]
    x = rng.normal(size=(120, 4))
    found, moved = (
        covariance_test(v, y, replicate=donor, stratum=plate, rng=0) for y in (x, x + 5 * plate[:, None] ** 2)
    )
    same(found, moved, fields=(*MEASURED, "p"))
    assert found.n_units == 10


def test_replicates_of_one_cell_are_cells() -> None:
    rng = np.random.default_rng(8)
    v, x = rng.normal(size=30), rng.normal(size=(30, 4))
    same(covariance_test(v, x, rng=0), covariance_test(v, x, replicate=np.arange(30), rng=0), fields=(*MEASURED, "p"))


# ---- invariances


def invariant_cases() -> dict[str, dict]:
    donor = np.repeat(np.arange(12), 10)
    return {
        "cells": {},
        "plates and slopes": {"stratum": np.arange(120) % 3, "nuisance": np.sin(np.arange(120))},
        "donors": {"replicate": donor},
    }


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", invariant_cases())
def test_units_precision_blocks_and_memory_order_do_not_matter(case, shared, monkeypatch) -> None:
    rng = np.random.default_rng(9)
    given = invariant_cases()[case]
    donor = np.repeat(np.arange(12), 10)
    v = rng.normal(size=12)[donor] if shared else rng.normal(size=120)
    x = (rng.poisson(2, size=(120, 30)) + 0.3 * v[:, None]).astype(np.float32)
    found = covariance_test(v, x, keep_permuted=True, rng=0, **given)
    same(found, covariance_test(v, x.astype(np.float64), rng=0, **given), fields=(*MEASURED, "p"))
    scaled = covariance_test(v, 1000 * x.astype(np.float64) - 7, rng=0, **given)
    same(found, scaled, fields=("effect", "statistic", "p"))
    np.testing.assert_allclose(scaled.covariance, 1000 * found.covariance)
    same(found, covariance_test(3 * v + 1, np.asfortranarray(x), rng=0, **given), fields=("effect", "statistic", "p"))
    monkeypatch.setattr(module, "_BLOCK_VALUES", 3000)
    monkeypatch.setattr(module, "_TILE", (7, 5))
    blocks = covariance_test(v, x, keep_permuted=True, rng=0, **given)
    same(found, blocks, fields=(*MEASURED, "p"))
    np.testing.assert_allclose(blocks.permuted, found.permuted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", invariant_cases())
def test_the_order_of_cells_does_not_matter_and_unknown_cells_are_as_good_as_absent(case) -> None:
    rng = np.random.default_rng(10)
    given = invariant_cases()[case]
    v, x = rng.normal(size=120), rng.normal(size=(120, 6))
    found = covariance_test(v, x, rng=0, **given)
    order = rng.permutation(120)
    shuffled = covariance_test(v[order], x[order], rng=0, **{key: value[order] for key, value in given.items()})
    same(found, shuffled)
    np.testing.assert_allclose(found.p, shuffled.p, atol=0.08)
    unknown = rng.random(120) < 0.3
    part = covariance_test(v[~unknown], x[~unknown], rng=0, **{key: value[~unknown] for key, value in given.items()})
    holes, broken = np.where(unknown, np.nan, v), np.where(unknown[:, None], np.nan, x)
    same(part, covariance_test(holes, broken, rng=0, **given), fields=(*MEASURED, "p"))


# ---- level and coverage


def gaussian(rng):
    v = rng.normal(size=60)
    return v, rng.normal(size=(60, 20)), {}, 0.0


def gaussian_effect(rng):
    v = rng.normal(size=300)
    return v, 0.5 * v[:, None] + rng.normal(size=(300, 20)), {}, 0.5


def sparse_counts(rng):
    v = (rng.random(300) < 0.4).astype(float)
    return v, rng.poisson(0.1, size=(300, 20)), {}, 0.0


def unequal_variance(rng):
    v = (rng.random(150) < 0.2).astype(float)
    return v, rng.normal(size=(150, 20)) * (1 + 3 * v[:, None]), {}, 0.0


def variance_follows_v(rng):
    v = rng.normal(size=150)
    return v, rng.normal(size=(150, 20)) * v[:, None], {}, 0.0


def plates(rng):
    plate = rng.integers(4, size=240)
    v = (rng.random(240) < 0.2 + 0.15 * plate).astype(float)
    return v, 2 * rng.normal(size=(4, 20))[plate] + rng.normal(size=(240, 20)), {"stratum": plate}, 0.0


def confounder(rng):
    z = rng.normal(size=80)
    return z + rng.normal(size=80), 2 * z[:, None] + rng.normal(size=(80, 20)), {"nuisance": z}, 0.0


def donors(n_donors, effect=0.0, plate_of=None, unequal=False):
    """Half of the donors treated (of each plate), donors differ as much as their cells."""

    def draw(rng):
        donor = np.repeat(np.arange(n_donors), rng.integers(10, 50, n_donors) if unequal else 30)
        plate = np.zeros(n_donors, int) if plate_of is None else plate_of
        v = np.concatenate([rng.permutation(np.arange(m) % 2) for m in np.bincount(plate)])[donor].astype(float)
        x = effect * v[:, None] + rng.normal(size=(n_donors, 20))[donor] + rng.normal(size=(len(donor), 20))
        x += 3 * rng.normal(size=(20, 20))[plate[donor]]
        w = v - indicators(plate[donor]) @ (indicators(plate[donor]).T @ v / np.bincount(plate[donor]))
        true = effect * (w @ w) / (len(v) - len(np.unique(plate)))
        return v, x, {"replicate": donor} | ({} if plate_of is None else {"stratum": plate[donor]}), true

    return draw


def within_donors(effect=0.0, slopes_vary=0.0):
    """Both v and x differ between donors; within, x follows v by a slope that may vary from donor to donor."""

    def draw(rng):
        donor = np.repeat(np.arange(8), 30)
        inside = rng.normal(size=240)
        slope = effect + slopes_vary * rng.normal(size=(8, 20))[donor]
        x = slope * inside[:, None] + 3 * rng.normal(size=(8, 20))[donor] + rng.normal(size=(240, 20))
        return inside + 3 * rng.normal(size=8)[donor], x, {"replicate": donor}, effect

    return draw


NULLS = {
    "gaussian": gaussian,
    "sparse counts": sparse_counts,
    "unequal variance": unequal_variance,
    "variance follows v": variance_follows_v,
    "plates": plates,
    "confounder": confounder,
    "8 donors": donors(8),
    "20 donors": donors(20),
    "20 donors of unequal size": donors(20, unequal=True),
    "16 donors on 4 plates": donors(16, plate_of=np.arange(16) // 4),
    "within 8 donors": within_donors(),
    "within 8 donors that differ": within_donors(slopes_vary=0.5),
}
EFFECTS = {
    "gaussian": gaussian_effect,
    "8 donors": donors(8, 1.0),
    "8 donors of unequal size": donors(8, 1.0, unequal=True),
    "20 donors": donors(20, 1.0),
    "16 donors on 4 plates": donors(16, 1.0, plate_of=np.arange(16) // 4),
    "within 8 donors": within_donors(1.0),
}


def simulated(draw, n=150, **options) -> tuple[np.ndarray, np.ndarray]:
    """P and whether the interval covers, of 20 variables in each of n experiments."""
    p, covers = [], []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        v, x, given, true = draw(rng)
        found = covariance_test(v, x, rng=rng, **{"n_permutations": 199} | options | given)
        p.append(found.p)
        covers.append((found.low <= true) & (true <= found.high))
    return np.concatenate(p), np.concatenate(covers)


@pytest.mark.parametrize("case", NULLS)
def test_where_nothing_covaries_p_is_uniform_and_intervals_cover(case) -> None:
    p, covers = simulated(NULLS[case])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert np.mean(p <= level) <= level + 4 * np.sqrt(level * (1 - level) / len(p)) + 0.005
    assert np.mean(p <= 0.5) > 0.42
    assert 0.92 <= covers.mean() <= 0.98


def test_p_is_uniform_where_values_are_continuous() -> None:
    p, _ = simulated(gaussian, n=100, n_permutations=499)
    assert kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize("case", EFFECTS)
def test_intervals_cover_a_real_covariance(case) -> None:
    _, covers = simulated(EFFECTS[case], n_permutations=1)
    assert 0.92 <= covers.mean() <= 0.98


def test_cells_of_one_donor_taken_for_independent_would_give_false_discoveries() -> None:
    def without_donors(rng):
        v, x, _, true = NULLS["20 donors"](rng)
        return v, x, {}, true

    p, covers = simulated(without_donors, n=20)
    assert np.mean(p <= 0.05) > 0.4
    assert covers.mean() < 0.6


def test_unequal_variance_would_give_false_discoveries_without_studentisation() -> None:
    rejected = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        v, x, _, _ = unequal_variance(rng)
        null = np.stack([rng.permutation(v - v.mean()) for _ in range(199)]) @ x
        rejected.append(np.mean(np.abs(null) >= np.abs((v - v.mean()) @ x), axis=0) <= 0.05)
    assert np.mean(rejected) > 0.15


@pytest.mark.parametrize(
    ("draw", "least"), [(gaussian_effect, 0.99), (donors(20, 2.0), 0.9), (within_donors(0.5), 0.95)]
)
def test_a_real_covariance_is_found(draw, least) -> None:
    p, _ = simulated(draw, n=20)
    assert np.mean(p <= 0.05) > least


# ---- refused input

V, X = np.arange(12.0), np.ones((12, 2)) * np.arange(12)[:, None]
PAIR = np.arange(12) % 2


@pytest.mark.parametrize(
    ("v", "x", "given", "message"),
    [
        (V[:5], X, {}, "12 cells but values"),
        (X, X, {}, "one value per cell"),
        (V, V, {}, "dense table of numbers"),
        (V, X.astype(str), {}, "dense table of numbers"),
        (["a"] * 12, X, {}, "must be numbers"),
        (np.full(12, np.nan), X, {}, "At least 3 cells .* there are 0"),
        (np.where(V < 2, V, np.nan), X, {}, "At least 3 cells .* there are 2"),
        (V, X, {"replicate": PAIR}, "At least 3 replicates .* there are 2"),
        (np.ones(12), X, {}, "have the same one"),
        (np.where(V == 3, np.inf, V), X, {}, "missing or infinite"),
        (V, np.where(X == 3, np.nan, X), {}, "measured variables hold .* column 0"),
        (V, X, {"replicate": PAIR[:4]}, "12 cells but replicate"),
        (V, X, {"stratum": PAIR[:4]}, "12 cells but stratum"),
        (V, X, {"stratum": np.array([None, *"aaabbbbbbbb"], object)}, "1 cells with a known value have no stratum"),
        (V, X, {"nuisance": V[:4]}, "12 cells but nuisance"),
        (V, X, {"nuisance": np.where(V == 3, np.nan, V)}, "nuisance variables hold .* column 0"),
        (V, X, {"nuisance": 2 * V + 1}, "do not vary once"),
        (PAIR, X, {"stratum": PAIR}, "do not vary once"),
        (
            V // 3,
            X,
            {"replicate": V // 3, "nuisance": np.eye(4)[(V // 3).astype(int)][:, :2]},
            "4 replicates are too few",
        ),
        (V, X, {"n_permutations": 0}, "at least 1"),
    ],
)
def test_input_without_an_answer_is_refused_in_plain_words(v, x, given, message) -> None:
    with pytest.raises(InputError, match=message):
        covariance_test(v, x, rng=0, **given)
