"""Factors of real cells, on cells that no fit has seen.

``python -m benchmarks.factors.real [kang_sweep|kang_guided|mcdavid|rnamix|buettner|osteosarcoma ...]``
"""

from __future__ import annotations

import argparse
import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
from benchmarks.common import data_dir, write
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import latentcell as lc
from latentcell.cells.factors import read_nuisance
from latentcell.stats.distances import energy_distance
from latentcell.tl.relations import leak

KANG_EPOCHS = 100
SHAPE_EPOCHS = 60
# Kimmel 2020, figure 2: scVI on the same study; correlation of the best dimension with stimulation, best ARI
PUBLISHED = {1.0: (0.82, 0.70), 1.5: (0.826, 0.55), 2.0: (0.844, 0.50), 5.0: (0.844, 0.43)}


def rna(name: str, n_genes: int | None = None, keep: tuple[str, ...] = ()) -> ad.AnnData:
    """Cells of a file, and of counts the most variable genes (variance of log1p)."""
    cells = ad.read_h5ad(data_dir() / "rna" / f"{name}.h5ad")
    if n_genes is not None:
        logged = cells.X.copy()
        logged.data = np.log1p(logged.data)
        variance = np.asarray(logged.multiply(logged).mean(0) - np.square(logged.mean(0))).ravel()
        chosen = np.zeros(cells.n_vars, dtype=bool)
        chosen[np.argsort(-variance)[:n_genes]] = True
        chosen |= np.array([gene.startswith(keep) for gene in cells.var_names]) if keep else False
        cells = cells[:, chosen].copy()
    return cells


def kang_sweep() -> None:
    """The trade-off of Kimmel 2020."""
    cells = rna("kang2018_scgen_valid", 2000)
    swept = lc.tl.trade_off(
        cells,
        lc.VAE(10),
        ["condition"],
        objective={"beta": [1, 1.5, 2, 3, 5]},
        label="cell_type",
        seeds=2,
        fit={"epochs": KANG_EPOCHS},
    )
    for column, at in (("published_correlation", 0), ("published_ari", 1)):
        swept[column] = [PUBLISHED.get(value, (np.nan, np.nan))[at] for value in swept["value"]]
    write(swept, "factors/kang_sweep")
    print(*swept.attrs["verdict"], sep="\n")
    lc.pl.save(lc.pl.trade_off(swept), "docs/images/factors_kang_sweep")


def kang_guided() -> None:
    """Stimulation guided onto a dimension, its genes and their sets."""
    cells = rna("kang2018_scgen_valid", 2000)
    model = lc.VAE(10, factors=lc.Factors(guided=["condition"], nuisance=["cell_type"]))
    model.fit(cells, epochs=KANG_EPOCHS, rng=0)
    sets = data_dir() / "genesets" / "h.all.v7.0.symbols.gmt"
    lc.tl.factors(cells, model, ["condition"], nuisance=["cell_type"], seeds=3, gene_sets=sets)
    found = cells.uns["factors"]
    print(*found["verdict"], sep="\n")
    write(found["relations"], "factors/kang_guided")
    effects = found["effects"].query("of == 'factor'").head(15)
    write(effects, "factors/kang_genes")
    write(found["gene_sets"].query("of == 'factor'").head(8), "factors/kang_gene_sets")
    for name, figure in {"kang": lc.pl.factors(cells), "kang_volcano": lc.pl.volcano(cells)}.items():
        lc.pl.save(figure, f"docs/images/factors_{name}")


