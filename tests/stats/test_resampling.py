"""Factors permuted and statistics on halves: tests that reject as often as they should, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from factors import KINDS, drawn, hidden, levels, numbers, value_of
from scipy.stats import binom

from latentcell.errors import InputError
from latentcell.stats.association import correlation, entropy, linear_score, mutual_information
from latentcell.stats.disentanglement import metrics, mig
from latentcell.stats.relabelling import share_as_extreme
from latentcell.stats.resampling import half_sample_sd, permuted


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# permutation


def test_permuting_keeps_values_and_unknown_cells_and_blocks(rng):
    factor = hidden(numbers("dose", rng.normal(size=60)), rng.random(60) < 0.3)
    block = np.repeat(["plate 1", "plate 2", "plate 3"], 20)
    for blocks in (None, block):
        moved = permuted(factor, block=blocks, rng=rng)
        np.testing.assert_array_equal(moved.known, factor.known)
        assert not np.array_equal(moved.value[moved.known], factor.value[factor.known])
        for rows in (
            [np.arange(60)] if blocks is None else [np.flatnonzero(blocks == name) for name in np.unique(block)]
        ):
            np.testing.assert_array_equal(np.sort(moved.value[rows]), np.sort(factor.value[rows]))


def test_replicates_swap_their_value_as_a_whole_and_within_their_block(rng):
    replicate = np.repeat(np.arange(12), [5, 9, 7, 4, 8, 6, 5, 9, 7, 4, 8, 6])
    block = replicate // 6
    given = rng.permutation(12).astype(float)
    factor = hidden(numbers("dose", given[replicate]), rng.random(len(replicate)) < 0.2)
    moved = permuted(factor, replicate, block, rng=rng)
    np.testing.assert_array_equal(moved.known, factor.known)
    after = [np.unique(moved.value[(replicate == each) & moved.known]) for each in range(12)]
    assert all(len(values) == 1 for values in after)
    np.testing.assert_array_equal(np.sort(np.concatenate(after[:6])), np.sort(given[:6]))
    np.testing.assert_array_equal(np.sort(np.concatenate(after[6:])), np.sort(given[6:]))
    assert not np.array_equal(np.concatenate(after), given)


def test_a_factor_that_varies_within_replicates_stays_in_them(rng):
    replicate = np.repeat(np.array(["donor 1", "donor 2", "donor 3"], dtype=object), 20)
    block = np.tile([1, 2], 30)
    factor = numbers("dose", rng.normal(size=60))
    moved = permuted(factor, replicate, block, rng=rng)
    for donor in np.unique(replicate):
        for plate in (1, 2):
            rows = (replicate == donor) & (block == plate)
            np.testing.assert_array_equal(np.sort(moved.value[rows]), np.sort(factor.value[rows]))
            assert not np.array_equal(moved.value[rows], factor.value[rows])


def test_factors_that_go_together_are_permuted_together(rng):
    dose = numbers("dose", rng.normal(size=60))
    twin = numbers("twin", -dose.value)
    np.testing.assert_array_equal(permuted(dose, rng=4).value, -permuted(twin, rng=4).value)
    table = metrics(rng.normal(size=(60, 2)), [dose, twin], n_permutations=9, n_resamples=0, rng=0)
    for column in ("value", "null_95", "p"):
        assert value_of(table, "max_correlation")[column] == value_of(table, "max_correlation", "dose")[column]


def within_chance(rejections, n, alpha, tail=1e-4):
    """Whether a count of rejections is what a test of level `alpha` gives."""
    low, high = binom.ppf([tail, 1 - tail], n, alpha)
    return low <= rejections <= high


def p_values(simulate, n_simulations, rng, *, n_permutations=19):
    """P of the best correlation and of MIG in simulations ``(codes, factor, replicate, block)``."""
    p = []
    for _ in range(n_simulations):
        codes, factor, replicate, block = simulate(rng)
        every = [factor, *(permuted(factor, replicate, block, rng=rng) for _ in range(n_permutations))]
        best, information = correlation(codes, every).max(axis=0), mutual_information(codes, every)
        gaps = mig(information, np.array([entropy(each) for each in every]))
        p.append([share_as_extreme(best), share_as_extreme(gaps)])
    return np.array(p)


def assert_uniform(p):
    for alpha in (0.05, 0.2, 0.5):
        best, gap = (p <= alpha + 1e-9).sum(axis=0)
        assert within_chance(best, len(p), alpha)
        # counts of few cells tie, which makes p larger
        assert gap <= binom.ppf(1 - 1e-4, len(p), alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_p_is_uniform_where_cells_are_independent(kind, rng):
    def simulate(rng):
        return rng.standard_t(3, size=(50, 3)), hidden(drawn(kind, 50, rng), rng.random(50) < 0.2), None, None

    assert_uniform(p_values(simulate, 200, rng))


def treated_replicates(rng, n_replicates=12, n_cells=8):
    """Half of the replicates treated, to no effect, each replicate with a code of its own."""
    replicate = np.repeat(np.arange(n_replicates), n_cells)
    treated = rng.permutation(np.repeat([0.0, 1.0], n_replicates // 2))
    codes = rng.normal(size=(n_replicates, 3))[replicate] + 0.5 * rng.normal(size=(len(replicate), 3))
    return codes, levels("treatment", treated[replicate]), replicate, None


def test_p_is_uniform_for_treated_replicates_where_permuting_cells_rejects_almost_all(rng):
    assert_uniform(p_values(treated_replicates, 250, rng))
    by_cell = p_values(lambda rng: (*treated_replicates(rng)[:2], None, None), 60, rng)
    assert (by_cell[:, 0] <= 0.05).mean() > 0.7


def test_p_is_uniform_within_replicates_of_different_composition(rng):
    def simulate(rng):
        replicate = np.repeat(np.arange(4), 20)
        stage = rng.random(80) < np.array([0.2, 0.4, 0.6, 0.8])[replicate]
        codes = rng.normal(size=(4, 2))[replicate] + 0.5 * rng.normal(size=(80, 2))
        return codes, levels("stage", stage), replicate, None

    assert_uniform(p_values(simulate, 200, rng))
    by_cell = p_values(lambda rng: (*simulate(rng)[:2], None, None), 60, rng)
    assert (by_cell[:, 0] <= 0.05).mean() > 0.3


def test_p_is_uniform_within_blocks_that_differ_in_codes_and_doses(rng):
    def simulate(rng):
        well = np.repeat(np.arange(16), 4)
        block = well // 8
        dose = (rng.normal(size=16) + 2 * (np.arange(16) // 8))[well]
        codes = rng.normal(size=(16, 2))[well] + 3 * block[:, None] + 0.5 * rng.normal(size=(64, 2))
        return codes, numbers("dose", dose), well, block

    assert_uniform(p_values(simulate, 200, rng))
    across = p_values(lambda rng: (*simulate(rng)[:3], None), 60, rng)
    assert (across[:, 0] <= 0.05).mean() > 0.3


def test_metrics_permute_replicates_where_they_are_given():
    codes, factor, replicate, _ = treated_replicates(np.random.default_rng(3))
    by_cell, by_replicate = (
        metrics(codes, [factor], n_permutations=19, n_resamples=0, replicate=each, rng=0) for each in (None, replicate)
    )
    assert value_of(by_cell, "max_correlation")["p"] == 0.05
    assert value_of(by_replicate, "max_correlation")["p"] > 0.2
    assert value_of(by_replicate, "max_correlation")["value"] == value_of(by_cell, "max_correlation")["value"]
    assert value_of(by_replicate, "single_dimension")["null_mean"] > value_of(by_cell, "single_dimension")["null_mean"]


# intervals


def coverage(simulate, statistic, truth, n_simulations, rng, *, by_replicate=False):
    covered = 0
    for _ in range(n_simulations):
        codes, factor, replicate = simulate(rng)

        def on(rows, codes=codes, factor=factor):
            return statistic(codes[rows], factor.take(rows))

        sd = half_sample_sd(on, len(codes), replicate=replicate if by_replicate else None, n=40, rng=rng)
        covered += abs(on(np.arange(len(codes)))[0] - truth) <= 1.96 * sd[0]
    return covered / n_simulations


def best_linear_score(codes, factor):
    return linear_score(codes, [factor]).max(axis=0)


def test_intervals_of_gaussian_codes_cover_the_truth(rng):
    def simulate(rng):
        dose = rng.normal(size=200)
        codes = np.column_stack([0.6 * dose + 0.8 * rng.normal(size=200), rng.normal(size=200)])
        return codes, numbers("dose", dose), None

    assert 0.90 < coverage(simulate, best_linear_score, 0.36, 200, rng) < 0.99
    spearman = 6 / np.pi * np.arcsin(0.3)
    best = coverage(simulate, lambda codes, factor: correlation(codes, [factor]).max(axis=0), spearman, 200, rng)
    assert 0.90 < best < 0.99


def test_intervals_cover_the_truth_over_replicates_where_halves_of_cells_do_not(rng):
    def simulate(rng):
        donor = np.repeat(np.arange(40), 10)
        dose, effect = rng.normal(size=(2, 40))
        codes = 0.6 * dose[donor] + 0.8 * (0.9 * effect[donor] + np.sqrt(0.19) * rng.normal(size=400))
        return codes[:, None], numbers("dose", dose[donor]), donor

    assert 0.86 < coverage(simulate, best_linear_score, 0.36, 200, rng, by_replicate=True) < 0.99
    assert coverage(simulate, best_linear_score, 0.36, 60, rng) < 0.7


def test_few_replicates_give_no_interval(rng):
    codes, factor = rng.normal(size=(60, 2)), drawn("continuous", 60, rng)
    table = metrics(codes, [factor], n_permutations=0, n_resamples=3, replicate=np.arange(60) % 3, rng=0)
    assert table[["low", "high"]].isna().all(axis=None)
    assert np.isnan(half_sample_sd(lambda rows: np.zeros(1), 60, n=1))


def test_halves_that_cannot_tell_are_left_out():
    def statistic(rows):
        return np.array([np.nan if 0 in rows else rows.mean(), rows.mean(), np.nan])

    sd = half_sample_sd(statistic, 20, n=200, rng=0)
    assert np.isnan(sd[2])
    # the mean of 20 numbers, from halves of them
    assert sd[1] == pytest.approx(np.arange(20).std(ddof=1) / np.sqrt(20), rel=0.2)
    assert np.isnan(sd[0]) or sd[0] > 0


# refused input


def test_labels_that_do_not_fit_are_refused(rng):
    factor = drawn("continuous", 30, rng)
    with pytest.raises(InputError, match="29 replicate labels for 30 cells"):
        permuted(factor, np.arange(29))
    with pytest.raises(InputError, match="Cell 2 has no block"):
        permuted(factor, block=np.array(["a", "a", None] * 10, dtype=object))
    well = np.repeat(["A01", "B01", "C01"], 10)
    with pytest.raises(InputError, match="Replicate 'A01' has cells in several blocks"):
        permuted(numbers("dose", np.repeat([1.0, 2.0, 3.0], 10)), well, np.arange(30) % 2)
