from __future__ import annotations

import numpy as np
import pytest

from latentcell import pl
from latentcell.errors import InputError
from latentcell.tl.interpolate import replay


def panels(figure):
    return [ax for ax in figure.axes if ax.images]


def titles(figure):
    return [ax.get_title(loc="center").split("\n") for ax in panels(figure)]


def steps(figure):
    return [tick.get_text() for tick in panels(figure)[1].get_xticklabels()]


def texts(figure):
    """All text of a figure, its notes included, with breaks as spaces."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(artist.get_text() for artist in found).replace("\n", " ")


@pytest.mark.parametrize("modality", ["images", "counts", "profiles"])
def test_source_path_target_and_truth_stand_side_by_side(linear, make_cells, predict, modality):
    cells = make_cells(modality)
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model), cells, model)
    assert titles(figure) == [
        ["source", "early"],
        ["decoded along the path", "position on the path" if modality == "images" else ""],
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
    z = np.stack([z for z, _ in model.decoded], axis=1)
    assert z.shape[:2] == (4, 5)
    mu = model.encode(cells).mu
    pairs = predicted.obs[["source_cell", "target_cell"]].itertuples(index=False)
    ends = {(cells.obs_names.get_loc(a), cells.obs_names.get_loc(b)) for a, b in pairs}
    for row in z:
        start, end = (int(np.abs(mu - one).sum(1).argmin()) for one in (row[0], row[-1]))
        assert (start, end) in ends
        np.testing.assert_allclose(row[1], 0.75 * mu[start] + 0.25 * mu[end], atol=1e-3)


def test_tiles_at_the_predicted_place_are_predicted_cells_whatever_the_path(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    for path in ("linear", "slerp", "shift", "shift_target"):
        predicted = predict(cells, model, truth=False, path=path, at=0.25)
        pl.interpolation(predicted, cells, model, n=5)
        for one in model.decoded[1][0]:
            assert np.abs(predicted.obsm["vae"] - one).sum(1).min() < 1e-4


def test_the_predicted_position_is_among_the_steps(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    assert steps(pl.interpolation(predict(cells, model, at=0.4), cells, model)) == [
        "0",
        "0.25",
        "0.4",
        "0.5",
        "0.75",
        "1",
    ]
    several = predict(cells, model, truth=False, at=[0.2, 0.3, 0.4])
    assert steps(pl.interpolation(several, cells, model)) == ["0", "0.2", "0.3", "0.4", "1"]


@pytest.mark.parametrize("modality", ["images", "profiles"])
def test_along_times_the_steps_are_times_and_the_axis_is_named_by_the_key(linear, make_cells, predict, modality):
    cells = make_cells(modality)
    model = linear(cells)
    predicted = predict(cells, model, key="day", source=0, target=4, at=2)
    figure = pl.interpolation(predicted, cells, model)
    assert steps(figure) == (["0", "1", "2", "3", "4"] if modality == "images" else ["0", "2", "4"])
    named = titles(figure)[1][1] if modality == "images" else panels(figure)[1].get_xlabel()
    assert named == "day"
    assert titles(figure)[0] == ["source", "day 0"]
    assert titles(figure)[3] == ["truth", "day 2"]


def test_pairs_of_centroids_are_drawn_from_the_mean_of_each_end(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    pl.interpolation(predict(cells, model, truth=False, pairing="centroid"), cells, model, n=3)
    early = model.encode(cells[cells.obs["stage"] == "early"]).mu.mean(0)
    np.testing.assert_allclose(model.decoded[0][0], np.tile(early, (3, 1)), rtol=1e-4)


def test_cells_are_decoded_in_the_batch_of_their_source(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells, batch_key="plate")
    pl.interpolation(predict(cells, model, truth=False), cells, model, n=3)
    mu = model.encode(cells).mu
    sources = [int(np.abs(mu - one).sum(1).argmin()) for one in model.decoded[0][0]]
    for _, batch in model.decoded[:5]:
        assert list(batch) == list(cells.obs["plate"].to_numpy()[sources])


def test_change_is_measured_from_the_source(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model), cells, model)
    source, _, target, _ = (np.asarray(ax.images[0].get_array()) for ax in panels(figure))
    assert not source.any()
    names = [tick.get_text() for tick in panels(figure)[0].get_yticklabels()]
    means = [np.asarray(cells[cells.obs["stage"] == stage, names].X).mean(0) for stage in ("early", "late")]
    np.testing.assert_allclose(target[:, 0], (means[1] - means[0]) / 2.0, rtol=1e-4)


def test_sharp_tiles_are_drawn_from_one_noise_per_row_and_labelled_so(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells, refined=True)
    predicted = predict(cells, model)
    figure = pl.interpolation(predicted, cells, model, sharp=True, n=3)
    assert all(model.sharp)
    assert titles(figure)[1][0] == "drawn texture along the path"
    assert [tick.get_text() for tick in panels(figure)[3].get_xticklabels()] == ["measured", "drawn"]
    assert "drawn by the refiner" in texts(figure)
    one, two = (np.asarray(panels(pl.interpolation(predicted, cells, model, sharp=True, n=3, rng=seed))[1].images[0]
                           .get_array()) for seed in (0, 0))  # fmt: skip
    np.testing.assert_array_equal(one, two)


def test_sharp_tiles_of_a_model_without_refiner_or_images_are_refused(linear, make_cells, predict):
    for modality, message in (("images", "train its refiner first"), ("profiles", "draws images")):
        cells = make_cells(modality)
        model = linear(cells)
        with pytest.raises(InputError, match=message):
            pl.interpolation(predict(cells, model), cells, model, sharp=True)


def test_evaluation_lies_below_with_its_verdicts(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    figure = pl.interpolation(predict(cells, model), cells, model)
    dots = [ax for ax in figure.axes if "to the truth" in ax.get_xlabel()]
    assert [ax.get_title(loc="left") for ax in dots] == ["Better than every baseline.", "No better"]


def test_another_metric_can_be_shown_and_an_unknown_one_is_named(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model)
    figure = pl.interpolation(predicted, cells, model, metric="W1")
    assert any(ax.get_xlabel().startswith("W1 to the truth") for ax in figure.axes)
    with pytest.raises(InputError, match="no metric 'F1'; choose one of 'energy distance', 'W1'"):
        pl.interpolation(predicted, cells, model, metric="F1")


def test_more_rows_than_true_cells_leave_the_rest_dark(linear, make_images, predict):
    cells = make_images()
    cells = cells[[*range(10), 11, *range(20, 30)]].copy()
    model = linear(cells)
    page = np.asarray(panels(pl.interpolation(predict(cells, model), cells, model))[3].images[0].get_array())
    assert page[:16].any()
    assert not page[-16:, :16].any()


@pytest.mark.parametrize("draw", [pl.interpolation, pl.path, pl.changes])
def test_other_cells_than_those_that_were_interpolated_are_refused(linear, make_cells, predict, draw):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model)
    with pytest.raises(InputError, match="are not among these"):
        draw(predicted, cells[5:], model)
    with pytest.raises(InputError, match="not predicted cells"):
        draw(cells, cells, model)


def test_changes_draw_the_decoded_mean_between_its_interval_and_the_range_of_cells(linear, make_cells, predict):
    cells = make_cells("profiles")
    model = linear(cells)
    predicted = predict(cells, model)
    figure = pl.changes(predicted, cells, model, n=6)
    shown = [ax for ax in figure.axes if ax.axison]
    assert len(shown) == 6
    course, pairs = replay(predicted, cells, model)
    for ax in shown:
        gene = model.names_.index(ax.get_title(loc="left"))
        x, y = ax.lines[0].get_data()
        np.testing.assert_allclose(x, np.linspace(0, 1, 9))
        expected = [model.decode(course.positions(pairs, t))[:, gene].mean() for t in x]
        np.testing.assert_allclose(y, expected, atol=1e-4)
        widths = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in ax.collections[:2]]
        assert widths[0] > widths[1]


def test_changes_show_measured_means_at_their_times_with_intervals(linear, make_cells, predict):
    cells = make_cells("counts")
    model = linear(cells)
    predicted = predict(cells, model, key="day", source=0, target=4)
    figure = pl.changes(predicted, cells, model, n=3)
    ax = figure.axes[0]
    points = {
        float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in ax.lines if line.get_marker() != "None"
    }
    assert list(points) == [0.0, 4.0, 2.0]
    values = np.asarray(cells.X) / np.asarray(cells.X).sum(1, keepdims=True) * 1e4
    gene = model.names_.index(ax.get_title(loc="left"))
    for day, mean in points.items():
        assert mean == pytest.approx(values[cells.obs["day"] == day, gene].mean(), rel=1e-4)
    bars = [line for line in ax.lines[1:] if line.get_marker() == "None"]
    assert all(bar.get_ydata()[0] < mean < bar.get_ydata()[1] for bar, mean in zip(bars, points.values(), strict=True))
    assert figure.axes[2].get_xlabel() == "day"
    assert figure.get_supylabel() == "counts per 10,000"


def test_changes_resample_pairs_that_share_a_cell_together(linear, make_cells, predict):
    cells = make_cells("profiles")[[0, 1, *range(40, 60)]].copy()
    model = linear(cells)
    few = pl.changes(predict(cells, model, truth=False), cells, model, n=1).axes[0]
    # two source cells: as often as not, one of them is drawn twice
    mu = model.encode(cells[:2]).mu
    gene = model.names_.index(few.get_title(loc="left"))
    low, high = sorted(model.decode(mu)[:, gene])
    at_source = few.collections[1].get_paths()[0].vertices
    at_source = at_source[at_source[:, 0] == 0, 1]
    np.testing.assert_allclose([at_source.min(), at_source.max()], [low, high], atol=1e-3)


def test_changes_of_images_and_of_no_variable_are_refused(linear, make_cells, predict):
    cells = make_cells("images")
    model = linear(cells)
    with pytest.raises(InputError, match=r"use pl.interpolation, or pl.path"):
        pl.changes(predict(cells, model), cells, model)
    with pytest.raises(InputError, match="at least one variable"):
        pl.changes(cells, cells, linear(make_cells("profiles")), n=0)
