"""Simulated time courses whose middle is hidden: the default against random pairs and every baseline, five seeds.

    python benchmarks/interpolate/simulated.py [counts] [images]

Counts of three cell types that differentiate, and images of cells that grow; energy distance to the hidden cells.
"""

from __future__ import annotations

import sys
import warnings

import pandas as pd
from common import write

import latentcell as lc

SEEDS = range(5)


def counts(seed: int) -> pd.DataFrame:
    cells = lc.cells.simulate.count_course(300, rng=seed)
    model = lc.VAE(8).fit(cells, exclude={"stage": ["middle"]}, rng=seed)
    return evaluated(cells, model, seed)


def images(seed: int) -> pd.DataFrame:
    cells = lc.cells.simulate.time_course(300, size=40, rng=seed)
    model = lc.VAE(8).fit(cells, exclude={"stage": ["middle"]}, epochs=120, rng=seed)
    return pd.concat([evaluated(cells, model, seed, path) for path in ("linear", "slerp", "shift")])


def evaluated(cells: object, model: lc.VAE, seed: int, path: str = "auto") -> pd.DataFrame:
    predicted = lc.tl.interpolate(
        cells, model, "stage", source="early", target="late", truth="middle", path=path, rng=seed
    )
    table = predicted.uns["interpolate"]["evaluation"].query("metric == 'energy distance'")
    return table.assign(seed=seed, path=predicted.uns["interpolate"]["params"]["path"])


def main(names: list[str]) -> None:
    for name in names:
        tables = []
        for seed in SEEDS:
            tables.append(globals()[name](seed))
            wide = tables[-1].pivot_table(index=["path", "space"], columns="method", values="value", sort=False)
            print(f"{name}, seed {seed}\n{wide.round(2).to_string()}", flush=True)
        write(pd.concat(tables), f"simulated_{name}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:] or ["counts", "images"])
