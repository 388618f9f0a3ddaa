"""A million cells encoded from a zarr store, and the cost against the number of cells.

``python -m benchmarks.speed.stream [N_CELLS ...]``; each number is read and encoded in a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.common import write
from benchmarks.speed.data import simulated
from benchmarks.speed.processes import peak_kb, run

GENES, UNIQUE = 2000, 20_000


def encoded(store: str, model: str) -> None:
    """Read and encode, and print time and memory."""
    import latentcell as lc
    from latentcell.cells import stores

    fitted = lc.VAE.load(model)
    stores.LAZY_BYTES = 0  # what is small enough to be read at once must stay on disk here, too
    before = peak_kb()
    started = time.perf_counter()
    latent = fitted.encode(lc.read(store))
    seconds = time.perf_counter() - started
    peak = peak_kb()
    found = {"n": len(latent.mu), "seconds": seconds, "growth_mb": (peak - before) / 1024, "peak_mb": peak / 1024}
    print(json.dumps(found))


def main(numbers: list[int]) -> None:
    import latentcell as lc

    cells = simulated(UNIQUE, GENES, 0.9)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        lc.VAE(10).fit(cells, epochs=2, rng=0).save(model)
        for n in numbers:
            repeated = sp.vstack([cells.X] * (n // UNIQUE), "csr")
            store = Path(folder) / f"{n}.zarr"
            obs = pd.DataFrame(index=np.arange(n).astype(str))
            ad.AnnData(repeated, obs=obs, var=cells.var).write_zarr(store)
            del repeated
            rows.append(run(sys.executable, "benchmarks.speed.stream", "one", store, model))
            print(rows[-1], flush=True)
    write(pd.DataFrame(rows), "speed/stream")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["one"]:
        encoded(*sys.argv[2:])
    else:
        main([int(each) for each in sys.argv[1:]] or [20_000, 100_000, 1_000_000])
