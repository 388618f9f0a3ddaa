"""Cost of training against the number of cells, and its share of what the machine's products could do.

``python -m benchmarks.speed.scaling [N_CELLS ...]``; each number is fitted in a process of its own, for two epochs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.common import write
from benchmarks.speed.data import simulated
from benchmarks.speed.processes import peak_kb, run

GENES, ZEROS, UNIQUE, HIDDEN, LATENT, BATCH = 2000, 0.9, 20_000, 128, 10, 128


def gemm_rate() -> float:
    """Best rate of the decoder's product at its size, in floating point operations per second."""
    import torch

    hidden, weight = torch.randn(BATCH, HIDDEN), torch.randn(HIDDEN, GENES)
    best = np.inf
    for _ in range(300):
        started = time.perf_counter()
        hidden @ weight
        best = min(best, time.perf_counter() - started)
    return 2 * BATCH * HIDDEN * GENES / best


def unavoidable(nonzeros: float) -> float:
    """Operations per cell that any implementation of this model does: products forward, and twice that backward."""
    small = HIDDEN * HIDDEN * 2 + HIDDEN * LATENT * 3
    return 2 * 3 * (GENES * HIDDEN + small) + 2 * 2 * nonzeros * HIDDEN


def fitted(path: str) -> None:
    """Fit and print time, memory and rates."""
    import latentcell as lc

    cells = ad.read_h5ad(path)
    before = peak_kb()
    model = lc.VAE(LATENT, batch_key="batch").fit(cells, epochs=2, rng=0)
    seconds = float(np.diff([0.0, *model.history_["seconds"]]).min())
    per_cell = seconds / model.report_["n_train"]
    rate = gemm_rate()
    share = unavoidable(cells.X.nnz / cells.n_obs) / rate / per_cell
    found = {"n": cells.n_obs, "epoch_seconds": seconds, "us_per_cell": per_cell * 1e6}
    print(json.dumps(found | {"growth_mb": (peak_kb() - before) / 1024, "gflops": rate / 1e9, "roofline": share}))


def main(numbers: list[int]) -> None:
    cells = simulated(UNIQUE, GENES, ZEROS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in numbers:
            repeated = sp.vstack([cells.X] * (n // UNIQUE), "csr")
            obs = pd.concat([cells.obs] * (n // UNIQUE), ignore_index=True)
            obs.index = obs.index.astype(str)
            path = Path(folder) / f"{n}.h5ad"
            ad.AnnData(repeated, obs=obs, var=cells.var).write_h5ad(path)
            del repeated
            rows.append(run(sys.executable, "benchmarks.speed.scaling", "one", path))
            print(rows[-1], flush=True)
    write(pd.DataFrame(rows), "speed/scaling")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        fitted(sys.argv[2])
    else:
        main([int(n) for n in sys.argv[1:]] or [20_000, 100_000, 400_000])
