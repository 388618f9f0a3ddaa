"""Scores of ideal, rotated and noisy codes, their references, and the table of them all."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from factors import KINDS, drawn, hidden, numbers, value_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import mutual_info_score

from latentcell.errors import InputError
from latentcell.stats.association import (
    correlation,
    entropy,
    importance,
    linear_score,
    mutual_information,
    single_dimension,
)
from latentcell.stats.disentanglement import (
    OVERALL,
    PER_FACTOR,
    completeness,
    disentanglement,
    factor_vae_score,
    metrics,
    mig,
    modularity,
    sap,
)
from latentcell.stats.factor import Factor

SIZES = (3, 6, 40, 32, 32)  # dSprites: shape, scale, orientation, x, y


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ideal, rotated and noisy codes


@pytest.mark.parametrize("kind", KINDS)
def test_a_dimension_that_is_the_factor_scores_one(kind, rng):
    n = 1_500
    factor = drawn(kind, n, rng)
    codes = rng.random((n, 3))
    codes[:, 1] = factor.value
    # no line maps to a circle; its cosine is the nearest to it for scores that are linear
    linear = codes.copy()
    if kind == "cyclic":
        linear[:, 1] = np.cos(2 * np.pi * factor.value)
    # equal widths do not quite fit classes of equal frequency
    bound = 0.8 if kind == "continuous" else 0.93
    assert mig(mutual_information(codes, [factor]), np.array([entropy(factor)]))[0] > bound
    assert sap(linear_score(linear, [factor]))[0] > 0.93
    assert correlation(linear, [factor])[1, 0] == pytest.approx(1)
    assert single_dimension(codes, [factor], rng=rng)[1, 0] > 0.97
    forest = importance(codes, [factor], rng=rng)
    assert completeness(forest.matrix)[0] > 0.95
    assert forest.informativeness[0] > 0.97


def test_one_dimension_per_factor_scores_one_on_all_factors_together(rng):
    factors = [drawn(kind, 1_500, rng) for kind in KINDS]
    codes = np.column_stack([factor.value for factor in factors])
    assert modularity(mutual_information(codes, factors)).mean > 0.98
    assert disentanglement(importance(codes, factors, rng=rng).matrix).mean > 0.95
    assert factor_vae_score(codes, factors, rng=rng) > 0.95


def test_rotated_codes_lose_gaps_and_keep_informativeness(rng):
    n = 1_500
    factors = [numbers("a", rng.random(n)), numbers("b", rng.random(n))]
    straight = np.column_stack([factor.value for factor in factors])
    rotated = straight @ np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    assert mig(mutual_information(rotated, factors), np.array([entropy(f) for f in factors])).max() < 0.05
    assert sap(linear_score(rotated, factors)).max() < 0.1
    assert modularity(mutual_information(rotated, factors)).mean < 0.1
    forest = importance(rotated, factors, rng=rng)
    assert disentanglement(forest.matrix).mean < 0.1
    assert completeness(forest.matrix).max() < 0.1
    assert forest.informativeness.min() > 0.9
    assert factor_vae_score(rotated, factors, rng=rng) < 0.75


def test_noise_scores_nothing_and_no_p_is_small(rng):
    n = 500
    table = metrics(
        rng.normal(size=(n, 4)), [drawn(kind, n, rng) for kind in KINDS], n_permutations=19, n_resamples=0, rng=1
    )
    rows = table.set_index("metric")
    assert rows.loc[["mig", "sap"], "value"].max() < 0.05
    assert rows.loc["completeness", "value"].max() < 0.1
    assert rows.loc["disentanglement", "value"] < 0.1
    assert rows.loc["max_correlation", "value"].max() < 0.2
    by_factor = table[(table["factor"] != "categorical") & (table["factor"] != "all")].set_index("metric")
    assert by_factor.loc[["single_dimension", "informativeness"], "value"].max() < 0.05
    assert value_of(table, "informativeness", "categorical")["value"] < 0.35  # chance is 1 / 4
    assert value_of(table, "factor_vae_score")["value"] < 0.4  # chance is 1 / 4
    assert table["p"].median() > 0.2
    assert (table["p"] <= 0.05).mean() < 0.2
    assert (table["value"] - table["null_mean"]).abs().max() < 0.15


# agreement with definitions


def grid(n, rng):
    """Factors of random dSprites images, and their places on the grid."""
    place = np.column_stack([rng.integers(size, size=n) for size in SIZES])
    kinds = ("categorical", "ordinal", "cyclic", "ordinal", "ordinal")
    names = ("shape", "scale", "orientation", "x", "y")
    return [
        Factor(name, kind, place[:, j] / (size if kind == "cyclic" else 1), tuple(str(level) for level in range(size)))
        for j, (name, kind, size) in enumerate(zip(names, kinds, SIZES, strict=True))
    ], place


@pytest.fixture(scope="module", params=["noisy", "rotated", "images"])
def sprites(request):
    """Codes of dSprites and their factors."""
    rng = np.random.default_rng(0)
    factors, place = grid(300 if request.param == "images" else 800, rng)
    spread = (place - place.mean(0)) / place.std(0)
    if request.param == "noisy":
        return spread + 0.3 * rng.normal(size=spread.shape), factors
    if request.param == "rotated":
        return spread @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 0.1 * rng.normal(size=spread.shape), factors
    path = request.getfixturevalue("data_dir") / "images" / "dsprites" / "dsprites_regen.py"
    if not path.is_file():
        pytest.skip(f"no dSprites at {path}")
    spec = importlib.util.spec_from_file_location("dsprites_regen", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    images = np.stack([generator.render(*row).ravel() for row in place]).astype(float)
    u, s, _ = np.linalg.svd(images - images.mean(0), full_matrices=False)
    return (u * s)[:, :8], factors


def reference_information(codes, factors):
    """As disentanglement_lib: 20 bins of equal width, then scikit-learn's mutual information."""
    bins = [np.digitize(z, np.histogram(z, 20)[1][:-1]) for z in codes.T]
    return np.array([[mutual_info_score(factor.classes(), each) for factor in factors] for each in bins])


