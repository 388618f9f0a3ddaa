"""Builders of tiny cells and models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

import latentcell as lc
from latentcell.cells.images import set_images
from latentcell.model.settings import Settings

SETTINGS = Settings(batch_size=16, threads=1)


def count_cells(n: int = 60, n_genes: int = 12, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    programme = rng.normal(size=(n, 1)) * rng.normal(size=(1, n_genes))
    rate = np.exp(programme + 1.5) * rng.gamma(5, 1 / 5, (n, 1))
    return _named(AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32))), rng)


def profile_cells(n: int = 60, n_features: int = 6, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n, 2)) @ rng.normal(size=(2, n_features))
    return _named(AnnData((5 + signal + 0.3 * rng.normal(size=signal.shape)).astype(np.float32)), rng)


def image_cells(n: int = 24, size: tuple[int, ...] = (14, 16), seed: int = 0, masks: bool = False) -> AnnData:
    """Two-channel ellipses of random angle and length; uint8."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in size], indexing="ij"))
    angle, length = rng.uniform(0, np.pi, n), rng.uniform(0.3, 0.7, n)
    images = np.empty((n, 2, *size), dtype=np.uint8)
    inside = np.empty((n, *size), dtype=bool)
    for i in range(n):
        along = grid[-1] * np.cos(angle[i]) + grid[-2] * np.sin(angle[i])
        across = grid[-2] * np.cos(angle[i]) - grid[-1] * np.sin(angle[i])
        shape = np.exp(-((along / length[i]) ** 2 + (across / 0.25) ** 2))
        inside[i] = shape > 0.2
        images[i, 0] = 20 + 200 * shape
        images[i, 1] = 10 + 100 * np.exp(-(((along - 0.2) / 0.2) ** 2 + (across / 0.2) ** 2))
    cells = _named(AnnData(obs=pd.DataFrame(index=[str(i) for i in range(n)])), rng)
    set_images(cells, images, channel_names=["dna", "actin"], masks=inside if masks else None)
    return cells


def _named(cells: AnnData, rng: np.random.Generator) -> AnnData:
    cells.obs_names = [f"cell_{i}" for i in range(cells.n_obs)]
    cells.var_names = [f"gene_{i}" for i in range(cells.n_vars)]
    cells.obs["stage"] = pd.Categorical(rng.choice(["early", "middle", "late"], cells.n_obs))
    cells.obs["plate"] = pd.Categorical(rng.choice(["p1", "p2"], cells.n_obs, p=[0.7, 0.3]))
    return cells


def fit(cells: AnnData, *, epochs: int = 2, rng: int = 0, exclude: dict | None = None, **options) -> lc.VAE:
    options = {"n_latent": 3, "width": 8} | options
    return lc.VAE(**options).fit(cells, epochs=epochs, settings=SETTINGS, exclude=exclude, rng=rng)


MAKERS = {"counts": count_cells, "profiles": profile_cells, "images": image_cells}
