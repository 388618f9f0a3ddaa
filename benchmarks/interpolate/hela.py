"""HeLa cells: metaphase hidden, predicted from prometaphase and from prophase to early anaphase, sharp and plain.

    python -m benchmarks.interpolate.hela

Energy distance to the measured (data space) or reconstructed (model space) metaphases in standardised hand-made
features. Model seeds 0 and 1; the refiner sees what the model saw.
"""

from __future__ import annotations

import time
import warnings

import pandas as pd
from benchmarks.common import data_dir, write

import latentcell as lc

HIDDEN = {"stage": ["metaphase", "apoptosis"]}


def main() -> None:
    cells = lc.read(data_dir() / "images" / "hela_h2b_mitosis", channel_names=["H2B", "tubulin"])
    tables = []
    for seed in (0, 1):
        model = lc.VAE(16).fit(cells, exclude=HIDDEN, split_key="track", rng=seed)
        start = time.perf_counter()
        model.fit_refiner(cells, rng=seed)
        drift = model.report_["refiner"]
        print(f"seed {seed}: refiner {time.perf_counter() - start:.0f} s, {drift}", flush=True)
        alive = cells[cells.obs["stage"] != "apoptosis"].copy()
        for source in ("prometaphase", "prophase"):
            for sharp in (True, False):
                predicted = lc.tl.interpolate(
                    alive, model, "stage", source=source, target="early_anaphase", truth="metaphase", sharp=sharp,
                    replicate="track", rng=seed,
                )  # fmt: skip
                result = predicted.uns["interpolate"]
                table = result["evaluation"].query("metric == 'energy distance'")
                tables.append(table.assign(seed=seed, source=source, sharp=sharp))
                print(f"seed {seed}, from {source}, {'sharp' if sharp else 'white noise'}")
                print(*result["verdict"].values(), sep="\n")
                wide = table.pivot_table(index="space", columns="method", values="value", sort=False)
                print(wide.round(2).to_string(), flush=True)
    write(pd.concat(tables), "interpolate/hela")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
