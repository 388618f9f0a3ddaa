"""Tables of the Allen Institute's human stem cells: what was imaged where, and what was measured of each cell."""

from __future__ import annotations

import ast
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from latentcell.atomic import replacing
from latentcell.cells.datasets import choosing
from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.fetching import Remote, fetch
from latentcell.cells.tables import profiles, read_table
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("latentcell")

STAGES = ("M0", "M1M2", "M3", "M4M5", "M6M7_complete", "M6M7_single")
"""Interphase, prophase, early prometaphase, prometaphase or metaphase, anaphase or telophase (two daughters or one)."""

BASE = "https://allencell.s3.amazonaws.com/aics/hipsc_single_cell_image_dataset"
# folder in the cache that images and table share
FOLDER = "allen_cells"
# quilt keeps checksums of single files in its manifests only; none is pinned
_METADATA = Remote(FOLDER, "metadata.csv", f"{BASE}/metadata.csv")
_IMAGED = ("CellId", "structure_name", "cell_stage", "crop_raw", "crop_seg", "name_dict", "scale_micron")
_NOTED = ("FOVId", "PlateId", "WellId", "edge_flag", "outlier", "this_cell_nbr_complete")
# measured feature: power of a voxel's side in its unit
_MEASURED = {
    "MEM_position_depth": 1, "MEM_shape_volume": 3, "MEM_roundness_surface_area": 2,
    "NUC_position_depth": 1, "NUC_shape_volume": 3, "NUC_roundness_surface_area": 2,
    "STR_shape_volume": 3, "STR_connectivity_cc": 0,
}  # fmt: skip
# rows of the large table read at once: it has hundreds of columns
_BLOCK = 20_000

_GITHUB = "https://raw.githubusercontent.com/allen-cell-animated/cell-feature-data"
# the commit in each address fixes the content
_SUBSETS = {
    "i1m1": Remote(
        "allen_features",
        "i1m1.zip",
        f"{_GITHUB}/4f254345a9d421cf7f09915b7a77c0eff7552939/dataset-variance-resub-2022/i1m1/cell_feature_analysis.zip",
    ),
    "i2m2": Remote(
        "allen_features",
        "i2m2.zip",
        f"{_GITHUB}/bf428435bb2a2a36d152beef5f601787fe290e10/dataset-variance-resub-2022-i2m2/main/"
        "cell_feature_analysis.zip",
    ),
    "edges": Remote(
        "allen_features",
        "edges.zip",
        f"{_GITHUB}/f0f7d80ca4da2fefc3ff42b52113edaf331da4c0/dataset-variance-resub-2022-edges/main/"
        "cell_feature_analysis.zip",
    ),
}
# order of the values of a cell, as dataset.json of each subset lists it
_VALUES = (
    "cell-height", "cell-volume", "cell-surface-area", "dna-height", "dna-volume", "dna-surface-area",
    "intracellular-structure-volume", "anaphase-segmentation-complete", "interphase-or-mitosis",
    "interphase-and-mitotic-stages", "shape-mode-1", "shape-mode-2", "shape-mode-3", "shape-mode-4", "shape-mode-5",
    "shape-mode-6", "shape-mode-7", "shape-mode-8", "angle", "type", "neigh", "lda", "cell-line",
)  # fmt: skip
_NOT_MEASURED = (
    "anaphase-segmentation-complete", "interphase-or-mitosis", "interphase-and-mitotic-stages", "angle", "type",
    "neigh", "lda", "cell-line",
)  # fmt: skip
_STAGE_CODES = dict(
    enumerate(("interphase", "prophase", "early prometaphase", "prometaphase/metaphase", "anaphase/telophase"))
)
_CLASSES = {
    "i1m1": ("interphase", "prophase"),
    "i2m2": ("interphase", "early prometaphase"),
    "edges": ("non-edge", "edge"),
}


def allen_features(
    subset: Literal["i1m1", "i2m2", "edges", "all"] = "i1m1", *, structures: str | Sequence[str] | None = None
) -> AnnData:
    """Measured shape of human stem cells and their nuclei (Viana 2023), as profiles.

    Parameters
    ----------
    subset
        ``"i1m1"``: 4,170 interphase and prophase cells matched in shape; ``"i2m2"``: 1,860 interphase and early
        prometaphase cells; ``"edges"``: 9,647 cells inside and at the edge of colonies (a few MB each, from GitHub);
        ``"all"``: 215,081 cells from the table of `allen_cells` (1.7 GB). No checksums are published.
    structures
        Which tagged structures to take: cell lines such as ``AICS-11`` in the subsets, genes such as ``TOMM20`` in
        ``"all"``; all by default.

    Returns
    -------
    AnnData
        Heights, areas and volumes in micrometres and, in the subsets, eight shape modes in ``X`` (float32). A feature
        that is missing for some cells is set aside into ``obs``, with a note. ``obs`` of the subsets: ``stage``,
        ``class`` (what the subset contrasts), ``line``, ``structure_number``, ``field``, ``neighbour`` (the matched
        cell), ``lda``, ``angle``; of ``"all"``: ``structure``, ``stage``, ``field``, ``plate``, ``well``.

    Raises
    ------
    InputError
        If a file cannot be fetched or is of another kind, or a structure does not exist.
    """
    if subset != "all" and subset not in _SUBSETS:
        raise InputError(f"There is no subset {subset!r}; there are {listed([*_SUBSETS, 'all'])}.")
    table, key = (_all_features(), "structure") if subset == "all" else (_subset(subset), "line")
    table = table[table[key].isin(choosing.named(structures, sorted(table[key].unique()), "structure"))]
    columns = [str(column) for column in table]
    notes = [column for column in columns if table[column].dtype.kind not in "iuf" or column in ("angle", "lda")]
    incomplete = [column for column in columns if column not in notes and table[column].isna().any()]
    if incomplete:
        logger.warning("missing for some cells, and set aside into obs: %s", listed(incomplete, len(incomplete)))
    cells = profiles(table.reset_index(drop=True), obs_columns=[*notes, *incomplete], name_column="cell_id")
    cells.obs = cells.obs.drop(columns="cell_id")
    return labelled(cells, "allen_features")


