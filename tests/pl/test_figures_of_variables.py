from __future__ import annotations

import numpy as np
import pytest

from latentcell import pl
from latentcell.pl._style import shortened
from latentcell.pl._variables import change, most_changed, normalised


def shown_variables(ax) -> list[str]:
    return [tick.get_text() for tick in ax.get_yticklabels()]


@pytest.mark.parametrize("modality", ["counts", "profiles"])
def test_grid_shows_the_most_changed_variables_of_each_dimension(linear, make_cells, modality):
    model = linear(make_cells(modality), kl=[4.0, 3.0, 2.0, 1.0])
    figure = pl.latent_grid(model, n=5)
    for dim, ax in enumerate(figure.axes[:2]):
        widest = np.argsort(-np.abs(model.loadings[dim]))[:25]
        if modality == "profiles":
            assert set(shown_variables(ax)) == {f"gene{i}" for i in widest}
        assert np.asarray(ax.images[0].get_array()).shape == (25, 5)
        assert ax.get_xlabel() == f"$z_{{{dim}}}$  KL {4.0 - dim:.1f} nats"


def test_change_of_profiles_is_in_sd_and_zero_at_the_centre(linear, make_cells):
    model = linear(make_cells("profiles"), kl=[9.0, 1.0, 1.0, 1.0])
    figure = pl.traversal(model, n_dims=1, n=3)
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert not drawn[:, 1].any()
    kept = [int(name.removeprefix("gene")) for name in shown_variables(figure.axes[0])]
    np.testing.assert_allclose(drawn[:, 2], 2.0537489 * model.loadings[0, kept] / 2.0, rtol=1e-4)


def test_change_of_counts_is_log2_per_ten_thousand_with_one_added(linear, make_cells):
    model = linear(make_cells("counts"))
    values = np.array([[7.0, 0.0, 1.0]])
    np.testing.assert_allclose(change(model, values, np.array([1.0, 0.0, 3.0])), [[2.0, 0.0, -1.0]])
    assert normalised(model, np.array([[1, 3], [0, 0]])).tolist() == [[2500.0, 7500.0], [0.0, 0.0]]


def test_most_changed_are_ordered_from_the_highest_rise_to_the_deepest_fall():
    changes = np.array([[0.0, 0.0, 3.0, 0.0], [1.0, -5.0, -3.0, 0.1]])
    assert most_changed(changes, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("modality", ["counts", "profiles"])
def test_traversal_has_a_heat_map_per_dimension(linear, make_cells, modality):
    model = linear(make_cells(modality), 6)
    figure = pl.traversal(model, n_dims=5, n=4)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.images]
    assert titles == [f"$z_{{{dim}}}$  KL {model.latent_['kl'][dim]:.1f} nats" for dim in model.dimensions_[:5]]


def test_figures_of_fewer_variables_than_rows_show_all(linear, make_cells):
    cells = make_cells("profiles")[:, :6].copy()
    model = linear(cells)
    assert len(shown_variables(pl.latent_grid(model, n=3).axes[0])) == 6
    assert len(shown_variables(pl.traversal(model, n=3).axes[0])) == 6


def test_reconstruction_of_profiles_weighs_features_alike_whatever_their_units(linear, make_cells):
    cells = make_cells("profiles")
    model = linear(cells, 1)
    model.loadings = np.zeros_like(model.loadings)  # decodes the average
    figure = pl.reconstruction(model, cells)
    assert figure.axes[0].get_title(loc="left") == "variables do not vary"
    assert figure.axes[1].get_xlabel() == "observed (SD)"


def test_reconstruction_reports_the_correlation_within_variables_and_cells(linear, make_cells):
    cells = make_cells("profiles")
    figure = pl.reconstruction(linear(cells, 40), cells)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["within variables, median r = 1.000", "every value of 60 cells", "within cells, median r = 1.000"]


def test_reconstruction_of_counts_is_on_the_log_scale_and_at_each_cells_library_size(linear, make_cells):
    cells = make_cells("counts")
    model = linear(cells, 3)
    figure = pl.reconstruction(model, cells)
    assert figure.axes[1].get_xlabel() == "observed (log1p counts)"
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, np.log1p(cells.X.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(y, np.log1p(model.reconstruct(cells).mean(0)), rtol=1e-5)


def test_long_names_lose_their_middle_and_stay_different():
    names = [f"Cells_AreaShape_Zernike_and_much_more_{i}" for i in range(3)]
    short = [shortened(name, 20) for name in names]
    assert {len(name) for name in short} == {20}
    assert len(set(short)) == 3
    assert shortened("ISG15") == "ISG15"
