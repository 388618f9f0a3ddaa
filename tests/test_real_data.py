"""What latentcell must show on real cells; trains for minutes."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom

import latentcell as lc

pytestmark = pytest.mark.slow


def stage_accuracy(latent: np.ndarray, stage: np.ndarray, track: np.ndarray) -> float:
    """Accuracy of a logistic regression, 5 folds that keep tracks whole, averaged over three splits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    folds = [StratifiedGroupKFold(5, shuffle=True, random_state=seed) for seed in range(3)]
    return float(np.mean([cross_val_score(model, latent, stage, cv=cv, groups=track).mean() for cv in folds]))


def test_hela_embedding_tells_mitotic_stages_better_than_pca_by_five_points(data_dir: Path) -> None:
    from sklearn.decomposition import PCA

    cells = lc.read(data_dir / "images" / "hela_h2b_mitosis")
    model = lc.VAE(n_latent=16).fit(cells, exclude={"stage": ["apoptosis"]}, split_key="track", rng=0)
    cells = cells[(cells.obs["stage"] != "apoptosis").to_numpy()]
    stage, track = cells.obs["stage"].to_numpy(), cells.obs["track"].to_numpy()
    pixels = cells.obsm["images"].reshape(cells.n_obs, -1).astype(float)
    pca = stage_accuracy(PCA(16, random_state=0).fit_transform(pixels), stage, track)
    assert stage_accuracy(model.encode(cells).mu, stage, track) > pca + 0.05


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("images/bbbc021_cells.h5ad", {}),
        ("images/osteosarcoma_shapes.h5ad", {}),
        ("images/bbbc021_wells.csv.gz", {"batch_key": "Plate"}),
        ("rna/kang2018_scgen_valid.h5ad", {}),
        ("rna/guo2010_qpcr.h5ad", {"layer": "log2"}),
    ],
)
def test_real_cells_fit_with_defaults_without_collapse(data_dir: Path, file: str, options: dict[str, str]) -> None:
    model = lc.VAE(**options).fit(lc.read(data_dir / file), epochs=40, rng=0)
    assert model.report_["n_active"] >= 3
    # the decoder uses the code: shuffling the busiest dimension costs likelihood
    assert model.latent_["nll_change"].max() > 1
    first, best = model.history_["val_elbo"].iloc[0], model.report_["held_out_elbo"]
    assert best > first


def test_real_volumes_fit_without_collapse(data_dir: Path) -> None:
    with np.load(data_dir / "images" / "allen_mitotic_atlas.npz") as stored:
        channels = [str(name) for name in stored["channels"]]
        chosen = [channels.index(name) for name in ("MEMB", "DNA", "TOMM20_raw")]
        volume = stored["M1M2"][chosen].astype(np.float32)
    # many crops of one stage at half resolution
    trimmed = volume[:, :128, :184, :168].reshape(3, 64, 2, 92, 2, 84, 2).mean((2, 4, 6))
    rng = np.random.default_rng(0)
    corners = rng.integers(0, np.array(trimmed.shape[1:]) - (16, 32, 32), size=(120, 3))
    crops = np.stack([trimmed[:, z : z + 16, y : y + 32, x : x + 32] for z, y, x in corners]).astype(np.uint8)
    cells = ad.AnnData(obs={"crop": np.arange(len(crops)).astype(str)})
    lc.cells.set_images(cells, crops, channel_names=["MEMB", "DNA", "TOMM20"])
    model = lc.VAE(n_latent=8).fit(cells, epochs=30, rng=0)
    assert model.report_["n_active"] >= 3
    assert model.reconstruct(cells[:2].copy()).shape == (2, 3, 16, 32, 32)


