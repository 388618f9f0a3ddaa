"""Fit on some control replicates, calibrate on others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentcell import keys
from latentcell.cells.check import check_measurements, refuse
from latentcell.cells.images import channel_names, measured
from latentcell.errors import InputError
from latentcell.model.module import modality_for
from latentcell.tl.design import rank_within
from latentcell.tl.refit import fit_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.tl.design import Design

logger = logging.getLogger("latentcell")

TRAINING_CELLS = 20_000
"""Control cells that a screen's own fit reads at most: more teach a model little, and their wells calibrate better."""

_FEW = 50


@dataclass(frozen=True)
class Crossfit:
    """A model of controls, and what it may say about which cells.

    Attributes
    ----------
    model
        Fitted.
    seen
        Cells that it was fitted on, ``(n,)``.
    trained, calibrating
        Control replicates that it was fitted on, and those to hold the groups against, ``(n_wells,)``.
    used
        Cells that stand for their replicate, ``(n,)``.
    within
        Whether replicates had to be split, so that the same ones train and calibrate.
    remarks
        What to know about it.
    """

    model: VAE
    seen: NDArray[np.bool_]
    trained: NDArray[np.bool_]
    calibrating: NDArray[np.bool_]
    used: NDArray[np.bool_]
    within: bool
    remarks: list[str]


def crossfit(
    cells: AnnData,
    model: VAE | None,
    design: Design,
    *,
    fit: Mapping[str, Any],
    seed: int,
    rng: np.random.Generator,
) -> Crossfit:
    """Fit a model on some controls, or find what a fitted one has not seen.

    Parameters
    ----------
    model
        Fitted, or settings for the fit; by default those of `default_model`.
    fit
        Options of `latentcell.VAE.fit`.

    Raises
    ------
    InputError
        If measurements of any cell are missing, the model's objective fits no widths of codes, options of a fit come
        with a fitted model, or see `refuse_seen`.
    """
    model = default_model(cells) if model is None else model
    if not model.objective.fits_posterior:
        raise InputError(
            "A screen looks at the width of codes, which this model's objective does not fit. Use another objective, "
            "such as elbo."
        )
    fitted = "schema_" in vars(model)
    _refuse_missing(cells, model, fitted=fitted)
    everything = np.ones(cells.n_obs, dtype=bool)
    if fitted:
        if fit:
            raise InputError("Fit options were given with a model that is fitted already; leave out one of the two.")
        seen = model.seen(cells)
        calibrating, remarks = refuse_seen(seen, design)
        return Crossfit(model, seen, ~calibrating & design.control, calibrating, everything, False, remarks)
    trained, calibrating, within = split_controls(design, rng=rng)
    rows = training_cells(design, trained, within=within, rng=rng)
    fresh = fit_controls(cells, model, rows, fit=fit, seed=seed)
    seen = np.isin(np.arange(cells.n_obs), rows)
    remarks = []
    if not within:
        remarks.append(
            f"{trained.sum()} control replicates trained the model, the other {calibrating.sum()} calibrate; with a "
            "model fitted on other controls all would."
        )
    if "improving" in fresh.report_["verdict"]:
        remarks.append(f"Of the model's training: {fresh.report_['verdict']}")
    used = not_trained(design, rows) if within else everything
    return Crossfit(fresh, seen, trained, calibrating, used, within, remarks)


