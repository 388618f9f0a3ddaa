"""Image files to cells: one crop per file, or whole fields cut into crops by their label masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell import keys
from latentcell.cells.folders import CropFolder, sizes_message, survey
from latentcell.cells.image_files import read_image, read_labels
from latentcell.cells.images import channel_names as names_of
from latentcell.cells.images import set_images
from latentcell.cells.stores import LAZY_BYTES
from latentcell.cells.tables import annotation
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_CROP_MULTIPLE = 16


def read_crops(
    crops: CropFolder, *, channel_names: Sequence[str] | None = None, name_column: str | None = None
) -> AnnData:
    """Read one cell per file into ``obsm["images"]``, ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, as stored.

    The table becomes ``obs``. Cells are named by `name_column`, else a unique column ``cell``, ``cell_id`` or ``name``,
    else the file names. Channel names come from OME or ImageJ metadata unless given.

    Raises
    ------
    InputError
        If a file is damaged, or the files differ in shape, dtype or order of channels.
    """
    from anndata import AnnData

    obs = annotation(crops.table, name_column=name_column, fallback=crops.names)
    first, stored_names = read_image(crops.files[0])
    images = np.empty((len(crops.files), *first.shape), first.dtype)
    if images.nbytes > LAZY_BYTES:
        logger.info(
            "reading %.1f GB of crops into memory; write_zarr stores them for reading piece by piece",
            images.nbytes / 1e9,
        )
    for row, path in enumerate(crops.files):
        pixels, names = read_image(path)
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            raise InputError(f"{sizes_message(survey(crops.files))} Crop or resample them to one size.")
        if names != stored_names:
            _refuse_reordered(stored_names, names, path)
            stored_names = None
        images[row] = pixels
    cells = AnnData(obs=obs)
    set_images(cells, images, channel_names=channel_names if channel_names is not None else stored_names)
    return cells


def _refuse_reordered(names: list[str] | None, other: list[str] | None, path: Path) -> None:
    """Refuse the same channels in another order; text that differs otherwise (slice labels) names no channels."""
    if names and other and sorted(names) == sorted(other):
        raise InputError(
            f"{path} stores its channels in the order {listed(other)}, earlier files as {listed(names)}: save all "
            "files in one order."
        )


def overlap(
    origin: Sequence[int] | np.ndarray, lengths: Sequence[int] | np.ndarray, extent: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window that begins at `origin` lies in an image of `extent`, and where that part lies in the window."""
    sides = [
        (start, max(start, 0), min(start + length, end))
        for start, length, end in zip(map(int, origin), map(int, lengths), extent, strict=True)
    ]
    return tuple(slice(a, b) for _, a, b in sides), tuple(slice(a - start, b - start) for start, a, b in sides)


def crop_cells(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    size: int | Sequence[int],
    channel_names: Sequence[str] | None = None,
    field: str | None = None,
) -> AnnData:
    """Cut every labelled cell out of a field.

    Each crop is centred on the cell's bounding box. Beyond the field it is padded with zeros; neighbours stay visible
    in the image, and the mask marks the cell itself.

    Parameters
    ----------
    image
        ``(C, H, W)`` or ``(C, Z, H, W)``.
    labels
        ``(H, W)`` or ``(Z, H, W)`` whole numbers: 0 is background, each cell has its own.
    size
        Pixels along y and x (all z-planes are kept), or one length per spatial axis.
    field
        Name of the field, stored in obs and put before the label in the cell names.

    Returns
    -------
    AnnData
        ``obsm["images"]`` ``(n, C, [Z,] size, size)`` as stored, ``obsm["masks"]`` uint8, and in ``obs``: ``field``,
        ``label``, centroid ``y``, ``x`` (and ``z``) in pixels, ``area`` in pixels (voxels), ``touches_border`` (of the
        field along y or x) and ``exceeds_crop`` (the cell is larger than the crop).

    Raises
    ------
    InputError
        If the shapes do not fit, the labels are not whole numbers, no cell is labelled, or the mask is binary.
    """
    from anndata import AnnData

    where = f" of field {field!r}" if field else ""
    if image.ndim not in (3, 4) or labels.shape != image.shape[1:]:
        raise InputError(
            f"The label image{where} has shape {labels.shape}, the image (channels first) {image.shape}: apart from "
            "the channels they must agree."
        )
    labels = _whole_labels(labels, where)
    if not labels.any():
        raise InputError(f"The label image{where} labels no cell: every pixel is 0.")
    spatial = labels.shape
    lengths = _crop_lengths(size, spatial)
    obs, low, high = _measured_cells(labels)
    origins = np.floor((low + high - lengths) / 2).astype(int)
    obs["exceeds_crop"] = (high - low > lengths).any(axis=1)
    images = np.zeros((len(obs), len(image), *lengths), image.dtype)
    masks = np.zeros((len(obs), *lengths), np.uint8)
    for i, origin in enumerate(origins):
        source, target = overlap(origin, lengths, spatial)
        images[i][(slice(None), *target)] = image[(slice(None), *source)]
        masks[i][target] = labels[source] == obs["label"].iloc[i]
    if obs["exceeds_crop"].any():
        logger.warning(
            "%d of %d cells are larger than the crop of %s pixels", obs["exceeds_crop"].sum(), len(obs), lengths
        )
    obs.insert(0, "field", "" if field is None else field)
    obs.index = pd.Index([f"{field}_{label}" if field else str(label) for label in obs["label"]])
    cells = AnnData(obs=obs)
    set_images(cells, images, channel_names=channel_names, masks=masks)
    return cells


