from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.stats import norm

import latentcell as lc
from latentcell import pl
from latentcell.errors import InputError
from latentcell.pl._images import Display, decoded_tiles, montage, projected, projected_blocks


def page(figure: Figure, panel: int = 0) -> np.ndarray:
    return np.asarray(figure.axes[panel].images[0].get_array())


def labels(figure: Figure, axis: str, panel: int = 0) -> list[str]:
    return [tick.get_text() for tick in getattr(figure.axes[panel], f"get_{axis}ticklabels")()]


def test_grid_takes_the_two_dimensions_with_the_highest_kl(linear, make_cells):
    model = linear(make_cells("images"), kl=[1.0, 9.0, 2.0, 5.0])
    figure = pl.latent_grid(model, n=3)
    assert figure.axes[0].get_xlabel().startswith("$z_{1}$  KL 9.0 nats")
    assert figure.axes[0].get_ylabel().startswith("$z_{3}$  KL 5.0 nats")


def test_grid_decodes_prior_quantiles_rightwards_and_upwards_with_the_rest_at_zero(linear, make_cells):
    model = linear(make_cells("images"))
    figure = pl.latent_grid(model, dims=(2, 0), n=5)
    z = np.concatenate([z for z, _ in model.decoded]).reshape(5, 5, 4)
    quantiles = norm.ppf(np.linspace(0.02, 0.98, 5))
    np.testing.assert_allclose(z[..., 2], np.tile(quantiles, (5, 1)))
    np.testing.assert_allclose(z[..., 0], np.tile(quantiles[::-1, None], (1, 5)))
    assert not z[..., [1, 3]].any()
    assert labels(figure, "x") == ["−2.1", "−0.6", "0.0", "0.6", "2.1"]


def test_grid_tiles_abut_and_lie_where_their_ticks_are(linear, make_cells):
    figure = pl.latent_grid(linear(make_cells("images")), n=4)
    assert page(figure).shape == (64, 64, 3)
    assert figure.axes[0].images[0].get_extent() == [-0.5, 3.5, 3.5, -0.5]


def test_grid_over_cells_walks_through_their_positions(linear, make_cells):
    cells = make_cells("images")
    model = linear(cells)
    mu = model.encode(cells).mu
    pl.latent_grid(model, dims=(0, 1), n=3, cells=cells)
    z = np.concatenate([z for z, _ in model.decoded]).reshape(3, 3, 4)
    np.testing.assert_allclose(z[0, :, 0], np.quantile(mu[:, 0], [0.02, 0.5, 0.98]), rtol=1e-5)
    np.testing.assert_allclose(z[..., 3], np.median(mu[:, 3]), atol=1e-6)


def test_grid_decodes_the_batch_that_is_asked_for(linear, make_cells):
    model = linear(make_cells("images"))
    pl.latent_grid(model, n=2, batch="plate 1")
    assert model.decoded[0][1] == "plate 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (0, 9)}, "dimension 9 does not exist: the model has 4"),
        ({"dims": (1, 1)}, "two different latent dimensions"),
        ({"n": 1}, "at least two steps"),
        ({"channels": "rgb"}, "choose 'composite' or 'side_by_side'"),
    ],
)
def test_grid_refuses_what_it_cannot_draw(linear, make_cells, options, message):
    with pytest.raises(InputError, match=message):
        pl.latent_grid(linear(make_cells("images")), **options)


def test_grid_of_a_single_dimension_points_to_traversal(linear, make_cells):
    with pytest.raises(InputError, match="use traversal"):
        pl.latent_grid(linear(make_cells("images"), 1))


def test_side_by_side_gives_every_channel_a_grey_panel_with_its_scale(linear, make_cells):
    for draw in (pl.latent_grid, pl.traversal):
        figure = draw(linear(make_cells("images")), n=3, channels="side_by_side")
        assert [ax.get_title() for ax in figure.axes[:2]] == ["DAPI", "actin"]
        assert np.ptp(page(figure, 1)[..., :], axis=-1).max() == 0
        assert [ax.get_xlabel() for ax in figure.axes[2:]] == ["intensity, stored units"] * 2


