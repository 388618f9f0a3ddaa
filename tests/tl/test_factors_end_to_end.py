"""The question for factors from cells to verdict: what is written, what is found, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from driven import (
    BRIEF,
    FIT,
    MAKERS,
    OF_DOSE,
    OF_STAGE,
    effects_module,
    factors_module,
    fitted,
    pictured,
    profiles,
    quick,
)
from scipy.stats import false_discovery_control
from sklearn.metrics import balanced_accuracy_score, r2_score

import latentcell as lc
from latentcell.cells.factors import read_factors
from latentcell.cells.stores import write_h5ad
from latentcell.errors import InputError
from latentcell.model.guidance import Guidance, Guide
from latentcell.stats.association import correlation
from latentcell.tl.coded import coded
from latentcell.tl.relations import read_back
from latentcell.tl.said import said

ASKED = ["dose", "stage", "noise"]
SETS = {
    "of dose": (*OF_DOSE, "v18", "v19"),
    "others": [f"v{i:02d}" for i in range(8, 18)],
}
TABLES = {
    "metrics": ["codes", "metric", "factor", "dimension", "value", "low", "high", "null_mean", "null_95", "p"],
    "relations": ["factor", "dimension", "correlation", "null_95", "p"],
    "dimensions": [
        *("dimension", "kl", "active", "variance_explained", "guided_by", "top_factor", "top_correlation"),
        *("null_95", "p", "stability", "comes_back", "name"),
    ],
    "effects": [
        *("of", "name", "variable", "covariance_model", "covariance_model_sd", "covariance", "low", "high", "effect"),
        *("statistic", "p", "q", "n"),
    ],
    "leak": ["factor", "score", "chance", "null_95", "p"],
    "read_back": ["factor", "measure", "value", "chance"],
    "gene_sets": ["of", "name", "gene_set", "n_genes", "score", "p", "q", "direction", "leading"],
}  # fmt: skip


class Answer(NamedTuple):
    cells: AnnData
    before: AnnData
    model: lc.VAE
    folder: Path

    @property
    def uns(self) -> dict[str, Any]:
        return self.cells.uns["factors"]

    @property
    def verdict(self) -> str:
        return " ".join(self.uns["verdict"])


def ask(cells: AnnData, model: lc.VAE, factors: Any = ASKED, **options: Any) -> dict[str, Any]:
    """Ask, and return what was written."""
    lc.tl.factors(cells, model, factors, **{"seeds": 2, "fit": FIT, "rng": 10} | options)
    return cells.uns["factors"]


def answered(cells: AnnData, folder: Path, guided: tuple[str, ...] = (), **options: Any) -> Answer:
    before, model = cells.copy(), fitted(cells, factors=lc.Factors(guided=guided))
    ask(cells, model, folder=folder, nuisance=["plate"], **options)
    return Answer(cells, before, model, folder)


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """One question of each modality; tests must not change them."""
    folder = tmp_path_factory.mktemp("factors")
    return {
        "profiles": answered(profiles(200), folder / "profiles", gene_sets=SETS),
        "counts": answered(MAKERS["counts"](200), folder / "counts", ("stage", "dose"), replicate="well"),
        "images": answered(pictured(), folder / "images", ("stage",)),
    }


@pytest.fixture(params=list(MAKERS))
def answer(request: pytest.FixtureRequest, answers: dict[str, Answer]) -> Answer:
    return answers[request.param]


@pytest.fixture
def plain(answers: dict[str, Answer]) -> Answer:
    return answers["profiles"]


def recoded(answer: Answer, seeds: int = 2, by: str | None = None) -> Any:
    """Model, refits and codes behind an answer, refits read from its folder."""
    unit = None if by is None else answer.cells.obs[by].astype(str).to_numpy()
    return coded(answer.cells, answer.model, seeds=seeds, replicate=unit, folder=answer.folder, fit=FIT, seed=10)


# what is written


def test_every_table_has_its_columns_and_rows(answer: Answer) -> None:
    uns, d, modality = answer.uns, answer.model.n_latent, answer.model.modality_
    documented = {*TABLES, "stability", "association", "verdict", "params"} - {"gene_sets"}
    documented |= {"images": {"maps", "map_names"}, "profiles": {"gene_sets"}}.get(modality, set())
    assert set(uns) == documented
    for name, columns in TABLES.items():
        if name in uns:
            assert list(uns[name].columns) == columns, name
    assert uns["relations"][["factor", "dimension"]].to_numpy().tolist() == [[f, k] for f in ASKED for k in range(d)]
    assert sorted(uns["dimensions"]["dimension"]) == list(range(d))
    assert uns["dimensions"]["kl"].is_monotonic_decreasing
    assert uns["dimensions"]["active"].dtype == bool
    assert uns["stability"].shape == (d, 2)
    assert uns["leak"]["factor"].tolist() == ["plate"]
    guided = {guide.name for guide in answer.model.schema_.guidance.guides}
    assert uns["read_back"]["factor"].tolist() == [name for name in ASKED if name in guided]
    assert list(uns["association"]) == [*ASKED, "plate"]
    assert uns["params"]["factors"] == ["dose:continuous", "stage:categorical", "noise:continuous"]
    assert uns["params"]["nuisance"] == ["plate:categorical"]
    assert (uns["params"]["seeds"], uns["params"]["rng"]) == (2, 10)
    assert uns["params"]["replicate"] == ("well" if modality == "counts" else "")
    assert uns["params"]["model_sha256"] == answer.model.sha256()


def test_effects_are_of_the_dimensions_in_use_and_the_factors_strongest_first(answer: Answer) -> None:
    effects, dimensions = answer.uns["effects"], answer.uns["dimensions"]
    active = [f"z{k}" for k in dimensions.loc[dimensions["active"], "dimension"]]
    levels = ["stage=early", "stage=late", "stage=middle"]
    assert list(dict.fromkeys(effects["name"])) == [*active, "dose", *levels, "noise"]
    assert set(effects.loc[effects["name"].isin(active), "of"]) == {"dimension"}
    n_variables = 20 if answer.model.modality_ != "images" else len(effects) // (len(active) + 5)
    for _, rows in effects.groupby("name"):
        assert len(rows) == rows["variable"].nunique() == n_variables
        assert rows["statistic"].abs().is_monotonic_decreasing
        assert (rows["low"] <= rows["high"]).all()
        if rows["p"].notna().all():
            np.testing.assert_allclose(rows["q"], false_discovery_control(rows["p"]))
    factor = effects[effects["of"] == "factor"]
    assert factor.notna().all(axis=None)


def test_the_codes_that_factors_were_held_against_are_kept(answer: Answer) -> None:
    codes = answer.cells.obsm["factors"]
    assert (codes.shape, codes.dtype) == ((answer.cells.n_obs, answer.model.n_latent), np.float32)
    related = answer.uns["relations"].pivot_table(index="dimension", columns="factor", values="correlation")
    np.testing.assert_allclose(related[ASKED], correlation(codes, read_factors(answer.cells, ASKED)), atol=1e-5)


def test_dimensions_out_of_use_are_zero_in_the_codes_that_are_kept(answer: Answer) -> None:
    dimensions = answer.uns["dimensions"]
    unused = dimensions.loc[~dimensions["active"], "dimension"].to_numpy()
    assert (answer.cells.obsm["factors"][:, unused] == 0).all()
    assert (dimensions.loc[~dimensions["active"], "top_correlation"] == 0).all()
    assert (dimensions.loc[~dimensions["active"], "name"] == "").all()


def test_measurements_and_annotation_stay_as_they_were(answer: Answer) -> None:
    pd.testing.assert_frame_equal(answer.cells.obs, answer.before.obs)
    pd.testing.assert_frame_equal(answer.cells.var, answer.before.var)
    for key in answer.before.obsm:
        np.testing.assert_array_equal(answer.cells.obsm[key], answer.before.obsm[key])
    if answer.before.X is not None:
        np.testing.assert_array_equal(answer.cells.X, answer.before.X)
    assert set(answer.cells.obsm) == {*answer.before.obsm, "factors"}
    assert set(answer.cells.uns) == {*answer.before.uns, "factors"}


def test_an_answer_survives_writing_and_reading(answer: Answer, tmp_path: Path) -> None:
    write_h5ad(answer.cells, tmp_path / "cells.h5ad", images=False)
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    same(back.uns["factors"], answer.uns)
    np.testing.assert_array_equal(back.obsm["factors"], answer.cells.obsm["factors"])


def same(found: Any, expected: Any) -> None:
    """Whether what was read is what was written, lists being arrays by then."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name, value in expected.items():
            same(found[name], value)
    elif isinstance(expected, pd.DataFrame) and not expected.size:
        assert found.shape == expected.shape
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, list):
        assert list(found) == expected
    else:
        np.testing.assert_array_equal(found, expected)


