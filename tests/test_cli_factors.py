"""`latentcell factors` does what `latentcell.tl.factors` does, leaves tables and figures, and says the verdict."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData
from typer.testing import CliRunner

import latentcell as lc
from latentcell.cells.images import set_images
from latentcell.cli import app
from latentcell.cli.app import SWEPT, listed_names, setting
from latentcell.model import objectives
from latentcell.model.settings import Settings

QUICK = ("--epochs", 3)
FIT: dict[str, Any] = {"epochs": 3, "settings": Settings(threads=1)}
TABLES = {
    f"{name}.csv"
    for name in ("metrics", "relations", "dimensions", "effects", "read_back", "leak", "stability", "association")
}
FIGURES = ("factors", "stability", "volcano", "traversal")


def run(command: str, *arguments: object, status: int = 0) -> str:
    """What a command says, lines joined."""
    result = CliRunner().invoke(app, [command, *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def factors(*arguments: object, status: int = 0) -> str:
    return run("factors", *arguments, status=status)


def says(said: str, text: str) -> bool:
    """Whether something was said, wherever lines were broken."""
    return "".join(text.split()) in "".join(said.split())


def written(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Few permutations, and one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    relations, effects = (importlib.import_module(f"latentcell.tl.{name}") for name in ("relations", "effects"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "N_PERMUTATIONS", 9)
        patch.setattr(relations, "_N_RESAMPLES", 2)
        patch.setattr(effects, "_N_PERMUTATIONS", 49)
        patch.setattr("latentcell.stats.association.N_TREES", 4)
        yield
    torch.set_num_threads(before)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds: where only tables are looked at, none is saved."""
    monkeypatch.setattr("latentcell.results.draw", lambda *_, **__: None)


def annotated(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "stage": pd.Categorical(rng.choice(["early", "middle", "late"], n)),
            "dose": rng.normal(size=n),
            "phase": rng.random(n),
            "batch": pd.Categorical(rng.choice(["b1", "b2"], n)),
            "plate": np.arange(n) // 5 % 2 + 1,
            "well": [f"w{i // 5}" for i in range(n)],
        },
        index=[f"c{i}" for i in range(n)],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    obs, rng = annotated(120), np.random.default_rng(1)
    x = 0.5 * rng.normal(size=(120, 20))
    x[:, :10] += np.outer(obs["dose"], np.ones(10))
    x[:, 10:15] += obs["stage"].map({"early": -1, "middle": 0, "late": 1}).to_numpy(float)[:, None]
    path = tmp_path_factory.mktemp("factors") / "cells.h5ad"
    AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"v{i}" for i in range(20)])).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def plain(data: Path) -> Path:
    """Folder of a model that knows of no factor."""
    model = lc.VAE(3, width=8).fit(lc.read(data), rng=0, **FIT)
    model.save(data.parent / "plain" / "model")
    return data.parent / "plain"


@pytest.fixture(scope="module")
def guided(data: Path) -> Path:
    """Folder of a fit with guided factors, one of them cyclic, and a nuisance."""
    out = data.parent / "guided"
    names = ("--guided", "stage", "phase:cyclic", "--nuisance", "batch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentcell.results.draw", lambda *_, **__: None)
        run("fit", data, *names, "--latent", 6, *QUICK, "--threads", 1, "--out", out)
    return out


ASKED = ("--factors", "stage", "dose", "--nuisance", "plate", "--seeds", 2)


@pytest.fixture(scope="module")
def done(guided: Path, data: Path) -> tuple[Path, str]:
    """Folder of a finished question, and what was said."""
    out = data.parent / "out"
    return out, factors(guided, data, *ASKED, *QUICK, "--out", out, "--seed", 10)


# words of list options


def test_fit_takes_several_factors_after_one_option_and_their_kinds(guided: Path) -> None:
    model = lc.VAE.load(guided / "model")
    assert model.factors == lc.Factors(guided=["stage", "phase:cyclic"], nuisance=["batch"])
    assert [guide.dimensions for guide in model.schema_.guidance.guides] == [[0, 1], [2, 3]]
    assert [guide.kind for guide in model.schema_.guidance.guides] == ["categorical", "cyclic"]


