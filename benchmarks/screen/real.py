"""Screens of real cells and wells: calls, calibration, mechanisms of action, nulls by construction.

python -m benchmarks.screen.real [mechanisms] [hits] [donors]
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from benchmarks.common import data_dir, write

import latentcell as lc
from latentcell.tl.explain import similarity

INTERFERON = {
    "ISG15", "ISG20", "IFI6", "IFIT1", "IFIT2", "IFIT3", "IRF7", "HERC5", "MX1", "MX2", "OAS1", "LY6E", "IFITM3",
    "CXCL10", "RSAD2", "IFI35", "XAF1", "EIF2AK2", "CMPK2", "RTP4", "PARP9", "DDX58", "SOCS1",
}  # fmt: skip
SPLITS = 40


def mechanisms() -> pd.DataFrame:
    """BBBC021: 1-NN mechanism of action by cosine, never among the same compound, nor the same batch."""
    cells = lc.read(data_dir() / "images" / "bbbc021_wells.csv.gz", obs_columns=["Replicate"])
    cells.obs["plate_well"] = cells.obs["Plate"].astype(str) + " " + cells.obs["Well"].astype(str)
    treatment = ["Compound", "Concentration"]
    moa = cells.obs.groupby(treatment, observed=True)["moa"].first()
    batches = cells.obs["Plate"].astype(str).str.split("_").str[0].groupby([cells.obs[c] for c in treatment]).agg(set)
    rows = []
    for seed in range(3):
        for places in ("given", "withheld"):
            lc.tl.screen(
                cells, group="Compound", control="DMSO", replicate="Well" if places == "given" else "plate_well",
                block="Plate", dose="Concentration", rng=seed,
            )  # fmt: skip
            result = cells.uns["screen"]
            hits, params = result["hits"], result["params"]
            keys = list(zip(hits["group"], hits["dose"], strict=True))
            accuracy = nearest_mechanism(
                result["similarity"], hits["group"].to_numpy(), np.array([moa[key] for key in keys]),
                [batches[key] for key in keys],
            )  # fmt: skip
            rows.append({
                "profile": "latentcell", "seed": seed, "places": places, "not_same_compound": accuracy[0],
                "not_same_compound_or_batch": accuracy[1], "valid": bool(params["valid"]),
                "called": int((hits["q"] <= 0.05).sum()), "treatments": len(hits), "min_p": hits["min_p"].min(),
                "posing_rate": params["rejection_rate"], "low": params["rejection_low"],
                "high": params["rejection_high"], "verdict": result["verdict"][0],
            })  # fmt: skip
    rows.append(_plate_normalised(cells, hits, moa, batches))
    return pd.DataFrame(rows)


def _plate_normalised(cells, hits: pd.DataFrame, moa: pd.Series, batches: pd.Series) -> dict[str, object]:
    """The bar: features as z-scores of their plate's controls, averaged over replicates."""
    x = pd.DataFrame(np.asarray(cells.X, float))
    plate, control = cells.obs["Plate"].to_numpy(), (cells.obs["Compound"] == "DMSO").to_numpy()
    for name in np.unique(plate):
        mine = plate == name
        known = x[mine & control]
        x.loc[mine] = ((x[mine] - known.mean()) / known.std().replace(0, np.nan)).to_numpy()
    x = x.fillna(0.0).clip(-20, 20)
    keys = list(zip(hits["group"], hits["dose"], strict=True))
    labels = list(zip(cells.obs["Compound"].astype(str), cells.obs["Concentration"].astype(float), strict=True))
    means = x.groupby(pd.Index(labels, tupleize_cols=False)).mean()
    profiles = np.stack([means.loc[[key]].to_numpy()[0] for key in keys])
    accuracy = nearest_mechanism(
        similarity(profiles), hits["group"].to_numpy(), np.array([moa[key] for key in keys]), [batches[k] for k in keys]
    )
    return {
        "profile": "z-scores of the plate",
        "not_same_compound": accuracy[0],
        "not_same_compound_or_batch": accuracy[1],
    }


