"""Training and encoding counts against scvi-tools: same architecture, epochs, cells and evaluator.

``PEERS=/path/to/python python -m benchmarks.speed.counts [2k|10k|kang|worm ...] [--epochs N] [--rounds N]``

Each round runs the peer and latentcell one after the other as processes of their own; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from benchmarks.common import data_dir, write
from benchmarks.speed.data import simulated
from benchmarks.speed.processes import run

SETS = {"2k": (2000, 0.9), "10k": (10000, 0.95)}
REAL = {"kang": "kang2018_ctrl12k", "worm": "worm_neuron"}
N_TRAIN, N_HELD_OUT = 20_000, 2_000


def prepared(name: str, folder: Path) -> Path:
    """File of one data set with obs["batch"] and obs["held_out"]."""
    if name in SETS:
        genes, zeros = SETS[name]
        cells = simulated(N_TRAIN + N_HELD_OUT, genes, zeros)
        held_out = np.arange(cells.n_obs) >= N_TRAIN
    else:
        cells = ad.read_h5ad(data_dir() / "rna" / f"{REAL[name]}.h5ad")
        cells = ad.AnnData(cells.X.astype(np.float32), obs=pd.DataFrame(index=cells.obs_names), var=cells.var[[]])
        rng = np.random.default_rng(0)
        cells.obs["batch"] = rng.integers(0, 2, cells.n_obs).astype(str)
        held_out = rng.random(cells.n_obs) < 0.1
    cells.obs["held_out"] = held_out
    path = folder / f"{name}.h5ad"
    cells.write_h5ad(path)
    print(f"{name}: {cells.n_obs} x {cells.n_vars}, {1 - cells.X.nnz / np.prod(cells.shape):.3f} zeros", flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=[*SETS, *REAL])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            path = prepared(name, Path(folder))
            for likelihood in ("nb", "zinb"):
                for round_ in range(options.rounds):
                    peer = run(os.environ["PEERS"], "benchmarks.speed.fits", "scvi", path, likelihood, options.epochs)
                    own = run(sys.executable, "benchmarks.speed.fits", "latentcell", path, likelihood, options.epochs)
                    row = {"cells": name, "likelihood": likelihood, "round": round_, "epochs": options.epochs}
                    row |= {f"scvi_{key}": value for key, value in peer.items()}
                    row |= {f"own_{key}": value for key, value in own.items()}
                    row |= {f"{key}_ratio": peer[key] / own[key] for key in ("seconds", "loop_seconds", "encode")}
                    rows.append(row | {"memory_ratio": own["peak"] / peer["peak"]})
                    print({key: round(value, 2) for key, value in row.items() if isinstance(value, float)}, flush=True)
    table = pd.DataFrame(rows)
    ratios = [name for name in table if name.endswith("_ratio")]
    grouped = table.groupby(["cells", "likelihood"], sort=False)
    summary = grouped[ratios].agg(["min", "median", "max"])
    summary.columns = [f"{name}_{how}" for name, how in summary.columns]
    medians = grouped[[name for name in table if name.startswith(("scvi_", "own_"))]].median()
    write(medians.join(summary).reset_index().assign(epochs=options.epochs, rounds=options.rounds), "speed/counts")


if __name__ == "__main__":
    main()
