"""Which cells make a replicate, and which tables of cells cannot say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from latentcell.errors import InputError
from latentcell.tl.design import Design, read_design

KEYS: dict[str, Any] = {"group": "drug", "control": "DMSO", "replicate": "well"}


def table(**columns: Any) -> AnnData:
    frame = pd.DataFrame(columns)
    return AnnData(obs=frame.set_axis([f"c{i}" for i in range(len(frame))]))


def screen() -> AnnData:
    """Two plates with wells of the same names; well B02 is DMSO on one and drug x on the other."""
    wells = [
        ("p1", "A01", "DMSO", 0.0, 2), ("p1", "A02", "DMSO", 0.0, 3), ("p1", "B01", "x", 1.5, 1),
        ("p1", "B02", "x", 3.0, 4), ("p2", "A01", "DMSO", 0.0, 1), ("p2", "B01", "x", 1.5, 2),
        ("p2", "B02", "DMSO", 0.0, 2), ("p2", "C12", "y", 3.0, 3),
    ]  # fmt: skip
    rows = [each[:4] for each in wells for _ in range(each[4])]
    frame = pd.DataFrame(rows, columns=["plate", "well", "drug", "dose"])
    return table(**frame, n=np.arange(len(frame)))


def read(cells: AnnData, **given: Any) -> Design:
    return read_design(cells, **KEYS | {"block": "plate"} | given)


def test_cells_are_gathered_into_wells_with_their_numbers_groups_and_plates() -> None:
    found = read(screen())
    wells = found.wells
    assert wells["block"].tolist() == ["p1"] * 4 + ["p2"] * 4
    assert wells["replicate"].tolist() == ["A01", "A02", "B01", "B02", "A01", "B01", "B02", "C12"]
    assert wells["group"].tolist() == wells["label"].tolist() == ["DMSO", "DMSO", "x", "x", "DMSO", "x", "DMSO", "y"]
    assert wells["n_cells"].tolist() == [2, 3, 1, 4, 1, 2, 2, 3]
    assert (
        wells["is_control"].tolist() == found.control.tolist() == [True, True, False, False, True, False, True, False]
    )
    assert wells["dose"].isna().all()
    assert found.well.tolist() == np.repeat(np.arange(8), wells["n_cells"]).tolist()
    assert found.labels == ["x", "y"]
    assert not found.paired


def test_a_dose_makes_a_label_of_its_own_and_controls_have_none() -> None:
    found = read(screen(), dose="dose")
    assert found.labels == ["x 1.5", "x 3", "y 3"]
    assert found.wells["label"].tolist() == ["DMSO", "DMSO", "x 1.5", "x 3", "DMSO", "x 1.5", "DMSO", "y 3"]
    assert found.wells.loc[found.control, "dose"].isna().all()
    assert found.wells.loc[~found.control, "dose"].tolist() == [1.5, 3.0, 1.5, 3.0]
    assert found.of("x 1.5").tolist() == [False, False, True, False, False, True, False, False]


def test_wells_of_the_same_name_on_two_plates_are_two_replicates() -> None:
    found = read(screen())
    plan = found.layout("x", found.control)
    assert [rows.tolist() for rows in plan.rows] == [[2, 3, 0, 1], [5, 4, 6]]
    assert plan.n_treated == (2, 1)


def test_controls_that_do_not_calibrate_are_no_part_of_a_layout() -> None:
    found = read(screen())
    calibrating = found.control & (np.arange(8) != 0)
    assert [rows.tolist() for rows in found.layout("x", calibrating).rows] == [[2, 3, 1], [5, 4, 6]]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_cells_changes_the_order_of_the_wells_and_nothing_else(seed: int) -> None:
    given: dict[str, Any] = {"dose": "dose", "position": ["well"], "covariates": ["n", "drug"]}
    order = np.random.default_rng(seed).permutation(screen().n_obs)
    cells = screen()
    straight, shuffled = read(cells, **given), read(cells[order].copy(), **given)
    identity = ["block", "replicate"]
    first, second = (
        pd.concat([each.wells, pd.DataFrame(each.covariates).add_prefix("covariate_")], axis=1)
        .sort_values(identity)
        .reset_index(drop=True)
        for each in (straight, shuffled)
    )
    pd.testing.assert_frame_equal(first, second)
    of_cell = [each.wells[identity].iloc[each.well].to_numpy() for each in (straight, shuffled)]
    assert (of_cell[0][order] == of_cell[1]).all()


def test_names_that_recur_across_plates_are_refused_and_the_plate_column_is_named() -> None:
    cells = screen()
    cells = cells[cells.obs["well"] != "B02"].copy()
    with pytest.raises(InputError, match=r"well 'A01' occurs at several levels of 'plate'.*Give block='plate'"):
        read(cells, block=None)


def test_a_replicate_with_two_groups_is_refused_with_the_advice_that_fits() -> None:
    cells = screen()
    with pytest.raises(
        InputError, match=r"1 replicates hold cells of several groups, such as 'B02' .*'x', 'DMSO'"
    ) as e:
        read(cells, block=None)
    assert "name those with block" in str(e.value)
    cells.obs.loc["c0", "drug"] = "y"
    with pytest.raises(
        InputError,
        match=r"such as 'A01' of plate 'p1' \('y', 'DMSO'\).*If every well has an arm of each, give block='well' too",
    ):
        read(cells)


def test_the_group_as_replicate_is_refused() -> None:
    with pytest.raises(InputError, match="replicate and group are the same column, 'drug'"):
        read(screen(), replicate="drug")


def test_a_well_with_two_doses_is_refused() -> None:
    cells = screen()
    cells.obs.loc["c6", "dose"] = 9.0
    with pytest.raises(InputError, match=r"'B02' of plate 'p1' \('x 9', 'x 3'\)"):
        read(cells, dose="dose")
    assert len(read(cells).wells) == 8


def test_names_that_do_not_recur_need_no_block() -> None:
    cells = table(well=list("aabbcc"), drug=["DMSO"] * 4 + ["x"] * 2, plate=["p1"] * 4 + ["p2"] * 2)
    found = read(cells, block=None)
    assert found.wells["block"].tolist() == ["all"] * 3
    assert found.wells["n_cells"].tolist() == [2, 2, 2]


def test_an_unknown_control_is_refused_and_the_levels_are_listed() -> None:
    with pytest.raises(InputError, match=r"'drug' equal to 'water'; levels present \(cells\): DMSO \(8\), x \(7\)"):
        read(screen(), control="water")


def test_a_control_named_by_a_number_is_found_among_numbers() -> None:
    found = read_design(table(well=list("abcd"), drug=[0, 0, 1, 2]), group="drug", control="0", replicate="well")
    assert found.control.tolist() == [True, True, False, False]


@pytest.mark.parametrize("key", ["drug", "well", "plate"])
def test_cells_without_a_group_a_replicate_or_a_block_are_refused_by_name(key: str) -> None:
    cells = screen()
    cells.obs.loc[["c4", "c7"], key] = None
    with pytest.raises(InputError, match=rf"obs\['{key}'\] is empty for 2 cells \('c4', 'c7'\).*which {key} they"):
        read(cells)


def test_a_missing_column_is_refused_and_those_present_are_listed() -> None:
    with pytest.raises(InputError, match=r"no column 'batch'; columns of obs: 'plate', 'well', 'drug'"):
        read(screen(), block="batch")


def test_doses_that_are_no_numbers_are_refused() -> None:
    cells = screen()
    cells.obs["dose"] = ["low"] * cells.n_obs
    with pytest.raises(InputError, match=r"obs\['dose'\] holds no numbers"):
        read(cells, dose="dose")


def test_treated_cells_without_a_dose_are_refused_by_name_and_controls_need_none() -> None:
    cells = screen()
    cells.obs.loc[cells.obs["drug"] == "DMSO", "dose"] = np.nan
    assert read(cells, dose="dose").labels == ["x 1.5", "x 3", "y 3"]
    cells.obs.loc["c5", "dose"] = np.nan
    with pytest.raises(InputError, match=r"obs\['dose'\] is empty or infinite for 1 treated cells \('c5'\)"):
        read(cells, dose="dose")


@pytest.mark.parametrize(
    ("name", "place"),
    [("B07", (2, 7)), ("A1", (1, 1)), ("p24", (16, 24)), ("AF048", (32, 48)), ("Z10", (26, 10)), ("AA1", (27, 1))],
)
def test_names_of_wells_are_places_on_the_plate(name: str, place: tuple[int, int]) -> None:
    cells = table(well=["a", "b"], drug=["DMSO", "x"], place=[name, "A01"])
    for position in ("place", ["place"]):
        found = read(cells, block=None, position=position)
        assert found.has_positions
        assert found.wells[["row", "column"]].to_numpy().tolist() == [list(place), [1, 1]]


def test_two_columns_of_numbers_are_places_numbers_as_text_too() -> None:
    cells = table(well=list("aabc"), drug=["DMSO"] * 2 + ["x"] * 2, r=["3", "3", "1", "2"], c=[4, 4, 5, 12])
    found = read(cells, block=None, position=["r", "c"])
    assert found.wells[["row", "column"]].to_numpy().tolist() == [[3, 4], [1, 5], [2, 12]]


def test_replicates_that_are_all_named_as_places_stand_there_unless_places_are_given() -> None:
    cells = screen()
    expected = [[1, 1], [1, 2], [2, 1], [2, 2], [1, 1], [2, 1], [2, 2], [3, 12]]
    assert read(cells).wells[["row", "column"]].to_numpy().tolist() == expected
    cells.obs["r"], cells.obs["c"] = 5, 6
    assert read(cells, position=["r", "c"]).wells[["row", "column"]].to_numpy().tolist() == [[5, 6]] * 8
    cells.obs["well"] = cells.obs["well"].replace("C12", "blank")
    assert not read(cells).has_positions


@pytest.mark.parametrize("name", ["7B", "B", "ABC1", "B-7", "", "nowhere"])
def test_names_that_are_no_place_are_refused_with_an_example(name: str) -> None:
    cells = table(well=list("abc"), drug=["DMSO", "DMSO", "x"], place=["A01", name, "A02"])
    with pytest.raises(InputError, match=rf"obs\['place'\] holds '{name}', which is no place on a plate"):
        read(cells, block=None, position="place")


@pytest.mark.parametrize("wrong", [["1", "one", "2"], [1, None, 2]])
def test_rows_and_columns_that_are_no_numbers_are_refused(wrong: list[Any]) -> None:
    cells = table(well=list("abc"), drug=["DMSO", "DMSO", "x"], r=[1, 2, 3], c=wrong)
    with pytest.raises(InputError, match=r"obs\['c'\] does not hold a number for every cell"):
        read(cells, block=None, position=["r", "c"])


def test_where_the_block_is_the_replicate_each_donor_has_an_arm_of_every_group() -> None:
    cells = table(donor=list("aaaabbb"), drug=["DMSO", "DMSO", "x", "y", "x", "DMSO", "x"])
    found = read_design(cells, group="drug", control="DMSO", replicate="donor", block="donor")
    assert found.paired
    assert found.wells[["block", "label", "n_cells"]].to_numpy().tolist() == [
        ["a", "DMSO", 2], ["a", "x", 1], ["a", "y", 1], ["b", "x", 2], ["b", "DMSO", 1]
    ]  # fmt: skip
    plan = found.layout("x", found.control)
    assert [rows.tolist() for rows in plan.rows] == [[1, 0], [3, 4]]


def test_every_dose_is_an_arm_of_a_donor() -> None:
    cells = table(donor=list("aaabbb"), drug=["DMSO", "x", "x"] * 2, dose=[0, 1, 10] * 2)
    found = read_design(cells, group="drug", control="DMSO", replicate="donor", block="donor", dose="dose")
    assert found.labels == ["x 1", "x 10"]
    assert len(found.wells) == 6


def test_a_screen_of_controls_only_is_refused() -> None:
    cells = table(well=list("abc"), drug=["DMSO"] * 3)
    with pytest.raises(InputError, match=r"All cells are controls \('drug' is 'DMSO'\)"):
        read(cells, block=None)


def test_covariates_are_averaged_over_the_cells_of_each_replicate() -> None:
    cells = table(
        well=list("aabbc"), drug=["DMSO"] * 4 + ["x"], size=[1.0, 3, 5, 5, 8], phase=["G1", "S", "G1", "G1", "M"]
    )
    assert read(cells, block=None).covariates.shape == (3, 0)
    one = read(cells, block=None, covariates="size").covariates
    np.testing.assert_allclose(_in_units(one), _in_units(np.array([[2.0], [5], [8]])))
    both = read(cells, block=None, covariates=["size", "phase"]).covariates
    expected = np.array([[2, 0, 0.5], [5, 0, 0], [8, 1, 0]])
    np.testing.assert_allclose(_in_units(both), _in_units(expected))


def _in_units(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def test_covariates_must_be_known_of_every_cell() -> None:
    cells = table(well=list("abc"), drug=["DMSO", "DMSO", "x"], size=[1.0, np.nan, 2], phase=["G1", None, "S"])
    with pytest.raises(InputError, match=r"obs\['size'\] has empty cells"):
        read(cells, block=None, covariates=["size"])
    with pytest.raises(InputError, match=r"obs\['phase'\] is empty for 1 cells \('c1'\)"):
        read(cells, block=None, covariates=["phase"])