def test_without_refits_nuisance_or_gene_sets_an_answer_survives_too(plain: Answer, tmp_path: Path) -> None:
    cells = plain.before.copy()
    uns = ask(cells, plain.model, ["stage"], seeds=0)
    assert uns["stability"].shape == (4, 0)
    assert uns["dimensions"][["stability", "comes_back"]].isna().all(axis=None)
    assert (uns["effects"]["covariance_model_sd"] == 0).all()
    assert len(uns["leak"]) == 0
    assert not any("refits" in sentence for sentence in uns["verdict"])
    assert uns["metrics"]["codes"].unique().tolist() == ["model", "PCA"]
    write_h5ad(cells, tmp_path / "cells.h5ad")
    same(anndata.read_h5ad(tmp_path / "cells.h5ad").uns["factors"], uns)


def test_maps_are_of_images_only_and_have_their_shape(answers: dict[str, Answer]) -> None:
    uns = answers["images"].uns
    assert set(uns["maps"]) == {"covariance", "low", "high", "effect", "q"}
    for each in uns["maps"].values():
        assert (each.shape, each.dtype) == ((len(uns["map_names"]), 2, 16, 16), np.float32)
    assert uns["map_names"] == list(dict.fromkeys(uns["effects"]["name"]))
    assert "maps" not in answers["profiles"].uns
    centre = uns["maps"]["effect"][uns["map_names"].index("dose"), :, 7:9, 7:9]
    assert (centre[0] > 0.8).all()
    assert (np.abs(centre[1]) < 0.5).all()
    assert (uns["maps"]["q"][uns["map_names"].index("dose"), 0, 7:9, 7:9] <= 0.05).all()


