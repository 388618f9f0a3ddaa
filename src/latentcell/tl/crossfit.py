"""Fit on some control replicates, calibrate on others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from latentcell import keys
from latentcell.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from latentcell.model.vae import VAE
    from latentcell.tl.design import Design

logger = logging.getLogger("latentcell")

TRAINING_CELLS = 20_000
"""Control cells that a screen's own fit reads at most: more teach a model little, and their wells calibrate better."""

_ROLE = "_screen_role"
_FEW = 50


def split_controls(design: Design, *, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_], bool]:
    """Split control replicates within blocks: at most half train, fewer where they have cells enough; others calibrate.

    Returns
    -------
    Which replicates train, which calibrate, each ``(n_wells,)``, and whether they had to be the same ones because a
    block has a single control: then cells are split within replicates.
    """
    control, block = design.control, design.block
    train = np.zeros(len(control), dtype=bool)
    per_well = design.wells.loc[control, "n_cells"].mean()
    enough = int(np.ceil(TRAINING_CELLS / len(set(block[control].tolist())) / per_well))
    tested = set(block[~control].tolist())
    for name in dict.fromkeys(block[control].tolist()):
        rows = np.flatnonzero(control & (block == name))
        if name in tested and len(rows) == 1:
            return control.copy(), control.copy(), True
        share = min(enough, len(rows) // 2) if name in tested else len(rows)
        train[rng.permutation(rows)[:share]] = True
    return train, control & ~train, False


def training_cells(
    design: Design, train: NDArray[np.bool_], *, within: bool, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Rows of the cells that train: those of the training replicates, or half of each `within` them, thinned evenly."""
    rows = rng.permutation(np.flatnonzero(train[design.well]))
    if within:
        rank = pd.Series(rows).groupby(design.well[rows]).cumcount().to_numpy()
        rows = rows[rank < (design.wells["n_cells"].to_numpy()[design.well[rows]] + 1) // 2]
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
    return model.unfitted().fit(shared, exclude={_ROLE: ["other"]}, rng=seed, **fit)


def refuse_seen(cells: AnnData, model: VAE, design: Design) -> tuple[NDArray[np.bool_], list[str]]:
    """Which control replicates a fitted model has not seen, ``(n_wells,)``, and what to say about the others.

    Raises
    ------
    InputError
        If it has seen cells of every control, or of a perturbation.
    """
    seen = np.bincount(design.well, weights=model.seen(cells), minlength=len(design.wells)) > 0
    calibrating = design.control & ~seen
    tested = seen & ~design.control
    if tested.any():
        where = design.wells.loc[tested, "label"].iloc[0]
        raise InputError(
            f"The model was fitted on cells of {tested.sum()} treated replicates, such as {where!r}. A screen asks "
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
