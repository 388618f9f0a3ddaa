"""The tables of a screen and its sentences say what the replicates say, each group for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from latentcell.stats.relabelling import relabelling_test
from latentcell.tl.calibrate import Validity
from latentcell.tl.design import Design
from latentcell.tl.hits import hit_table, in_words, reasons_table, verdict
from latentcell.tl.screened import Screened
from latentcell.tl.wells import CENTROID, ENERGY, LOG_VAR, RESIDUAL, SPREAD, Views

VIEWS = (CENTROID, SPREAD, RESIDUAL, ENERGY, LOG_VAR)
P_COLUMNS = ["p", "q", "p_count", "q_count", *(f"p_{name}" for name in VIEWS)]


def screened(
    shifts: Mapping[str, Mapping[str, float]],
    *,
    controls: tuple[int, ...] = (16, 16, 16),
    n_cells: Mapping[str, int] | None = None,
    seed: int = 0,
    d: int = 4,
    **changed: Any,
) -> Screened:
    """Plates of controls and one well of every group, whose views are shifted by so many SD."""
    rng = np.random.default_rng(seed)
    rows = [(f"p{i}", each) for i, n in enumerate(controls) for each in (*["DMSO"] * n, *shifts)]
    wells = pd.DataFrame(rows, columns=["block", "label"])
    parts = wells["label"].str.split(" ", expand=True).reindex(columns=range(2))
    wells["group"], wells["dose"] = parts[0], parts[1].astype(float)
    wells["replicate"], wells["is_control"] = [f"w {i}" for i in range(len(wells))], wells["label"] == "DMSO"
    wells["n_cells"] = [(n_cells or {}).get(label, 50) for label in wells["label"]]
    values = {name: rng.normal(size=(len(wells), d)) for name in VIEWS}
    for label, moved in shifts.items():
        for name, by in moved.items():
            values[name][(wells["label"] == label).to_numpy()] += by
    design = Design(wells, np.arange(len(wells)), np.empty((len(wells), 0)), paired=False)
    counts = wells["n_cells"].to_numpy()
    variables = pd.DataFrame(values[CENTROID] + 10, columns=[f"v{i}" for i in range(d)])
    made = Screened(
        design=design, views=Views(counts, np.arange(d), (int(counts.max()),), (values,)), variables=variables,
        variable_sd=np.full(d, 5.0), calibrating=design.control, validity=Validity(), n_relabellings=999, seed=0,
    )  # fmt: skip
    return replace(made, **changed)


def kept(made: Screened, rows: np.ndarray) -> Screened:
    """The same screen of the replicates `rows`, in their order."""
    design = replace(
        made.design, wells=made.design.wells.iloc[rows].reset_index(drop=True), covariates=made.design.covariates[rows]
    )
    by_level = tuple({name: values[rows] for name, values in level.items()} for level in made.views.by_level)
    views = replace(made.views, n_cells=made.views.n_cells[rows], by_level=by_level)
    return replace(
        made, design=design, views=views, variables=made.variables.iloc[rows], calibrating=made.calibrating[rows]
    )


MIXED = {"n1": {}, "strong": {CENTROID: 3.0}, "n2": {}, "weak": {CENTROID: 1.5}, "n3": {}}


@pytest.fixture(scope="module")
def mixed() -> tuple[Screened, pd.DataFrame]:
    made = screened(MIXED, n_relabellings=9_999, seed=1)
    return made, hit_table(made)[0]


def test_shifted_groups_come_first_and_null_ones_keep_high_p(mixed) -> None:
    hits = mixed[1]
    assert set(hits["label"][:2]) == {"strong", "weak"}
    assert hits["rank"].tolist() == [1, 2, 3, 4, 5]
    assert (hits["q"] <= 0.05).tolist() == [True, True, False, False, False]
    assert (hits["p"][2:] > 0.05).all()
    assert hits["valid"].all()
    assert hits["p"].is_monotonic_increasing


def test_the_numbers_of_each_group_are_those_of_its_wells(mixed) -> None:
    hits = mixed[1]
    assert (hits["n_wells"] == 3).all()
    assert (hits["n_blocks"] == 3).all()
    assert (hits["n_cells"] == 150).all()
    np.testing.assert_allclose(hits["min_p"], 17.0**-3)
    assert hits["p"].iloc[0] == pytest.approx(17.0**-3)


def test_q_is_benjamini_and_hochbergs_over_all_groups(mixed) -> None:
    hits = mixed[1]
    np.testing.assert_allclose(hits["q"], false_discovery_control(hits["p"]))
    np.testing.assert_allclose(hits["q_count"], false_discovery_control(hits["p_count"]))


def test_p_of_each_view_is_that_of_a_test_on_it_alone(mixed) -> None:
    made, hits = mixed
    design = made.design
    plan = design.layout("weak", made.calibrating)
    row = hits.set_index("label").loc["weak"]
    for name in VIEWS:
        alone = relabelling_test([made.views[name]], plan, control=design.control, block=design.block, rng=0)
        assert row[f"p_{name}"] == alone.p


@pytest.mark.parametrize("n_relabellings", [99, 9_999])
def test_what_is_said_of_a_group_does_not_depend_on_which_others_are_screened(mixed, n_relabellings: int) -> None:
    made = replace(mixed[0], n_relabellings=n_relabellings)
    few = kept(made, np.flatnonzero(made.design.wells["label"].isin(["DMSO", "weak", "n2"])))
    own = [name for name in mixed[1] if name not in ("q", "q_count", "rank", "nearest_groups")]
    every = hit_table(made)[0].set_index("label").loc[["weak", "n2"]].reset_index()
    pd.testing.assert_frame_equal(every[own], hit_table(few)[0][own], rtol=1e-9)


def test_the_order_of_the_replicates_does_not_matter(mixed) -> None:
    made, hits = mixed
    shuffled = kept(made, np.random.default_rng(0).permutation(len(made.design.wells)))
    pd.testing.assert_frame_equal(hit_table(shuffled)[0], hits, rtol=1e-6)


def test_a_group_whose_p_does_not_hold_keeps_its_rank_and_loses_p_and_q() -> None:
    made = screened({"n1": {}, "strong": {CENTROID: 3.0}, "n2": {}}, validity=Validity(by_label={"strong": "alone"}))
    hits = hit_table(made)[0].set_index("label")
    assert hits.loc["strong", P_COLUMNS].isna().all()
    assert not hits.loc["strong", "valid"]
    assert hits.loc["strong", "rank"] == 1
    assert np.isfinite(hits.loc["strong", ["statistic", "effect", "min_p", "count_effect"]].astype(float)).all()
    others = hits.drop("strong")
    assert others[P_COLUMNS].notna().all(axis=None)
    np.testing.assert_allclose(others["q"], false_discovery_control(others["p"]))


def test_where_no_p_holds_groups_are_ranked_all_the_same() -> None:
    hits = hit_table(screened(MIXED, validity=Validity(reasons=["one control per plate"])))[0]
    assert hits[P_COLUMNS].isna().all(axis=None)
    assert hits["label"].tolist()[:2] == ["strong", "weak"]
    assert hits["rank"].tolist() == [1, 2, 3, 4, 5]


def test_a_group_without_controls_has_no_statistic_and_comes_last() -> None:
    made = screened(MIXED)
    lonely = (made.design.wells["label"] == "strong").to_numpy()
    design = replace(made.design, wells=made.design.wells.assign(block=np.where(lonely, "far", made.design.block)))
    hits, similar = hit_table(replace(made, design=design, validity=Validity(by_label={"strong": "no control"})))
    last = hits.iloc[-1]
    assert (last["label"], last["n_blocks"], last["nearest_groups"]) == ("strong", 0, "")
    assert last[["statistic", "p", "q", "min_p", "effect", "count_effect"]].isna().all()
    assert similar["strong"].isna().all()
    assert similar.drop("strong").drop(columns="strong").notna().all(axis=None)


def test_the_effect_is_the_shift_of_the_mean_code_in_sd_of_replicates() -> None:
    made = screened({"g": {CENTROID: 2.0}}, controls=(10, 10), d=1)
    code = made.views[CENTROID].reshape(2, 11)
    controls = code[:, :-1]
    shift = (code[:, -1] - controls.mean(axis=1)).mean()
    within = ((controls - controls.mean(axis=1, keepdims=True)) ** 2).sum() / 18
    table = hit_table(made)[0]
    assert table["effect"].tolist() == pytest.approx([abs(shift) / np.sqrt(within)])
    assert table["effect_unit"].tolist() == ["replicates"]


def test_of_groups_with_the_same_p_the_one_farther_away_ranks_first() -> None:
    moved = {f"by {by:g}": {CENTROID: by} for by in (2.0, 3.0, 5.0, 10.0, 30.0)}
    statistic = [hit_table(screened({name: each}))[0]["statistic"][0] for name, each in moved.items()]
    assert statistic == sorted(statistic)


def test_labels_without_any_control_in_their_blocks_are_listed_untested() -> None:
    made = screened({"g": {}})
    made = replace(made, calibrating=made.calibrating & False)
    made.validity.by_label["g"] = "no control in its blocks"
    hits, _ = hit_table(made)
    assert hits[["statistic", "p", "effect"]].isna().all(axis=None)
    assert in_words(hits, reasons_table(made), made.validity) == ["no p-value: no control in its blocks"]


def test_a_change_of_cell_number_alone_is_told_from_a_change_of_the_cells() -> None:
    made = screened({"dying": {}, "n": {}}, n_cells={"DMSO": 64, "dying": 16, "n": 64}, n_relabellings=9_999)
    spread_out = made.design.wells["n_cells"].to_numpy() + np.random.default_rng(1).integers(-5, 6, 54)
    made = replace(made, design=replace(made.design, wells=made.design.wells.assign(n_cells=spread_out)))
    hits = hit_table(made)[0].set_index("label")
    assert hits.loc["dying", "p_count"] == pytest.approx(17.0**-3)
    assert hits.loc["dying", "p"] > 0.05
    assert hits.loc["n", "p_count"] > 0.05
    said = verdict(made, hits.reset_index())
    assert said[0].startswith("0 of 2 groups tested leave")
    assert "1 of 2 groups change the number of cells ('dying'), by a test of its own." in said


def test_the_count_effect_is_the_log2_ratio_of_cells_per_replicate() -> None:
    made = screened({"few": {}, "many": {}}, n_cells={"DMSO": 64, "few": 16, "many": 128})
    hits = hit_table(made)[0].set_index("label")
    assert hits.loc[["few", "many"], "count_effect"].tolist() == pytest.approx([-2.0, 1.0])


def test_replicates_of_one_row_each_have_no_cell_number_and_the_verdict_says_so() -> None:
    made = screened(MIXED, n_cells=dict.fromkeys(["DMSO", *MIXED], 1))
    hits = hit_table(made)[0]
    assert hits[["p_count", "q_count", "count_effect", "count_share"]].isna().all(axis=None)
    said = next(each for each in verdict(made, hits) if each.startswith("Every replicate is a single row: cell counts"))
    assert "If rows are cells, name the column of wells" in said
    assert set(reasons_table(made)["kind"]) == {"latent", "variable"}


def test_a_trend_with_dose_is_found_over_three_doses_and_not_sought_over_two() -> None:
    made = screened({
        "up 1": {CENTROID: 2.0}, "up 3": {CENTROID: 10.0}, "up 10": {CENTROID: 20.0}, "flat 1": {}, "flat 3": {},
        "flat 10": {}, "two 1": {}, "two 2": {CENTROID: 9.0},
    })  # fmt: skip
    hits = hit_table(made)[0].set_index("label")
    up, flat, two = (hits[hits["group"] == name] for name in ("up", "flat", "two"))
    assert up["dose_trend"].tolist() == pytest.approx([np.sqrt(0.9)] * 3)  # 9 effects in order, doses tied by threes
    assert (up["p_dose_trend"] < 0.02).all()
    assert (flat["p_dose_trend"] > 0.05).all()
    assert two[["dose_trend", "p_dose_trend"]].isna().all(axis=None)


def test_groups_that_move_alike_are_each_others_nearest_and_opposite_ones_are_far() -> None:
    made = screened({"a": {CENTROID: 4.0}, "b": {CENTROID: 5.0}, "c": {CENTROID: -4.0}})
    hits, similar = hit_table(made)
    nearest = hits.set_index("label")["nearest_groups"]
    assert nearest["a"].startswith("b (0.")
    assert nearest["b"].startswith("a (0.")
    assert "c (-0." in nearest["a"]
    assert similar.index.tolist() == similar.columns.tolist() == hits["label"].tolist()
    np.testing.assert_allclose(np.diag(similar), 1)
    assert similar.loc["a", "b"] > 0.5 > -0.5 > similar.loc["a", "c"]


def test_covariates_are_accounted_for_in_every_view() -> None:
    made = screened({"late": {}, "n": {}})
    rng = np.random.default_rng(0)
    hour = rng.normal(size=54) + np.where(made.design.of("late"), 4.0, 0.0)
    values = {name: each + 2 * hour[:, None] for name, each in made.views.everything.items()}
    made = replace(made, views=replace(made.views, by_level=(values,)))
    known = replace(made, design=replace(made.design, covariates=hour[:, None]))
    blind, aware = (hit_table(each)[0].set_index("label").loc["late"] for each in (made, known))
    assert blind["p"] < 0.01
    assert aware["p"] > 0.05


def test_reasons_name_what_moved_most_with_its_interval_and_its_size_in_its_own_unit() -> None:
    made = screened({"g": {}})
    move = np.array([0.0, 40.0, 0.0, -20.0])
    made.views[CENTROID][made.design.of("g")] += move
    made.variables.loc[made.design.of("g")] += move
    reasons = reasons_table(made)
    latent, variable = (reasons[reasons["kind"] == kind] for kind in ("latent", "variable"))
    assert latent["name"].tolist()[:2] == ["1", "3"]
    assert variable["name"].tolist()[:2] == ["v1", "v3"]
    assert (variable["unit"] == "replicates").all()
    assert ((variable["low"] < variable["effect"]) & (variable["effect"] < variable["high"])).all()
    assert (variable["effect"] * variable["sd"]).tolist()[:2] == pytest.approx([40, -20], abs=2)
    assert reasons.loc[reasons["kind"] == "count", "name"].tolist() == ["log cells"]


def test_groups_without_controls_have_no_reasons_and_the_table_keeps_its_columns() -> None:
    made = screened({"g": {}})
    none = replace(made, calibrating=np.zeros(51, bool))
    assert list(reasons_table(none)) == list(reasons_table(made))
    assert len(reasons_table(none)) == 0


def words(
    p_centroid: float, p_spread: float, share: float = np.nan, validity: Validity | None = None, q: float = 0.01
) -> str:
    hits = pd.DataFrame({
        "label": ["g"], "q": [q], "count_share": [share], "p_centroid": [p_centroid], "p_spread": [p_spread],
        "p_count": [0.001], "p_dose_trend": [0.001],
    })  # fmt: skip
    reasons = pd.DataFrame(
        [("g", "latent", "3", -2.04, "replicates"), ("g", "variable", "area", 1.26, "replicates"),
         ("g", "variable", "DNA", 0.5, "cells"), ("h", "variable", "other", 9.0, "cells")],
        columns=["label", "kind", "name", "effect", "unit"],
    )  # fmt: skip
    return in_words(hits, reasons, validity or Validity())[0]


def test_a_row_says_what_moved_in_which_unit() -> None:
    assert words(0.01, 0.5) == "area +1.3 SD, DNA +0.5 cell SD; latent 3 -2.0 SD"


def test_a_row_says_where_only_another_view_than_the_mean_code_moved() -> None:
    assert words(0.2, 0.01).startswith("mean code unmoved, seen in spread; area")
    assert words(0.2, 0.01, q=0.2).startswith("area")
    for p_centroid, p_spread in ((0.01, 0.01), (0.2, 0.2), (np.nan, np.nan)):
        assert "unmoved" not in words(p_centroid, p_spread)


def test_a_row_says_when_cell_number_explains_most_of_it() -> None:
    assert words(0.01, 0.5, 0.8).endswith("; cell count alone explains 80%")
    assert "cell count" not in words(0.01, 0.5, 0.4)


def test_a_row_says_why_it_has_no_p() -> None:
    assert words(np.nan, np.nan, validity=Validity(by_label={"g": "too few"})).startswith("no p-value: too few; area")


def test_a_group_whose_spread_alone_changed_is_called_and_said_to_have_an_unmoved_mean_code() -> None:
    made = screened({"g": {SPREAD: 4.0}, "n": {}}, n_relabellings=9_999)
    hits = hit_table(made)[0]
    assert hits["label"][0] == "g"
    assert hits["p"][0] < 0.01
    assert hits[f"p_{CENTROID}"][0] > 0.05
    assert in_words(hits, reasons_table(made), made.validity)[0].startswith("mean code unmoved, seen in spread")


@pytest.mark.parametrize(
    ("controls", "n_groups", "said"),
    [
        ((3, 3), 2, "0.062: no group can pass; more controls or more blocks are needed."),
        ((4, 4), 3, "0.04: with 3 groups tested one alone cannot pass, 3 or more together can."),
        ((16, 16, 16), 5, "0.0002: even one group alone could pass."),
    ],
)
def test_the_verdict_says_what_the_design_can_attain(controls: tuple[int, ...], n_groups: int, said: str) -> None:
    made = screened({f"g{i}": {} for i in range(n_groups)}, controls=controls, n_relabellings=9_999)
    assert f"The smallest p that this design can give is {said}" in verdict(made, hit_table(made)[0])


@pytest.mark.parametrize("n", [3, 7, 20, 100])
@pytest.mark.parametrize("least", [0.04, 0.01, 1 / 289])
def test_as_many_groups_as_the_verdict_names_can_pass_together_and_one_fewer_cannot(n: int, least: float) -> None:
    hits = pd.DataFrame({"label": "g", "p": np.ones(n), "q": 1.0, "min_p": least, "q_count": np.nan})
    said = next(each for each in verdict(screened({"g": {}}), hits) if each.startswith("The smallest p"))
    together = int(said.split("cannot pass, ")[1].split()[0]) if "together" in said else 1
    for k, passes in ((together, True), (together - 1, False)):
        p = np.append(np.full(k, least), np.ones(n - k))
        assert (false_discovery_control(p) <= 0.05).any() == passes


def test_a_verdict_without_p_values_gives_the_reason_and_counts_no_hits() -> None:
    made = screened(MIXED, validity=Validity(reasons=["one control per plate"], remarks=["Mind the edges."]))
    said = verdict(made, hit_table(made)[0])
    assert said[0].startswith("No p-values: one control per plate. Groups are ranked")
    assert said[-1] == "Mind the edges."
    assert not any("leave the control distribution" in each or "smallest p" in each for each in said)


def test_a_verdict_counts_hits_names_groups_without_p_and_gives_the_rate_of_poses() -> None:
    found = Validity(
        by_label={"n1": "alone"}, calibration=pd.DataFrame(index=range(200)), rate=0.06, low=0.03, high=0.1
    )
    made = screened(MIXED, validity=found, n_relabellings=9_999, seed=1)
    said = verdict(made, hit_table(made)[0])
    assert said[0] == "2 of 4 groups tested leave the control distribution at a false discovery rate of 0.05."
    assert "No p-value for 1 of 5 groups ('n1'); column 'why' tells the reason." in said
    rate = "reach p <= 0.05 in 6.0% of 200 poses (95 % interval 3.0% to 10.0%; 5 % expected)"
    assert any(rate in each for each in said)
