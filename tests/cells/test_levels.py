from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from latentcell.cells.levels import column, level_rows, ordered_levels, times
from latentcell.errors import InputError


def cells_with(values: Any) -> AnnData:
    obs = pd.DataFrame({"key": values}, index=[f"c{i}" for i in range(len(values))])
    return AnnData(obs=obs)


NUMBERS: list[tuple[str, Any]] = [
    ("text", ["0", "2.5", "10"]),
    ("categories of text", pd.Categorical(["0", "2.5", "10"])),
    ("categories of numbers", pd.Categorical([0.0, 2.5, 10.0])),
    ("numbers", [0.0, 2.5, 10.0]),
    ("pandas strings", pd.array(["0", "2.5", "10"], dtype="string")),
    ("nullable numbers", pd.array([0.0, 2.5, 10.0], dtype="Float64")),
]


@pytest.mark.parametrize("values", [v for _, v in NUMBERS], ids=[name for name, _ in NUMBERS])
def test_numbers_are_times_however_they_are_stored(values: Any) -> None:
    found = times(cells_with(values), "key")
    assert found is not None
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [0.0, 2.5, 10.0])


@pytest.mark.parametrize(
    "values",
    [
        ["1", None, "2"],
        pd.Categorical(["1", None, "2"]),
        pd.Categorical([1, None, 2]),
        [1.0, np.nan, 2.0],
        pd.array([1, None, 2], dtype="Int64"),
        pd.array(["1", None, "2"], dtype="string"),
    ],
)
def test_a_missing_time_is_nan_and_no_cell_of_it_is_at_any_level(values: Any) -> None:
    cells = cells_with(values)
    np.testing.assert_array_equal(times(cells, "key"), [1.0, np.nan, 2.0])
    assert ordered_levels(cells, "key") == [1.0, 2.0]
    with pytest.raises(InputError, match="No cell has 'key' equal to nan"):
        level_rows(cells, "key", float("nan"))


@pytest.mark.parametrize(
    "values",
    [
        ["1", "two", "3"],
        ["", "1", "2"],
        ["day 1", "day 2", "day 3"],
        [True, False, True],
        pd.array([True, None, False], dtype="boolean"),
        pd.Categorical([True, False, True]),
        [None, None, None],
        pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]),
    ],
)
def test_mixed_text_truth_values_dates_and_empty_columns_are_names_not_times(values: Any) -> None:
    assert times(cells_with(values), "key") is None


def test_truth_values_are_levels_by_name() -> None:
    cells = cells_with([True, False, True])
    assert level_rows(cells, "key", True).tolist() == level_rows(cells, "key", "True").tolist() == [0, 2]


@pytest.mark.parametrize("level", [2, 2.0, "2", "2.0", np.float32(2), np.int64(2), " 2 "])
@pytest.mark.parametrize("values", [[2, 4, 2], ["2", "4", "2.0"], pd.Categorical(["2", "4", "2"])])
def test_numeric_levels_are_compared_as_numbers(values: Any, level: Any) -> None:
    assert level_rows(cells_with(values), "key", level).tolist() == [0, 2]


def test_in_a_column_of_names_a_number_is_a_name() -> None:
    cells = cells_with(["1", "1.0", "control"])
    assert level_rows(cells, "key", "1").tolist() == level_rows(cells, "key", 1).tolist() == [0]


def test_a_missing_name_is_not_the_level_nan() -> None:
    cells = cells_with(pd.Categorical(["a", None, "b"]))
    with pytest.raises(InputError, match="equal to 'nan'"):
        level_rows(cells, "key", "nan")


def test_unknown_levels_are_refused_with_those_present_and_their_cells() -> None:
    cells = cells_with(pd.Categorical(["a", "b", "b"], categories=["unused", "b", "a"]))
    with pytest.raises(InputError, match=r"equal to 'c'; levels present \(cells\): b \(2\), a \(1\)\."):
        level_rows(cells, "key", "c")


def test_unknown_columns_are_refused_with_those_present() -> None:
    with pytest.raises(InputError, match=r"no column 'day'; columns of obs: 'key'\."):
        column(cells_with([1]), "day")
    with pytest.raises(InputError, match="columns of obs: none"):
        column(AnnData(np.zeros((2, 1))), "day")


def test_numbers_stored_as_text_are_ordered_by_size() -> None:
    assert ordered_levels(cells_with(["10", "9", "2"]), "key") == [2.0, 9.0, 10.0]


def test_ordered_categories_keep_their_order_and_leave_out_unused_ones() -> None:
    values = pd.Categorical(["late", "early", None], categories=["early", "never", "late"], ordered=True)
    assert ordered_levels(cells_with(values), "key") == ["early", "late"]


@pytest.mark.parametrize("values", [["b", "a", None], pd.Categorical(["b", "a", "a"]), [True, False, True]])
def test_names_without_an_order_are_refused_with_how_to_order_them(values: Any) -> None:
    with pytest.raises(InputError, match=r"names without an order.*ordered=True"):
        ordered_levels(cells_with(values), "key")


@given(st.lists(st.sampled_from([0, 0.5, 3, 12]), min_size=1, max_size=20))
def test_the_levels_divide_the_cells(values: list[float]) -> None:
    cells = cells_with([f"{each:g}" for each in values])
    rows = [level_rows(cells, "key", level) for level in ordered_levels(cells, "key")]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(values)))
