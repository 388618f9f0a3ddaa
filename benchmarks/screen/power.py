"""Which recipe finds which kind of perturbation, at equal type-I error, on simulated screens with known effects.

    python -m benchmarks.screen.power [profiles] [counts] [images]

3 plates x 32 control wells, 40 cells per well, well noise of 0.2 SD, half of the controls train the VAE, 16 per plate
calibrate. 220 perturbations that act (11 kinds at 0.5, 1 and 2 SD of cells) and 110 that do not. Every recipe gets the
same replicates: the relabelling test the five views that a screen tests, and its mean codes alone; the others the mean
codes, as they are used; mAP also as copairs computes it, where that is installed; and the mean reconstruction error,
one-sided, as an anomaly detector has it. Groups are ordered by p, then statistic; a group is found when it comes before
the fifth percentile of the nulls.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from benchmarks.common import write
from sklearn.metrics import roc_auc_score

import latentcell as lc
from latentcell.stats.hit_calling import hit_p_values
from latentcell.stats.relabelling import layout, relabelling_test
from latentcell.tl.calibrate import Validity
from latentcell.tl.crossfit import fit_controls, split_controls, training_cells
from latentcell.tl.design import read_design
from latentcell.tl.screened import Screened
from latentcell.tl.wells import CENTROID, describe

SEEDS = {"profiles": (0, 1, 2), "counts": (0, 1, 2), "images": (0, 1)}
OTHERS = ("mahalanobis", "mp_value", "energy", "conformal", "map")
SIMPLER = ("dimmer", "smoother", "fewer_puncta", "smaller")


def replicates(modality: str, seed: int):
    """What each well is, its views under a control-trained model, its reconstruction error, and the truth."""
    cells = lc.cells.simulate.screen(
        modality=modality, n_plates=3, n_control_wells=32, n_perturbations=330, cells_per_well=40,
        strengths=(0.5, 1.0, 2.0), position_effect=0.0, well_noise=0.2, size=48, rng=seed,
    )  # fmt: skip
    design = read_design(cells, group="perturbation", control="control", replicate="well", block="plate")
    rng = np.random.default_rng(seed)
    train, calibrating, _ = split_controls(design, rng=rng)
    rows = training_cells(design, train, within=False, rng=rng)
    model = fit_controls(cells, lc.VAE(16 if modality != "profiles" else 15), rows, fit={}, seed=seed)
    per_cell, views = describe(cells, model, design, calibrating, seed=seed)
    error = pd.Series(per_cell.residual_energy.mean(axis=1)).groupby(design.well).mean().to_numpy()
    return design, calibrating, views, error, cells.uns["simulation"]["perturbations"]


def scores(design, calibrating, views, error) -> pd.DataFrame:
    """One row per group and recipe: p and statistic."""
    block, rows = design.block, []
    screened = Screened(design, views, pd.DataFrame(), np.empty(0), calibrating, Validity(), 999, 0)
    for label in design.labels:
        plan = layout(design.of(label), calibrating, block)
        matched = screened.views.matched(plan)
        options = {"control": calibrating, "block": block, "n_relabellings": 999, "rng": 0}
        codes = relabelling_test([matched[CENTROID]], plan, **options)
        for name, tested in (("relabelling", screened.joint_test(plan)[0]), ("relabelling, codes only", codes)):
            rows.append((name, label, tested.p, tested.statistic))
    kept = calibrating | ~design.control
    values, label = views[CENTROID][kept], design.wells["label"].to_numpy(object)[kept]
    for method in OTHERS:
        table = hit_p_values(method, values, label, control="control", block=block[kept], n=999, rng=0)
        rows += [(method, name, p, s) for name, s, p in zip(table.index, table["statistic"], table["p"], strict=True)]
    table = copairs_map(values, label, block[kept])
    rows += [("map (copairs)", *row) for row in table[["label", "p", "statistic"]].itertuples(index=False)]
    for name in design.labels:
        plan = layout(design.of(name), calibrating, block)
        excess = np.mean(
            [error[r[:m]].mean() - error[r[m:]].mean() for r, m in zip(plan.rows, plan.n_treated, strict=True)]
        )
        rows.append(("reconstruction error", name, 0.5, excess))
    return pd.DataFrame(rows, columns=["method", "label", "p", "statistic"])


def copairs_map(values: np.ndarray, label: np.ndarray, block: np.ndarray) -> pd.DataFrame:
    """p and statistic of every group by copairs, as its example of phenotypic activity does it; empty without it."""
    try:
        from copairs.map import average_precision, mean_average_precision
    except ImportError:
        return pd.DataFrame(columns=["label", "p", "statistic"])
    control = label == "control"
    x = values.copy()
    for name in np.unique(block):
        x[block == name] -= values[(block == name) & control].mean(axis=0)
    x /= x[control].std(axis=0)
    meta = pd.DataFrame({"label": label, "reference": np.where(control, np.arange(len(label)), -1)})
    both = ["label", "reference"]
    ap = average_precision(meta, x, both, [], [], both, progress_bar=False)
    found = mean_average_precision(ap[~control], ["label"], 10_000, 0.05, 0, progress_bar=False)
    return found.rename(columns={"p_value": "p", "mean_average_precision": "statistic"})[["label", "p", "statistic"]]


def main() -> None:
    results = []
    for modality in sys.argv[1:] or SEEDS:
        for seed in SEEDS[modality]:
            *measured, table = replicates(modality, seed)
            scored = scores(*measured).merge(table, left_on="label", right_index=True)
            for method, part in scored.groupby("method", sort=False):
                order = part.sort_values(["p", "statistic"], ascending=[True, False]).reset_index(drop=True)
                nulls = np.flatnonzero(order["is_null"])
                found = order.index < nulls[int(0.05 * len(nulls))]
                order = order.assign(found=found, place=-order.index)
                for (kind, strength), each in order[~order["is_null"]].groupby(["kind", "strength"], observed=True):
                    against = pd.concat([each, order[order["is_null"]]])
                    results.append({
                        "modality": modality, "seed": seed, "method": method, "kind": kind, "strength": strength,
                        "power": each["found"].mean(), "auroc": roc_auc_score(~against["is_null"], against["place"]),
                        "nulls_at_0.05": (order.loc[order["is_null"], "p"] <= 0.05).mean(),
                    })  # fmt: skip
            print(modality, seed, "done", flush=True)
        table = pd.DataFrame([row for row in results if row["modality"] == modality])
        means = table.groupby(["modality", "method", "kind", "strength"], sort=False).mean().drop(columns="seed")
        write(means.reset_index(), f"screen/power_{modality}")


if __name__ == "__main__":
    main()
