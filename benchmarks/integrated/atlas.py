"""The Allen Institute's mitotic stem cell in 3-D: sixteen structures, four stages, one cell each. A demonstration.

Each structure of the atlas was imaged in a cell of its own, whose outline is where its image is not 0; membrane and
DNA are those of one of these cells. So the reference is the outline, the decoder is told the stage, and all structures
are drawn into the four cells of known membrane. Mirrored copies stand beside the 64 cells, so that early stopping minds
other views of them. One cell per structure and stage says nothing of other cells: no numbers are drawn from it.

``python -m benchmarks.integrated.atlas [--epochs 60]``
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
# endoplasmic reticulum, microtubules, mitochondria, nuclear envelope, lysosomes, nucleoli, desmosomes
SHOWN = ["SEC61B", "TUBA1B", "TOMM20", "LMNB1", "LAMP1", "FBL", "DSP"]


def small(volumes: np.ndarray) -> np.ndarray:
    """Volumes averaged down to `SIZE`, uint8."""
    return F.adaptive_avg_pool3d(torch.from_numpy(volumes).float(), SIZE).round().to(torch.uint8).numpy()


def cells_of(outlines: np.ndarray, values: np.ndarray, names: list[str], obs: pd.DataFrame) -> ad.AnnData:
    """Cells of an outline and other channels, with the outline as mask."""
    cells = ad.AnnData(obs=obs)
    images = np.concatenate([outlines[:, None], values], 1)
    lc.cells.set_images(cells, images, channel_names=["outline", *names], masks=(outlines > 127).astype(np.uint8))
    return cells


def atlas() -> tuple[ad.AnnData, ad.AnnData]:
    """Cells of one structure each, and the four of known membrane and DNA."""
    stored = np.load(data_dir() / "images" / "allen_mitotic_atlas.npz")
    names = [str(name) for name in stored["channels"]]
    structures = [name.removesuffix("_raw") for name in names if name.endswith("_raw")]
    tagged, known = [], []
    for stage in STAGES:
        volumes = stored[stage]
        for structure in structures:
            raw, segmented = (volumes[names.index(f"{structure}_{kind}")] for kind in ("raw", "seg"))
            tagged.append(small(np.stack([(raw > 0) * 255.0, segmented])))
        membrane, dna = (volumes[names.index(name)] for name in ("MEMB", "DNA"))
        known.append(small(np.stack([(membrane > 0) * 255.0, membrane, dna])))
    obs = pd.DataFrame({"stage": np.repeat(STAGES, len(structures)), "structure": structures * len(STAGES)})
    views = [np.flip(np.stack(tagged), axes) for axes in ((), (-1,), (-2,), (-2, -1))]
    images, every = np.concatenate(views), pd.concat([obs] * len(views), ignore_index=True)
    every.index = [f"cell_{i}" for i in range(len(every))]
    four = np.stack(known)
    return (
        cells_of(images[:, 0], images[:, 1:], ["structure"], every),
        cells_of(four[:, 0], four[:, 1:], ["membrane", "DNA"], pd.DataFrame({"stage": STAGES}, index=list(STAGES))),
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", type=int, default=60)
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cells, known = atlas()
    model = lc.IntegratedCell(
        "outline", "structure", structure_key="structure", n_latent=(4, 2), batch_key="stage", orientation="as_is"
    )
    model.fit(cells, epochs=given.epochs, rng=0)
    print(f"{model.report_['seconds'] + model.reference_.report_['seconds']:.0f} s of training")
    shape = model.shapes(known)
    middle, stages = np.zeros((known.n_obs, 2), dtype=np.float32), list(known.obs["stage"])
    drawn = [model.decode(shape, middle, name, batch=stages) for name in SHOWN]
    every = ad.AnnData(obs=known.obs)
    images = np.concatenate([known.obsm["images"][:, 2:].astype(np.float32), np.stack(drawn, 1)], 1)
    lc.cells.set_images(every, np.clip(images, 0, None), channel_names=["DNA", *SHOWN])
    lc.pl.save(lc.pl.integrated(every, n=4, label="stage"), Path("docs/images/atlas"))


if __name__ == "__main__":
    main()
