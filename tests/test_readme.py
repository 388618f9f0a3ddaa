"""What the README shows runs as it stands: on small cells, with fits of a few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from typer.testing import CliRunner

import latentcell as lc
from latentcell.cli import app
from latentcell.model import fit

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
STAGES = ("interphase", "prophase", "prometaphase", "metaphase", "early_anaphase")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("latentcell ") and "demo" not in line
]


def dividing(n: int, seed: int) -> AnnData:
    """Cells of two channels with every column of obs that the README names."""
    made = lc.cells.simulate.images(n, size=16, rng=seed)
    rng = np.random.default_rng(seed)
    cells = AnnData(obs=made.obs[["phase"]].copy())
    lc.cells.set_images(cells, made.obsm["images"][:, :2], channel_names=["H2B", "tubulin"])
    cells.obs_names = [f"cell_{seed}_{i}" for i in range(n)]
    order = made.obs["size"].rank(method="first").to_numpy()
    cells.obs["stage"] = np.array(STAGES)[((order - 1) * len(STAGES) // n).astype(int)]
    cells.obs["day"] = 1 + ((order - 1) * 5 // n).astype(int)
    cells.obs["track"] = [f"t{i // 4}" for i in range(n)]
    cells.obs["cell_type"] = np.where(rng.random(n) < 0.5, "a", "b")
    cells.obs["descendants"] = rng.uniform(0.5, 2, n)
    cells.obs["dose"] = rng.uniform(0, 1, n)
    cells.obs["plate"] = np.where(np.arange(n) % 2, "p1", "p2")
    cells.obs["well"] = [f"w{i % 12}" for i in range(n)]
    return cells


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    cells = dividing(120, 0)
    (folder / "my_cells").mkdir()
    for name, image in zip(cells.obs_names, cells.obsm["images"], strict=True):
        tifffile.imwrite(folder / "my_cells" / f"{name}.tif", image, photometric="minisblack")
    table = cells.obs.assign(file=[f"{name}.tif" for name in cells.obs_names])
    table.to_csv(folder / "my_cells" / "table.csv", index=False)
    lc.cells.write_h5ad(cells, folder / "cells.h5ad")
    lc.cells.write_h5ad(dividing(40, 1), folder / "new_cells.h5ad")
    plates = lc.cells.simulate.screen(
        n_plates=2, n_control_wells=8, n_perturbations=2, cells_per_well=6, size=16, rng=0
    )
    plates.obs = plates.obs.rename(columns={"perturbation": "compound"})
    plates.obs["compound"] = plates.obs["compound"].astype(str).replace("control", "DMSO")
    plates.obs["concentration"] = 1.0
    lc.cells.write_h5ad(plates, folder / "plates.h5ad")
    lc.cells.write_h5ad(lc.cells.simulate.organisation(80, size=16, rng=0), folder / "tagged.h5ad")
    return folder


@pytest.fixture(autouse=True)
def _a_few_steps(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr(fit, "_EPOCHS", (1, 2))
    monkeypatch.setitem(lc.VAE.fit_refiner.__kwdefaults__, "steps", 4)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.slow
def test_commands_run_in_their_order() -> None:
    assert len(COMMANDS) > 10
    for words in COMMANDS:
        # the command's own default, which no constant reaches
        more = ["--steps", "4"] if words[0] == "sharpen" else []
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"


def test_python_runs_and_answers_the_questions(files: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {"__name__": "__main__"}
    exec(compile(block, "README.md", "exec"), names)
    assert isinstance(names["tested"], pd.DataFrame | AnnData)
    assert set(names["plates"].uns["screen"]) >= {"hits", "verdict"}
    for figure in ("path.png", "grid.png", "factors.png", "hit.png", "sampled.png"):
        assert (files / figure).stat().st_size > 1000