def default_model(cells: AnnData, n_latent: int | None = None, *, layer: str | None = None) -> VAE:
    """Settings that a screen fits with: 16 latent dimensions, at most half the variables of profiles or counts."""
    from latentcell.model.vae import VAE

    if n_latent is None:
        n_latent = 16 if layer is None and keys.IMAGES in cells.obsm else int(np.clip(cells.n_vars // 2, 1, 16))
    return VAE(n_latent, layer=layer)


def _refuse_missing(cells: AnnData, model: VAE, *, fitted: bool) -> None:
    """Refuse measurements that no cell may have, treated ones included, before anything is trained."""
    kind = model.modality_ if fitted else modality_for(cells, model.layer, model.likelihood)
    array = measured(cells, None if kind == "images" else model.layer)
    if np.dtype(array.dtype).kind in "iub":
        return
    names = channel_names(cells) if kind == "images" else cells.var_names
    refuse(check_measurements(array, kind=kind, cell_names=cells.obs_names, variable_names=names))


def split_controls(design: Design, *, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_], bool]:
    """Split control replicates within blocks: at most half train, fewer where they have cells enough; others calibrate.

    Returns
    -------
    Which replicates train, which calibrate, each ``(n_wells,)``, and whether they had to be the same ones because every
    block has a single control: then cells are split within replicates.
    """
    control, block = design.control, design.block
    train = np.zeros(len(control), dtype=bool)
    per_well = design.wells.loc[control, "n_cells"].mean()
    enough = int(np.ceil(TRAINING_CELLS / len(set(block[control].tolist())) / per_well))
    tested = set(block[~control].tolist())
    for name in dict.fromkeys(block[control].tolist()):
        rows = np.flatnonzero(control & (block == name))
        share = min(enough, len(rows) // 2) if name in tested else len(rows)
        train[rng.permutation(rows)[:share]] = True
    if not train.any():
        return control.copy(), control.copy(), True
    return train, control & ~train, False


def training_cells(
    design: Design, train: NDArray[np.bool_], *, within: bool, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Rows of the cells that train: those of the training replicates, or half of each `within` them, thinned evenly."""
    rows = rng.permutation(np.flatnonzero(train[design.well]))
    if within:
        rows = rows[rank_within(design.well[rows]) < (design.wells["n_cells"].to_numpy()[design.well[rows]] + 1) // 2]
    return np.sort(rows[:TRAINING_CELLS])


def not_trained(design: Design, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which cells stand for their replicate when the cells `rows` trained: the others, or all where there are none."""
    others = np.ones(len(design.well), dtype=bool)
    others[rows] = False
    left = np.bincount(design.well[others], minlength=len(design.wells))
    return np.asarray(others | (left == 0)[design.well])


def fit_controls(cells: AnnData, model: VAE, rows: NDArray[np.intp], *, fit: Mapping[str, Any], seed: int) -> VAE:
    """Fit a new model with the settings of `model` on the cells `rows` of a screen, wherever those are stored."""
    if len(rows) < _FEW:
        logger.warning(
            "only %d control cells train the model: expect little of its latent space. Leave more controls to it, or "
            "give a model fitted elsewhere.",
            len(rows),
        )
    return fit_rows(cells, model, rows, fit=fit, seed=seed)


def refuse_seen(seen: NDArray[np.bool_], design: Design) -> tuple[NDArray[np.bool_], list[str]]:
    """Which control replicates a fitted model has not seen, ``(n_wells,)``, and what to say about the others.

    Parameters
    ----------
    seen
        Cells that the model was fitted on, ``(n,)``.

    Raises
    ------
    InputError
        If it has seen cells of every control, or of a perturbation.
    """
    seen = np.bincount(design.well, weights=seen, minlength=len(design.wells)) > 0
    calibrating = design.control & ~seen
    tested = seen & ~design.control
    if tested.any():
        where = design.wells.loc[tested, "label"].iloc[0]
        raise InputError(
            f"The model was fitted on cells of {tested.sum()} treated replicates (first: {where!r}). A screen asks "
            "what leaves the controls, so its model may know controls only: fit it with these groups excluded, or give "
            "no model and let the screen fit one."
        )
    blocks = design.block
    lost = [name for name in dict.fromkeys(blocks[~design.control].tolist()) if not calibrating[blocks == name].any()]
    if not calibrating.any() or len(lost) == len(set(blocks[~design.control].tolist())):
        raise InputError(
            "The model was fitted on cells of all control replicates. Controls that trained a model look more ordinary "
            "to it than any other cell, so they cannot calibrate it. Give no model, and half of the controls train and "
            "half calibrate, or fit one with some control replicates excluded."
        )
    n_seen = int((design.control & seen).sum())
    remarks = [f"{n_seen} control replicates trained the model and do not calibrate it."] if n_seen else []
    return calibrating, remarks