def test_traversal_has_a_row_per_dimension_in_order_of_kl(linear, make_cells):
    model = linear(make_cells("images"), kl=[1.0, 9.0, 2.0, 5.0])
    figure = pl.traversal(model, n_dims=3, n=5)
    assert labels(figure, "y") == ["$z_{1}$  KL 9.0 nats", "$z_{3}$  KL 5.0 nats", "$z_{2}$  KL 2.0 nats"]
    z = np.concatenate([z for z, _ in model.decoded]).reshape(3, 5, 4)
    for row, dim in enumerate([1, 3, 2]):
        assert (np.diff(z[row, :, dim]) > 0).all()
        assert not np.delete(z[row], dim, axis=1).any()


def test_traversal_shows_all_dimensions_if_there_are_fewer_than_asked(linear, make_cells):
    assert len(labels(pl.traversal(linear(make_cells("images"), 3), n=3), "y")) == 3
    with pytest.raises(InputError, match="at least one"):
        pl.traversal(linear(make_cells("images")), n_dims=0)


def test_volumes_are_shown_as_maximum_projections(linear, make_images):
    cells = make_images(depth=3)
    model = linear(cells)
    for figure in (pl.latent_grid(model, n=2), pl.traversal(model, n=2), pl.reconstruction(model, cells, n=2)):
        assert page(figure).ndim == 3
    volumes = cells.obsm["images"]
    np.testing.assert_array_equal(projected(volumes), volumes.max(axis=2))


def test_projecting_in_blocks_changes_nothing(make_images, monkeypatch):
    volumes = make_images(depth=3).obsm["images"]
    monkeypatch.setattr("latentcell.pl._images._BLOCK_VALUES", 7 * volumes[0].size)
    made: list[slice] = []
    blocks = projected_blocks(lambda rows: made.append(rows) or volumes[rows], len(volumes), volumes.shape[1:])
    np.testing.assert_array_equal(blocks, projected(volumes))
    assert [rows.stop - rows.start for rows in made] == [7, 7, 7, 7, 2]


def test_reconstruction_shows_cells_above_their_decoded_selves_in_one_range(linear, make_cells):
    cells = make_cells("images")
    model = linear(cells, 8)
    rows = np.sort(np.random.default_rng(5).choice(cells.n_obs, 4, replace=False))
    figure = pl.reconstruction(model, cells, n=4, rng=5)
    measured = model.measurements(cells[rows])
    display = Display.of(measured, model.names_)
    ((_, tiles),) = display.panels(np.concatenate([measured, model.reconstruct(cells[rows])]), "composite")
    np.testing.assert_allclose(page(figure), montage(tiles, 4, 2))
    assert labels(figure, "y") == ["measured", "decoded"]


def test_reconstruction_takes_all_cells_if_there_are_few_and_refuses_none(linear, make_cells):
    cells = make_cells("images")
    model = linear(cells)
    assert page(pl.reconstruction(model, cells[:3], n=10)).shape == (34, 52, 3)
    with pytest.raises(InputError, match="nothing to show: 0 cells"):
        pl.reconstruction(model, cells[:0])


def test_display_range_of_a_channel_does_not_depend_on_the_others():
    images = np.random.default_rng(0).gamma(2.0, size=(5, 3, 8, 8))
    one, all_three = Display.of(images[:, 1:2], ["b"]), Display.of(images, ["a", "b", "c"])
    assert (one.low[0], one.high[0]) == (all_three.low[1], all_three.high[1])


def test_constant_channel_is_dark_and_divides_nothing_by_zero():
    images = np.full((2, 1, 4, 4), 7.0)
    assert not Display.of(images, ["empty"]).brightness(images).any()


