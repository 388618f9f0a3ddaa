"""How soon 5,000 crops have a usable latent space: R2 of held-out pixels after so many seconds of training.

``python -m benchmarks.speed.usable [SECONDS ...]``
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
from benchmarks.common import write
from benchmarks.speed.image_fits import LATENT, r2

import latentcell as lc

N_CELLS, N_NEW, SIZE = 5000, 500, 64


def main(budgets: list[float]) -> None:
    cells = lc.cells.simulate.images(N_CELLS, size=SIZE, rng=0)
    new = lc.cells.simulate.images(N_NEW, size=SIZE, rng=1)
    rows = []
    for seconds in budgets:
        started = time.perf_counter()
        model = lc.VAE(LATENT).fit(cells, max_minutes=seconds / 60, rng=0)
        taken = time.perf_counter() - started
        # as the model sees them: turned to their principal axis, which is where it draws them
        seen, drawn = model.measurements(new), model.reconstruct(new)
        row = {"budget_seconds": seconds, "whole_call": taken, "epochs": len(model.history_)}
        rows.append(row | {"r2": r2(seen.astype(np.float64), drawn.astype(np.float64))})
        print(rows[-1], flush=True)
    write(pd.DataFrame(rows), "speed/usable")


if __name__ == "__main__":
    main([float(each) for each in sys.argv[1:]] or [45, 90, 180])
