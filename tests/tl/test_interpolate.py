from __future__ import annotations

import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from linear import ENDS, N, counts_course, course, images_course, values

from latentcell.errors import InputError
from latentcell.tl import compare
from latentcell.tl.interpolate import interpolate


def test_with_a_linear_decoder_the_middle_of_two_gaussians_has_their_mean_and_spread() -> None:
    cells, model = course(n=400)
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    ends = [model.encode(cells[cells.obs.stage == stage]).mu.mean(0) for stage in ("early", "late")]
    np.testing.assert_allclose(predicted.obsm["vae"].mean(0), (ends[0] + ends[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(predicted.obsm["vae"].std(0), [1.0, 2.0], rtol=0.1)


@pytest.mark.parametrize(("at", "stage"), [(0.0, "early"), (1.0, "late")])
def test_at_the_ends_the_prediction_is_the_reconstruction_of_the_cells_there(at: float, stage: str) -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=at, rng=0)
    names = predicted.obs["source_cell" if at == 0 else "target_cell"]
    expected = model.decode(model.encode(cells[names.to_numpy()]).mu)
    assert set(names) == set(cells.obs_names[cells.obs.stage == stage])
    np.testing.assert_allclose(predicted.X, expected, atol=1e-5)


def test_prediction_names_the_paired_cells_and_keeps_mean_and_sample_apart() -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=0.25, n_cells=37, rng=0)
    ends = [model.encode(cells[predicted.obs[c].to_numpy()]).mu for c in ("source_cell", "target_cell")]
    np.testing.assert_allclose(predicted.obsm["vae"], 0.75 * ends[0] + 0.25 * ends[1], atol=1e-5)
    np.testing.assert_allclose(predicted.X, predicted.obsm["vae"] @ model.loadings, atol=1e-5)
    residual = predicted.layers["sampled"] - predicted.X
    assert predicted.shape == (37, 12)
    assert residual.std() == pytest.approx(0.1, rel=0.2)
    assert list(predicted.var_names) == model.names_
    assert (predicted.obs["at"] == 0.25).all()


def test_several_positions_move_the_same_pairs() -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=[0, 0.5, 1], n_cells=20, rng=0)
    assert predicted.obs["at"].tolist() == [0] * 20 + [0.5] * 20 + [1] * 20
    names = predicted.obs["source_cell"].to_numpy().reshape(3, 20)
    assert (names == names[0]).all()
    z = predicted.obsm["vae"].reshape(3, 20, 2)
    np.testing.assert_allclose(z[1], (z[0] + z[2]) / 2, atol=1e-5)


def test_centroid_pairing_decodes_one_and_the_same_cell() -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, pairing="centroid", rng=0)
    assert predicted.X.std(axis=0).max() < 1e-5


def test_evaluation_lists_the_prediction_first_and_every_baseline_in_both_spaces() -> None:
    cells, model = course()
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    table = cells.uns["interpolate"]["evaluation"]
    assert list(table.columns) == ["space", "method", "metric", "value", "low", "high"]
    ends = ["prediction", "source", "target", "mixture"]
    free = ["measurement average", "PCA + OT"]
    for space, others in (
        ("model", ["random pairs", "centroid", "measurement average"]),
        ("data", ["random pairs", "centroid", *free, "moved measurements", "reconstructed truth"]),
    ):
        assert list(table[table.space == space].method.unique()) == [*ends, *others, "floor"]
    assert set(table.metric) == {"energy distance", "MMD", "W1", "W2", "per-variable error"}
    assert (table.groupby(["space", "method"]).size() == 5).all()
    assert np.isfinite(table[["value", "low", "high"]].to_numpy()).all()
    assert (table.low <= table.high).all()


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_optimal_transport_beats_random_pairs_the_mixture_the_ends_and_the_centroid(make: Any) -> None:
    cells, model = make()
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    table = cells.uns["interpolate"]["evaluation"]
    for space in ("model", "data"):
        error = values(table, space)
        assert error["random pairs"] < min(error["source"], error["target"])
        if make is not images_course:  # whose cells differ too little within a stage for the pairing to matter
            assert error["prediction"] < error["random pairs"]
        assert error["prediction"] < 0.5 * min(error["mixture"], error["centroid"], error["source"], error["target"])


def test_verdict_names_a_clear_win_in_model_space() -> None:
    cells, model = course(n=150)
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    sentence = cells.uns["interpolate"]["verdict"]["model"]
    assert sentence.startswith("In model space the prediction is better than every baseline (95 % intervals of the ")


