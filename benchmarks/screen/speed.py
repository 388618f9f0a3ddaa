"""Time of the test on a large screen, and time and memory of a screen of a million cells.

    python -m benchmarks.screen.speed

Each size runs in a process of its own; memory is the peak above what was resident before the screen began.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks.common import write

from latentcell.stats.relabelling import layout, relabelling_test


def test() -> dict[str, float]:
    """1,000 groups x 3 plates x 16 controls, 32 features."""
    rng = np.random.default_rng(0)
    group = np.tile(np.concatenate([np.zeros(16, int), np.arange(1, 1001)]), 3)
    block = np.repeat(np.array(["a", "b", "c"], object), 1016)
    x, control = rng.standard_normal((len(group), 32)), group == 0
    seconds = {}
    for name, n in (("999 drawn", 999), ("all 4,913", 9_999)):
        start = time.perf_counter()
        for g in range(1, 1001):
            plan = layout(group == g, control, block)
            relabelling_test([x], plan, control=control, block=block, n_relabellings=n, rng=0)
        seconds[name] = time.perf_counter() - start
    return seconds


def large(n_cells: int) -> dict[str, float]:
    """A screen of profiles with 30 features, 250 cells per well, 3 plates."""
    import latentcell as lc

    per_plate = n_cells // 3 // 250
    cells = lc.cells.simulate.screen(
        modality="profiles", n_plates=3, n_control_wells=64, n_perturbations=per_plate - 64, cells_per_well=250, rng=0
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30
    start = time.perf_counter()
    lc.tl.screen(
        cells, group="perturbation", control="control", replicate="well", block="plate", n_relabellings=999,
        fit={"epochs": 20}, rng=0,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results = sum(cells.obsm[name].nbytes for name in cells.obsm) / 2**30
    return {
        "cells": cells.n_obs, "groups": per_plate - 64, "seconds": seconds, "GiB_before": resident,
        "GiB_peak": peak, "GiB_peak_before": before / 2**20, "GiB_per_cell_results": results,
    }  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        print(json.dumps(large(int(sys.argv[1]))))
        return
    write(pd.DataFrame([test()]), "screen/speed_test")
    rows = []
    for n in (125_000, 250_000, 500_000, 1_000_000):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.screen.speed", str(n)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    write(pd.DataFrame(rows), "screen/speed_cells")


if __name__ == "__main__":
    main()
