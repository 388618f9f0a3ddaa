"""Hidden times of RNA and qPCR time courses: the default against plain optimal transport.

    python -m benchmarks.interpolate.rna [guo] [schiebinger] [shalek] [klein]

Every hidden time is predicted from its neighbours by models that never saw it. Fixed representation: library-size
normalised, log1p, 1,000 most variable genes, 5 whitened principal components of all cells; exact W1 between as many
predicted cells as half the true ones and that half; floor: the other half. Means over splits and model seeds. Plain
optimal transport pairs the neighbours in this representation, with the same draws of pairs as the package's own.
"""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.common import data_dir, write
from sklearn.decomposition import PCA

import latentcell as lc

HIDDEN = {"guo": [1, 2, 3, 4, 5], "schiebinger": [10.5], "shalek": [2, 4], "klein": [2, 4]}
FILES = {
    "guo": "guo2010_qpcr",
    "schiebinger": "schiebinger2019_d10_11",
    "shalek": "shalek2014_lps",
    "klein": "klein2015_mesc",
}
SEEDS, SPLITS = (0, 1), range(10)
METHODS = ["floor", "previous", "next", "mixture", "plain OT", "curved OT", "decoded draws", "moved measurements"]


def load(name: str) -> tuple[ad.AnnData, np.ndarray]:
    """Cells as a user would give them, and their log-normalised values."""
    cells = ad.read_h5ad(data_dir() / "rna" / f"{FILES[name]}.h5ad")
    if name == "guo":
        values = dense(cells.layers["log2"])
        return ad.AnnData(values.astype(np.float32), obs=cells.obs[["time"]], var=cells.var[[]]), values
    counts = dense(cells.X)
    size = counts.sum(axis=1, keepdims=True)
    values = np.log1p(counts / size * np.median(size))
    # rounded TPM are no counts
    matrix = values.astype(np.float32) if name == "shalek" else cells.X
    return ad.AnnData(matrix, obs=cells.obs[["time"]], var=cells.var[[]]), values


def dense(matrix: object) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=np.float64)


def hidden_time(name: str, cells: ad.AnnData, values: np.ndarray, hidden: float) -> list[dict[str, object]]:
    time = cells.obs["time"].to_numpy(dtype=float)
    known = np.unique(time[time != hidden])
    before, after = known[known < hidden].max(), known[known > hidden].min()
    genes = np.sort(np.argsort(-values.std(axis=0))[:1000])
    genes = genes[values[:, genes].std(axis=0) > 0]
    pca = PCA(5, whiten=True, random_state=0).fit(values[:, genes])
    place = pca.transform(values[:, genes])
    a, b, truth = (place[time == t] for t in (before, after, hidden))
    share = (hidden - before) / (after - before)
    means = np.array([values[time == t].mean(axis=0) for t in known])
    turn = lc.stats.turn(known, means, hidden)
    bend = pca.components_ @ (turn.bend @ means)[genes] / np.sqrt(pca.explained_variance_)
    progress = turn.line[np.searchsorted(known, hidden)]
    rows = []
    for seed in SEEDS:
        # genes chosen without the hidden time; rounded TPM of rarely seen genes are noise
        kept = cells
        if name == "shalek":
            spread = dense(cells.X[time != hidden]).std(axis=0)
            kept = cells[:, np.sort(np.argsort(-spread)[:1000])].copy()
        model = lc.VAE(8).fit(kept, exclude={"time": [hidden]}, rng=seed)
        for split in SPLITS:
            rng = np.random.default_rng([seed, split])
            order = rng.permutation(len(truth))
            half = len(truth) // 2
            kept_out, compared = truth[order[:half]], truth[order[half:]]
            i, j = lc.stats.pair(a, b, n_pairs=half, rng=rng)
            mixed = np.where(rng.random(half)[:, None] < share, b[rng.integers(len(b), size=half)],
                             a[rng.integers(len(a), size=half)])  # fmt: skip
            predicted = lc.tl.interpolate(kept, model, "time", at=hidden, source=before, target=after, n_cells=half,
                                          rng=split)  # fmt: skip
            populations = {
                "floor": kept_out,
                "previous": a[rng.integers(len(a), size=half)],
                "next": b[rng.integers(len(b), size=half)],
                "mixture": mixed,
                "plain OT": (1 - share) * a[i] + share * b[j],
                "curved OT": (1 - progress) * a[i] + progress * b[j] + bend,
                "decoded draws": projected(predicted, "sampled", model, cells, values, genes, pca, time != hidden),
                "moved measurements": projected(predicted, "moved", model, cells, values, genes, pca, time != hidden),
            }
            rows += [
                {
                    "data": name,
                    "hidden": hidden,
                    "seed": seed,
                    "method": method,
                    "W1": lc.stats.wasserstein(x, compared),
                }
                for method, x in populations.items()
            ]
    return rows


def projected(
    predicted: ad.AnnData, layer: str, model: lc.VAE, cells: ad.AnnData, values: np.ndarray, genes: np.ndarray,
    pca: PCA, seen: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Predicted cells in the fixed representation; genes that the model does not have stay at their known mean."""
    moved = np.asarray(predicted.layers[layer], dtype=np.float64)
    if model.modality_ == "counts":
        depth = np.median(dense(cells.X).sum(axis=1))
        if layer == "moved":  # on the scale of the two ends' median total
            params = predicted.uns["interpolate"]["params"]
            ends = cells.obs["time"].isin([params["source"], params["target"]]).to_numpy()
            moved = np.expm1(moved) / np.median(dense(cells.X[ends]).sum(axis=1))
        else:
            moved = moved / np.maximum(moved.sum(axis=1, keepdims=True), 1)
        moved = np.log1p(np.maximum(moved, 0) * depth)
    whole = np.tile(values[seen].mean(axis=0), (len(moved), 1))
    whole[:, cells.var_names.get_indexer(model.names_)] = moved
    return pca.transform(whole[:, genes])


def main(names: list[str]) -> None:
    rows = []
    for name in names:
        cells, values = load(name)
        for hidden in HIDDEN[name]:
            rows += hidden_time(name, cells, values, float(hidden))
            print(f"{name} {hidden} done", flush=True)
    wide = pd.DataFrame(rows).pivot_table(index=["data", "hidden"], columns="method", values="W1", sort=False)[METHODS]
    for method in ("curved OT", "decoded draws", "moved measurements"):
        wide[f"gap closed, {method}"] = (wide["plain OT"] - wide[method]) / (wide["plain OT"] - wide["floor"])
    write(wide.reset_index(), "interpolate/rna")
    bar = wide.drop(index="klein", level="data", errors="ignore")
    print(bar.filter(like="gap closed").mean().round(3).to_string())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:] or list(HIDDEN))
