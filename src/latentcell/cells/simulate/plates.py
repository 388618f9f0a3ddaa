"""Perturbation screens on plates with known effects, known nulls and known position effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse as sp

from latentcell.cells.images import Modality
from latentcell.cells.simulate.expression import negative_binomial, softmax
from latentcell.cells.simulate.factors import SCORED, SIZE, draw, to_scores
from latentcell.cells.simulate.imaging import check_number, imaged, seed_of
from latentcell.errors import InputError

CONTROL = "control"
# kind -> (factor, direction): the factor moves by `strength` standard deviations of cells
SHIFTS = {
    "bigger": ("size", 1.0),
    "smaller": ("size", -1.0),
    "elongated": ("elongation", 1.0),
    "brighter": ("intensity", 1.0),
    "dimmer": ("intensity", -1.0),
    "rougher": ("texture", 1.0),
    "smoother": ("texture", -1.0),
    "more_puncta": ("n_puncta", 1.0),
    "fewer_puncta": ("n_puncta", -1.0),
}
KINDS = (*SHIFTS, "mitotic_arrest", "fewer_cells")
_PLATE_FORMATS = ((4, 6), (8, 12), (16, 24), (32, 48))
_N_FEATURES = 30
_N_GENES = 200


@dataclass(frozen=True)
class _Design:
    """What a screen looks like before any cell is measured; noise is in standard deviations of cells."""

    n_plates: int
    n_control_wells: int
    n_perturbations: int
    cells_per_well: int
    strengths: tuple[float, ...]
    position_effect: float
    well_noise: float
    layout: str


def screen(
    *,
    modality: Modality = "images",
    n_plates: int = 3,
    n_control_wells: int = 16,
    n_perturbations: int = 10,
    cells_per_well: int = 50,
    strengths: Sequence[float] = (1.0, 2.0),
    position_effect: float = 0.3,
    well_noise: float = 0.2,
    layout: Literal["random", "contiguous"] = "random",
    size: int = SIZE,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Simulate a perturbation screen whose hits, nulls and nuisances are known.

    Every plate holds `n_control_wells` control wells and one well of every perturbation, on the smallest standard
    plate (24 to 1,536 wells). In standard scores of the factors, a cell is its own standard normal draw + well noise +
    plate shift (twice the SD of wells) + position effect + perturbation. The last third of the perturbations has no
    effect at all; the others run through `KINDS` (16 perturbations show each once), changing strength from one to the
    next. A shift kind moves its
    factor by `strength` SD of cells. ``mitotic_arrest`` holds a fraction ``1 - exp(-0.35 strength)`` of the cells
    between prometaphase and metaphase; ``fewer_cells`` leaves a fraction ``exp(-0.5 strength)`` of them and changes
    nothing else. Cell numbers per well are Poisson, at least 1.

    Parameters
    ----------
    modality
        ``"images"``: rendered; ``"profiles"``: 30 features, linear in the scores with Gaussian noise of SD 0.5;
        ``"counts"``: 200 genes, log-linear in the scores, negative binomial.
    cells_per_well
        Expected number of cells.
    strengths
        Strengths that the perturbations with an effect take in turn, ``>= 0``; 0 makes a null.
    position_effect
        Difference, in SD of cells, between edge and inner wells, and between the first and the last column, each along
        a random direction of the factors shared by all plates; 0 for none.
    well_noise
        SD of wells, in SD of cells, on every factor; 0 for neither well noise nor plate shifts.
    layout
        ``"random"``: wells drawn anew on every plate. ``"contiguous"``: controls in the first columns, then the
        perturbations in order, the same on every plate, so that position and perturbation are confounded.
    size
        Height and width of the crops in pixels.

    Returns
    -------
    AnnData. ``obs``: ``plate``, ``well`` (as A01; unique within a plate), ``row``, ``column`` (from 1),
    ``perturbation`` (``"control"`` for controls), ``kind`` (``"control"``, ``"null"`` or one of `KINDS`),
    ``strength``, ``is_null`` (no effect; True for controls) and the true factors. Images as from `images`; profiles and
    counts in ``X`` with ``varm["loadings"]``, a DataFrame of the effect of every factor score on every variable.
    ``uns["simulation"]`` also holds the table ``perturbations`` and the directions of the position effects.

    Raises
    ------
    InputError
        If a number is out of range, or the wells do not fit on a plate.
    """
    design = _Design(
        n_plates, n_control_wells, n_perturbations, cells_per_well, tuple(map(float, np.ravel(strengths))),
        position_effect, well_noise, layout,
    )  # fmt: skip
    _check(design, modality)
    seed = seed_of(rng)
    generator = np.random.default_rng(seed)
    wells = _wells(design, generator)
    directions = {name: _direction(generator) for name in ("edge", "gradient")}
    obs = _cells(wells, design, directions, size, generator)
    optical = modality == "images"
    cells = imaged(obs, size=size, rng=generator) if optical else _read_out(obs, modality, size, generator)
    table = wells.drop_duplicates("perturbation")[["perturbation", "kind", "strength", "is_null"]]
    cells.uns["simulation"] = {
        "function": "screen", "seed": seed, "modality": modality, "size": size,
        **{name: np.asarray(value) if isinstance(value, tuple) else value for name, value in asdict(design).items()},
        "perturbations": table.set_index("perturbation").astype({"kind": object}),
        "factors": np.array(list(SCORED), dtype=object),
        **{f"{name}_direction": direction for name, direction in directions.items()},
    }  # fmt: skip
    return cells


