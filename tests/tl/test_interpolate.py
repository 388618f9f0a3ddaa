from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from latentcell.errors import InputError
from latentcell.tl.interpolate import interpolate

N = 60


@dataclass
class LinearModel:
    """A model whose decoder is linear and known: measurement = offset + z @ loadings, softmax of it for counts."""

    loadings: np.ndarray
    modality_: str = "profiles"
    noise: float = 0.1
    batch_key: str | None = None
    layer: str | None = None
    seen_names: frozenset[str] = frozenset()
    size: int = 16

    @property
    def names_(self) -> list[str]:
        return ["DNA"] if self.modality_ == "images" else [f"v{i}" for i in range(self.loadings.shape[1])]

    def measurements(self, cells: AnnData) -> np.ndarray:
        return np.asarray(cells.obsm["images"] if self.modality_ == "images" else cells.X)

    def encode(self, cells: AnnData) -> Any:
        x = self.measurements(cells).reshape(cells.n_obs, -1)
        if self.modality_ == "counts":
            x = np.log((x + 0.5) / (x + 0.5).sum(1, keepdims=True))
            x = x - x.mean(1, keepdims=True)
        mu = x @ np.linalg.pinv(self.loadings)
        return SimpleNamespace(mu=mu.astype(np.float32), var=np.full_like(mu, 0.01, dtype=np.float32))

    def decode(
        self, z: np.ndarray, *, batch: Any = None, library_size: Any = None, noise: bool = False, rng: Any = None
    ) -> np.ndarray:
        assert (batch is not None) == (self.batch_key is not None)
        self.batches_asked = batch
        x = z @ self.loadings
        if self.modality_ == "counts":
            share = np.exp(x) / np.exp(x).sum(1, keepdims=True)
            mean = share * np.asarray(library_size)[:, None]
            return rng.poisson(mean) if noise else mean
        x = x + self.noise * rng.normal(size=x.shape) if noise else x
        return x.reshape(len(z), 1, self.size, self.size) if self.modality_ == "images" else x

    def reconstruct(self, cells: AnnData) -> np.ndarray:
        batch = None if self.batch_key is None else cells.obs[self.batch_key].to_numpy()
        return self.decode(self.encode(cells).mu, batch=batch)

    def seen(self, cells: AnnData) -> np.ndarray:
        return cells.obs_names.isin(list(self.seen_names))


def course(*, shift: float = 6.0, seed: int = 0, n: int = N, n_genes: int = 12) -> tuple[AnnData, LinearModel]:
    """Cells that move along one latent dimension and vary twice as much along another: early, middle, late."""
    rng = np.random.default_rng(seed)
    loadings = np.linalg.qr(rng.normal(size=(n_genes, 2)))[0].T
    stage = np.repeat(["early", "middle", "late"], n)
    z = np.stack([np.repeat([0.0, shift / 2, shift], n) + rng.normal(size=3 * n), 2 * rng.normal(size=3 * n)], axis=1)
    x = z @ loadings + 0.1 * rng.normal(size=(3 * n, n_genes))
    obs = pd.DataFrame({"stage": stage, "day": np.repeat([0, 2, 4], n)}, index=[f"c{i}" for i in range(3 * n)])
    cells = AnnData(X=x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"v{i}" for i in range(n_genes)]))
    return cells, LinearModel(loadings)


def images_course(seed: int = 0, n: int = 40) -> tuple[AnnData, LinearModel]:
    """Images that fade from a small disc to a large one; the model knows just these two patterns."""
    cells, _ = course(n=n, seed=seed)
    y, x = np.mgrid[:16, :16] - 7.5
    small, large = (np.exp(-(x**2 + y**2) / (2 * w**2)) for w in (1.5, 4.0))
    model = LinearModel(np.stack([small.ravel(), large.ravel()]), "images", noise=0.02)
    rng = np.random.default_rng(seed)
    weight = np.repeat([0.0, 0.5, 1.0], n)
    z = np.stack([1 - weight, weight], axis=1) + 0.1 * rng.normal(size=(3 * n, 2))
    cells = AnnData(obs=cells.obs)
    cells.obsm["images"] = (z @ model.loadings + 0.02 * rng.normal(size=(3 * n, 256))).reshape(-1, 1, 16, 16)
    return cells, model


