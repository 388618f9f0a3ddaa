"""Reasons are computed as stated: shifts with intervals that cover, shares, cosines, trends and drawn changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from linear import LinearModel
from scipy.stats import binom, kstest, norm

import latentcell as lc
from latentcell.model.settings import Settings
from latentcell.stats.features import image_features
from latentcell.stats.relabelling import Layout
from latentcell.tl.design import Design
from latentcell.tl.explain import (
    PER_WELL,
    count_share,
    counterfactual,
    distance,
    dose_trend,
    effects,
    group_profiles,
    most_typical,
    similarity,
    well_variables,
)

NO_SD = np.array([np.nan])


def plan_of(*blocks: tuple[int, int]) -> Layout:
    """Blocks of so many treated and control replicates, in the order of their rows."""
    ends = np.cumsum([sum(each) for each in blocks])
    rows = tuple(np.arange(end - sum(each), end) for end, each in zip(ends, blocks, strict=True))
    return Layout(rows, tuple(m for m, _ in blocks))


def moderated(variance: np.ndarray, f: int, cell_sd: np.ndarray) -> np.ndarray:
    """SD of variances drawn towards their median in units of the SD of cells, with four degrees of freedom."""
    return np.sqrt((f * variance + 4 * np.median(variance / cell_sd**2) * cell_sd**2) / (f + 4))


CELL_SD = np.geomspace(0.1, 10, 12)


def test_effects_are_shifts_over_the_sd_of_replicates_within_labels_and_blocks_other_plates_included() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 12)) * np.resize([1, 2, 5], 12) + np.repeat([0.0, 10, 20], [5, 4, 3])[:, None]
    found = effects(values, plan_of((2, 3), (1, 3)), [np.arange(9, 12)], CELL_SD)
    a, b, c = values[:2], values[2:5], values[6:9]
    parts = [a, b, c, values[9:]]
    f = 1 + 2 + 2 + 2
    sd = moderated(sum(((x - x.mean(0)) ** 2).sum(0) for x in parts) / f, f, CELL_SD)
    w = np.array([2 * 3 / 5, 1 * 3 / 4])
    shift = (w[0] * (a.mean(0) - b.mean(0)) + w[1] * (values[5] - c.mean(0))) / w.sum()
    half = norm.ppf(0.975) * np.sqrt(1 / w.sum() + (shift / sd) ** 2 / (2 * (f + 4)))
    np.testing.assert_allclose(found.sd, sd)
    np.testing.assert_allclose(found.value, shift / sd)
    np.testing.assert_allclose([found.low, found.high], [shift / sd - half, shift / sd + half])
    assert found.unit == "replicates"


def test_where_no_block_has_two_replicates_of_a_label_the_sd_is_that_of_the_shifts_between_blocks() -> None:
    values = np.random.default_rng(0).normal(size=(10, 12)) * np.resize([1, 2, 5], 12)
    found = effects(values, plan_of(*[(1, 1)] * 5), [], CELL_SD)
    shifts = values[::2] - values[1::2]
    sd = moderated(shifts.var(axis=0, ddof=1) / 2, 4, CELL_SD)
    half = norm.ppf(0.975) * np.sqrt(1 / 2.5 + (shifts.mean(0) / sd) ** 2 / 16)
    np.testing.assert_allclose(found.sd, sd)
    np.testing.assert_allclose(found.value, shifts.mean(0) / sd)
    np.testing.assert_allclose(found.high - found.value, half)
    assert found.unit == "replicates"


def test_with_too_few_replicates_effects_are_in_sd_of_cells_and_have_no_interval() -> None:
    values = np.array([[3.0, 1, 2], [1, 1, 1]])
    found = effects(values, plan_of((1, 1)), [], np.array([4.0, 2.0, 0.0]))
    assert found.value[:2].tolist() == [0.5, 0.0]
    assert np.isnan(found.value[2])
    assert np.isnan([found.low, found.high]).all()
    assert found.unit == "cells"


def test_a_variable_that_hardly_varies_among_controls_does_not_lead_for_that_whatever_the_units() -> None:
    rng, cell_sd = np.random.default_rng(0), np.geomspace(1e-3, 1e3, 12)
    values = rng.normal(size=(9, 12)) * 0.3 * cell_sd
    values[1:, -1] = 0.0
    values[0, [0, -1]] = [6 * cell_sd[0], 0.3 * cell_sd[-1]]
    found = effects(values, plan_of((1, 8)), [], cell_sd)
    assert np.argmax(np.abs(found.value)) == 0
    assert abs(found.value[-1]) < 4


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("p", [1, 20])
@pytest.mark.parametrize("blocks", [[(1, 16)] * 3, [(1, 1)] * 10, [(4, 4)]])
def test_intervals_of_effects_cover_the_true_shift_in_true_sd_about_as_often_as_they_say(
    blocks: list[tuple[int, int]], p: int, shift: float
) -> None:
    rng, plan, n = np.random.default_rng(0), plan_of(*blocks), 2_000 // p
    treated = np.concatenate([rows[:m] for rows, m in zip(plan.rows, plan.n_treated, strict=True)])
    covered = 0
    for _ in range(n):
        values = rng.normal(size=(sum(map(sum, blocks)), p))
        values[treated] += shift
        found = effects(values, plan, [], np.full(p, 7.0))
        covered += int(((found.low <= shift) & (shift <= found.high)).sum())
    # above where variables share one variance, of which more is known than is claimed
    assert 0.925 <= covered / (n * p) <= (0.975 if p == 1 else 0.99)


def test_the_length_of_a_shift_grows_with_it_without_end_and_does_not_depend_on_units() -> None:
    plan, rng = plan_of((1, 8), (1, 8)), np.random.default_rng(0)
    values, direction = rng.normal(size=(18, 3)), np.array([1.0, 2.0, -1.0])
    values[[0, 9]] = [values[1:9].mean(0), values[10:].mean(0)]
    lengths = []
    for size in (1.0, 10.0, 1000.0):
        moved = values.copy()
        moved[[0, 9]] += size * direction
        lengths.append(distance(moved, plan, [], NO_SD)[0])
        scaled, unit = distance(moved * [100, 1, 0.01] + 7, plan, [], NO_SD)
        assert scaled == pytest.approx(lengths[-1])
        assert unit == "replicates"
    np.testing.assert_allclose(lengths, np.array([1, 10, 1000]) * lengths[0])
    single, unit = distance(np.array([[3.0, 1.0], [0.0, 1.0]]), plan_of((1, 1)), [], np.array([1.5, 0.0]))
    assert (single, unit) == (2.0, "cells")


def counted(share_of: str) -> tuple[np.ndarray, np.ndarray, Layout]:
    """Codes of which one column is half the log count, and a group that has more cells and moves along it or across."""
    rng = np.random.default_rng(0)
    plan = plan_of((1, 8), (1, 8))
    log_count = rng.normal(size=18)
    across = rng.normal(size=18)
    for rows in plan.rows:
        own = rows[1:]
        log_count[own] -= log_count[own].mean()
        across[own] -= across[own].mean()
        across[own] -= log_count[own] * (across[own] @ log_count[own]) / (log_count[own] @ log_count[own])
        log_count[rows[0]], across[rows[0]] = 3.0, 0.0
    codes = np.column_stack([0.5 * log_count, across])
    if share_of == "across":
        codes[[0, 9]] = [0.0, 5.0]
    return codes, log_count, plan


def test_cell_number_explains_all_of_a_shift_that_the_controls_slope_predicts_and_none_of_one_across() -> None:
    assert count_share(*counted("along"), []) == pytest.approx(1.0)
    codes, log_count, plan = counted("across")
    assert count_share(codes, log_count, plan, []) == pytest.approx(0.0, abs=1e-9)


def test_cell_number_explains_nothing_against_the_slope_or_without_a_change_of_it() -> None:
    codes, log_count, plan = counted("along")
    codes[[0, 9]] *= -1
    assert count_share(codes, log_count, plan, []) == 0.0
    codes, log_count, plan = counted("along")
    log_count[[0, 9]] = 0.0
    assert count_share(codes, log_count, plan, []) == pytest.approx(0.0, abs=1e-9)


def test_the_slope_is_learnt_from_controls_of_other_plates_too_and_not_from_too_few_or_equal_ones() -> None:
    codes, log_count, plan = counted("along")
    first = Layout(plan.rows[:1], (1,))
    assert count_share(codes, log_count, first, [plan.rows[1][1:]]) == pytest.approx(1.0)
    few = Layout((plan.rows[0][:3],), (1,))
    assert np.isnan(count_share(codes, log_count, few, []))
    assert count_share(codes, log_count, few, [plan.rows[1][1:]]) > 0.9
    assert np.isnan(count_share(codes, np.ones(18), plan, []))


def grouped(moves: dict[str, np.ndarray]) -> tuple[np.ndarray, Design]:
    """Two plates of eight controls, and replicates that lie exactly a move from their mean."""
    rng, rows, values = np.random.default_rng(0), [], []
    for block in "pq":
        controls = rng.normal(size=(8, 4)) * [1, 2, 3, 4] + 10 * rng.normal(size=4)
        rows += [(block, "DMSO")] * 8 + [(block, label) for label in moves]
        values += [controls, *(controls.mean(0, keepdims=True) + move for move in moves.values())]
    wells = pd.DataFrame(rows, columns=["block", "label"])
    wells["is_control"] = wells["label"] == "DMSO"
    return np.concatenate(values), Design(wells, np.arange(len(wells)), np.empty((len(wells), 0)), paired=False)


def test_profiles_of_the_same_move_are_alike_and_of_opposite_ones_opposite_whatever_their_size() -> None:
    move = np.array([1.0, -2, 0, 3])
    values, design = grouped({"a": move, "same": move, "double": 2 * move, "opposite": -move})
    labels = design.labels
    profiles = group_profiles([values[:, :1], values[:, 1:]], design, design.control, labels)
    expected = np.outer([1, 1, 1, -1], [1, 1, 1, -1])
    np.testing.assert_allclose(similarity(profiles), expected, atol=1e-9)
    np.testing.assert_allclose(profiles[2], 2 * profiles[0])


def test_profiles_do_not_depend_on_units_and_count_what_varies_in_controls_for_less() -> None:
    values, design = grouped({"loud": np.array([0.0, 0, 0, 4]), "quiet": np.array([4.0, 0, 0, 0])})
    profiles = group_profiles([values], design, design.control, design.labels)
    other = group_profiles([values * [1000, 1, 0.01, 7]], design, design.control, design.labels)
    np.testing.assert_allclose(other, profiles)
    loud, quiet = np.linalg.norm(profiles, axis=1)
    assert quiet > 2 * loud


def test_a_label_without_controls_resembles_nothing() -> None:
    values, design = grouped({"a": np.ones(4), "b": -np.ones(4)})
    profiles = group_profiles([values], design, design.control & (design.block == "p"), ["a"])
    lonely = design.control & (design.block == "nowhere")
    none = group_profiles([values], design, lonely, ["b"])
    similar = similarity(np.concatenate([profiles, none]))
    assert similar[0, 0] == pytest.approx(1)
    assert np.isnan(similar[1]).all()
    assert np.isnan(similar[:, 1]).all()


DOSE, BLOCK = np.tile([0.1, 1.0, 10.0, 100.0], 3), np.repeat(np.array(list("abc"), dtype=object), 4)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_effect_that_rises_or_falls_with_dose_has_a_perfect_trend_and_the_smallest_p(sign: int) -> None:
    size = np.log10(DOSE) if sign > 0 else -np.log10(DOSE)
    values = (size + 3)[:, None] * [1.0, -2.0, 0.5]
    rho, p = dose_trend(values, DOSE, BLOCK, rng=np.random.default_rng(0))
    assert rho == pytest.approx(sign)
    assert p <= 4 / 1000


def test_no_trend_can_be_seen_where_every_block_has_one_dose() -> None:
    rng = np.random.default_rng(0)
    _, p = dose_trend(DOSE[:4, None] * [1.0, 2], DOSE[:4], np.array(list("abcd"), dtype=object), rng=rng)
    assert p == 1.0


@pytest.mark.parametrize(("values", "dose"), [(np.ones((12, 2)), DOSE), (DOSE[:, None], np.ones(12))])
def test_there_is_no_trend_of_what_does_not_vary(values: np.ndarray, dose: np.ndarray) -> None:
    assert np.isnan(dose_trend(values, dose, BLOCK, rng=np.random.default_rng(0))).all()


def test_p_of_a_trend_is_uniform_where_dose_does_nothing() -> None:
    rng, n = np.random.default_rng(0), 200
    offset = np.repeat(rng.normal(size=(3, 3)), 4, axis=0)
    p = np.array([dose_trend(offset + rng.normal(size=(12, 3)), DOSE, BLOCK, n=99, rng=rng)[1] for _ in range(n)])
    low, high = binom.ppf([0.001, 0.999], n, 0.05)
    assert low <= (p <= 0.05).sum() <= high
    assert kstest(p, "uniform").pvalue > 1e-3


def test_the_most_typical_cells_are_those_nearest_to_the_mean_nearest_first() -> None:
    codes = np.array([[0.0], [100.0], [4.0], [1.0], [3.0], [-50.0], [2.0]])
    rows = np.array([0, 2, 3, 4, 6])
    assert most_typical(codes, rows, 3).tolist() == [6, 3, 4]
    assert sorted(most_typical(codes, rows, 9)) == rows.tolist()


def of_wells(well: np.ndarray) -> Design:
    n_wells = int(well.max()) + 1
    return Design(pd.DataFrame(index=range(n_wells)), well, np.empty((n_wells, 0)), paired=False)


def wells_of(n: int, n_wells: int) -> Design:
    return of_wells(np.random.default_rng(0).permutation(np.arange(n) % n_wells))


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[AnnData, lc.VAE]]:
    """Counts and profiles of more cells than are read at once, and a model of each."""
    rng = np.random.default_rng(0)
    x = {"counts": rng.poisson(rng.gamma(2, 2, (1_500, 6))), "profiles": rng.normal(size=(1_500, 6)) + 3}
    found = {}
    for name, values in x.items():
        cells = AnnData(values.astype(np.float32), var=pd.DataFrame(index=[f"v{i}" for i in range(6)]))
        cells.obs_names = [f"c{i}" for i in range(1_500)]
        settings = Settings(batch_size=64, threads=1)
        found[name] = (cells, lc.VAE(n_latent=2, width=4).fit(cells[:100].copy(), epochs=1, settings=settings, rng=0))
    return found


@pytest.mark.parametrize("name", ["counts", "profiles"])
def test_variables_of_a_well_are_means_over_its_cells_and_the_sd_is_that_of_cells_within_wells(measured, name) -> None:
    cells, model = measured[name]
    design = wells_of(1_500, 7)
    means, sd = well_variables(cells, model, design, rng=np.random.default_rng(0))
    x = cells.X.astype(np.float64)
    if name == "counts":
        x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    groups = pd.DataFrame(x, columns=cells.var_names).groupby(design.well)
    np.testing.assert_allclose(means.to_numpy(), groups.mean().to_numpy(), rtol=1e-5)
    assert list(means) == list(cells.var_names)
    np.testing.assert_allclose(
        sd, np.sqrt((groups.var() * (groups.size() - 1).to_numpy()[:, None]).sum() / 1_493), rtol=1e-4
    )


def test_one_cell_per_well_has_no_sd_within(measured) -> None:
    cells, model = measured["profiles"]
    few = cells[:9].copy()
    means, sd = well_variables(few, model, wells_of(9, 9), rng=np.random.default_rng(0))
    assert np.isnan(sd).all()
    assert np.isfinite(means).all(axis=None)


def test_features_of_images_are_measured_on_some_cells_of_each_well_none_twice() -> None:
    images = np.random.default_rng(0).uniform(size=(140, 1, 8, 8)).astype(np.float32)
    read: list[int] = []

    def measurements(cells: AnnData, rows: np.ndarray) -> np.ndarray:
        read.extend(rows.tolist())
        return images[rows]

    model: Any = SimpleNamespace(
        modality_="images",
        names_=["DNA"],
        measurements=measurements,
        schema_=SimpleNamespace(source=lambda cells: None),
    )
    cells = AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(140)]))
    design = of_wells(np.append(np.zeros(120, dtype=int), np.ones(20, dtype=int)))
    means, sd = well_variables(cells, model, design, rng=np.random.default_rng(0))
    assert len(read) == len(set(read))
    assert np.bincount(design.well[read]).tolist() == [PER_WELL, 20]
    table = image_features(images[read], channel_names=["DNA"]).groupby(design.well[read])
    np.testing.assert_allclose(means.to_numpy(), table.mean().to_numpy(), rtol=1e-6, atol=1e-9)
    assert list(means) == list(image_features(images[:2], channel_names=["DNA"]))
    assert sd.shape == (means.shape[1],)


def test_a_linear_decoder_draws_the_move_times_its_loadings() -> None:
    rng = np.random.default_rng(0)
    model: Any = LinearModel(rng.normal(size=(2, 5)))
    codes, moves = rng.normal(size=(20, 2)).astype(np.float32), np.array([[1.0, 0], [0, -2], [0, 0]])
    drawn = counterfactual(AnnData(np.zeros((20, 5))), model, codes, np.arange(3, 9), moves)
    np.testing.assert_allclose(drawn.to_numpy(), moves @ model.loadings, atol=1e-6)
    assert list(drawn) == model.names_


def test_drawn_changes_of_counts_are_of_their_logs_over_the_cells_named_in_their_own_batches() -> None:
    rng = np.random.default_rng(0)
    model: Any = LinearModel(rng.normal(size=(2, 5)), "counts", batch_key="lab")
    codes, rows = rng.normal(size=(20, 2)), np.array([2, 3, 11])
    cells = AnnData(np.zeros((20, 5)), obs=pd.DataFrame({"lab": list("ab") * 10}, index=[f"c{i}" for i in range(20)]))
    drawn = counterfactual(cells, model, codes.astype(np.float32), rows, np.array([[1.0, 1.0]]))

    def logs(z: np.ndarray) -> np.ndarray:
        share = np.exp(z @ model.loadings)
        return np.log1p(1e4 * share / share.sum(1, keepdims=True)).mean(0)

    np.testing.assert_allclose(drawn.to_numpy()[0], logs(codes[rows] + 1) - logs(codes[rows]), rtol=1e-5)
    assert all(each["batch"].tolist() == ["a", "b", "b"] for each in model.asked)
