"""Columns of obs as factors: which kind they are taken for, and what is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import latentcell as lc
from latentcell.cells.factors import read_factors, read_nuisance, refuse_inseparable
from latentcell.cells.levels import times
from latentcell.errors import InputError
from latentcell.stats.factor import Factor


def cells_with(**columns: Any) -> AnnData:
    n = len(next(iter(columns.values())))
    return AnnData(obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(n)]))


def read(values: Any, kind: str = "", *, varying: bool = False) -> Factor:
    """The column `values` read as a factor named key, however little it varies."""
    return read_factors(cells_with(key=values), [f"key:{kind}" if kind else "key"], varying=varying)[0]


def ordered(values: list[Any], categories: list[Any]) -> pd.Categorical:
    return pd.Categorical(values, categories=categories, ordered=True)


def check(factor: Factor, kind: str, value: list[float], levels: tuple[str, ...] = ()) -> None:
    assert (factor.kind, factor.levels) == (kind, levels)
    np.testing.assert_allclose(factor.value, value, rtol=1e-12)
    assert factor.value.dtype == np.float64


STAGES = ["M", "G1", None, "S", "G1", "M"]
ORDER = ["G1", "S", "G2", "M"]

# which kind a column is taken for


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 3, np.nan, 0.5],
        ["0.5", "3", None, "0.5"],
        pd.Categorical(["0.5", "3.0", None, "0.5"]),
        pd.Categorical([0.5, 3, None, 0.5]),
        pd.array([0.5, 3, None, 0.5], dtype="Float32"),
        pd.array(["0.5", "3", None, "0.5"], dtype="string"),
    ],
    ids=["numbers", "text", "categories of text", "categories of numbers", "nullable numbers", "pandas strings"],
)
def test_numbers_are_continuous_however_they_are_stored(values: Any) -> None:
    check(read(values), "continuous", [0.5, 3, np.nan, 0.5])


def test_ordered_categories_are_ordinal_in_their_order_without_unused_ones() -> None:
    check(read(ordered(STAGES, ORDER)), "ordinal", [2, 0, np.nan, 1, 0, 2], ("G1", "S", "M"))


def test_ordered_categories_of_numbers_keep_their_order() -> None:
    check(read(ordered([1, 10, 2, 1], [10, 2, 1])), "ordinal", [2, 0, 1, 2], ("10", "2", "1"))


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (["b", "a", None, "b"], ("a", "b")),
        (pd.Categorical(["b", "a", None, "b"], categories=["unused", "b", "a"]), ("a", "b")),
        (pd.array(["b", "a", None, "b"], dtype="string"), ("a", "b")),
        ([True, False, None, True], ("False", "True")),
        (pd.array([True, False, None, True], dtype="boolean"), ("False", "True")),
        (["two", "1", None, "two"], ("1", "two")),
    ],
    ids=["strings", "categories", "pandas strings", "truth values", "nullable truth values", "mixed"],
)
def test_names_and_truth_values_are_categorical_with_sorted_levels(values: Any, levels: tuple[str, ...]) -> None:
    check(read(values), "categorical", [1, 0, np.nan, 1], levels)


def test_truth_values_without_missing_ones_are_categorical() -> None:
    check(read(np.array([True, False, True, True])), "categorical", [1, 0, 1, 1], ("False", "True"))


def test_dates_are_levels_by_their_names() -> None:
    days = pd.to_datetime(["2024-05-02", "2024-05-01", None, "2024-05-02"])
    check(read(days), "categorical", [1, 0, np.nan, 1], ("2024-05-01", "2024-05-02"))


def test_cells_read_back_from_a_file_have_the_same_factors(tmp_path: Path) -> None:
    cells = cells_with(
        name=["b", "a", None, "b", "a", "b"] * 2,
        stage=ordered(STAGES * 2, ORDER),
        treated=[True, False, True, True, False, False] * 2,
        dose=[0, 0.5, np.nan, 1, 2, 3] * 2,
        plate=pd.Categorical([1, 2, 1, 2, 2, 1] * 2),
        hour=[0, 6, 12, 18, 3, 9] * 2,
    )
    names = ["name", "stage", "treated", "dose", "plate", "hour:cyclic=24"]
    first = read_factors(cells, names)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert isinstance(back.obs["name"].dtype, pd.CategoricalDtype)
    for before, after in zip(first, read_factors(back, names), strict=True):
        assert (after.name, after.kind, after.levels) == (before.name, before.kind, before.levels)
        np.testing.assert_array_equal(after.value, before.value)


def test_the_kind_of_a_column_is_that_of_the_cells_read() -> None:
    cells = cells_with(cluster=["0", "1", "0", "1", "unknown"])
    kinds = [read_factors(each, ["cluster"], varying=False)[0].kind for each in (cells, cells[:4])]
    assert kinds == ["categorical", "continuous"]


# a kind asked for


@pytest.mark.parametrize("kind", ["ordinal", "categorical"])
def test_numbers_can_be_levels_in_the_order_of_their_size(kind: str) -> None:
    check(read(["10", "9", None, "9", "10", "0.5"], kind), kind, [2, 1, np.nan, 1, 2, 0], ("0.5", "9", "10"))


def test_ordered_categories_can_be_levels_without_order() -> None:
    check(read(ordered(STAGES, ORDER), "categorical"), "categorical", [2, 0, np.nan, 1, 0, 2], ("G1", "S", "M"))


@pytest.mark.parametrize("numbers", [[1234567, 1234568], [0.12345671, 0.12345672]], ids=["barcodes", "fine doses"])
def test_different_numbers_are_different_levels_by_name(numbers: list[float]) -> None:
    factor = read(numbers * 3, "categorical")
    assert len(set(factor.levels)) == 2
    assert factor.value.tolist() == [0, 1] * 3


def test_a_circle_of_one_turn_or_of_another_period_is_a_share_of_a_turn() -> None:
    check(read([0, 0.25, np.nan, 0.999], "cyclic"), "cyclic", [0, 0.25, np.nan, 0.999])
    hours = read(["0", "6", None, "23"], "cyclic=24")
    check(hours, "cyclic", [0, 0.25, np.nan, 23 / 24])
    assert hours.period == 24


def test_the_end_of_a_turn_is_its_start() -> None:
    check(read([0, 24, 12, 12], "cyclic=24"), "cyclic", [0, 0, 0.5, 0.5])


def test_ordered_categories_lie_evenly_around_a_circle_unused_ones_included() -> None:
    phases = read(ordered(STAGES, ORDER), "cyclic")
    check(phases, "cyclic", [0.75, 0, np.nan, 0.25, 0, 0.75])
    assert phases.period == 4


def test_names_of_factors_and_their_order_are_those_asked_for() -> None:
    cells = cells_with(a=[1.0, 2.0, 3.0], b=["x", "y", "x"])
    assert [factor.name for factor in read_factors(cells, ["b", "a:ordinal"], varying=False)] == ["b", "a"]
    assert read_factors(cells, []) == []


# nuisance factors


@pytest.mark.parametrize("plates", [[1, 2, 3], ["1", "2", "3"], [1.0, 2.0, 3.0]])
def test_a_few_numbers_are_levels_of_a_nuisance(plates: list[Any]) -> None:
    factor = read_nuisance(cells_with(plate=plates * 4), ["plate"])[0]
    check(factor, "categorical", [0, 1, 2] * 4, ("1", "2", "3"))


def test_twenty_numbers_of_a_nuisance_are_levels_and_more_are_counted() -> None:
    kinds = [read_nuisance(cells_with(size=np.arange(100.0) % n), ["size"])[0].kind for n in (20, 21)]
    assert kinds == ["categorical", "continuous"]


def test_a_nuisance_of_few_numbers_can_be_asked_for_as_continuous() -> None:
    assert read_nuisance(cells_with(size=[1.0, 2.0] * 4), ["size:continuous"])[0].kind == "continuous"


def test_missing_numbers_of_a_nuisance_are_no_level() -> None:
    check(
        read_nuisance(cells_with(plate=[1, 2, np.nan] * 4), ["plate"])[0], "categorical", [0, 1, np.nan] * 4, ("1", "2")
    )


def test_names_of_a_nuisance_are_read_as_of_any_factor() -> None:
    cells = cells_with(donor=["b", "a", "b", "a"], stage=ordered(["x", "y", "x", "y"], ["y", "x"]))
    assert [factor.kind for factor in read_nuisance(cells, ["donor", "stage"])] == ["categorical", "ordinal"]


# refused input


def refused(names: list[str], **columns: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_factors(cells_with(**columns), names)
    return str(caught.value)


def test_a_missing_column_is_refused_with_those_present() -> None:
    assert "no column 'dose'; columns of obs: 'plate'" in refused(["dose"], plate=[1, 2])


def test_a_column_named_twice_is_refused() -> None:
    assert "'dose' is named twice" in refused(["dose", "dose:ordinal"], dose=[1, 2, 1, 2])


@pytest.mark.parametrize("text", ["dose:cyclc", "dose:cyclc=24", "dose:=24", "dose:Continuous", "dose: ordinal"])
def test_an_unknown_kind_is_refused_with_those_there_are(text: str) -> None:
    message = refused([text], dose=[1, 2, 1, 2])
    assert "'dose'" in message
    assert "continuous, ordinal, cyclic, categorical" in message


@pytest.mark.parametrize("kind", ["continuous", "ordinal", "categorical"])
def test_a_period_of_what_is_not_cyclic_is_refused(kind: str) -> None:
    assert "only a cyclic factor has a period" in refused([f"dose:{kind}=24"], dose=[1, 2, 1, 2])


@pytest.mark.parametrize("period", ["0", "-24", "nan", "inf", "day"])
def test_a_period_that_is_no_positive_number_is_refused(period: str) -> None:
    assert "positive number, such as hour:cyclic=24" in refused([f"hour:cyclic={period}"], hour=[0, 0.5, 1, 0])


@pytest.mark.parametrize("text", ["hour:cyclic", "hour:cyclic=12"])
def test_a_period_smaller_than_the_values_is_refused_with_their_range(text: str) -> None:
    message = refused([text], hour=[3, 12.5, 18, 23.5])
    assert "from 3 to 23.5" in message
    assert "hour:cyclic=24" in message


def test_values_before_the_start_of_a_turn_are_refused() -> None:
    assert "from -3 to 3" in refused(["angle:cyclic=6.3"], angle=[-3, 3, 1, 2])


@pytest.mark.parametrize("values", [[2.0, 2.0, np.nan, 2.0], ["a", "a", None, "a"], ordered(["a"] * 4, ["a", "b"])])
def test_one_value_is_refused(values: Any) -> None:
    message = refused(["key"], key=values)
    assert "'key'" in message
    assert "same value in all" in message


def test_as_many_levels_as_cells_are_refused() -> None:
    assert "names cells rather than a factor" in refused(["barcode"], barcode=list("abcdef"))
    assert "4 levels for 7 cells" in refused(["barcode"], barcode=list("abcdabc"))
    read_factors(cells_with(barcode=list("abcdabcd")), ["barcode"])


@pytest.mark.parametrize("kind", ["", "continuous", "ordinal", "cyclic", "categorical"])
@pytest.mark.parametrize("values", [[None] * 4, [np.nan] * 4, pd.Categorical([None] * 4, categories=["a", "b"])])
def test_a_column_without_values_is_refused_as_empty(kind: str, values: Any) -> None:
    with pytest.raises(InputError, match=r"obs\['key'\] is empty for all cells"):
        read(values, kind, varying=True)


@pytest.mark.parametrize("kind", ["continuous", "cyclic"])
@pytest.mark.parametrize("values", [["a", "b", "a", "b"], [True, False, True, False], ["1", "two", "1", "two"]])
def test_names_asked_for_as_numbers_are_refused_and_listed(kind: str, values: list[Any]) -> None:
    with pytest.raises(InputError, match=rf"'key'\] is to be {kind} but holds names \({str(values[0])!r}"):
        read(values, kind)


def test_ordered_names_asked_for_as_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="continuous"):
        read(ordered(["a", "b", "a", "b"], ["a", "b"]), "continuous")


def test_ordered_categories_of_numbers_asked_for_as_numbers_are_these_numbers() -> None:
    check(read(ordered([1, 10, 2, 1], [1, 2, 10]), "continuous"), "continuous", [1, 10, 2, 1])


@pytest.mark.parametrize("values", [["a", "b", "a", "b"], pd.Categorical(["a", "b", "a", "b"]), [True, False] * 2])
def test_names_without_an_order_asked_for_as_ordinal_are_refused_with_how_to_order_them(values: Any) -> None:
    with pytest.raises(InputError, match=r"'key'.*have no order.*ordered=True"):
        read(values, "ordinal")


@pytest.mark.parametrize("kind", ["continuous", "cyclic=24"])
def test_numbers_that_are_not_finite_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="key"):
        read([1.0, 2.0, np.inf, 3.0], kind)


def test_what_varies_among_other_cells_only_can_be_read_again() -> None:
    check(read(["b", "b"]), "categorical", [0, 0], ("b",))
    check(read([3.0]), "continuous", [3])


@pytest.mark.parametrize("kind", ["", "continuous", "ordinal", "cyclic", "categorical"])
def test_a_column_empty_among_these_cells_can_be_read_again_as_missing(kind: str) -> None:
    assert np.isnan(read([None, None], kind).value).all()


# factors and nuisance that cannot be told apart


def test_a_factor_that_is_the_batch_is_refused_naming_both() -> None:
    cells = lc.cells.simulate.counts(60, 12, n_batches=3, rng=0)
    cells.obs["treatment"] = cells.obs["batch"].map({"batch_1": "dmso", "batch_2": "drug", "batch_3": "drug"})
    factors, nuisance = read_factors(cells, ["cell_type", "treatment"]), read_nuisance(cells, ["batch"])
    with pytest.raises(InputError, match=r"'treatment' cannot be separated from 'batch'.*'batch_1'.*Leave 'batch' out"):
        refuse_inseparable(factors, nuisance)
    refuse_inseparable(factors[:1], nuisance)


def test_a_batch_within_the_levels_of_a_factor_is_allowed() -> None:
    """Each treatment on several plates, one plate with both: what differs there comes from the treatment."""
    cells = cells_with(treatment=["a", "a", "a", "b", "b", "b"], plate=["1", "2", "2", "2", "3", "3"])
    refuse_inseparable(read_factors(cells, ["treatment"]), read_factors(cells, ["plate"]))


def test_a_column_that_is_both_factor_and_nuisance_is_refused() -> None:
    cells = cells_with(plate=["a", "b", "a", "b"])
    with pytest.raises(InputError, match="'plate' is named both as a factor and as a nuisance"):
        refuse_inseparable(read_factors(cells, ["plate"]), read_factors(cells, ["plate"]))


@pytest.mark.parametrize(
    ("dose", "confounded"), [([0, 0, 1, 1, np.nan, np.nan], True), ([0, 0, 1, 1, 0, 1], False)], ids=["yes", "no"]
)
def test_only_cells_where_both_are_known_can_tell_factor_and_nuisance_apart(
    dose: list[float], confounded: bool
) -> None:
    cells = cells_with(dose=dose, plate=["a", "a", "b", "b", "c", "c"])
    factors, nuisance = read_factors(cells, ["dose"]), read_nuisance(cells, ["plate"])
    if confounded:
        with pytest.raises(InputError, match="cannot be separated"):
            refuse_inseparable(factors, nuisance)
    else:
        refuse_inseparable(factors, nuisance)


def test_a_nuisance_that_is_a_number_is_taken_as_separable() -> None:
    cells = cells_with(size=np.arange(50.0), dose=np.arange(50) % 2)
    refuse_inseparable(read_factors(cells, ["dose"]), read_nuisance(cells, ["size"]))


# any column

COLUMNS = st.one_of(
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "c d", "1", "01", "nan", ""])), min_size=1, max_size=25),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=25),
    st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3).map(lambda x: round(x, 2))), min_size=1, max_size=25),
    st.lists(st.one_of(st.none(), st.sampled_from(["0", "0.5", "7", "10"])), min_size=1, max_size=25),
    st.lists(st.sampled_from([None, "x", "y", "z"]), min_size=1, max_size=25).map(
        lambda v: ordered(v, ["z", "x", "y"])
    ),
)


def told(factor: Factor) -> list[Any]:
    """What a factor says of each cell, in words."""
    known, value = factor.known, factor.value
    return [
        None if not known[i] else factor.levels[int(value[i])] if factor.levels else value[i] for i in range(len(value))
    ]


@settings(max_examples=150, deadline=None)
@given(COLUMNS, st.sampled_from(["", "categorical", "ordinal"]), st.data())
def test_codes_are_in_range_missing_where_missing_and_the_same_by_name_in_any_subset(
    values: Any, kind: str, data: st.DataObject
) -> None:
    cells = cells_with(key=values)
    asked = [f"key:{kind}" if kind else "key"]
    has_order = isinstance(values, pd.Categorical) or times(cells, "key") is not None
    if kind == "ordinal" and not has_order and cells.obs["key"].notna().any():
        with pytest.raises(InputError, match="have no order"):
            read_factors(cells, asked, varying=False)
        return
    factor = read_factors(cells, asked, varying=False)[0]
    np.testing.assert_array_equal(factor.known, pd.Series(values).notna())
    if factor.kind != "continuous":
        codes = factor.value[factor.known]
        assert set(codes) == set(range(len(factor.levels)))
        assert len(set(factor.levels)) == len(factor.levels)
    rows = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=30)))
    part = read_factors(cells[rows], [factor.text], varying=False)[0]
    assert part.kind == factor.kind
    assert told(part) == told(factor.take(rows))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 24)), min_size=1, max_size=25), st.sampled_from([24.0, 24.5, 1e3]))
def test_phases_are_shares_of_a_turn_that_give_the_number_back(values: list[float | None], period: float) -> None:
    factor = read(values, f"cyclic={period!r}")
    known = pd.Series(values, dtype=float).notna().to_numpy()
    np.testing.assert_array_equal(factor.known, known)
    phases, numbers = factor.value[known], np.array(values, dtype=float)[known]
    assert ((phases >= 0) & (phases < 1)).all()
    apart = np.abs(phases * period - numbers)
    assert np.minimum(apart, period - apart).max(initial=0) < 1e-9
