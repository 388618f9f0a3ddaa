"""What the weight of the KL gives and takes in an Integrated Cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.integrated import IntegratedCell


def reconstruction_kl(
    cells: AnnData,
    model: IntegratedCell,
    betas: Sequence[float] = (0.5, 1, 2, 4, 8),
    *,
    fit: Mapping[str, Any] | None = None,
    rng: int | None = 0,
) -> pd.DataFrame:
    """Fit the organisation again for several beta: the reconstruction-KL plane (Donovan-Maiye et al. 2022).

    The model of the shape stays.

    Parameters
    ----------
    model
        A fitted model, whose settings are taken.
    betas
        Weights of the KL.
    fit
        What `IntegratedCell.fit` is to be given, such as ``{"epochs": 30, "exclude": away}``.

    Returns
    -------
    One row per beta: ``beta``, ``log_px`` and ``kl`` of the cells held out for early stopping, nats per cell, their
    difference ``elbo``, and ``n_active`` dimensions.

    Raises
    ------
    InputError
        If a beta is not positive.
    """
    if not betas or min(betas) <= 0:
        raise InputError(f"betas is {list(betas)}; name at least one, all positive.")
    rows = []
    for beta in betas:
        again = model.unfitted(f"beta={beta:g}").fit(cells, shape=model.reference_, rng=rng, **(fit or {}))
        report = again.report_
        rows.append(
            {
                "beta": float(beta),
                "log_px": report["held_out_log_px"],
                "kl": report["held_out_kl"],
                "elbo": report["held_out_elbo"],
                "n_active": report["n_active"],
            }
        )
    return pd.DataFrame(rows)
