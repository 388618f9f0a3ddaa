"""The command line does what the functions do, says where it wrote, and refuses in one paragraph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import latentcell as lc
from shell import latentcell


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = lc.cells.simulate.time_course(30, size=16, rng=0)
    path = tmp_path_factory.mktemp("course") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def run(course: Path) -> Path:
    out = course.parent / "run"
    latentcell("fit", course, "--out", out, "--exclude", "stage=middle", "--latent", 3, "--epochs", 2, "--seed", 1)
    return out


def test_info_names_modality_channels_and_levels(course: Path) -> None:
    said = latentcell("info", course)
    for word in ("images", "90", "DNA", "puncta", "middle"):
        assert word in said
    assert json.loads(latentcell("info", course, "--json"))["modality"] == "images"


def test_fit_writes_model_embedding_report_and_figures_and_no_images_or_checkpoint(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["seed"] == 1
    assert report["n_excluded"] == 30
    assert report["n_train"] + report["n_held_out"] == 60
    assert {"held_out_elbo", "held_out_nll", "n_active", "seconds", "cells_per_second", "versions"} <= set(report)
    cells = ad.read_h5ad(run / "cells.h5ad")
    assert cells.obsm["vae"].shape == (90, 3)
    assert "images" not in cells.obsm
    for figure in ("latent_grid", "traversal", "reconstruction", "latent", "training"):
        assert (run / "figures" / f"{figure}.png").stat().st_size > 0
        assert (run / "figures" / f"{figure}.svg").stat().st_size > 0
    assert not (run / "checkpoint.safetensors").exists()


def test_embed_gives_the_embedding_of_the_fit(run: Path, course: Path, tmp_path: Path) -> None:
    said = latentcell("embed", run, course, "--out", tmp_path)
    assert str(tmp_path / "cells.h5ad") in said.replace("\n", "")
    again, before = ad.read_h5ad(tmp_path / "cells.h5ad"), ad.read_h5ad(run / "cells.h5ad")
    np.testing.assert_allclose(again.obsm["vae"], before.obsm["vae"], atol=1e-6)


def test_grid_draws_the_dimensions_asked_for(run: Path, tmp_path: Path) -> None:
    latentcell("grid", run, "--out", tmp_path, "--dims", 0, 2, "--n", 3)
    assert (tmp_path / "latent_grid.png").exists()


def test_interpolate_writes_prediction_evaluation_and_verdict(run: Path, course: Path, tmp_path: Path) -> None:
    ends = ("--key", "stage", "--source", "early", "--target", "late", "--truth", "middle")
    said = latentcell("interpolate", run, course, *ends, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "evaluation.csv")
    assert list(table.columns) == ["space", "method", "metric", "value", "low", "high"]
    assert table.method.iloc[0] == "prediction"
    assert set(table.space) == {"model", "data", "data, coarse"}
    assert list(pd.read_csv(tmp_path / "plausibility.csv").columns) == ["at", "position", "plausible"]
    for figure in ("interpolation", "path"):
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 0
    assert "In model space the prediction is" in said.replace("\n", " ")
    predicted = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert predicted.obsm["images"].shape[1:] == (3, 16, 16)


def test_interpolate_fills_in_ends_from_an_order_and_takes_pairings_and_paths(
    run: Path, course: Path, tmp_path: Path
) -> None:
    options = ("--order", "early,middle,late", "--truth", "middle", "--path", "shift", "--pairing", "random")
    latentcell("interpolate", run, course, "--key", "stage", *options, "--out", tmp_path)
    params = ad.read_h5ad(tmp_path / "predicted.h5ad").uns["interpolate"]["params"]
    found = {name: params[name] for name in ("source", "target", "path", "pairing")}
    assert found == {"source": "early", "target": "late", "path": "shift", "pairing": "random"}


def test_leave_one_out_refits_without_each_interior_stage_and_keeps_the_models(
    run: Path, course: Path, tmp_path: Path
) -> None:
    options = ("--key", "stage", "--order", "early,middle,late", "--leave-one-out", "--epochs", 1)
    said = latentcell("interpolate", run, course, *options, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "evaluation.csv")
    assert set(table.held_out) == {"middle"}
    assert "middle: In model space" in said.replace("\n", " ")
    written = (tmp_path / "models" / "without_middle" / "model.json").stat().st_mtime_ns
    assert (tmp_path / "figures" / "leave_one_out.png").stat().st_size > 0
    latentcell("interpolate", run, course, *options, "--out", tmp_path)
    assert (tmp_path / "models" / "without_middle" / "model.json").stat().st_mtime_ns == written


def test_leave_one_out_with_a_stage_named_is_refused(run: Path, course: Path, tmp_path: Path) -> None:
    options = ("--key", "stage", "--leave-one-out", "--truth", "middle", "--out", tmp_path)
    assert "leave out --source" in latentcell("interpolate", run, course, *options, status=2)


def test_sharp_cells_without_a_refiner_are_refused_with_the_command_that_makes_one(
    run: Path, course: Path, tmp_path: Path
) -> None:
    ends = ("--key", "stage", "--source", "early", "--target", "late", "--sharp", "--out", tmp_path)
    assert "latentcell sharpen RUN DATA" in latentcell("interpolate", run, course, *ends, status=2).replace("\n", " ")


def test_sharpen_adds_a_refiner_to_the_run(run: Path, course: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    latentcell("sharpen", copy, course, "--steps", 2)
    latentcell("grid", copy, "--out", tmp_path, "--n", 2, "--sharp")
    assert lc.VAE.load(copy / "model").refined


def test_a_prediction_without_truth_leaves_no_evaluation_of_an_earlier_one(
    run: Path, course: Path, tmp_path: Path
) -> None:
    ends = ("--key", "stage", "--source", "early", "--target", "late", "--out", tmp_path)
    latentcell("interpolate", run, course, *ends, "--truth", "middle")
    said = latentcell("interpolate", run, course, *ends)
    assert "no truth" in said.replace("\n", " ")
    assert not (tmp_path / "evaluation.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "nowhere.h5ad"), "nowhere.h5ad"),
        (("fit", "nowhere", "--out", "x"), "nowhere"),
        (("embed", "norun", "nowhere", "--out", "x"), "norun"),
        (("interpolate", "norun", "x", "--key", "k", "--source", "a", "--target", "b", "--out", "y"), "norun"),
    ],
)
def test_bad_input_is_refused_in_one_paragraph_with_status_2(arguments: tuple[str, ...], words: str) -> None:
    said = latentcell(*arguments, status=2)
    assert said.startswith("latentcell: ")
    assert words in said
    assert "Traceback" not in said


def test_a_finished_fit_is_not_overwritten_unasked(run: Path, course: Path) -> None:
    before = (run / "model" / "weights.safetensors").read_bytes()
    assert "--overwrite" in latentcell("fit", course, "--out", run, status=2)
    assert (run / "model" / "weights.safetensors").read_bytes() == before


def test_exclude_without_a_level_says_how_to_write_it(course: Path, tmp_path: Path) -> None:
    assert "key=level" in latentcell("fit", course, "--out", tmp_path / "r", "--exclude", "stage", status=2)


def test_truth_that_the_fit_has_seen_is_refused(course: Path, tmp_path: Path) -> None:
    latentcell("fit", course, "--out", tmp_path / "run", "--latent", 2, "--epochs", 1)
    ends = ("--key", "stage", "--source", "early", "--target", "late", "--truth", "middle")
    said = latentcell("interpolate", tmp_path / "run", course, *ends, "--out", tmp_path / "between", status=2)
    assert "used in fitting" in said.replace("\n", " ")
    assert not (tmp_path / "between").exists()