def test_volumes_and_masked_cells_have_maps_too() -> None:
    flat = pictured(40, masks=True)
    assert ask(flat, fitted(flat, fit=BRIEF), ["dose"], seeds=0)["maps"]["q"].shape[1:] == (2, 16, 16)
    volume = lc.cells.simulate.images(30, size=16, depth=4, rng=0)
    model = lc.VAE(2, width=4, orientation="as_is").fit(volume, rng=0, **BRIEF)
    assert ask(volume, model, ["intensity"], seeds=0)["maps"]["q"].shape[1:] == (3, 4, 16, 16)


# what is found


def test_the_dimension_that_an_unguided_factor_lies_on_is_found(plain: Answer) -> None:
    related, dimensions = plain.uns["relations"], plain.uns["dimensions"].set_index("dimension")
    for factor, variables in (("dose", OF_DOSE), ("stage", OF_STAGE)):
        best = related[related["factor"] == factor].nlargest(1, "correlation").iloc[0]
        assert best["correlation"] > 0.8
        assert best["p"] == 1 / 20
        row = dimensions.loc[best["dimension"]]
        assert row["active"]
        assert (row["top_factor"], row["top_correlation"]) == (factor, best["correlation"])
        assert {word[1:] for word in row["name"].split()} <= set(variables)
        assert row["variance_explained"] > 0.05
        (sentence,) = [each for each in plain.uns["verdict"] if each.startswith(factor)]
        assert sentence.startswith(f"{factor}: dimension z{best['dimension']} follows it best (correlation ")
        assert "hardly anything decoded" not in sentence
        lead = plain.uns["effects"].query("name == @best.dimension or name == 'z' + @best.dimension.astype('str')")
        assert set(lead["variable"][: len(variables)]) == set(variables)
    assert dimensions["guided_by"].eq("").all()


def test_a_factor_that_drives_nothing_is_said_to_lie_on_no_dimension(answer: Answer) -> None:
    related = answer.uns["relations"].query("factor == 'noise'")
    assert related["p"].min() > 0.05
    (sentence,) = [each for each in answer.uns["verdict"] if each.startswith("noise")]
    assert sentence.startswith("noise: no dimension follows it beyond chance (correlation 0.")
    assert "permuted up to 0." in sentence


def test_the_verdict_of_permuted_factors_is_chance_but_for_one_in_twenty(plain: Answer) -> None:
    """Codes and effects are the model's; a factor permuted has nothing to do with either."""
    cells, rng = plain.before[:120].copy(), np.random.default_rng(0)
    names = [f"chance_{i}" for i in range(30)]
    for i, name in enumerate(names):
        cells.obs[name] = rng.permutation(cells.obs[["dose", "stage", "drug"][i % 3]].to_numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors_module, "scores", lambda *_, **__: plain.uns["metrics"])
        uns = ask(cells, plain.model, names, seeds=0)
    chance = ["no dimension follows it beyond chance" in each for each in uns["verdict"][1:31]]
    assert sum(chance) >= 25
    by_factor = uns["relations"].groupby("factor", sort=False)["p"].min()
    assert (by_factor > 0.05).tolist() == chance
    found = uns["effects"].query("of == 'factor'").groupby("name")["q"].min()
    assert (found <= 0.05).mean() < 0.2


def test_variables_that_a_factor_drives_are_significant_and_the_others_mostly_not(plain: Answer) -> None:
    rows = plain.uns["effects"].query("name == 'dose'").set_index("variable")
    assert (rows.loc[list(OF_DOSE), "q"] <= 0.05).all()
    assert (np.sign(rows.loc[list(OF_DOSE), "effect"]) == [1, -1] * 4).all()
    assert (np.sign(rows.loc[list(OF_DOSE), "covariance_model"]) == [1, -1] * 4).all()
    assert (rows.drop(list(OF_DOSE))["q"] <= 0.05).mean() < 0.3


def test_a_gene_set_of_what_a_factor_drives_is_judged_for_factors_and_tested_dimensions_only(plain: Answer) -> None:
    table = plain.uns["gene_sets"]
    assert set(table["of"]) == {"factor"}  # 20 untrained cells are too few to test dimensions
    assert set(table["name"]) == {"dose", "stage=early", "stage=middle", "stage=late", "noise"}
    assert table.groupby("name").size().eq(2).all()
    late = table.query("name == 'stage=late'").set_index("gene_set")
    assert late.loc["others", "direction"] == "up"
    assert set(late.loc["others", "leading"].split(", ")) <= set(OF_STAGE)


