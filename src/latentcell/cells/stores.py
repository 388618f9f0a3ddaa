"""Arrays on disk: h5ad and zarr stores of AnnData, npy and npz arrays of crops. Large image arrays stay on disk."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell import keys
from latentcell.atomic import replacing
from latentcell.cells.images import set_images, take_rows
from latentcell.cells.tables import annotation
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# image arrays above this size are left on disk
LAZY_BYTES = 2**30
SCPORTRAIT_IMAGES = "single_cell_images"
_CROPS = (keys.IMAGES, keys.MASKS)
_CHANNEL_KEYS = ("channel_names", "channels")
# zarr decompresses whole chunks and writes whole shards
_CHUNK_CELLS, _SHARD_CELLS, _CHUNK_BYTES, _SHARD_BYTES = 16, 2048, 2**25, 2**28


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store, whatever its name."""
    return any((path / marker).is_file() for marker in ("zarr.json", ".zgroup"))


def read_store(path: Path) -> AnnData:
    """Read an AnnData from ``.h5ad`` or ``.zarr``.

    ``obsm["images"]``, ``obsm["masks"]`` and ``X`` above `LAZY_BYTES` stay ``h5py.Dataset``, ``zarr.Array`` or, sparse
    by rows, AnnData's ``CSRDataset``: rows are read when asked for, and the file must stay where it is. scPortrait's
    ``obsm["single_cell_images"]`` is taken as ``obsm["images"]``.

    Raises
    ------
    InputError
        If the file is damaged or is not an AnnData.
    """
    try:
        root = _open_zarr(path) if path.is_dir() else _open_h5(path)
    except Exception as error:
        raise InputError(
            f"{path} cannot be opened: {error}. The file is damaged, was not copied completely or is of another kind."
        ) from error
    if "obs" not in root:
        raise InputError(f"{path} is not an AnnData: it has no obs, only {listed(list(root)) or 'nothing'}.")
    try:
        cells = _anndata(root, path)
    except Exception as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    return cells


