from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from latentcell import pl
from latentcell.errors import InputError


def methods(ax) -> list[str]:
    return [tick.get_text() for tick in ax.get_yticklabels()]


def heading(ax) -> str:
    return ax.texts[0].get_text()


@pytest.fixture
def left_out(make_evaluation):
    parts = []
    for level, source, target in ((1.0, 0.0, 2.0), (2.0, 1.0, 3.0)):
        part = make_evaluation(("model", "data"))
        part[["value", "low", "high"]] *= level
        part.insert(0, "held_out", level)
        part.insert(1, "source", source)
        part.insert(2, "target", target)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.attrs["verdicts"] = {"1.0": {"data": "Better: energy distance 1."}, "2.0": {"model": "No better."}}
    return table


def test_every_space_has_a_panel_with_intervals_and_the_floor(make_evaluation):
    figure = pl.evaluation(make_evaluation(("model", "data", "data, coarse")), verdicts={"data": "Better."})
    assert [heading(ax) for ax in figure.axes] == [
        "Model space: all decoded",
        "Data space: as measured",
        "Data space, 4 x 4 pixels averaged",
    ]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["", "Better.", ""]
    for ax in figure.axes:
        assert ax.get_xlabel() == "energy distance to the truth"
        assert list(ax.lines[0].get_xdata()) == [0.5, 1.5]
        assert list(ax.lines[-1].get_xdata()) == [5.0, 5.0]


def test_reconstructed_truth_is_hollow_last_and_missing_where_it_is_not_defined(make_evaluation):
    model, data = pl.evaluation(make_evaluation(("model", "data"))).axes
    assert methods(model) == ["prediction", "source", "target", "reconstructed truth"]
    dots = [line for line in data.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, False, True]
    assert len([line for line in model.lines if line.get_marker() == "o"]) == 3


def test_a_method_stands_in_the_same_row_of_every_panel(make_evaluation):
    table = make_evaluation(("model", "data"))
    table = table[~((table["space"] == "model") & (table["method"] == "source"))]
    model, data = pl.evaluation(table).axes
    rows = [
        {float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"}
        for ax in (model, data)
    ]
    target = table.loc[table["method"] == "target", "value"].iloc[0]
    assert rows[0][target] == rows[1][target]


def test_leave_one_out_has_a_row_per_level_and_one_axis_per_space(left_out):
    figure = pl.evaluation(left_out)
    axes = np.reshape(figure.axes, (2, 2))
    assert [ax.texts[-1].get_text().replace("\n", " ") for ax in axes[:, 0]] == [
        "1 held out, from 0 and 2",
        "2 held out, from 1 and 3",
    ]
    assert [heading(ax) for ax in axes[0]] == ["Model space: all decoded", "Data space: as measured"]
    assert not axes[1, 1].texts
    assert [ax.get_title(loc="left") for ax in axes.ravel()] == ["", "Better", "No better.", ""]
    for column in axes.T:
        assert column[0].get_xlim() == column[1].get_xlim()
        assert column[0].get_xlim()[1] >= 11.0


def test_verdicts_that_are_given_come_before_those_of_the_table(left_out):
    figure = pl.evaluation(left_out, verdicts={"2.0": {"data": "Worse."}})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["", "", "", "Worse."]


def test_sentences_beside_another_metric_are_said_to_be_of_the_energy_distance(make_evaluation):
    table = make_evaluation(("data",))
    for metric, said in (("W1", True), ("energy distance", False)):
        figure = pl.evaluation(table, metric=metric, verdicts={"data": "Better."})
        assert ("judged by the" in figure.get_supxlabel().replace("\n", " ")) == said


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda table: table.drop(columns="low"), "the column 'low' is missing"),
        (lambda table: table[:0], "it has no rows"),
        (lambda table: table[table["metric"] == "W1"], "no metric 'energy distance'; choose one of 'W1'"),
    ],
)
def test_tables_that_are_no_evaluation_are_refused(make_evaluation, spoiled, message):
    with pytest.raises(InputError, match=message):
        pl.evaluation(spoiled(make_evaluation(("data",))))