def test_principal_components_stand_beside_the_model_and_its_refits(answer: Answer) -> None:
    metrics, guided = answer.uns["metrics"], bool(answer.model.factors.guided)
    expected = ["cross-fitted", "PCA"] if guided else ["model", "seed 1", "seed 2", "PCA"]
    assert metrics["codes"].unique().tolist() == expected
    assert metrics.loc[metrics["codes"] == "PCA", "p"].isna().all()
    best = metrics.query("codes == 'PCA' and metric == 'max_correlation' and factor == 'dose'")["value"].iloc[0]
    assert best > 0.7
    (sentence,) = [each for each in answer.uns["verdict"] if each.startswith("dose: ")]
    assert f"; a principal component {best:.2f})" in sentence
    first = metrics[(metrics["codes"] == expected[0]) & (metrics["metric"] == "max_correlation")]
    assert first.set_index("factor").loc[ASKED, "p"].between(1 / 20, 1).all()


def test_the_verdict_begins_with_what_carries_the_decoded_variance(plain: Answer) -> None:
    dimensions, best = plain.uns["dimensions"], plain.uns["relations"].query("factor == 'dose'")
    k = best.nlargest(1, "correlation")["dimension"].iloc[0]
    assert plain.uns["verdict"][0].startswith("Most of the decoded variance goes with z")
    made = dimensions.sort_values("dimension").assign(
        active=True,
        variance_explained=[0.2, 0.44, 0.0009, 0.05],
        p=[0.05, 0.06, 0.01, 0.01],
        top_factor=["stage", *["dose"] * 3],
    )
    asked = read_factors(plain.cells, ASKED)
    sentences = said({**plain.uns, "dimensions": made}, recoded(plain), asked, [], None)
    assert sentences[0] == (
        "Most of the decoded variance goes with z1 44 % (none of these factors), z0 20 % (stage), z3 5 % (dose)."
    )
    for share, little in ((0.0009, True), (0.001, False)):
        changed = dimensions.assign(variance_explained=share)
        sentences = said({**plain.uns, "dimensions": changed}, recoded(plain), asked, [], None)
        assert sentences[1].startswith(f"dose: dimension z{k} follows it best")
        assert sentences[1].endswith(", but hardly anything decoded depends on that dimension.") == little


def test_what_leaks_of_the_plate_is_said(answer: Answer) -> None:
    row = answer.uns["leak"].iloc[0]
    assert row["chance"] == 0.5
    assert row["score"] < 0.75
    beyond = "beyond chance" if row["p"] <= 0.05 else "not beyond chance"
    assert f"plate (nuisance) can be told from the latent space by {row['score']:.2f} (balanced" in answer.verdict
    assert f"{beyond}." in answer.verdict


def test_factors_that_go_together_are_said_to(plain: Answer) -> None:
    cells = plain.before.copy()
    cells.obs["copy"] = cells.obs["dose"] + 0.1 * cells.obs["noise"]
    uns = ask(cells, plain.model, ["dose", "copy", "noise"], seeds=0)
    (sentence,) = [each for each in uns["verdict"] if "go together" in each]
    assert sentence.startswith("dose and copy go together in these cells (association ")


def test_the_unit_is_spoken_of_where_none_is_named(answers: dict[str, Answer]) -> None:
    assert "Cells counted as independent" in answers["profiles"].verdict
    assert "Cells counted as independent" not in answers["counts"].verdict


def test_stability_is_counted_over_dimensions_in_use(plain: Answer) -> None:
    dimensions = plain.uns["dimensions"].set_index("dimension").sort_index()
    np.testing.assert_allclose(dimensions["stability"], plain.uns["stability"].mean(axis=1))
    np.testing.assert_allclose(dimensions["comes_back"], (plain.uns["stability"] >= 0.8).mean(axis=1))
    back = dimensions.query("active and comes_back > 0.5").index
    sentence = f"{len(back)} of {dimensions['active'].sum()} active dimensions come back in most of 2 refits"
    assert sentence in plain.verdict
    assert all(f"z{k} (" in plain.verdict for k in back)


# cells that a fit has seen


@pytest.mark.parametrize("modality", ["counts", "images"])
def test_every_cell_of_guided_factors_is_judged_by_a_refit_that_has_not_seen_it(
    modality: str, answers: dict[str, Answer]
) -> None:
    answer = answers[modality]
    found = recoded(answer, by="well" if modality == "counts" else None)
    codes = answer.cells.obsm["factors"]
    seen = np.array([model.seen(answer.cells) for model in found.models])
    assert seen[0].all()
    assert (seen[1:].sum(0) == 1).all()
    for i in (1, 2):
        left_out = ~seen[i]
        np.testing.assert_allclose(codes[left_out], found.in_use(i)[left_out], atol=1e-5)
        if modality == "counts":
            wells = answer.cells.obs["well"]
            assert not set(wells[left_out]) & set(wells[~left_out])
    assert "judged on cells that the fit had not seen (2 refits" in answer.verdict


