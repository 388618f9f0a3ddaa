"""A model whose decoder is linear and known, and cells that it describes exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from latentcell.cells.levels import level_rows

N = 60
ENDS: dict[str, Any] = {"source": "early", "target": "late"}


@dataclass
class LinearModel:
    """Measurement = z @ loadings, softmax of it for counts; `asked` keeps the options of every decoding."""

    loadings: np.ndarray
    modality_: str = "profiles"
    noise: float = 0.1
    batch_key: str | None = None
    layer: str | None = None
    seen_names: frozenset[str] = frozenset()
    size: int = 16
    refined: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)

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
        self.asked.append({"batch": batch, "library_size": library_size, "noise": noise, "sharp": sharp})
        generator = np.random.default_rng(rng)
        x = z @ self.loadings
        if self.modality_ == "counts":
            share = np.exp(x) / np.exp(x).sum(1, keepdims=True)
            total = np.broadcast_to(np.asarray(1_000 if library_size is None else library_size), len(z))
            mean = share * total[:, None]
            return generator.poisson(mean) if noise else mean
        x = x + self.noise * generator.normal(size=x.shape) if noise or sharp else x
        return x.reshape(len(z), 1, self.size, self.size) if self.modality_ == "images" else x

    def geodesic(self, start: np.ndarray, end: np.ndarray, t: float, *, batch: Any = None) -> np.ndarray:
        """Shortest as decoded: the straight line, because the decoder is linear."""
        assert (batch is not None) == (self.batch_key is not None)
        return ((1 - t) * start + t * end).astype(np.float32)

    def reconstruct(self, cells: AnnData) -> np.ndarray:
        batch = None if self.batch_key is None else cells.obs[self.batch_key].to_numpy()
        return self.decode(self.encode(cells).mu, batch=batch)

    def seen(self, cells: AnnData) -> np.ndarray:
        return cells.obs_names.isin(list(self.seen_names))


@dataclass
class RefittableModel(LinearModel):
    """The same, and what each fit was asked for: `fits` is shared by all models that descend from one."""

    fits: list[dict[str, Any]] = field(default_factory=list)
    fitted: bool = True

    def unfitted(self) -> Self:
        return type(self)(self.loadings, self.modality_, fits=self.fits, fitted=False)

    def fit(self, cells: AnnData, *, exclude: dict[str, list[Any]], checkpoint: Path | None, **options: Any) -> Self:
        assert not self.fitted
        self.fits.append({"exclude": exclude, "checkpoint": checkpoint, **options})
        rows = [level_rows(cells, key, level) for key, levels in exclude.items() for level in levels]
        kept = np.setdiff1d(np.arange(cells.n_obs), np.concatenate(rows))
        self.seen_names, self.fitted = frozenset(cells.obs_names[kept]), True
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.touch()
        return self

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        content = {"loadings": self.loadings.tolist(), "seen": sorted(self.seen_names)}
        (folder / "model.json").write_text(json.dumps(content))

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = json.loads((folder / "model.json").read_text())
        return cls(np.array(content["loadings"]), seen_names=frozenset(content["seen"]))


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
    """Images that fade from a small disc to a large one, and others all along the way.

    The model knows just these two patterns.
    """
    y, x = np.mgrid[:16, :16] - 7.5
    small, large = (np.exp(-(x**2 + y**2) / (2 * w**2)) for w in (1.5, 4.0))
    model = LinearModel(np.stack([small.ravel(), large.ravel()]), "images", noise=0.02)
    rng = np.random.default_rng(seed)
    weight = np.concatenate([np.repeat([0.0, 0.5, 1.0], n), rng.uniform(0.2, 0.8, n)])
    z = np.stack([1 - weight, weight], axis=1) + 0.1 * rng.normal(size=(4 * n, 2))
    stage = np.repeat(["early", "middle", "late", "between"], n)
    cells = AnnData(obs=pd.DataFrame({"stage": stage}, index=[f"c{i}" for i in range(4 * n)]))
    cells.obsm["images"] = (z @ model.loadings + 0.02 * rng.normal(size=(4 * n, 256))).reshape(-1, 1, 16, 16)
    return cells, model


def counts_course(seed: int = 0, n: int = N, *, depths: tuple[int, int] = (2_000, 3_500)) -> tuple[AnnData, Any]:
    """Counts along one latent dimension, and others all along the way; `depths` of late and of all other cells."""
    rng = np.random.default_rng(seed)
    loadings = 2 * np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    loadings -= loadings.mean(1, keepdims=True)
    way = np.concatenate([np.repeat([0.0, 3.0, 6.0], n), rng.uniform(1.0, 5.0, n)])
    z = np.stack([way + rng.normal(size=4 * n), 2 * rng.normal(size=4 * n)], axis=1) / 2
    stage = np.repeat(["early", "middle", "late", "between"], n)
    share = np.exp(z @ loadings)
    size = np.where(stage == "late", depths[1], depths[0])
    counts = rng.poisson(share / share.sum(1, keepdims=True) * size[:, None])
    obs = pd.DataFrame({"stage": stage}, index=[f"c{i}" for i in range(4 * n)])
    cells = AnnData(X=counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"v{i}" for i in range(30)]))
    return cells, LinearModel(loadings, "counts")


def values(table: pd.DataFrame, space: str, metric: str = "energy distance") -> dict[str, float]:
    """Value of a metric by method, in one space."""
    rows = table[(table.space == space) & (table.metric == metric)]
    return dict(zip(rows.method, rows.value, strict=True))
