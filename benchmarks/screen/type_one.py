"""Type-I error of the relabelling test where nothing acts: wells, cells averaged in wells, donors.

    python -m benchmarks.screen.type_one

Wells have noise of SD 0.3 and plates shifts of SD 0.5 on every feature, in SD of cells. 2,000 independent simulations
per design (500 with cells), each with controls of its own; intervals are Clopper-Pearson. Last, a group that does
nothing but lose three quarters of its cells, without noise of wells: described by all cells, and matched as a screen
does it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from benchmarks.common import write
from scipy.stats import binomtest, kstest

from latentcell.model.placing import Placed
from latentcell.stats.relabelling import layout, relabelling_test
from latentcell.tl.wells import CENTROID, SPREAD, count_levels, gather

N = 2_000
WELL, PLATE = 0.3, 0.5


def wells(rng: np.random.Generator, blocks: int, controls: int, p: int, *, cells: int | None = None, treated: int = 1):
    shape = (blocks, controls + treated, p)
    x = PLATE * rng.standard_normal((blocks, 1, p)) + WELL * rng.standard_normal(shape)
    if cells is not None:
        x = (x[:, :, None] + rng.standard_normal((*shape[:2], cells, p))).mean(axis=2)
    is_treated = np.tile(np.arange(shape[1]) < treated, blocks)
    return x.reshape(-1, p), is_treated, np.repeat(np.arange(blocks).astype(str).astype(object), shape[1])


DESIGNS = {
    "wells, 3 x 16": {"blocks": 3, "controls": 16},
    "wells, 3 x 8": {"blocks": 3, "controls": 8},
    "wells, 2 x 8": {"blocks": 2, "controls": 8},
    "100 cells per well, 3 x 16": {"blocks": 3, "controls": 16, "cells": 100},
    "100 cells per well, 3 x 8": {"blocks": 3, "controls": 8, "cells": 100},
    "100 cells per well, 2 x 8": {"blocks": 2, "controls": 8, "cells": 100},
    "donors, 6 against 6": {"blocks": 1, "controls": 6, "treated": 6, "cells": 100},
    "donors, 4 against 12": {"blocks": 1, "controls": 12, "treated": 4, "cells": 100},
}


def fewer_cells(rng: np.random.Generator, p: int) -> dict[str, float]:
    """p of a group with 20 cells per well against controls with 80, as they are and matched."""
    n_cells = np.tile(np.append(20, np.full(16, 80)), 3)
    well = np.repeat(np.arange(51), n_cells)
    x = rng.standard_normal((len(well), p)).astype(np.float32)
    treated, block = np.tile(np.arange(17) == 0, 3), np.repeat(["a", "b", "c"], 17).astype(object)
    plan = layout(treated, ~treated, block)
    cell = np.zeros(len(well), np.float32)
    placed = [Placed(np.arange(len(well)), x, np.ones_like(x), cell, cell, x)]
    _, views = gather(placed, well, images=False, levels=count_levels(n_cells, [plan]), rng=rng)
    given = {"all cells": views.everything, "matched": views.matched(plan)}
    options = {"control": ~treated, "block": block, "n_relabellings": 199, "rng": rng}
    return {how: relabelling_test([each[CENTROID], each[SPREAD]], plan, **options).p for how, each in given.items()}


def main() -> None:
    rows = []
    for name, design in DESIGNS.items():
        for p in (10, 32):
            rng, values = np.random.default_rng(p), []
            for _ in range(N if "cells" not in design else N // 4):
                x, treated, block = wells(rng, p=p, **design)
                plan = layout(treated, ~treated, block)
                # one view, and two views combined, as a screen does
                views = [x, np.square(x - x.mean(axis=0))]
                tested = relabelling_test(views, plan, control=~treated, block=block, n_relabellings=999, rng=rng)
                values.append((tested.p_views[0], tested.p))
            for how, ps in zip(("one view", "joint"), np.array(values).T, strict=True):
                rows.append(_rates(name, p, how, ps) | {"min_p": plan.smallest_p(999)})
            print(rows[-1])
    for p in (10, 32):
        rng = np.random.default_rng(p)
        values = pd.DataFrame([fewer_cells(rng, p) for _ in range(N // 4)])
        rows += [_rates("20 cells against 80, 3 x 16", p, how, values[how].to_numpy()) for how in values]
    write(pd.DataFrame(rows), "screen/type_one")


def _rates(name: str, p: int, how: str, values: np.ndarray) -> dict[str, object]:
    low, high = binomtest(int((values <= 0.05).sum()), len(values)).proportion_ci()
    return {
        "design": name, "features": p, "test": how, "n": len(values), "rate_0.05": np.mean(values <= 0.05), "low": low,
        "high": high, "rate_0.01": np.mean(values <= 0.01), "ks_p": kstest(values, "uniform").pvalue,
    }  # fmt: skip


if __name__ == "__main__":
    main()
