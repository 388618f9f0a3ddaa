"""Images of the Allen Institute's human stem cells: membrane, DNA and one tagged structure in each."""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from latentcell.cells.datasets import choosing
from latentcell.cells.datasets.allen_tables import BASE, FOLDER, STAGES, metadata, places, voxel
from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.fetching import MissingFile, Remote, fetch
from latentcell.cells.image_files import image_size, read_image
from latentcell.cells.images import set_images
from latentcell.errors import InputError, listed
from latentcell.progress import progress_bar

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("latentcell")

# name of a channel here and in name_dict of the table
_CHANNELS = {"membrane": "membrane", "DNA": "dna", "structure": "structure"}
_CELL = "membrane_segmentation"
# 7.3 TB of crops for 215,081 cells
_GB_OF_CELL = 0.035


def allen_cells(
    structures: str | Sequence[str] | None = None,
    stages: str | Sequence[str] | None = None,
    *,
    n: int = 10,
    view: Literal["max", "volume"] = "max",
    channels: Sequence[str] = ("membrane", "DNA", "structure"),
    size: int | Sequence[int] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    """Human stem cells with membrane, DNA and one of 25 structures, by structure and stage (Viana 2023).

    Each cell is a crop of its own in the public bucket ``allencell``, read by plain HTTPS without an account. The
    table of cells is 1.7 GB, a cell about 35 MB; files stay in the cache, so that a run that was stopped goes on with
    the cell it had reached. The bucket publishes no checksums. Outliers named by the authors are left out.

    Parameters
    ----------
    structures
        Genes of the tagged structures, such as ``TOMM20`` (mitochondria) or ``LMNB1`` (nuclear envelope); all by
        default.
    stages
        ``M0`` (interphase), ``M1M2`` (prophase), ``M3`` (early prometaphase), ``M4M5`` (prometaphase and metaphase),
        ``M6M7_complete``, ``M6M7_single`` (anaphase and telophase, both daughters or one); all by default.
    n
        Cells of each structure and stage at most, drawn at random.
    view
        ``"max"`` for the brightest value along z, ``"volume"`` for stacks.
    channels
        Which and in which order; ``structure`` shows what ``obs["structure"]`` names.
    size
        Pixels along every axis, or one number per axis; by default 128 for ``"max"`` and 64 for ``"volume"``. Voxels
        are averaged by one whole factor for all cells, the smallest by which the largest fits, so that sizes compare.

    Returns
    -------
    AnnData
        ``obsm["images"]`` ``(n, C, H, W)`` or ``(n, C, Z, H, W)`` uint16, ``obsm["masks"]`` uint8 (the segmented
        cell). ``obs``, named by CellId: ``structure``, ``stage``, ``field`` (cells of one field share an image: use it
        as ``split_key``), ``um_per_pixel``, and where the table has them ``plate``, ``well``, ``edge`` (of the colony).

    Raises
    ------
    InputError
        If a structure or stage does not exist, a file cannot be fetched (the message names the cell), or a crop does
        not have the channels that the table names.
    """
    from anndata import AnnData

    lengths = _lengths(view, size)
    wrong = [channel for channel in channels if channel not in _CHANNELS]
    if wrong or not channels:
        raise InputError(f"There is no channel {listed(wrong)}; there are {listed(_CHANNELS)}.")
    table = _chosen(structures, stages, n, rng)
    files = _downloaded(table)
    extents = [image_size(raw)[0][-len(lengths) :] for raw, _ in files]
    factor = choosing.averaging_factor(np.max(extents, axis=0), lengths)
    images = np.zeros((len(files), len(channels), *lengths), np.uint16)
    masks = np.zeros((len(files), *lengths), np.uint8)
    for row, (raw, segmented) in enumerate(files):
        names = _channel_order(table.iloc[row])
        pixels = _stack(raw, names["crop_raw"], [_CHANNELS[channel] for channel in channels])
        inside = _stack(segmented, names["crop_seg"], [_CELL])[0] > 0
        if view == "max":
            pixels, inside = pixels.max(axis=1), inside.max(axis=0)
        images[row] = np.rint(choosing.averaged(pixels, lengths, factor))
        masks[row] = choosing.averaged(inside, lengths, factor) >= 0.5
    cells = AnnData(obs=_described(table, factor))
    set_images(cells, images, channel_names=list(channels), masks=masks)
    return labelled(cells, "allen_cells")


def _lengths(view: str, size: int | Sequence[int] | None) -> tuple[int, ...]:
    if view not in ("max", "volume"):
        raise InputError(f"view={view!r} is neither 'max' nor 'volume'.")
    axes = 2 if view == "max" else 3
    size = size if size is not None else (128 if view == "max" else 64)
    lengths = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(lengths) != axes or min(lengths) < 1:
        raise InputError(f"size={size} does not fit view={view!r}: one number, or {axes} (the last two are y and x).")
    return lengths


def _chosen(
    structures: str | Sequence[str] | None,
    stages: str | Sequence[str] | None,
    n: int,
    rng: int | np.random.Generator | None,
) -> pd.DataFrame:
    """Rows of the table of cells: `n` of each structure and stage asked for."""
    table = metadata()
    by_structure = choosing.named(structures, sorted(table["structure_name"].astype(str).unique()), "structure")
    by_stage = choosing.named(stages, STAGES, "stage")
    table = table[table["structure_name"].isin(by_structure) & table["cell_stage"].isin(by_stage)]
    if not len(table):
        raise InputError(f"No cell shows {listed(by_structure)} at the stages {listed(by_stage)}.")
    table = table.sort_values("CellId").reset_index(drop=True)
    return table.iloc[choosing.drawn(table[["structure_name", "cell_stage"]], n, rng)].reset_index(drop=True)


def _downloaded(table: pd.DataFrame) -> list[tuple[Path, Path]]:
    """Crop and segmentation of every cell, fetched where they are not there yet."""
    files = []
    logger.info("%d cells, about %.1f GB where they are not in the cache yet", len(table), len(table) * _GB_OF_CELL)
    with progress_bar("allen_cells", len(table)) as update:
        for done, (_, cell) in enumerate(table.iterrows()):
            try:
                crops = [
                    fetch(Remote(FOLDER, str(cell[kind]), f"{BASE}/{cell[kind]}"), quiet=True)
                    for kind in ("crop_raw", "crop_seg")
                ]
            except MissingFile as error:
                raise MissingFile(
                    f"Cell {cell['CellId']} ({cell['structure_name']}, {cell['cell_stage']}): {error}"
                ) from error
            files.append((crops[0], crops[1]))
            update(done + 1, f"cells, last {cell['CellId']}")
    return files


def _channel_order(cell: pd.Series) -> dict[str, list[str]]:
    """Names of the channels of both crops, from ``name_dict`` of the table."""
    try:
        named = ast.literal_eval(str(cell["name_dict"]))
        return {kind: [str(name) for name in named[kind]] for kind in ("crop_raw", "crop_seg")}
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise InputError(f"name_dict of cell {cell['CellId']} does not name the channels of its crops.") from error


def _stack(path: Path, names: list[str], wanted: list[str]) -> np.ndarray:
    """Channels of an OME-TIFF by name, ``(C, Z, Y, X)``."""
    pixels = read_image(path).pixels
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    absent = [name for name in wanted if name not in names]
    if absent or len(pixels) != len(names):
        raise InputError(
            f"{path} has {len(pixels)} channels; the table names {listed(names)}, wanted {listed(wanted)}."
        )
    return pixels[[names.index(name) for name in wanted]]


def _described(table: pd.DataFrame, factor: int) -> pd.DataFrame:
    obs = pd.DataFrame(
        {
            "structure": pd.Categorical(table["structure_name"].astype(str)),
            "stage": choosing.stages(table["cell_stage"], STAGES),
            "um_per_pixel": table["scale_micron"].map(voxel).to_numpy() * factor,
        }
    ).set_axis(table["CellId"].astype(str).to_numpy())
    obs = obs.assign(**places(table))
    if "edge_flag" in table:
        obs["edge"] = np.where(table["edge_flag"] == 1, "yes", "no")
    return obs
