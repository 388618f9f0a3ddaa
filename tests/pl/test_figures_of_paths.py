from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from latentcell import pl


def entries(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def ways(figure) -> list[np.ndarray]:
    return [line.get_xydata() for line in figure.axes[0].lines if line.get_linewidth() < 1]


@pytest.mark.parametrize("modality", ["images", "counts", "profiles"])
def test_path_lists_levels_with_their_roles_and_marks_prediction_and_truth(linear, make_cells, predict, modality):
    cells = make_cells(modality)
    model = linear(cells)
    figure = pl.path(predict(cells, model), cells, model)
    shown = [each for each in entries(figure) if each != "predicted, implausible"]
    assert shown == [
        "early (source)",
        "late (target)",
        "middle (truth)",
        "cells of the truth",
        "mean of the truth",
        "predicted cells",
        "mean of the prediction",
    ]


def test_path_without_truth_shows_none_and_names_the_places_of_several(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    figure = pl.path(predict(cells, model, truth=False, at=[0.25, 0.75]), cells, model)
    assert not any("truth" in each for each in entries(figure))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.25", "0.75"]


def test_lines_lead_from_each_source_cell_to_its_target_cell(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model)
    figure = pl.path(predicted, cells, model, n=7)
    drawn = ways(figure)
    assert len(drawn) == 7
    dots = np.asarray(figure.axes[0].collections[0].get_offsets())
    for way in drawn:
        for end in (way[0], way[-1]):
            assert np.abs(dots - end).sum(1).min() < 1e-4
    assert len([each for each in figure.axes[0].patches if each.get_visible()]) == 7


def test_no_line_joins_the_two_ends_that_a_shift_starts_from(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    drawn = ways(pl.path(predict(cells, model, path="shift"), cells, model, n=12))
    broken = [way for way in drawn if np.isnan(way).any()]
    assert broken
    for way in drawn:
        moved = np.diff(way, axis=0)
        moved = moved[~np.isnan(moved).any(axis=1) & (np.abs(moved).sum(axis=1) > 1e-6)]
        np.testing.assert_allclose(moved, np.tile(moved[0], (len(moved), 1)), atol=1e-3)


def test_implausible_cells_are_crosses(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model)
    predicted.obs["plausible"] = [False] * 5 + [True] * (predicted.n_obs - 5)
    figure = pl.path(predicted, cells, model)
    numbers = [len(each.get_offsets()) for each in figure.axes[0].collections]
    assert numbers[-2:] == [predicted.n_obs - 5, 5]
    assert "predicted, implausible" in entries(figure)
    assert "75% at 0.5" in figure.get_supxlabel()


def test_times_are_listed_in_order_and_many_get_a_colour_bar(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model, key="day", source=0, target=4)
    assert entries(pl.path(predicted, cells, model))[:3] == ["day 0 (source)", "day 2 (truth)", "day 4 (target)"]
    cells.obs.loc[cells.obs_names[20:40], "day"] = np.linspace(1, 3, 20).round(2)
    predicted = predict(cells, model, key="day", source=0, target=4, truth=False)
    figure = pl.path(predicted, cells, model)
    assert figure.axes[1].get_xlabel() == "day"


def test_source_target_and_truth_keep_their_colours_among_many_levels(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    colors = []
    for more in (False, True):
        if more:
            cells.obs["stage"] = cells.obs["stage"].astype(str)
            cells.obs.loc[cells.obs_names[:10], "stage"] = [f"a{i}" for i in range(10)]
        handles = pl.path(predict(cells, model), cells, model).axes[0].get_legend().legend_handles
        colors.append({h.get_label(): to_hex(h.get_color()) for h in handles})
    for role in ("early (source)", "late (target)", "middle (truth)"):
        assert colors[0][role] == colors[1][role]
    assert len({colors[1][label] for label in colors[1] if label[0] == "a" or "(" in label}) == 13


def test_at_most_3000_cells_are_shown_and_rare_named_ones_among_them(linear, make_cells, predict, monkeypatch):
    module = sys.modules["latentcell.pl.path"]  # latentcell.pl.path itself is the function
    monkeypatch.setattr(module, "_MAX_CELLS", 30)
    monkeypatch.setattr(module, "_MAX_NAMED", 8)
    cells = make_cells("profiles")
    cells.obs["stage"] = ["early"] * 8 + ["late"] * 8 + ["middle"] * 4 + ["other"] * 40
    model = linear(cells)
    figure = pl.path(predict(cells, model), cells, model)
    cells_drawn, rings = figure.axes[0].collections[:2]
    assert (len(cells_drawn.get_offsets()), len(rings.get_offsets())) == (30, 4)


def test_path_draws_into_the_axes_that_it_is_given(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    figure = Figure()
    ax = figure.subplots(1, 2)[1]
    assert pl.path(predict(cells, model), cells, model, ax=ax) is figure
    assert ax.collections