def test_mig_and_modularity_agree_with_their_reference(sprites):
    codes, factors = sprites
    reference = reference_information(codes, factors)
    information = mutual_information(codes, factors)
    np.testing.assert_allclose(information, reference, atol=1e-10)
    entropies = np.array([entropy(factor) for factor in factors])
    ordered = np.sort(reference, axis=0)
    gaps = [
        (ordered[-1, j] - ordered[-2, j]) / scipy_entropy(np.unique(factor.value, return_counts=True)[1])
        for j, factor in enumerate(factors)
        if factor.kind != "cyclic"
    ]
    np.testing.assert_allclose(np.delete(mig(information, entropies), 2), gaps, atol=1e-10)
    scores = []
    for row in reference:
        best = row.argmax()
        ideal = np.where(np.arange(5) == best, row[best], 0)
        scores.append(1 - ((row - ideal) ** 2).sum() / (row[best] ** 2 * 4))
    np.testing.assert_allclose(modularity(information).score, scores, atol=1e-10)
    assert modularity(information).mean == pytest.approx(np.mean(scores), abs=1e-10)


def test_sap_agrees_with_its_reference_on_ordered_factors(sprites):
    codes, factors = sprites
    ordered = [factor for factor in factors if factor.kind == "ordinal"]
    score = np.zeros((codes.shape[1], len(ordered)))
    for i, z in enumerate(codes.T):
        for j, factor in enumerate(ordered):
            covariance = np.cov(z, factor.value, ddof=1)
            score[i, j] = covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1])
    np.testing.assert_allclose(linear_score(codes, ordered), score, atol=1e-10)
    best = np.sort(score, axis=0)
    np.testing.assert_allclose(sap(linear_score(codes, ordered)), best[-1] - best[-2], atol=1e-10)


@given(arrays(float, (4, 3), elements=st.floats(1e-3, 1)))
def test_dci_agrees_with_its_reference(importances):
    by_dimension = [1 - scipy_entropy(row, base=3) for row in importances]
    result = disentanglement(importances)
    np.testing.assert_allclose(result.score, by_dimension, atol=1e-10)
    assert result.mean == pytest.approx(by_dimension @ importances.sum(1) / importances.sum(), abs=1e-10)
    np.testing.assert_allclose(
        completeness(importances), [1 - scipy_entropy(column, base=4) for column in importances.T], atol=1e-10
    )


# the range of scores


@given(
    arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(0, 3).map(lambda x: x // 1e-3))
)
def test_scores_stay_between_zero_and_one_and_follow_the_order_of_dimensions(matrix):
    entropies = np.maximum(matrix.max(axis=0), 0)
    for score in (
        mig(matrix, entropies),
        completeness(matrix),
        modularity(matrix).score,
        disentanglement(matrix).score,
    ):
        told = score[~np.isnan(score)]
        assert ((told >= -1e-12) & (told <= 1 + 1e-12)).all()
    np.testing.assert_array_equal(sap(matrix[::-1]), sap(matrix))
    np.testing.assert_allclose(modularity(matrix[::-1]).score, modularity(matrix).score[::-1])
    np.testing.assert_allclose(disentanglement(matrix[::-1]).mean, disentanglement(matrix).mean)
    if matrix.shape[1] == 1:
        assert np.isnan(modularity(matrix).mean)
        assert np.isnan(disentanglement(matrix).mean)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(12, 60), st.integers(1, 3), st.sampled_from([0.0, 0.5]))
