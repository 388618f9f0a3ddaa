"""Coupling, prediction and sampling where the truth is known: four structures of simulated cells.

``python -m benchmarks.integrated.simulated [--cells 4000] [--epochs 40] [--seeds 2] [--without-free]``
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from benchmarks.common import write
from scipy.ndimage import distance_transform_edt

import latentcell as lc
from latentcell.tl.coupling import average_nll

STRUCTURES = lc.cells.simulate.STRUCTURES
REFERENCE = ["membrane", "DNA"]


def where(images: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """Distance of each structure from nucleus and membrane in pixels, weighted by its light within the cell.

    `images` are membrane, DNA and the structures ``(n, 6, H, W)``.
    """
    dna = images[:, 1] - np.median(images[:, 1], (1, 2), keepdims=True)
    nucleus = dna > 0.35 * dna.max((1, 2), keepdims=True)
    outside = np.stack([distance_transform_edt(~each) for each in nucleus])
    inside = np.stack([distance_transform_edt(each) for each in masks])
    found = {}
    for i, name in enumerate(STRUCTURES[:3]):
        image = images[:, 2 + i]
        light = np.clip(image - np.percentile(image, 85, (1, 2), keepdims=True), 0, None) * masks
        total = light.sum((1, 2))
        found[f"{name}, from the nucleus"] = (light * outside).sum((1, 2)) / total
        found[f"{name}, under the membrane"] = (light * inside).sum((1, 2)) / total
    return pd.DataFrame(found)


def cell_masks(images: np.ndarray) -> np.ndarray:
    """Cells by the light of their membrane channel: above a quarter of its range, holes filled."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    smooth = np.stack([gaussian_filter(each, 1.0) for each in images[:, 0]])
    low, high = np.percentile(smooth, [5, 99], axis=(1, 2), keepdims=True)
    return np.stack([binary_fill_holes(each) for each in smooth > low + 0.25 * (high - low)])


def settled(model: lc.IntegratedCell, seed: int) -> pd.DataFrame:
    """Where structures lie in 1,000 sampled cells and in 1,000 others that were simulated."""
    truth = lc.cells.simulate.organisation(1000, every=True, rng=200 + seed)
    real, drawn = truth.obsm["images"].astype(np.float32), model.sample(1000, rng=seed).obsm["images"]
    drawn = drawn[:, [0, 1, *(2 + model.structures_.index(name) for name in STRUCTURES)]]
    a, b = where(real, cell_masks(real)), where(drawn, cell_masks(drawn))
    table = pd.DataFrame({"distance": a.columns, "real": a.mean().to_numpy(), "sampled": b.mean().to_numpy()})
    return table.assign(ratio=table["sampled"] / table["real"], seed=seed)


def draw(model: lc.IntegratedCell, new: ad.AnnData, coupled: pd.DataFrame) -> None:
    figures = Path("docs/images")
    lc.pl.save(lc.pl.coupling(coupled), figures / "coupling")
    lc.pl.save(lc.pl.integrated(model.sample(5, rng=0)), figures / "integrated")
    lc.pl.save(lc.pl.organisation(model, new, "perinuclear"), figures / "organisation")
    lc.pl.save(lc.pl.organisation(model, new, "cortex", vary="shape"), figures / "shape")
    few = new[:5].copy()
    lc.pl.save(lc.pl.predicted(model.predict(few), few), figures / "predicted")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--cells", type=int, default=4000)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--without-free", action="store_true", help="leave out the model without a reference")
    given = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in ("coupling", "distances", "recognised", "likelihood")}
    for seed in range(given.seeds):
        cells = lc.cells.simulate.organisation(given.cells, rng=100 + seed)
        away = lc.cells.keep_out(cells, 0.2, rng=seed)
        new, old = (cells[cells.obs["kept_out"] == each].copy() for each in ("yes", "no"))
        settings = {"structure_key": "structure", "n_latent": (8, 8)}
        model = lc.IntegratedCell(REFERENCE, "structure", **settings)
        model.fit(cells, exclude=away, epochs=given.epochs, rng=seed)
        tables["coupling"].append(lc.tl.coupling(new, model, rng=seed).assign(seed=seed))
        tables["distances"].append(settled(model, seed))
        tables["recognised"].append(lc.tl.recognised(new, model, old).assign(seed=seed))
        if seed == 0:
            draw(model, new, tables["coupling"][0])
        if given.without_free:
            continue
        free = lc.IntegratedCell(REFERENCE, "structure", hide=1.0, **settings)
        free.fit(cells, exclude=away, epochs=given.epochs, rng=seed)
        nll = model.nll(new)
        gains = nll[["structure"]].assign(
            over_free=free.nll(new, told=[])["nll"] - nll["nll"], over_mean=average_nll(model, new) - nll["nll"]
        )
        summary = gains.groupby("structure").agg(["mean", "sem"])
        summary.columns = ["_".join(each) for each in summary.columns]
        tables["likelihood"].append(summary.reset_index().assign(seed=seed))
    for name, parts in tables.items():
        if parts:
            write(pd.concat(parts), f"integrated/simulated_{name}")


if __name__ == "__main__":
    main()
