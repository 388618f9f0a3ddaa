from __future__ import annotations

import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from latentcell import pl
from latentcell.errors import InputError


@pytest.fixture
def embedded(make_cells):
    cells = make_cells("profiles")
    cells.obsm["vae"] = np.random.default_rng(1).normal(size=(60, 5)) * [5, 3, 1, 1, 1]
    return cells


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_latent_shows_the_first_two_principal_components_with_their_share(embedded):
    figure = pl.latent(embedded)
    mu = embedded.obsm["vae"] - embedded.obsm["vae"].mean(0)
    share = np.linalg.svd(mu, compute_uv=False) ** 2 / (mu**2).sum()
    ax = figure.axes[0]
    assert ax.get_xlabel() == f"PC 1 ({share[0]:.0%} of variance)"
    points = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(points.var(0) * 60, share[:2] * (mu**2).sum())


def test_latent_takes_two_dimensions_as_they_are(embedded):
    figure = pl.latent(embedded, method=(3, 1))
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), embedded.obsm["vae"][:, [3, 1]])
    assert figure.axes[0].get_xlabel() == "$z_{3}$"


def test_latent_of_one_dimension_or_one_cell_is_drawn(embedded):
    embedded.obsm["one"] = embedded.obsm["vae"][:, :1]
    assert pl.latent(embedded, key="one").axes[0].get_ylabel() == "PC 2 (0% of variance)"
    assert pl.latent(embedded[:1], color="stage").axes


def test_latent_colours_levels_in_their_order_and_lists_them_beside(embedded):
    embedded.obs["stage"] = pd.Categorical(embedded.obs["stage"], ["early", "middle", "late", "never"])
    figure = pl.latent(embedded, color="stage")
    assert legend(figure) == ["early", "middle", "late"]
    assert len({to_hex(c) for c in figure.axes[0].collections[0].get_facecolors()}) == 3


def test_latent_colours_the_commonest_of_many_levels_and_counts_the_rest(embedded):
    embedded.obs["well"] = [f"w{i % 30:02d}" for i in range(60)]
    assert legend(pl.latent(embedded, color="well"))[-1] == "12 rarer levels"
    assert len(legend(pl.latent(embedded, color="well"))) == 19


def test_latent_leaves_the_cells_their_space_however_long_the_legend(embedded):
    embedded.obs["compound"] = [f"a compound with a long name {i}" for i in range(60)]
    widths = []
    for color in ("stage", "compound"):
        figure = pl.latent(embedded, color=color)
        figure.canvas.draw()
        widths.append(figure.axes[0].get_window_extent().width / figure.dpi)
    assert abs(widths[0] - widths[1]) < 0.3


def test_latent_shows_missing_values_in_grey(embedded):
    embedded.obs.loc[embedded.obs_names[:7], "day"] = np.nan
    grey = pl.latent(embedded, color="day").axes[0].collections[0]
    assert len(grey.get_offsets()) == 7
    embedded.obs.loc[embedded.obs_names[:7], "stage"] = None
    assert legend(pl.latent(embedded, color="stage"))[-1] == "missing"


def test_latent_gives_numbers_a_colour_bar_and_booleans_a_legend(embedded):
    assert [ax.get_ylabel() for ax in pl.latent(embedded, color="day").axes[1:]] == ["day"]
    embedded.obs["mitotic"] = embedded.obs["day"] > 1
    assert legend(pl.latent(embedded, color="mitotic")) == ["False", "True"]


def test_latent_draws_into_the_axes_that_it_is_given(embedded):
    figure = Figure()
    ax = figure.subplots(1, 2)[1]
    assert pl.latent(embedded, color="stage", ax=ax) is figure
    assert ax.collections


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "scvi"}, "no embedding 'scvi'"),
        ({"color": "dose"}, "no column 'dose' to colour by; columns of obs: 'stage', 'day', 'plate'"),
        ({"method": "tsne"}, "choose 'pca', 'umap' or two of the 5"),
        ({"method": (0, 5)}, "two of the 5 latent dimensions"),
    ],
)
def test_latent_says_what_is_missing(embedded, options, message):
    with pytest.raises(InputError, match=message):
        pl.latent(embedded, **options)