def null_nll(counts: np.ndarray, size: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Negative log likelihood per test cell of one negative binomial per gene, fitted on the training cells."""
    share = counts[train].sum(0) / size[train].sum()
    total = 0.0
    for gene, x in enumerate(counts.T):
        mean = size * max(share[gene], 1e-12)

        def loss(log_theta: float, rows: np.ndarray, x: np.ndarray = x, mean: np.ndarray = mean) -> float:
            theta = np.exp(log_theta)
            return float(-nbinom.logpmf(x[rows], theta, theta / (theta + mean[rows])).sum())

        best = minimize_scalar(loss, bounds=(-6, 8), method="bounded", args=(train,))
        total += loss(best.x, test)
    return total / len(test)


@pytest.mark.parametrize(
    "name", ["klein2015_mesc", "paul15", "kang2018_scgen_valid", "schiebinger2019_d10_11", "worm_neuron"]
)
def test_held_out_counts_are_explained_better_than_by_one_distribution_per_gene(data_dir: Path, name: str) -> None:
    cells = ad.read_h5ad(data_dir / "rna" / f"{name}.h5ad")
    counts = cells.X.toarray()
    library = counts.sum(1, keepdims=True)
    spread = np.log1p(counts / library * np.median(library)).var(0)
    genes = np.sort(np.argsort(-spread)[:558])
    order = np.random.default_rng(0).permutation(cells.n_obs)
    occupied = counts[:, genes].sum(1) > 0
    train, test = (part[occupied[part]] for part in np.split(order, [round(0.75 * cells.n_obs)]))
    cells = cells[:, genes].copy()
    cells.obs["part"] = np.where(np.isin(np.arange(cells.n_obs), train), "train", "test")
    model = lc.VAE().fit(cells, exclude={"part": ["test"]}, rng=0)
    nll = float(model.nll(cells[test].copy())["nll"].mean())
    null = null_nll(counts[:, genes], counts[:, genes].sum(1), train, test)
    assert nll < 0.98 * null


def test_moved_measurements_come_nearer_to_a_hidden_embryonic_stage_than_plain_transport(data_dir: Path) -> None:
    cells = ad.read_h5ad(data_dir / "rna" / "guo2010_qpcr.h5ad")
    cells = ad.AnnData(cells.layers["log2"].toarray(), obs=cells.obs[["time"]], var=cells.var[[]])
    for hidden in (2.0, 4.0):
        model = lc.VAE(8).fit(cells, exclude={"time": [hidden]}, rng=0)
        predicted = lc.tl.interpolate(cells, model, "time", truth=hidden, rng=0)
        table = predicted.uns["interpolate"]["evaluation"].query("space == 'data' and metric == 'W1'")
        nearer = table.set_index("method")["value"]
        assert nearer["moved measurements"] < nearer["PCA + OT"]


def test_days_that_are_libraries_of_their_own_are_told_as_a_possible_artefact(data_dir: Path) -> None:
    cells = ad.read_h5ad(data_dir / "rna" / "klein2015_mesc.h5ad")
    model = lc.VAE(8).fit(cells, exclude={"day": [2]}, epochs=5, rng=0)
    with pytest.warns(UserWarning, match="each may be a library of its own"):
        lc.tl.interpolate(cells, model, "day", truth=2, rng=0)


def test_sharp_reconstructions_of_hidden_metaphases_come_three_times_nearer_than_blurred_ones(data_dir: Path) -> None:
    from latentcell.tl.evaluate import Representation

    cells = lc.read(data_dir / "images" / "hela_h2b_mitosis")
    model = lc.VAE(16).fit(cells, exclude={"stage": ["metaphase", "apoptosis"]}, split_key="track", rng=0)
    model.fit_refiner(cells, max_minutes=5, rng=0)
    ends = model.measurements(cells[cells.obs["stage"].isin(["prometaphase", "early_anaphase"])])
    hidden = cells[cells.obs["stage"] == "metaphase"]
    fixed = Representation.fit(ends, "images", model.names_)

    def distance(images: np.ndarray) -> float:
        true = fixed.variables(fixed.comparable(model.measurements(hidden)))
        return lc.stats.energy_distance(fixed.variables(fixed.comparable(images)), true)

    assert distance(model.reconstruct(hidden, sharp=True, rng=0)) < distance(model.reconstruct(hidden)) / 3