def _open_h5(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r")


def _open_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r")


def _anndata(root: Any, path: Path) -> AnnData:
    import anndata as ad
    from anndata.io import read_elem

    with warnings.catch_warnings():
        # repeated names are kept here and named by `info`
        warnings.filterwarnings("ignore", message=".*names are not unique")
        warnings.filterwarnings("ignore", category=ad.OldFormatWarning)
        if not hasattr(root["obs"], "keys"):
            # written by AnnData before 0.7: no images, and only AnnData itself knows this layout
            return ad.read_h5ad(path)
        read = [name for name in root if name not in ("obsm", "X") and not name.startswith("raw.")]
        parts = {name: read_elem(root[name]) for name in read}
        if "X" in root:
            parts["X"] = _matrix(root["X"])
        obsm, group = {}, root.get("obsm", {})
        for name in group:
            stored, key = group[name], keys.IMAGES if name == SCPORTRAIT_IMAGES else name
            lazy = key in (keys.IMAGES, keys.MASKS) and _n_bytes(stored) > LAZY_BYTES
            obsm[key] = stored if lazy else read_elem(stored)
        cells = ad.AnnData(**parts, obsm=obsm)
    described = cells.uns.get(SCPORTRAIT_IMAGES, {})
    if keys.CHANNEL_NAMES in described and keys.IMAGES not in cells.uns:
        cells.uns[keys.IMAGES] = {keys.CHANNEL_NAMES: described[keys.CHANNEL_NAMES]}
    lying = [array for array in (*obsm.values(), parts.get("X")) if array is not None and _stays(array)]
    if not lying and hasattr(root, "close"):
        root.close()
    return cells


def _n_bytes(stored: Any) -> int:
    return (
        int(np.prod(getattr(stored, "shape", (0,)), dtype=np.int64)) * getattr(stored, "dtype", np.dtype("u1")).itemsize
    )


def _stays(array: Any) -> bool:
    return type(array).__module__.split(".")[0] in ("h5py", "zarr") or hasattr(array, "to_memory")


def _matrix(stored: Any) -> Any:
    """Matrix in memory, or above `LAZY_BYTES` and if its rows can be read one by one, as it lies on disk."""
    from anndata.io import read_elem, sparse_dataset

    kind = stored.attrs.get("encoding-type")
    if kind == "csr_matrix" and _n_bytes(stored["data"]) + _n_bytes(stored["indices"]) > LAZY_BYTES:
        return sparse_dataset(stored)
    if kind == "array" and _n_bytes(stored) > LAZY_BYTES:
        return stored
    return read_elem(stored)


def read_array(
    path: Path,
    table: pd.DataFrame | None = None,
    *,
    channel_names: Sequence[str] | None = None,
    name_column: str | None = None,
) -> AnnData:
    """Read crops from ``.npy`` (memory-mapped) or ``.npz``; row ``i`` of `table` describes crop ``i``.

    An npz file holds one array ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, or several arrays of one shape, each a cell
    ``(C, H, W)`` or ``(C, Z, H, W)`` named by its key; and optionally ``channels`` or ``channel_names`` (text).
    An array ``(n, H, W)`` is taken as one channel.

    Raises
    ------
    InputError
        If the file is damaged, holds Python objects (pickle), or its arrays or the table do not fit together.
    """
    from anndata import AnnData

    names: list[str] | None = None
    try:
        if path.suffix.lower() == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            images, names, stored_channels = _load_npz(path)
            channel_names = channel_names if channel_names is not None else stored_channels
    except InputError:
        raise
    except Exception as error:
        reason = "it holds Python objects (pickle), which could run code" if "bject" in str(error) else str(error)
        raise InputError(f"{path} cannot be read: {reason}. Save plain numeric arrays.") from error
    if images.ndim == 3:
        images = images[:, None]
    if table is not None and len(table) != len(images):
        raise InputError(
            f"{path.name} holds {len(images)} cells, the table {len(table)} rows: one row per cell, in order."
        )
    if table is None:
        table = pd.DataFrame(index=range(len(images)))
    obs = annotation(table, name_column=name_column, fallback=names or [f"cell_{i}" for i in range(len(images))])
    cells = AnnData(obs=obs)
    set_images(cells, images, channel_names=channel_names)
    return cells


def _load_npz(path: Path) -> tuple[np.ndarray, list[str] | None, list[str] | None]:
    """Images, cell names where each array is a cell, and channel names."""
    with np.load(path, allow_pickle=False) as archive:
        channels = next(([str(c) for c in archive[key]] for key in _CHANNEL_KEYS if key in archive), None)
        arrays = [key for key in archive if key not in _CHANNEL_KEYS]
        if not arrays:
            raise InputError(f"{path} holds no image array.")
        first = archive[arrays[0]]
        if len(arrays) == 1:
            return first, None, channels
        images = np.empty((len(arrays), *first.shape), first.dtype)
        for i, key in enumerate(arrays):
            cell = first if i == 0 else archive[key]
            if cell.shape != first.shape or cell.dtype != first.dtype or cell.ndim not in (3, 4):
                raise InputError(
                    f"{path} holds {len(arrays)} arrays of different shapes ({arrays[0]}: {first.shape} {first.dtype}, "
                    f"{key}: {cell.shape} {cell.dtype}). Save one array (cell, channel, y, x), or one array "
                    "(channel, y, x) per cell, all of one shape, beside the text array 'channels'."
                )
            images[i] = cell
    return images, arrays, channels


def write_zarr(cells: AnnData, path: str | Path) -> None:
    """Write cells to a zarr store whose crops can be read in random order.

    Images and masks are written in chunks of 16 cells and shards (files) of about 2,048 cells, fewer where crops are
    large, block by block, so that they may be larger than memory. The store appears under `path` only when complete.

    Raises
    ------
    InputError
        If `path` exists.
    """
    import zarr
    from anndata import settings
    from anndata.io import write_elem

    path = Path(path)
    if path.exists():
        raise InputError(f"{path} exists already: choose another name or delete it first.")
    crops = {key: cells.obsm[key] for key in _CROPS if key in cells.obsm}
    with replacing(path) as unfinished:
        root = zarr.open_group(unfinished, mode="w", zarr_format=3)
        with settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
            write_elem(root, "/", _without(cells, tuple(crops)))
        for key, array in crops.items():
            _write_crops(root["obsm"], key, array)
    logger.info("wrote %d cells to %s", cells.n_obs, path)


def write_h5ad(cells: AnnData, path: str | Path, *, images: bool = True) -> None:
    """Write cells to an h5ad file that appears under `path` only when complete.

    Parameters
    ----------
    images
        Whether crops and masks go along; without them the file holds what was computed and is small.
    """
    light = cells if images else _without(cells, _CROPS)
    with replacing(Path(path)) as unfinished:
        light.write_h5ad(unfinished)


def _without(cells: AnnData, obsm_keys: Sequence[str]) -> AnnData:
    """The same cells without some of their ``obsm``; arrays are shared, not copied."""
    from anndata import AnnData

    light = AnnData(
        X=cells.X,
        obs=cells.obs.copy(),
        var=cells.var.copy(),
        uns=dict(cells.uns),
        obsm={key: value for key, value in cells.obsm.items() if key not in obsm_keys},
        **{part: dict(getattr(cells, part)) for part in ("varm", "layers", "obsp", "varp")},
        raw=None if cells.raw is None else {"X": cells.raw.X, "var": cells.raw.var, "varm": dict(cells.raw.varm)},
    )
    light.strings_to_categoricals()
    return light


def _write_crops(group: Any, key: str, array: Any) -> None:
    n_cells, shape = array.shape[0], tuple(array.shape[1:])
    cell_bytes = int(np.prod(shape)) * array.dtype.itemsize
    chunk = max(1, min(_CHUNK_CELLS, _CHUNK_BYTES // cell_bytes))
    wanted = min(n_cells, _SHARD_CELLS, _SHARD_BYTES // cell_bytes)
    shard = chunk * max(1, -(-wanted // chunk))
    target = group.create_array(
        key, shape=array.shape, dtype=array.dtype, chunks=(chunk, *shape), shards=(shard, *shape)
    )
    target.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for start in range(0, n_cells, shard):
        rows = np.arange(start, min(start + shard, n_cells))
        target[start : start + shard] = take_rows(array, rows)


def write_maps(path: Path, maps: Mapping[str, np.ndarray], rows: Sequence[str], channels: Sequence[str]) -> None:
    """Write maps ``(rows, C, [Z,] H, W)`` of several quantities to a zarr group, whole or not at all.

    One array per quantity, one chunk per row; attributes ``rows`` and ``channel_names`` name the first two axes.
    """
    import zarr

    with replacing(path) as unfinished:
        root = zarr.open_group(unfinished, mode="w", zarr_format=3)
        root.attrs.update({"rows": list(rows), "channel_names": list(channels)})
        for name, values in maps.items():
            array = root.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(1, *values.shape[1:]))
            array[...] = values