def metadata() -> pd.DataFrame:
    """One row per imaged cell: where its crops lie, structure, stage, voxel, measured features; outliers left out.

    The table of the data set has hundreds of columns, 1.7 GB; those used here are kept beside it and read from there.

    Raises
    ------
    InputError
        If the table cannot be fetched or lacks a column.
    """
    whole = fetch(_METADATA)
    short = whole.with_name("metadata_short.csv")
    if not short.exists() or short.stat().st_mtime < whole.stat().st_mtime:
        _shorten(whole, short)
    table = read_table(short)
    if "outlier" in table:
        table = table[table["outlier"].astype(str) != "Yes"]
    return table.reset_index(drop=True)


def places(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Field, plate and well of each cell, those that the table has."""
    columns = {"field": "FOVId", "plate": "PlateId", "well": "WellId"}
    return {name: _as_text(table[column]) for name, column in columns.items() if column in table}


def _as_text(identifiers: pd.Series) -> np.ndarray:
    """Identifiers as text; numbers that became decimals beside missing ones are whole again, missing ones empty."""
    return np.array(["" if pd.isna(value) else str(value).removesuffix(".0") for value in identifiers], dtype=object)


def voxel(text: object) -> float:
    """Side of a voxel in micrometres from ``[0.108333, 0.108333, 0.108333]``.

    Raises
    ------
    InputError
        If the voxel is not given or not a cube, as all crops of the data set are.
    """
    try:
        sides = [float(side) for side in ast.literal_eval(str(text))]
    except (ValueError, SyntaxError, TypeError):
        sides = []
    if not sides or not np.allclose(sides, sides[0]):
        raise InputError(f"scale_micron of a cell is {text!r}; expected the three equal sides of a voxel.")
    return sides[0]


def _shorten(whole: Path, short: Path) -> None:
    kept = {*_IMAGED, *_NOTED, *_MEASURED}
    try:
        header = list(pd.read_csv(whole, nrows=0).columns)
        absent = [column for column in _IMAGED if column not in header]
        if absent:
            raise InputError(
                f"{whole} has no column {listed(absent)}: it is not the table of the data set, or was not downloaded "
                "completely. Delete it and run again."
            )
        used = [column for column in header if column in kept]
        logger.info("reading the large table of cells once, for about a minute")
        with replacing(short) as unfinished:
            blocks = pd.read_csv(whole, usecols=used, chunksize=_BLOCK, dtype=str, keep_default_na=False)
            for number, block in enumerate(blocks):
                block[used].to_csv(unfinished, mode="a", index=False, header=number == 0)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{whole} cannot be read: {error}. Delete it and run again.") from error


def _all_features() -> pd.DataFrame:
    table = metadata()
    absent = [column for column in _MEASURED if column not in table]
    if absent:
        raise InputError(f"The table of cells has no column {listed(absent)}.")
    sides = table["scale_micron"].map(voxel).to_numpy()
    found = pd.DataFrame({"cell_id": table["CellId"].astype(str)})
    for feature, power in _MEASURED.items():
        # measured in voxels
        found[feature] = pd.to_numeric(table[feature], errors="coerce") * sides**power
    found["structure"] = table["structure_name"].astype(str)
    found["stage"] = choosing.stages(table["cell_stage"], STAGES)
    return found.assign(**places(table))


def _subset(name: str) -> pd.DataFrame:
    """Cells of a subset: its JSON lists for each ``file_info`` (identifiers) and ``features`` (values in order)."""
    path = fetch(_SUBSETS[name])
    try:
        with zipfile.ZipFile(path) as archive:
            entries = json.loads(archive.read(choosing.member(archive, "cell_feature_analysis.json")))
        identifiers = [entry["file_info"][:3] for entry in entries]
        values = [entry["features"] for entry in entries]
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not the archive of features: {error}. Delete it and run again.") from error
    if not values or {len(row) for row in values} != {len(_VALUES)}:
        raise InputError(f"{path} lists other features than the {len(_VALUES)} expected: {listed(_VALUES)}.")
    numbers = pd.DataFrame(values, columns=list(_VALUES)).apply(pd.to_numeric, errors="coerce").astype(float)
    known = pd.DataFrame([[str(part) for part in row] for row in identifiers], columns=["cell_id", "field", "line"])
    table = pd.concat([known, numbers.drop(columns=list(_NOT_MEASURED)), numbers[["angle", "lda"]]], axis=1)
    codes = numbers["interphase-and-mitotic-stages"].map(_STAGE_CODES).fillna("not determined")
    table["stage"] = choosing.stages(codes, [*_STAGE_CODES.values(), "not determined"])
    table["class"] = numbers["type"].map(dict(enumerate(_CLASSES[name])))
    table["neighbour"] = ["" if number < 0 else f"{number:.0f}" for number in numbers["neigh"]]
    table["structure_number"] = [f"{number:.0f}" for number in numbers["cell-line"]]
    return table