def test_guided_dimensions_follow_their_factors_in_unseen_cells(answers: dict[str, Answer]) -> None:
    uns = answers["counts"].uns
    related = uns["relations"].set_index(["factor", "dimension"])
    assert related.loc[("stage", [0, 1]), "correlation"].max() > 0.6
    assert related.loc[("dose", 2), "correlation"] > 0.8
    dimensions = uns["dimensions"].set_index("dimension").sort_index()
    assert dimensions["guided_by"].tolist() == ["stage", "stage", "dose", ""]
    assert dimensions.loc[2, "top_factor"] == "dose"
    assert dimensions.loc[2, "comes_back"] == 1


def test_guided_factors_are_read_from_the_codes_of_unseen_cells(answers: dict[str, Answer]) -> None:
    answer = answers["counts"]
    guides = {guide.name: guide for guide in answer.model.schema_.guidance.guides}
    read = {name: guide.read(answer.cells.obsm["factors"]) for name, guide in guides.items()}
    table = answer.uns["read_back"].set_index("factor")
    assert table["measure"].to_dict() == {"dose": "R2", "stage": "balanced accuracy"}
    assert table["chance"].tolist() == [0, pytest.approx(1 / 3)]
    obs = answer.cells.obs
    assert table.loc["dose", "value"] == pytest.approx(r2_score(obs["dose"], read["dose"]), abs=1e-4)
    assert table.loc["stage", "value"] == pytest.approx(balanced_accuracy_score(obs["stage"], read["stage"]), abs=0.02)
    assert table.loc["dose", "value"] > 0.5
    assert table.loc["stage", "value"] > 0.6
    for row in table.itertuples():
        assert (
            f"{row.Index} (guided) is read from the code of unseen cells with {row.measure} {row.value:.2f} (chance "
            f"{row.chance:.2f})."
        ) in answer.uns["verdict"]
    assert "(guided)" not in answers["profiles"].verdict


@pytest.mark.parametrize(
    ("text", "measure", "chance"),
    [
        ("dose", "R2", 0),
        ("hour:cyclic=24", "mean cosine of the error", 0),
        ("stage", "balanced accuracy", 1 / 3),
        ("grade:ordinal", "balanced accuracy", 1 / 3),
    ],
)
def test_what_reads_a_factor_fully_scores_one_and_codes_of_other_cells_chance(
    text: str, measure: str, chance: float
) -> None:
    cells, rng = profiles(300), np.random.default_rng(0)
    cells.obs["hour"], cells.obs["grade"] = rng.permutation(np.arange(300) / 12.5), cells.obs["stage"].cat.codes
    cells.obs.loc[cells.obs_names[:5], text.partition(":")[0]] = np.nan  # unknown cells do not count
    factors = read_factors(cells, [text, "noise"])
    guide = Guide.of(factors[0], 1)
    models = [SimpleNamespace(schema_=SimpleNamespace(guidance=Guidance((guide,))))]
    codes = np.column_stack([np.zeros(300), np.nan_to_num(guide.place(factors[0]))])
    for mu, expected, error in ((codes, 1, 0.02), (codes[rng.permutation(300)], chance, 0.15)):
        (row,) = read_back(SimpleNamespace(models=models, mu=mu), factors).itertuples()
        assert (row.factor, row.measure, row.chance) == (factors[0].name, measure, pytest.approx(chance, abs=0.02))
        if expected or measure != "R2":
            assert row.value == pytest.approx(expected, abs=error)
        else:
            assert row.value < 0  # wrong numbers are further off than their mean


def test_phases_that_crowd_are_read_fully_and_half_a_turn_off_is_not() -> None:
    rng, cells = np.random.default_rng(0), profiles(300)
    cells.obs["hour"] = np.where(np.arange(300) < 200, rng.uniform(0, 6, 300), rng.uniform(0, 24, 300))
    (factor,) = read_factors(cells, ["hour:cyclic=24"])
    guide = Guide.of(factor, 0)
    models = [SimpleNamespace(schema_=SimpleNamespace(guidance=Guidance((guide,))))]
    for sign in (1, -1):
        (row,) = read_back(SimpleNamespace(models=models, mu=sign * guide.place(factor)), [factor]).itertuples()
        assert row.value == pytest.approx(sign, abs=1e-6)
        assert 0.3 < row.chance < 0.9


