"""Codes of the same cells by a model and by refits of it with other seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell.errors import InputError
from latentcell.tl.refit import Match, fit_rows, fitted_like, match_dimensions

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.stats.factor import Array

logger = logging.getLogger("latentcell")

COMES_BACK = 0.8
"""|Correlation| with its match from which a dimension is the same one in a refit."""


@dataclass(frozen=True)
class Coded:
    """Cells as a model and its refits see them.

    Attributes
    ----------
    models
        The model, then the refits.
    codes
        Posterior means of all cells by each of `models`, ``(1 + S, n, d)``, dimensions matched with the model's.
    matches
        How the dimensions of each refit were matched.
    mu
        Codes to hold factors against, ``(n, d)``: the model's; where it has guided factors, for each cell those of a
        fit that has not seen it. Dimensions that the fit does not use are 0.
    untrained
        Cells whose code in `mu` comes from a fit that was not trained on them, ``(n,)``.
    """

    models: list[VAE]
    codes: Array
    matches: list[Match]
    mu: Array
    untrained: NDArray[np.bool_]

    @property
    def stability(self) -> Array:
        """|Correlation| of each dimension with its match in each refit, ``(S, d)``."""
        d = self.mu.shape[1]
        return np.array([match.correlation for match in self.matches]).reshape(-1, d)

    def in_use(self, i: int) -> Array:
        """Codes ``(n, d)`` by the model (0) or a refit, 0 in dimensions that it does not use."""
        active = active_dimensions(self.models[i])
        return self.codes[i] * (active[self.matches[i - 1].order] if i else active)

    def take(self, rows: NDArray[np.intp]) -> Coded:
        """The same of the cells `rows`."""
        return replace(self, codes=self.codes[:, rows], mu=self.mu[rows], untrained=self.untrained[rows])


def coded(
    cells: AnnData,
    model: VAE,
    *,
    seeds: int,
    replicate: NDArray[Any] | None,
    folder: Path | None,
    fit: Mapping[str, Any],
    seed: int,
) -> Coded:
    """Fit the model again with other seeds and encode all cells by every fit.

    Refits train on those of `cells` that the model was fitted on, or on all where there are none. With guided factors
    each leaves out another part of them, replicates whole.

    Parameters
    ----------
    seeds
        Number of refits.
    folder
        Keeps the refitted models.
    fit
        Options of `latentcell.VAE.fit` that differ from those of the model's own fit.

    Raises
    ------
    InputError
        If guided factors have too few refits to be judged by.
    """
    guides = model.schema_.guidance.guides
    if seeds < 0:
        raise InputError(f"seeds is {seeds}: it is the number of refits, 0 or more.")
    if guides and seeds < 2:
        raise InputError(
            f"seeds is {seeds}: a model with guided factors has seen their values, so they are judged by at least two "
            "refits that each leave out a part of the cells."
        )
    seen = model.seen(cells)
    pool = np.flatnonzero(seen) if seen.any() else np.arange(cells.n_obs)
    fold = _folds(pool, replicate, seeds, np.random.default_rng([seed, 3])) if guides else None
    models, codes = [model], [model.encode(cells).mu.astype(np.float64)]
    matches: list[Match] = []
    n_fixed = sum(guide.width for guide in guides)
    # a refit with the seed of the model would be the model
    options = fitted_like(model, fit)
    others = [each for each in range(seed + 1, seed + seeds + 2) if each != model.report_["seed"]]
    for number in range(1, seeds + 1):
        logger.info("refit %d of %d", number, seeds)
        rows = pool if fold is None else pool[fold != number - 1]
        stored = None if folder is None else folder / f"seed_{number}"
        refit = fit_rows(cells, model, rows, fit=options, seed=others[number - 1], stored=stored)
        mu = refit.encode(cells).mu.astype(np.float64)
        match = match_dimensions(codes[0], mu, n_fixed)
        models.append(refit)
        matches.append(match)
        codes.append(mu[:, match.order] * match.sign)
    found = Coded(models, np.stack(codes), matches, codes[0], np.ones(cells.n_obs, dtype=bool))
    mu = found.in_use(0)
    if fold is None:
        return replace(found, mu=mu, untrained=~model.seen(cells, early_stopping=False))
    for number in range(1, seeds + 1):
        left_out = pool[fold == number - 1]
        mu[left_out] = found.in_use(number)[left_out] * active_dimensions(model)
    return replace(found, mu=mu)


def active_dimensions(model: VAE) -> NDArray[np.bool_]:
    """Which dimensions a fit uses, ``(d,)``."""
    return model.latent_.sort_values("dimension")["active"].to_numpy(dtype=bool)


def _folds(
    pool: NDArray[np.intp], replicate: NDArray[Any] | None, n: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Part 0 to n - 1 of each cell of `pool`, of about as many cells or replicates each, replicates whole."""
    unit = np.arange(len(pool)) if replicate is None else np.unique(replicate[pool], return_inverse=True)[1]
    n_units = int(unit.max()) + 1
    if n_units < n:
        raise InputError(
            f"There are {n_units} replicates for {n} refits that each leave out some: name a finer replicate or fewer "
            "seeds."
        )
    part = rng.permutation(np.arange(n_units) % n)
    return np.asarray(part[unit], dtype=np.intp)