def test_verdict_admits_that_a_copy_of_the_source_is_nearer() -> None:
    cells, model = course()
    cells.obs["stage"] = cells.obs["stage"].replace({"middle": "mid"})
    early = cells[cells.obs.stage == "early"].X + 0.1 * np.random.default_rng(1).normal(size=(N, 12))
    cells.X[cells.obs.stage == "mid"] = early
    interpolate(cells, model, "stage", **ENDS, truth="mid", rng=0)
    verdict = cells.uns["interpolate"]["verdict"]
    assert "the prediction is worse than copying early" in verdict["model"]
    assert verdict["data"].startswith("In data space the prediction is worse than copying early")


def test_verdict_does_not_claim_to_beat_model_free_transport_where_they_agree() -> None:
    cells, model = course(n=250, n_genes=2)
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    assert "no better than PCA + OT" in cells.uns["interpolate"]["verdict"]["data"]


def test_a_prediction_is_not_its_own_baseline() -> None:
    cells, model = course()
    interpolate(cells, model, "stage", **ENDS, truth="middle", pairing="random", rng=0)
    methods = set(cells.uns["interpolate"]["evaluation"].method)
    assert "random pairs" not in methods
    assert "centroid" in methods


def test_truth_used_in_fitting_is_refused_unless_allowed() -> None:
    cells, model = course()
    model.seen_names = frozenset({"c65", "c70", "c3"})
    with pytest.raises(InputError, match=r"2 of 60 cells of 'middle' were used in fitting.*'c65'"):
        interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    interpolate(cells, model, "stage", **ENDS, truth="middle", allow_seen=True, rng=0)
    assert cells.uns["interpolate"]["params"]["allow_seen"] is True


def test_predicted_images_are_kept_as_images_with_their_channels() -> None:
    cells, model = images_course()
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    assert predicted.obsm["images"].shape == predicted.obsm["sampled"].shape == (40, 1, 16, 16)
    assert predicted.obsm["images"].dtype == np.float32
    assert predicted.uns["images"]["channel_names"] == ["DNA"]


def test_predicted_counts_have_the_library_size_between_those_of_their_two_cells() -> None:
    cells, model = counts_course()
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    sizes = [cells[predicted.obs[c].to_numpy()].X.sum(1) for c in ("source_cell", "target_cell")]
    np.testing.assert_allclose(predicted.X.sum(1), np.sqrt(sizes[0] * sizes[1]), rtol=1e-4)
    sampled = predicted.layers["sampled"]
    assert (sampled == np.round(sampled)).all()


def test_predicted_cells_take_the_batch_of_their_source_cell() -> None:
    cells, model = course()
    cells.obs["plate"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 2, "p1", "p2"))
    model.batch_key = "plate"
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    expected = cells.obs["plate"][predicted.obs["source_cell"]].to_numpy()
    assert (predicted.obs["plate"].to_numpy() == expected).all()
    mean, sampled = model.asked[:2]
    assert (np.asarray(mean["batch"]) == expected).all()
    assert (np.asarray(sampled["batch"]) == expected).all()


def test_numeric_levels_may_be_given_as_numbers_or_as_text() -> None:
    cells, model = course()
    first = interpolate(cells, model, "day", source=0, target=4, rng=0)
    second = interpolate(cells, model, "day", source="0", target="4.0", rng=0)
    np.testing.assert_array_equal(first.X, second.X)


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_result_repeats_with_its_seed_and_survives_writing(make: Any, tmp_path: Any) -> None:
    cells, model = make(n=30)
    results = [interpolate(cells, model, "stage", **ENDS, truth="middle", rng=7) for _ in range(2)]
    pd.testing.assert_frame_equal(*(r.uns["interpolate"]["evaluation"] for r in results))
    results[0].write_h5ad(tmp_path / "predicted.h5ad")
    read = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert read.uns["interpolate"]["verdict"] == results[0].uns["interpolate"]["verdict"]
    params = read.uns["interpolate"]["params"]
    assert (params["source"], params["target"], params["truth"], params["rng"]) == ("early", "late", "middle", 7)
    assert (params["n_source"], params["n_target"], params["n_cells"]) == (30, 30, 30)