def _whole_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels as whole numbers, refusing what cannot tell cells apart."""
    if labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise InputError(f"The labels{where} must be whole numbers from 0 (background), found {labels.dtype} values.")
    if labels.any() and labels[labels > 0].min() == labels.max():
        from scipy import ndimage

        _, pieces = ndimage.label(labels)
        if pieces > 1:
            raise InputError(
                f"The label image{where} is a binary mask: {pieces} separate pieces share the value {labels.max()}. "
                "Give each cell its own number, for example with scipy.ndimage.label."
            )
    return labels


def _crop_lengths(size: int | Sequence[int], spatial: tuple[int, ...]) -> tuple[int, ...]:
    lengths = (*spatial[:-2], size, size) if isinstance(size, int) else tuple(size)
    if len(lengths) != len(spatial) or min(lengths) < 1:
        raise InputError(
            f"size={size} does not fit a field with the spatial axes {spatial}: one length per axis, or one."
        )
    return lengths


def _measured_cells(labels: np.ndarray) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Table of cells, and the lower and upper corners of their bounding boxes, each ``(n, axes)``."""
    try:
        from skimage.measure import regionprops_table
    except ImportError as error:
        raise InputError("Cropping whole fields needs scikit-image: pip install 'latentcell[fields]'.") from error
    found: dict[str, np.ndarray] = regionprops_table(labels, properties=("label", "centroid", "area", "bbox"))
    n_axes = labels.ndim
    low = np.stack([found[f"bbox-{i}"] for i in range(n_axes)], axis=1)
    high = np.stack([found[f"bbox-{i + n_axes}"] for i in range(n_axes)], axis=1)
    obs = pd.DataFrame({"label": found["label"]})
    for axis, name in enumerate("zyx"[-n_axes:]):
        obs[name] = found[f"centroid-{axis}"].astype(np.float32)
    obs["area"] = found["area"].astype(np.int64)
    obs["touches_border"] = (low[:, -2:] == 0).any(axis=1) | (high[:, -2:] == labels.shape[-2:]).any(axis=1)
    return obs, low, high


def read_fields(fields: CropFolder, *, size: int | None = None, channel_names: Sequence[str] | None = None) -> AnnData:
    """Read whole fields, cut out every labelled cell, and repeat the row of the table for each cell of its field.

    Parameters
    ----------
    fields
        Files and label files, as `list_crops` finds them.
    size
        Crop size along y and x; by default the smallest multiple of 16 that holds 99 % of the cells.

    Raises
    ------
    InputError
        As `crop_cells`, or if fields differ in dtype, channels or number of z-planes, or no field holds a cell.
    """
    from anndata import AnnData

    paths = fields.labels or []
    labels = [
        _whole_labels(read_labels(path), f" of field {name!r}") for path, name in zip(paths, fields.names, strict=True)
    ]
    filled = [row for row, field in enumerate(labels) if field.any()]
    if not filled:
        raise InputError(f"None of the {len(labels)} label images labels a cell: every pixel is 0.")
    if len(filled) < len(labels):
        empty = [fields.names[row] for row in range(len(labels)) if row not in filled]
        logger.warning("%d fields hold no cell and are left out: %s", len(empty), listed(empty))
    size = size if size is not None else _common_size([labels[row] for row in filled])
    described = annotation(fields.table, fallback=fields.names)
    parts: list[AnnData] = []
    for row in filled:
        pixels, stored = read_image(fields.files[row])
        names = channel_names if channel_names is not None else stored
        part = crop_cells(pixels, labels[row], size=size, channel_names=names, field=fields.names[row])
        images, first = part.obsm[keys.IMAGES], (parts or [part])[0].obsm[keys.IMAGES]
        if images.shape[1:] != first.shape[1:] or images.dtype != first.dtype:
            raise InputError(
                f"{sizes_message(survey(fields.files))} Fields must agree in channels, z-planes and dtype."
            )
        for column in described:
            part.obs[f"field_{column}" if column in part.obs else column] = [described[column].iloc[row]] * part.n_obs
        parts.append(part)
    cells = AnnData(obs=pd.concat([part.obs for part in parts]))
    set_images(
        cells,
        np.concatenate([part.obsm[keys.IMAGES] for part in parts]),
        masks=np.concatenate([part.obsm[keys.MASKS] for part in parts]),
        channel_names=names_of(parts[0]),
    )
    return cells


def _common_size(labels: Sequence[np.ndarray]) -> int:
    extents: list[np.ndarray] = []
    for field in labels:
        _, low, high = _measured_cells(field)
        extents.append((high - low)[:, -2:].max(axis=1))
    held = np.quantile(np.concatenate(extents), 0.99, method="higher")
    return int(-(-held // _CROP_MULTIPLE) * _CROP_MULTIPLE)