def test_latent_by_umap_asks_for_its_package_or_uses_it(embedded, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="pip install umap-learn"):
        pl.latent(embedded, method="umap")
    fake = SimpleNamespace(UMAP=lambda **_: SimpleNamespace(fit_transform=lambda mu: mu[:, :2] + 1))
    monkeypatch.setitem(sys.modules, "umap", fake)
    figure = pl.latent(embedded, method="umap")
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), embedded.obsm["vae"][:, :2] + 1)


def test_training_marks_the_chosen_epoch_and_shows_both_sets_of_cells(linear, make_cells):
    figure = pl.training(linear(make_cells("profiles")))
    elbo = figure.axes[0]
    entries = [text.get_text() for text in elbo.get_legend().get_texts()]
    assert entries == ["training cells", "held-out cells", "chosen, epoch 7"]
    assert list(elbo.lines[2].get_xdata()) == [7, 7]


def test_training_leaves_the_plunge_of_the_first_epochs_out_of_the_range(linear, make_cells):
    low, high = pl.training(linear(make_cells("profiles"))).axes[0].get_ylim()
    assert -2000 < low < -119
    assert high > -100.1


def test_training_orders_dimensions_by_kl_and_tells_the_inactive_ones(linear, make_cells):
    figure = pl.training(linear(make_cells("profiles"), kl=[0.0, 3.0, 2.0, 0.1]))
    bars = figure.axes[2]
    assert [tick.get_text() for tick in bars.get_xticklabels()] == ["$z_{1}$", "$z_{2}$", "$z_{3}$", "$z_{0}$"]
    assert bars.get_title(loc="left") == "2 of 4 dimensions active"
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["active", "not active"]


def test_training_of_one_epoch_or_with_nan_is_drawn(linear, make_cells, monkeypatch):
    model = linear(make_cells("profiles"))
    history = model.history_
    for course in (history[:1], history.assign(val_elbo=np.nan, val_kl=np.nan)):
        monkeypatch.setattr(type(model), "history_", course)
        pl.training(model).canvas.draw()


def test_save_writes_png_and_svg_and_nothing_else(embedded, tmp_path):
    written = pl.save(pl.latent(embedded, color="stage"), tmp_path / "new" / "latent.v1")
    assert written == pl.save(pl.latent(embedded, color="stage"), tmp_path / "new" / "latent.v1.png")
    assert written == [tmp_path / "new" / "latent.v1.png", tmp_path / "new" / "latent.v1.svg"]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(written)
    assert written[0].read_bytes().startswith(b"\x89PNG")
    text = written[1].read_text()
    assert ">early</text>" in text  # text stays text
    assert text.count("<use") < 60  # points are pixels


def test_save_gives_the_same_file_for_the_same_figure(embedded, tmp_path):
    one, two = (pl.save(pl.latent(embedded, color="day"), tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_failed_save_leaves_the_old_figure(embedded, tmp_path, monkeypatch):
    figure = pl.latent(embedded)
    png, _ = pl.save(figure, tmp_path / "latent")
    before = png.read_bytes()

    def full_disk(path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        pl.save(figure, tmp_path / "latent")
    assert png.read_bytes() == before


def test_a_notebook_shows_a_returned_figure_once(embedded):
    assert pl.latent(embedded)._repr_png_().startswith(b"\x89PNG")


def test_figures_are_drawn_in_the_house_style_whatever_the_users_is(embedded):
    with mpl.rc_context({"font.size": 30.0, "axes.spines.top": True}):
        ax = pl.latent(embedded).axes[0]
    assert ax.xaxis.label.get_fontsize() == 9.0
    assert not ax.spines["top"].get_visible()
