"""Which perturbations leave the control distribution, how surely, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell import keys
from latentcell.errors import InputError
from latentcell.model.fit import seed_of
from latentcell.stats.relabelling import N_RELABELLINGS, shift
from latentcell.tl.calibrate import check_design, check_layout, pose_controls
from latentcell.tl.crossfit import Crossfit, crossfit
from latentcell.tl.design import Design, read_design
from latentcell.tl.embed import provenance, write_codes
from latentcell.tl.explain import counterfactual, most_typical, well_variables
from latentcell.tl.hits import hit_table, in_words, reasons_table, verdict
from latentcell.tl.screened import Screened
from latentcell.tl.wells import CENTROID, LATENT, PerCell, Views, describe

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE

logger = logging.getLogger("latentcell")

OUTLYING = 0.05
"""Typicality at which a cell counts as an outlier; as many control cells do."""

MOST_COLUMNS = 64
"""Columns of each view that the table of wells shows; all are tested."""

_NEAREST_CELLS = 3
_MOST_DRAWN, _DRAWN_CELLS = 20, 100  # best groups with a counterfactual, and control cells behind it


def screen(
    cells: AnnData,
    model: VAE | None = None,
    *,
    group: str,
    control: Any,
    replicate: str,
    block: str | None = None,
    dose: str | None = None,
    position: Sequence[str] | None = None,
    covariates: Sequence[str] = (),
    n_relabellings: int = N_RELABELLINGS,
    fit: Mapping[str, Any] | None = None,
    rng: int | np.random.Generator | None = None,
) -> VAE:
    """Say which perturbations leave the control distribution, with p-values whose unit is the replicate.

    A model of control cells places every cell. Per replicate (well, donor, embryo) it gives five views
    (`latentcell.tl.wells.Views`): mean code (``centroid``), its ``spread``, what the model leaves over (``residual``,
    and ``residual_energy`` by variable or octave of detail), and posterior variance (``log_var``). Jointly they are
    tested by exact relabelling within blocks (`latentcell.stats.relabelling`), controls described by as many cells as
    the group has where it has fewer; Benjamini-Hochberg over all that is tested. Cell number has a test of its own.
    Controls that trained the model never calibrate it. Where the design or the layout cannot support p-values, they are
    left out, the reason is given, and groups are ranked only.

    Writes, per cell, what `latentcell.tl.embed` writes, and ``obs["screen_log_var"]`` (mean log posterior variance:
    mapping confidence, the width of the code and no hit score), ``obs["screen_typicality"]`` (two-sided p of the cell's
    ELBO among control cells that calibrate: small for cells less or *more* likely than controls) and
    ``obsm["screen_residual"]`` (mean squared residual in the model's scale; of images on 4 x 4 places per channel, else
    one column), all float32; ``obs["screen_label"]`` (group and dose) and ``obs["screen_role"]`` (trained, calibrated,
    tested), categorical. ``uns["screen"]`` holds DataFrames: ``hits`` (a row per group and dose; see
    `latentcell.tl.hits.hit_table`, and ``outlier_share`` of its cells with a typicality of at most 0.05,
    ``nearest_cells`` to its mean code, ``why``), ``wells`` (design, role and views of each replicate), ``calibration``
    (controls posing as perturbations), ``reasons`` (what moved, with intervals; see `latentcell.tl.hits.reasons_table`,
    and ``counterfactual``, the effect that control cells decoded with the group's shift show); and ``similarity``
    (cosine of the groups' sphered shifts, rows and columns as in ``hits``), ``verdict`` (sentences), ``params``.

    Parameters
    ----------
    cells
        Images, counts or profiles; or a table with one row per replicate.
    model
        A fitted `latentcell.VAE`: controls that it has not seen calibrate. One that is not fitted gives the settings of
        the fit. By default a VAE of 16 dimensions (at most half the variables of profiles).
    group, control
        Column of ``obs`` with the perturbations, and its level for controls.
    replicate
        Column with the unit of replication; names need to be unique within a block only. The same column as `block`
        where each donor or embryo has a control arm of its own.
    block
        Column of what is compared within: plate, batch.
    dose
        Numeric column: every dose is tested by itself, and trends over three or more.
    position
        Columns of row and column on the plate (or one with names such as B07), to check the layout; by default the
        names of the replicates where all are such names and their column is called well.
    covariates
        Columns accounted for by regression within blocks, without labels.
    n_relabellings
        Relabellings drawn where there are more than that; else all are enumerated.
    fit
        Options of `latentcell.VAE.fit`, such as ``{"epochs": 50}``.
    rng
        Seed of everything.

    Returns
    -------
    The model that placed the cells: the one given, or the one fitted.

    Raises
    ------
    InputError
        If the design cannot be read (see `latentcell.tl.design.read_design`), the model has seen all controls or a
        treated replicate, or measurements are missing.
    """
    if n_relabellings < 1:
        raise InputError(f"n_relabellings is {n_relabellings}; at least one relabelling is needed, better 999 or more.")
    seed = seed_of(rng)
    generator = np.random.default_rng([seed, 4])
    design = read_design(
        cells, group=group, control=control, replicate=replicate, block=block, dose=dose, position=position,
        covariates=covariates,
    )  # fmt: skip
    known = crossfit(cells, model, design, fit=fit or {}, seed=seed, rng=generator)
    found = check_design(design, known.calibrating, split_within=known.within)
    found.remarks[:0] = known.remarks
    per_cell, views = describe(cells, known.model, design, known.calibrating, used=known.used, seed=seed)
    check_layout(found, design, views[CENTROID], known.calibrating, rng=generator)
    variables, variable_sd = well_variables(cells, known.model, design, rng=generator)
    screened = Screened(design, views, variables, variable_sd, known.calibrating, found, n_relabellings, seed)
    if not found.reasons:
        pose_controls(screened, rng=generator)
    hits, similar = hit_table(screened)
    reasons = reasons_table(screened)
    reasons["counterfactual"] = _drawn_changes(screened, hits, reasons, cells, known.model, per_cell.mu)
    _write_cells(cells, per_cell, known, design, seed)
    _add_members(hits, cells)
    hits["why"] = in_words(hits, reasons, found)
    sentences = verdict(screened, hits)
    cells.uns[keys.SCREEN] = {
        "hits": hits,
        "wells": _well_table(design, views, known),
        "calibration": found.calibration,
        "reasons": reasons,
        "similarity": similar.to_numpy(),
        "verdict": np.array(sentences, dtype=object),
        "params": {
            "group": group, "control": str(control), "replicate": replicate, "block": block or "", "dose": dose or "",
            "n_relabellings": n_relabellings, "rng": seed, "views": np.array(list(views.everything), dtype=object),
            "rejection_rate": found.rate, "rejection_low": found.low, "rejection_high": found.high,
            "valid": not found.reasons, "model_sha256": known.model.sha256(),
        },
    }  # fmt: skip
    logger.log(logging.WARNING if found.reasons else logging.INFO, "%s", sentences[0])
    logger.info("added %r (adata.uns; tables %s)", keys.SCREEN, "hits, wells, calibration, reasons, similarity")
    return known.model


def _drawn_changes(
    screened: Screened,
    hits: pd.DataFrame,
    reasons: pd.DataFrame,
    cells: AnnData,
    model: VAE,
    codes: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Effect of each row of `reasons` when control cells are decoded with the group's shift; NaN beyond the best."""
    design = screened.design
    labels = [label for label in hits["label"].head(_MOST_DRAWN) if label in set(reasons["label"])]
    controls = np.random.default_rng(screened.seed).permutation(np.flatnonzero(screened.calibrating[design.well]))[
        :_DRAWN_CELLS
    ]
    plans = [design.layout(label, screened.calibrating) for label in labels]
    moves = np.zeros((len(plans), codes.shape[1]))
    for move, plan in zip(moves, plans, strict=True):
        move[screened.views.dimensions] = shift(screened.views[CENTROID], plan)
    drawn = counterfactual(cells, model, codes, np.sort(controls), moves).set_axis(labels) if labels else pd.DataFrame()
    return np.array([
        drawn.loc[label, name] / sd if kind == "variable" and label in drawn.index else np.nan
        for label, kind, name, sd in zip(reasons["label"], reasons["kind"], reasons["name"], reasons["sd"], strict=True)
    ])  # fmt: skip


def typicality(elbo: NDArray[np.float32], reference: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Two-sided conformal p of each cell's ELBO among the reference cells, ``(n,)``.

    Small for cells that the model finds less likely than its controls, and for those it finds more likely: emptier,
    dimmer, smoother ones.
    """
    known = np.sort(elbo[reference])
    below = np.searchsorted(known, elbo, side="right")
    above = len(known) - np.searchsorted(known, elbo, side="left")
    # a reference cell is counted once, as itself; any other has itself to add
    own = np.where(reference, 0, 1)
    share = (np.minimum(below, above) + own) / (len(known) + own)
    return np.minimum(1.0, 2 * share).astype(np.float32)


def _write_cells(cells: AnnData, per_cell: PerCell, known: Crossfit, design: Design, seed: int) -> None:
    elbo = per_cell.log_px - per_cell.kl
    write_codes(cells, per_cell.mu, per_cell.var, {"elbo": elbo, "log_px": per_cell.log_px, "kl": per_cell.kl})
    cells.obs[keys.seen(keys.VAE)] = known.seen
    cells.uns[keys.VAE] = provenance(known.model, seed)
    cells.obs[f"{keys.SCREEN}_log_var"] = np.log(per_cell.var).mean(axis=1)
    cells.obs[f"{keys.SCREEN}_typicality"] = typicality(elbo, known.calibrating[design.well] & known.used)
    cells.obsm[f"{keys.SCREEN}_residual"] = per_cell.residual_energy
    for name, values in (("label", design.wells["label"].to_numpy(object)), ("role", _roles(known))):
        cells.obs[f"{keys.SCREEN}_{name}"] = pd.Categorical(values[design.well])


def _add_members(hits: pd.DataFrame, cells: AnnData) -> None:
    """Add share of outliers and names of typical cells to the table of hits."""
    label = cells.obs[f"{keys.SCREEN}_label"].to_numpy(object)
    outlying = cells.obs[f"{keys.SCREEN}_typicality"].to_numpy() <= OUTLYING
    members = pd.Series(np.arange(cells.n_obs)).groupby(label).apply(np.asarray)
    hits["outlier_share"] = [float(np.mean(outlying[members[each]])) for each in hits["label"]]
    codes = np.asarray(cells.obsm[keys.VAE])
    nearest = [most_typical(codes, members[each], _NEAREST_CELLS) for each in hits["label"]]
    hits["nearest_cells"] = [", ".join(cells.obs_names[rows]) for rows in nearest]


def _roles(known: Crossfit) -> NDArray[np.object_]:
    both = known.trained & known.calibrating
    names = ["trained and compared", "trained", "calibrated"]
    return np.select([both, known.trained, known.calibrating], names, "tested").astype(object)


def _well_table(design: Design, views: Views, known: Crossfit) -> pd.DataFrame:
    """Design, role and views of the replicates; of views with many columns their first 64."""
    columns = {
        f"{name}_{views.dimensions[i] if name in LATENT else i}": values[:, i]
        for name, values in views.everything.items()
        for i in range(min(values.shape[1], MOST_COLUMNS))
    }
    return pd.concat([design.wells.assign(role=_roles(known)), pd.DataFrame(columns)], axis=1)
