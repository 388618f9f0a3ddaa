"""Figures of factors: which dimension holds which, where it acts, how surely, whether it comes back, at what price."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import latentcell as lc
from latentcell import pl
from latentcell.errors import InputError
from latentcell.model.settings import Settings
from latentcell.pl.factors import NOISE
from latentcell.pl.volcano import apart
from latentcell.stats.disentanglement import OVERALL, PER_FACTOR

SHAPE = (2, 8, 8)  # of small images


def metrics(names: list[str], n_refits: int, *, pca: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for codes in ["model", *(f"seed {i + 1}" for i in range(n_refits)), *(["PCA"] if pca else [])]:
        scores = [(metric, name) for metric in PER_FACTOR for name in [*names, "all"]] + [(m, "all") for m in OVERALL]
        for metric, name in scores:
            undefined = metric in OVERALL and len(names) == 1
            value = np.nan if undefined else rng.uniform(0.3, 0.9)
            tested = [value - 0.05, value + 0.05, 0.04, 0.08, 0.005] if codes == "model" else [np.nan] * 5
            rows.append([codes, metric, name, -1, value, *tested])
    columns = ["codes", "metric", "factor", "dimension", "value", "low", "high", "null_mean", "null_95", "p"]
    return pd.DataFrame(rows, columns=columns)


def relations(names: list[str], d: int) -> pd.DataFrame:
    """Each factor in a dimension of its own, chance elsewhere; the last one nowhere if there is more than one."""
    rows = []
    for i, name in enumerate(names):
        for k in range(d):
            found = k == i % d and (i < len(names) - 1 or len(names) == 1)
            rows.append((name, k, 0.9 - 0.01 * i if found else 0.02 + 0.01 * (k % 5), 0.1, 0.005 if found else 0.6))
    return pd.DataFrame(rows, columns=["factor", "dimension", "correlation", "null_95", "p"])


def dimensions(table: pd.DataFrame, stability: pd.DataFrame, inactive: tuple[int, ...]) -> pd.DataFrame:
    best = table.sort_values("correlation", ascending=False).drop_duplicates("dimension").set_index("dimension")
    best = best.sort_index()
    d = len(best)
    kl = np.arange(1.0, d + 1)  # the last dimension carries most
    known = stability.shape[1] > 0
    made = pd.DataFrame(
        {
            "dimension": np.arange(d),
            "kl": kl,
            "active": ~np.isin(np.arange(d), inactive),
            "variance_explained": kl / kl.sum(),
            "guided_by": "",
            "top_factor": best["factor"].to_numpy(),
            "top_correlation": best["correlation"].to_numpy(),
            "null_95": best["null_95"].to_numpy(),
            "p": best["p"].to_numpy(),
            "stability": stability.mean(axis=1).to_numpy() if known else np.nan,
            "comes_back": (stability >= 0.8).mean(axis=1).to_numpy() if known else np.nan,
            "name": ["" if k in inactive else f"+GENE{k} -OTHER{k}" for k in range(d)],
        }
    )
    return made.sort_values("kl", ascending=False, kind="stable").reset_index(drop=True)


def effects(columns: list[tuple[str, str]], n_variables: int = 30) -> pd.DataFrame:
    """In every column three variables up, two down, the others chance."""
    rng, tables = np.random.default_rng(1), []
    for of, name in columns:
        effect = rng.uniform(-0.05, 0.05, n_variables)
        effect[:5] = [0.9, 0.8, 0.7, -0.6, -0.5]
        q = np.where(np.arange(n_variables) < 5, 0.006, 0.7)
        names = [f"gene_{i:02d}" for i in range(n_variables)]
        tables.append(
            pd.DataFrame(
                {
                    "of": of,
                    "name": name,
                    "variable": names,
                    "effect": effect,
                    "statistic": 11 * effect,
                    "p": q / 6,
                    "q": q,
                    "n": 120,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def answer(
    names: tuple[str, ...] = ("dose", "stage=late", "noise"), d: int = 4, n_refits: int = 3, **options: Any
) -> AnnData:
    """Cells with the tables that `latentcell.tl.factors` writes, made up; `inactive` dimensions, or without `pca`."""
    factors = [name.partition("=")[0] for name in names]
    inactive = options.get("inactive", (1,) if d > 1 else ())
    stability = pd.DataFrame(
        np.random.default_rng(2).uniform(0.85, 1.0, (d, n_refits)), columns=[f"seed {i + 1}" for i in range(n_refits)]
    )
    if n_refits:
        stability.iloc[0] = 0.3
    table = relations(factors, d)
    used = [k for k in range(d) if k not in inactive]
    columns = [("dimension", f"z{k}") for k in used] + [("factor", name) for name in names]
    cells = AnnData(np.zeros((6, 2), dtype=np.float32))
    cells.uns["factors"] = {
        "metrics": metrics(factors, n_refits, pca=options.get("pca", True)),
        "relations": table,
        "dimensions": dimensions(table, stability, inactive),
        "stability": stability,
        "effects": effects(columns, options.get("n_variables", 30)),
    }
    return cells


def image_answer(shape: tuple[int, ...] = SHAPE, **options: Any) -> AnnData:
    """The same with effect maps: strong and significant in the upper half, chance in the lower."""
    cells = answer(**options)
    result = cells.uns["factors"]
    named = list(dict.fromkeys(result["effects"]["name"]))
    effect, q = np.full((len(named), *shape), 0.02), np.ones((len(named), *shape))
    upper = slice(0, shape[-2] // 2)
    for i, name in enumerate(named):
        effect[i, ..., upper, :] = (2.5 if "=" in name else 0.7) * (-1) ** i
        q[i, ..., upper, :] = 0.01
    result["maps"], result["map_names"] = {"effect": effect, "q": q}, named
    cells.obsm["factors"] = np.full((cells.n_obs, 4), 0.5, dtype=np.float32)
    return cells


def image_model(linear: Any, make_images: Any, depth: int | None = None) -> Any:
    cells = make_images(depth=depth)
    cells.obsm["images"] = cells.obsm["images"][..., 4:12, 4:12]
    return linear(cells)


def drawn(figure: Any) -> Figure:
    assert isinstance(figure, Figure)
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=30)
    assert memory.getbuffer().nbytes > 1000
    return figure


def words(figure: Any) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


def panel(figure: Figure, title: str) -> Axes:
    return next(ax for ax in figure.axes if ax.get_title(loc="left").startswith(title))


def heat_map(figure: Figure) -> Axes:
    return next(ax for ax in figure.axes if ax.images)


@pytest.fixture(autouse=True)
def _never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: Any, **__: Any) -> None:
        raise AssertionError("a figure was shown")

    monkeypatch.setattr(Figure, "show", show)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"names": ("dose",)},
        {"names": tuple(f"a factor of long name {i}" for i in range(20)), "d": 16, "inactive": ()},
        {"n_refits": 0, "pca": False},
        {"d": 1},
        {"inactive": (0, 1, 2, 3)},
    ],
    ids=["usual", "one factor", "many", "no refits", "one dimension", "none used"],
)
def test_factors_can_be_drawn_of_every_answer(options: dict[str, Any]) -> None:
    drawn(pl.factors(answer(**options)))


def test_factors_shows_used_dimensions_with_the_most_used_first_and_what_chance_reaches_pale() -> None:
    cells = answer()
    figure = pl.factors(cells)
    ax = heat_map(figure)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["$z_{3}$", "$z_{2}$", "$z_{0}$"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["dose", "stage", "noise"]
    shown = ax.images[0].get_array()
    # dose is in z0, stage in z1, which the model does not use, noise nowhere
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), [[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    assert shown[0, 2] == pytest.approx(0.9)
    assert ax.images[0].get_clim() == (0, 1)
    assert tuple(np.round(np.array(ax.images[0].get_cmap().get_bad()[:3]) * 255)) == (240, 240, 240)
    assert NOISE == "#f0f0f0"
    sizes = {text.get_text(): text.get_fontsize() for text in ax.texts if text.get_text()[:1].isdigit()}
    assert sizes["0.90"] > sizes["0.02"]
    assert "Not used by the model, so not shown: z1." in words(figure)
    assert "−OTHER3" in words(figure)


def test_factors_shows_principal_components_and_the_null_beside_each_factor() -> None:
    cells = answer()
    figure = pl.factors(cells)
    beside = next(ax for ax in figure.axes if [t.get_text() for t in ax.get_xticklabels()][:1] == ["best\nPCA"])
    table = cells.uns["factors"]["metrics"]
    best = table[(table["codes"] == "PCA") & (table["metric"] == "max_correlation") & (table["factor"] != "all")]
    shown = [text.get_text() for text in beside.texts]
    assert shown[::2] == [f"{value:.2f}" for value in best["value"]]
    assert shown[1::2] == ["0.10"] * 3
    said = [text.get_text() for text in next(ax for ax in pl.factors(answer(pca=False)).axes if ax.images).texts]
    assert said == [text.get_text() for text in heat_map(figure).texts]


def test_factors_frames_what_was_guided() -> None:
    cells = answer(inactive=())
    table = cells.uns["factors"]["dimensions"]
    table.loc[table["dimension"] == 1, "guided_by"] = "stage"
    figure = pl.factors(cells)
    (frame,) = [patch for patch in heat_map(figure).patches if isinstance(patch, Rectangle)]
    assert (round(frame.get_x() + frame.get_width() / 2), round(frame.get_y() + frame.get_height() / 2)) == (2, 1)
    assert "Orange: guided by the factor." in words(figure)
    assert not heat_map(pl.factors(answer())).patches


def test_factors_shows_scores_with_their_null_refits_and_principal_components() -> None:
    cells = answer()
    ax = panel(pl.factors(cells), "Disentanglement")
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[:3] == ["MIG", "SAP", "DCI completeness"]
    assert len(names) == 7
    table = cells.uns["factors"]["metrics"].query("factor == 'all'").set_index(["codes", "metric"])["value"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[0].get_xdata(), [table[f"seed {i}", "mig"] for i in (1, 2, 3)])
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(diamonds[0].get_xdata(), table["PCA", "mig"])
    bars = [patch.get_width() for patch in ax.patches if patch.get_height() == pytest.approx(0.42)]
    np.testing.assert_allclose(bars[0], table["model", "mig"])
    bands = [patch.get_width() for patch in ax.patches if patch.get_height() == pytest.approx(0.84)]
    np.testing.assert_allclose(bands, 0.08)


def test_scores_that_one_factor_cannot_have_are_said_to_be_missing() -> None:
    said = words(pl.factors(answer(("dose",))))
    assert said.count("needs two factors") == 3


def test_factors_says_that_there_were_no_refits_and_how_many_dimensions_are_left_out() -> None:
    said = words(pl.factors(answer(n_refits=0), n=2))
    assert "No refits were made" in said
    assert "Less used dimensions not shown: 1." in said


def test_dimension_titles_name_factor_and_variables_and_do_not_name_chance() -> None:
    cells = answer()
    table = cells.uns["factors"]["dimensions"]
    assert pl.dimension_titles(cells) == {
        3: "no factor  +GENE3 −OTHER3",
        2: "no factor  +GENE2 −OTHER2",
        1: "not used",
        0: "dose (0.90)  +GENE0 −OTHER0",
    }
    table.loc[table["dimension"] == 0, "guided_by"] = "dose"
    table.loc[table["dimension"] == 2, "guided_by"] = "dose"
    assert pl.dimension_titles(cells)[0].startswith("dose (0.90, guided)  ")
    assert pl.dimension_titles(cells)[2].startswith("no factor (guided by dose)  ")


def maps_of(figure: Figure) -> list[Any]:
    return [ax.images[0] for ax in figure.axes if ax.images and ax.images[0].get_cmap().name == "RdBu_r"]


def test_effects_draws_a_map_per_channel_with_one_symmetric_range_per_unit(linear: Any, make_images: Any) -> None:
    figure = drawn(pl.effects(image_answer(), image_model(linear, make_images)))
    maps = maps_of(figure)
    assert len(maps) == 2 * (3 + 3)
    limits = {image.get_clim() for image in maps}
    assert limits == {(-0.7, 0.7), (-2.5, 2.5)}
    grey = [ax.images[0] for ax in figure.axes if ax.images and ax.images[0].get_cmap().name == "gray"]
    assert len(grey) == 4
    bars = [ax for ax in figure.axes if any(isinstance(each, QuadMesh) for each in ax.collections)]
    labels = {ax.get_xlabel() for ax in bars}
    assert labels == {"effect on the pixel: correlation", "effect on the pixel: difference in SD"}
    rows = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert rows[:1] == ["mean cell"]
    assert "$z_{0}$\ndose (0.90)\n+GENE0\n−OTHER0" in rows
    assert titles(figure)[0] == "Factors\nDAPI"


def test_the_mean_cell_of_effect_maps_is_decoded_from_the_mean_code(linear: Any, make_images: Any) -> None:
    cells, model = image_answer(), image_model(linear, make_images)
    pl.effects(cells, model)
    np.testing.assert_allclose(model.decoded[-1][0], cells.obsm["factors"].mean(0, keepdims=True))


def test_effects_fades_pixels_that_are_not_significant_and_says_where_nothing_was_tested(
    linear: Any, make_images: Any
) -> None:
    cells, model = image_answer(), image_model(linear, make_images)
    maps = maps_of(pl.effects(cells, model, ["dose"]))
    assert len(maps) == 2
    opacity = np.asarray(maps[0].get_alpha())
    assert (opacity[:4] == 1).all()
    assert (opacity[4:] < 0.5).all()
    cells.uns["factors"]["maps"]["q"][0] = np.nan
    cells.uns["factors"]["maps"]["q"][1] = 1.0
    figure = pl.effects(cells, model, [0, 2])
    assert (np.asarray(maps_of(figure)[0].get_alpha()) == 1).all()
    said = words(figure)
    assert "Not tested, so not faded: z0." in said
    assert said.count("no pixel q ≤ 0.05") == 1


def test_effects_projects_volumes_to_the_strongest_effect_with_its_sign(linear: Any, make_images: Any) -> None:
    cells = image_answer((2, 3, 8, 8))
    result = cells.uns["factors"]["maps"]
    result["effect"][0, 0, :, 0, 0], result["q"][0, 0, :, 0, 0] = (0.2, -0.8, 0.1), (0.01, 0.3, 0.01)
    image = maps_of(pl.effects(cells, image_model(linear, make_images, depth=3), ["z0"]))[0]
    assert image.get_array()[0, 0] == pytest.approx(-0.8)
    assert np.asarray(image.get_alpha())[0, 0] < 0.5
    assert image.get_clim() == (-0.8, 0.8)


def test_effects_of_one_factor_over_a_cell_without_structure_can_be_drawn(linear: Any, make_images: Any) -> None:
    model = image_model(linear, make_images)
    model.offset[:] = 5.0
    figure = drawn(pl.effects(image_answer(names=("dose",), d=2), model, n=1))
    assert len(maps_of(figure)) == 4


def test_effects_refuses_what_has_no_maps_and_another_model(linear: Any, make_images: Any, make_cells: Any) -> None:
    model = image_model(linear, make_images)
    with pytest.raises(InputError, match=r"need images; .* use latentcell\.pl\.volcano"):
        pl.effects(answer(), model)
    with pytest.raises(InputError, match=r"need images"):
        pl.effects(image_answer(), linear(make_cells("counts")))
    with pytest.raises(InputError, match=r"images \(2, 4, 4\), but the model decodes \(2, 8, 8\)"):
        pl.effects(image_answer((2, 4, 4)), model)
    with pytest.raises(InputError, match=r"'z1' is no dimension in use and no factor here; there are: 'z0'"):
        pl.effects(image_answer(), model, [1])
    with pytest.raises(InputError, match="names is empty"):
        pl.effects(image_answer(), model, [])
    with pytest.raises(InputError, match="n is 0"):
        pl.effects(image_answer(), model, n=0)


def dots(ax: Axes) -> np.ndarray:
    return np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() == "o"])


def test_volcano_has_factors_before_dimensions_and_eight_panels_at_most() -> None:
    figure = drawn(pl.volcano(answer()))
    assert [title.partition("\n")[0] for title in titles(figure)] == [
        "dose",
        "stage=late",
        "noise",
        "$z_{0}$  dose (0.90)",
        "$z_{3}$  no factor",
        "$z_{2}$  no factor",
    ]
    many = pl.volcano(answer(tuple(f"factor_{i}" for i in range(5)), d=16, inactive=()))
    assert len(titles(many)) == 8
    assert "13 more factors and dimensions are not shown" in words(many)
    assert len(titles(pl.volcano(answer(), ["stage", "z0"]))) == 2


def test_the_best_dimension_of_each_factor_is_shown_before_the_most_used_ones(linear: Any, make_images: Any) -> None:
    shown = [title.partition("  ")[0] for title in titles(pl.volcano(answer(inactive=())))[3:]]
    assert shown == ["$z_{0}$", "$z_{1}$", "$z_{3}$", "$z_{2}$"]
    cells = answer(inactive=())
    related = cells.uns["factors"]["relations"]
    related.loc[(related["factor"] == "dose") & (related["dimension"] == 0), "p"] = 0.051
    assert [title.partition("  ")[0] for title in titles(pl.volcano(cells))[3:5]] == ["$z_{1}$", "$z_{3}$"]
    figure = pl.effects(image_answer(inactive=()), image_model(linear, make_images), n=1)
    rows = [ax.get_ylabel().partition("\n")[0] for ax in figure.axes if ax.get_ylabel()]
    assert [row for row in rows if row.startswith("$z")] == ["$z_{0}$"]


def test_volcano_draws_effect_by_statistic_names_only_what_is_significant_and_counts_it() -> None:
    cells = answer()
    ax = panel(pl.volcano(cells, ["dose"], n=4), "dose")
    rows = cells.uns["factors"]["effects"].query("name == 'dose'")
    places = dots(ax)
    np.testing.assert_allclose(np.sort(places[:, 0]), np.sort(rows["effect"]))
    np.testing.assert_allclose(np.sort(places[:, 1]), np.sort(np.abs(rows["statistic"])))
    assert {text.get_text() for text in ax.texts} == {"gene_00", "gene_01", "gene_02", "gene_03"}
    every = panel(pl.volcano(cells, ["dose"], n=20), "dose")
    assert len(every.texts) == 5
    assert ax.get_title(loc="left").endswith("3 up, 2 down of 30 (n = 120)")
    assert "(correlation)" in ax.get_xlabel()
    assert "difference in SD" in pl.volcano(cells, ["stage"]).axes[0].get_xlabel()


def test_volcano_takes_factors_of_two_numbers_for_differences() -> None:
    cells = answer()
    cells.obs["dose"] = [0.0, 1.0] * 3
    assert "difference in SD" in pl.volcano(cells, ["dose"]).axes[0].get_xlabel()
    cells.obs["dose"] = np.arange(6.0)
    assert "correlation" in pl.volcano(cells, ["dose"]).axes[0].get_xlabel()


def test_volcano_leaves_hollow_what_was_not_tested_and_says_so() -> None:
    cells = answer()
    table = cells.uns["factors"]["effects"]
    table.loc[table["name"] == "z0", ["p", "q"]] = np.nan
    figure = pl.volcano(cells, [0])
    (ax,) = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert ax.get_title(loc="left").endswith("not tested, 30 variables")
    assert all(line.get_markerfacecolor() == "white" for line in ax.lines if len(line.get_xdata()) == 30)
    assert "a code is not tested on the cells that it was trained on" in words(figure)


def test_names_of_a_volcano_do_not_overlap() -> None:
    figure = drawn(pl.volcano(answer(), ["dose"], n=20))
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without their lines
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert not one.overlaps(other)


def test_labels_are_moved_apart_no_further_than_needed() -> None:
    np.testing.assert_allclose(apart([0.5, 0.9, 0.1], 0.1, 0, 1), [0.5, 0.9, 0.1])
    np.testing.assert_allclose(apart([0.5, 0.5], 0.2, 0, 1), [0.6, 0.4])
    np.testing.assert_allclose(apart([1.0, 1.0], 0.2, 0, 1), [1.0, 0.8])
    np.testing.assert_allclose(apart([0.0, 0.0], 0.2, 0, 1), [0.2, 0.0])
    np.testing.assert_allclose(np.sort(apart([0.5] * 5, 1.0, 0, 1)), np.linspace(0, 1, 5))
    assert apart([], 0.1, 0, 1).shape == (0,)


def test_volcano_refuses_unknown_names_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"'age' is no dimension in use .* 'z0', 'z2', 'z3', 'dose', 'stage=late'"):
        pl.volcano(answer(), ["age"])
    with pytest.raises(InputError, match="names is empty"):
        pl.volcano(answer(), [])
    with pytest.raises(InputError, match="n is 21"):
        pl.volcano(answer(), n=21)


def test_stability_shows_each_refit_against_the_level_and_what_the_dimension_is() -> None:
    cells = answer()
    figure = drawn(pl.stability(cells))
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["$z_{3}$", "$z_{2}$", "$z_{0}$"]
    table = cells.uns["factors"]["stability"].loc[[3, 2, 0]].to_numpy()
    places = dots(ax)
    for y, row in enumerate(table):
        np.testing.assert_allclose(np.sort(places[places[:, 1] == y, 0]), np.sort(row))
    assert any(np.allclose(line.get_xdata(), 0.8) for line in ax.lines)
    said = words(figure)
    assert "2 of 3 dimensions come back in most of 3 refits" in said
    assert "3/3" in said
    assert "0/3" in said
    assert "dose (0.90)" in said


def test_stability_without_refits_is_refused() -> None:
    with pytest.raises(InputError, match=r"not fitted again \(seeds=0\)"):
        pl.stability(answer(n_refits=0))
    cells = answer()
    cells.uns["factors"]["stability"][:] = np.nan
    with pytest.raises(InputError, match=r"not fitted again"):
        pl.stability(cells)


def sweep(values: tuple[float, ...] = (0.5, 1, 4, 16), n_seeds: int = 2, **changed: Any) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for value in values:
        for seed in range(n_seeds):
            dose, stage = rng.uniform(0.3, 0.9, 2)
            rows.append(
                {
                    "objective": f"beta={value:g}",
                    "value": float(value),
                    "seed": seed,
                    "label": "stage",
                    "alignment": (dose + stage) / 2,
                    "alignment_dose": dose,
                    "alignment_stage": stage,
                    "reconstruction": rng.uniform(0.5, 0.8),
                    "held_out_nll": rng.uniform(900, 1_000),
                    "ari": rng.uniform(0.2, 0.6),
                    "nmi": rng.uniform(0.2, 0.6),
                    "n_active": int(rng.integers(3, 9)),
                    **changed,
                }
            )
    return pd.DataFrame(rows)


def test_trade_off_draws_seeds_and_their_means_in_five_panels() -> None:
    table = sweep()
    table.attrs["verdict"] = ["beta=4 aligns best."]
    figure = drawn(pl.trade_off(table))
    assert len(titles(figure)) == 5
    ax = panel(figure, "Reconstruction")
    np.testing.assert_allclose(dots(ax), table[["value", "reconstruction"]])
    mean = next(line for line in ax.lines if line.get_marker() != "o")
    np.testing.assert_allclose(mean.get_ydata(), table.groupby("value")["reconstruction"].mean())
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.5", "1", "4", "16"]
    assert ax.get_xlabel() == "beta"
    aligned = panel(figure, "Alignment")
    assert {text.get_text() for text in aligned.texts} == {"dose", "stage", "mean"}
    bold = max(aligned.lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(bold.get_ydata(), table.groupby("value")["alignment"].mean())
    said = words(figure)
    assert "beta=4 aligns best." in said
    assert "up to 2 seeds" in said


def test_trade_off_leaves_out_what_is_unknown_and_scales_by_the_values() -> None:
    figure = pl.trade_off(sweep(ari=np.nan, nmi=np.nan))
    assert len(titles(figure)) == 4
    assert not any("Clusters" in title for title in titles(figure))
    near = pl.trade_off(sweep((1, 2, 3), n_seeds=1))
    assert near.axes[0].get_xscale() == "linear"
    assert "One fit each." in words(near)
    assert pl.trade_off(sweep((0, 2, 20))).axes[0].get_xscale() == "symlog"
    drawn(pl.trade_off(sweep((1,))))


def test_trade_off_names_objectives_of_several_families_and_not_more_factors_than_fit() -> None:
    table = sweep((1, 4))
    table["objective"] = np.where(table["value"] == 1, "elbo", "tc=4")
    table = table.assign(**{f"alignment_factor_{i}": 0.5 for i in range(20)})
    figure = drawn(pl.trade_off(table))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["elbo", "tc=4"]
    assert {text.get_text() for text in panel(figure, "Alignment").texts} == {"22 factors", "mean"}


def test_trade_off_refuses_a_table_without_what_it_draws() -> None:
    with pytest.raises(InputError, match=r"lacks the columns 'value', 'n_active'"):
        pl.trade_off(sweep().drop(columns=["value", "n_active"]))
    with pytest.raises(InputError, match="no row in which both"):
        pl.trade_off(sweep(alignment=np.nan))


@pytest.mark.parametrize("modality", ["images", "counts", "profiles"])
def test_traversals_carry_the_titles_of_their_dimensions(modality: str, linear: Any, make_cells: Any) -> None:
    model = linear(make_cells(modality))
    figure = drawn(pl.traversal(model, titles=pl.dimension_titles(answer())))
    said = words(figure)
    assert "KL" in said
    assert "dose (0.90) +GENE0 −OTHER0" in said
    assert "dose" not in words(pl.traversal(model))
    with pytest.raises(InputError, match=r"titles names '7', but the model has 4 latent dimensions"):
        pl.traversal(model, titles={7: "stage"})


@pytest.mark.parametrize(
    "figure", [pl.factors, pl.volcano, pl.stability, pl.dimension_titles, lambda cells: pl.effects(cells, None)]
)
def test_cells_without_factors_are_refused_with_the_function_to_run(figure: Any) -> None:
    with pytest.raises(InputError, match=r'no uns\["factors"\]: run latentcell\.tl\.factors'):
        figure(AnnData(np.zeros((2, 2), dtype=np.float32)))


def test_what_latentcell_finds_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentcell.tl.relations.N_PERMUTATIONS", 4, raising=False)
    monkeypatch.setattr("latentcell.tl.relations._N_RESAMPLES", 2, raising=False)
    monkeypatch.setattr("latentcell.tl.effects._N_PERMUTATIONS", 19, raising=False)
    cells = lc.cells.simulate.counts(80, 12, n_batches=2, rng=0)
    fit = {"epochs": 3, "settings": Settings(threads=1)}
    model = lc.VAE(3).fit(cells, rng=0, **fit)
    lc.tl.factors(cells, model, ["cell_type", "programme_3"], nuisance=["batch"], seeds=1, fit=fit)
    for figure in (pl.factors(cells), pl.volcano(cells), pl.stability(cells)):
        drawn(figure)
    drawn(pl.traversal(model, titles=pl.dimension_titles(cells), n=3))
