"""The Allen Institute's mitotic stem cell in 3-D: sixteen structures, four stages, one cell each. A demonstration.

One cell per stage says nothing of other cells: no numbers are drawn from it. Mirrored copies of the four are given
beside them, so that early stopping minds other views of the same cells and not the only cell of a stage.

``python -m benchmarks.integrated.atlas [--epochs 100]``
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from benchmarks.common import data_dir

import latentcell as lc

STAGES = ("M1M2", "M3", "M4M5", "M6M7")
SIZE = (20, 40, 36)
REFERENCE = ["MEMB", "DNA"]
# nuclear envelope, microtubules, mitochondria, endoplasmic reticulum, nucleoli, junctions
SHOWN = ["LMNB1_raw", "TUBA1B_raw", "TOMM20_raw", "SEC61B_raw", "FBL_raw", "CTNNB1_raw"]


def stages() -> ad.AnnData:
    """Four cells with reference and raw structures, averaged to `SIZE`, then the same mirrored along x, y and both."""
    path = data_dir() / "images" / "allen_mitotic_atlas.npz"
    stored = np.load(path)
    names = [str(name) for name in stored["channels"]]
    raw = [i for i, name in enumerate(names) if not name.lower().endswith("seg")]
    small = [
        F.adaptive_avg_pool3d(torch.from_numpy(stored[stage][raw]).float(), SIZE).round().to(torch.uint8).numpy()
        for stage in STAGES
    ]
    views = [np.flip(np.stack(small), axes) for axes in ((), (-1,), (-2,), (-2, -1))]
    named = [f"{stage}_{view}" for view in range(len(views)) for stage in STAGES]
    cells = ad.AnnData(obs=pd.DataFrame({"stage": STAGES * len(views)}, index=named))
    lc.cells.set_images(cells, np.concatenate(views), channel_names=[names[i] for i in raw])
    return cells


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", type=int, default=100)
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cells = stages()
    structures = [name for name in cells.uns["images"]["channel_names"] if name not in REFERENCE]
    model = lc.IntegratedCell(REFERENCE, structures, n_latent=(2, 2), orientation="as_is")
    model.fit(cells, epochs=given.epochs, rng=0)
    print(f"{model.report_['seconds'] + model.reference_.report_['seconds']:.0f} s of training")
    four = cells[: len(STAGES)].copy()
    predicted = model.predict(four, n_draws=4)
    for name, shown in (("atlas", predicted), ("atlas_measured", four)):
        lc.pl.save(lc.pl.integrated(shown, n=4, channels=[*REFERENCE, *SHOWN]), Path("docs/images") / name)


if __name__ == "__main__":
    main()
