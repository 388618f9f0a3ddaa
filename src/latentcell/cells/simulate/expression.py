"""Counts of transcripts from known gene programmes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike

from latentcell.cells.simulate.factors import cell_cycle
from latentcell.cells.simulate.imaging import check_number, checked_times, seed_of
from latentcell.errors import InputError

CELL_TYPES = ("type_A", "type_B", "type_C")
_CELLS_PER_CHUNK = 1000
_RISE = {"programme_3": 5.0, "programme_4": 2.0}  # from time 0 to time 1, in SD between cells


def counts(
    n: int,
    n_genes: int = 500,
    *,
    n_programmes: int = 4,
    library_size: float = 5000.0,
    dispersion: float | ArrayLike = 0.2,
    n_batches: int = 1,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Simulate negative-binomial counts of cells with known types, programmes and batches.

    The expected share of gene g is ``softmax_g(log_baseline + programmes @ loadings.T + type effect + batch effect)``;
    times the cell's library size it is the mean mu of a negative binomial with variance ``mu + dispersion * mu**2``.
    The first two programmes are the cell cycle: their activities are cosine and sine of the phase, and each of their
    genes peaks at a phase of its own. The others have independent standard normal activities.

    Parameters
    ----------
    n
        Number of cells.
    n_genes
        Number of genes, at least 10.
    n_programmes
        0, or at least 2 (the cell cycle comes as a pair).
    library_size
        Median of the expected total count per cell (log-normal between cells, SD 0.3).
    dispersion
        A number or one value per gene, ``>= 0``; 0 gives Poisson counts.
    n_batches
        Batches; every batch but the first shifts all genes (log fold changes with SD 0.3). 1 means no batch effect.

    Returns
    -------
    AnnData with ``X`` (CSR, float32). ``obs``: ``cell_type`` (three equally likely), ``phase``, ``cell_cycle``,
    ``programme_1`` ..., ``batch``, ``library_size``; ``var``: ``log_baseline``, ``dispersion``;
    ``varm["loadings"]``, ``varm["cell_type_effects"]``, ``varm["batch_effects"]``: DataFrames of natural log fold
    changes; ``uns["simulation"]``. `expected_expression` gives the noise-free shares.

    Raises
    ------
    InputError
        If a number is out of range or `dispersion` does not fit the genes.
    """
    for name, value, least in (("n", n, 1), ("n_genes", n_genes, 10), ("n_programmes", n_programmes, 0)):
        check_number(name, value, least=least)
    check_number("n_batches", n_batches)
    if n_programmes == 1:
        raise InputError("n_programmes=1: the first two programmes are the cell cycle, use 0 or at least 2.")
    seed = seed_of(rng)
    generator = np.random.default_rng(seed)
    var = _genes(n_genes, dispersion, generator)
    phase = generator.uniform(size=n)
    activity = generator.standard_normal((n, n_programmes))
    activity[:, :2] = np.column_stack([np.cos(2 * np.pi * phase), np.sin(2 * np.pi * phase)])[:, :n_programmes]
    programmes = [f"programme_{k + 1}" for k in range(n_programmes)]
    batches = [f"batch_{k + 1}" for k in range(n_batches)]
    obs = pd.DataFrame(activity, columns=programmes, index=[f"cell_{i}" for i in range(n)])
    obs["phase"], obs["cell_cycle"] = phase, cell_cycle(phase)
    obs["cell_type"] = pd.Categorical(generator.choice(CELL_TYPES, n), list(CELL_TYPES))
    obs["batch"] = pd.Categorical(generator.choice(batches, n), batches)
    obs["library_size"] = _library_sizes(n, library_size, generator)
    cells = AnnData(obs=obs, var=var)
    cells.varm["loadings"] = pd.DataFrame(_loadings(n_genes, n_programmes, generator), var.index, programmes)
    identity = generator.normal(0, 1.2, (n_genes, 3)) * (generator.uniform(size=(n_genes, 3)) < 0.1)
    cells.varm["cell_type_effects"] = pd.DataFrame(identity, var.index, list(CELL_TYPES))
    shift = generator.normal(0, 0.3, (n_genes, n_batches)) * (np.arange(n_batches) > 0)
    cells.varm["batch_effects"] = pd.DataFrame(shift, var.index, batches)
    cells.X = _sample(cells, generator)
    cells.uns["simulation"] = {
        "function": "counts", "seed": seed, "n_programmes": n_programmes, "library_size": library_size,
        "dispersion": np.asarray(dispersion, dtype=float), "n_batches": n_batches,
    }  # fmt: skip
    return cells


