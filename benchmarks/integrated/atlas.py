"""The Allen Institute's mitotic stem cell in 3-D: sixteen structures, four stages, one cell each. A demonstration.

One cell per stage says nothing of other cells: no numbers are drawn from it.

``python -m benchmarks.integrated.atlas [--epochs 300]``
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


def stages() -> ad.AnnData:
    """Four cells with reference and raw structures, averaged to `SIZE`."""
    path = data_dir() / "images" / "allen_mitotic_atlas.npz"
    stored = np.load(path)
    names = [str(name) for name in stored["channels"]]
    raw = [i for i, name in enumerate(names) if not name.lower().endswith("seg")]
    small = [
        F.adaptive_avg_pool3d(torch.from_numpy(stored[stage][raw]).float(), SIZE).round().to(torch.uint8).numpy()
        for stage in STAGES
    ]
    cells = ad.AnnData(obs=pd.DataFrame({"stage": list(STAGES)}, index=list(STAGES)))
    lc.cells.set_images(cells, np.stack(small), channel_names=[names[i] for i in raw])
    return cells


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", type=int, default=300)
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cells = stages()
    structures = [name for name in cells.uns["images"]["channel_names"] if name not in REFERENCE]
    model = lc.IntegratedCell(REFERENCE, structures, n_latent=(2, 2), orientation="as_is")
    model.fit(cells, epochs=given.epochs, rng=0)
    print(f"{model.report_['seconds'] + model.reference_.report_['seconds']:.0f} s of training")
    predicted = model.predict(cells, n_draws=4)
    lc.pl.save(lc.pl.integrated(predicted, n=4, channels=[*REFERENCE, *structures[:5]]), Path("docs/images/atlas"))


if __name__ == "__main__":
    main()