def test_the_share_of_votes_stays_between_zero_and_one(seed, n, d, missing):
    rng = np.random.default_rng(seed)
    factors = [hidden(drawn(kind, n, rng), rng.random(n) < missing) for kind in KINDS]
    codes = rng.choice([rng.normal(size=(n, d)), rng.integers(3, size=(n, d)).astype(float)])
    assert 0 <= factor_vae_score(codes, factors, n_votes=50, rng=seed) <= 1


# the vote for the factor held fixed


def test_dead_dimensions_have_no_vote(rng):
    factors = [drawn(kind, 400, rng) for kind in KINDS]
    codes = np.column_stack([factor.value for factor in factors]) @ rng.normal(size=(4, 4))
    dead = np.column_stack([np.zeros(400), 1e-3 * rng.normal(size=400), 1e-3 * (factors[0].value > 0.99)])
    score = factor_vae_score(codes, factors, rng=5)
    assert factor_vae_score(np.column_stack([dead, codes]), factors, rng=5) == score
    assert factor_vae_score(np.zeros((400, 2)), factors) == 0.25


def test_neighbours_on_a_circle_reach_across_its_end(rng):
    # four arcs of 50 cells, one of them around the end of the turn; a vote takes 40 cells, more than half an arc
    arc = np.repeat(np.arange(4), 50)
    phase = Factor("phase", "cyclic", (arc / 4 + rng.uniform(-0.02, 0.02, 200)) % 1)
    dose = numbers("dose", rng.random(200))
    codes = np.column_stack([np.where(arc == 0, 5, 0) + 0.01 * rng.normal(size=200), dose.value])
    assert factor_vae_score(codes, [phase, dose], rng=rng) > 0.98


# the table


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    factors = [drawn(kind, 300, rng) for kind in KINDS]
    codes = np.column_stack([rng.normal(size=300), *(factor.value for factor in factors)])
    return metrics(codes, factors, n_permutations=19, n_resamples=10, rng=7), codes, factors


def test_table_has_a_row_per_metric_and_factor(table):
    result, _, _ = table
    assert list(result.columns) == [
        "metric", "factor", "dimension", "value", "low", "high", "null_mean", "null_95", "p",
    ]  # fmt: skip
    expected = [(metric, name) for metric in PER_FACTOR for name in [*KINDS, "all"]] + [(m, "all") for m in OVERALL]
    assert list(zip(result["metric"], result["factor"], strict=True)) == expected
    assert result.notna().all(axis=None)
    assert (result["low"] <= result["value"]).all()
    assert (result["value"] <= result["high"]).all()
    assert (result["high"] <= 1).all()
    assert (result["p"] == 0.05).mean() > 0.9


def test_table_holds_the_scores_and_the_best_dimension(table):
    result, codes, factors = table
    information = mutual_information(codes, factors)
    gaps = mig(information, np.array([entropy(factor) for factor in factors]))
    for metric, values in (("mig", gaps), ("sap", sap(linear_score(codes, factors)))):
        np.testing.assert_allclose([value_of(result, metric, kind)["value"] for kind in KINDS], values)
        assert value_of(result, metric)["value"] == pytest.approx(values.mean())
    assert value_of(result, "modularity")["value"] == pytest.approx(modularity(information).mean)
    for metric in ("mig", "single_dimension", "completeness"):
        assert [value_of(result, metric, kind)["dimension"] for kind in KINDS] == [1, 2, 3, 4]
    without = result[(result["factor"] == "all") | (result["metric"] == "informativeness")]
    assert (without["dimension"] == -1).all()


def test_same_seed_gives_the_same_table(table):
    _, codes, factors = table
    first, second = (metrics(codes, factors, n_permutations=2, n_resamples=3, rng=5) for _ in range(2))
    assert first.equals(second)


def test_nothing_drawn_leaves_nulls_and_intervals_empty_and_a_single_factor_its_overall_scores(rng):
    codes, factor = rng.normal(size=(80, 2)), drawn("continuous", 80, rng)
    result = metrics(codes, [factor], n_permutations=0, n_resamples=0, rng=0)
    assert result[["low", "high", "null_mean", "null_95", "p"]].isna().all(axis=None)
    assert result["value"].isna().tolist() == result["metric"].isin(OVERALL).tolist()


# refused input


def test_factors_without_two_values_are_refused(rng):
    with pytest.raises(InputError, match="'same' has no two different values"):
        metrics(rng.normal(size=(30, 2)), [numbers("same", np.ones(30))])