def _wells(design: _Design, rng: np.random.Generator) -> pd.DataFrame:
    """One row per well: plate, place, perturbation, and the centre of its cells along every factor score."""
    n_null = design.n_perturbations // 3
    width = max(2, len(str(design.n_perturbations)))
    contents: list[dict[str, Any]] = [{"perturbation": CONTROL, "kind": CONTROL, "strength": 0.0}]
    contents *= design.n_control_wells
    for i in range(design.n_perturbations):
        # every round through the kinds starts one strength later, so that a kind that returns is of another strength
        turn, k = divmod(i, len(KINDS))
        strength = design.strengths[(k + turn) % len(design.strengths)]
        active = i < design.n_perturbations - n_null and strength > 0
        kind, strength = (KINDS[k], strength) if active else ("null", 0.0)
        contents.append({"perturbation": f"compound_{i + 1:0{width}d}", "kind": kind, "strength": strength})
    rows, columns = _plate_format(len(contents))
    plates = []
    for p in range(design.n_plates):
        plate = pd.DataFrame(contents)
        places = rng.permutation(rows * columns) if design.layout == "random" else np.arange(rows * columns)
        column, row = np.divmod(places[: len(plate)], rows)
        plate["plate"], plate["row"], plate["column"] = f"plate_{p + 1}", row + 1, column + 1
        plate["edge"] = np.isin(row, (0, rows - 1)) | np.isin(column, (0, columns - 1))
        plate["across"] = column / (columns - 1) - 0.5
        plates.append(plate)
    wells = pd.concat(plates, ignore_index=True)
    wells["well"] = [f"{_row_name(r)}{c:02d}" for r, c in zip(wells["row"], wells["column"], strict=True)]
    wells["is_null"] = wells["strength"] == 0
    return wells


