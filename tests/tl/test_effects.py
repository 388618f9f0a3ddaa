"""Covariances of dimensions and factors with variables: those of the formula, adjusted, ranked, and never too many."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from driven import BRIEF, MAKERS, OF_DOSE, effects_module, fitted, profiles, quick
from linear import LinearModel
from scipy.stats import binom, false_discovery_control

import latentcell as lc
from latentcell.stats.factor import Factor
from latentcell.tl.coded import Coded
from latentcell.tl.effects import (
    Column,
    Design,
    columns_of,
    effect_maps,
    effects_table,
    implied,
    measured_variables,
)
from latentcell.tl.explain import described
from latentcell.tl.refit import Match

N, G = 120, 16
NOTHING = Design(None, None, None)
COLUMNS = [
    *("of", "name", "variable", "covariance_model", "covariance_model_sd", "covariance", "low", "high"),
    *("effect", "statistic", "p", "q", "n"),
]


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with quick():
        yield


def numbers(values: Any, name: str = "dose") -> Factor:
    return Factor(name, "continuous", np.asarray(values, dtype=float))


def levels(values: Any, *names: str, name: str = "stage") -> Factor:
    return Factor(name, "categorical", np.asarray(values, dtype=float), names)


def coded_by(models: list[LinearModel], codes: list[np.ndarray], matches: list[Match], untrained: Any = None) -> Coded:
    n = len(codes[0])
    untrained = np.zeros(n, dtype=bool) if untrained is None else untrained
    return Coded(models, np.stack(codes), matches, codes[0], untrained)


@pytest.fixture(scope="module")
def linear() -> tuple[Coded, pd.DataFrame, Factor]:
    """Cells that a linear decoder describes, its refit with dimensions exchanged and mirrored, and a factor of z1."""
    rng = np.random.default_rng(0)
    z, loadings = rng.normal(size=(N, 3)) * [1.0, 2.0, 0.5] + 1, rng.normal(size=(3, G))
    order, sign = np.array([2, 0, 1]), np.array([1.0, -1.0, -1.0])
    own = np.empty((3, G))
    own[order] = loadings * sign[:, None]  # so that codes[:, order] * sign are the first model's
    codes_of_refit = np.empty_like(z)
    codes_of_refit[:, order] = z * sign
    match = Match(order, sign, np.ones(3))
    found = coded_by([LinearModel(loadings), LinearModel(own)], [z, codes_of_refit[:, order] * sign], [match])
    x = pd.DataFrame(z @ loadings + 0.5 * rng.normal(size=(N, G)), columns=LinearModel(loadings).names_)
    return found, x, numbers(z[:, 1] + 0.5 * rng.normal(size=N))


ROWS = np.arange(N)


def table_of(columns: list[Column], x: pd.DataFrame, design: Design = NOTHING, **options: Any) -> pd.DataFrame:
    rows = options.pop("rows", ROWS)
    none = np.zeros((len(columns), x.shape[1]))
    options = {"gene_sets": None, "seed": 0} | options
    return effects_table(columns, x.iloc[: len(rows)], rows, (none, none), design, **options)[0]


def of(table: pd.DataFrame, name: str, x: pd.DataFrame) -> pd.DataFrame:
    """Rows of one column in the order of the variables."""
    return table[table["name"] == name].set_index("variable").loc[list(x.columns)]


# formulas


def test_the_covariance_is_that_of_the_textbook_with_its_correlation_and_interval(linear) -> None:
    found, x, dose = linear
    table = table_of(columns_of(found, [dose], [0, 2]), x)
    assert list(table.columns) == COLUMNS
    values = {"z0": found.mu[:, 0], "z2": found.mu[:, 2], "dose": dose.value}
    assert list(dict.fromkeys(table["name"])) == list(values)
    assert set(table.loc[table["name"] == "dose", "of"]) == {"factor"}
    assert set(table.loc[table["name"] != "dose", "of"]) == {"dimension"}
    for name, value in values.items():
        rows = of(table, name, x)
        np.testing.assert_allclose(rows["covariance"], np.cov(value, x.T)[0, 1:], rtol=1e-4)
        np.testing.assert_allclose(rows["effect"], np.corrcoef(value, x.T)[0, 1:], rtol=1e-4)
        assert ((rows["low"] < rows["covariance"]) & (rows["covariance"] < rows["high"])).all()
        assert (rows["n"] == N).all()


def test_the_effect_of_two_levels_is_their_difference_in_sd(linear) -> None:
    found, x, _ = linear
    late = (np.arange(N) % 3 == 0).astype(float)
    rows = of(table_of(columns_of(found, [levels(late, "early", "late")], []), x), "stage=late", x)
    a, b = x[late == 1], x[late == 0]
    pooled = np.sqrt(((len(a) - 1) * a.var() + (len(b) - 1) * b.var()) / (N - 2))
    np.testing.assert_allclose(rows["effect"], (a.mean() - b.mean()) / pooled, rtol=1e-4, atol=1e-6)


def test_what_a_linear_decoder_implies_is_its_loadings_and_refits_that_are_the_same_agree(linear) -> None:
    found, _, dose = linear
    covariance, sd = implied(found, columns_of(found, [dose], [0, 1, 2]), ROWS, NOTHING)
    loadings = found.models[0].loadings
    np.testing.assert_allclose(covariance[:3], np.cov(found.mu.T) @ loadings, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(covariance[3], np.cov(dose.value, found.mu.T)[0, 1:] @ loadings, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sd, 0, atol=1e-5)


def test_uncorrelated_dimensions_of_unit_variance_covary_with_variables_by_their_loadings() -> None:
    rng = np.random.default_rng(0)
    z = np.linalg.qr(np.column_stack([np.ones(N), rng.normal(size=(N, 3))]))[0][:, 1:] * np.sqrt(N - 1)
    model = LinearModel(rng.normal(size=(3, G)))
    found = coded_by([model], [z], [])
    covariance, sd = implied(found, columns_of(found, [], [0, 1, 2]), ROWS, NOTHING)
    np.testing.assert_allclose(covariance, model.loadings, rtol=1e-5, atol=1e-7)
    assert (sd == 0).all()


def test_refits_that_decode_differently_spread_what_is_implied(linear) -> None:
    found, _, dose = linear
    twice = LinearModel(2 * found.models[1].loadings)
    other = coded_by([found.models[0], twice], list(found.codes), found.matches)
    covariance, sd = implied(other, columns_of(other, [dose], [1]), ROWS, NOTHING)
    np.testing.assert_allclose(sd, np.abs(covariance) / np.sqrt(2), rtol=1e-4, atol=1e-6)


def test_a_factor_known_in_one_cell_covaries_with_nothing_that_is_implied(linear) -> None:
    found, _, _ = linear
    dose = numbers(np.where(np.arange(N) == 3, 1.0, np.nan))
    assert np.isnan(implied(found, columns_of(found, [dose], []), ROWS, NOTHING)[0]).all()


# adjusted


@pytest.fixture(scope="module")
def confounded() -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """A dose and variables that are higher on the second plate and go against each other on either."""
    rng = np.random.default_rng(0)
    plate = (np.arange(N) >= N / 2).astype(float)
    dose = 3 * plate + rng.normal(size=N)
    x = 4 * plate[:, None] - 0.5 * (dose - 3 * plate)[:, None] + 0.2 * rng.normal(size=(N, G))
    return plate, dose, pd.DataFrame(x, columns=[f"v{i}" for i in range(G)])


def within(v: np.ndarray, x: pd.DataFrame, group: np.ndarray) -> np.ndarray:
    """Covariance of v with each variable within groups."""
    w = v - pd.Series(v).groupby(group).transform("mean").to_numpy()
    return w @ (x - x.groupby(group).transform("mean")).to_numpy() / (len(v) - len(np.unique(group)))


def test_plates_are_taken_out_and_reverse_what_they_confound(confounded) -> None:
    plate, dose, x = confounded
    column = columns_of(coded_by([LinearModel(np.eye(G))], [x.to_numpy()], []), [numbers(dose)], [])
    free = table_of(column, x)
    assert (free["covariance"] > 0).all()
    design = Design.of([levels(plate, "p1", "p2", name="plate")], None)
    held = table_of(column, x, design)
    np.testing.assert_allclose(of(held, "dose", x)["covariance"], within(dose, x, plate), rtol=1e-4)
    assert (held["high"] < 0).all()
    covariance, _ = implied(coded_by([LinearModel(np.eye(G))], [x.to_numpy()], []), column, ROWS, design)
    np.testing.assert_allclose(covariance[0] * (N - 1), within(dose, x, plate) * (N - 2), rtol=1e-4)


def test_numbers_are_adjusted_for_by_regression(confounded) -> None:
    plate, dose, x = confounded
    depth = plate + 0.1 * np.random.default_rng(1).normal(size=N)
    column = [Column("factor", "dose", dose, dose[None], True)]
    found = of(table_of(column, x, Design.of([numbers(depth, "depth")], None)), "dose", x)
    basis = np.column_stack([np.ones(N), depth])
    left = [v - basis @ np.linalg.lstsq(basis, v, rcond=None)[0] for v in (dose, x.to_numpy())]
    np.testing.assert_allclose(found["covariance"], left[0] @ left[1] / (N - 2), rtol=1e-4)


def test_wells_are_the_unit_where_they_are_named(confounded) -> None:
    _, _, x = confounded
    well = np.arange(N) // 6
    drug = (well % 2).astype(float)
    column = [Column("factor", "drug", drug, drug[None], True)]
    cells, wells = table_of(column, x), table_of(column, x, Design(well, None, None))
    assert (cells["n"] == N).all()
    assert (wells["n"] == N // 6).all()
    np.testing.assert_allclose(of(wells, "drug", x)["covariance"], of(cells, "drug", x)["covariance"], rtol=1e-4)


def test_levels_of_all_nuisance_factors_together_are_strata_and_unknown_ones_are_one_of_their_own() -> None:
    plate = np.array([0, 0, 1, 1, 2, 2, np.nan, np.nan])
    donor = np.array([0, 1, 0, 1, 0, np.nan, 0, np.nan])
    design = Design.of([levels(plate, "a", "b", "c", name="plate"), levels(donor, "d", "e", name="donor")], None)
    assert len(np.unique(design.stratum)) == 8
    assert design.nuisance is None
    assert design.replicate is None
    assert Design.of([], None) == NOTHING


def test_unknown_numbers_of_a_nuisance_are_the_average_and_a_circle_is_two_columns() -> None:
    depth, phase = numbers([1, np.nan, 3, 5], "depth"), Factor("phase", "cyclic", np.array([0, 0.25, 0.5, np.nan]))
    design = Design.of([depth, phase], np.arange(4))
    np.testing.assert_allclose(design.nuisance[:, 0], [1, 3, 3, 5])
    np.testing.assert_allclose(design.nuisance[:, 1:], [[1, 0], [0, 1], [-1, 0], [0, 1 / 3]], atol=1e-12)
    assert design.stratum is None
    taken = design.take(np.array([2, 0]))
    assert taken.replicate.tolist() == [2, 0]
    assert taken.nuisance[:, 0].tolist() == [3, 1]


def test_what_is_freed_is_orthogonal_to_what_is_held_fixed() -> None:
    rng = np.random.default_rng(0)
    design = Design(None, rng.integers(3, size=50).astype(float), rng.normal(size=(50, 2)))
    left = design.freed(rng.normal(size=50))
    assert left.mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(pd.Series(left).groupby(design.stratum).mean(), 0, atol=1e-12)
    np.testing.assert_allclose(left @ design.nuisance, 0, atol=1e-10)


# order, multiple testing, what is tested


def test_the_strongest_variables_come_first_in_each_column_and_q_is_over_its_variables(linear) -> None:
    found, x, dose = linear
    new = coded_by(found.models, list(found.codes), found.matches, np.ones(N, dtype=bool))
    table = table_of(columns_of(new, [dose], [0, 1]), x)
    for _, rows in table.groupby("name"):
        assert rows["statistic"].abs().is_monotonic_decreasing
        assert sorted(rows["variable"]) == sorted(x.columns)
        np.testing.assert_allclose(rows["q"], false_discovery_control(rows["p"]))
        assert rows["p"].between(1 / 100, 1).all()


def test_what_is_implied_stays_with_its_column_and_variable(linear) -> None:
    found, x, dose = linear
    columns = columns_of(found, [dose], [2])
    covariance = np.arange(2.0 * G).reshape(2, G)
    table, _ = effects_table(columns, x, ROWS, (covariance, 100 + covariance), NOTHING, gene_sets=None, seed=0)
    for i, name in enumerate(["z2", "dose"]):
        rows = of(table, name, x)
        np.testing.assert_array_equal(rows["covariance_model"], covariance[i])
        np.testing.assert_array_equal(rows["covariance_model_sd"], 100 + covariance[i])


def test_a_permuted_factor_rarely_has_a_variable_at_q_005(linear) -> None:
    found, x, dose = linear
    rng, hit, small = np.random.default_rng(0), [], []
    for seed in range(100):
        column = columns_of(found, [numbers(rng.permutation(dose.value))], [])
        table = table_of(column, x, seed=seed)
        hit.append(table["q"].min() <= 0.05)
        small.append((table["p"] <= 0.05).mean())
    assert np.sum(hit) <= binom.ppf(0.9999, 100, 0.05)
    assert np.mean(small) < 0.09


def test_a_permuted_treatment_of_wells_rarely_has_one_where_wells_are_the_unit_and_often_where_cells_are() -> None:
    rng, hit = np.random.default_rng(0), {"wells": [], "cells": []}
    well = np.repeat(np.arange(20), 6)
    for seed in range(60):
        x = 2 * rng.normal(size=(20, 6))[well] + rng.normal(size=(N, 6))
        drug = rng.permutation(np.arange(20) % 2)[well].astype(float)
        column = [Column("factor", "drug", drug, drug[None], True)]
        for name, design in (("wells", Design(well, None, None)), ("cells", NOTHING)):
            table = table_of(column, pd.DataFrame(x, columns=list("abcdef")), design, seed=seed)
            hit[name].append(table["q"].min() <= 0.05)
    assert np.sum(hit["wells"]) <= binom.ppf(0.9999, 60, 0.05)
    assert np.mean(hit["cells"]) > 0.25


def test_a_dose_that_goes_with_the_plate_rarely_has_one_within_plates_and_always_without_them() -> None:
    rng, hit = np.random.default_rng(0), []
    plate = (np.arange(N) >= N / 2).astype(float)
    for seed in range(60):
        x = pd.DataFrame(2 * plate[:, None] + rng.normal(size=(N, 6)), columns=list("abcdef"))
        dose = 2 * plate + rng.normal(size=N)
        column = [Column("factor", "dose", dose, dose[None], True)]
        hit.append(table_of(column, x, Design(None, plate, None), seed=seed)["q"].min() <= 0.05)
    assert np.sum(hit) <= binom.ppf(0.9999, 60, 0.05)
    assert table_of(column, x)["q"].max() <= 0.05


@pytest.mark.parametrize(("n_untrained", "tested"), [(0, False), (49, False), (50, True), (N, True)])
def test_dimensions_are_tested_on_untrained_cells_if_there_are_50(linear, n_untrained: int, tested: bool) -> None:
    found, x, dose = linear
    untrained = np.arange(N) < n_untrained
    found = coded_by(found.models, list(found.codes), found.matches, untrained)
    table = table_of(columns_of(found, [dose], [1]), x)
    rows, factor = of(table, "z1", x), of(table, "dose", x)
    assert rows[["p", "q"]].notna().all(axis=None) == tested
    assert rows[["covariance", "low", "high", "effect", "statistic"]].notna().all(axis=None)
    assert (rows["n"] == (n_untrained if tested else N)).all()
    expected = np.cov(found.mu[:, 1][untrained | (not tested)], x[untrained | (not tested)].T)[0, 1:]
    np.testing.assert_allclose(rows["covariance"], expected, rtol=1e-4)
    assert factor[["p", "q"]].notna().all(axis=None)
    assert (factor["n"] == N).all()


def test_columns_are_dimensions_then_each_level_number_and_direction_of_the_factors(linear) -> None:
    found, _, dose = linear
    stage = levels(np.arange(N) % 3, "early", "middle", "late")
    drug = levels(np.arange(N) % 2, "none", "some", name="drug")
    phase = Factor("phase", "cyclic", np.arange(N) / N)
    columns = columns_of(found, [dose, stage, drug, phase], [2, 0])
    assert [each.name for each in columns] == [
        "z2", "z0", "dose", "stage=early", "stage=middle", "stage=late", "drug=some", "phase (cos)", "phase (sin)",
    ]  # fmt: skip
    np.testing.assert_array_equal(columns[0].value, found.mu[:, 2])
    np.testing.assert_array_equal(columns[0].by_model, found.codes[:, :, 2])
    np.testing.assert_array_equal(columns[2].by_model, np.tile(dose.value, (2, 1)))
    assert [each.tested for each in columns[:3]] == [False, False, True]


def test_cells_without_a_value_are_left_out_of_its_column_only(linear) -> None:
    found, x, dose = linear
    known = np.arange(N) % 3 > 0
    part = numbers(np.where(known, dose.value, np.nan), "part")
    rows = of(table_of(columns_of(found, [part, dose], []), x), "part", x)
    np.testing.assert_allclose(rows["covariance"], np.cov(dose.value[known], x[known].T)[0, 1:], rtol=1e-4)
    assert (rows["n"] == known.sum()).all()


def test_rows_pick_the_cells_of_columns_and_design(linear) -> None:
    found, x, dose = linear
    plate = (np.arange(N) % 2).astype(float)
    rows = np.random.default_rng(0).permutation(N)[:70]
    taken = x.iloc[rows].reset_index(drop=True)
    table = effects_table(
        columns_of(found, [dose], []), taken, rows, (np.zeros((1, G)),) * 2, Design(None, plate, None),
        gene_sets=None, seed=0,
    )[0]  # fmt: skip
    expected = within(dose.value[rows], taken, plate[rows])
    np.testing.assert_allclose(of(table, "dose", x)["covariance"], expected, rtol=1e-4)


# gene sets


def test_a_planted_gene_set_is_found_with_its_direction_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    dose = rng.normal(size=N)
    x = rng.normal(size=(N, 120))
    x[:, :12] -= dose[:, None]
    x = pd.DataFrame(x, columns=[f"g{i}" for i in range(120)])
    sets = {"down": [f"g{i}" for i in range(12)], "other": [f"g{i}" for i in range(20, 32)]}
    untested = Column("dimension", "z0", dose, dose[None], False)
    column = Column("factor", "dose", dose, dose[None], True)
    none = (np.zeros((2, 120)),) * 2
    _, enriched = effects_table([untested, column], x, ROWS, none, NOTHING, gene_sets=sets, seed=0)
    assert set(zip(enriched["of"], enriched["name"], strict=True)) == {("factor", "dose")}
    found = enriched.set_index("gene_set")
    assert found.index[0] == "down"
    assert found.loc["down", "p"] <= 0.05
    assert found.loc["down", "direction"] == "down"
    assert found.loc["other", "p"] > 0.05
    _, nothing = effects_table([column], x, ROWS, none, NOTHING, gene_sets=None, seed=0)
    assert len(nothing) == 0


# variables


@pytest.mark.parametrize("modality", list(MAKERS))
def test_measured_variables_are_those_of_the_rows_in_their_order(modality: str, monkeypatch) -> None:
    monkeypatch.setattr(effects_module, "_BLOCK", 7)
    cells = MAKERS[modality](40)
    model = fitted(cells, fit=BRIEF)
    rows = np.array([5, 39, 0, 12, 7, 30, 2, 1, 8])
    found = measured_variables(cells, model, rows)
    assert found.dtypes.eq(np.float32).all()
    if modality == "images":
        expected = lc.stats.image_features(cells.obsm["images"][rows], channel_names=["DNA", "actin"])
    else:
        expected = described(model, np.asarray(cells.X)[rows])
    assert list(found.columns) == list(expected.columns)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_counts_are_log_normalised() -> None:
    cells = MAKERS["counts"](40)
    found = measured_variables(cells, fitted(cells, fit=BRIEF), np.arange(40))
    np.testing.assert_allclose(found, np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True)), rtol=1e-5)


# maps


def imaged(shape: tuple[int, ...], n: int = 60) -> tuple[AnnData, Any, np.ndarray]:
    rng = np.random.default_rng(0)
    dose = rng.normal(size=n)
    images = rng.normal(size=(n, *shape))
    images[:, 0, ..., 0, 0] += 2 * dose.reshape(-1, *[1] * (len(shape) - 3))
    images[:, -1, ..., 1, 1] -= 2 * dose.reshape(-1, *[1] * (len(shape) - 3))
    cells = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(n)]), obsm={"images": images.astype(np.float32)})
    return cells, SimpleNamespace(measurements=lambda cells, rows: cells.obsm["images"][rows]), dose


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4)], ids=["planes", "volumes"])
def test_maps_are_the_covariances_of_pixels_in_the_shape_of_images(shape: tuple[int, ...]) -> None:
    cells, model, dose = imaged(shape)
    code = np.random.default_rng(1).normal(size=60)
    columns = [Column("dimension", "z0", code, code[None], False), Column("factor", "dose", dose, dose[None], True)]
    rows = np.random.default_rng(2).permutation(60)
    maps = effect_maps(cells, model, columns, rows, NOTHING, seed=0)
    assert list(maps) == ["covariance", "low", "high", "effect", "q"]
    pixels = cells.obsm["images"].reshape(60, -1)
    for each in maps.values():
        assert (each.shape, each.dtype) == ((2, *shape), np.float32)
    for i, value in enumerate((code, dose)):
        expected = np.cov(value, pixels.T)[0, 1:].reshape(shape)
        np.testing.assert_allclose(maps["covariance"][i], expected, rtol=1e-3, atol=1e-5)
        expected = np.corrcoef(value, pixels.T)[0, 1:].reshape(shape)
        np.testing.assert_allclose(maps["effect"][i], expected, rtol=1e-3, atol=1e-5)
    assert (maps["low"] < maps["high"]).all()
    assert np.isnan(maps["q"][0]).all()
    driven = np.zeros(shape, dtype=bool)
    driven[0, ..., 0, 0] = driven[-1, ..., 1, 1] = True
    assert (maps["effect"][1][0, ..., 0, 0] > 0.5).all()
    assert (maps["effect"][1][-1, ..., 1, 1] < -0.5).all()
    assert maps["effect"][1][~driven].max() < 0.5
    table = table_of([columns[1]], pd.DataFrame(pixels[rows], columns=np.arange(pixels.shape[1])), rows=rows)
    np.testing.assert_allclose(maps["q"][1].ravel(), table.sort_values("variable")["q"], rtol=1e-5)


def test_maps_are_of_the_first_rows_where_there_are_many(monkeypatch) -> None:
    cells, model, dose = imaged((1, 4, 4))
    monkeypatch.setattr(effects_module, "_MOST_DECODED", 30)
    rows = np.random.default_rng(0).permutation(60)
    column = Column("factor", "dose", dose, dose[None], True)
    found = effect_maps(cells, model, [column], rows, NOTHING, seed=0)["covariance"]
    expected = np.cov(dose[rows[:30]], cells.obsm["images"][rows[:30]].reshape(30, -1).T)[0, 1:]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-3)


def test_a_level_that_none_of_the_drawn_cells_has_leaves_the_other_maps(monkeypatch) -> None:
    """A rare level may miss the 1,000 cells whose pixels are taken: that must not end hours of refits."""
    cells, model, dose = imaged((1, 4, 4))
    monkeypatch.setattr(effects_module, "_MOST_DECODED", 30)
    rare = (np.arange(60) == 59).astype(float)
    columns = [Column("factor", "rare=yes", rare, rare[None], True), Column("factor", "dose", dose, dose[None], True)]
    maps = effect_maps(cells, model, columns, np.arange(60), NOTHING, seed=0)
    assert maps["covariance"].shape == (2, 1, 4, 4)
    assert np.isfinite(maps["covariance"][1]).all()


def test_a_column_that_does_not_vary_leaves_the_effects_of_the_others(linear) -> None:
    """As of a dimension that none of the refits uses, or a level that none of the drawn cells has."""
    found, x, dose = linear
    unused = Column("dimension", "z3", np.zeros(N), np.zeros((2, N)), True)
    table = table_of([unused, *columns_of(found, [dose], [])], x)
    rows = of(table, "dose", x)
    np.testing.assert_allclose(rows["covariance"], np.cov(dose.value, x.T)[0, 1:], rtol=1e-4)
    assert not (table.loc[table["name"] == "z3", "q"] <= 0.05).any()


def test_the_variables_that_a_factor_drives_lead_its_effects() -> None:
    cells = profiles(100)
    x = pd.DataFrame(cells.X, columns=cells.var_names)
    dose = cells.obs["dose"].to_numpy()
    table = table_of([Column("factor", "dose", dose, dose[None], True)], x, rows=np.arange(100))
    assert set(table["variable"][:8]) == set(OF_DOSE)
    rows = table.set_index("variable")
    assert (rows.loc[list(OF_DOSE[::2]), "effect"] > 0.8).all()
    assert (rows.loc[list(OF_DOSE[1::2]), "effect"] < -0.8).all()
