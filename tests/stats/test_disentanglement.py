from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, norm, spearmanr
from scipy.stats import entropy as scipy_entropy
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
from latentcell.stats.relabelling import share_as_extreme
from latentcell.stats.resampling import half_sample_sd, permuted

KINDS = ("continuous", "ordinal", "cyclic", "categorical")
SIZES = (3, 6, 40, 32, 32)  # dSprites: shape, scale, orientation, x, y


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(kind, n, rng, n_levels=4):
    """A factor of evenly spread values."""
    if kind in ("continuous", "cyclic"):
        return Factor(kind, kind, rng.random(n))
    return Factor(kind, kind, rng.integers(n_levels, size=n).astype(float), tuple("abcdefgh"[:n_levels]))


def numbers(name, values):
    return Factor(name, "continuous", np.asarray(values, dtype=float))


def levels(name, values):
    values = np.asarray(values, dtype=float)
    return Factor(name, "categorical", values, tuple(f"level {i}" for i in range(int(np.nanmax(values)) + 1)))


def hidden(factor, where):
    return replace(factor, value=np.where(where, np.nan, factor.value))


def value_of(table, metric, factor="all"):
    return table.set_index(["metric", "factor"]).loc[(metric, factor)]


def within_chance(rejections, n, alpha, tail=1e-4):
    """Whether a count of rejections is what a test of level `alpha` gives."""
    low, high = binom.ppf([tail, 1 - tail], n, alpha)
    return low <= rejections <= high


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


def test_levels_count_alike_however_rare(rng):
    factor = levels("stage", rng.random(4_000) < 0.05)
    codes = (factor.value + 0.8 * rng.normal(size=4_000))[:, None]
    expected = norm.cdf(0.5 / 0.8)  # of the cut half-way between the means
    assert single_dimension(codes, [factor], rng=rng)[0, 0] == pytest.approx(expected, abs=0.04)
    assert importance(codes, [factor], rng=rng).informativeness[0] == pytest.approx(expected, abs=0.05)
    assert linear_score(codes, [factor])[0, 0] == pytest.approx(2 * expected - 1, abs=0.06)


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


@pytest.fixture(params=["noisy", "rotated", "images"])
def sprites(request, rng):
    """Codes of dSprites and their factors."""
    factors, place = grid(800, rng)
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
    assert 0 <= factor_vae_score(codes, factors, n_votes=50, rng=seed) <= 1
    bins = np.digitize(codes[:, 0], np.histogram(codes[:, 0], 20)[1][:-1])
    known = factors[3].known
    if known.all() and np.ptp(codes[:, 0]) > 0:
        assert information[0, 3] == pytest.approx(mutual_info_score(factors[3].classes(), bins), abs=1e-10)


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


def test_constant_factors_and_labels_that_do_not_fit_are_refused(rng):
    codes, factor = rng.normal(size=(30, 2)), drawn("continuous", 30, rng)
    with pytest.raises(InputError, match="'same' has no two different values"):
        metrics(codes, [numbers("same", np.ones(30))])
    with pytest.raises(InputError, match="29 replicate labels for 30 cells"):
        permuted(factor, np.arange(29))
    with pytest.raises(InputError, match="Cell 2 has no block"):
        permuted(factor, block=np.array(["a", "a", None] * 10, dtype=object))
    well = np.repeat(["A01", "B01", "C01"], 10)
    with pytest.raises(InputError, match="Replicate 'A01' has cells in several blocks"):
        permuted(numbers("dose", np.repeat([1.0, 2.0, 3.0], 10)), well, np.arange(30) % 2)
