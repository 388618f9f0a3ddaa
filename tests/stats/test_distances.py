from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import wasserstein_distance

from latentcell.errors import InputError
from latentcell.stats import bootstrap_interval, distances, energy_distance, mmd, sliced_wasserstein, wasserstein
from latentcell.stats.distances import (
    energy_statistic,
    mean_shift_statistic,
    mmd_statistic,
    resampled_counts,
    wasserstein_statistic,
)


def clouds(seed: int = 0, n: int = 60, m: int = 45, p: int = 3, shift: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)), rng.normal(size=(m, p)) + shift


def test_energy_distance_equals_its_definition_over_pairs_of_distinct_cells() -> None:
    x, y = clouds(n=7, m=5)
    between = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    within = [
        np.mean([np.linalg.norm(a - b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)
    ]
    assert energy_distance(x, y) == pytest.approx(2 * between - sum(within))


def test_energy_distance_of_large_samples_agrees_with_scipy_in_one_dimension() -> None:
    x, y = clouds(n=2_000, m=2_000, p=1)
    assert energy_distance(x, y) == pytest.approx(scipy_energy(x[:, 0], y[:, 0]) ** 2, abs=2e-3)


def test_unbiased_distances_average_to_zero_between_samples_of_one_population() -> None:
    rng = np.random.default_rng(1)
    draws = [rng.normal(size=(2, 20, 2)) for _ in range(400)]
    for distance in (energy_distance, lambda x, y: mmd(x, y, bandwidth=1.0)):
        values = [distance(x, y) for x, y in draws]
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_mmd_averages_to_the_closed_form_of_two_gaussians() -> None:
    values = [mmd(*clouds(seed, n=60, m=80, p=1, shift=1.0), bandwidth=1.0) for seed in range(300)]
    # the kernel's mean over the difference of two normals, kernel SD 1: sqrt(1/3) exp(-delta^2 / 6)
    expected = 2 * np.sqrt(1 / 3) * (1 - np.exp(-1 / 6))
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / np.sqrt(len(values))


def test_distances_do_not_depend_on_where_the_blocks_of_the_distance_matrix_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = clouds()
    whole = energy_distance(x, y), mmd(x, y)
    monkeypatch.setattr(distances, "_BLOCK_VALUES", 100)
    assert (energy_distance(x, y), mmd(x, y)) == pytest.approx(whole)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_in_one_dimension_is_the_distance_of_sorted_values(p: int) -> None:
    x, y = clouds(n=50, m=50, p=1)
    expected = np.mean(np.abs(np.sort(x[:, 0]) - np.sort(y[:, 0])) ** p) ** (1 / p)
    assert wasserstein(x, y, p=p) == pytest.approx(expected)


def test_w2_between_a_cloud_and_its_stretched_copy_is_the_root_mean_square_displacement() -> None:
    x, _ = clouds(p=2)
    y = x @ np.diag([2.0, 0.5]) + [1.0, -1.0]
    assert wasserstein(x, y, p=2) == pytest.approx(np.sqrt(((x - y) ** 2).sum(1).mean()))


def test_wasserstein_of_a_translation_is_its_length_also_for_subsampled_populations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, _ = clouds(n=300)
    assert wasserstein(x, x + np.array([3.0, 0.0, 4.0]), p=1) == pytest.approx(5.0)
    monkeypatch.setattr(distances, "MAX_EXACT", 100)
    assert wasserstein(x, x + np.array([300.0, 0.0, 400.0]), p=2, rng=0) == pytest.approx(500.0, rel=0.01)


def test_sliced_wasserstein_in_one_dimension_is_the_wasserstein_distance() -> None:
    x, y = clouds(p=1, n=37, m=52)
    assert sliced_wasserstein(x, y, n_projections=3, rng=0) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]))


def test_sliced_wasserstein_of_a_plane_translation_is_the_mean_projected_length() -> None:
    x, _ = clouds(p=2)
    assert sliced_wasserstein(x, x + np.array([1.0, 0.0]), n_projections=20_000, rng=0) == pytest.approx(
        2 / np.pi, rel=0.02
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), scale=st.floats(0.1, 100), offset=st.floats(-1_000, 1_000))
def test_distances_ignore_cell_order_and_common_offset_and_scale_with_the_units(
    seed: int, scale: float, offset: float
) -> None:
    x, y = clouds(seed, n=12, m=9)
    rng = np.random.default_rng(seed)
    moved = scale * rng.permutation(x) + offset, scale * rng.permutation(y) + offset
    assert energy_distance(*moved) == pytest.approx(scale * energy_distance(x, y), rel=1e-6, abs=1e-6 * scale)
    assert mmd(*moved) == pytest.approx(mmd(x, y), rel=1e-6, abs=1e-6)
    assert wasserstein(*moved) == pytest.approx(scale * wasserstein(x, y), rel=1e-6)


