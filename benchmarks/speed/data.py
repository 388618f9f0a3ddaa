"""Counts to measure speed on: sparse like those of droplets, of any size."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

_TYPES, _PROGRAMMES, _BLOCK = 15, 10, 2000


def simulated(n_cells: int, n_genes: int, zeros: float, seed: int = 0) -> ad.AnnData:
    """Negative binomial counts of cells of 15 types with 10 programmes, in two batches; `zeros` is their share."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.6, n_genes)
    types = rng.normal(0, 1.2, (_TYPES, n_genes)) * (rng.random((_TYPES, n_genes)) < 0.25)
    programmes = rng.normal(0, 0.35, (_PROGRAMMES, n_genes)) * (rng.random((_PROGRAMMES, n_genes)) < 0.3)
    batches = rng.normal(0, 0.25, (2, n_genes))
    theta = np.exp(rng.normal(0.3, 1.0, n_genes))
    of_type, of_batch = rng.integers(0, _TYPES, n_cells), rng.integers(0, 2, n_cells)
    activity, depth = rng.normal(size=(n_cells, _PROGRAMMES)), np.exp(rng.normal(0, 0.45, n_cells))

    def means(rows: np.ndarray, total: float) -> np.ndarray:
        score = base + types[of_type[rows]] + activity[rows] @ programmes + batches[of_batch[rows]]
        share = np.exp(score - score.max(1, keepdims=True))
        return share / share.sum(1, keepdims=True) * (depth[rows, None] * total)

    low, high = 10.0, 1e6
    some = np.arange(min(n_cells, 800))
    for _ in range(40):
        total = (low * high) ** 0.5
        found = ((theta / (theta + means(some, total))) ** theta).mean()
        low, high = (total, high) if found > zeros else (low, total)
    blocks = []
    for start in range(0, n_cells, _BLOCK):
        mu = means(np.arange(start, min(start + _BLOCK, n_cells)), total)
        drawn = rng.poisson(rng.standard_gamma(theta, mu.shape) * mu / theta)
        blocks.append(sp.csr_matrix(drawn.astype(np.float32)))
    obs = pd.DataFrame({"batch": of_batch.astype(str), "type": of_type.astype(str)})
    obs.index = [f"c{i}" for i in range(n_cells)]
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(sp.vstack(blocks, "csr"), obs=obs, var=var)
