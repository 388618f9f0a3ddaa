"""How each dimension goes with each factor: definitions, invariances, missing values."""

from __future__ import annotations

import numpy as np
import pytest
from factors import KINDS, drawn, hidden, levels, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestCentroid

from latentcell.errors import InputError
from latentcell.stats.association import (
    correlation,
    entropy,
    factor_association,
    importance,
    linear_score,
    mutual_information,
    single_dimension,
)
from latentcell.stats.disentanglement import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# agreement with definitions


def test_levels_count_alike_however_rare(rng):
    factor = levels("stage", rng.random(4_000) < 0.05)
    codes = (factor.value + 0.8 * rng.normal(size=4_000))[:, None]
    expected = norm.cdf(0.5 / 0.8)  # of the cut half-way between the means
    assert single_dimension(codes, [factor], rng=rng)[0, 0] == pytest.approx(expected, abs=0.04)
    assert importance(codes, [factor], rng=rng).informativeness[0] == pytest.approx(expected, abs=0.05)
    assert linear_score(codes, [factor])[0, 0] == pytest.approx(2 * expected - 1, abs=0.06)


def test_correlation_is_spearman_multiple_correlation_or_correlation_ratio(rng):
    n = 300
    factors = [drawn(kind, n, rng) for kind in KINDS] + [drawn("categorical", n, rng, n_levels=2)]
    codes = rng.normal(size=(n, 3)) + np.outer(factors[0].value, [2, -1, 0]) + np.outer(factors[4].value, [0, 0, 1])
    codes[:, 0] = np.round(codes[:, 0], 1)  # ties
    angle = 2 * np.pi * factors[2].value
    design = np.column_stack([np.ones(n), np.cos(angle), np.sin(angle)])
    for i, z in enumerate(codes.T):
        residual = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
        means = np.array([z[factors[3].value == level].mean() for level in range(4)])
        expected = [
            abs(spearmanr(z, factors[0].value)[0]),
            abs(spearmanr(z, factors[1].value)[0]),
            np.sqrt(1 - residual.var() / z.var()),
            means[factors[3].value.astype(int)].std() / z.std(),
            abs(np.corrcoef(z, factors[4].value)[0, 1]),
        ]
        np.testing.assert_allclose(correlation(codes, factors)[i], expected, atol=1e-10)


def test_linear_score_of_levels_is_that_of_the_nearest_class_mean_left_out(rng):
    factor = levels("stage", rng.choice(3, size=60, p=[0.6, 0.3, 0.1]))
    codes = rng.normal(size=(60, 4)) + np.outer(factor.value, [0, 0.5, 1, 2])
    for z, score in zip(codes.T, linear_score(codes, [factor])[:, 0], strict=True):
        told = cross_val_predict(NearestCentroid(), z[:, None], factor.value, cv=LeaveOneOut())
        assert score == pytest.approx(max(0, balanced_accuracy_score(factor.value, told, adjusted=True)), abs=1e-10)


def test_single_dimension_tells_what_no_line_tells(rng):
    codes = rng.normal(size=(1_000, 2))
    factor = numbers("dose", np.abs(codes[:, 0]))
    assert linear_score(codes, [factor]).max() < 0.02
    told, chance = single_dimension(codes, [factor], rng=rng)[:, 0]
    assert told > 0.9
    assert -0.1 < chance < 0.01


# invariances and missing values


@pytest.fixture
def mixed(rng):
    """Codes that follow factors of all kinds, with a dimension that never varies."""
    n = 300
    factors = [drawn(kind, n, rng) for kind in KINDS]
    codes = rng.normal(size=(n, 5))
    codes[:, :4] += np.column_stack([factor.value for factor in factors])
    codes[:, 4] = 0.1
    return codes, factors


@pytest.mark.parametrize("associate", [mutual_information, correlation, linear_score])
def test_order_of_cells_dimensions_and_factors_does_not_matter(associate, mixed, rng):
    codes, factors = mixed
    expected = associate(codes, factors)
    rows, order = rng.permutation(len(codes)), [2, 0, 4, 1, 3]
    result = associate(codes[rows][:, order], [factor.take(rows) for factor in factors[::-1]])
    np.testing.assert_allclose(result, expected[order, ::-1], atol=1e-12)


def test_sign_shift_and_scale_of_codes_do_not_matter(mixed):
    codes, factors = mixed
    turned = codes * [-1, 2, -0.5, 1e4, 1] + 3
    for associate in (correlation, linear_score):
        np.testing.assert_allclose(associate(turned, factors), associate(codes, factors), atol=1e-8)
    stretched = codes * [2, 4, 0.5, 8, 1]
    np.testing.assert_allclose(
        single_dimension(stretched, factors, rng=1), single_dimension(codes, factors, rng=1), atol=1e-12
    )
    np.testing.assert_allclose(importance(stretched, factors, rng=1).matrix, importance(codes, factors, rng=1).matrix)