@pytest.mark.parametrize("statistic", [energy_statistic, mmd_statistic(1.0), mean_shift_statistic])
def test_counts_give_what_repeating_the_cells_gives(statistic: distances.Statistic) -> None:
    x, y = clouds(n=5, m=4, shift=3.0)
    counts = np.array([[2.0, 0, 1, 1, 1]]), np.ones((1, 4))
    weighted = statistic(x, y, *counts)[0]
    rows = np.repeat(np.arange(5), counts[0][0].astype(int))
    repeated = statistic(x[rows], y, np.ones((1, 5)), counts[1])[0]
    if statistic is mean_shift_statistic:
        assert weighted == pytest.approx(repeated)
    else:  # the copies of a cell are one cell: their pair is left out instead of counted as a pair at distance zero
        z, semimetric = x[rows], (statistic is energy_statistic and np.sqrt) or (lambda s: -np.expm1(-s / 2))
        within = semimetric(((z[:, None] - z) ** 2).sum(-1)).sum()
        assert weighted == pytest.approx(repeated + within / 20 - within / 18)


def test_bootstrap_draws_centre_on_the_estimate() -> None:
    x, y = clouds(n=40, m=40, shift=0.5)
    rng = np.random.default_rng(0)
    counts = resampled_counts(40, n=4_000, rng=rng), resampled_counts(40, n=4_000, rng=rng)
    for statistic in (energy_statistic, mmd_statistic(1.0), wasserstein_statistic(1), mean_shift_statistic):
        draws = statistic(x, y, *counts)
        assert abs(draws[1:].mean() - draws[0]) < 0.1 * draws[1:].std()


@pytest.mark.parametrize("statistic", [energy_statistic, wasserstein_statistic(1), wasserstein_statistic(2)])
def test_bootstrap_spread_matches_the_spread_between_fresh_samples(statistic: distances.Statistic) -> None:
    rng = np.random.default_rng(0)
    ones = np.ones((1, 80))
    fresh = [statistic(rng.normal(size=(80, 2)), rng.normal(size=(80, 2)) + 1, ones, ones)[0] for _ in range(150)]
    spread = []
    for seed in range(10):
        x, y = clouds(seed, n=80, m=80, p=2, shift=1.0)
        counts = resampled_counts(80, n=200, rng=rng), resampled_counts(80, n=200, rng=rng)
        spread.append(statistic(x, y, *counts)[1:].std())
    assert np.mean(spread) == pytest.approx(np.std(fresh), rel=0.25)


def test_bootstrap_over_replicates_is_wider_when_cells_of_a_replicate_resemble_each_other() -> None:
    rng = np.random.default_rng(0)
    wells = np.repeat(np.arange(6), 20)
    x, y = (rng.normal(size=(6, 2))[wells] + 0.1 * rng.normal(size=(120, 2)) + shift for shift in (0, 2))
    by_cell = bootstrap_interval(energy_statistic, x, y, rng=0)
    by_well = bootstrap_interval(energy_statistic, x, y, replicates=(wells, wells), rng=0)
    assert by_well.value < by_cell.value  # without pairs of one well, which would make the wells look alike
    assert by_well.high - by_well.low > 2 * (by_cell.high - by_cell.low)


def test_resampled_counts_draw_whole_replicates() -> None:
    wells = np.array(["a", "a", "b", "b", "b"])
    counts = resampled_counts(5, n=50, replicates=wells, rng=np.random.default_rng(0))
    assert (counts[0] == 1).all()
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 2:] == counts[:, [2]]).all()
    assert (counts[:, 0] + counts[:, 2] == 2).all()


def test_an_interval_over_two_replicates_is_refused() -> None:
    x, y = clouds()
    with pytest.raises(InputError, match="at least three"):
        bootstrap_interval(energy_statistic, x, y, replicates=(np.arange(len(x)) % 2, None))


def test_energy_across_replicates_is_unbiased_where_replicates_differ() -> None:
    values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wells = np.repeat(np.arange(4), 10)
        x, y = (rng.normal(size=(4, 3))[wells] + 0.3 * rng.normal(size=(40, 3)) for _ in range(2))
        once = np.ones((1, 40))
        values.append([energy_statistic(x, y, once, once, r)[0] for r in ((None, None), (wells, wells))])
    biased, fair = np.mean(values, axis=0)
    error = np.std(values, axis=0)[1] / np.sqrt(60)
    assert abs(fair) < 3 * error
    assert biased > 5 * error


def test_bootstrap_interval_holds_the_estimate_and_repeats_with_its_seed() -> None:
    x, y = clouds()
    interval = bootstrap_interval(mmd_statistic(1.0), x, y, rng=3)
    assert interval.low < interval.value < interval.high
    assert interval == bootstrap_interval(mmd_statistic(1.0), x, y, rng=3)
    narrow = bootstrap_interval(mmd_statistic(1.0), x, y, level=0.5, rng=3)
    assert interval.low < narrow.low < narrow.high < interval.high


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "same features"),
        (np.zeros(3), np.zeros((3, 1)), "same features"),
        (np.zeros((1, 2)), np.zeros((3, 2)), "first population has 1 cells"),
        (np.zeros((3, 2)), np.array([[0, 1.0], [0, np.nan]]), r"second population.*cell 1, feature 1"),
    ],
)
def test_populations_that_cannot_be_compared_are_refused(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        energy_distance(x, y)


def test_wasserstein_orders_other_than_one_and_two_are_refused() -> None:
    with pytest.raises(InputError, match="p = 3"):
        wasserstein(*clouds(), p=3)


def test_coinciding_populations_give_zero() -> None:
    x = np.ones((4, 2))
    assert energy_distance(x, x) == mmd(x, x) == wasserstein(x, x) == sliced_wasserstein(x, x, rng=0) == 0
