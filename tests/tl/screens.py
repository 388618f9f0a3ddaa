"""Small simulated screens, and models fitted on some of their controls."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

import latentcell as lc
from latentcell.model.settings import Settings

DESIGN = {"group": "perturbation", "control": "control", "replicate": "well", "block": "plate"}
SETTINGS = Settings(batch_size=32, threads=1)


class Result(NamedTuple):
    cells: AnnData
    model: lc.VAE

    @property
    def hits(self) -> pd.DataFrame:
        return self.cells.uns["screen"]["hits"].set_index("label")

    @property
    def verdict(self) -> str:
        return " ".join(self.cells.uns["screen"]["verdict"])


def simulated(modality: str = "profiles", **changed: Any) -> AnnData:
    settings = {"n_plates": 3, "n_control_wells": 8, "n_perturbations": 6, "cells_per_well": 20, "size": 16, "rng": 0}
    if modality == "images":
        settings |= {"n_control_wells": 6, "cells_per_well": 8}
    nuisance = {"strengths": (3.0,), "position_effect": 0.0}
    return lc.cells.simulate.screen(modality=modality, **{**settings, **nuisance, **changed})


def screened(cells: AnnData, model: lc.VAE | None = None, **options: Any) -> Result:
    if model is None or not hasattr(model, "schema_"):
        options = {"fit": {"epochs": 6, "settings": SETTINGS}, **options}
    return Result(cells, lc.tl.screen(cells, model, **{**DESIGN, "rng": 0, **options}))


def wells_of(cells: AnnData) -> pd.Series:
    return cells.obs["plate"].astype(str) + " " + cells.obs["well"].astype(str)


def fitted_on(cells: AnnData, rows: np.ndarray, epochs: int = 5) -> lc.VAE:
    marked = cells.copy()
    marked.obs["part"] = np.where(rows, "fit", "other")
    return lc.VAE(4, width=16).fit(marked, exclude={"part": ["other"]}, epochs=epochs, settings=SETTINGS, rng=0)


def every_second_control(cells: AnnData) -> np.ndarray:
    controls = wells_of(cells)[cells.obs["perturbation"] == "control"].unique()
    return wells_of(cells).isin(controls[::2]).to_numpy()


def by_well(cells: AnnData) -> AnnData:
    """One row per well, as a table of profiles from another program."""
    means = cells.to_df().groupby(wells_of(cells), sort=False).mean()
    obs = cells.obs[["plate", "well", "perturbation"]].groupby(wells_of(cells), sort=False).first()
    return AnnData(means.astype(np.float32), obs=obs.loc[means.index])