def mcdavid() -> None:
    """Cell line and phase, a full factorial, on dimensions of their own; genes of the phases."""
    cells = rna("mcdavid2014_cellcycle")
    cells.obs["phase"] = pd.Categorical(cells.obs["phase"], ["g0/g1", "s", "g2/m"], ordered=True)
    model = lc.VAE(8, factors=lc.Factors(guided=["cell_line", "phase"])).fit(cells, rng=0)
    regev = [line.strip() for line in (data_dir() / "genesets" / "regev_lab_cell_cycle_genes.txt").open()]
    sets = {"Regev S": regev[:43], "Regev G2M": regev[43:97]}
    lc.tl.factors(cells, model, ["cell_line", "phase"], seeds=5, gene_sets=sets)
    found = cells.uns["factors"]
    print(*found["verdict"], sep="\n")
    write(found["relations"], "factors/mcdavid")
    write(found["gene_sets"].query("name in ('phase', 'z2')"), "factors/mcdavid_gene_sets")
    write(found["metrics"].query("factor == 'all'"), "factors/mcdavid_metrics")
    phase = found["effects"].query("name == 'phase'").head(20)
    print("strongest genes of phase:", *phase["variable"], "; of the Regev list:", phase["variable"].isin(regev).sum())
    lc.pl.save(lc.pl.factors(cells), "docs/images/factors_mcdavid")


def _folds(cells: ad.AnnData, by: pd.Series, n: int = 5) -> list[np.ndarray]:
    split = StratifiedKFold(n, shuffle=True, random_state=0).split(np.zeros(cells.n_obs), by.astype(str))
    return [test for _, test in split]


def _cross_validated(cells: ad.AnnData, model: lc.VAE, folds: list[np.ndarray]) -> tuple[pd.DataFrame, np.ndarray]:
    """Guided factors and codes of each cell, read by a model that has not seen it."""
    told: list[pd.DataFrame] = []
    codes = np.zeros((cells.n_obs, model.n_latent))
    for test in folds:
        cells.obs["fold"] = np.where(np.isin(np.arange(cells.n_obs), test), "out", "in")
        fitted = model.unfitted().fit(cells, exclude={"fold": ["out"]}, rng=0)
        told.append(fitted.read_factors(cells[test]))
        codes[test] = fitted.encode(cells[test]).mu
    return pd.concat(told).loc[cells.obs_names], codes


def rnamix() -> None:
    """Mixture proportions and amount of RNA of wells that no fit has seen; protocol as nuisance."""
    cells = rna("rnamix", 2000, keep=("ERCC-",))
    cells.obs["log2_amount"] = np.log2(cells.obs["mRNA_amount"].astype(float))
    names = ["H2228_prop", "H1975_prop", "HCC827_prop", "log2_amount"]
    folds = _folds(cells, cells.obs["mixture"].astype(str) + cells.obs["mRNA_amount"].astype(str))
    logged = np.log1p(cells.X.toarray())
    protocol = pd.get_dummies(cells.obs["protocol"]).to_numpy(float)
    rows = []
    for what, nuisance in (("guided, protocol as nuisance", ["protocol"]), ("guided", [])):
        model = lc.VAE(8, factors=lc.Factors(guided=names, nuisance=nuisance))
        told, codes = _cross_validated(cells, model, folds)
        leaked = leak(codes, read_nuisance(cells, ["protocol"]), rng=np.random.default_rng(0)).iloc[0]
        row = {"codes": what, **{n: r2_score(cells.obs[n].astype(float), told[n]) for n in names}}
        rows.append(row | {"protocol_leak": leaked["score"], "chance": leaked["chance"], "permuted": leaked["null_95"]})
    predicted = {name: np.zeros(cells.n_obs) for name in names}
    for test in folds:
        train = np.setdiff1d(np.arange(cells.n_obs), test)
        x = np.hstack([logged, 5 * protocol])
        for name in names:
            ridge = RidgeCV(np.logspace(1, 5, 9)).fit(x[train], cells.obs[name].to_numpy(float)[train])
            predicted[name][test] = ridge.predict(x[test])
    rows.append(
        {"codes": "ridge on log counts", **{n: r2_score(cells.obs[n].astype(float), predicted[n]) for n in names}}
    )
    write(pd.DataFrame(rows), "factors/rnamix")