def counts_course(seed: int = 0, n: int = N) -> tuple[AnnData, LinearModel]:
    cells, model = course(n=n, seed=seed, n_genes=30)
    rng = np.random.default_rng(seed)
    loadings = model.loadings - model.loadings.mean(1, keepdims=True)
    log_mean = cells.X @ np.linalg.pinv(model.loadings) @ loadings * 2
    size = np.where(cells.obs["stage"] == "late", 8_000, 2_000)
    counts = rng.poisson(np.exp(log_mean) / np.exp(log_mean).sum(1, keepdims=True) * size[:, None])
    cells.X = counts.astype(np.float32)
    return cells, LinearModel(2 * loadings, "counts")


ENDS: dict[str, Any] = {"source": "early", "target": "late"}


def row(table: pd.DataFrame, space: str, method: str, metric: str = "energy distance") -> pd.Series:
    return table[(table.space == space) & (table.method == method) & (table.metric == metric)].iloc[0]


def test_with_a_linear_decoder_the_middle_of_two_gaussians_has_their_mean_and_spread() -> None:
    cells, model = course(n=400)
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    ends = [model.encode(cells[cells.obs.stage == stage]).mu.mean(0) for stage in ("early", "late")]
    np.testing.assert_allclose(predicted.obsm["vae"].mean(0), (ends[0] + ends[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(predicted.obsm["vae"].std(0), [1.0, 2.0], rtol=0.1)


@pytest.mark.parametrize(("at", "stage"), [(0.0, "early"), (1.0, "late")])
def test_at_the_ends_the_prediction_is_the_reconstruction_of_the_cells_there(at: float, stage: str) -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=at, rng=0)
    names = predicted.obs["source_cell" if at == 0 else "target_cell"]
    expected = model.decode(model.encode(cells[names.to_numpy()]).mu)
    assert set(names) == set(cells.obs_names[cells.obs.stage == stage])
    np.testing.assert_allclose(predicted.X, expected, atol=1e-5)


def test_prediction_names_the_paired_cells_and_keeps_mean_and_sample_apart() -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=0.25, n_cells=37, rng=0)
    ends = [model.encode(cells[predicted.obs[c].to_numpy()]).mu for c in ("source_cell", "target_cell")]
    np.testing.assert_allclose(predicted.obsm["vae"], 0.75 * ends[0] + 0.25 * ends[1], atol=1e-5)
    np.testing.assert_allclose(predicted.X, predicted.obsm["vae"] @ model.loadings, atol=1e-5)
    residual = predicted.layers["sampled"] - predicted.X
    assert predicted.shape == (37, 12)
    assert residual.std() == pytest.approx(0.1, rel=0.2)
    assert list(predicted.var_names) == model.names_
    assert (predicted.obs["at"] == 0.25).all()


def test_several_positions_move_the_same_pairs() -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, at=[0, 0.5, 1], n_cells=20, rng=0)
    assert predicted.obs["at"].tolist() == [0] * 20 + [0.5] * 20 + [1] * 20
    names = predicted.obs["source_cell"].to_numpy().reshape(3, 20)
    assert (names == names[0]).all()
    z = predicted.obsm["vae"].reshape(3, 20, 2)
    np.testing.assert_allclose(z[1], (z[0] + z[2]) / 2, atol=1e-5)


def test_centroid_pairing_decodes_one_and_the_same_cell() -> None:
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, pairing="centroid", rng=0)
    assert predicted.X.std(axis=0).max() < 1e-5


