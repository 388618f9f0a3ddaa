"""How cells are paired, where they are on their way, and how a prediction's way is found again."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import ENDS, LinearModel, counts_course, course

from latentcell.errors import InputError
from latentcell.tl import Pairing, interpolate
from latentcell.tl.course import Course, Pairs, Path, Population
from latentcell.tl.interpolate import course_between, replay
from latentcell.tl.span import Span


def typed(shares: tuple[tuple[int, int], ...] = ((30, 20), (10, 20))) -> tuple[AnnData, LinearModel]:
    """Cells of two ends and several types, `shares` giving each type's cells at the source and at the target.

    Types lie along the first dimension and each moves its own way along the second: type k by 10 (k + 1).
    """
    rng = np.random.default_rng(0)
    parts = [(end, k) for end in (0, 1) for k, numbers in enumerate(shares) for _ in range(numbers[end])]
    end, kind = np.array(parts).T
    z = np.stack([3.0 * kind, 10.0 * end * (kind + 1)], axis=1) + 0.1 * rng.normal(size=(len(parts), 2))
    obs = pd.DataFrame({"stage": np.array(["early", "late"])[end], "type": np.array(list("abcdef"))[kind]})
    obs.index = [f"c{i}" for i in range(len(parts))]
    return AnnData(X=z.astype(np.float32), obs=obs), LinearModel(np.eye(2))


def between(cells: AnnData, model: LinearModel, path: Any = "linear", key: str = "stage", **options: Any) -> Course:
    ends = {"source": 0, "target": 4} if key == "day" else ENDS
    return course_between(cells, model, Span.of(cells, key, **ends, at=None, truth=None), path, **options)  # type: ignore[arg-type]


def pairs(cells: AnnData, model: LinearModel, pairing: Pairing, n: int | None = None) -> Pairs:
    return between(cells, model).pairs(pairing, n, np.random.default_rng(0))


@pytest.mark.parametrize("method", ["ot", "random", "centroid"])
def test_within_a_column_only_cells_of_one_level_are_paired(method: Any) -> None:
    cells, model = typed()
    found = pairs(cells, model, Pairing(method, within="type"))
    kinds = cells.obs["type"].to_numpy()
    assert (kinds[found.source.rows] == kinds[found.target.rows]).all()
    assert set(kinds[found.source.rows]) == {"a", "b"}


def test_without_strata_cells_of_different_kinds_are_paired_where_shares_differ() -> None:
    cells, model = typed()
    found = pairs(cells, model, Pairing())
    kinds = cells.obs["type"].to_numpy()
    assert (kinds[found.source.rows] != kinds[found.target.rows]).mean() >= 0.2


def test_levels_take_the_average_of_their_shares_at_the_two_ends() -> None:
    cells, model = typed(((30, 20), (10, 20)))
    found = pairs(cells, model, Pairing(within="type"), 80)
    assert (cells.obs["type"].to_numpy()[found.source.rows] == "a").sum() == 80 * (3 / 4 + 2 / 4) / 2


def test_levels_are_mixed_over_the_order_of_pairs() -> None:
    cells, model = typed(((20, 20), (20, 20)))
    found = pairs(cells, model, Pairing(within="type"))
    first = cells.obs["type"].to_numpy()[found.source.rows][:20]
    assert 4 <= (first == "a").sum() <= 16


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=5), st.integers(1, 40))
def test_pairs_are_as_many_as_asked_for_and_each_level_has_its_share_to_within_one(
    shares: list[tuple[int, int]], n: int
) -> None:
    cells, model = typed(tuple(shares))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer than ten cells at an end
        if min(np.sum(shares, axis=0)) < 2:
            return
        found = pairs(cells, model, Pairing("random", within="type"), n)
    assert len(found) == n
    counts = pd.Series(cells.obs["type"].to_numpy()[found.source.rows]).value_counts()
    for kind, (a, b) in zip("abcde", shares, strict=False):
        expected = n * (a / np.sum(shares, axis=0)[0] + b / np.sum(shares, axis=0)[1]) / 2
        assert abs(counts.get(kind, 0) - expected) < 1


def test_levels_that_one_end_lacks_are_left_out_with_their_share_of_the_cells() -> None:
    cells, model = typed(((20, 20), (5, 0), (0, 15)))
    with pytest.warns(UserWarning, match=r"'type' without cells at both ends are left out.*'b', 'c' \(33% of the"):
        found = pairs(cells, model, Pairing(within="type"))
    assert set(cells.obs["type"].to_numpy()[found.source.rows]) == {"a"}
    assert len(found) == 35


def test_ends_without_a_common_level_are_refused() -> None:
    cells, model = typed(((20, 0), (0, 20)))
    with pytest.raises(InputError, match="No level of 'type' has cells at both ends"):
        pairs(cells, model, Pairing(within="type"))


def test_a_source_cell_is_paired_in_proportion_to_its_growth() -> None:
    cells, model = typed(((20, 40),))
    cells.obs["growth"] = np.where(np.arange(60) < 5, 4.0, 1.0)
    found = pairs(cells, model, Pairing(growth="growth"), 350)
    used = np.bincount(found.source.rows, minlength=20)
    np.testing.assert_allclose(used, np.where(np.arange(20) < 5, 40, 10), atol=1)


def test_growth_counts_within_strata_too() -> None:
    cells, model = typed(((10, 10), (10, 10)))
    cells.obs["growth"] = np.where(cells.obs_names.isin(["c0", "c10"]), "9", "1")
    found = pairs(cells, model, Pairing(within="type", growth="growth"), 36)
    used = np.bincount(found.source.rows, minlength=20)
    assert used[0] == pytest.approx(9, abs=1)
    assert used[10] == pytest.approx(9, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": "stage"}, "'stage' must hold numbers, descendants per cell"),
        ({"growth": "none"}, "no column 'none'"),
        ({"within": "none"}, "no column 'none'"),
        ({"growth": "negative"}, "1 source cells have no number of descendants.*'c2'"),
        ({"unbalanced": 0.0}, "unbalanced=0.0"),
    ],
)
def test_pairings_that_cannot_be_had_are_refused(options: dict[str, Any], message: str) -> None:
    cells, model = typed()
    cells.obs["negative"] = np.where(np.arange(80) == 2, -1.0, 1.0)
    with pytest.raises(InputError, match=message):
        pairs(cells, model, Pairing(**options))


@pytest.mark.parametrize("method", ["random", "centroid"])
def test_growth_and_unbalanced_masses_need_optimal_transport(method: Any) -> None:
    for options in ({"growth": "g"}, {"unbalanced": 0.1}):
        with pytest.raises(InputError, match=f"need pairing 'ot', not '{method}'"):
            Pairing(method, **options)  # type: ignore[arg-type]


def test_unbalanced_pairing_does_not_turn_one_kind_of_cell_into_another() -> None:
    cells, model = typed(((40, 10), (10, 40)))
    cells.X[:, 1] = 0.1 * np.random.default_rng(1).normal(size=100)
    cells.X[:, 0] *= 10
    kinds = cells.obs["type"].to_numpy()
    across = [
        (kinds[found.source.rows] != kinds[found.target.rows]).mean()
        for found in (pairs(cells, model, Pairing(unbalanced=weight)) for weight in (None, 0.05))
    ]
    assert across[0] == pytest.approx(0.6, abs=0.02)
    assert across[1] == 0


def test_centroid_puts_all_cells_at_the_mean_of_their_end_but_keeps_their_names() -> None:
    cells, model = typed()
    found = pairs(cells, model, Pairing("centroid"))
    source = cells.X[cells.obs["stage"] == "early"]
    np.testing.assert_allclose(found.source.z, np.broadcast_to(source.mean(0), found.source.z.shape), atol=1e-4)
    assert len(set(found.source.rows)) == 40


@pytest.mark.parametrize("path", ["shift", "shift_source", "shift_target"])
def test_a_shift_within_strata_moves_each_level_by_its_own_difference_of_means(path: Any) -> None:
    cells, model = typed(((30, 30), (30, 30)))
    for pairing, steps in ((Pairing(within="type"), (10, 20)), (Pairing(), (15, 15))):
        way = between(cells, model, path)
        found = way.pairs(pairing, None, np.random.default_rng(0))
        for kind, step in zip("ab", steps, strict=True):
            rows = cells.obs["type"].to_numpy()[found.source.rows] == kind
            moved = way.positions(found.take(np.flatnonzero(rows)), 1.0 if path == "shift_source" else 0.0)
            start = 10 * "ab".index(kind) + 10 if path == "shift_target" else 0
            expected = {"shift": 0, "shift_source": step, "shift_target": start - step}[path]
            assert moved[:, 1].mean() == pytest.approx(expected, abs=0.1)


def circle(*, days: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6), n: int = 20) -> tuple[AnnData, LinearModel]:
    """Cells on a quarter of a circle of radius 10, their means exactly at the angles of evenly spaced days."""
    rng = np.random.default_rng(0)
    angle = np.repeat(days, n) * np.pi / 12
    noise = 0.5 * rng.normal(size=(len(days), n, 2))
    noise -= noise.mean(axis=1, keepdims=True)
    z = 10 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + noise.reshape(-1, 2)
    obs = pd.DataFrame({"day": np.repeat(days, n)}, index=[f"c{i}" for i in range(len(days) * n)])
    obs["stage"] = pd.Categorical([f"s{day}" for day in obs["day"]], ordered=True)
    obs["type"] = np.where(np.arange(len(obs)) % 3 == 0, "a", "b")
    return AnnData(X=z.astype(np.float32), obs=obs), LinearModel(np.eye(2))


def radius(cells: AnnData, model: LinearModel, path: Any, key: str = "day", **options: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few cells lie in the gap
        predicted = interpolate(cells, model, key, path=path, rng=0, **options)
    return float(np.linalg.norm(predicted.obsm["vae"].mean(axis=0)))


@pytest.mark.parametrize(("key", "truth"), [("day", 3), ("stage", "s3")])
def test_the_curve_follows_the_bend_of_the_levels_beyond_the_ends_where_the_line_cuts_it(key: str, truth: Any) -> None:
    cells, model = circle()
    chord = 10 * np.cos(np.pi / 12)
    assert radius(cells, model, "linear", key, truth=truth) == pytest.approx(chord, abs=0.01)
    assert radius(cells, model, "curve", key, truth=truth) == pytest.approx(10, abs=0.3 * (10 - chord))


def test_by_default_known_times_bend_the_path_and_stages_do_not() -> None:
    cells, model = circle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_time, by_stage = (
            interpolate(cells, model, key, truth=truth, rng=0) for key, truth in (("day", 3), ("stage", "s3"))
        )
    assert by_time.uns["interpolate"]["params"]["path"] == "curve"
    assert by_stage.uns["interpolate"]["params"]["path"] == "linear"


@pytest.mark.parametrize("path", ["auto", "curve"])
def test_with_two_known_times_the_path_is_the_line(path: Any) -> None:
    cells, model = circle(days=(2, 3, 4))
    options: dict[str, Any] = {"source": 2, "target": 4, "at": [2.0, 2.5, 3.1, 4.0], "rng": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line, other = (interpolate(cells, model, "day", path=each, **options).obsm["vae"] for each in ("linear", path))
    np.testing.assert_allclose(other, line, atol=1e-6)


def test_the_curve_starts_and_ends_at_the_cells_of_the_ends() -> None:
    cells, model = circle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = interpolate(cells, model, "day", source=2, target=4, at=[2, 3, 4], path="curve", rng=0)
    z = predicted.obsm["vae"].reshape(3, -1, 2)
    for place, name in ((0, "source_cell"), (2, "target_cell")):
        np.testing.assert_allclose(z[place], model.encode(cells[predicted.obs[name][:20].to_numpy()]).mu, atol=1e-4)


def test_the_curve_is_blind_to_the_level_it_is_to_predict_and_to_all_between_the_ends() -> None:
    cells, model = circle()
    moved = cells.copy()
    moved.X[moved.obs["day"] == 3] += 50
    for options in ({"truth": 3}, {"source": 2, "target": 4, "at": 3}, {"source": 1, "target": 4, "at": 2.5}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, second = (interpolate(each, model, "day", path="curve", rng=0, **options) for each in (cells, moved))
        np.testing.assert_array_equal(first.obsm["vae"], second.obsm["vae"])
        np.testing.assert_array_equal(first.layers["moved"], second.layers["moved"])


def test_moved_measurements_follow_the_same_curve_as_the_latent_positions() -> None:
    cells, model = circle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = interpolate(cells, model, "day", truth=3, path="curve", rng=0)
    np.testing.assert_allclose(predicted.layers["moved"], predicted.obsm["vae"], atol=1e-4)


def test_moved_counts_are_log_normalised_averages_of_the_paired_cells() -> None:
    cells, model = counts_course(n=20)
    predicted = interpolate(cells, model, "stage", **ENDS, at=0.25, rng=0)
    both = cells.X[cells.obs["stage"].isin(["early", "late"])]
    depth = np.median(both.sum(axis=1))
    ends = [cells[predicted.obs[name].to_numpy()].X for name in ("source_cell", "target_cell")]
    logs = [np.log1p(x / x.sum(axis=1, keepdims=True) * depth) for x in ends]
    np.testing.assert_allclose(predicted.layers["moved"], 0.75 * logs[0] + 0.25 * logs[1], rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.floats(0, 1))
def test_library_sizes_are_the_geometric_interpolation_of_the_two_cells(t: float) -> None:
    z = np.zeros((3, 1))
    ends = [Population(np.arange(3), z, np.array(sizes)) for sizes in ([100.0, 0.0, 50.0], [400.0, 10.0, 50.0])]
    model = LinearModel(np.ones((1, 4)), "counts")
    way = Course(AnnData(np.zeros((3, 1))), model, ends[0], ends[1])  # type: ignore[arg-type]
    total = way.decode(Pairs(ends[0], ends[1], z), t).sum(axis=1)
    np.testing.assert_allclose(total, [100 ** (1 - t) * 400**t, 10**t, 50], rtol=1e-5)


@pytest.mark.parametrize("path", get_args(Path))
@pytest.mark.parametrize("pairing", [Pairing(), Pairing("random", within="type"), Pairing("centroid")])
def test_a_prediction_can_be_replayed_exactly(path: Any, pairing: Pairing, tmp_path: Any) -> None:
    cells, model = circle()
    options: dict[str, Any] = {"source": 2, "target": 5, "pairing": pairing, "path": path, "rng": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = interpolate(cells, model, "day", at=[3, 4, 4.5], n_cells=15, **options)
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    for each in (predicted, ad.read_h5ad(tmp_path / "predicted.h5ad")):
        way, found = replay(each, cells, model)  # type: ignore[arg-type]
        assert cells.obs_names[found.source.rows].tolist() == predicted.obs["source_cell"].tolist()[:15]
        assert cells.obs_names[found.target.rows].tolist() == predicted.obs["target_cell"].tolist()[:15]
        z = np.concatenate([way.positions(found, t) for t in predicted.obs["position"].unique()])
        np.testing.assert_array_equal(z, predicted.obsm["vae"])


def test_a_replayed_curve_does_not_learn_from_the_truth() -> None:
    cells, model = circle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = interpolate(cells, model, "day", source=0, target=2, truth=1, at=1, path="curve", rng=0)
    way, found = replay(predicted, cells, model)  # type: ignore[arg-type]
    np.testing.assert_array_equal(way.positions(found, 0.5), predicted.obsm["vae"])


def test_a_replayed_prediction_keeps_its_library_size() -> None:
    cells, model = counts_course(n=20)
    predicted = interpolate(cells, model, "stage", **ENDS, library_size=700, rng=0)
    way, found = replay(predicted, cells, model)
    np.testing.assert_allclose(way.decode(found, 0.2).sum(axis=1), 700, rtol=1e-5)


def test_cells_that_were_not_predicted_or_not_interpolated_cannot_be_replayed() -> None:
    cells, model = course(n=20)
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    with pytest.raises(InputError, match="not predicted cells"):
        replay(cells, cells, model)  # type: ignore[arg-type]
    others = cells.copy()
    others.obs_names = [f"other{i}" for i in range(60)]
    with pytest.raises(InputError, match=r"20 of the cells that the prediction started from.*the first is 'c"):
        replay(predicted, others, model)  # type: ignore[arg-type]