def test_a_guided_factor_is_read_by_the_kind_that_guided_the_model(caplog: pytest.LogCaptureFixture) -> None:
    cells = profiles(60)
    cells.obs["hour"] = np.random.default_rng(0).uniform(0, 24, 60)
    model = fitted(cells, fit=BRIEF, factors=lc.Factors(guided=["hour:cyclic=24"]))
    with caplog.at_level(logging.INFO, logger="latentcell"):
        uns = ask(cells, model, ["hour", "dose"], fit=BRIEF)
    assert uns["params"]["factors"] == ["hour:cyclic=24", "dose:continuous"]
    assert uns["read_back"][["factor", "measure"]].to_numpy().tolist() == [["hour", "mean cosine of the error"]]
    assert {"factor 'hour' is read as cyclic", "factor 'dose' is read as continuous"} <= set(caplog.messages)
    assert {"factors": ["hour:cyclic=24"]}.items() <= ask(cells, model, ["hour:cyclic"], fit=BRIEF)["params"].items()


@pytest.mark.usefixtures("unfitted")
def test_a_guided_factor_is_not_judged_as_another_kind(answers: dict[str, Answer]) -> None:
    cells = answers["counts"].before.copy()
    message = "guided by 'stage:categorical', so 'stage' cannot be judged as 'ordinal': leave that out"
    with pytest.raises(InputError, match=message):
        ask(cells, answers["counts"].model, ["dose", "stage:ordinal"])
    assert "factors" not in cells.uns


def test_codes_of_guided_factors_are_tested_on_all_cells_and_others_on_untrained_ones(
    answers: dict[str, Answer],
) -> None:
    guided = answers["counts"].uns["effects"].query("of == 'dimension'")
    assert guided[["p", "q"]].notna().all(axis=None)
    assert set(guided["n"]) == {20}  # wells
    plain = answers["profiles"].uns["effects"].query("of == 'dimension'")
    assert plain[["p", "q"]].isna().all(axis=None)
    assert plain[["low", "high", "statistic"]].notna().all(axis=None)
    assert set(plain["n"]) == {200}


@pytest.mark.parametrize(("n_new", "tested"), [(70, True), (20, False)])
def test_dimensions_are_tested_on_cells_outside_of_training(n_new: int, tested: bool) -> None:
    cells = profiles(200)
    cells.obs["part"] = np.where(np.arange(200) < n_new, "new", "old")
    model = fitted(cells, fit={**FIT, "exclude": {"part": ["new"]}})
    n_untrained = (~model.seen(cells, early_stopping=False)).sum()
    assert n_untrained > n_new
    rows = ask(cells, model, ["dose"], seeds=0)["effects"].query("of == 'dimension'")
    assert rows[["p", "q"]].notna().all(axis=None) == tested
    assert rows[["low", "high"]].notna().all(axis=None)
    assert set(rows["n"]) == {n_untrained if tested else 200}
    if tested:
        assert (rows["q"] <= 0.05).any()


def test_refits_are_read_again_from_their_folder_and_give_the_same_answer(answer: Answer, monkeypatch) -> None:
    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    assert sorted(path.name for path in answer.folder.iterdir()) == ["seed_1", "seed_2"]
    monkeypatch.setattr(lc.VAE, "fit", refuse)
    cells, counts = answer.before.copy(), answer.model.modality_ == "counts"
    given = {"gene_sets": SETS} if answer.model.modality_ == "profiles" else {}
    ask(cells, answer.model, nuisance=["plate"], folder=answer.folder, replicate="well" if counts else None, **given)
    same(cells.uns["factors"], answer.uns)
    np.testing.assert_array_equal(cells.obsm["factors"], answer.cells.obsm["factors"])


def test_the_same_seed_gives_the_same_answer_without_a_folder_and_another_seed_another(plain: Answer) -> None:
    found = ask(plain.before.copy(), plain.model, nuisance=["plate"], gene_sets=SETS)
    same(found, plain.uns)
    other = ask(plain.before.copy(), plain.model, fit=BRIEF, rng=20)
    assert not other["stability"].equals(plain.uns["stability"])
    related = [each["relations"]["correlation"] for each in (other, plain.uns)]
    np.testing.assert_allclose(*related)  # which is the model's


def test_sparse_counts_and_a_layer_give_the_same_answer(answers: dict[str, Answer]) -> None:
    cells = answers["counts"].before.copy()
    model = fitted(cells, fit=BRIEF)
    expected = ask(cells, model, ["dose"], seeds=0)
    other = cells.copy()
    other.X = sp.csr_matrix(cells.X)
    same(ask(other, model, ["dose"], seeds=0), expected)


def test_many_cells_are_measured_in_part(plain: Answer, monkeypatch) -> None:
    monkeypatch.setattr(factors_module, "MOST_CELLS", 150)
    uns = ask(plain.before.copy(), plain.model, ["dose", "stage"], nuisance=["plate"], seeds=0)
    assert set(uns["effects"]["n"]) == {150}
    assert set(uns["effects"].query("name == 'dose'")["variable"][:8]) == set(OF_DOSE)