def test_evaluation_lists_the_prediction_first_and_every_baseline_in_both_spaces() -> None:
    cells, model = course()
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    table = cells.uns["interpolate"]["evaluation"]
    assert list(table.columns) == ["space", "method", "metric", "value", "low", "high"]
    shared = ["prediction", "source", "target", "mixture"]
    model_free = ["measurement average", "PCA + OT"]
    for space, methods in (
        ("model", [*shared, "measurement average", "random pairs", "centroid", "floor"]),
        ("data", [*shared, *model_free, "random pairs", "centroid", "floor"]),
    ):
        assert list(table[table.space == space].method.unique()) == methods
    assert set(table.metric) == {"energy distance", "MMD", "W1", "per-variable error"}
    assert (table.groupby(["space", "method"]).size() == 4).all()
    assert np.isfinite(table[["value", "low", "high"]].to_numpy()).all()
    assert (table.low <= table.high).all()


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_optimal_transport_beats_random_pairs_the_mixture_the_ends_and_the_centroid(make: Any) -> None:
    cells, model = make()
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    table = cells.uns["interpolate"]["evaluation"]
    for space in ("model", "data"):
        error = {m: row(table, space, m).value for m in table[table.space == space].method}
        assert error["prediction"] < error["random pairs"] < min(error["source"], error["target"])
        assert error["prediction"] < 0.5 * min(error["mixture"], error["centroid"], error["source"], error["target"])


def test_verdict_names_a_clear_win_in_model_space() -> None:
    cells, model = course(n=150)
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    sentence = cells.uns["interpolate"]["verdict"]["model"]
    assert sentence.startswith("In model space the prediction is better than every baseline: energy distance")


def test_verdict_admits_that_a_copy_of_the_source_is_nearer() -> None:
    cells, model = course()
    cells.obs["stage"] = cells.obs["stage"].replace({"middle": "mid"})
    early = cells[cells.obs.stage == "early"].X + 0.1 * np.random.default_rng(1).normal(size=(N, 12))
    cells.X[cells.obs.stage == "mid"] = early
    interpolate(cells, model, "stage", **ENDS, truth="mid", rng=0)
    verdict = cells.uns["interpolate"]["verdict"]
    assert "the prediction is worse than copying early" in verdict["model"]
    assert verdict["data"].startswith("In data space the prediction is worse than copying early")


def test_verdict_does_not_claim_to_beat_model_free_transport_where_they_agree() -> None:
    cells, model = course()
    interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    assert "no better than PCA + OT" in cells.uns["interpolate"]["verdict"]["data"]


def test_a_prediction_is_not_its_own_baseline() -> None:
    cells, model = course()
    interpolate(cells, model, "stage", **ENDS, truth="middle", pairing="random", rng=0)
    methods = set(cells.uns["interpolate"]["evaluation"].method)
    assert "random pairs" not in methods
    assert "centroid" in methods


def test_truth_used_in_fitting_is_refused_unless_allowed() -> None:
    cells, model = course()
    model.seen_names = frozenset({"c65", "c70", "c3"})
    with pytest.raises(InputError, match=r"2 of 60 cells of 'middle' were used in fitting.*'c65'"):
        interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    interpolate(cells, model, "stage", **ENDS, truth="middle", allow_seen=True, rng=0)
    assert cells.uns["interpolate"]["params"]["allow_seen"] is True


def test_predicted_images_are_kept_as_images_with_their_channels() -> None:
    cells, model = images_course()
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    assert predicted.obsm["images"].shape == predicted.obsm["sampled"].shape == (40, 1, 16, 16)
    assert predicted.obsm["images"].dtype == np.float32
    assert predicted.uns["images"]["channel_names"] == ["DNA"]


def test_predicted_counts_have_the_library_size_between_those_of_their_two_cells() -> None:
    cells, model = counts_course()
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    sizes = [cells[predicted.obs[c].to_numpy()].X.sum(1) for c in ("source_cell", "target_cell")]
    np.testing.assert_allclose(predicted.X.sum(1), np.sqrt(sizes[0] * sizes[1]), rtol=1e-4)
    sampled = predicted.layers["sampled"]
    assert (sampled == np.round(sampled)).all()