def test_large_populations_are_evaluated_on_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MAX_EVALUATED", 25)
    sizes = []
    evaluated = sys.modules[interpolate.__module__].evaluate

    def noted(spaces: Any, **options: Any) -> Any:
        sizes.extend(len(s.variables) for space in spaces.values() for s in space.samples.values())
        return evaluated(spaces, **options)

    monkeypatch.setattr(sys.modules[interpolate.__module__], "evaluate", noted)
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    assert predicted.n_obs == N
    assert max(sizes) <= 2 * 25  # the mixture has up to 25 of either end


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "phase"}, r"no column 'phase'.*'stage', 'day'"),
        ({"source": "erly"}, r"equal to 'erly'.*early \(60\), middle \(60\), late \(60\)"),
        ({"target": "early"}, "both 'early'"),
        ({"truth": "late"}, "one of the ends"),
        ({"key": "day", "source": 0, "target": 4, "truth": "4"}, "one of the ends"),
        ({"truth": "midle"}, "equal to 'midle'"),
        ({"at": 1.2}, "found 1.2"),
        ({"at": []}, r"a number or a list of numbers, found \[\]"),
        ({"at": float("nan")}, "found nan"),
        ({"at": [[0.2], [0.5]]}, "a number or a list of numbers"),
        ({"path": "curve"}, "names without an order"),
        ({"library_size": 1_000}, "library_size is for counts"),
        ({"sharp": True}, "cannot draw sharp images yet"),
        ({"replicate": "donor"}, r"no column 'donor'"),
        ({"n_cells": 0}, "n_cells=0"),
        ({"at": [0.2, 0.5], "truth": "middle"}, "one position"),
        ({"pairing": "nearest"}, "ot, random, centroid"),
        ({"path": "straight"}, "auto, linear, curve, slerp"),
        ({"key": "day", "source": "first", "target": 4}, r"equal to 'first'.*0 \(60\)"),
    ],
)
def test_requests_that_have_no_answer_are_refused_with_what_was_found(changed: dict[str, Any], message: str) -> None:
    cells, model = course()
    options = {"key": "stage", **ENDS, **changed}
    with pytest.raises(InputError, match=message):
        interpolate(cells, model, options.pop("key"), **options)


def test_fewer_than_ten_cells_at_an_end_warn_and_fewer_than_two_are_refused() -> None:
    cells, model = course()
    few = cells[[*range(5), *range(N, 3 * N)]].copy()
    with pytest.warns(UserWarning, match="'early' has only 5 cells"):
        interpolate(few, model, "stage", **ENDS, rng=0)
    one = cells[[0, *range(N, 3 * N)]].copy()
    with pytest.raises(InputError, match="'early' has 1 cells"):
        interpolate(one, model, "stage", **ENDS, rng=0)


def test_enough_cells_do_not_warn() -> None:
    cells, model = course()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)


def test_cells_of_all_levels_of_a_small_truth_are_still_compared_with_a_warning() -> None:
    cells, model = course()
    few = cells[[*range(N + 6), *range(2 * N, 3 * N)]].copy()
    with pytest.warns(UserWarning, match="'middle' has only 6 cells"):
        interpolate(few, model, "stage", **ENDS, truth="middle", rng=0)
    three = cells[[*range(N + 3), *range(2 * N, 3 * N)]].copy()
    with pytest.raises(InputError, match="'middle' has 3 cells; at least 4"):
        interpolate(three, model, "stage", **ENDS, truth="middle", rng=0)


@pytest.mark.parametrize("sharp", [False, True])
def test_draws_are_sharp_where_asked(sharp: bool) -> None:
    cells, model = images_course(n=20)
    model.refined = True
    predicted = interpolate(cells, model, "stage", **ENDS, sharp=sharp, rng=0)
    mean, sampled = model.asked[:2]
    assert (mean["sharp"], mean["noise"]) == (False, False)
    assert (sampled["sharp"], sampled["noise"]) == (sharp, not sharp)
    assert predicted.uns["interpolate"]["params"]["sharp"] is sharp


def test_a_stated_library_size_is_that_of_every_predicted_cell() -> None:
    cells, model = counts_course(n=20)
    predicted = interpolate(cells, model, "stage", **ENDS, library_size=5_000, rng=0)
    np.testing.assert_allclose(predicted.X.sum(1), 5_000, rtol=1e-5)
    assert predicted.uns["interpolate"]["params"]["library_size"] == 5_000


@pytest.mark.parametrize("path", ["linear", "slerp", "shift", "shift_source", "shift_target", "geodesic"])
@pytest.mark.parametrize(("at", "end"), [(0.0, "source_cell"), (1.0, "target_cell")])
def test_every_path_between_single_cells_starts_and_ends_at_them(path: Any, at: float, end: str) -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=at, path=path, rng=0)
    if path == ("shift_target", "shift_source")[int(at)]:
        # a shift moves populations: at the far end only their means agree
        expected = model.encode(cells[cells.obs["stage"] == ("early", "late")[int(at)]]).mu.mean(axis=0)
        np.testing.assert_allclose(predicted.obsm["vae"].mean(axis=0), expected, atol=1e-4)
    else:
        expected = model.encode(cells[predicted.obs[end].to_numpy()]).mu
        np.testing.assert_allclose(predicted.obsm["vae"], expected, atol=1e-5)


def test_shift_keeps_the_spread_that_averages_of_random_pairs_shrink() -> None:
    cells, model = course(n=200)
    spread = {
        path: interpolate(cells, model, "stage", **ENDS, path=path, pairing="random", rng=0).obsm["vae"][:, 1].std()
        for path in ("linear", "shift")
    }
    assert spread["linear"] == pytest.approx(np.sqrt(2), rel=0.1)
    assert spread["shift"] == pytest.approx(2.0, rel=0.1)
