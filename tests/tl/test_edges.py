"""Inputs at the edges of what interpolation takes: missing levels, odd names, far cells, few replicates."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from linear import ENDS, counts_course, course
from test_course import typed
from test_leave_one_out import five_days
from test_null import judged
from test_span import span

from latentcell.cells.levels import level_rows, times
from latentcell.errors import InputError
from latentcell.stats import pair
from latentcell.tl import Pairing, arithmetic, interpolate, leave_one_out
from latentcell.tl.evaluate import Sample
from latentcell.tl.interpolate import replay
from latentcell.tl.plausible import widest_step


def test_truth_values_with_missing_ones_are_names_too():
    cells = AnnData(obs=pd.DataFrame({"key": np.array([True, None, False], dtype=object)}, index=list("abc")))
    assert times(cells, "key") is None
    assert level_rows(cells, "key", "True").tolist() == [0]


@pytest.mark.parametrize("weight", [0.05, 0.2, 1.0])
def test_a_cell_far_from_all_others_does_not_spoil_unbalanced_pairs(weight):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.normal(size=(60, 2))
    i, j = pair(np.concatenate([x, [[1000.0, 0.0]]]), y, unbalanced=weight, n_pairs=600, rng=0)
    assert (i == 60).mean() < 0.01
    p, q = pair(x, y, unbalanced=weight, n_pairs=600, rng=0)
    assert np.linalg.norm(x[i[i < 60]] - y[j[i < 60]], axis=1).mean() < 1.1 * np.linalg.norm(x[p] - y[q], axis=1).mean()


def test_cells_without_a_level_are_left_out_of_strata_not_paired_with_one_another():
    cells, model = typed()
    cells.obs["type"] = pd.Categorical(cells.obs["type"].where(cells.obs["type"] == "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = interpolate(cells, model, "stage", **ENDS, pairing=Pairing(within="type"), rng=0)
    assert (cells.obs.loc[predicted.obs["source_cell"], "type"] == "a").all()


def test_levels_left_out_are_told_once():
    cells, model = course()
    cells.obs["type"] = np.where(np.arange(180) < 5, "x", "a")
    with pytest.warns(UserWarning, match="left out") as caught:
        interpolate(cells, model, "stage", **ENDS, truth="middle", pairing=Pairing(within="type"), rng=0)
    assert len(caught) == 1


def test_a_missing_growth_is_told_with_the_name_of_its_cell():
    cells, model = typed()
    cells.obs["growth"] = np.where(cells.obs_names == "c35", np.nan, 1.0)
    with pytest.raises(InputError, match="'c35'"):
        interpolate(cells, model, "stage", **ENDS, pairing=Pairing(within="type", growth="growth"), rng=0)


def test_a_place_asked_for_twice_is_replayed_once():
    cells, model = course(n=20)
    predicted = interpolate(cells, model, "stage", **ENDS, at=[0.5, 0.5], rng=0)
    assert len(replay(predicted, cells, model)[1]) == 20


@pytest.mark.parametrize(
    ("key", "given", "ends"),
    [
        ("day", {"source": 4, "truth": 2}, (4.0, 0.0)),
        ("day", {"target": 0, "truth": 2}, (4.0, 0.0)),
        ("stage", {"source": "late", "truth": "middle"}, ("late", "early")),
    ],
)
def test_the_open_end_is_on_the_other_side_of_the_truth(key, given, ends):
    found = span(key, **given)
    assert (found.source, found.target) == ends


def test_coinciding_cells_are_links_of_a_chain_too():
    z = np.array([[0.0], [1.0], [1.0], [2.0]])
    assert widest_step(z, np.array([True, True, False, False]), np.array([False, False, True, True])) == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize("name", ["truncated", "z_plane", "template", "resampled"])
def test_a_column_whose_name_only_contains_the_letters_of_batch_words_is_not_technical(name):
    cells, model = course()
    cells.obs[name] = cells.obs["stage"] == "late"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interpolate(cells, model, "stage", **ENDS, rng=0)


def test_an_empty_batch_column_says_nothing():
    cells, model = course()
    cells.obs["donor"] = pd.Series([None] * 180, dtype=object, index=cells.obs_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interpolate(cells, model, "stage", **ENDS, rng=0)


@pytest.mark.parametrize("total", [0, -5, float("nan")])
def test_a_library_size_that_is_no_total_is_refused(total):
    cells, model = counts_course(n=20)
    with pytest.raises(InputError, match="library_size"):
        interpolate(cells, model, "stage", **ENDS, library_size=total, rng=0)


def test_the_message_keeps_the_names_of_levels_and_columns_as_they_are():
    cells, model = course(n=10)
    cells.obs["Stage"] = cells.obs["stage"].to_numpy()
    with pytest.raises(InputError, match="No column of obs has all of the levels Early, T cell"):
        arithmetic(cells, model, 'Early + "T cell"')
    with pytest.raises(InputError, match=r"2 columns have \(stage, Stage\)"):
        arithmetic(cells, model, "early - late")


@pytest.mark.parametrize("dtype", [float, str])
def test_times_are_found_however_they_are_stored(dtype):
    cells, model = course(n=10)
    cells.obs["day"] = cells.obs["day"].astype(float).astype(dtype)
    assert arithmetic(cells, model, "0 + 4 - 2").uns["arithmetic"]["key"] == "day"


def test_an_expression_of_blanks_is_empty():
    with pytest.raises(InputError, match="expression is empty"):
        arithmetic(*course(n=10), "  ")


def test_every_time_has_its_own_checkpoint(tmp_path):
    cells, model = five_days(days=(0, 2, 2.25, 2.5, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leave_one_out(cells, model, "day", folder=tmp_path)
    assert len({fit["checkpoint"] for fit in model.fits}) == 3


def test_a_time_that_no_cell_has_is_refused_before_anything_is_fitted():
    cells, model = five_days()
    with pytest.raises(InputError, match="equal to 3"):
        leave_one_out(cells, model, "day", levels=[1, 3])
    assert model.fits == []


def test_levels_whose_file_names_agree_are_refused_before_anything_is_fitted(tmp_path):
    cells, model = five_days()
    cells.obs["stage"] = cells.obs["stage"].cat.rename_categories({"c": "G1/S", "b": "G1_S"})
    with pytest.raises(InputError, match="same file name"):
        leave_one_out(cells, model, "stage", folder=tmp_path)
    assert model.fits == []


def test_a_centroid_prediction_has_no_moved_measurements():
    cells, model = course(n=30)
    predicted = interpolate(cells, model, "stage", **ENDS, pairing="centroid", rng=0)
    assert "moved" not in predicted.layers


def replicated(seed, n, replicates, d=3):
    rng = np.random.default_rng(seed)

    def drawn(place=0.0):
        member = np.arange(n) % replicates
        return Sample(rng.normal(size=(n, d)) + place + rng.normal(scale=0.7, size=(replicates, d))[member], member)

    return {"prediction": drawn(), "truth": drawn(), "source": drawn(-2.0), "target": drawn(2.0)}


@pytest.mark.parametrize(("replicates", "n"), [(4, 120), (8, 240), (12, 240)])
def test_intervals_over_replicates_that_differ_cover_zero_for_a_prediction_of_the_truths_own_distribution(
    replicates, n
):
    tables = [judged(replicated(seed, n, replicates), seed)[0] for seed in range(20)]
    assert sum(t.low["prediction"] <= 0 <= t.high["prediction"] for t in tables) >= 18
    estimates = [t.value["prediction"] for t in tables]
    assert abs(np.mean(estimates)) < 2.5 * np.std(estimates) / np.sqrt(20)
