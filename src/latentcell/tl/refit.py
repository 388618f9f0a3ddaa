"""A model fitted anew with the same settings, and its latent dimensions matched with those of the first."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData
from scipy.optimize import linear_sum_assignment

from latentcell import keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.stats.factor import Array

logger = logging.getLogger("latentcell")

_ROLE = "_refit_role"
_ASKED = "asked"  # key of a fit's report that tells what was fitted


class Match(NamedTuple):
    """Dimensions of one set of codes that answer those of another.

    Attributes
    ----------
    order, sign
        ``other[:, order] * sign`` is like the reference, ``(d,)`` each.
    correlation
        |Pearson correlation| of each dimension of the reference with its match, ``(d,)``.
    """

    order: NDArray[np.intp]
    sign: Array
    correlation: Array


def match_dimensions(reference: Array, other: Array, n_fixed: int = 0) -> Match:
    """Match dimensions of two sets of codes ``(n, d)`` of the same cells, one to one, by their |correlation|.

    The sum of |correlation| is largest (Hungarian method). The first `n_fixed` dimensions answer each other as they
    stand: guided dimensions mean the same in every fit.
    """
    d = reference.shape[1]
    centred = [codes - codes.mean(0) for codes in (reference, other)]
    scaled = [codes / np.maximum(np.linalg.norm(codes, axis=0), 1e-12) for codes in centred]
    correlation = scaled[0].T @ scaled[1]
    order = np.arange(d)
    _, columns = linear_sum_assignment(-np.abs(correlation[n_fixed:, n_fixed:]))
    order[n_fixed:] = n_fixed + columns
    matched = correlation[np.arange(d), order]
    sign = np.where(matched < 0, -1.0, 1.0)
    sign[:n_fixed] = 1.0
    return Match(order, sign, np.abs(matched))


def fitted_like(model: VAE, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `latentcell.VAE.fit` for a refit: those of the fitted `model`, unless `given` otherwise."""
    from latentcell.model.settings import Settings

    report = vars(model).get("report_", {})
    if "most_epochs" not in report:
        return dict(given)
    # another machine has other threads and devices
    settings = Settings(**{**report["settings"], "threads": None, "device": None})
    return {"epochs": report["most_epochs"], "settings": settings, **given}


def fit_rows(
    cells: AnnData,
    model: VAE,
    rows: NDArray[np.intp],
    *,
    fit: Mapping[str, Any],
    seed: int,
    stored: Path | None = None,
) -> VAE:
    """Fit a new model with the settings of `model` on the cells `rows`, wherever those are stored.

    Parameters
    ----------
    fit
        Options of `latentcell.VAE.fit`.
    stored
        Folder that keeps the model: read from there if it holds this very fit; an interrupted one goes on.
    """
    asked = "" if stored is None else _digest(cells, model, rows, fit, seed)
    if stored is not None and stored.exists():
        kept = type(model).load(stored)
        if kept.report_.get(_ASKED) == asked:
            logger.info("read %s", stored)
            return kept
        logger.info("%s is a fit of other cells or settings; it is made anew", stored)
    role = np.full(cells.n_obs, "other", dtype=object)
    role[rows] = "train"
    # measurements are shared, not copied: they may lie on disk
    shared = AnnData(
        X=cells.X,
        obs=cells.obs.assign(**{_ROLE: role}),
        var=cells.var,
        obsm={name: cells.obsm[name] for name in (keys.IMAGES, keys.MASKS) if name in cells.obsm},
        layers=dict(cells.layers),
        uns={keys.IMAGES: cells.uns[keys.IMAGES]} if keys.IMAGES in cells.uns else {},
    )
    others: dict[str, Any] = {}
    if len(rows) < cells.n_obs:
        others = {"exclude": {**(fit.get("exclude") or {}), _ROLE: ["other"]}}
    checkpoint = None if stored is None else stored.with_name(f"{stored.name}.checkpoint")
    options = {**({} if checkpoint is None else {"checkpoint": checkpoint}), **fit, **others}
    fresh = model.unfitted().fit(shared, rng=seed, **options)
    if stored is not None and checkpoint is not None:
        fresh.report_[_ASKED] = asked
        fresh.save(stored)
        checkpoint.unlink(missing_ok=True)
        logger.info("wrote %s", stored)
    return fresh


def _digest(cells: AnnData, model: VAE, rows: NDArray[np.intp], fit: Mapping[str, Any], seed: int) -> str:
    """Digest of all that decides a fit but the measurements."""
    settings = {name: str(value) for name, value in vars(model.unfitted()).items()}
    text = json.dumps([settings, sorted((name, str(value)) for name, value in fit.items()), seed])
    names = "\n".join(map(str, cells.obs_names[rows]))
    return hashlib.sha256(f"{text}\n{names}".encode()).hexdigest()
