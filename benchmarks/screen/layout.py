"""Screens in which nothing acts but the place on the plate: is anything called?

    python -m benchmarks.screen.layout

Profiles, 3 plates x 16 controls, 40 perturbations without effect, edge and gradient effects of 0.5 SD of cells. With
wells drawn at random on every plate p-values must hold; with controls in the first columns and perturbations behind
them, the same on all plates, the layout check must speak and nothing may be called.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from benchmarks.common import write

import latentcell as lc

N = 20


def main() -> None:
    rows = []
    for layout in ("random", "contiguous"):
        for seed in range(N):
            cells = lc.cells.simulate.screen(
                modality="profiles", layout=layout, n_perturbations=40, cells_per_well=30, strengths=(0.0,),
                position_effect=0.5, rng=seed,
            )  # fmt: skip
            # names that tell no place
            cells.obs["number"] = cells.obs.groupby(["plate", "well"], observed=True).ngroup().astype(str)
            for replicate in ("number", "well"):
                model = lc.tl.screen(
                    cells, group="perturbation", control="control", replicate=replicate, block="plate",
                    fit={"epochs": 100}, rng=seed,
                )  # fmt: skip
                hits = cells.uns["screen"]["hits"]
                p = hits["p"].dropna()
                rows.append({
                    "layout": layout, "places given": replicate == "well", "seed": seed, "valid": hits["valid"].all(),
                    "called": int((hits["q"] <= 0.05).sum()),
                    "rate_0.05": np.mean(p <= 0.05) if len(p) else np.nan, "n_latent": model.n_latent,
                })  # fmt: skip
    table = pd.DataFrame(rows).groupby(["layout", "places given"], sort=False)
    summary = table.agg(
        screens=("seed", "size"),
        p_values_given=("valid", "mean"),
        screens_with_calls=("called", lambda n: (n > 0).sum()),
        called=("called", "sum"),
        rate_at_05=("rate_0.05", "mean"),
    )
    write(summary.reset_index(), "screen/layout")


if __name__ == "__main__":
    main()
