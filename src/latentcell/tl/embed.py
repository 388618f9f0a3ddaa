"""Where each cell lies: latent position, its variance and the terms of its evidence lower bound."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell import keys

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE

logger = logging.getLogger("latentcell")


def embed(
    cells: AnnData,
    model: VAE,
    *,
    key_added: str = keys.VAE,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Write the latent position of each cell into `cells`.

    Writes ``obsm[key_added]`` (posterior mean, ``(n, d)`` float32), ``obsm[key_added + "_var"]`` (posterior variance,
    ``(n, d)`` float32: the width of the code, not a hit score; left out where the objective does not fit it),
    ``obs[key_added + "_elbo"]``, ``"_log_px"`` and ``"_kl"`` (float32, nats), ``obs[key_added + "_seen"]`` (whether the
    model was fitted on the cell: what is shown on such cells is optimistic) and ``uns[key_added]`` (parameters,
    versions, seed, hashes of model and variables).

    Parameters
    ----------
    model
        A fitted `VAE`.
    key_added
        Name of the embedding; no ``/``.
    rng
        Seed of the one posterior draw behind the ELBO terms; mean and variance need none.
    copy
        Return an annotated copy instead of writing into `cells`.

    Raises
    ------
    InputError
        If the cells do not match those that the model was fitted on.
    """
    key_added = keys.checked(key_added)
    cells = cells.copy() if copy else cells
    blocks = [(block.mu, block.var, block.log_px, block.kl) for block in model.place(cells, rng=rng)]
    mu, var, log_px, kl = (np.concatenate(part) for part in zip(*blocks, strict=True))
    write_codes(
        cells,
        mu,
        var if model.objective.fits_posterior else None,
        {"elbo": log_px - kl, "log_px": log_px, "kl": kl},
        key_added,
    )
    cells.obs[keys.seen(key_added)] = model.seen(cells)
    cells.uns[key_added] = provenance(model, rng)
    logger.info("added %r (adata.obsm, %d x %d)", key_added, *mu.shape)
    return cells if copy else None


def write_codes(
    cells: AnnData, mu: np.ndarray, var: np.ndarray | None, terms: Mapping[str, np.ndarray], key_added: str = keys.VAE
) -> None:
    """Write codes ``(n, d)`` and ELBO terms ``(n,)`` where `embed` says they are."""
    cells.obsm[key_added] = mu
    if var is not None:
        cells.obsm[keys.variance(key_added)] = var
    else:
        cells.obsm.pop(keys.variance(key_added), None)
    for term, column in keys.elbo_terms(key_added).items():
        cells.obs[column] = terms[term].astype(np.float32)


def provenance(model: VAE, rng: Any) -> dict[str, Any]:
    """What `embed` records of a model: settings, versions, seeds and hashes."""
    report = model.report_
    names = "\n".join(model.names_)
    return {
        "params": {
            "n_latent": model.n_latent,
            "likelihood": report["likelihood"],
            "objective": report["objective"],
            "batch_key": model.batch_key or "",
            "layer": model.layer or "",
            "orientation": model.schema_.orientation,
        },
        "versions": report["versions"],
        "rng": {"fit": report["seed"], "embed": str(rng)},
        "model_sha256": model.sha256(),
        "var_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
    }