def test_refits_train_as_the_model_did_unless_told_otherwise(plain: Answer, tmp_path: Path) -> None:
    cells = plain.before[:60].copy()
    model = fitted(cells, fit=BRIEF)
    for name, fit, epochs in (("inherited", None, 2), ("other", {"epochs": 1}, 1)):
        ask(cells, model, ["dose"], seeds=1, fit=fit, folder=tmp_path / name)
        report = lc.VAE.load(tmp_path / name / "seed_1").report_
        assert report["most_epochs"] == epochs
        settings = model.report_["settings"] | {"threads": None}
        assert report["settings"] == settings  # another machine has other threads


def test_numbers_that_seem_to_name_cells_are_warned_of(plain: Answer, caplog: pytest.LogCaptureFixture) -> None:
    cells = plain.before.copy()
    cells.obs["number"] = np.random.default_rng(0).permutation(200)
    cells.obs["count"] = cells.obs["number"] // 2
    ask(cells, plain.model, ["number", "count", "dose"], seeds=0)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["number is another whole number in every cell: is it a name of cells?"]


def test_what_was_written_is_logged(plain: Answer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="latentcell"):
        ask(plain.before.copy(), plain.model, ["dose"], seeds=0)
    assert "factor 'dose' is read as continuous" in caplog.messages
    assert caplog.messages[-1] == "added 'factors' (adata.uns; codes in adata.obsm, 200 x 4)"


def test_a_model_that_collapsed_holds_no_factor(tmp_path: Path) -> None:
    cells = profiles(80)
    model = fitted(cells, objective="beta=5000,warmup=1")
    assert not model.latent_["active"].any()
    uns = ask(cells, model, ["dose", "stage"], seeds=1)
    assert (cells.obsm["factors"] == 0).all()
    assert (uns["relations"]["p"] == 1).all()
    assert set(uns["effects"]["of"]) == {"factor"}
    assert all("no dimension follows it beyond chance" in each for each in uns["verdict"][:2])
    assert not any("decoded variance goes with" in each for each in uns["verdict"])
    write_h5ad(cells, tmp_path / "cells.h5ad")


# designs that must not end the question after all refits


def test_a_rare_level_that_the_measured_cells_lack_does_not_end_the_question(plain: Answer, monkeypatch) -> None:
    """Of 6,000 cells 5,000 are measured, and the pixels of 1,000: a level of one cell is often not among them."""
    monkeypatch.setattr(factors_module, "MOST_CELLS", 60)
    cells = plain.before.copy()
    kept = np.random.default_rng([10, 4]).permutation(200)[:60]
    cells.obs["rare"] = np.where(np.isin(np.arange(200), np.setdiff1d(np.arange(200), kept)[:2]), "yes", "no")
    uns = ask(cells, plain.model, ["rare", "dose"], seeds=0)
    assert (uns["effects"].query("name == 'dose'")["q"] <= 0.05).any()


def test_few_untrained_cells_among_many_do_not_end_the_question(plain: Answer, monkeypatch) -> None:
    """The 50 that test dimensions may nearly all lie outside of the cells that are measured."""
    monkeypatch.setattr(effects_module, "_FEWEST_UNTRAINED", 5)
    monkeypatch.setattr(factors_module, "MOST_CELLS", 12)
    untrained = ~plain.model.seen(plain.before, early_stopping=False)
    seed = next(s for s in range(100) if untrained[np.random.default_rng([s, 4]).permutation(200)[:12]].sum() in (1, 2))
    uns = ask(plain.before.copy(), plain.model, ["dose"], seeds=0, rng=seed)
    assert set(uns["effects"]["of"]) == {"dimension", "factor"}


def test_a_level_with_a_plate_of_its_own_is_left_out_or_refused_by_name(plain: Answer) -> None:
    """On the first plate stages vary, on the second all cells are late: what is late cannot be told from the plate."""
    cells = plain.before.copy()
    cells.obs["state"] = np.where(cells.obs["plate"] == "p2", "late", cells.obs["stage"].astype(str))
    cells.obs["state"] = cells.obs["state"].where(
        (cells.obs["plate"] == "p2") | (cells.obs["state"] != "late"), "early"
    )
    refusal, uns = "", {}
    try:
        uns = ask(cells, plain.model, ["state"], nuisance=["plate"], seeds=0)
    except InputError as error:
        refusal = str(error)
    if uns:
        assert not (uns["effects"].query("name == 'state=late'")["q"] <= 0.05).any()
    else:
        assert "state" in refusal
        assert "plate" in refusal


def test_a_dimension_that_the_model_uses_and_no_refit_does_is_left_out() -> None:
    """A guided model on all cells may use a dimension that none of its refits on parts of them does."""
    cells = pictured(60, masks=True)
    model = fitted(cells, n_latent=3, fit=BRIEF, factors=lc.Factors(guided=["dose"]))
    active = model.latent_["active"].to_numpy(copy=True)
    with pytest.MonkeyPatch.context() as patch:
        original = lc.VAE.fit

        def without_last(self: lc.VAE, *given: Any, **options: Any) -> lc.VAE:
            fit = original(self, *given, **options)
            fit.latent_["active"] = np.arange(3) < 2
            return fit

        patch.setattr(lc.VAE, "fit", without_last)
        model.latent_["active"] = True
        uns = ask(cells, model, ["dose"], fit={**BRIEF, "epochs": 1})
    model.latent_["active"] = active
    assert (uns["effects"].query("of == 'factor'")["covariance"]).notna().all()