def nearest_mechanism(cosine: np.ndarray, compound: np.ndarray, moa: np.ndarray, batch: list[set]) -> list[float]:
    """Accuracy of the nearest neighbour of another compound, and of another compound and batch."""
    result = []
    for separate in (False, True):
        right = []
        for i in range(len(moa)):
            others = compound != compound[i]
            if separate:
                others &= np.array([not (batch[i] & each) for each in batch])
            if (moa[others] == moa[i]).any():
                nearest = np.flatnonzero(others)[np.argmax(cosine[i, others])]
                right.append(moa[nearest] == moa[i])
        result.append(float(np.mean(right)))
    return result


def hits() -> pd.DataFrame:
    """What two screens without enough controls say: BBBC021 crops and IFN-beta."""
    rows = []
    cells = lc.read(data_dir() / "images" / "bbbc021_cells.h5ad")
    lc.tl.screen(
        cells, group="compound", control="DMSO", replicate="well", block="plate", dose="concentration",
        fit={"max_minutes": 2}, rng=0,
    )  # fmt: skip
    rows += _said("BBBC021 crops", cells)
    cells = lc.read(data_dir() / "rna" / "kang2018_scgen_valid.h5ad")
    lc.tl.screen(cells, group="condition", control="control", replicate="cell_type", block="cell_type", rng=0)
    reasons = cells.uns["screen"]["reasons"].query("kind == 'variable'")
    leading = list(reasons["name"].head(20))
    rows += _said("Kang, cell types", cells)
    rows[-1]["interferon genes among the first 20"] = sum(name in INTERFERON for name in leading)
    rows[-1]["leading"] = " ".join(leading[:10])
    return pd.DataFrame(rows)


def _said(data: str, cells) -> list[dict[str, object]]:
    result = cells.uns["screen"]
    columns = ["label", "rank", "effect", "p", "why"]
    return [
        {"data": data, **row, "verdict": result["verdict"][0]} for row in result["hits"][columns].to_dict("records")
    ]


def donors() -> pd.DataFrame:
    """Kang's controls: half of every donor's cells pose as treated, in 40 random ways; nothing should be called."""
    cells = lc.read(data_dir() / "rna" / "kang2018_ctrl12k.h5ad")
    elsewhere = sorted(cells.obs["donor"].unique())[:2]
    fitted = cells[cells.obs["donor"].isin(elsewhere)].copy()
    model = lc.VAE(16).fit(fitted, rng=0)
    rest = cells[~cells.obs["donor"].isin(elsewhere)].copy()
    rows = []
    for seed in range(SPLITS):
        rng = np.random.default_rng(seed)
        arm = pd.Series(rng.random(rest.n_obs)).groupby(rest.obs["donor"].to_numpy()).rank(pct=True).to_numpy()
        names = list(rest.obs["donor"].unique())
        treated = set(rng.permutation(names)[: len(names) // 2])
        rest.obs["half"] = np.where(arm <= 0.5, "control", "posing")
        rest.obs["donors"] = np.where(rest.obs["donor"].isin(treated), "posing", "control")
        designs = {
            "halves of each donor": {"group": "half", "replicate": "donor", "block": "donor"},
            "half of the donors": {"group": "donors", "replicate": "donor"},
        }
        for name, design in designs.items():
            lc.tl.screen(rest, model, **design, control="control", rng=seed)
            hit = rest.uns["screen"]["hits"].iloc[0]
            rows.append({"design": name, "seed": seed, "p": hit["p"], "min_p": hit["min_p"], "q": hit["q"]})
    table = pd.DataFrame(rows).groupby("design", sort=False)
    summary = table.agg(
        runs=("p", "size"), min_p=("min_p", "min"), rate_at_05=("p", lambda p: (p <= 0.05).mean()),
        rate_at_20=("p", lambda p: (p <= 0.2).mean()), called=("q", lambda q: (q <= 0.05).sum()),
    )  # fmt: skip
    return summary.reset_index()


def main() -> None:
    for name in sys.argv[1:] or ("mechanisms", "hits", "donors"):
        write({"mechanisms": mechanisms, "hits": hits, "donors": donors}[name](), f"screen/real_{name}")


if __name__ == "__main__":
    main()
