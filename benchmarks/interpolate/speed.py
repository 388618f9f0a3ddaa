"""Time and memory of an interpolation with 5,000 cells per end, truth and all baselines included.

    python -m benchmarks.interpolate.speed

Each case runs in a process of its own; the peak is that of the whole process, the cells themselves included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks.common import write

N = 5_000


def counts() -> object:
    import latentcell as lc

    cells = lc.cells.simulate.counts(2 * N + 1_000, 2_000, rng=0)
    return _staged(cells)


def images() -> object:
    import latentcell as lc

    return _staged(lc.cells.simulate.images(2 * N + 1_000, size=64, rng=0))


def _staged(cells: object) -> object:
    cells.obs["stage"] = np.repeat(["early", "late", "middle"], [N, N, 1_000])
    return cells


def fit(case: str, folder: Path) -> None:
    import latentcell as lc

    cells = globals()[case]()
    kept = cells[np.random.default_rng(0).choice(2 * N, 1_000, replace=False)].copy()
    lc.VAE(16).fit(kept, epochs=2, rng=0).save(folder)


def measure(case: str, folder: Path) -> None:
    import latentcell as lc

    cells = globals()[case]()
    model = lc.VAE.load(folder)
    start = time.perf_counter()
    lc.tl.interpolate(cells, model, "stage", source="early", target="late", truth="middle", rng=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"case": case, "cells per end": N, "seconds": seconds, "peak GiB": peak}))


def main() -> None:
    rows = []
    for case in ("counts", "images"):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            for step in ("fit", "measure"):
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.interpolate.speed", step, case, str(model)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    write(pd.DataFrame(rows), "interpolate/speed")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        {"fit": fit, "measure": measure}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
    else:
        main()
