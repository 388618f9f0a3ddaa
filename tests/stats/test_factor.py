"""A factor's classes and columns, whatever its kind, and its text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from factors import hidden, levels, numbers
from hypothesis import given
from hypothesis import strategies as st

from latentcell.cells.factors import read_factors
from latentcell.stats.factor import N_BINS, Factor, equal_frequency

PHASES = Factor("phase", "cyclic", np.array([0.0, 0.049, 0.05, 0.999, np.nextafter(1.0, 0.0)]))
STAGES = Factor("stage", "ordinal", np.array([2.0, 0.0, 1.0, 2.0]), ("early", "middle", "late"))


@pytest.mark.parametrize("n_bins", [2, 3, 20])
def test_numbers_are_cut_into_classes_of_equally_many_cells_in_their_order(n_bins: int) -> None:
    values = np.random.default_rng(0).permutation(600) ** 2.0
    found = numbers("dose", values).classes(n_bins)
    assert np.bincount(found).tolist() == [600 // n_bins] * n_bins
    assert (np.diff(found[np.argsort(values)]) >= 0).all()


def test_twenty_classes_are_the_default() -> None:
    assert numbers("dose", np.arange(100.0)).classes().max() == N_BINS - 1 == 19


def test_few_distinct_numbers_are_classes_of_their_own() -> None:
    assert numbers("dose", [10, 0.1, 0.1, 3, 10]).classes().tolist() == [2, 0, 0, 1, 2]
    assert equal_frequency(np.arange(20.0), 20).tolist() == list(range(20))


@pytest.mark.parametrize("tie", [0.0, 1.0], ids=["at the least", "at the greatest"])
def test_numbers_nearly_all_tied_keep_a_class_for_the_others(tie: float) -> None:
    """95 % of the cells untreated, as doses are, or saturated."""
    rng = np.random.default_rng(1)
    values = np.full(1000, tie)
    rare = rng.choice(1000, 50, replace=False)
    values[rare] = rng.uniform(0.1, 0.9, 50)
    found = numbers("dose", values).classes()
    assert len(np.unique(found[values == tie])) == 1
    assert not set(found[rare]) & set(found[values == tie])
    assert set(found) == set(range(found.max() + 1))


def test_numbers_half_tied_spread_the_others_over_the_classes_left() -> None:
    values = np.concatenate([np.zeros(500), np.arange(1.0, 501)])
    counts = np.bincount(numbers("dose", values).classes())
    assert counts[0] == 500
    assert len(counts) >= 10
    assert counts[1:].max() <= 60


def test_a_single_number_is_one_class() -> None:
    assert numbers("dose", [4.0, 4.0, np.nan]).classes().tolist() == [0, 0, -1]


def test_a_circle_is_cut_into_arcs_of_equal_length() -> None:
    assert PHASES.classes().tolist() == [0, 0, 1, 19, 19]
    assert PHASES.classes(4).tolist() == [0, 0, 0, 3, 3]


def test_levels_are_classes_even_where_one_has_no_cell() -> None:
    assert STAGES.classes().tolist() == [2, 0, 1, 2]
    assert STAGES.take(np.array([0, 1])).classes(2).tolist() == [2, 0]
    assert levels("type", [1, 0, np.nan]).classes().tolist() == [1, 0, -1]


@pytest.mark.parametrize("factor", [numbers("dose", [3, 1, 2, 9, 4]), PHASES, STAGES, levels("type", [0, 1, 2, 1])])
def test_missing_values_have_no_class_and_change_none_of_a_level_or_arc(factor: Factor) -> None:
    missing = np.arange(len(factor.value)) % 2 == 1
    partly = hidden(factor, missing)
    assert partly.known.tolist() == (~missing).tolist()
    assert (partly.classes()[missing] == -1).all()
    np.testing.assert_array_equal(partly.classes()[~missing], factor.take(~missing).classes())


@pytest.mark.parametrize("kind", ["continuous", "ordinal", "cyclic", "categorical"])
def test_a_factor_missing_in_all_cells_has_no_classes(kind: Any) -> None:
    factor = Factor("x", kind, np.full(3, np.nan), ("a", "b"))
    assert factor.classes().tolist() == [-1, -1, -1]
    assert np.isnan(factor.columns()[0]).all()


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=60),
    st.integers(2, 20),
)
def test_classes_of_numbers_are_few_in_order_gapless_and_keep_ties_together(values: list[float], n_bins: int) -> None:
    factor = numbers("dose", values)
    found = factor.classes(n_bins)
    np.testing.assert_array_equal(found < 0, ~factor.known)
    distinct = np.unique(factor.value[factor.known])
    of_value = [np.unique(found[factor.value == value]) for value in distinct]
    assert all(len(each) == 1 for each in of_value)
    assert (np.diff([each[0] for each in of_value]) >= 0).all()
    present = np.unique(found[factor.known])
    np.testing.assert_array_equal(present, np.arange(len(present)))
    assert len(present) <= n_bins
    assert len(present) >= min(2, len(distinct))


def test_numbers_and_ranks_are_columns_as_they_are() -> None:
    for factor in (numbers("dose", [3, np.nan]), STAGES):
        columns, names = factor.columns()
        np.testing.assert_array_equal(columns, factor.value[:, None])
        assert names == [factor.name]


def test_a_circle_gives_cosine_and_sine() -> None:
    columns, names = Factor("phase", "cyclic", np.array([0, 0.25, 0.5, np.nan]), period=24.0).columns()
    np.testing.assert_allclose(columns, [[1, 0], [0, 1], [-1, 0], [np.nan, np.nan]], atol=1e-12)
    assert names == ["phase (cos)", "phase (sin)"]


def test_two_levels_give_the_indicator_of_the_second_and_more_give_one_each() -> None:
    columns, names = Factor("sex", "categorical", np.array([0, 1, np.nan]), ("female", "male")).columns()
    np.testing.assert_array_equal(columns, [[0], [1], [np.nan]])
    assert names == ["sex=male"]
    columns, names = Factor("type", "categorical", np.array([2, 0, np.nan]), ("a", "b", "c")).columns()
    np.testing.assert_array_equal(columns, [[0, 0, 1], [1, 0, 0], [np.nan] * 3])
    assert names == ["type=a", "type=b", "type=c"]


def test_taking_cells_keeps_name_kind_levels_and_period() -> None:
    taken = Factor("hour", "cyclic", np.array([0.5, 0.25, np.nan]), period=24.0).take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.value, [np.nan, 0.5])
    assert (taken.name, taken.kind, taken.period) == ("hour", "cyclic", 24.0)
    assert STAGES.take(np.array([True, False, False, False])).levels == STAGES.levels


OBS = pd.DataFrame(
    {
        "dose": [0.5, 1.0, np.nan, 7.25],
        "radians": [0.1, 6.0, 3.0, np.nan],
        "hour": [0.0, 23.5, 12.0, 6.0],
        "stage": pd.Categorical(["M", "G1", "S", "G1"], categories=["G1", "S", "M"], ordered=True),
        "sex": ["female", "male", None, "male"],
    },
    index=list("abcd"),
)


TEXTS = "dose dose:ordinal dose:categorical radians:cyclic=6.283185307179586 radians:cyclic=6.477510626989882"
TEXTS += " hour:cyclic=24 hour:cyclic=1e3 stage stage:cyclic stage:categorical sex"


@pytest.mark.parametrize("text", TEXTS.split())
def test_the_text_of_a_factor_reads_the_same_factor_again(text: str) -> None:
    cells = AnnData(obs=OBS)
    first = read_factors(cells, [text], varying=False)[0]
    again = read_factors(cells, [first.text], varying=False)[0]
    np.testing.assert_array_equal(again.value, first.value)
    assert (again.name, again.kind, again.levels, again.period) == (first.name, first.kind, first.levels, first.period)
    assert again.text == first.text
