"""A biologist's files to AnnData: one function that looks at what the path is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from latentcell.cells.crops import read_crops, read_fields
from latentcell.cells.folders import list_crops
from latentcell.cells.stores import is_zarr, read_array, read_store
from latentcell.cells.tables import TABLE_SUFFIXES, profiles, read_table
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_SUPPORTED = (
    ".h5ad; a .zarr store; a folder of .tif, .tiff or .png images with a table; .npy or .npz arrays of crops; tables "
    + ", ".join(TABLE_SUFFIXES)
)


def read(
    path: str | Path,
    table: str | Path | pd.DataFrame | None = None,
    *,
    obs_columns: Sequence[str] | None = None,
    name_column: str | None = None,
    channel_names: Sequence[str] | None = None,
    crop_size: int | None = None,
) -> AnnData:
    """Read cells from a file or folder.

    ============================  ====================================================================================
    ``.h5ad``, ``.zarr``          as stored; images above 1 GB stay on disk and are read when needed
    folder of images              one crop per file, or whole fields with label masks, described by a table
    ``.npy``, ``.npz``            one array of crops; npy is memory-mapped
    ``.csv``, ``.tsv``, ``.txt``  profiles: ``Metadata_*``, text and `obs_columns` annotate, other columns are ``X``;
    (also ``.gz``), ``.parquet``  missing values stay NaN
    ============================  ====================================================================================

    Parameters
    ----------
    path
        File or folder.
    table
        Table that describes crops, one row per image file (folder) or per crop in order (array). By default the only
        table in the folder.
    obs_columns
        Numeric columns of a profile table that annotate rather than measure, such as identifiers or doses.
    name_column
        Column that names the cells; by default a unique column ``cell``, ``cell_id`` or ``name``, else file names.
    channel_names
        Names of image channels; by default those in the files.
    crop_size
        Crop size in pixels for whole fields; by default the smallest multiple of 16 that holds 99 % of the cells.

    Returns
    -------
    AnnData
        Images in ``obsm["images"]`` ``(n, C, H, W)`` or ``(n, C, Z, H, W)`` with ``uns["images"]["channel_names"]``
        and, for fields, ``obsm["masks"]``; counts or profiles in ``X``; annotations in ``obs``.

    Raises
    ------
    InputError
        If the path does not exist, is damaged or of an unsupported kind, or the table and the images do not fit.

    Examples
    --------
    >>> import latentcell as lc
    >>> cells = lc.read("wells.csv.gz", obs_columns=["dose"])  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"There is no file or folder {path} (looked in {path.absolute().parent}).")
    name = path.name.lower()
    options: dict[str, Any] = {
        "table": table,
        "obs_columns": obs_columns,
        "name_column": name_column,
        "channel_names": channel_names,
        "crop_size": crop_size,
    }
    if name.endswith(".h5ad") or (path.is_dir() and (is_zarr(path) or name.endswith(".zarr"))):
        _refuse_unused(path, options, used=())
        return read_store(path)
    if path.is_dir():
        crops = list_crops(path, as_table(table, path))
        if crops.labels is not None:
            _refuse_unused(path, options, used=("table", "channel_names", "crop_size"))
            return read_fields(crops, size=crop_size, channel_names=channel_names)
        _refuse_unused(path, options, used=("table", "name_column", "channel_names"))
        return read_crops(crops, channel_names=channel_names, name_column=name_column)
    if name.endswith((".npy", ".npz")):
        _refuse_unused(path, options, used=("table", "name_column", "channel_names"))
        return read_array(path, as_table(table, path.parent), channel_names=channel_names, name_column=name_column)
    if name.endswith(TABLE_SUFFIXES):
        _refuse_unused(path, options, used=("obs_columns", "name_column"))
        return profiles(read_table(path), obs_columns=obs_columns, name_column=name_column)
    hint = " Save the sheet as CSV." if name.endswith((".xlsx", ".xls")) else ""
    hint = " For a folder of images give the folder." if name.endswith((".tif", ".tiff", ".png")) else hint
    raise InputError(f"{path} is of a kind that cannot be read. Supported: {_SUPPORTED}.{hint}")


def as_table(table: str | Path | pd.DataFrame | None, folder: Path) -> pd.DataFrame | None:
    """Read `table` if it is a path, taken from the working directory or else from `folder`."""
    if table is None or isinstance(table, pd.DataFrame):
        return table
    return read_table(table if Path(table).is_file() or not (folder / table).is_file() else folder / table)


def _refuse_unused(path: Path, options: dict[str, Any], *, used: Sequence[str]) -> None:
    unused = [option for option, value in options.items() if value is not None and option not in used]
    if unused:
        raise InputError(
            f"{', '.join(unused)} cannot be used with {path.name}: it does not apply to this kind of input."
        )
