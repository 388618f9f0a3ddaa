"""Type-I error of the relabelling test where nothing acts: wells, cells averaged in wells, donors.

    python -m benchmarks.screen.type_one

Wells have noise of SD 0.3 and plates shifts of SD 0.5 on every feature, in SD of cells. 2,000 independent simulations
per design, each with controls of its own; intervals are Clopper-Pearson.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from benchmarks.common import write
from scipy.stats import binomtest, kstest

from latentcell.stats.relabelling import layout, relabelling_test

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
                low, high = binomtest(int((ps <= 0.05).sum()), len(ps)).proportion_ci()
                rows.append({
                    "design": name, "features": p, "test": how, "n": len(ps), "rate_0.05": np.mean(ps <= 0.05),
                    "low": low, "high": high, "rate_0.01": np.mean(ps <= 0.01), "min_p": plan.smallest_p(999),
                    "ks_p": kstest(ps, "uniform").pvalue,
                })  # fmt: skip
            print(rows[-1])
    write(pd.DataFrame(rows), "screen/type_one")


if __name__ == "__main__":
    main()
