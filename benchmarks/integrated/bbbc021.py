"""Tubulin given DNA and actin in real cells (BBBC021, MCF7), measured on plates that no fit has seen.

``python -m benchmarks.integrated.bbbc021 [--epochs 60]``
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
from benchmarks.common import data_dir, write

import latentcell as lc
from latentcell.tl.coupling import average_nll

REFERENCE, TARGET = ["DAPI", "Actin"], "Tubulin"
KEPT_OUT = ("Week4_27481", "Week4_27801")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", type=int, default=60)
    given = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    cells = lc.read(data_dir() / "images" / "bbbc021_cells.h5ad")
    fit = {"exclude": {"plate": list(KEPT_OUT)}, "epochs": given.epochs, "rng": 0}
    new = cells[cells.obs["plate"].isin(KEPT_OUT)].copy()
    model = lc.IntegratedCell(REFERENCE, TARGET).fit(cells, **fit)
    write(lc.tl.coupling(new, model, replicate="image"), "integrated/bbbc021_coupling")
    few = new[[*range(3), *range(400, 403)]].copy()
    lc.pl.save(lc.pl.predicted(model.predict(few), few, n=6), Path("docs/images/integrated_bbbc021"))
    free = lc.IntegratedCell(REFERENCE, TARGET, hide=1.0).fit(cells, shape=model.reference_, **fit)
    nll = model.nll(new)
    gains = pd.DataFrame(
        {
            "plate": new.obs["plate"].to_numpy()[nll["cell"]],
            "moa": new.obs["moa"].to_numpy()[nll["cell"]],
            "over_free": free.nll(new)["nll"] - nll["nll"],
            "over_mean": average_nll(model, new) - nll["nll"],
        }
    )
    summary = gains.groupby(["plate", "moa"], observed=True).agg(["mean", "sem"])
    summary.columns = ["_".join(each) for each in summary.columns]
    write(summary.reset_index(), "integrated/bbbc021_likelihood")


if __name__ == "__main__":
    main()