def buettner() -> None:
    """Phase of the cell cycle by cross-validation."""
    cells = rna("buettner2015_mesc")
    x = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    truth, rows = cells.obs["phase"].astype(str), []
    folds = _folds(cells, truth)
    for width in (None, 32):
        model = lc.VAE(8, factors=lc.Factors(guided=["phase"]), width=width)
        told, _ = _cross_validated(cells, model, folds)
        score = balanced_accuracy_score(truth, told["phase"].astype(str))
        rows.append({"codes": f"guided, width {width or 128}", "balanced_accuracy": score})
    predicted = truth.copy()
    for test in folds:
        train = np.setdiff1d(np.arange(cells.n_obs), test)
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=5000)).fit(
            x[train], truth.iloc[train]
        )
        predicted.iloc[test] = fitted.predict(x[test])
    rows.append(
        {"codes": "logistic regression on genes", "balanced_accuracy": balanced_accuracy_score(truth, predicted)}
    )
    write(pd.DataFrame(rows), "factors/buettner")


def osteosarcoma() -> None:
    """Line and drug on dimensions of their own; a line under a drug predicted from the other line under it."""
    cells = ad.read_h5ad(data_dir() / "images" / "osteosarcoma_shapes.h5ad")
    model = lc.VAE(10, factors=lc.Factors(guided=["cell_line", "treatment"])).fit(cells, epochs=SHAPE_EPOCHS, rng=0)
    lc.tl.factors(cells, model, ["cell_line", "treatment"], seeds=2)
    print(*cells.uns["factors"]["verdict"], sep="\n")
    write(cells.uns["factors"]["relations"], "factors/osteosarcoma")
    lc.pl.save(lc.pl.effects(cells, model), "docs/images/factors_osteosarcoma")
    cells.obs["both"] = cells.obs["cell_line"].astype(str) + "_" + cells.obs["treatment"].astype(str)
    rows = []
    for line, other in (("dlm8", "dunn"), ("dunn", "dlm8")):
        for drug in ("cytd", "jasp"):
            hidden = f"{line}_{drug}"
            fitted = lc.VAE(10).fit(cells, exclude={"both": [hidden]}, epochs=SHAPE_EPOCHS, rng=0)
            row = {"hidden": hidden} | _arithmetic(cells, fitted, line, other, drug)
            rows.append(row)
    write(pd.DataFrame(rows), "factors/osteosarcoma_arithmetic")


def _arithmetic(cells: ad.AnnData, model: lc.VAE, line: str, other: str, drug: str) -> dict[str, float]:
    """Energy distance to the hidden cells in hand-made features of decoded cells, standardised on all cells."""
    predicted = lc.tl.arithmetic(
        cells, model, f'"{line}_control" + "{other}_{drug}" - "{other}_control"', key="both", on="cells"
    )

    def features(images: np.ndarray) -> np.ndarray:
        return lc.stats.image_features(images).to_numpy()

    decoded = {
        level: features(model.reconstruct(cells[cells.obs["both"] == level])) for level in cells.obs["both"].unique()
    }
    everything = np.concatenate(list(decoded.values()))
    sd = np.where(everything.std(0) > 1e-9, everything.std(0), 1)
    truth = decoded[f"{line}_{drug}"] / sd
    halves = np.array_split(np.random.default_rng(0).permutation(len(truth)), 2)
    return {
        "predicted": energy_distance(features(predicted.obsm["images"]) / sd, truth),
        "same line, control": energy_distance(decoded[f"{line}_control"] / sd, truth),
        "other line, drug": energy_distance(decoded[f"{other}_{drug}"] / sd, truth),
        "mixture of both": energy_distance(
            np.concatenate([decoded[f"{line}_control"], decoded[f"{other}_{drug}"]]) / sd, truth
        ),
        "halves of the truth": energy_distance(truth[halves[0]], truth[halves[1]]),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    every = {each.__name__: each for each in (kang_sweep, kang_guided, mcdavid, rnamix, buettner, osteosarcoma)}
    options.add_argument("which", nargs="*", default=list(every))
    logging.basicConfig(level=logging.WARNING)
    warnings.simplefilter("ignore")
    for name in options.parse_args().which:
        every[name]()


if __name__ == "__main__":
    main()
