"""A fitted model without a fit: a linear decoder with everything that the figures ask of `latentcell.VAE`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib._pylab_helpers import Gcf

from latentcell.cells.images import channel_names, measured, modality_of, set_images
from latentcell.tl.interpolate import interpolate

METHODS = ("prediction", "source", "reconstructed truth", "target", "floor")


@dataclass
class LinearModel:
    """measurement = offset + z @ loadings; counts: library size times the softmax of that."""

    modality_: str
    names_: list[str]
    shape: tuple[int, ...]
    loadings: np.ndarray
    offset: np.ndarray
    batch_key: str | None = None
    kl: list[float] = field(default_factory=list)
    layer: str | None = None
    refined: bool = False
    decoded: list[tuple[np.ndarray, Any]] = field(default_factory=list)
    sharp: list[bool] = field(default_factory=list)

    @classmethod
    def pca(cls, cells: AnnData, n_latent: int = 4, **options: Any) -> LinearModel:
        modality = modality_of(cells)
        x = np.asarray(measured(cells), dtype=float)
        flat = x.reshape(len(x), -1)
        if modality == "counts":
            flat = np.log((flat + 0.5) / (flat + 0.5).sum(1, keepdims=True))
        offset = flat.mean(0)
        _, s, vt = np.linalg.svd(flat - offset, full_matrices=False)
        loadings = vt[:n_latent] * s[:n_latent, None] / np.sqrt(len(x))
        names = channel_names(cells) if modality == "images" else list(cells.var_names)
        return cls(modality, names, x.shape[1:], loadings, offset, **options)

    @property
    def n_latent(self) -> int:
        return len(self.loadings)

    @property
    def schema_(self) -> Any:
        n = self.shape[0]
        return SimpleNamespace(
            shape=self.shape, location=[1.0] * n, scale=[2.0] * n, library_size=500.0, modality=self.modality_
        )

    @property
    def latent_(self) -> pd.DataFrame:
        kl = self.kl or list(np.linspace(1.0, 4.0, self.n_latent))
        return pd.DataFrame(
            {
                "dimension": range(self.n_latent),
                "kl": kl,
                "active": np.array(kl) > 0.5,
                "var_mu": 1.0,
                "mean_var": 0.1,
                "nll_change": np.array(kl) * 3,
            }
        )

    @property
    def dimensions_(self) -> list[int]:
        return [int(i) for i in self.latent_.sort_values("kl", ascending=False)["dimension"]]

    @property
    def history_(self) -> pd.DataFrame:
        epoch = np.arange(20)
        elbo = -100 - 1e4 * np.exp(-epoch)
        return pd.DataFrame(
            {"epoch": epoch, "elbo": elbo, "val_elbo": elbo - epoch, "kl": 5 + epoch * 0.1, "val_kl": 5.0}
        )

    @property
    def report_(self) -> dict[str, Any]:
        return {"best_epoch": 7}

    def encode(self, cells: AnnData) -> Any:
        x = self.measurements(cells).reshape(cells.n_obs, -1)
        if self.modality_ == "counts":
            x = np.log((x + 0.5) / (x + 0.5).sum(1, keepdims=True))
        mu = (x - self.offset) @ np.linalg.pinv(self.loadings)
        return SimpleNamespace(mu=mu.astype(np.float32), var=np.full_like(mu, 0.01))

    def region(self, z: np.ndarray, *, batch: object = None) -> None:
        """None: there are no masks."""

    def decode(
        self,
        z: np.ndarray,
        *,
        batch: Any = None,
        library_size: Any = None,
        noise: bool = False,
        sharp: bool = False,
        rng: Any = None,
    ) -> np.ndarray:
        """Means, plus noise whose place in `z` decides it where a draw is asked for; sharp ones ten times brighter."""
        self.decoded.append((np.array(z), batch))
        self.sharp.append(sharp)
        x = np.asarray(z) @ self.loadings + self.offset
        if self.modality_ == "counts":
            size = np.broadcast_to(500.0 if library_size is None else library_size, len(x))
            x = np.exp(x) / np.exp(x).sum(1, keepdims=True) * size[:, None]
        if noise or sharp:
            x = (10 if sharp else 1) * x + 0.1 * np.random.default_rng(rng).normal(size=x.shape)
            x = np.maximum(np.round(x), 0) if self.modality_ == "counts" else x
        return x.reshape(len(x), *self.shape).astype(np.float32)

    def measurements(self, cells: AnnData) -> np.ndarray:
        return np.asarray(measured(cells), dtype=np.float32)

    def reconstruct(self, cells: AnnData, *, sharp: bool = False, rng: Any = None) -> np.ndarray:
        sizes = self.measurements(cells).sum(1) if self.modality_ == "counts" else None
        return self.decode(self.encode(cells).mu, library_size=sizes, sharp=sharp, rng=rng)


def image_cells(n: int = 30, channels: tuple[str, ...] = ("DAPI", "actin"), depth: int | None = None) -> AnnData:
    """Discs of growing size in every channel."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    radius = rng.uniform(2, 6, size=(n, len(channels), 1, 1))
    images = 100 * np.exp(-(x**2 + y**2) / radius**2) + rng.normal(size=(n, len(channels), 16, 16))
    if depth is not None:
        images = images[:, :, None] * np.linspace(0.2, 1, depth)[:, None, None]
    cells = AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    set_images(cells, images.astype(np.float32), channel_names=channels)
    return annotated(cells)


