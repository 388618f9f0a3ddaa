"""Whether a prediction can be believed: real cells nearby, ends that hang together, time that is no batch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import ENDS, LinearModel, counts_course, course, images_course

from latentcell.tl import interpolate
from latentcell.tl.plausible import nearest, warn_of_empty_space, widest_step


def points(seed: int, n: int, d: int = 2) -> Any:
    # on a grid, so that ties and coinciding cells occur
    return np.random.default_rng(seed).integers(0, 6, size=(n, d)).astype(float)


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_the_nearest_cell_is_that_of_all_pairs_and_never_the_cell_itself(seed: int, n: int) -> None:
    x, real = points(seed, 5), points(seed + 1, n)
    every = np.linalg.norm(x[:, None] - real[None], axis=2)
    np.testing.assert_allclose(nearest(x, real), every.min(axis=1), atol=1e-12)
    own = np.linalg.norm(real[:, None] - real[None], axis=2) + np.diag(np.full(n, np.inf))
    np.testing.assert_allclose(nearest(real, real), own.min(axis=1), atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 5), st.integers(1, 5))
def test_the_widest_step_is_the_smallest_maximum_over_all_chains(
    seed: int, n: int, n_source: int, n_target: int
) -> None:
    z = np.random.default_rng(seed).normal(size=(n, 2)).round(2)
    order = np.random.default_rng(seed).permutation(n)
    source, target = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    source[order[: min(n_source, n - 1)]] = True
    target[order[::-1][: min(n_target, n - source.sum())]] = True
    chain = np.linalg.norm(z[:, None] - z[None], axis=2)
    for k in range(n):  # Floyd and Warshall, with the maximum in place of the sum
        chain = np.minimum(chain, np.maximum(chain[:, k, None], chain[k]))
    assert widest_step(z, source, target) == pytest.approx(chain[np.ix_(source, target)].min(), abs=1e-9)


def test_the_widest_step_of_an_even_line_is_its_spacing_and_a_missing_piece_is_the_step() -> None:
    z = np.arange(20.0)[:, None]
    source, target = z[:, 0] < 2, z[:, 0] > 17
    assert widest_step(z, source, target) == 1
    kept = (z[:, 0] < 8) | (z[:, 0] > 12)
    assert widest_step(z[kept], source[kept], target[kept]) == 6


def test_empty_space_is_named_by_place_and_share() -> None:
    with pytest.warns(UserWarning, match=r"crosses empty space: at 2 \(49%\), 3 \(0%\) fewer than half") as caught:
        warn_of_empty_space([0.5, 0.49, 0.0], np.array([1.0, 2.0, 3.0]), 1.0, ("a", "b"))
    assert len(caught) == 1


def test_ends_far_apart_are_called_disconnected_with_how_far() -> None:
    with pytest.warns(UserWarning, match=r"'a' and 3 are disconnected in the latent space.*4\.2 times") as caught:
        warn_of_empty_space([1.0], np.array([1.0]), 4.2, ("a", 3))
    assert len(caught) == 1


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_a_connected_well_mixed_course_does_not_warn_and_is_plausible(make: Any) -> None:
    cells, model = make()
    cells.obs["plate"] = np.where(np.arange(cells.n_obs) % 2, "p1", "p2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted = interpolate(cells, model, "stage", **ENDS, at=[0.25, 0.5, 0.75], rng=0)
    table = predicted.uns["interpolate"]["plausibility"]
    assert list(table.columns) == ["at", "position", "plausible"]
    assert table["position"].tolist() == [0.25, 0.5, 0.75]
    assert (table["plausible"] > 0.8).all()
    shares = predicted.obs.groupby("position")["plausible"].mean()
    np.testing.assert_allclose(table["plausible"], shares)


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_copies_of_real_cells_are_plausible(make: Any) -> None:
    cells, model = make()
    predicted = interpolate(cells, model, "stage", **ENDS, at=0, rng=0)
    assert predicted.obs["plausible"].all()


def test_without_cells_in_between_the_path_crosses_empty_space_between_disconnected_ends() -> None:
    cells, model = course(shift=40.0)
    ends = cells[cells.obs["stage"] != "middle"].copy()
    with pytest.warns(UserWarning, match="crosses empty space|disconnected") as caught:
        predicted = interpolate(ends, model, "stage", **ENDS, at=[0, 0.5, 1], rng=0)
    said = [str(each.message) for each in caught]
    assert "crosses empty space: at 0.5 (0%) fewer" in said[0]
    assert "'early' and 'late' are disconnected" in said[1]
    assert predicted.uns["interpolate"]["plausibility"]["plausible"].tolist() == [1, 0, 1]


def test_cells_of_the_truth_do_not_make_the_prediction_plausible() -> None:
    cells, model = course(shift=40.0)
    with pytest.warns(UserWarning, match="crosses empty space|disconnected") as caught:
        predicted = interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    assert "crosses empty space: at 0.5 (0%)" in str(caught[0].message)
    assert not predicted.obs["plausible"].any()


def test_cells_of_other_levels_join_the_ends() -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal([x, 0], 1, size=(40, 2)) for x in (0, 12, 4, 8)])
    obs = pd.DataFrame({"stage": np.repeat(["early", "late", "x", "y"], 40)}, index=[f"c{i}" for i in range(160)])
    cells = AnnData(X=z.astype(np.float32), obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interpolate(cells, LinearModel(np.eye(2)), "stage", **ENDS, rng=0)
    with pytest.warns(UserWarning, match="disconnected"):
        interpolate(cells[:80].copy(), LinearModel(np.eye(2)), "stage", **ENDS, rng=0)


@pytest.mark.parametrize("name", ["batch", "Plate", "donor_id", "library", "sequencing run"])
def test_a_technical_column_that_coincides_with_the_ends_warns(name: str) -> None:
    cells, model = course()
    cells.obs[name] = "day-" + cells.obs["day"].astype(str)
    with pytest.warns(UserWarning, match=f"'stage' and '{name}' coincide: 'early' and 'late' share no level"):
        interpolate(cells, model, "stage", **ENDS, rng=0)


def test_the_batch_of_the_model_and_the_replicates_are_looked_at_whatever_their_names() -> None:
    cells, model = course()
    cells.obs["slide"] = cells.obs["embryo"] = cells.obs["stage"].to_numpy()
    model.batch_key = "slide"
    with pytest.warns(UserWarning, match="'stage' and 'slide', 'embryo' coincide"):
        interpolate(cells, model, "stage", **ENDS, replicate="embryo", rng=0)


@pytest.mark.parametrize(
    "values",
    [
        lambda cells: np.where(np.arange(cells.n_obs) % 7 == 0, "shared", cells.obs["stage"]),
        lambda cells: [f"cell {i}" for i in range(cells.n_obs)],
        lambda cells: np.random.default_rng(0).normal(size=cells.n_obs),
    ],
    ids=["one batch is shared", "a name per cell", "a measurement per cell"],
)
def test_columns_that_are_no_batch_of_the_ends_do_not_warn(values: Any) -> None:
    cells, model = course()
    cells.obs["batch"] = values(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interpolate(cells, model, "stage", **ENDS, rng=0)


@pytest.mark.parametrize(("late", "warns"), [(3_800, False), (4_400, True), (850, True)])
def test_ends_that_differ_twofold_in_depth_warn(late: int, warns: bool) -> None:
    cells, model = counts_course(depths=(2_000, late))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        interpolate(cells, model, "stage", **ENDS, rng=0)
    said = [str(each.message) for each in caught if "median of" in str(each.message)]
    assert len(said) == warns
    assert all("each may be a library of its own" in each for each in said)