def test_predicted_cells_take_the_batch_of_their_source_cell() -> None:
    cells, model = course()
    cells.obs["plate"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 2, "p1", "p2"))
    model.batch_key = "plate"
    predicted = interpolate(cells, model, "stage", **ENDS, rng=0)
    expected = cells.obs["plate"][predicted.obs["source_cell"]].to_numpy()
    assert (predicted.obs["plate"].to_numpy() == expected).all()
    assert (np.asarray(model.batches_asked) == expected).all()


def test_numeric_levels_may_be_given_as_numbers_or_as_text() -> None:
    cells, model = course()
    first = interpolate(cells, model, "day", source=0, target=4, rng=0)
    second = interpolate(cells, model, "day", source="0", target="4.0", rng=0)
    np.testing.assert_array_equal(first.X, second.X)


@pytest.mark.parametrize("make", [course, counts_course, images_course])
def test_result_repeats_with_its_seed_and_survives_writing(make: Any, tmp_path: Any) -> None:
    cells, model = make(n=30)
    results = [interpolate(cells, model, "stage", **ENDS, truth="middle", rng=7) for _ in range(2)]
    pd.testing.assert_frame_equal(*(r.uns["interpolate"]["evaluation"] for r in results))
    results[0].write_h5ad(tmp_path / "predicted.h5ad")
    read = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert read.uns["interpolate"]["verdict"] == results[0].uns["interpolate"]["verdict"]
    params = read.uns["interpolate"]["params"]
    assert (params["source"], params["target"], params["truth"], params["rng"]) == ("early", "late", "middle", 7)
    assert (params["n_source"], params["n_target"], params["n_cells"]) == (30, 30, 30)


def test_large_populations_are_evaluated_on_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[interpolate.__module__], "MAX_EVALUATED", 25)
    cells, model = course()
    predicted = interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
    assert predicted.n_obs == N
    assert np.isfinite(cells.uns["interpolate"]["evaluation"].value).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "phase"}, r"no column 'phase'.*'stage', 'day'"),
        ({"source": "erly"}, r"equal to 'erly'.*early \(60\), middle \(60\), late \(60\)"),
        ({"target": "early"}, "both 'early'"),
        ({"truth": "late"}, "one of the ends"),
        ({"key": "day", "source": 0, "target": 4, "truth": "4"}, "one of the ends"),
        ({"truth": "midle"}, "equal to 'midle'"),
        ({"at": 1.2}, "found 1.2"),
        ({"at": []}, "between 0"),
        ({"at": float("nan")}, "found nan"),
        ({"at": [0.2, 0.5], "truth": "middle"}, "one position"),
        ({"pairing": "nearest"}, "ot, random, centroid"),
        ({"path": "geodesic"}, "linear, slerp"),
        ({"key": "day", "source": "first", "target": 4}, r"equal to 'first'.*0 \(60\)"),
    ],
)
def test_requests_that_have_no_answer_are_refused_with_what_was_found(changed: dict[str, Any], message: str) -> None:
    cells, model = course()
    options = {"key": "stage", **ENDS, **changed}
    with pytest.raises(InputError, match=message):
        interpolate(cells, model, options.pop("key"), **options)


def test_fewer_than_ten_cells_at_an_end_warn_and_fewer_than_two_are_refused() -> None:
    cells, model = course()
    few = cells[[*range(5), *range(N, 3 * N)]].copy()
    with pytest.warns(UserWarning, match="'early' has only 5 cells"):
        interpolate(few, model, "stage", **ENDS, rng=0)
    one = cells[[0, *range(N, 3 * N)]].copy()
    with pytest.raises(InputError, match="'early' has 1 cells"):
        interpolate(one, model, "stage", **ENDS, rng=0)


def test_enough_cells_do_not_warn() -> None:
    cells, model = course()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interpolate(cells, model, "stage", **ENDS, truth="middle", rng=0)