def table_cells(counts: bool, n: int = 60, n_variables: int = 40) -> AnnData:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 3)) + np.repeat([[0], [1], [2]], n // 3, axis=0)
    x = z @ rng.normal(size=(3, n_variables)) * 0.5
    values = rng.poisson(5 * np.exp(x)) if counts else x
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_variables)])
    return annotated(AnnData(X=np.asarray(values, dtype=np.float32), obs=obs, var=var))


def annotated(cells: AnnData) -> AnnData:
    n = cells.n_obs
    cells.obs["stage"] = np.repeat(["early", "middle", "late"], n // 3)
    cells.obs["day"] = np.repeat([0.0, 2.0, 4.0], n // 3)
    cells.obs["plate"] = np.tile(["A", "B"], n // 2)
    return cells


def cells_of(modality: str) -> AnnData:
    return image_cells() if modality == "images" else table_cells(modality == "counts")


@pytest.fixture
def linear() -> Callable[..., LinearModel]:
    return LinearModel.pca


@pytest.fixture
def make_cells() -> Callable[[str], AnnData]:
    return cells_of


@pytest.fixture
def make_images() -> Callable[..., AnnData]:
    return image_cells


@pytest.fixture
def predict() -> Callable[..., AnnData]:
    """Interpolate from early to late; with `truth`, named in the result beside an evaluation made up."""

    def predicted(cells: AnnData, model: LinearModel, *, truth: bool = True, **options: Any) -> AnnData:
        asked = {"source": "early", "target": "late", "key": "stage", "path": "linear", "rng": 0} | options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = interpolate(cells, model, asked.pop("key"), **asked)
        if truth:
            uns = result.uns["interpolate"]
            uns["params"]["truth"] = "middle" if uns["params"]["key"] == "stage" else "2"
            uns["evaluation"] = evaluation(("model", "data"))
            uns["verdict"] = {"model": "Better than every baseline.", "data": "No better: energy distance 3."}
        model.decoded.clear()
        model.sharp.clear()
        return result

    return predicted


def evaluation(spaces: tuple[str, ...], methods: tuple[str, ...] = METHODS) -> pd.DataFrame:
    """A table as `latentcell.tl.interpolate` writes it; the model space lacks the reconstructed truth."""
    rows = [
        (space, method, metric, i + 1.0, i + 0.5, i + 1.5)
        for space in spaces
        for i, method in enumerate(methods)
        for metric in ("energy distance", "W1")
        if not (space == "model" and method == "reconstructed truth")
    ]
    return pd.DataFrame(rows, columns=["space", "method", "metric", "value", "low", "high"])


@pytest.fixture
def make_evaluation() -> Callable[..., pd.DataFrame]:
    return evaluation


@pytest.fixture(autouse=True)
def leaves_matplotlib_as_it_was() -> Iterator[None]:
    """Every test here: no figure stays in pyplot's registry and the user's settings are untouched."""
    before = dict(mpl.rcParams)
    yield
    assert not Gcf.figs
    assert dict(mpl.rcParams) == before
