from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, kstest, norm

from latentcell.stats.relabelling import (
    Layout,
    accounted_for,
    combined,
    layout,
    relabelling_test,
    relabellings,
    shift,
    statistics,
)
from latentcell.stats.shrinkage import oas_shrinkage


def screen(rng, controls=(4, 4, 4), treated=(1, 1, 1), p=3, effect=0.0):
    """Replicates of one group: values, treated, control, block."""
    values, is_treated, block = [], [], []
    for name, (n, m) in enumerate(zip(controls, treated, strict=True)):
        x = rng.normal(size=p) * 2 + 0.3 * rng.normal(size=(n + m, p))
        x[:m] += effect
        values.append(x)
        is_treated += [True] * m + [False] * n
        block += [f"plate {name}"] * (n + m)
    return np.concatenate(values), np.array(is_treated), ~np.array(is_treated), np.array(block, dtype=object)


def brute_force(values, treated, control, block):
    """T with everything refitted from its definition."""
    rows = [(np.flatnonzero(treated & (block == b)), np.flatnonzero(control & (block == b))) for b in np.unique(block)]
    both = [(t, c) for t, c in rows if len(t) and len(c)]
    others = [c for t, c in rows if not len(t) and len(c) > 1]
    pools = [np.concatenate(pair) for pair in both] + others
    total = np.concatenate([values[rows] - values[rows].mean(0) for rows in pools])
    f = len(total) - len(pools)
    sd = np.sqrt((total**2).sum(0) / f)
    a = oas_shrinkage(total / sd, f)
    z = values / sd
    within, t, weights = np.zeros((values.shape[1],) * 2), 0.0, 0.0
    for ours, theirs in both:
        for part in (ours, theirs):
            d = z[part] - z[part].mean(0)
            within += d.T @ d
        w = len(ours) * len(theirs) / (len(ours) + len(theirs))
        t, weights = t + w * (z[ours].mean(0) - z[theirs].mean(0)), weights + w
    for part in others:
        d = z[part] - z[part].mean(0)
        within += d.T @ d
    t = t / weights
    return t @ np.linalg.solve((1 - a) * within / f + a * np.eye(len(t)), t)


@pytest.mark.parametrize("p", [1, 3, 40])
@pytest.mark.parametrize(
    ("controls", "treated"), [((4, 4, 4), (1, 1, 1)), ((3, 5), (2, 1)), ((6,), (3,)), ((2, 3), (1, 1))]
)
def test_every_relabelling_equals_a_brute_force_refit_of_centre_and_covariance(controls, treated, p) -> None:
    rng = np.random.default_rng(0)
    values, ours, control, block = screen(rng, controls, treated, p)
    extra = rng.normal(size=(5, p))  # controls of a plate that the group is not on
    values = np.concatenate([values, extra])
    ours, control = np.append(ours, [False] * 5), np.append(control, [True] * 5)
    block = np.append(block, ["other"] * 5).astype(object)
    design = layout(ours, control, block)
    drawn = relabellings(design, n=99_999, rng=rng)
    found = statistics(values, design, drawn, control=control, block=block)
    for i in rng.choice(len(drawn), min(12, len(drawn)), replace=False):
        relabelled, first = np.zeros(len(values), bool), 0
        for rows, m in zip(design.rows, design.n_treated, strict=True):
            relabelled[rows[drawn[i, first : first + m]]] = True
            first += m
        mine = np.concatenate(design.rows)
        others = np.zeros(len(values), bool)
        others[mine] = ~relabelled[mine]
        others[-5:] = True
        assert found[i] == pytest.approx(brute_force(values, relabelled, others, block), rel=1e-8)


def test_all_relabellings_are_enumerated_once_the_true_one_first() -> None:
    design = Layout((np.arange(4), np.arange(4, 7)), (2, 1))
    drawn = relabellings(design, n=100, rng=np.random.default_rng(0))
    assert len(drawn) == design.n_distinct == math.comb(4, 2) * 3
    assert drawn[0].tolist() == [0, 1, 0]
    assert len({tuple(row) for row in drawn}) == len(drawn)
    expected = itertools.product(itertools.combinations(range(4), 2), range(3))
    assert {tuple(row) for row in drawn} == {(*pair, one) for pair, one in expected}