# refused, before anything is fitted


@pytest.fixture
def unfitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("something was fitted")

    monkeypatch.setattr(lc.VAE, "fit", refuse)


def odd(cells: AnnData) -> AnnData:
    made = cells.copy()
    n = cells.n_obs
    made.obs["one"], made.obs["name"], made.obs["empty"] = "a", made.obs_names.to_numpy(), np.nan
    made.obs["batch"] = made.obs["stage"].astype(str).map({"early": "b1", "middle": "b2", "late": "b3"})
    made.obs["part"] = np.where(np.arange(n) < 3, None, made.obs["well"].to_numpy())
    return made


@pytest.mark.usefixtures("unfitted")
@pytest.mark.parametrize(
    ("factors", "options", "message"),
    [
        (["one"], {}, r"obs\['one'\] has the same value in all 200"),
        (["name"], {}, r"obs\['name'\] has 200 levels for 200 cells .*names cells rather than a factor"),
        (["empty"], {}, r"obs\['empty'\] is empty for all cells"),
        (["age"], {}, "no column 'age'; columns of obs: 'dose', 'stage'"),
        (["dose", "dose"], {}, "'dose' is named twice"),
        (["stage:cyclic"], {}, "holds names"),
        (["dose:round"], {}, "kind 'round' of factor 'dose' is unknown"),
        ([], {}, "Name at least one factor; columns of obs: 'dose', 'stage'"),
        (["stage"], {"nuisance": ["batch"]}, "'stage' cannot be separated from 'batch'"),
        (["stage"], {"nuisance": ["stage"]}, "'stage' is named both as a factor and as a nuisance"),
        (["stage"], {"nuisance": ["age"]}, "no column 'age'"),
        (["stage"], {"nuisance": ["one"]}, r"obs\['one'\] has the same value"),
        (["stage"], {"replicate": "age"}, "no column 'age'"),
        (["stage"], {"replicate": "part"}, r"obs\['part'\] is empty for 3 cells \('c0', 'c1', 'c2'\)"),
        (["stage"], {"gene_sets": "no.gmt"}, r"no\.gmt cannot be read as a file of gene sets"),
        (["stage"], {"seeds": -1}, "seeds is -1"),
    ],
)
def test_a_question_without_an_answer_is_refused_by_name(
    factors: list[str], options: dict[str, Any], message: str, plain: Answer
) -> None:
    cells = odd(plain.before)
    with pytest.raises(InputError, match=message) as refusal:
        ask(cells, plain.model, factors, **options)
    assert "\n" not in str(refusal.value)
    assert "factors" not in cells.uns
    assert "factors" not in cells.obsm


@pytest.mark.usefixtures("unfitted")
@pytest.mark.parametrize("seeds", [0, 1])
def test_guided_factors_without_two_refits_are_refused(seeds: int, answers: dict[str, Answer]) -> None:
    with pytest.raises(InputError, match=f"seeds is {seeds}: a model with guided factors has seen their values"):
        ask(answers["counts"].before.copy(), answers["counts"].model, seeds=seeds)


@pytest.mark.usefixtures("unfitted")
def test_gene_sets_of_images_are_refused(answers: dict[str, Answer]) -> None:
    with pytest.raises(InputError, match="Gene sets need genes, but this model was fitted on images"):
        ask(answers["images"].before.copy(), answers["images"].model, gene_sets=SETS)


@pytest.mark.parametrize("sets", [{"a": ["TP53", "MYC"] * 10}, {"a": list(OF_DOSE)[:3]}], ids=["unknown", "small"])
def test_gene_sets_that_cannot_be_tested_are_refused_with_the_reason(sets: dict, plain: Answer) -> None:
    with pytest.raises(InputError, match=r"No gene of the gene sets was measured|None of the 1 gene sets has"):
        ask(plain.before.copy(), plain.model, ["dose"], gene_sets=sets, seeds=0)


def test_cells_of_other_variables_are_refused(plain: Answer) -> None:
    with pytest.raises(InputError):
        ask(plain.before[:, :10].copy(), plain.model, ["dose"], seeds=0)


def test_a_factor_that_is_the_batch_of_the_decoder_is_refused_as_guided() -> None:
    cells = odd(profiles(60))
    with pytest.raises(InputError, match="'stage' cannot be separated from 'batch'"):
        fitted(cells, batch_key="batch", factors=lc.Factors(guided=["stage"]), fit=BRIEF)


def test_a_single_name_is_a_list_of_one(plain: Answer) -> None:
    """As in `latentcell.Factors`, and not the column 'd'."""
    uns = ask(plain.before.copy(), plain.model, "dose", seeds=0)
    assert set(uns["relations"]["factor"]) == {"dose"}
