"""A screen calls what leaves the controls, writes what its docstring says, and gives no p-value that cannot be had."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, kstest
from screens import DESIGN, Result, every_second_control, fitted_on, screened, simulated, wells_of

import latentcell as lc
from latentcell.cells import stores
from latentcell.errors import InputError
from latentcell.tl.screen import typicality

TABLES = ("hits", "wells", "calibration", "reasons")
VIEWS = ("centroid", "spread", "residual", "residual_energy", "log_var")


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """A screen of each modality; tests must not change them."""
    return {modality: screened(simulated(modality)) for modality in ("profiles", "counts", "images")}


@pytest.fixture(params=["profiles", "counts", "images"])
def result(request: pytest.FixtureRequest, results: dict[str, Result]) -> Result:
    return results[request.param]


@pytest.fixture(scope="module")
def control_model() -> lc.VAE:
    """A model fitted on every second control of the simulated profiles."""
    cells = simulated()
    return fitted_on(cells, every_second_control(cells))


@pytest.fixture(scope="module")
def demoted() -> Result:
    """A screen with one control well per plate."""
    return screened(simulated(n_control_wells=1))


def test_strong_perturbations_are_called_and_rank_first_and_nulls_are_mostly_not(result: Result) -> None:
    null = result.cells.obs.groupby("perturbation", observed=True)["is_null"].first()[result.hits.index]
    assert result.hits[~null]["rank"].tolist() == [1, 2, 3, 4]
    assert (result.hits.loc[~null, "q"] <= 0.05).all()
    assert (result.hits.loc[null, "q"] > 0.05).any()
    assert result.hits.loc[null, "p"].max() > 0.1
    called = int((result.hits["q"] <= 0.05).sum())
    assert result.verdict.startswith(f"{called} of 6 groups tested leave the control distribution")


def test_every_key_of_the_cells_is_written_with_its_type(result: Result) -> None:
    cells, n = result.cells, result.cells.n_obs
    n_channels = len(result.model.names_)
    width = 16 * n_channels if result.model.modality_ == "images" else 1
    shapes = {"vae": (n, result.model.n_latent), "vae_var": (n, result.model.n_latent), "screen_residual": (n, width)}
    for key, shape in shapes.items():
        assert (cells.obsm[key].shape, cells.obsm[key].dtype) == (shape, np.float32)
    for name in ("vae_elbo", "vae_log_px", "vae_kl", "screen_log_var", "screen_typicality"):
        assert cells.obs[name].dtype == np.float32
    np.testing.assert_allclose(cells.obs["screen_log_var"], np.log(cells.obsm["vae_var"]).mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(cells.obsm["vae"], result.model.encode(cells).mu)
    assert (cells.obsm["screen_residual"] >= 0).all()
    assert cells.obs["screen_typicality"].between(0, 1).all()
    assert (cells.obs["screen_label"].astype(str) == cells.obs["perturbation"].astype(str)).all()
    assert isinstance(cells.obs["screen_role"].dtype, pd.CategoricalDtype)
    assert cells.uns["vae"]["model_sha256"] == cells.uns["screen"]["params"]["model_sha256"] == result.model.sha256()


def test_the_table_of_hits_has_what_is_documented_and_agrees_with_the_cells(result: Result) -> None:
    table, cells = result.cells.uns["screen"]["hits"], result.cells
    documented = "label group dose n_wells n_blocks n_cells statistic p q min_p valid rank effect count_effect p_count"
    documented += " q_count count_share dose_trend p_dose_trend nearest_groups outlier_share nearest_cells why"
    assert {*documented.split(), *(f"p_{view}" for view in VIEWS)} <= set(table.columns)
    assert table["rank"].tolist() == list(range(1, 7))
    assert table["valid"].all()
    np.testing.assert_allclose(table["q"], false_discovery_control(table["p"]))
    n_calibrating = (cells.uns["screen"]["wells"]["role"] == "calibrated").sum() // 3
    np.testing.assert_allclose(table["min_p"], (1 + n_calibrating) ** -3.0)
    assert (table["p"] >= table["min_p"] - 1e-12).all()
    for hit in table.itertuples():
        mine = (cells.obs["perturbation"] == hit.label).to_numpy()
        assert (hit.group, hit.n_wells, hit.n_blocks, hit.n_cells) == (hit.label, 3, 3, mine.sum())
        assert hit.outlier_share == pytest.approx((cells.obs["screen_typicality"][mine] <= 0.05).mean())
        assert set(hit.nearest_cells.split(", ")) <= set(cells.obs_names[mine])
        assert hit.label not in hit.nearest_groups
    assert table["dose"].isna().all()


def test_the_table_of_wells_describes_every_replicate_by_its_own_cells(result: Result) -> None:
    table, cells = result.cells.uns["screen"]["wells"], result.cells
    at = cells.obs.groupby(["plate", "well"], observed=True).indices
    assert len(table) == len(at)
    used = [int(name.rsplit("_", 1)[1]) for name in table if str(name).startswith("centroid_")]
    for well in table.itertuples():
        rows = at[well.block, well.replicate]
        assert (set(cells.obs["perturbation"].iloc[rows]), len(rows)) == ({well.group}, well.n_cells)
        assert set(cells.obs["screen_role"].iloc[rows]) == {well.role}
        centroid = [getattr(well, f"centroid_{i}") for i in used]
        np.testing.assert_allclose(centroid, cells.obsm["vae"][rows].mean(axis=0)[used], atol=1e-4)
    assert all(any(str(name).startswith(f"{view}_") for name in table) for view in VIEWS)


def test_controls_that_trained_the_model_never_calibrate_it(result: Result) -> None:
    role = result.cells.obs["screen_role"].astype(str)
    np.testing.assert_array_equal(result.model.seen(result.cells), role == "trained")
    assert set(role[result.cells.obs["perturbation"] != "control"]) == {"tested"}
    wells = result.cells.uns["screen"]["wells"]
    per_plate = pd.crosstab(wells["block"], wells["role"])
    assert (per_plate["calibrated"] >= per_plate["trained"]).all()
    assert (per_plate["trained"] > 0).all()


def test_reasons_name_what_moved_with_intervals_and_counterfactuals(result: Result) -> None:
    reasons, hits = result.cells.uns["screen"]["reasons"], result.hits
    columns = ["label", "kind", "name", "effect", "low", "high", "sd", "unit", "counterfactual"]
    assert list(reasons.columns) == columns
    assert set(reasons["kind"]) == {"latent", "variable", "count"}
    assert ((reasons["low"] < reasons["effect"]) & (reasons["effect"] < reasons["high"])).all()
    for label, moved in reasons[reasons["kind"] == "variable"].groupby("label"):
        top = moved["effect"].abs()
        assert top.is_monotonic_decreasing
        assert moved["name"].iloc[0] in hits.loc[label, "why"]
        assert moved["counterfactual"].notna().all()


def test_opposite_perturbations_have_opposite_shifts(results: dict[str, Result]) -> None:
    labels = results["profiles"].hits.index
    similar = pd.DataFrame(results["profiles"].cells.uns["screen"]["similarity"], labels, labels)
    np.testing.assert_allclose(np.diag(similar), 1)
    np.testing.assert_allclose(similar, similar.T)
    assert similar.loc["compound_01", "compound_02"] < -0.3  # bigger and smaller


def test_the_same_seed_gives_the_same_screen_and_another_seed_another_split(results: dict[str, Result]) -> None:
    first, second = results["profiles"].cells, screened(simulated()).cells
    for name in TABLES:
        pd.testing.assert_frame_equal(first.uns["screen"][name], second.uns["screen"][name])
    np.testing.assert_array_equal(first.uns["screen"]["similarity"], second.uns["screen"]["similarity"])
    pd.testing.assert_frame_equal(first.obs, second.obs)
    np.testing.assert_array_equal(first.obsm["screen_residual"], second.obsm["screen_residual"])
    other = screened(simulated(), rng=1).cells
    assert not first.obs["screen_role"].equals(other.obs["screen_role"])


def test_measurements_and_annotation_stay_as_they_were(result: Result) -> None:
    cells, before = result.cells, simulated(result.model.modality_)
    added = [name for name in cells.obs if str(name).startswith(("vae_", "screen_"))]
    pd.testing.assert_frame_equal(cells.obs.drop(columns=added), before.obs)
    pd.testing.assert_frame_equal(cells.var, before.var)
    for key in before.obsm:
        np.testing.assert_array_equal(cells.obsm[key], before.obsm[key])
    if before.X is not None:
        np.testing.assert_array_equal(cells.to_df(), before.to_df())


def test_the_order_of_the_cells_does_not_matter_to_a_fitted_model(control_model: lc.VAE) -> None:
    cells = simulated()
    cells = cells[(cells.obs.groupby(wells_of(cells)).cumcount() < 9).to_numpy()].copy()
    first = screened(cells.copy(), control_model)
    second = screened(cells[np.random.default_rng(0).permutation(cells.n_obs)].copy(), control_model)
    shown = ["statistic", "p", "q", "effect", "count_effect", "p_count", "rank"]
    again = second.hits.loc[first.hits.index]
    np.testing.assert_allclose(again[shown], first.hits[shown], rtol=1e-4, atol=1e-6)
    assert again["why"].tolist() == first.hits["why"].tolist()
    np.testing.assert_allclose(second.cells[cells.obs_names].obsm["vae"], first.cells.obsm["vae"], atol=1e-5)


@pytest.mark.parametrize("which", ["profiles", "images", "demoted"])
def test_a_screen_survives_writing_and_reading(
    which: str, results: dict[str, Result], demoted: Result, tmp_path: Path
) -> None:
    cells = (results | {"demoted": demoted})[which].cells
    stores.write_h5ad(cells, tmp_path / "cells.h5ad", images=False)
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    for name in TABLES:
        pd.testing.assert_frame_equal(back.uns["screen"][name], cells.uns["screen"][name], check_names=False)
    np.testing.assert_array_equal(back.uns["screen"]["similarity"], cells.uns["screen"]["similarity"])
    assert list(back.uns["screen"]["verdict"]) == list(cells.uns["screen"]["verdict"])
    params = back.uns["screen"]["params"]
    assert {name: params[name] for name in DESIGN} == DESIGN
    assert list(params["views"]) == list(VIEWS)
    assert bool(params["valid"]) == (which != "demoted")
    pd.testing.assert_frame_equal(back.obs, cells.obs)
    assert set(back.obsm) == {"vae", "vae_var", "screen_residual"}


def test_images_that_lie_on_disk_are_screened_as_those_in_memory(
    results: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated("images").write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(stores, "LAZY_BYTES", 0)
    cells = stores.read_store(tmp_path / "cells.h5ad")
    assert not isinstance(cells.obsm["images"], np.ndarray)
    placed = screened(cells, results["images"].model)
    for name in ("vae", "screen_residual"):
        np.testing.assert_allclose(placed.cells.obsm[name], results["images"].cells.obsm[name], atol=1e-5)
    own = screened(cells).hits
    assert set(own.index[own["q"] <= 0.05]) == set(placed.hits.index[placed.hits["q"] <= 0.05])


def test_with_a_given_model_all_controls_that_it_has_not_seen_calibrate(control_model: lc.VAE) -> None:
    before = control_model.sha256()
    found = screened(simulated(), control_model)
    assert found.model is control_model
    assert found.model.sha256() == before
    role = found.cells.obs["screen_role"].astype(str)
    np.testing.assert_array_equal(role == "trained", every_second_control(found.cells))
    assert (role[~every_second_control(found.cells)] != "trained").all()
    assert (found.hits["q"] <= 0.05).sum() >= 4
    assert "12 control replicates trained the model and do not calibrate it" in found.verdict


def test_a_model_from_elsewhere_leaves_all_controls_to_calibrate(control_model: lc.VAE) -> None:
    cells = simulated()
    others = cells[~every_second_control(cells)].copy()
    found = screened(others, control_model)
    assert set(found.cells.obs["screen_role"]) == {"calibrated", "tested"}
    assert "trained the model" not in found.verdict


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (lambda obs: obs["perturbation"].isin(["control", "compound_02"]), "treated replicates .first: 'compound_02'"),
        (lambda obs: obs["perturbation"] == "control", "cells of all control replicates"),
    ],
)
def test_a_model_that_saw_treated_cells_or_every_control_is_refused_before_anything_is_written(seen, words) -> None:
    cells = simulated()
    model = fitted_on(cells, seen(cells.obs).to_numpy(), epochs=1)
    with pytest.raises(InputError, match=words):
        screened(cells, model)
    assert not cells.obsm
    assert "screen" not in cells.uns


def test_options_of_a_fit_with_a_fitted_model_are_refused(control_model: lc.VAE) -> None:
    with pytest.raises(InputError, match="Fit options"):
        screened(simulated(), control_model, fit={"epochs": 3})


def test_a_model_that_is_not_fitted_gives_the_settings_and_stays_as_it_is() -> None:
    cells = simulated()
    cells.layers["measured"] = cells.X.copy()
    cells.X = np.zeros_like(cells.X)
    settings = lc.VAE(3, likelihood="student_t", layer="measured", width=16)
    found = screened(cells, settings)
    assert not hasattr(settings, "schema_")
    assert found.model.n_latent == 3
    assert found.model.report_["likelihood"] == "student_t"
    assert found.model.schema_.layer == "measured"
    assert (found.hits["q"] <= 0.05).sum() >= 4


def test_the_first_sentence_of_the_verdict_is_logged(caplog: pytest.LogCaptureFixture, control_model: lc.VAE) -> None:
    with caplog.at_level(logging.INFO, logger="latentcell"):
        found = screened(simulated(), control_model, n_relabellings=19)
    assert caplog.messages[-2] == found.cells.uns["screen"]["verdict"][0]
    np.testing.assert_allclose(found.hits["min_p"], 1 / 20)


def test_typicality_is_the_two_sided_rank_among_reference_cells() -> None:
    elbo = np.array([*range(9), -5.0, 20.0, 3.5], dtype=np.float32)
    found = typicality(elbo, np.arange(12) < 9)
    np.testing.assert_allclose(found[:9] * 9, [2, 4, 6, 8, 9, 8, 6, 4, 2], rtol=1e-6)
    np.testing.assert_allclose(found[9:] * 10, [2, 2, 10], rtol=1e-6)
    assert found.dtype == np.float32


def test_typicality_is_uniform_for_new_cells_like_the_reference_and_never_zero() -> None:
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    found = typicality(values, np.arange(4000) < 2000)
    for part in (found[:2000], found[2000:]):
        assert kstest(part, "uniform").pvalue > 0.01
    assert (typicality(np.array([-1e6, 1e6, *values], dtype=np.float32), np.arange(4002) >= 2)[:2] == 2 / 4001).all()
