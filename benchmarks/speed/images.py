"""Training on images against pythae and a plain loop, all with latentcell's networks.

``PEERS=/path/to/python python -m benchmarks.speed.images [--epochs N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks.common import write
from benchmarks.speed.processes import run

import latentcell as lc

N_CELLS, SIZE = 5000, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crops.npy"
        crops = np.asarray(lc.cells.simulate.images(N_CELLS, size=SIZE, rng=0).obsm["images"])
        np.save(path, (crops / crops.max() * 255).astype(np.uint8) if crops.dtype != np.uint8 else crops)
        for round_ in range(options.rounds):
            found = {
                "pythae": run(os.environ["PEERS"], "benchmarks.speed.image_fits", "pythae", path, options.epochs),
                "loop": run(sys.executable, "benchmarks.speed.image_fits", "loop", path, options.epochs),
                "latentcell": run(sys.executable, "benchmarks.speed.image_fits", "latentcell", path, options.epochs),
            }
            own = found["latentcell"]["seconds"]
            for who, result in found.items():
                rows.append({"who": who, "round": round_, **result, "ratio": result["seconds"] / own})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby("who", sort=False)
    medians = table[["seconds", "r2", "peak"]].median()
    medians[["ratio_min", "ratio_median", "ratio_max"]] = table["ratio"].agg(["min", "median", "max"])
    write(medians.reset_index().assign(epochs=options.epochs, rounds=options.rounds), "speed/images")


if __name__ == "__main__":
    main()
