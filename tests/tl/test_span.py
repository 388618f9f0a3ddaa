"""Which levels are the ends, and where between them a prediction is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from latentcell.errors import InputError
from latentcell.tl.span import Span, neighbours

STAGES = ["early", "middle", "late", "last"]


def cells() -> AnnData:
    days = [0, 0, 2, 2, 4, 4, 8, 8]
    obs = pd.DataFrame({"day": days, "text": list(map(str, days))}, index=[f"c{i}" for i in range(8)])
    obs["name"] = np.repeat(STAGES, 2)
    obs["stage"] = pd.Categorical(obs["name"], categories=STAGES, ordered=True)
    return AnnData(obs=obs)


def span(key: str, **given_: Any) -> Span:
    return Span.of(cells(), key, **{"source": None, "target": None, "at": None, "truth": None, **given_})


@pytest.mark.parametrize("key", ["day", "text"])
@pytest.mark.parametrize("truth", [2, "2", 2.0])
def test_ends_are_the_times_around_the_truth_and_the_place_is_its_time(key: str, truth: Any) -> None:
    found = span(key, truth=truth)
    assert (found.source, found.target, found.numeric) == (0.0, 4.0, True)
    assert found.at.tolist() == [2.0]
    assert found.positions.tolist() == [0.5]


def test_the_place_of_the_truth_is_not_half_way_where_times_are_uneven() -> None:
    assert span("day", truth=4).positions.tolist() == pytest.approx([1 / 3])


def test_ends_are_the_times_around_the_place_asked_for() -> None:
    found = span("day", at=5)
    assert (found.source, found.target, found.positions.tolist()) == (4.0, 8.0, [0.25])


def test_a_measured_time_is_predicted_from_its_neighbours_not_from_itself() -> None:
    found = span("day", at=4)
    assert (found.source, found.target) == (2.0, 8.0)


def test_ends_are_the_ordered_stages_around_the_truth_and_the_place_is_half_way() -> None:
    found = span("stage", truth="middle")
    assert (found.source, found.target, found.numeric) == ("early", "late", False)
    assert found.positions.tolist() == [0.5]


def test_one_named_end_is_kept_and_the_other_is_filled_in() -> None:
    assert (span("day", truth=2, source=0).target, span("day", truth=4, target=8).source) == (4.0, 2.0)
    assert (span("stage", truth="late", source="early").target) == "last"


def test_half_way_between_two_times_is_the_default_place() -> None:
    found = span("day", source=2, target=8)
    assert (found.at.tolist(), found.positions.tolist()) == ([5.0], [0.5])


def test_at_is_a_time_where_the_key_holds_times_and_a_position_where_it_holds_names() -> None:
    assert span("day", source=0, target=8, at=[0, 2, 8]).positions.tolist() == [0, 0.25, 1]
    assert span("name", source="early", target="last", at=[0, 0.25, 1]).positions.tolist() == [0, 0.25, 1]


def test_times_can_run_backwards() -> None:
    found = span("day", source=8, target=0, at=[8, 6, 0])
    assert found.positions.tolist() == [0, 0.25, 1]
    with pytest.raises(InputError, match=r"between 8 \(the source\) and 0 \(the target\), found 9"):
        span("day", source=8, target=0, at=9)


def test_several_times_in_one_gap_share_their_ends() -> None:
    found = span("day", at=[5, 6, 7])
    assert (found.source, found.target, found.positions.tolist()) == (4.0, 8.0, [0.25, 0.5, 0.75])


def test_a_position_between_0_and_1_outside_the_times_is_refused_and_explained() -> None:
    with pytest.raises(InputError, match=r"between 2 \(the source\) and 8.*found 0\.5.*`at` is a time; half-way is 5"):
        span("day", source=2, target=8, at=0.5)


@pytest.mark.parametrize("hidden", [None, 4, "4"])
def test_known_levels_are_the_ends_and_all_beyond_them_with_their_places(hidden: Any) -> None:
    found = span("day", source=2, target=8)
    assert found.known_levels(cells(), hidden) == pytest.approx({0.0: -1 / 3, 2.0: 0.0, 8.0: 1.0})
    found = span("stage", source="early", target="late")
    assert found.known_levels(cells(), "middle") == {"early": 0.0, "late": 1.0, "last": 1.5}


def test_known_levels_ascend_from_source_to_target_when_times_run_backwards() -> None:
    found = span("day", source=4, target=2)
    assert list(found.known_levels(cells(), None).items()) == [(8.0, -2.0), (4.0, 0.0), (2.0, 1.0), (0.0, 2.0)]


def test_a_hidden_level_beyond_the_ends_is_not_known() -> None:
    found = span("day", source=0, target=4)
    assert list(found.known_levels(cells(), "8")) == [0.0, 4.0]


@pytest.mark.parametrize(
    ("key", "given_", "message"),
    [
        ("name", {"truth": "middle"}, "names without an order"),
        ("name", {"truth": "middle", "source": "early"}, "names without an order"),
        ("name", {"source": "early"}, "Name `source` and `target`"),
        ("stage", {}, "Name `source` and `target`"),
        ("stage", {"at": 0.5}, "Name `source` and `target`"),
        ("day", {"source": 0}, "Name `source` and `target`"),
        ("day", {"at": [1, 3]}, "between different levels"),
        ("day", {"at": 9}, "No level comes after 9"),
        ("day", {"truth": 0}, "No level comes before 0"),
        ("day", {"truth": 8}, "No level comes after 8"),
        ("stage", {"truth": "last"}, "No level comes after 'last'"),
        ("day", {"truth": 3}, r"equal to 3; levels present \(cells\): 0 \(2\)"),
        ("day", {"truth": 8, "source": 0, "target": 4}, "found 8"),
        ("day", {"source": 0, "target": 3}, "equal to 3"),
        ("day", {"source": 2, "target": "2.0"}, "nothing between a population and itself"),
        ("name", {"source": "late", "target": "late"}, "both 'late'"),
        ("name", {"source": "early", "target": "late", "at": -0.1}, r"between 0 \(the source\) and 1.*found -0\.1\.$"),
        ("day", {"at": float("inf")}, "found inf"),
        ("day", {"at": []}, r"found \[\]"),
        ("week", {"at": 1}, "no column 'week'"),
    ],
)
def test_spans_that_are_open_or_impossible_are_refused(key: str, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        span(key, **given_)


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=10, unique=True), st.data())
def test_neighbours_enclose_a_time_with_nothing_between(levels: list[int], data: st.DataObject) -> None:
    ordered = sorted(map(float, levels))
    time = data.draw(st.floats(ordered[0], ordered[-1], exclude_min=True, exclude_max=True))
    before, after = neighbours(ordered, time)
    assert before < time < after
    assert not [each for each in ordered if before < each < after and each != time]


def test_neighbours_of_a_name_that_is_no_level_are_refused() -> None:
    with pytest.raises(InputError, match="none of the levels early, middle"):
        neighbours(STAGES, "noon")
