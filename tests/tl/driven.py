"""Small cells whose annotations drive known variables, and models fitted on them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import latentcell as lc
from latentcell.cells.images import set_images
from latentcell.model.settings import Settings
from latentcell.stats import association

SETTINGS = Settings(batch_size=32, learning_rate=1e-2, threads=1)
FIT: dict[str, Any] = {"epochs": 30, "settings": SETTINGS}
BRIEF: dict[str, Any] = {"epochs": 2, "settings": SETTINGS}
N_VARIABLES = 20
OF_DOSE = tuple(f"v{i:02d}" for i in range(8))
"""Variables that dose drives, every second one downwards."""
OF_STAGE = tuple(f"v{i:02d}" for i in range(8, 14))

# `latentcell.tl.factors` is the function, so modules are asked for by name
relations_module, effects_module, factors_module = (
    importlib.import_module(f"latentcell.tl.{name}") for name in ("relations", "effects", "factors")
)


@contextmanager
def quick(n_permutations: int = 19, n_resamples: int = 3) -> Iterator[None]:
    """Few permutations and trees, and one thread: several wait for each other where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations_module, "N_PERMUTATIONS", n_permutations)
        patch.setattr(relations_module, "_N_RESAMPLES", n_resamples)
        patch.setattr(effects_module, "_N_PERMUTATIONS", 99)
        patch.setattr(association, "N_TREES", 6)
        yield
    torch.set_num_threads(before)


def annotated(n: int, seed: int) -> pd.DataFrame:
    """Dose and stage act; noise does not. Ten cells to a well; wells are treated or not, and lie on two plates."""
    rng, well = np.random.default_rng(seed), np.arange(n) // 10
    return pd.DataFrame(
        {
            "dose": rng.normal(size=n),
            "stage": pd.Categorical(rng.choice(["early", "middle", "late"], n)),
            "noise": rng.normal(size=n),
            "plate": pd.Categorical(np.array(["p1", "p2"])[well % 2]),
            "drug": np.array(["none", "some"])[well // 2 % 2],
            "well": [f"w{i:02d}" for i in well],
        },
        index=[f"c{i}" for i in range(n)],
    )


def _signal(obs: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    x = 0.4 * rng.normal(size=(len(obs), N_VARIABLES))
    x[:, :8] += np.outer(2 * obs["dose"], [1, -1] * 4)
    x[:, 8:14] += 1.6 * obs["stage"].map({"early": -1, "middle": 0, "late": 1}).to_numpy(float)[:, None]
    x[:, 14:18] += 1.2 * rng.normal(size=(len(obs), 1))
    return x


def _named(x: np.ndarray, obs: pd.DataFrame) -> AnnData:
    return AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"v{i:02d}" for i in range(x.shape[1])]))


def profiles(n: int = 300, seed: int = 0) -> AnnData:
    obs = annotated(n, seed)
    return _named(_signal(obs, np.random.default_rng([seed, 1])), obs)


def counted(n: int = 300, seed: int = 0) -> AnnData:
    obs, rng = annotated(n, seed), np.random.default_rng([seed, 1])
    return _named(rng.poisson(np.exp(0.4 * _signal(obs, rng) + 2.5)), obs)


def pictured(n: int = 100, seed: int = 0, *, masks: bool = False) -> AnnData:
    """Two channels of 16 x 16: the brightness of the first follows dose, the width of the second stage."""
    obs, rng = annotated(n, seed), np.random.default_rng([seed, 1])
    y, x = np.mgrid[:16, :16] - 7.5
    width = obs["stage"].map({"early": 2.0, "middle": 4.0, "late": 6.0}).to_numpy(float)[:, None, None]
    first = (90 + 30 * obs["dose"].to_numpy().clip(-2.5, 2.5))[:, None, None] * np.exp(-(x**2 + y**2) / 18)
    second = 120 * np.exp(-(x**2) / (2 * width**2) - y**2 / 8)
    images = np.stack([first, second], axis=1) + 10 + 3 * rng.normal(size=(n, 2, 16, 16))
    cells = AnnData(obs=obs)
    inside = np.broadcast_to(x**2 + y**2 < 40, (n, 16, 16)).astype(np.uint8) if masks else None
    set_images(cells, images.clip(0, 255).astype(np.uint8), channel_names=["DNA", "actin"], masks=inside)
    return cells


MAKERS = {"profiles": profiles, "counts": counted, "images": pictured}


def fitted(cells: AnnData, *, n_latent: int = 4, fit: dict[str, Any] | None = None, rng: int = 0, **options: Any):
    """A small model of `cells`; images as they are."""
    optical = "images" in cells.obsm
    options = {"width": 4, "orientation": "as_is"} | options if optical else {"width": 16} | options
    return lc.VAE(n_latent, **options).fit(cells, rng=rng, **(FIT if fit is None else fit))