def test_drawn_relabellings_are_uniform_over_choices_and_hold_no_repeats_within_a_block() -> None:
    design = Layout((np.arange(5), np.arange(5, 9)), (2, 1))
    drawn = relabellings(design, n=30, rng=np.random.default_rng(0))[1:]
    assert len(drawn) == 30
    many = np.concatenate([relabellings(design, n=30, rng=np.random.default_rng(i))[1:] for i in range(200)])
    assert (many[:, 0] != many[:, 1]).all()
    counts = np.unique(many[:, 0] * 20 + many[:, 1] * 4 + many[:, 2], return_counts=True)[1]
    assert len(counts) == math.comb(5, 2) * 4
    assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize(
    ("sizes", "treated", "least"),
    [((17, 17, 17), (1, 1, 1), 17**-3), ((9, 9), (1, 1), 1 / 81), ((8,), (4,), 2 / 70), ((2,) * 5, (1,) * 5, 2 / 32)],
)
def test_smallest_p_of_a_design_is_reached_by_a_huge_effect(sizes, treated, least) -> None:
    rng = np.random.default_rng(0)
    values, ours, control, block = screen(rng, [n - m for n, m in zip(sizes, treated, strict=True)], treated, 2, 1e3)
    design = layout(ours, control, block)
    tested = relabelling_test([values], design, control=control, block=block, rng=0)
    assert design.smallest_p() == pytest.approx(least)
    assert tested.p == pytest.approx(least)
    assert tested.smallest_p == pytest.approx(least)


def test_drawn_and_enumerated_p_agree() -> None:
    values, ours, control, block = screen(np.random.default_rng(3), (7, 7, 7), (1, 1, 1), 4, 0.2)
    design = layout(ours, control, block)
    exact = relabelling_test([values], design, control=control, block=block)
    drawn = [
        relabelling_test([values], design, control=control, block=block, n_relabellings=400, rng=i).p for i in range(20)
    ]
    assert np.mean(drawn) == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p / (400 * 20)) + 1 / 400)
    assert min(drawn) >= 1 / 401


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.sampled_from([2, 5, 30]))
def test_p_does_not_change_with_units_plate_offsets_or_the_order_of_anything(seed: int, p: int) -> None:
    rng = np.random.default_rng(seed)
    values, ours, control, block = screen(rng, (5, 4), (1, 2), p, 0.3)

    def tested(x, order):
        design = layout(ours[order], control[order], block[order])
        result = relabelling_test([x[order]], design, control=control[order], block=block[order])
        return result.p, result.distances[0]

    straight = np.arange(len(values))
    expected = tested(values, straight)
    offsets = rng.normal(size=(2, p))[(block == "plate 1").astype(int)]
    changed = (values * rng.uniform(0.1, 10, p) + 50 * offsets)[:, rng.permutation(p)]
    np.testing.assert_allclose(tested(changed, straight), expected, rtol=1e-6)
    np.testing.assert_allclose(tested(values, rng.permutation(straight)), expected, rtol=1e-6)


def test_a_constant_feature_and_replicates_that_are_all_alike_do_no_harm() -> None:
    values, ours, control, block = screen(np.random.default_rng(0), effect=1.0)
    design = layout(ours, control, block)
    plain = relabelling_test([values], design, control=control, block=block)
    padded = np.column_stack([values, np.full(len(values), 7.0)])
    assert relabelling_test([padded], design, control=control, block=block).p == plain.p
    assert relabelling_test([np.ones_like(values)], design, control=control, block=block).p == 1.0


def test_blocks_without_controls_are_left_out_and_those_without_the_group_lend_their_covariance() -> None:
    rng = np.random.default_rng(0)
    _, ours, control, block = screen(rng, (4, 0), (1, 2))
    design = layout(ours, control, block)
    assert len(design.rows) == 1
    assert design.n_treated == (1,)
    assert not set(design.rows[0]) & set(np.flatnonzero(block == "plate 1"))


NULLS = [
    ((16, 16, 16), (1, 1, 1), 10), ((8, 8, 8), (1, 1, 1), 32), ((8, 8), (1, 1), 10),
    ((6,), (6,), 10), ((12,), (4,), 32),
]  # fmt: skip


@pytest.mark.parametrize(("controls", "treated", "p"), NULLS)
def test_p_is_uniform_when_nothing_acts_whatever_the_design(controls, treated, p) -> None:
    rng, n = np.random.default_rng(1), 300
    values = []
    for _ in range(n):
        x, ours, control, block = screen(rng, controls, treated, p)
        x = np.exp(x)  # no normal distribution, and plates of very different spread
        design = layout(ours, control, block)
        views = [x, np.square(x)]
        result = relabelling_test(views, design, control=control, block=block, n_relabellings=199, rng=rng)
        values.append((result.p, result.p_views[0]))
    for column in np.array(values).T:
        low, high = binom.ppf([0.001, 0.999], n, 0.05)
        assert low <= (column <= 0.05).sum() <= high
        assert kstest(column, "uniform").pvalue > 1e-3


def test_shifts_that_agree_between_plates_are_found_and_those_that_do_not_are_not() -> None:
    rng = np.random.default_rng(0)
    values, ours, control, block = screen(rng, (16, 16, 16), (1, 1, 1), 10)
    design = layout(ours, control, block)
    same, opposed = values.copy(), values.copy()
    same[ours] += 1.0
    opposed[ours] += np.outer([1.0, -1.0, 0.0], np.ones(10))
    found = relabelling_test([same], design, control=control, block=block)
    missed = relabelling_test([opposed], design, control=control, block=block)
    assert found.p < 0.001
    assert missed.p > 0.05


