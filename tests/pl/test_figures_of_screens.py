"""Figures of a screen: hits, likeness and contact sheets, with p-values and where there are none."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.text import Text

import latentcell as lc
from latentcell import pl
from latentcell.errors import InputError
from latentcell.model.settings import Settings
from latentcell.pl.contact_sheet import find_members

DESIGN = {"group": "perturbation", "control": "control", "replicate": "well", "block": "plate"}
KINDS = ("profiles", "profiles, ranked only", "table", "orphan", "images", "images, ranked only", "images, orphan")

GAP = 2  # pixels between small crops


class Screen(NamedTuple):
    cells: AnnData
    model: lc.VAE

    @property
    def hits(self) -> pd.DataFrame:
        return self.cells.uns["screen"]["hits"]


def simulated(modality: str, **changed: Any) -> AnnData:
    settings = {"n_plates": 3, "n_control_wells": 8, "n_perturbations": 6, "cells_per_well": 15, "size": 16, "rng": 0}
    if modality == "images":
        settings |= {"n_control_wells": 4, "n_perturbations": 3, "cells_per_well": 6}
    nuisance = {"strengths": (3.0,), "position_effect": 0.0}
    return lc.cells.simulate.screen(modality=modality, **{**settings, **nuisance, **changed})


def orphaned(cells: AnnData) -> AnnData:
    """The last plate has no control, and a perturbation that the others have not."""
    obs = cells.obs.astype({"perturbation": str})
    last = obs["plate"] == "plate_3"
    obs.loc[last & (obs["perturbation"] == "compound_01"), "perturbation"] = "orphan"
    cells.obs = obs
    return cells[~(last & (obs["perturbation"] == "control")).to_numpy()].copy()


def by_well(cells: AnnData) -> AnnData:
    well = cells.obs["plate"].astype(str) + " " + cells.obs["well"].astype(str)
    obs = cells.obs[["plate", "well", "perturbation"]].groupby(well).first()
    return AnnData(cells.to_df().groupby(well).mean().astype(np.float32), obs=obs)


def cells_of(kind: str) -> AnnData:
    modality = "images" if kind.startswith("images") else "profiles"
    cells = simulated(modality, **({"n_control_wells": 1} if "ranked only" in kind else {}))
    if "orphan" in kind:
        return orphaned(cells)
    return by_well(cells) if kind == "table" else cells


@pytest.fixture(scope="module")
def screens() -> dict[str, Screen]:
    """A screen of every kind; tests must not change them."""
    fit = {"epochs": 4, "settings": Settings(batch_size=32, threads=1)}
    made = {}
    for kind in KINDS:
        cells = cells_of(kind)
        made[kind] = Screen(cells, lc.tl.screen(cells, **DESIGN, fit=fit, n_relabellings=499, rng=0))
    return made


@pytest.fixture(params=KINDS)
def screen(request: pytest.FixtureRequest, screens: dict[str, Screen]) -> Screen:
    return screens[request.param]


@pytest.fixture(autouse=True)
def _never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: Any, **__: Any) -> None:
        raise AssertionError("a figure was shown")

    monkeypatch.setattr(Figure, "show", show)


def drawn(figure: Any) -> Figure:
    assert isinstance(figure, Figure)
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=30)
    assert memory.getbuffer().nbytes > 1000
    return figure


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def words(figure: Any) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def dots(ax: Any) -> np.ndarray:
    """Places of the hollow and filled dots, ``(n, 2)``."""
    return np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() == "o"])


def test_every_screen_can_be_drawn(screen: Screen) -> None:
    drawn(pl.screen(screen.cells))


def test_every_likeness_can_be_drawn(screen: Screen) -> None:
    drawn(pl.similarity(screen.cells))


def test_every_best_and_worst_group_has_a_contact_sheet(screen: Screen) -> None:
    for label in screen.hits["label"].iloc[[0, -1]]:
        assert f"{label}: rank" in words(drawn(pl.contact_sheet(screen.cells, screen.model, label, n=3)))


def test_figure_says_the_verdict_and_how_many_are_called_and_fills_their_dots(screens) -> None:
    figure = pl.screen(screens["profiles"].cells)
    hits, called = screens["profiles"].hits, screens["profiles"].hits["q"] <= 0.05
    assert called.sum() >= 3
    assert titles(figure) == [
        f"6 groups, {called.sum()} called", "p and effect", "Do the p-values hold?", "Effect and cell count"
    ]  # fmt: skip
    assert f"{called.sum()} of 6 groups tested leave the control distribution" in words(figure)
    ranks, volcano = figure.axes[0], figure.axes[1]
    filled = [line for line in ranks.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert sorted(filled[0].get_xdata()) == hits.loc[called, "rank"].tolist()
    expected = np.column_stack([hits["effect"], -np.log10(hits["p"])])
    np.testing.assert_allclose(np.sort(dots(volcano), axis=0), np.sort(expected, axis=0))
    assert f"smallest p that the design gives: {hits['min_p'].min():.2g}" in words(volcano)
    assert set(hits["label"]) <= set(words(ranks).split())


def test_figure_shows_how_often_controls_posing_as_perturbations_are_called(screens) -> None:
    cells = screens["profiles"].cells
    panel = pl.screen(cells).axes[2]
    assert f"controls reach p ≤ 0.05 in {cells.uns['screen']['params']['rejection_rate']:.1%}" in words(panel)
    assert {text.get_text() for text in panel.get_legend().get_texts()} == {"groups", "controls posing"}
    assert len(dots(panel)) == 6 + len(cells.uns["screen"]["calibration"])


@pytest.mark.parametrize("kind", ["profiles, ranked only", "images, ranked only"])
def test_the_reason_stands_in_the_place_of_p_values_that_do_not_hold(kind: str, screens) -> None:
    figure = pl.screen(screens[kind].cells)
    assert titles(figure)[:3] == ["Ranked only", "p-values", "Calibration"]
    assert "single control" in words(figure.axes[1])
    assert not figure.axes[1].lines
    assert "called" not in words(figure.axes[0])
    assert len(dots(figure.axes[0])) == len(screens[kind].hits)


def test_unknown_cell_counts_are_said_to_be_unknown(screens) -> None:
    panel = pl.screen(screens["table"].cells).axes[3]
    assert "not known" in words(panel)
    assert not panel.lines
    assert "not known" not in words(pl.screen(screens["profiles"].cells).axes[3])


def test_groups_whose_cell_number_differs_are_ringed(screens) -> None:
    cells = screens["profiles"].cells.copy()
    hits = cells.uns["screen"]["hits"] = cells.uns["screen"]["hits"].copy()
    hits["q_count"] = np.where(hits["label"] == "compound_05", 0.01, 1.0)
    panel = pl.screen(cells).axes[3]
    ring = next(line for line in panel.lines if "cell number differs" in str(line.get_label()))
    np.testing.assert_allclose(ring.get_xydata(), hits.loc[hits["label"] == "compound_05", ["count_effect", "effect"]])


@pytest.mark.parametrize("kind", ["orphan", "images, orphan"])
def test_groups_without_control_are_left_out_of_panels_and_likeness(kind: str, screens) -> None:
    screen = screens[kind]
    assert screen.hits["statistic"].isna().sum() == 1
    assert len(dots(pl.screen(screen.cells).axes[0])) == len(screen.hits) - 1
    ticks = [tick.get_text() for tick in pl.similarity(screen.cells).axes[0].get_yticklabels()]
    assert sorted(ticks) == sorted(set(screen.hits["label"]) - {"orphan"})


def test_likeness_shows_the_cosines_of_the_best_groups_under_their_names(screens) -> None:
    cells = screens["profiles"].cells
    ax = pl.similarity(cells, n=4).axes[0]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert sorted(names) == sorted(screens["profiles"].hits["label"].head(4))
    assert names == [tick.get_text() for tick in ax.get_xticklabels()]
    labels = cells.uns["screen"]["hits"]["label"]
    table = pd.DataFrame(cells.uns["screen"]["similarity"], labels, labels)
    np.testing.assert_allclose(ax.images[0].get_array(), table.loc[names, names])
    assert ax.images[0].get_clim() == (-1, 1)


def test_likeness_needs_two_groups(screens) -> None:
    with pytest.raises(InputError, match=r"two groups or more .*, found 1"):
        pl.similarity(screens["profiles"].cells, n=1)
    drawn(pl.similarity(screens["profiles"].cells, n=2))


def test_contact_sheet_of_profiles_shows_shifts_with_their_intervals_and_what_the_model_draws(screens) -> None:
    screen = screens["profiles"]
    label = screen.hits["label"].iloc[0]
    figure = pl.contact_sheet(screen.cells, screen.model, label)
    assert titles(figure) == ["Measured variables", "Latent dimensions"]
    table = screen.cells.uns["screen"]["reasons"]
    for ax, kind, prefix in zip(figure.axes, ("variable", "latent"), ("", "latent "), strict=True):
        mine = table[(table["label"] == label) & (table["kind"] == kind)]
        assert [tick.get_text() for tick in ax.get_yticklabels()] == [prefix + name for name in mine["name"]]
        np.testing.assert_allclose(dots(ax)[:, 0], mine["effect"])
        crosses = np.concatenate([line.get_xdata() for line in ax.lines if line.get_marker() == "x"])
        np.testing.assert_allclose(crosses, mine["counterfactual"])
        bars = [tuple(line.get_xdata()) for line in ax.lines if line.get_marker() == "None"][1:]
        np.testing.assert_allclose(bars, mine[["low", "high"]])


def test_contact_sheet_says_p_and_rank_or_that_there_is_no_p(screens) -> None:
    hit = screens["profiles"].hits.iloc[0]
    said = words(pl.contact_sheet(screens["profiles"].cells, screens["profiles"].model, hit["label"]))
    assert f"{hit['label']}: rank 1, p = {hit['p']:.2g}, q = {hit['q']:.2g}" in said
    assert "times the cells of controls" in said
    for kind, label in (("profiles, ranked only", "compound_02"), ("orphan", "orphan")):
        said = words(pl.contact_sheet(screens[kind].cells, screens[kind].model, label))
        assert "no p-value, ranked only" in said
    said = words(pl.contact_sheet(screens["table"].cells, screens["table"].model, hit["label"]))
    assert "times the cells" not in said


def test_contact_sheet_of_images_has_four_rows_of_cells_and_a_map_per_channel(screens) -> None:
    screen = screens["images"]
    figure = drawn(pl.contact_sheet(screen.cells, screen.model, "compound_01", n=5))
    rows = ["control cells", "controls, decoded", "controls + shift", "cells of the group"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == rows
    assert np.shape(figure.axes[0].images[0].get_array())[:2] == (4 * 16 + 3 * GAP, 5 * 16 + 4 * GAP)
    maps = [ax for ax in figure.axes if ax.images and np.shape(ax.images[0].get_array()) == (4, 4)]
    assert [ax.get_title() or ax.get_title(loc="left") for ax in maps] == screen.model.names_
    energy = screen.cells.obsm["screen_residual"].reshape(-1, 3, 4, 4)
    role, label = (screen.cells.obs[f"screen_{name}"].astype(str).to_numpy() for name in ("role", "label"))
    treated, control = energy[label == "compound_01"].mean(0), energy[role == "calibrated"].mean(0)
    least = 0.1 * control.mean(axis=(1, 2), keepdims=True)
    ratio = np.log2((treated + least) / (control + least))
    np.testing.assert_allclose([ax.images[0].get_array() for ax in maps], ratio, rtol=1e-4)


def test_contact_sheet_holds_the_group_against_controls_of_its_own_plates(screens) -> None:
    cells = screens["images"].cells
    elsewhere = (cells.obs["plate"] != "plate_2") & (cells.obs["screen_label"] == "compound_01")
    kept = cells[~elsewhere.to_numpy()].copy()
    members = find_members(kept, kept.uns["screen"], "compound_01")
    assert set(kept.obs["plate"].iloc[members.control]) == {"plate_2"}
    assert set(kept.obs["screen_role"].iloc[members.control]) == {"calibrated"}
    np.testing.assert_array_equal(members.treated, np.flatnonzero(kept.obs["screen_label"] == "compound_01"))


def test_contact_sheet_repeats_with_its_seed_and_asks_for_no_more_cells_than_there_are(screens) -> None:
    screen = screens["images"]

    def tiles(rng: int, n: int = 4) -> np.ndarray:
        figure = pl.contact_sheet(screen.cells, screen.model, "compound_02", n=n, rng=rng)
        return np.asarray(figure.axes[0].images[0].get_array())

    np.testing.assert_array_equal(tiles(0), tiles(0))
    assert not np.array_equal(tiles(0), tiles(1))
    n_controls = int((screen.cells.obs["screen_role"] == "calibrated").sum())
    assert tiles(0, n=10_000).shape[1] == n_controls * 16 + (n_controls - 1) * GAP


def test_a_group_that_is_not_there_is_refused_with_names_like_it(screens) -> None:
    with pytest.raises(InputError, match=r"no group 'compond_3'; did you mean one of 'compound_03'"):
        pl.contact_sheet(*screens["profiles"], "compond_3")
    with pytest.raises(InputError, match=r"no group 'zzzz'; did you mean one of 'compound_0\d'"):
        pl.contact_sheet(*screens["profiles"], "zzzz")


@pytest.mark.parametrize("figure", [pl.screen, pl.similarity, lambda cells: pl.contact_sheet(cells, None, "x")])
def test_cells_that_were_not_screened_are_refused_with_the_function_to_run(figure) -> None:
    with pytest.raises(InputError, match=r"run latentcell\.tl\.screen"):
        figure(AnnData(np.zeros((2, 2), dtype=np.float32)))
