"""Designs and layouts that cannot give p-values are told so, and controls pose as perturbations fairly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from latentcell.stats.exchangeability import rejection_interval
from latentcell.stats.relabelling import Layout, Relabelled
from latentcell.tl.calibrate import Validity, check_design, check_layout, pose_controls
from latentcell.tl.design import Design
from latentcell.tl.screened import Screened
from latentcell.tl.wells import CENTROID, Views

PLATE = np.array([(row, column) for column in range(1, 13) for row in range(1, 9)], float)


def design(
    blocks: Mapping[str, Mapping[str, int]], places: np.ndarray | None = None, *, paired: bool = False
) -> Design:
    """Replicates of each label in each block; ``DMSO`` is the control."""
    rows = [(name, label) for name, sizes in blocks.items() for label, m in sizes.items() for _ in range(m)]
    wells = pd.DataFrame(rows, columns=["block", "label"])
    wells["group"], wells["dose"], wells["n_cells"] = wells["label"], np.nan, 20
    wells["is_control"] = wells["label"] == "DMSO"
    wells["replicate"] = wells["block"] if paired else [f"replicate {i}" for i in range(len(wells))]
    if places is not None:
        wells["row"], wells["column"] = places.T
    return Design(wells, np.repeat(np.arange(len(wells)), 20), np.empty((len(wells), 0)), paired)


def checked(blocks: Mapping[str, Mapping[str, int]], *, split_within: bool = False, paired: bool = False) -> Validity:
    found = design(blocks, paired=paired)
    return check_design(found, found.control, split_within=split_within)


def test_a_design_with_controls_and_replicates_enough_has_nothing_against_it() -> None:
    found = checked({"p": {"DMSO": 4, "x": 1, "y": 2}, "q": {"DMSO": 4, "x": 1}})
    assert (found.reasons, found.by_label, found.remarks) == ([], {}, [])
    assert found.holds("x")


def test_plates_of_a_single_control_well_each_leave_no_p_value_and_are_named() -> None:
    found = checked({"p": {"DMSO": 1, "x": 1}, "q": {"DMSO": 1, "x": 1}})
    assert len(found.reasons) == 1
    assert "the blocks ('p', 'q') have a single control replicate each" in found.reasons[0]
    assert not found.holds("x")


def test_one_plate_of_a_single_control_among_others_does_no_harm() -> None:
    assert checked({"p": {"DMSO": 4, "x": 1}, "q": {"DMSO": 1, "x": 1}}).reasons == []


def test_a_single_control_beside_no_perturbation_does_no_harm() -> None:
    assert checked({"p": {"DMSO": 4, "x": 2}, "q": {"DMSO": 1}}).reasons == []


def test_blocks_without_controls_are_remarked_and_a_label_that_is_only_there_has_no_p_value() -> None:
    found = checked({"p": {"DMSO": 4, "x": 1}, "q": {"DMSO": 4, "x": 1}, "r": {"x": 1, "y": 3}})
    assert found.reasons == []
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("1 of 3 blocks have no control ('r')")
    assert found.by_label == {"y": "no control in its blocks"}
    assert (found.holds("x"), found.holds("y")) == (True, False)


def test_a_label_whose_controls_all_trained_has_no_p_value() -> None:
    blocks = design({"p": {"DMSO": 4, "x": 2}, "q": {"DMSO": 4, "y": 2}})
    calibrating = blocks.control & (blocks.block == "p")
    found = check_design(blocks, calibrating, split_within=False)
    assert found.by_label == {"y": "no control in its blocks"}
    assert found.reasons == []
    assert found.remarks[0].startswith("1 of 2 blocks have no control that the model has not seen ('q')")


def test_a_label_of_a_single_replicate_has_no_p_value() -> None:
    found = checked({"p": {"DMSO": 4, "x": 1, "y": 1}, "q": {"DMSO": 4, "y": 1}})
    assert list(found.by_label) == ["x"]
    assert "a single replicate" in found.by_label["x"]
    assert found.reasons == []


def test_donors_with_one_control_arm_each_are_a_design_unless_that_arm_trained_too() -> None:
    donors = {name: {"DMSO": 1, "x": 1} for name in "abcdef"}
    assert checked(donors, paired=True).reasons == []
    found = checked(donors, paired=True, split_within=True)
    assert len(found.reasons) == 1
    assert "every block has a single control arm, which had to train the model" in found.reasons[0]
    assert "fitted on other controls" in found.reasons[0]


def test_controls_that_train_by_half_of_their_cells_leave_no_p_value() -> None:
    found = checked({"p": {"DMSO": 1, "x": 1}, "q": {"DMSO": 1, "x": 1}}, split_within=True)
    assert len(found.reasons) == 1
    assert "the blocks ('p', 'q') have a single control replicate each" in found.reasons[0]


def test_replicates_of_one_name_and_treatment_in_several_blocks_may_be_the_same_animals() -> None:
    once = design({name: {"DMSO": 3, "x": 2} for name in "pq"})
    again = replace(once, wells=once.wells.assign(replicate=np.tile([f"mouse {i}" for i in range(5)], 2)))
    found = check_design(again, again.control, split_within=False)
    assert len(found.reasons) == 1
    assert "'mouse 0'" in found.reasons[0]
    other = np.append(again.wells["replicate"][:5], [f"mouse {i}" for i in (3, 4, 0, 1, 2)])
    moved = replace(once, wells=once.wells.assign(replicate=other))
    placed = replace(again, wells=again.wells.assign(row=1.0, column=np.tile(np.arange(5.0), 2)))
    for each in (once, moved, placed):
        assert check_design(each, each.control, split_within=False).reasons == []


PLATES = {name: {"DMSO": 16} | {f"g{i}": 1 for i in range(24)} for name in "abc"}


def laid_out(kind: str, rng: np.random.Generator) -> Design:
    """Three plates of 16 controls and 24 groups, at random, each group at its place, or everything in a row."""
    fixed = rng.permutation(96)[:40]
    spots = {"random": lambda: rng.permutation(96)[:40], "kept": lambda: fixed, "in a row": lambda: np.arange(40)}
    return design(PLATES, PLATE[np.concatenate([spots[kind]() for _ in range(3)])])


def judged(kind: str, *, place_effect: float, seed: int = 0) -> Validity:
    rng = np.random.default_rng(seed)
    found, said = laid_out(kind, rng), Validity()
    column = found.wells["column"].to_numpy(float)
    values = rng.normal(size=(len(found.wells), 4)) + place_effect * column[:, None]
    check_layout(said, found, values, found.control, rng=rng)
    return said


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("place_effect", [0.0, 0.5])
def test_random_places_are_accepted_even_where_places_have_an_effect(place_effect: float, seed: int) -> None:
    said = judged("random", place_effect=place_effect, seed=seed)
    assert (said.reasons, said.remarks) == ([], [])


@pytest.mark.parametrize("place_effect", [0.0, 0.5])
def test_controls_in_columns_of_their_own_leave_no_p_value(place_effect: float) -> None:
    said = judged("in a row", place_effect=place_effect)
    assert len(said.reasons) == 1
    assert "controls stand at places of their own" in said.reasons[0]


def test_groups_that_keep_their_place_leave_no_p_value_where_places_have_an_effect_on_controls() -> None:
    said = judged("kept", place_effect=0.5)
    assert len(said.reasons) == 1
    assert "place and perturbation cannot be told apart" in said.reasons[0]
    assert said.remarks == []


def test_groups_that_keep_their_place_are_remarked_where_no_place_has_an_effect() -> None:
    said = judged("kept", place_effect=0.0)
    assert said.reasons == []
    assert len(said.remarks) == 1
    assert "p-values assume that places have no effect" in said.remarks[0]


def test_an_effect_of_the_place_on_treated_replicates_alone_is_not_held_against_the_layout() -> None:
    rng, said = np.random.default_rng(0), Validity()
    found = laid_out("kept", rng)
    values = rng.normal(size=(120, 4)) + np.where(found.control, 0.0, found.wells["column"])[:, None]
    check_layout(said, found, values, found.control, rng=rng)
    assert said.reasons == []


def test_a_layout_that_is_not_known_is_remarked() -> None:
    said, found = Validity(), design({name: {"DMSO": 4, "x": 1} for name in "pq"})
    check_layout(said, found, np.zeros((10, 2)), found.control, rng=np.random.default_rng(0))
    assert said.reasons == []
    assert len(said.remarks) == 1
    assert "the layout was not checked" in said.remarks[0]


def screened(found: Design, code: np.ndarray, calibrating: np.ndarray | None = None, kind: Any = Screened) -> Any:
    n_cells = found.wells["n_cells"].to_numpy()
    return kind(
        design=found,
        views=Views(n_cells, np.arange(code.shape[1]), (20,), ({CENTROID: code},)),
        variables=pd.DataFrame(code),
        variable_sd=np.ones(code.shape[1]),
        calibrating=found.control if calibrating is None else calibrating,
        validity=Validity(),
        n_relabellings=99,
        seed=0,
    )


class Recording(Screened):
    """Keeps what each pose was tested on, and calls none."""

    asked: list[tuple[Layout, np.ndarray]]

    def joint_test(self, plan: Layout, control: np.ndarray | None = None) -> tuple[Relabelled, list[str]]:
        assert control is not None
        Recording.asked.append((plan, control))
        return Relabelled(1.0, 0.5, 0.01, np.full(1, 0.5), np.ones(1)), [CENTROID]


def poses(
    found: Design, calibrating: np.ndarray | None = None
) -> tuple[list[tuple[list[int], Layout, np.ndarray]], Any]:
    """Rows that pose, layout and calibrating controls of every pose."""
    Recording.asked = []
    recorded = screened(found, np.zeros((len(found.wells), 1)), calibrating, Recording)
    pose_controls(recorded, rng=np.random.default_rng(0))
    posing = [
        [int(i) for rows, m in zip(plan.rows, plan.n_treated, strict=True) for i in rows[:m]]
        for plan, _ in Recording.asked
    ]
    return [(each, *asked) for each, asked in zip(posing, Recording.asked, strict=True)], recorded.validity


@pytest.mark.parametrize("placed", [False, True])
def test_no_control_poses_and_calibrates_at_once_and_those_that_trained_do_neither(placed: bool) -> None:
    blocks = {name: {"DMSO": 8, "x": 1, "y": 2} for name in "abc"}
    rng = np.random.default_rng(1)
    places = np.concatenate([PLATE[rng.permutation(96)[:11]] for _ in range(3)]) if placed else None
    found = design(blocks, places)
    calibrating = found.control & (np.arange(33) % 11 > 1)
    posed, said = poses(found, calibrating)
    assert len(posed) == len(said.calibration) == 8 * calibrating.sum()
    for (posing, plan, control), like in zip(posed, said.calibration["like"], strict=True):
        assert not control[posing].any()
        assert sorted([*posing, *np.flatnonzero(control)]) == np.flatnonzero(calibrating).tolist()
        assert plan.n_treated == ((1, 1, 1) if like == "x" else (2, 2, 2))
        assert found.block[posing].tolist() == np.repeat(list("abc"), plan.n_treated).tolist()
    assert set(said.calibration["like"]) == {"x", "y"}
    assert {posing[0] for posing, _, _ in posed} == set(np.flatnonzero(calibrating & (found.block == "a")))


def test_poses_lie_to_each_other_as_the_wells_of_a_perturbation_do() -> None:
    grid = PLATE[(PLATE[:, 0] <= 6) & (PLATE[:, 1] <= 6)]
    x, y = np.array([[7.0, 7]]), np.array([[8.0, 7], [8, 8]])
    blocks = {name: {"DMSO": 36, "x": 1, "y": 2} for name in "abc"}
    places = np.concatenate([part for _ in range(3) for part in (grid, x, y)])
    found = design(blocks, places)
    posed, said = poses(found)
    for (posing, _, _), like in zip(posed, said.calibration["like"], strict=True):
        here = places[posing].reshape(3, -1, 2)
        assert (here == here[0]).all()
        if like == "y":
            assert np.abs(here[0, 1] - here[0, 0]).sum() == 1
    assert len({posing[0] for posing, _, _ in posed}) > 20


def test_poses_are_drawn_at_random_where_no_place_is_known() -> None:
    posed, _ = poses(design({name: {"DMSO": 8, "x": 1} for name in "ab"}))
    pairs = {tuple(posing) for posing, _, _ in posed}
    assert len(pairs) > 40


def test_labels_with_more_wells_than_controls_can_spare_are_not_posed_for() -> None:
    found = design({name: {"DMSO": 4, "x": 1, "y": 4} for name in "ab"})
    assert set(poses(found)[1].calibration["like"]) == {"x"}


@pytest.mark.parametrize("blocks", [{"p": {"DMSO": 2, "x": 2}}, {name: {"DMSO": 1, "x": 1} for name in "abcd"}])
def test_where_no_control_can_be_spared_the_calibration_is_empty_and_that_is_said(blocks: dict) -> None:
    posed, said = poses(design(blocks, paired=len(blocks) > 1))
    assert posed == []
    assert list(said.calibration) == ["pose", "like", "n_wells", "statistic", "p"]
    assert len(said.calibration) == 0
    assert np.isnan([said.rate, said.low, said.high]).all()
    assert said.remarks == ["There are too few controls to pose as perturbations: the calibration was not checked."]


def in_place(columns: Sequence[float], rng: np.random.Generator) -> tuple[Design, np.ndarray]:
    """Plates alike: 16 controls in `columns` and one perturbation, and codes that rise along columns."""
    places = np.tile(np.array([(1.0, c) for c in columns]), (3, 1))
    found = design({name: {"DMSO": len(columns) - 1, "x": 1} for name in "abc"}, places)
    return found, places[:, 1:] + 0.01 * rng.normal(size=(len(places), 3))


def test_controls_that_differ_by_place_are_called_when_they_pose_in_a_perturbations_places() -> None:
    found, code = in_place(np.arange(1.0, 18), np.random.default_rng(0))
    measured = screened(found, code)
    pose_controls(measured, rng=np.random.default_rng(0))
    said = measured.validity
    assert 0.05 < said.low < said.rate < said.high
    assert len(said.reasons) == 1
    assert "the controls are not exchangeable within their blocks" in said.reasons[0]
    assert not said.holds("x")


def test_exchangeable_controls_are_called_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    found, _ = in_place(np.arange(1.0, 18), rng)
    measured = screened(found, rng.normal(size=(51, 3)))
    pose_controls(measured, rng=rng)
    said, table = measured.validity, measured.validity.calibration
    assert said.reasons == []
    assert said.remarks == []
    assert said.low <= 0.05 <= said.high
    assert (said.low, said.high) == rejection_interval(said.rate, 48 / 3)  # poses of 3 of the 48 controls
    assert said.rate == (table["p"] <= 0.05).mean()
    assert list(table) == ["pose", "like", "n_wells", "statistic", "p"]
    assert table["pose"].tolist() == list(range(200))
    assert set(table["n_wells"]) == {3}
    assert set(table["like"]) == {"x"}
    assert table["p"].between(0.01, 1).all()


def test_controls_that_differ_by_place_pass_where_poses_are_drawn_at_random() -> None:
    found, code = in_place(np.arange(1.0, 18), np.random.default_rng(0))
    measured = screened(replace(found, wells=found.wells.drop(columns=["row", "column"])), code)
    pose_controls(measured, rng=np.random.default_rng(0))
    assert measured.validity.reasons == []


def test_a_label_of_which_a_single_replicate_has_controls_beside_it_has_no_p_value() -> None:
    found = checked({"p": {"DMSO": 4, "x": 1, "y": 2}, "q": {"x": 1}})
    assert "a single replicate" in found.by_label["x"]
    assert "y" not in found.by_label