def test_dna_is_blue_wherever_it_stands_and_a_single_channel_white():
    blue = Display(["x", "DAPI", "y"], np.zeros(3), np.ones(3)).colors[1]
    assert to_rgb(blue)[2] == 1.0
    assert Display(["tubulin", "H2B-mCherry"], np.zeros(2), np.ones(2)).colors[1] == blue
    assert Display(["anything"], np.zeros(1), np.ones(1)).colors == ["#ffffff"]
    several = Display([f"protein {i}" for i in range(5)], np.zeros(5), np.ones(5)).colors
    assert len(set(several)) == 5
    assert blue not in several


def test_composite_brightens_with_every_channel_and_stays_in_range():
    display = Display(["DNA", "a", "b"], np.zeros(3), np.ones(3))
    images = np.random.default_rng(0).uniform(size=(4, 3, 6, 6))
    ((_, before),) = display.panels(images, "composite")
    ((_, after),) = display.panels(np.minimum(images + 0.1, 1.0), "composite")
    assert (after >= before).all()
    assert before.min() >= 0
    assert after.max() <= 1


def test_composite_of_many_channels_keeps_dna_and_says_how_many_are_left_out(linear, make_images):
    names = (*(f"protein {i}" for i in range(7)), "Hoechst")
    figure = pl.traversal(linear(make_images(channels=names)), n=2)
    legend = figure.axes[0].get_legend()
    shown = [text.get_text() for text in legend.get_texts()]
    assert "Hoechst" in shown
    assert shown[-1] == "(2 more not shown)"


def test_montage_places_tiles_row_by_row_with_white_between():
    tiles = np.stack([np.full((2, 3, 3), value) for value in (0.1, 0.2, 0.3)])
    both = montage(tiles, 2, gap=1)
    assert both.shape == (5, 7, 3)
    assert (both[3:, :3] == 0.3).all()
    assert (both[2] == 1).all()
    assert (both[3:, 4:] == 1).all()


def test_real_cells_are_drawn_without_a_warning(linear, data_dir, tmp_path):
    cells = lc.read(data_dir / "images" / "hela_h2b_mitosis")[:60].copy()
    model = linear(cells)
    for name, figure in {
        "grid": pl.latent_grid(model, n=5),
        "traversal": pl.traversal(model, n=5),
        "reconstruction": pl.reconstruction(model, cells, n=5),
    }.items():
        assert all(path.stat().st_size > 10_000 for path in pl.save(figure, tmp_path / name))


@pytest.mark.parametrize("draw", [pl.latent_grid, pl.traversal])
def test_sharp_tiles_start_from_one_noise_and_the_figure_says_so(linear, make_cells, draw):
    model = linear(make_cells("images"), refined=True)
    figure = draw(model, n=3, sharp=True)
    assert all(model.sharp)
    assert "differ by their codes alone" in figure.get_supxlabel().replace("\n", " ")
    flat = linear(make_cells("images"), refined=True)
    flat.loadings = np.zeros_like(flat.loadings)
    tiles, _ = decoded_tiles(flat, np.zeros((3, 4)), None, sharp=True, rng=1)
    np.testing.assert_array_equal(tiles[0], tiles[2])
    assert not draw(model, n=3).get_supxlabel()


def test_sharp_reconstructions_stand_below_the_decoded_ones(linear, make_cells):
    cells = make_cells("images")
    figure = pl.reconstruction(linear(cells, refined=True), cells, n=3, sharp=True)
    assert labels(figure, "y") == ["measured", "decoded", "drawn texture"]
    assert "drawn by the refiner" in figure.get_supxlabel().replace("\n", " ")


def test_sharp_is_refused_without_a_refiner(linear, make_cells):
    cells = make_cells("images")
    for draw in (pl.latent_grid, pl.traversal, lambda model, sharp: pl.reconstruction(model, cells, sharp=sharp)):
        with pytest.raises(InputError, match=r"model.fit_refiner\(cells\)"):
            draw(linear(cells), sharp=True)