def test_only_ranks_of_a_number_matter_to_correlation(mixed):
    codes, factors = mixed
    np.testing.assert_allclose(
        correlation(codes, [numbers("dose", np.exp(5 * factors[0].value))]), correlation(codes, factors[:1]), atol=1e-12
    )


def test_a_dimension_or_factor_that_does_not_vary_gives_zero(mixed, rng):
    codes, factors = mixed
    factors = [*factors, numbers("constant", np.full(len(codes), 0.1))]
    matrices = [associate(codes, factors) for associate in (mutual_information, correlation, linear_score)]
    for matrix in [*matrices, single_dimension(codes, factors, rng=rng), importance(codes, factors, rng=rng).matrix]:
        assert (matrix[4] == 0).all()
        assert (matrix[:, 4] == 0).all()
        assert np.isfinite(matrix).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_counts_on_the_cells_where_it_is_known(kind, mixed, rng):
    codes, factors = mixed
    factor = factors[KINDS.index(kind)]
    unknown = rng.random(len(codes)) < 0.4
    partly, other = hidden(factor, unknown), factors[0]
    subset = factor.take(~unknown)
    for associate in (mutual_information, correlation, linear_score):
        np.testing.assert_allclose(
            associate(codes, [other, partly])[:, 1], associate(codes[~unknown], [subset])[:, 0], atol=1e-12
        )
    for associate in (single_dimension, lambda *args, rng: importance(*args, rng=rng).matrix):
        np.testing.assert_allclose(
            associate(codes, [partly], rng=3), associate(codes[~unknown], [subset], rng=3), atol=1e-12
        )
    assert entropy(partly) == pytest.approx(entropy(subset))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(12, 60), st.integers(1, 3), st.sampled_from([0.0, 0.5]))
def test_associations_stay_in_their_range(seed, n, d, missing):
    rng = np.random.default_rng(seed)
    factors = [hidden(drawn(kind, n, rng), rng.random(n) < missing) for kind in KINDS]
    codes = rng.choice([rng.normal(size=(n, d)), rng.integers(3, size=(n, d)).astype(float)])
    for associate in (correlation, linear_score):
        matrix = associate(codes, factors)
        assert ((matrix >= 0) & (matrix <= 1)).all()
    information = mutual_information(codes, factors)
    assert (information >= 0).all()
    assert (information <= np.array([entropy(factor) for factor in factors]) + 1e-9).all()
    assert (single_dimension(codes, factors, rng=seed) <= 1).all()
    bins = np.digitize(codes[:, 0], np.histogram(codes[:, 0], 20)[1][:-1])
    known = factors[3].known
    if known.all() and np.ptp(codes[:, 0]) > 0:
        assert information[0, 3] == pytest.approx(mutual_info_score(factors[3].classes(), bins), abs=1e-10)


# factors among themselves


def test_association_of_factors_is_their_correlation_and_one_where_confounded(rng):
    n = 2_000
    dose = rng.normal(size=n)
    plate = levels("plate", rng.integers(6, size=n))
    factors = [
        numbers("dose", dose),
        numbers("near", 0.7 * dose + np.sqrt(0.51) * rng.normal(size=n)),
        plate,
        levels("batch", plate.value // 2),
        drawn("cyclic", n, rng),
    ]
    result = factor_association(factors)
    assert result.index.tolist() == result.columns.tolist() == ["dose", "near", "plate", "batch", "cyclic"]
    assert np.array_equal(result, result.T)
    assert result.loc["dose", "near"] == pytest.approx(0.7, abs=0.07)
    assert result.loc["plate", "batch"] == pytest.approx(1, abs=0.01)
    assert (np.diag(result) == 1).all()
    assert result.loc["cyclic", ["dose", "near", "plate", "batch"]].max() < 0.08
    hidden_half = hidden(factors[0], np.arange(n) < n // 2)
    other_half = hidden(factors[1], np.arange(n) >= n // 2)
    assert np.isnan(factor_association([hidden_half, other_half]).iloc[0, 1])


# refused input


@pytest.mark.parametrize("ask", [mutual_information, correlation, linear_score, single_dimension, importance, metrics])
def test_input_that_cannot_be_scored_is_refused(ask, rng):
    factor = drawn("continuous", 30, rng)
    codes = rng.normal(size=(30, 2))
    with pytest.raises(InputError, match="No factor was given"):
        ask(codes, [])
    with pytest.raises(InputError, match="'continuous' annotates 30 cells but there are codes of 29"):
        ask(codes[1:], [factor])
    with pytest.raises(InputError, match=r"found shape \(30,\)"):
        ask(codes[:, 0], [factor])
    codes[3, 1] = np.nan
    with pytest.raises(InputError, match="code of cell 3 is missing or infinite in dimension 1"):
        ask(codes, [factor])
