from __future__ import annotations

import numpy as np
import pytest

from latentcell import pl
from latentcell.errors import InputError


def panels(figure):
    return [ax for ax in figure.axes if ax.images]


def titles(figure):
    return [ax.get_title(loc="center").split("\n") for ax in panels(figure)]


@pytest.mark.parametrize("modality", ["images", "counts", "profiles"])
def test_source_path_target_and_truth_stand_side_by_side(linear, make_cells, predict, modality):
    cells = make_cells(modality)
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model), cells, model)
    assert titles(figure) == [
        ["source", "early"],
        ["decoded along the path", ""],
        ["target", "late"],
        ["truth", "middle"],
    ]


@pytest.mark.parametrize("modality", ["images", "counts", "profiles"])
def test_without_truth_there_is_neither_its_panel_nor_an_evaluation(linear, make_cells, predict, modality):
    cells = make_cells(modality)
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model, truth=False), cells, model)
    assert len(panels(figure)) == 3
    assert not any("to the truth" in ax.get_xlabel() for ax in figure.axes)


def test_each_row_decodes_the_way_between_its_own_two_cells(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    predicted = predict(cells, model, truth=False)
    pl.interpolation(predicted, cells, model, n=4)
    z = model.decoded[0][0].reshape(4, 5, -1)
    mu = model.encode(cells).mu
    pairs = predicted.obs[["source_cell", "target_cell"]].itertuples(index=False)
    ends = {(cells.obs_names.get_loc(a), cells.obs_names.get_loc(b)) for a, b in pairs}
    for row in z:
        start, end = (int(np.abs(mu - one).sum(1).argmin()) for one in (row[0], row[-1]))
        assert (start, end) in ends
        np.testing.assert_allclose(row[1], 0.75 * mu[start] + 0.25 * mu[end], atol=1e-3)


def test_the_predicted_position_is_among_the_steps(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model, at=0.4), cells, model)
    steps = [tick.get_text() for tick in panels(figure)[1].get_xticklabels()]
    assert steps == ["0", "0.25", "0.4", "0.5", "0.75", "1"]


def test_pairs_of_centroids_are_drawn_from_the_mean_of_each_end(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    pl.interpolation(predict(cells, model, truth=False, pairing="centroid"), cells, model, n=3)
    early = model.encode(cells[cells.obs["stage"] == "early"]).mu.mean(0)
    z = model.decoded[0][0].reshape(3, 5, -1)
    np.testing.assert_allclose(z[:, 0], np.tile(early, (3, 1)), rtol=1e-4)


def test_cells_are_decoded_in_the_batch_of_their_source(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells, batch_key="plate")
    pl.interpolation(predict(cells, model, truth=False), cells, model, n=3)
    z, batch = model.decoded[0]
    mu = model.encode(cells).mu
    sources = [int(np.abs(mu - one).sum(1).argmin()) for one in z[::5]]
    assert list(batch) == list(np.repeat(cells.obs["plate"].to_numpy()[sources], 5))


def test_change_is_measured_from_the_source(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model), cells, model)
    source, _, target, _ = (np.asarray(ax.images[0].get_array()) for ax in panels(figure))
    assert not source.any()
    names = [tick.get_text() for tick in panels(figure)[0].get_yticklabels()]
    means = [np.asarray(cells[cells.obs["stage"] == stage, names].X).mean(0) for stage in ("early", "late")]
    np.testing.assert_allclose(target[:, 0], (means[1] - means[0]) / 2.0, rtol=1e-4)


def test_evaluation_has_a_panel_per_space_with_intervals_and_the_floor(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model), cells, model)
    dots = [ax for ax in figure.axes if "to the truth" in ax.get_xlabel()]
    assert [ax.get_title(loc="left") for ax in dots] == ["Better than every baseline.", "No better than PCA + OT."]
    for ax in dots:
        assert ax.get_xlabel() == "energy distance to the truth (left is better)"
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["prediction", "source", "target"]
        assert list(ax.lines[0].get_xdata()) == [0.5, 1.5]
        assert list(ax.lines[-1].get_xdata()) == [4.0, 4.0]


def test_another_metric_can_be_shown_and_an_unknown_one_is_named(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model)
    figure = pl.interpolation(predicted, cells, model, metric="W1")
    assert any(ax.get_xlabel().startswith("W1 to the truth") for ax in figure.axes)
    with pytest.raises(InputError, match="no metric 'F1'; choose one of 'energy distance', 'W1'"):
        pl.interpolation(predicted, cells, model, metric="F1")


def test_numeric_levels_find_their_truth(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    predicted = predict(cells, model, key="day", source=0, target=4, truth=True)
    predicted.uns["interpolate"]["params"] |= {"truth": 2}
    assert titles(pl.interpolation(predicted, cells, model))[3] == ["truth", "2"]


def test_more_rows_than_true_cells_leave_the_rest_dark(linear, make_images, predict):
    cells = make_images()
    cells = cells[[*range(10), 11, *range(20, 30)]].copy()
    model = linear(cells)
    page = np.asarray(panels(pl.interpolation(predict(cells, model), cells, model))[3].images[0].get_array())
    assert page[:16].any()
    assert not page[-16:, :16].any()


def test_other_cells_than_those_that_were_interpolated_are_refused(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    predicted = predict(cells, model)
    with pytest.raises(InputError, match="are not among these"):
        pl.interpolation(predicted, cells[5:], model)
    with pytest.raises(InputError, match="not predicted cells"):
        pl.interpolation(cells, cells, model)