@pytest.mark.parametrize(
    "words",
    [
        ("--factors", "stage", "dose", "phase:cyclic"),
        ("--factors", "stage", "--factors", "dose", "--factors", "phase:cyclic"),
        ("--factors", "stage,dose,phase:cyclic"),
        ("--factors", "stage, dose", "--factors=phase:cyclic"),
        ("--factors", "stage", "--seed", "0", "--factors", "dose", "phase:cyclic"),
    ],
    ids=["words", "repeated", "commas", "mixed", "apart"],
)
def test_factors_are_named_by_words_repeated_options_or_commas(
    words: tuple[str, ...], plain: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("latentcell.cli.questions.write_factors", lambda *_: None)
    monkeypatch.setattr(lc.tl, "factors", lambda cells, model, names, **options: asked.append((names, options)))
    factors(plain, data, *words, "--nuisance", "plate", "batch", "--out", tmp_path)
    names, options = asked[0]
    assert names == ["stage", "dose", "phase:cyclic"]
    assert options["nuisance"] == ["plate", "batch"]
    assert options["seeds"] == 5
    assert options["folder"] == tmp_path / "models"
    assert options["fit"] == {}


def test_two_dashes_end_the_words_of_a_list_option(
    plain: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("latentcell.cli.questions.write_factors", lambda *_: None)
    monkeypatch.setattr(lc.tl, "factors", lambda cells, model, names, **_: asked.append(names))
    factors("--out", tmp_path, "--factors", "stage", "dose", "--", plain, data)
    assert asked == [["stage", "dose"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, []), ([], []), (["a", "b,c", " d , ,e,"], ["a", "b", "c", "d", "e"]), ([","], [])],
)
def test_names_are_parted_at_commas_without_empty_ones(given: list[str] | None, expected: list[str]) -> None:
    assert listed_names(given) == expected


def test_a_setting_has_a_name_and_numbers() -> None:
    assert setting("beta=1,2.5,4") == {"beta": [1, 2.5, 4]}
    for text in ("beta", "beta=", "beta=1,", "beta=a", "", "alpha=1,2", "warmup=1,2"):
        with pytest.raises(lc.InputError, match=r"write one of beta, tc, .* and its values, such as beta=1,2,4"):
            setting(text)


@pytest.mark.parametrize("name", SWEPT)
def test_every_setting_that_can_be_named_can_be_swept(name: str) -> None:
    assert setting(f"{name}=0.5,2") == {name: [0.5, 2]}
    assert objectives.parse(f"{name}=2") != objectives.parse(f"{name}=3")


# what is written


def test_factors_writes_tables_cells_figures_and_models(done: tuple[Path, str]) -> None:
    out, said = done
    figures = {f"figures/{name}.{end}" for name in FIGURES for end in ("png", "svg")}
    models = {f"models/seed_{i}/{name}" for i in (1, 2) for name in ("model.json", "weights.safetensors")}
    assert written(out) == TABLES | figures | models | {"cells.h5ad", "factors.json"}
    assert all((out / name).stat().st_size > 0 for name in written(out))
    assert all(says(said, str(out / name)) for name in written(out) - models - {"factors.json"})


def test_factors_gives_what_the_function_gives_with_the_same_seed(
    done: tuple[Path, str], guided: Path, data: Path
) -> None:
    out, _ = done
    cells = lc.read(data)
    lc.tl.factors(cells, lc.VAE.load(guided / "model"), ["stage", "dose"], nuisance=["plate"], seeds=2,
                  folder=out / "models", fit={"epochs": 3}, rng=10)  # fmt: skip
    uns = cells.uns["factors"]
    for name in ("metrics", "relations", "dimensions", "effects", "read_back", "leak"):
        found = pd.read_csv(out / f"{name}.csv", keep_default_na=True)
        assert list(found.columns) == list(uns[name].columns)
        shown = [column for column in found if uns[name][column].dtype != object]
        pd.testing.assert_frame_equal(found[shown], uns[name][shown], check_dtype=False, rtol=1e-6)
    stability = pd.read_csv(out / "stability.csv")
    assert list(stability.columns) == ["dimension", "seed 1", "seed 2"]
    np.testing.assert_allclose(stability[["seed 1", "seed 2"]], uns["stability"])
    association = pd.read_csv(out / "association.csv", index_col="factor")
    assert list(association.index) == list(association.columns) == ["stage", "dose", "plate"]


def test_factors_says_the_verdict_and_keeps_it_with_its_parameters(done: tuple[Path, str], guided: Path) -> None:
    out, said = done

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    kept = json.loads((out / "factors.json").read_text(), parse_constant=refuse)
    assert all(" ".join(sentence.split()) in said for sentence in kept["verdict"])
    assert kept["verdict"][0].startswith("Most of the decoded variance goes with z")
    assert kept["verdict"][1].startswith("stage: ")
    assert says(said, "stage (guided) is read from the code of unseen cells with balanced accuracy")
    expected = {"factors": ["stage:categorical", "dose:continuous"], "nuisance": ["plate:categorical"], "seeds": 2}
    assert {name: kept[name] for name in expected} == expected
    assert (kept["rng"], kept["replicate"]) == (10, "")
    assert kept["model_sha256"] == lc.VAE.load(guided / "model").sha256()
    assert says(said, f"start with {out / 'dimensions.csv'} and {out / 'figures' / 'factors.png'}")


def test_annotated_cells_can_be_drawn_from_their_file(done: tuple[Path, str]) -> None:
    cells = ad.read_h5ad(done[0] / "cells.h5ad")
    assert cells.obsm["factors"].shape == (120, 6)
    assert len(lc.pl.factors(cells).axes) >= 5


@pytest.mark.usefixtures("undrawn")
def test_a_second_run_reads_the_refits(
    done: tuple[Path, str], guided: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    monkeypatch.setattr(lc.VAE, "fit", refuse)
    factors(guided, data, *ASKED, *QUICK, "--out", out, "--seed", 10, "--overwrite")
    for name in TABLES:
        assert (out / name).read_text() == (done[0] / name).read_text(), name


@pytest.mark.usefixtures("undrawn")
def test_results_are_replaced_only_where_asked(plain: Path, data: Path, tmp_path: Path) -> None:
    asked = (plain, data, "--factors", "dose", "--out", tmp_path)
    question, sweep = (*asked, "--seeds", 0), (*asked, "--sweep", "beta=1", "--seeds", 1, *QUICK)
    for words, name in ((question, "factors.json"), (sweep, "sweep.csv")):
        factors(*words)  # either leaves the other alone
        (tmp_path / name).write_text("kept")
        said = factors(*words, status=2)
        assert says(said, f"{tmp_path} already holds the results of such a question. Name another --out, or add")
        assert (tmp_path / name).read_text() == "kept"
        factors(*words, "--overwrite")
        assert (tmp_path / name).read_text() != "kept"


@pytest.mark.parametrize(("n_latent", "shown"), [(3, 3), (20, 16)])
def test_up_to_sixteen_dimensions_are_traversed(
    n_latent: int, shown: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lc.VAE(n_latent, width=8).fit(lc.read(data), rng=0, **FIT).save(tmp_path / "run" / "model")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("latentcell.results.draw", lambda *_, **__: None)
    monkeypatch.setattr(lc.pl, "traversal", lambda _, **options: asked.append(options))
    factors(tmp_path / "run", data, "--factors", "dose", "--seeds", 0, "--out", tmp_path / "out")
    (options,) = asked
    assert options["n_dims"] == shown
    assert len(options["titles"]) == n_latent


@pytest.mark.usefixtures("undrawn")
def test_replicate_gene_sets_and_kinds_reach_the_question(plain: Path, data: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets.gmt"
    sets.write_text("down\tnote\t" + "\t".join(f"v{i}" for i in range(10)) + "\n")
    words = ("--factors", "dose,phase:cyclic=2", "--replicate", "well", "--gene-sets", sets)
    factors(plain, data, *words, "--seeds", 1, *QUICK, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "gene_sets.csv")
    assert set(table["name"]) == {"dose", "phase (cos)", "phase (sin)"}
    assert table["n_genes"].eq(10).all()
    kept = json.loads((tmp_path / "out" / "factors.json").read_text())
    assert kept["factors"] == ["dose:continuous", "phase:cyclic=2"]
    assert kept["replicate"] == "well"
    assert pd.read_csv(tmp_path / "out" / "effects.csv")["n"].eq(24).all()


@pytest.mark.usefixtures("undrawn")
def test_no_table_of_an_earlier_question_is_left(plain: Path, data: Path, tmp_path: Path) -> None:
    """Without gene sets, guided factors and nuisance these tables have no rows, so they are not written."""
    for name in ("gene_sets", "read_back", "leak"):
        (tmp_path / f"{name}.csv").write_text("of an earlier question\n")
    factors(plain, data, "--factors", "dose", "--seeds", 1, *QUICK, "--out", tmp_path)
    tables = {name for name in written(tmp_path) if name.endswith(".csv")}
    assert tables == TABLES - {"read_back.csv", "leak.csv"}


def test_a_question_without_refits_is_answered(plain: Path, data: Path, tmp_path: Path) -> None:
    said = factors(plain, data, "--factors", "dose", "--seeds", 0, "--out", tmp_path)
    assert "start with" in said
    assert (tmp_path / "figures" / "factors.png").exists()
    assert not (tmp_path / "figures" / "stability.png").exists()


# images


@pytest.fixture(scope="module")
def imaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images and the folder of a model of them."""
    folder, rng, obs = tmp_path_factory.mktemp("images"), np.random.default_rng(0), annotated(60)
    y, x = np.mgrid[:16, :16] - 7.5
    spot = np.exp(-(x**2 + y**2) / 18)
    images = np.stack([(100 + 30 * obs["dose"].to_numpy()[:, None, None]) * spot, 60 * np.ones((60, 16, 16))], axis=1)
    cells = AnnData(obs=obs)
    set_images(
        cells,
        (images + 5 * rng.normal(size=images.shape)).clip(0, 255).astype(np.uint8),
        channel_names=["DNA", "actin"],
    )
    cells.write_h5ad(folder / "cells.h5ad")
    lc.VAE(2, width=4, orientation="as_is").fit(cells, rng=0, **FIT).save(folder / "run" / "model")
    return folder / "cells.h5ad", folder / "run"


def test_maps_of_images_are_written_as_zarr_and_drawn(imaged: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("latentcell.results.draw", lambda folder, **figures: drawn.extend(figures))
    cells, model = imaged
    for words in ((), ("--overwrite",)):  # the second takes the place of the first
        said = factors(model, cells, "--factors", "dose", "stage", "--seeds", 1, *QUICK, "--out", tmp_path, *words)
    assert says(said, f"wrote {tmp_path / 'effects.zarr'}")
    root = zarr.open_group(tmp_path / "effects.zarr", mode="r")
    effects = pd.read_csv(tmp_path / "effects.csv")
    assert root.attrs["rows"] == list(dict.fromkeys(effects["name"]))
    assert root.attrs["channel_names"] == ["DNA", "actin"]
    assert set(root.array_keys()) == {"covariance", "low", "high", "effect", "q"}
    for name in root.array_keys():
        assert root[name].shape == (len(root.attrs["rows"]), 2, 16, 16)
        assert root[name].dtype == np.float32
    dose = root["effect"][root.attrs["rows"].index("dose")]
    assert (dose[0, 7:9, 7:9] > 0.7).all()
    assert (np.abs(dose[1]) < 0.6).all()
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert "images" not in back.obsm
    np.testing.assert_array_equal(back.uns["factors"]["maps"]["effect"], root["effect"][:])
    assert drawn == [*FIGURES, "effects"] * 2


def test_gene_sets_of_images_are_refused(imaged: tuple[Path, Path], tmp_path: Path) -> None:
    cells, model = imaged
    said = factors(model, cells, "--factors", "dose", "--gene-sets", "x.gmt", "--out", tmp_path / "out", status=2)
    assert said == "latentcell: Gene sets need genes, but this model was fitted on images."


# the sweep


def test_a_sweep_writes_its_table_and_figure_and_says_the_recommendation(
    plain: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--factors", "stage", "dose", "--sweep", "beta=1,4", "--seeds", 1, "--label", "batch", *QUICK)
    said = factors(plain, data, *words, "--out", tmp_path, "--seed", 3)
    swept = pd.read_csv(tmp_path / "sweep.csv")
    assert swept["objective"].tolist() == ["beta=1", "beta=4"]
    assert {"alignment_stage", "alignment_dose", "held_out_nll", "ari", "n_active"} <= set(swept)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"beta=1_seed_0", "beta=4_seed_0"}
    assert written(tmp_path / "figures") == {"sweep.png", "sweep.svg"}
    assert swept["label"].eq("batch").all()
    assert "Mean correlation of the best dimension with each factor: beta=1 0." in said
    assert "Recommended: beta=" in said
    expected = lc.tl.trade_off(
        lc.read(data), lc.VAE.load(plain / "model"), ["stage", "dose"], objective={"beta": [1, 4]}, seeds=1,
        label="batch", fit={"epochs": 3}, folder=tmp_path / "models", rng=3,
    )  # fmt: skip
    pd.testing.assert_frame_equal(swept, expected, check_dtype=False)
    assert all(" ".join(sentence.split()) in said for sentence in expected.attrs["verdict"])


@pytest.mark.parametrize(
    "words", [("--gene-sets", "x.gmt"), ("--nuisance", "plate"), ("--replicate", "well")], ids=lambda words: words[0]
)
def test_a_sweep_with_what_it_does_not_measure_is_refused(words: Any, plain: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = factors(plain, data, "--factors", "dose", "--sweep", "beta=1,4", *words, "--out", out, status=2)
    assert said.startswith("latentcell: --sweep measures fits only: leave out --nuisance, --replicate and --gene-sets.")
    assert not out.exists()


# refused


@pytest.fixture(scope="module")
def odd(data: Path) -> Path:
    cells = ad.read_h5ad(data)
    cells.obs["one"], cells.obs["name"] = "a", cells.obs_names.to_numpy()
    cells.obs["empty"] = np.nan
    cells.obs["lane"] = cells.obs["stage"].astype(str).map({"early": "l1", "middle": "l2", "late": "l3"})
    cells.obs["part"] = cells.obs["well"].astype(str).where(np.arange(120) > 2)
    cells.write_h5ad(data.parent / "odd.h5ad")
    return data.parent / "odd.h5ad"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--factors", "one"), "obs['one'] has the same value in all 120"),
        (("--factors", "name"), "obs['name'] has 120 levels for 120 cells"),
        (("--factors", "empty"), "obs['empty'] is empty for all cells"),
        (("--factors", "age"), "no column 'age'; columns of obs: 'stage', 'dose'"),
        (("--factors", ","), "Name at least one factor"),
        (("--factors", "dose", "dose"), "'dose' is named twice"),
        (("--factors", "stage:cyclic"), "'stage'] is to be cyclic but holds names"),
        (("--factors", "stage", "--nuisance", "lane"), "'stage' cannot be separated from 'lane'"),
        (("--factors", "stage", "--nuisance", "stage"), "'stage' is named both as a factor and as a nuisance"),
        (("--factors", "stage", "--replicate", "part"), "obs['part'] is empty for 3 cells"),
        (("--factors", "stage", "--gene-sets", "no.gmt"), "no.gmt cannot be read as a file of gene sets"),
        (("--factors", "stage", "--sweep", "beta"), "--sweep 'beta' is not understood"),
        (
            ("--factors", "stage", "--sweep", "alpha=1,2"),
            "--sweep 'alpha=1,2' is not understood; write one of beta, tc,",
        ),
        (("--factors", "stage", "--label", "batch"), "--label is for --sweep"),
        (("--factors", "stage", "--sweep", "beta=1", "--seeds", "0"), "seeds"),
        (("--factors", ",", "--sweep", "beta=1"), "ame at least one"),
    ],
)
def test_bad_input_is_refused_in_one_paragraph_with_status_2(
    words: tuple[str, ...], message: str, plain: Path, odd: Path, tmp_path: Path
) -> None:
    said = factors(plain, odd, *words, *QUICK, "--out", tmp_path / "out", status=2)
    assert said.startswith("latentcell: ")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_guided_factors_with_a_single_refit_are_refused(guided: Path, data: Path, tmp_path: Path) -> None:
    said = factors(guided, data, "--factors", "stage", "--seeds", 1, "--out", tmp_path / "out", status=2)
    assert said.startswith("latentcell: seeds is 1: a model with guided factors has seen their values")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--guided", "age"), "no column 'age'"),
        (("--guided", "stage", "--nuisance", "lane"), "'stage' cannot be separated from 'lane'"),
        (("--guided", "stage", "--batch-key", "lane"), "'stage' cannot be separated from 'lane'"),
        (("--guided", "stage", "dose", "phase:cyclic", "--latent", "4"), "take 5 latent dimensions"),
        (("--guided", "one"), "obs['one'] has the same value"),
    ],
)
def test_factors_that_cannot_be_guided_are_refused_in_one_paragraph(
    words: tuple[str, ...], message: str, odd: Path, tmp_path: Path
) -> None:
    said = run("fit", odd, *words, *QUICK, "--out", tmp_path / "out", status=2)
    assert "latentcell: " in said
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "model").exists()


def test_a_question_without_factors_is_refused(plain: Path, data: Path, tmp_path: Path) -> None:
    assert "--factors" in factors(plain, data, "--out", tmp_path / "out", status=2)
    assert not (tmp_path / "out").exists()
