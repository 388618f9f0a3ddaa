"""`latentcell integrate` from the shell."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import latentcell as lc
from latentcell.cli import app


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    lc.cells.write_h5ad(lc.cells.simulate.organisation(60, size=16, rng=0), path)
    return path


def integrate(data: Path, out: Path, *more: str):
    words = ["integrate", str(data), "--reference", "membrane", "DNA", "--target", "structure", "--out", str(out)]
    return CliRunner().invoke(app, [*words, "--structure-key", "structure", "--latent", "2", "2", *more])


def test_integrate_writes_model_codes_coupling_and_figures(data: Path, tmp_path: Path) -> None:
    result = integrate(data, tmp_path / "run", "--epochs", "1")
    assert result.exit_code == 0, result.output
    out = tmp_path / "run"
    model = lc.IntegratedCell.load(out / "model")
    assert model.structures_ == sorted(lc.cells.simulate.STRUCTURES)
    table = pd.read_csv(out / "coupling.csv")
    assert set(table["question"]) == {"all", "alone", "beyond", "mean"}
    assert table.loc[table["question"] == "all", "n_cells"].sum() == 12
    cells = lc.read(out / "cells.h5ad")
    assert cells.obsm["organisation"].shape == (60, 2)
    assert (cells.obs["kept_out"] == "yes").sum() == 12
    names = {path.stem for path in (out / "figures").glob("*.png")}
    assert {"sampled", "predicted", "coupling", "organisation_cortex", "latent_grid"} <= names
    assert not list(out.glob("checkpoint*"))
    again = integrate(data, tmp_path / "run", "--epochs", "1")
    assert again.exit_code == 2
    assert "--overwrite" in again.output


def test_an_unknown_channel_is_said_in_words(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["integrate", str(data), "--reference", "ER", "--target", "structure", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 2
    assert "no channel 'ER'" in result.output
    assert not os.path.exists(tmp_path / "run" / "model")