def count_course(
    n_per_time: int = 300,
    times: Sequence[float] = (0.0, 0.5, 1.0),
    *,
    n_genes: int = 300,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Simulate counts of cells of three types that differentiate with time; any time can be held out.

    Every cell's ``programme_3`` rises by 5 SD and ``programme_4`` by 2 between times 0 and 1; its type, its cell cycle
    and how it differs from its sisters stay. Optimal transport between two times pairs cells of the same type, whereas
    averages of randomly paired cells are hybrids of types that do not exist.

    Parameters
    ----------
    n_per_time
        Cells per time.
    times
        Increasing numbers within ``[0, 1]``.

    Returns
    -------
    AnnData as from `counts`, with ``obs["time"]`` (float) and ``obs["stage"]`` (ordered categorical: early, middle,
    late for three times, else ``time_0.25``).

    Raises
    ------
    InputError
        If times do not increase or leave ``[0, 1]``.
    """
    check_number("n_per_time", n_per_time)
    moments, names = checked_times(times)
    seed = seed_of(rng)
    generator = np.random.default_rng(seed)
    cells = counts(n_per_time * len(moments), n_genes, rng=generator)
    cells.obs["time"] = np.repeat(moments, n_per_time)
    cells.obs["stage"] = pd.Categorical(np.repeat(names, n_per_time), names, ordered=True)
    for programme, rise in _RISE.items():
        cells.obs[programme] += rise * (cells.obs["time"] - 0.5)
    cells.X = _sample(cells, generator)
    cells.uns["simulation"] = {"function": "count_course", "seed": seed, "times": moments}
    return cells


def expected_expression(cells: AnnData) -> np.ndarray:
    """Noise-free share of every gene in every cell simulated by `counts`, ``(n, G)`` float64, rows sum to 1.

    Reads ``obs`` (programmes, ``cell_type``, ``batch``), ``var["log_baseline"]`` and the effects in ``varm``; change an
    activity in ``obs`` to ask what that programme does. The mean count is the share times ``obs["library_size"]``.
    """
    loadings = cells.varm["loadings"]
    log_share = cells.var["log_baseline"].to_numpy() + cells.obs[list(loadings)].to_numpy() @ loadings.to_numpy().T
    for column in ("cell_type", "batch"):
        effects = cells.varm[f"{column}_effects"]
        log_share += effects[cells.obs[column].astype(str)].to_numpy().T
    return softmax(log_share)


def softmax(log_share: np.ndarray) -> np.ndarray:
    """Exponentiate and scale rows to sum 1."""
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def negative_binomial(mean: np.ndarray, dispersion: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """Draw counts with the given mean and variance ``mean + dispersion * mean**2`` (a gamma-Poisson mixture).

    Parameters
    ----------
    mean
        ``(n, G)``.
    dispersion
        Scalar or ``(G,)``; where it is 0 the counts are Poisson.
    """
    spread = np.broadcast_to(np.asarray(dispersion, dtype=float), mean.shape)
    shape = 1 / np.maximum(spread, 1e-12)
    rate = np.where(spread > 0, rng.gamma(shape) / shape, 1.0) * mean
    return np.asarray(rng.poisson(rate), np.float32)


def _sample(cells: AnnData, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw counts in chunks of cells, so that only one chunk is ever dense."""
    blocks = []
    for start in range(0, cells.n_obs, _CELLS_PER_CHUNK):
        chunk = cells[start : start + _CELLS_PER_CHUNK]
        mean = expected_expression(chunk) * chunk.obs["library_size"].to_numpy()[:, None]
        blocks.append(sp.csr_matrix(negative_binomial(mean, cells.var["dispersion"].to_numpy(), rng)))
    return sp.vstack(blocks, format="csr", dtype=np.float32)


def _genes(n_genes: int, dispersion: float | ArrayLike, rng: np.random.Generator) -> pd.DataFrame:
    """Gene table: names, log of the baseline expression (log-normal between genes) and dispersion."""
    values = np.asarray(dispersion, dtype=float)
    if values.shape not in ((), (n_genes,)) or not (np.isfinite(values) & (values >= 0)).all():
        raise InputError(f"dispersion must be a number >= 0 or one per gene ({n_genes}), found shape {values.shape}.")
    width = max(4, len(str(n_genes)))
    index = pd.Index([f"gene_{g + 1:0{width}d}" for g in range(n_genes)])
    baseline = rng.normal(0, 1.2, n_genes)
    return pd.DataFrame({"log_baseline": baseline, "dispersion": np.broadcast_to(values, n_genes).copy()}, index=index)


def _library_sizes(n: int, median: float, rng: np.random.Generator) -> np.ndarray:
    if not (np.isfinite(median) and median > 0):
        raise InputError(f"library_size={median} must be a positive number: the median total count per cell.")
    return np.asarray(median * np.exp(0.3 * rng.standard_normal(n)))


def _loadings(n_genes: int, n_programmes: int, rng: np.random.Generator) -> np.ndarray:
    """Log fold changes ``(G, K)``: a tenth of the genes per programme, mostly up; the first two share their genes."""
    loadings = rng.normal(0.8, 0.2, (n_genes, n_programmes)) * rng.choice([1, 1, 1, -1], (n_genes, n_programmes))
    loadings *= rng.uniform(size=loadings.shape) < 0.1
    if n_programmes >= 2:
        peak = rng.uniform(0, 2 * np.pi, n_genes)
        amplitude = rng.normal(0.8, 0.2, n_genes) * (rng.uniform(size=n_genes) < 0.1)
        loadings[:, 0], loadings[:, 1] = amplitude * np.cos(peak), amplitude * np.sin(peak)
    return np.asarray(loadings)
