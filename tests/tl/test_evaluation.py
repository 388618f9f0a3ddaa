"""Which populations are compared, in which spaces, and what the table says of them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from linear import ENDS, counts_course, course, images_course, values

from latentcell.stats import energy_distance
from latentcell.tl import compare, interpolate
from latentcell.tl.compare import Comparison
from latentcell.tl.course import Pairing, Population
from latentcell.tl.evaluate import (
    PREDICTION,
    TRUTH,
    Representation,
    Sample,
    Space,
    _halves,
    evaluate,
    mixture,
    verdict,
)
from latentcell.tl.interpolate import course_between
from latentcell.tl.span import Span


def evaluated(cells: AnnData, model: Any, **options: Any) -> pd.DataFrame:
    interpolate(cells, model, "stage", **{**ENDS, "truth": "middle", "rng": 0, **options})
    return cells.uns["interpolate"]["evaluation"]


def compared(cells: AnnData, model: Any, replicate: str | None = None) -> dict[str, Space]:
    rng = np.random.default_rng(0)
    way = course_between(cells, model, Span.of(cells, "stage", **ENDS, at=None, truth=None), "linear")
    pairs = way.pairs(Pairing(), None, rng)
    truth = np.flatnonzero(cells.obs["stage"] == "middle")
    drawn = way.decode(pairs, 0.5, noise=rng)
    return Comparison(way, pairs, 0.5, drawn, truth, Pairing(), replicate, False).spaces(rng)


@pytest.mark.parametrize(
    ("make", "spaces"),
    [
        (course, ["model", "data"]),
        (counts_course, ["model", "data"]),
        (images_course, ["model", "data", "data, coarse"]),
    ],
)
def test_every_space_lists_the_prediction_first_and_images_have_a_coarse_one(make: Any, spaces: list[str]) -> None:
    cells, model = make(n=20)
    table = evaluated(cells, model)
    assert list(table["space"].unique()) == spaces
    assert list(cells.uns["interpolate"]["verdict"]) == spaces
    for space in spaces:
        methods = list(table[table.space == space].method.unique())
        assert methods[:4] == ["prediction", "source", "target", "mixture"]
        assert methods[-1] == "floor"
        assert ("reconstructed truth" in methods) == (space != "model")


def test_averages_of_counts_are_not_encoded_because_they_are_no_counts() -> None:
    table = evaluated(*counts_course(n=20))
    assert "measurement average" not in values(table, "model")
    assert "measurement average" in values(table, "data")


@pytest.mark.parametrize("name", ["reconstructed truth", "moved measurements"])
def test_the_reconstructed_truth_and_moved_measurements_are_no_baselines_in_the_verdict(name: str) -> None:
    draws = {name: np.full(201, value) for name, value in (("source", 5.0), ("mixture", 3.0), ("floor", 0.1))}
    for value in (0.0, 9.0):
        energy = {PREDICTION: np.full(201, 1.0), **draws, name: np.full(201, value)}
        said = verdict(energy, space="data", ends=("early", "late"))
        assert "better than every baseline" in said
        assert "3 (3 to 3) for a mixture of both ends, the best of them; floor 0.1" in said


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        (
            {"source": 2.0, "target": 3.0},
            r"better than every baseline \(.*\): .* for copying early, the best of them;",
        ),
        ({"source": 0.0, "target": 3.0}, "no better than copying early:"),
        ({"source": 3.0, "target": 0.0}, "no better than copying late:"),
        ({"source": -0.5, "centroid": 0.0}, "worse than copying early:"),
        ({"centroid": -0.5, "PCA + OT": -0.9}, r"worse than PCA \+ OT:"),
        ({"measurement average": 0.0, "mixture": 0.01}, "no better than the measurement average:"),
    ],
)
def test_the_verdict_names_the_nearest_baseline_that_decides_it(gaps: dict[str, float], words: str) -> None:
    noise = np.random.default_rng(0).normal(size=201) * 0.05
    noise[0] = 0
    energy = {PREDICTION: np.full(201, 1.0)} | {name: 1.0 + gap + noise for name, gap in gaps.items()}
    energy["floor"] = np.zeros(201)
    said = verdict(energy, space="model", ends=("early", "late"))
    assert pd.Series([said]).str.match(f"In model space the prediction is {words}").all(), said


@pytest.mark.parametrize(("moved", "told"), [(0.2, True), (0.99, False), (1.5, False)])
def test_the_verdict_tells_where_moved_measurements_come_clearly_nearer(moved: float, told: bool) -> None:
    noise = 0.05 * np.random.default_rng(0).normal(size=201)
    energy = {PREDICTION: np.full(201, 1.0), "source": np.full(201, 3.0), "floor": np.zeros(201)}
    said = verdict(energy | {"moved measurements": moved + noise}, space="data", ends=("early", "late"))
    assert said.startswith(verdict(energy, space="data", ends=("early", "late")))
    assert ("own measurements, moved without the decoder, come nearer" in said) is told


def test_values_are_those_of_the_distances_and_order_is_that_of_the_methods() -> None:
    rng = np.random.default_rng(0)
    samples = {
        name: Sample(rng.normal(loc, 1, size=(30, 3))) for name, loc in ((PREDICTION, 0.2), (TRUTH, 0), ("b", 1))
    }
    ends = np.concatenate([samples[TRUTH].variables, samples["b"].variables])
    fixed = Representation.fit(ends, "profiles")
    table, said = evaluate({"model": Space(fixed, samples)}, rng=0)
    assert list(table["method"].unique()) == [PREDICTION, "b", "floor"]
    truth = fixed.coordinates(samples[TRUTH].variables)
    for name, value in values(table, "model").items():
        if name != "floor":
            assert value == pytest.approx(energy_distance(fixed.coordinates(samples[name].variables), truth))
    w1, w2 = values(table, "model", "W1"), values(table, "model", "W2")
    assert all(w1[name] <= w2[name] for name in w1)
    error = np.abs(samples["b"].variables.mean(0) - samples[TRUTH].variables.mean(0)).mean()
    assert values(table, "model", "per-variable error")["b"] == pytest.approx(error)
    assert list(said) == ["model"]


@pytest.mark.parametrize("make", [course, images_course])
def test_both_spaces_are_in_units_of_the_measured_ends(make: Any) -> None:
    cells, model = make(n=30)
    spaces = compared(cells, model)
    both = np.concatenate([spaces["data"].samples[end].variables for end in ("source", "target")])
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=0.3)
    assert spaces["model"].representation is spaces["data"].representation
    assert len(spaces["model"].samples["mixture"].variables) == 60


def test_measured_populations_in_data_space_do_not_depend_on_the_decoder() -> None:
    cells, model = images_course(n=30)
    spaces = compared(cells, model)
    model.loadings[:, :16] = 0  # the decoder draws nothing in the top row of pixels
    again = compared(cells, model)
    assert len(again["data"].representation.columns) == len(spaces["data"].representation.columns)
    np.testing.assert_array_equal(again["data"].samples["source"].variables, spaces["data"].samples["source"].variables)


def with_donors(seed: int, effect: float) -> tuple[AnnData, Any]:
    """Four donors at every stage, each `effect` SD away from the others along one latent dimension."""
    cells, model = course(seed=seed, n=80)
    donor = np.arange(240) % 4
    cells.obs["donor"] = [f"d{k}" for k in donor]
    offset = np.random.default_rng(seed).permutation([-1.5, -0.5, 0.5, 1.5]) * effect
    cells.X += np.outer(offset[donor], model.loadings[1]).astype(np.float32)
    return cells, model


def width(table: pd.DataFrame, method: str = "prediction") -> float:
    rows = table[(table.space == "model") & (table.metric == "per-variable error") & (table.method == method)]
    return float((rows.high - rows.low).item())


def test_intervals_over_replicates_are_wider_where_replicates_differ() -> None:
    cells, model = with_donors(0, 3.0)
    by_cell, by_donor = evaluated(cells, model), evaluated(cells, model, replicate="donor")
    for method in ("prediction", "source", "mixture", "random pairs"):
        assert width(by_donor, method) > 1.3 * width(by_cell, method)


def test_cells_of_a_replicate_are_drawn_together_and_one_replicate_alone_is_no_replicate() -> None:
    cells, model = with_donors(0, 0.0)
    spaces = compared(cells, model, "donor")
    for name in ("prediction", "truth", "source", "target", "mixture", "random pairs"):
        sample = spaces["data"].samples[name]
        assert sample.replicates is not None
        assert len(sample.replicates) == len(sample.variables)
        assert set(sample.replicates) == {"d0", "d1", "d2", "d3"}
    cells.obs["one"] = "same"
    plain = evaluated(cells, model)
    with pytest.warns(UserWarning, match="'one' has fewer than three levels"):
        single = evaluated(cells, model, replicate="one")
    pd.testing.assert_frame_equal(plain, single)


def test_the_floor_keeps_replicates_whole() -> None:
    rng = np.random.default_rng(0)
    names = np.repeat(list("abcdefg"), [3, 7, 2, 9, 4, 1, 1])
    for _ in range(20):
        first, second = _halves(Sample(rng.normal(size=(27, 2)), names), rng)
        assert set(first.replicates) & set(second.replicates) == set()
        assert len(set(first.replicates)) == 4
        assert len(first.variables) + len(second.variables) == 27


@pytest.mark.parametrize("names", [None, ["a"] * 9, ["a"] * 8 + ["b"]])
def test_the_floor_splits_cells_in_two_halves_where_replicates_cannot_be(names: Any) -> None:
    replicates = None if names is None else np.array(names)
    parts = _halves(Sample(np.arange(9.0)[:, None], replicates), np.random.default_rng(0))
    assert [len(part.variables) for part in parts] == [5, 4]
    assert sorted(np.concatenate([part.variables for part in parts])[:, 0]) == list(range(9))


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_mixture_holds_a_share_t_of_target_cells_and_no_cell_twice(t: float) -> None:
    rows = mixture(40, 90, t, rng=np.random.default_rng(0))
    assert len(np.unique(rows)) == len(rows)
    assert (rows >= 40).mean() == pytest.approx(t, abs=0.51 / len(rows))
    assert rows.max() < 130


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_populations_do_not_depend_on_the_order_of_cells(make: Any) -> None:
    cells, model = make(n=25)
    order = np.random.default_rng(1).permutation(cells.n_obs)
    first, second = compared(cells, model), compared(cells[order].copy(), model)
    for space in first:
        for name in ("truth", "source", "target"):
            a, b = (np.sort(each[space].samples[name].variables, axis=0) for each in (first, second))
            np.testing.assert_allclose(a, b, atol=1e-4)
    a, b = (each["model"].samples["prediction"].variables for each in (first, second))
    np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "dtypes"),
    [(course, ["float32", "float64"]), (counts_course, ["float32", "float64", "int64", "uint16"])],
)
def test_the_evaluation_does_not_depend_on_the_type_of_numbers(make: Any, dtypes: list[str]) -> None:
    cells, model = make(n=25)
    tables = []
    for dtype in dtypes:
        copy = cells.copy()
        copy.X = cells.X.astype(dtype)
        tables.append(evaluated(copy, model))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-3, atol=1e-4)


def test_the_result_repeats_with_its_seed_and_changes_with_another() -> None:
    cells, model = course(n=25)
    first, again, other = (evaluated(cells, model, rng=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["value"], other["value"])


def test_thinning_keeps_pairs_and_their_draws_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MAX_EVALUATED", 15)
    cells, model = course(n=40)
    model.noise = 0.0
    spaces = compared(cells, model)
    fixed = spaces["data"].representation
    drawn = spaces["data"].samples[PREDICTION].variables
    decoded = spaces["model"].samples[PREDICTION].variables
    assert len(drawn) == len(decoded) == 15
    own = spaces["model"].representation
    np.testing.assert_allclose(drawn * fixed.sd + fixed.mean, decoded * own.sd + own.mean, atol=1e-4)


def test_a_perfect_decoder_reconstructs_the_truth_within_its_noise() -> None:
    cells, model = counts_course(n=60)
    errors = values(evaluated(cells, model), "data")
    assert abs(errors["reconstructed truth"]) < 0.2 * errors["mixture"]


def test_within_strata_random_pairs_keep_to_their_strata_too() -> None:
    cells, model = course(n=40, shift=6)
    kind = np.arange(120) % 2
    cells.obs["type"] = np.where(kind, "a", "b")
    cells.X += np.outer(20.0 * kind, model.loadings[1]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = values(evaluated(cells, model), "model")
        kept = values(evaluated(cells, model, pairing=Pairing(within="type")), "model")
    assert kept["random pairs"] < 0.1 * free["random pairs"]


def test_populations_remember_their_rows() -> None:
    cells, model = counts_course(n=10)
    whole = Population.of(cells, model, np.arange(5, 25))
    part = whole.take(np.array([3, 0]))
    assert part.rows.tolist() == [8, 5]
    assert part.library_size is not None
    np.testing.assert_allclose(part.library_size, cells.X[[8, 5]].sum(axis=1))
    np.testing.assert_array_equal(part.z, whole.z[[3, 0]])


def test_every_population_of_counts_is_on_the_scale_of_the_truth() -> None:
    for pairing in ("ot", "random", "centroid"):
        cells, model = counts_course(n=30)
        errors = values(evaluated(cells, model, pairing=pairing), "data")
        assert max(errors.values()) < 2 * max(errors["source"], errors["target"])


def test_the_verdict_says_when_the_truth_lies_beside_the_ends_and_not_between_them() -> None:
    cells, model = course(n=60)
    said = {}
    for truth in ("between", "beside"):
        moved = cells.copy()
        if truth == "beside":
            moved.X[cells.obs["stage"] == "middle"] += 20 * model.loadings[1]
        moved.X[cells.obs["stage"] == "late"] = moved.X[cells.obs["stage"] == "early"] + 2 * model.loadings[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interpolate(moved, model, "stage", **ENDS, truth="middle", rng=0)
        said[truth] = moved.uns["interpolate"]["verdict"]["model"]
    assert "early and late are nearer to one another" in said["beside"]
    assert "nearer to one another" not in said["between"]
