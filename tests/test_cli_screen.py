"""`latentcell screen` does what `latentcell.tl.screen` does, leaves tables, model and figures, and says the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import latentcell as lc
from latentcell.cli import app

DESIGN = ("--group", "perturbation", "--control", "control", "--replicate", "well", "--block", "plate")
QUICK = ("--epochs", 5, "--sheets", 0)


def screen(*arguments: object, status: int = 0) -> str:
    """What `latentcell screen` says, lines joined."""
    result = CliRunner().invoke(app, ["screen", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def simulated(**changed: object) -> ad.AnnData:
    settings = {"n_plates": 3, "n_control_wells": 8, "n_perturbations": 6, "cells_per_well": 15, "rng": 0}
    nuisance = {"strengths": (3.0,), "position_effect": 0.0}
    return lc.cells.simulate.screen(modality="profiles", **{**settings, **nuisance, **changed})


def hits(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "hits.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "cells.h5ad"
    cells = simulated()
    number = cells.obs["perturbation"].astype(str).str.extract(r"(\d+)$")[0].astype(float)
    cells.obs["drug"] = np.where(number.isna(), "none", np.where(number <= 3, "first", "second"))
    cells.obs["dose"] = (number - 1) % 3 + 1
    cells.obs["own name"] = cells.obs["plate"].astype(str) + " " + cells.obs["well"].astype(str)
    cells.obs["depth"] = np.random.default_rng(0).normal(size=cells.n_obs)
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def done(data: Path) -> tuple[Path, str]:
    """Folder of a finished screen, and what was said."""
    out = data.parent / "out"
    return out, screen(data, *DESIGN, "--out", out, "--epochs", 5, "--sheets", 1, "--seed", 3)


def test_screen_writes_tables_cells_model_and_figures_and_no_checkpoint(done: tuple[Path, str]) -> None:
    out, _ = done
    best = hits(out)["label"].iloc[0]
    figures = {
        f"figures/{name}.{end}" for name in ("screen", "similarity", f"rank_01_{best}") for end in ("png", "svg")
    }
    tables = {f"{name}.csv" for name in ("hits", "wells", "calibration", "reasons", "similarity")}
    model = {"model/model.json", "model/weights.safetensors"}
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == figures | tables | model | {"cells.h5ad", "screen.json"}
    assert all((out / name).stat().st_size > 0 for name in written)


def test_screen_gives_what_the_function_gives_with_the_same_seed(done: tuple[Path, str], data: Path) -> None:
    out, _ = done
    cells = ad.read_h5ad(data)
    lc.tl.screen(cells, **dict(zip(["group", "control", "replicate", "block"], DESIGN[1::2], strict=True)),
                 fit={"epochs": 5}, rng=3)  # fmt: skip
    for name in ("hits", "wells", "calibration", "reasons"):
        expected = cells.uns["screen"][name].reset_index(drop=True)
        found = pd.read_csv(out / f"{name}.csv", keep_default_na=True)
        shown = [column for column in expected if expected[column].dtype != object]
        pd.testing.assert_frame_equal(found[shown], expected[shown], check_dtype=False, rtol=1e-6)
    similar = pd.read_csv(out / "similarity.csv", index_col="label")
    np.testing.assert_allclose(similar, cells.uns["screen"]["similarity"], atol=1e-6)
    assert list(similar.index) == list(similar.columns) == hits(out)["label"].tolist()


def test_screen_says_the_verdict_and_keeps_it_with_its_parameters(done: tuple[Path, str]) -> None:
    out, said = done
    kept = json.loads((out / "screen.json").read_text())
    assert all(" ".join(sentence.split()) in " ".join(said.split()) for sentence in kept["verdict"])
    assert "groups tested leave the control distribution" in kept["verdict"][0]
    expected = {"group": "perturbation", "control": "control", "replicate": "well", "block": "plate", "rng": 3}
    assert {name: kept[name] for name in expected} == expected
    assert kept["model_sha256"] == lc.VAE.load(out / "model").sha256()


def test_annotated_cells_can_be_drawn_from_their_file(done: tuple[Path, str]) -> None:
    out, _ = done
    cells = ad.read_h5ad(out / "cells.h5ad")
    assert {"vae", "vae_var", "screen_residual"} <= set(cells.obsm)
    pd.testing.assert_series_equal(cells.uns["screen"]["hits"]["p"], hits(out)["p"])
    assert len(lc.pl.screen(cells).axes) == 4
    assert lc.pl.contact_sheet(cells, lc.VAE.load(out / "model"), "compound_01").axes


def test_a_model_named_is_the_one_that_places_the_cells(done: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    out, _ = done
    said = screen(data, *DESIGN, "--model", out, "--out", tmp_path, "--sheets", 0, "--seed", 3)
    assert "12 control replicates trained the model and do not calibrate it" in said
    assert lc.VAE.load(tmp_path / "model").sha256() == lc.VAE.load(out / "model").sha256()
    pd.testing.assert_frame_equal(hits(tmp_path), hits(out))
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"screen", "similarity"}


@pytest.mark.parametrize("position", ["row,column", "well"])
def test_places_are_taken_from_two_columns_or_from_names(position: str, data: Path, tmp_path: Path) -> None:
    design = (*DESIGN[:4], "--replicate", "own name", "--block", "plate", "--position", position)
    said = screen(data, *design, "--out", tmp_path, *QUICK)
    assert "not given (position)" not in said
    wells = pd.read_csv(tmp_path / "wells.csv").set_index("replicate")
    places = ad.read_h5ad(data).obs.groupby("own name", observed=True)[["row", "column"]].first()
    np.testing.assert_array_equal(wells[["row", "column"]], places.loc[wells.index])


def test_doses_covariates_and_settings_of_the_model_reach_the_screen(data: Path, tmp_path: Path) -> None:
    design = ("--group", "drug", "--control", "none", *DESIGN[4:], "--dose", "dose", "--covariates", "depth")
    screen(data, *design, "--latent", 3, "--relabellings", 19, "--out", tmp_path, *QUICK)
    cells = ad.read_h5ad(data)
    lc.tl.screen(cells, lc.VAE(3), group="drug", control="none", replicate="well", block="plate", dose="dose",
                 covariates=["depth"], n_relabellings=19, fit={"epochs": 5}, rng=0)  # fmt: skip
    table, expected = hits(tmp_path), cells.uns["screen"]["hits"]
    assert sorted(table["label"]) == [f"{drug} {dose}" for drug in ("first", "second") for dose in (1, 2, 3)]
    shown = ["dose", "statistic", "p", "min_p", "effect", "dose_trend"]
    np.testing.assert_allclose(table[shown], expected[shown], rtol=1e-6)
    np.testing.assert_allclose(table["min_p"], 1 / 20)


def test_a_profile_table_with_a_row_per_well_is_screened(tmp_path: Path) -> None:
    cells = simulated()
    well = cells.obs["plate"].astype(str) + " " + cells.obs["well"].astype(str)
    annotation = cells.obs[["plate", "well", "perturbation"]].groupby(well).first()
    annotation.join(cells.to_df().groupby(well).mean()).to_csv(tmp_path / "table.csv")
    said = screen(tmp_path / "table.csv", *DESIGN, "--out", tmp_path / "out", "--epochs", 5, "--sheets", 1)
    assert "cell counts are not known" in said
    assert (hits(tmp_path / "out")["n_cells"] == 3).all()


def test_a_design_without_p_values_is_ranked_and_the_reason_is_said(tmp_path: Path) -> None:
    simulated(n_control_wells=1, n_perturbations=3).write_h5ad(tmp_path / "cells.h5ad")
    said = screen(tmp_path / "cells.h5ad", *DESIGN, "--out", tmp_path / "out", "--epochs", 2, "--sheets", 1)
    assert "No p-values: the blocks" in said
    assert "single control" in said
    assert hits(tmp_path / "out")["p"].isna().all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--control", "DMSO"), "levels present (cells): compound_01"),
        (("--group", "drg"), "no column 'drg'"),
        (("--position", "plate"), "no place on a plate"),
        (("--dose", "kind"), "doses must be numeric"),
        (("--model", "norun"), "norun"),
    ],
)
def test_bad_input_is_refused_in_one_paragraph_with_status_2(changed, words: str, data: Path, tmp_path: Path) -> None:
    said = screen(data, *DESIGN, *changed, "--out", tmp_path / "out", *QUICK, status=2)
    assert said.startswith("latentcell: ")
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_wells_that_recur_on_plates_are_refused_with_the_option_to_give(data: Path, tmp_path: Path) -> None:
    said = screen(data, *DESIGN[:6], "--out", tmp_path / "out", *QUICK, status=2)
    assert "name those with block" in said


def test_a_model_that_saw_treated_cells_is_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    lc.VAE(2, width=8).fit(ad.read_h5ad(data), epochs=1, rng=0).save(tmp_path / "run" / "model")
    said = screen(data, *DESIGN, "--model", tmp_path / "run", "--out", tmp_path / "out", status=2)
    assert "treated replicates (first: 'compound_0" in said
    assert not (tmp_path / "out").exists()


def test_the_command_without_p_values_writes_valid_json_and_a_calibration_with_columns(tmp_path: Path) -> None:
    simulated(n_control_wells=1, n_perturbations=3).write_h5ad(tmp_path / "cells.h5ad")
    screen(tmp_path / "cells.h5ad", *DESIGN, "--out", tmp_path / "out", *QUICK)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert list(pd.read_csv(tmp_path / "out" / "calibration.csv").columns)
    json.loads((tmp_path / "out" / "screen.json").read_text(), parse_constant=refuse)


def test_the_command_refuses_a_latent_space_without_dimensions(data: Path, tmp_path: Path) -> None:
    screen(data, *DESIGN, "--latent", 0, "--out", tmp_path, *QUICK, status=2)


def test_the_command_refuses_options_of_a_fit_with_a_fitted_model(data: Path, tmp_path: Path) -> None:
    lc.VAE(2, width=8).fit(
        simulated(),
        exclude={
            "kind": [k for k in simulated().obs["kind"].unique() if k != "control"],
            "plate": ["plate_1", "plate_2"],
        },
        epochs=1,
        rng=0,
    ).save(tmp_path / "run")
    screen(data, *DESIGN, "--model", tmp_path / "run", "--epochs", 3, "--out", tmp_path / "out", status=2)


def test_the_command_of_two_groups_of_which_one_has_no_control_draws_what_it_can(tmp_path: Path) -> None:
    cells = simulated(n_perturbations=2)
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).replace({"compound_01": "compound_02"})
    last = cells.obs["plate"] == "plate_3"
    cells.obs.loc[last & (cells.obs["perturbation"] == "compound_02"), "perturbation"] = "orphan"
    cells[~(last & (cells.obs["perturbation"] == "control")).to_numpy()].copy().write_h5ad(tmp_path / "cells.h5ad")
    screen(tmp_path / "cells.h5ad", *DESIGN, "--out", tmp_path / "out", *QUICK)


def test_the_command_leaves_no_contact_sheet_of_an_earlier_screen(data: Path, tmp_path: Path) -> None:
    screen(data, *DESIGN, "--out", tmp_path, "--epochs", 2, "--sheets", 2)
    screen(data, *DESIGN, "--out", tmp_path, "--epochs", 2, "--sheets", 1)
    assert len(list((tmp_path / "figures").glob("rank_*.png"))) == 1
