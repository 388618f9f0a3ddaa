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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cells = lc.read(data_dir() / "images" / "bbbc021_cells.h5ad")
    away = {"plate": list(KEPT_OUT)}
    new = cells[cells.obs["plate"].isin(KEPT_OUT)].copy()
    model = lc.IntegratedCell(REFERENCE, TARGET).fit(cells, exclude=away, epochs=given.epochs, rng=0)
    free = lc.IntegratedCell(REFERENCE, TARGET, hide=1.0)
    free.fit(cells, exclude=away, epochs=given.epochs, shape=model.reference_, rng=0)
    write(lc.tl.coupling(new, model, replicate="image"), "integrated/bbbc021_coupling")
    nll = model.nll(new).assign(without=free.nll(new, told=[])["nll"], mean=average_nll(model, new))
    nll = nll.assign(plate=new.obs["plate"].to_numpy()[nll["cell"]])
    gains = pd.DataFrame(
        {"plate": nll["plate"], "over_free": nll["without"] - nll["nll"], "over_mean": nll["mean"] - nll["nll"]}
    )
    summary = gains.groupby("plate")[["over_free", "over_mean"]].agg(["mean", "sem"])
    summary.columns = ["_".join(each) for each in summary.columns]
    write(summary.reset_index(), "integrated/bbbc021_likelihood")
    few = new[[*range(3), *range(400, 403)]].copy()
    lc.pl.save(lc.pl.predicted(model.predict(few), few, n=6), Path("docs/images/integrated_bbbc021"))


if __name__ == "__main__":
    main()
