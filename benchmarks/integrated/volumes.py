"""Time and memory of 500 stacks of 2 x 32 x 64 x 64 and a structure.

``python -m benchmarks.integrated.volumes [--cells 500] [--minutes 15]``
"""

from __future__ import annotations

import argparse
import resource
import time

import pandas as pd
from benchmarks.common import write

import latentcell as lc


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--cells", type=int, default=500)
    options.add_argument("--minutes", type=float, default=15)
    given = options.parse_args()
    cells = lc.cells.simulate.organisation(given.cells, depth=32, dtype="uint8", rng=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    away = lc.cells.keep_out(cells, 0.2, rng=0)
    model = lc.IntegratedCell(["membrane", "DNA"], "structure", structure_key="structure", n_latent=(8, 8))
    started = time.perf_counter()
    model.fit(cells, exclude=away, max_minutes=given.minutes, rng=0)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    new = cells[cells.obs["kept_out"] == "yes"].copy()
    table = lc.tl.coupling(new, model, n_samples=5)
    told = table[(table["channel"] == "all") & (table["question"] == "all")].set_index("structure")["nats"]
    lc.pl.save(lc.pl.integrated(model.sample(3, rng=0)), "docs/images/integrated_stacks")
    row = {"cells": given.cells, "seconds": seconds, "growth_mb": peak - before, "peak_mb": peak}
    row |= {"epochs": len(model.history_), "reference_epochs": len(model.reference_.history_), **told.to_dict()}
    write(pd.DataFrame([row]), "integrated/volumes")


if __name__ == "__main__":
    main()
