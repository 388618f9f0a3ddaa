"""Simulated time courses whose middle is hidden: the default against random pairs and every baseline, five seeds.

    python -m benchmarks.interpolate.simulated [counts] [images] [dense]

Counts of three cell types that differentiate (counts); images of cells that grow by 5 SD of their size between the two
ends (images), and the same with five times, of which the neighbours are 2.5 SD apart (dense). Energy distance to the
hidden cells.
"""

from __future__ import annotations

import sys
import warnings

import pandas as pd
from benchmarks.common import write

import latentcell as lc

SEEDS = range(5)


def counts(seed: int) -> pd.DataFrame:
    cells = lc.cells.simulate.count_course(300, rng=seed)
    model = lc.VAE(8).fit(cells, exclude={"stage": ["middle"]}, rng=seed)
    return evaluated(cells, model, seed)


def images(seed: int, times: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pd.DataFrame:
    cells = lc.cells.simulate.time_course(900 // len(times), times, size=40, rng=seed)
    hidden = cells.obs["stage"].cat.categories[len(times) // 2]
    model = lc.VAE(8).fit(cells, exclude={"stage": [hidden]}, epochs=120, rng=seed)
    key = "time" if len(times) > 3 else "stage"  # with stages the default is the line, with known times the curve
    return pd.concat([evaluated(cells, model, seed, path, key) for path in ("auto", "linear", "slerp", "shift")])


def dense(seed: int) -> pd.DataFrame:
    return images(seed, (0.0, 0.25, 0.5, 0.75, 1.0))


def evaluated(cells: object, model: lc.VAE, seed: int, path: str = "auto", key: str = "stage") -> pd.DataFrame:
    levels = cells.obs[key].sort_values().unique()
    predicted = lc.tl.interpolate(cells, model, key, truth=levels[len(levels) // 2], path=path, rng=seed)
    table = predicted.uns["interpolate"]["evaluation"].query("metric == 'energy distance'")
    return table.assign(seed=seed, path=path, taken=predicted.uns["interpolate"]["params"]["path"])


def main(names: list[str]) -> None:
    for name in names:
        tables = []
        for seed in SEEDS:
            tables.append(globals()[name](seed))
            wide = tables[-1].pivot_table(index=["path", "space"], columns="method", values="value", sort=False)
            print(f"{name}, seed {seed}\n{wide.round(2).to_string()}", flush=True)
        write(pd.concat(tables), f"interpolate/simulated_{name}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:] or ["counts", "images", "dense"])