def test_shift_weighs_blocks_by_the_precision_of_their_difference() -> None:
    values = np.array([[3.0], [1.0], [1.0], [10.0], [20.0], [0.0], [0.0], [0.0]])
    design = Layout((np.array([0, 1, 2]), np.array([3, 4, 5, 6, 7])), (1, 2))
    weights = np.array([1 * 2 / 3, 2 * 3 / 5])
    assert shift(values, design)[0] == pytest.approx((weights * [2.0, 15.0]).sum() / weights.sum())


def test_accounting_for_a_covariate_removes_what_it_explains_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    c, e = rng.normal(size=(40, 1)), rng.normal(size=(40, 2))
    blocks = [np.arange(20), np.arange(20, 40)]
    left = accounted_for(c * [2.0, -1.0], c, blocks)
    assert np.ptp(left, axis=0).max() < 1e-10
    adjusted = accounted_for(e, c, blocks)
    centred_c = np.concatenate([c[rows] - c[rows].mean(0) for rows in blocks])
    centred_y = np.concatenate([adjusted[rows] - adjusted[rows].mean(0) for rows in blocks])
    assert np.abs(centred_c.T @ centred_y).max() < 1e-9


def approximate_p(t: np.ndarray) -> np.ndarray:
    """P of the cube root of T as a normal variable with its own median and interquartile range."""
    low, middle, high = np.quantile(np.cbrt(t), [0.25, 0.5, 0.75])
    return norm.sf((np.cbrt(t) - middle) / ((high - low) / 1.349))


def test_views_are_combined_by_the_harmonic_mean_of_their_approximate_p() -> None:
    every = np.random.default_rng(0).chisquare([1, 3, 8, 20], size=(500, 4))
    p = np.stack([approximate_p(t) for t in every.T], axis=1)
    np.testing.assert_allclose(combined(every), -np.log10(4 / (1 / p).sum(axis=1)), rtol=1e-9)
    np.testing.assert_allclose(combined(every[:, :1]), -np.log10(p[:, 0]), rtol=1e-9)
    weighted = combined(every, [6.0, 0.0, 2.0, 2.0])
    np.testing.assert_allclose(weighted, -np.log10(1 / (np.array([0.6, 0, 0.2, 0.2]) / p).sum(axis=1)), rtol=1e-9)


@pytest.mark.parametrize("df", [2, 5, 30])
def test_the_approximate_p_of_a_chi_square_is_nearly_its_exact_one(df: int) -> None:
    t = 7 * chi2.ppf((np.arange(10_000) + 0.5) / 10_000, df)
    exact = chi2.sf(t / 7, df)
    found = 10 ** -combined(t[:, None])
    assert np.abs(found - exact).max() < 0.02
    assert np.abs(np.log10(found / exact))[exact > 1e-3].max() < 0.12


def test_combining_does_not_depend_on_the_units_or_the_order_of_views_and_keeps_the_order_of_relabellings() -> None:
    rng = np.random.default_rng(0)
    every = rng.chisquare([1, 3, 8], size=(200, 3))
    straight = combined(every)
    np.testing.assert_allclose(combined(every[:, [2, 0, 1]] * [1e6, 1.0, 1e-6]), straight)
    order = rng.permutation(200)
    np.testing.assert_allclose(combined(every[order]), straight[order])
    raised = every.copy()
    raised[0] *= 1.01
    assert combined(raised)[0] > straight[0]


def test_a_change_that_one_view_sees_is_not_drowned_by_views_that_see_none() -> None:
    rng = np.random.default_rng(0)
    seen = np.sort(rng.chisquare(5, 2_000))[::-1]
    alone = combined(seen[:, None])[0]
    among = combined(np.column_stack([seen, rng.chisquare(5, (2_000, 9))]))[0]
    assert alone - 1 <= among <= alone


def test_a_view_that_most_relabellings_share_is_measured_in_its_standard_deviation() -> None:
    t = np.append([27.0, 8.0], np.ones(98))
    found = combined(t[:, None])
    expected = -np.log10(norm.sf((np.cbrt(t) - 1) / np.cbrt(t).std()))
    np.testing.assert_allclose(found, expected)


def test_a_view_that_is_the_same_in_every_relabelling_counts_as_a_p_of_one() -> None:
    t = np.random.default_rng(0).chisquare(5, 300)
    p = approximate_p(t)
    with_constant = combined(np.column_stack([t, np.full(300, 4.0)]))
    np.testing.assert_allclose(with_constant, -np.log10(2 / (1 / p + 1)))
    np.testing.assert_allclose(combined(np.full((300, 2), 4.0)), 0.0, atol=1e-12)


def test_statistics_too_extreme_for_a_floating_point_p_are_still_told_apart() -> None:
    every = np.random.default_rng(0).chisquare(50, (1_000_000, 1))
    every[:2, 0] = [5_500.0, 5_000.0]
    found = combined(every)
    assert np.isfinite(found).all()
    assert found[0] > found[1] > 308
