"""What a screen says of its design: p-values where the design gives them, else the reason, a remark or a refusal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from screens import Result, by_well, fitted_on, screened, simulated, wells_of

from latentcell.errors import InputError


def without(cells: AnnData, plate: str, perturbation: str) -> AnnData:
    left_out = (cells.obs["plate"] == plate) & (cells.obs["perturbation"] == perturbation)
    return cells[~left_out.to_numpy()].copy()


def dosed() -> AnnData:
    """A drug whose effect grows over three doses and an inert one; controls have no dose."""
    cells = simulated(strengths=(0.0,))
    number = cells.obs["perturbation"].astype(str).str.extract(r"(\d+)$")[0].fillna("0").astype(int).to_numpy()
    cells.obs["drug"] = np.select([number == 0, number <= 3], ["control", "active"], "inert")
    cells.obs["dose"] = np.where(number == 0, np.nan, 10.0 ** ((number - 1) % 3))
    strength = np.where(number <= 3, 1.5 * number, 0)
    cells.X = (cells.X + np.outer(strength, cells.varm["loadings"]["size"])).astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def donors() -> Result:
    """Arms of eight donors against their own control arms, placed by a model of the controls of two others."""
    cells = simulated(n_plates=10, n_control_wells=1, n_perturbations=3)
    others = cells.obs["plate"].isin(["plate_9", "plate_10"])
    model = fitted_on(cells, (others & (cells.obs["perturbation"] == "control")).to_numpy())
    return screened(cells[~others.to_numpy()].copy(), model, replicate="plate", block="plate")


def test_a_single_control_well_per_plate_gives_a_ranking_and_the_reason_instead_of_p_values() -> None:
    found = screened(simulated(n_control_wells=1))
    assert not found.hits["valid"].any()
    unknown = [name for name in found.hits if str(name).startswith("p_")] + ["p", "q", "q_count"]
    assert found.hits[unknown].isna().all(axis=None)
    assert "single control" in found.verdict
    assert "leave the control distribution" not in found.verdict
    assert not found.cells.uns["screen"]["params"]["valid"]
    assert found.cells.uns["screen"]["calibration"].empty
    assert found.hits["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(found.hits.index[:4]) == {f"compound_0{i}" for i in range(1, 5)}


def test_a_group_with_one_well_has_no_p_value_and_says_why_and_the_others_keep_theirs() -> None:
    cells = simulated()
    for plate in ("plate_2", "plate_3"):
        cells = without(cells, plate, "compound_01")
    hits = screened(cells).hits
    lone = hits.loc["compound_01"]
    assert np.isnan([lone["p"], lone["q"], lone["p_count"], lone["p_centroid"]]).all()
    assert not lone["valid"]
    assert lone["n_wells"] == 1
    assert "no p-value: a single replicate" in lone["why"]
    assert hits.drop(index="compound_01")["p"].notna().all()
    assert np.isfinite(lone["effect"])


def test_wells_of_a_plate_without_controls_are_left_out_of_the_tests_and_named() -> None:
    found = screened(without(simulated(), "plate_2", "control"))
    assert "'plate_2'" in found.verdict
    assert "no control" in found.verdict
    assert (found.hits["n_wells"] == 3).all()
    assert (found.hits["n_blocks"] == 2).all()
    np.testing.assert_allclose(found.hits["min_p"], 1 / 25)


def test_a_group_that_no_control_stands_beside_has_no_statistic_and_comes_last() -> None:
    cells = without(simulated(n_plates=4), "plate_4", "control")
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str)
    alone = (cells.obs["plate"] == "plate_4") & (cells.obs["perturbation"] == "compound_01")
    cells.obs.loc[alone, "perturbation"] = "orphan"
    found = screened(cells)
    orphan = found.hits.loc["orphan"]
    assert orphan[["statistic", "p", "q", "min_p", "effect", "count_effect"]].isna().all()
    assert orphan["rank"] == 7
    assert orphan["why"].startswith("no p-value: no control in its blocks")
    assert "'orphan'" in found.verdict
    orphan = list(found.hits.index).index("orphan")
    assert np.isnan(found.cells.uns["screen"]["similarity"][orphan]).all()
    assert "orphan" not in set(found.cells.uns["screen"]["reasons"]["label"])


def test_a_screen_whose_groups_share_no_block_with_a_control_has_no_statistics() -> None:
    cells = simulated()
    cells.obs["own"] = wells_of(cells).to_numpy()
    cells.obs["batch"] = np.where(cells.obs["perturbation"] == "control", "first", "second")
    found = screened(cells, replicate="own", block="batch")
    assert found.hits[["statistic", "p", "q", "effect"]].isna().all(axis=None)
    assert "'second'" in found.verdict
    assert "no control" in found.verdict


def test_a_treated_well_with_a_single_cell_is_tested_like_any_other() -> None:
    cells = simulated()
    well = ((cells.obs["plate"] == "plate_1") & (cells.obs["perturbation"] == "compound_05")).to_numpy()
    well[np.flatnonzero(well)[0]] = False
    hits = screened(cells[~well].copy()).hits
    assert hits["p"].notna().all()
    assert hits.loc["compound_05", "q"] > 0.05


def test_a_table_with_a_row_per_well_is_screened_and_its_cell_counts_are_said_to_be_unknown() -> None:
    found = screened(by_well(simulated()))
    assert (found.hits["n_cells"] == found.hits["n_wells"]).all()
    assert found.hits[["count_effect", "p_count", "q_count", "count_share"]].isna().all(axis=None)
    assert "p_spread" not in found.hits
    assert "cell counts are not known" in found.verdict
    assert "change the number of cells" not in found.verdict
    assert (found.hits["q"] <= 0.05).sum() >= 4
    assert "count" not in set(found.cells.uns["screen"]["reasons"]["kind"])


def test_well_names_that_recur_on_other_plates_need_a_block() -> None:
    contiguous = simulated(layout="contiguous", cells_per_well=2)
    with pytest.raises(InputError, match=r"'A01' occurs at several levels of 'plate'.*block='plate'"):
        screened(contiguous, block=None)
    with pytest.raises(InputError, match=r"hold cells of several groups.*name those with block"):
        screened(simulated(cells_per_well=2), block=None)


def test_replicates_with_names_of_their_own_need_no_block() -> None:
    cells = simulated()
    cells.obs["own"] = wells_of(cells).str.replace(" ", "_").to_numpy()
    hits = screened(cells, replicate="own", block=None).hits
    assert (hits["n_blocks"] == 1).all()
    assert (hits["n_wells"] == 3).all()


def test_a_control_that_is_not_there_is_refused_with_the_levels_that_are() -> None:
    with pytest.raises(InputError, match=r"'DMSO'.*compound_01 \(\d+\).*control \(\d+\)"):
        screened(simulated(cells_per_well=2), control="DMSO")


@pytest.mark.parametrize("key", ["group", "replicate", "block", "dose", "position", "covariates"])
def test_a_column_that_is_not_there_is_refused_with_the_columns_that_are(key: str) -> None:
    given = ["nowhere"] if key in ("position", "covariates") else "nowhere"
    with pytest.raises(InputError, match=r"no column 'nowhere'.*'perturbation'.*'plate'"):
        screened(simulated(cells_per_well=2), **{key: given})


def test_a_variable_that_is_missing_is_named() -> None:
    cells = simulated(cells_per_well=5)
    cells.X[:, 3] = np.nan
    with pytest.raises(InputError, match="feature_0004"):
        screened(cells)
    assert not cells.obsm


def test_treated_cells_with_missing_values_are_refused_by_name() -> None:
    cells = simulated(cells_per_well=5)
    broken = np.flatnonzero(cells.obs["perturbation"] == "compound_02")[0]
    cells.X[broken, 3] = np.inf
    with pytest.raises(InputError, match=cells.obs_names[broken]):
        screened(cells)
    assert not cells.obsm


def test_donors_with_control_arms_of_their_own_are_tested_in_pairs(donors: Result) -> None:
    wells = donors.cells.uns["screen"]["wells"]
    assert len(wells) == 8 * 4
    assert (wells["block"] == wells["replicate"]).all()
    assert set(wells["role"]) == {"calibrated", "tested"}
    np.testing.assert_allclose(donors.hits["min_p"], 2 / 2**8)
    assert donors.hits["valid"].all()
    assert (donors.hits.loc[["compound_01", "compound_02"], "q"] <= 0.05).all()
    assert donors.hits.index[-1] == "compound_03"


def test_donors_without_a_model_of_other_controls_get_no_p_values(donors: Result) -> None:
    found = screened(donors.cells.copy(), replicate="plate", block="plate")
    assert found.hits["p"].isna().all()
    assert "single control arm" in found.verdict
    assert "Give a model fitted on other controls" in found.verdict


@pytest.mark.parametrize("position", [["row", "column"], ["well"], "well"])
def test_a_contiguous_layout_with_an_effect_of_the_place_gets_no_p_values(position) -> None:
    found = screened(simulated(layout="contiguous", position_effect=1.0), position=position)
    assert found.hits["p"].isna().all()
    assert found.verdict.startswith("No p-values: controls stand at places of their own on the plates")


def test_places_in_three_columns_are_refused() -> None:
    with pytest.raises(InputError, match="position names 3 columns"):
        screened(simulated(cells_per_well=2), position=["row", "column", "well"])


def test_a_random_layout_keeps_its_p_values_and_where_the_wells_lie() -> None:
    cells = simulated()
    found = screened(cells, position=["row", "column"])
    assert found.hits["p"].notna().all()
    wells = found.cells.uns["screen"]["wells"].set_index(["block", "replicate"])
    expected = cells.obs.astype({"plate": str, "well": str}).groupby(["plate", "well"])[["row", "column"]].first()
    np.testing.assert_array_equal(wells[["row", "column"]], expected.loc[wells.index])


def test_a_covariate_that_drives_the_measurements_is_taken_out_of_the_effects() -> None:
    rng = np.random.default_rng(1)
    plain = simulated()
    code, names = pd.factorize(wells_of(plain))
    plain.obs["stain"] = rng.normal(size=len(names))[code]
    plain.obs["operator"] = rng.choice(["Ada", "Bo"], len(names))[code]
    drift = np.outer(plain.obs["stain"], 4 * rng.normal(size=plain.n_vars))
    plain.X = (plain.X + drift + 2 * (plain.obs["operator"] == "Bo").to_numpy()[:, None]).astype(np.float32)
    strongest = {}
    for covariates in ((), ("stain", "operator")):
        found = screened(plain.copy(), covariates=covariates)
        reasons = found.cells.uns["screen"]["reasons"]
        strongest[covariates] = (
            reasons[reasons["kind"] == "variable"].groupby("label")["effect"].agg(lambda e: e.abs().max())
        )
    active = [f"compound_0{i}" for i in range(1, 5)]
    assert (strongest["stain", "operator"][active] > 1.5 * strongest[()][active]).all()


def test_every_dose_is_a_row_of_its_own_and_an_effect_that_grows_with_the_dose_has_a_trend() -> None:
    hits = screened(dosed(), group="drug", dose="dose").hits
    assert set(hits.index) == {f"{drug} {dose}" for drug in ("active", "inert") for dose in (1, 10, 100)}
    assert (hits["group"] + " " + hits["dose"].map("{:g}".format) == hits.index).all()
    assert (hits["n_wells"] == 3).all()
    trend = hits.groupby("group")[["dose_trend", "p_dose_trend"]].agg(["min", "max"])
    assert trend.loc["active", ("dose_trend", "min")] == trend.loc["active", ("dose_trend", "max")] > 0.8
    assert trend.loc["active", ("p_dose_trend", "max")] <= 0.05
    assert trend.loc["inert", ("dose_trend", "max")] < trend.loc["active", ("dose_trend", "min")]
    assert (hits.loc[["active 1", "active 10", "active 100"], "q"] <= 0.05).all()


def test_doses_that_differ_by_little_are_tested_apart() -> None:
    cells = dosed()
    cells.obs["dose"] += 1e6
    assert len(screened(cells, group="drug", dose="dose").hits) == 6


def test_two_doses_are_tested_without_a_trend() -> None:
    cells = dosed()
    found = screened(cells[(cells.obs["dose"] != 100).to_numpy()].copy(), group="drug", dose="dose")
    assert len(found.hits) == 4
    assert found.hits[["dose_trend", "p_dose_trend"]].isna().all(axis=None)


def test_fewer_cells_of_the_same_kind_are_found_by_their_number_and_not_by_p() -> None:
    cells = simulated(n_plates=4, n_perturbations=16, cells_per_well=25, strengths=(2.2,))
    cells = cells[cells.obs["kind"].isin(["control", "null", "fewer_cells"]).to_numpy()].copy()
    found = screened(cells)
    fewer = found.hits.loc["compound_11"]
    assert fewer["count_effect"] < -1
    assert fewer["q_count"] <= 0.05 < fewer["q"]
    assert fewer["p_count"] == pytest.approx(fewer["min_p"])
    others = found.hits.drop(index="compound_11")
    assert (others["q_count"] > 0.05).all()
    assert "1 of 6 groups change the number of cells" in found.verdict


def test_few_cells_for_the_model_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    screened(simulated(n_control_wells=4, cells_per_well=5))
    assert any("control cells train the model" in message for message in caplog.messages)


def test_the_default_model_is_no_wider_than_half_the_variables() -> None:
    cells = simulated(cells_per_well=12)[:, :9].copy()
    assert screened(cells).model.n_latent == 4


def test_the_model_that_is_returned_screens_the_same_cells_again_with_the_same_outcome() -> None:
    first = screened(simulated())
    again = screened(simulated(), first.model)
    pd.testing.assert_frame_equal(again.hits, first.hits)
    pd.testing.assert_frame_equal(again.cells.obs, first.cells.obs)
