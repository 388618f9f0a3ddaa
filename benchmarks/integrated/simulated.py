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
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter

import latentcell as lc
from latentcell.model.integrated import Shape
from latentcell.tl.coupling import average_nll

STRUCTURES = lc.cells.simulate.STRUCTURES
REFERENCE = ["membrane", "DNA"]


def where(reference: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of a structure from the nucleus and its depth under the membrane in pixels, weighted by its light.

    `reference` are membrane and DNA ``(n, 2, H, W)``, `shown` the structure ``(n, H, W)``.
    """
    masks = cell_masks(reference)
    dna = reference[:, 1] - np.median(reference[:, 1], (1, 2), keepdims=True)
    nucleus = dna > 0.35 * dna.max((1, 2), keepdims=True)
    outside = np.stack([distance_transform_edt(~binary_fill_holes(each)) for each in nucleus])
    inside = np.stack([distance_transform_edt(each) for each in masks])
    light = np.clip(shown - np.percentile(shown, 85, (1, 2), keepdims=True), 0, None) * masks
    total = np.maximum(light.sum((1, 2)), 1e-9)
    return (light * outside).sum((1, 2)) / total, (light * inside).sum((1, 2)) / total


def cell_masks(reference: np.ndarray) -> np.ndarray:
    """Cells by the light of their membrane channel: above a quarter of its range, holes filled."""
    smooth = np.stack([gaussian_filter(each, 1.0) for each in reference[:, 0]])
    low, high = np.percentile(smooth, [5, 99], axis=(1, 2), keepdims=True)
    return np.stack([binary_fill_holes(each) for each in smooth > low + 0.25 * (high - low)])


def settled(model: lc.IntegratedCell, seed: int) -> pd.DataFrame:
    """Where structures lie in new simulated cells, in the same encoded and decoded, and in as many sampled ones.

    A decoder's mean is blurred, so that sampled cells are held against decoded ones.
    """
    truth = lc.cells.simulate.organisation(1200, rng=200 + seed)
    codes, images = model.encode(truth), truth.obsm["images"].astype(np.float32)
    sampled = model.sample(1200, rng=seed)
    decoded = model.shapes_at(codes.shape.mu)
    names = sampled.uns["images"]["channel_names"]
    rows = []
    for structure in STRUCTURES[:3]:
        members = np.flatnonzero(truth.obs["structure"] == structure)
        z = codes.organisation.mu[members, model.structures_.index(structure)]
        shape = Shape(decoded.reference[members], None if decoded.region is None else decoded.region[members])
        drawn = sampled.obsm["images"]
        found = {
            "measured": where(images[members, :2], images[members, 2]),
            "decoded": where(shape.reference, model.decode(shape, z, structure)),
            "sampled": where(drawn[:, :2], drawn[:, names.index(structure)]),
        }
        for i, distance in enumerate(("from the nucleus", "under the membrane")):
            means = {name: float(np.mean(each[i])) for name, each in found.items()}
            rows.append({"structure": structure, "distance": distance, **means})
    table = pd.DataFrame(rows)
    return table.assign(ratio=table["sampled"] / table["decoded"], seed=seed)


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
        free.fit(cells, exclude=away, epochs=given.epochs, shape=model.reference_, rng=seed)
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