def _cells(
    wells: pd.DataFrame, design: _Design, directions: dict[str, np.ndarray], size: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Draw the cells of every well: annotation and true factors, one row per cell."""
    plate = pd.factorize(wells["plate"])[0]
    centre = 2 * design.well_noise * rng.standard_normal((design.n_plates, len(SCORED)))[plate]
    centre += design.well_noise * rng.standard_normal(centre.shape)
    places = {"edge": wells["edge"].to_numpy(float), "gradient": wells["across"].to_numpy()}
    for name, direction in directions.items():
        centre += design.position_effect * np.outer(places[name], direction)
    factors = list(SCORED)
    for i, (kind, strength) in enumerate(zip(wells["kind"], wells["strength"], strict=True)):
        if kind in SHIFTS:
            factor, sign = SHIFTS[kind]
            centre[i, factors.index(factor)] += sign * strength
    expected = design.cells_per_well * np.exp(-0.5 * wells["strength"] * (wells["kind"] == "fewer_cells"))
    well = np.repeat(np.arange(len(wells)), np.maximum(1, rng.poisson(expected)))
    scores = centre[well] + rng.standard_normal((len(well), len(factors)))
    drawn = draw(dict(zip(factors, scores.T, strict=True)), size=size, rng=rng)
    annotation = wells.iloc[well].reset_index(drop=True).drop(columns=["edge", "across"])
    obs = annotation.astype({"plate": "category", "well": "category", "perturbation": "category", "kind": "category"})
    return _arrest(pd.concat([obs, drawn], axis=1), rng)


def _arrest(obs: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Move a fraction of the cells in wells with a mitotic arrest to prometaphase and metaphase."""
    fraction = np.where(obs["kind"] == "mitotic_arrest", -np.expm1(-0.35 * obs["strength"]), 0.0)
    arrested = rng.uniform(size=len(obs)) < fraction
    phase = np.where(arrested, rng.uniform(0.955, 0.975, len(obs)), obs["phase"])
    return obs.assign(phase=phase, cell_cycle=obs["cell_cycle"].where(~arrested, "M"))


def _read_out(obs: pd.DataFrame, modality: Modality, size: int, rng: np.random.Generator) -> AnnData:
    """Measure cells through known loadings of their scores: Gaussian profiles or negative-binomial counts."""
    scores = to_scores(obs, size=size)
    n_variables, name = (_N_FEATURES, "feature") if modality == "profiles" else (_N_GENES, "gene")
    variables = pd.Index([f"{name}_{g + 1:04d}" for g in range(n_variables)])
    loadings = rng.normal(0, 0.5, (n_variables, scores.shape[1])) * (rng.uniform(size=(n_variables, 1)) < 0.8)
    cells = AnnData(obs=obs.set_axis([f"cell_{i}" for i in range(len(obs))]), var=pd.DataFrame(index=variables))
    signal = scores.to_numpy() @ loadings.T
    if modality == "profiles":
        cells.X = np.asarray(signal + 0.5 * rng.standard_normal(signal.shape), np.float32)
    else:
        loadings, signal = 0.5 * loadings, 0.5 * signal
        cells.var["log_baseline"] = rng.normal(0, 1, n_variables)
        mean = 4000 * softmax(cells.var["log_baseline"].to_numpy() + signal)
        cells.X = sp.csr_matrix(negative_binomial(mean, 0.2, rng))
    cells.varm["loadings"] = pd.DataFrame(loadings, variables, list(scores))
    return cells


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(len(SCORED))
    return np.asarray(vector / np.linalg.norm(vector))


def _plate_format(n_wells: int) -> tuple[int, int]:
    for rows, columns in _PLATE_FORMATS:
        if n_wells <= rows * columns:
            return rows, columns
    raise InputError(f"{n_wells} wells per plate do not fit: the largest plate has 1,536; use fewer perturbations.")


def _row_name(row: int) -> str:
    """Plate row from 1 as letters: A to Z, then AA."""
    return chr(64 + row) if row <= 26 else "A" + chr(64 + row - 26)


def _check(design: _Design, modality: str) -> None:
    if modality not in ("images", "profiles", "counts"):
        raise InputError(f"modality={modality!r} must be 'images', 'profiles' or 'counts'.")
    for name in ("n_plates", "n_control_wells", "n_perturbations", "cells_per_well"):
        check_number(name, getattr(design, name))
    if not design.strengths or not all(np.isfinite(s) and 0 <= s <= 5 for s in design.strengths):
        raise InputError(f"strengths={design.strengths} must be one or more numbers from 0 to 5, in SD of cells.")
    for name in ("position_effect", "well_noise"):
        value = getattr(design, name)
        if not (np.isfinite(value) and 0 <= value <= 5):
            raise InputError(f"{name}={value} must be a number from 0 to 5, in SD of cells.")
    if design.layout not in ("random", "contiguous"):
        raise InputError(f"layout={design.layout!r} must be 'random' or 'contiguous'.")
