"""The image contract: where crops live in an AnnData and how rows are taken from any array that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from latentcell import keys
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

# share of non-negative whole numbers above which a matrix is taken for counts with mistakes
_MOSTLY = 0.99
# cells of a matrix on disk by which its kind is told
_LOOKED_AT = 4096
# values looked at together
_LOOKED_AT_ONCE = 2**20

Modality = Literal["images", "counts", "profiles"]


def set_images(
    cells: AnnData, images: Any, *, channel_names: Sequence[str] | None = None, masks: Any | None = None
) -> None:
    """Attach crops to `cells`.

    Writes ``obsm["images"]`` (as given: ndarray, memmap, h5py or zarr array), ``uns["images"]["channel_names"]``
    and, with `masks`, ``obsm["masks"]``.

    Parameters
    ----------
    images
        ``(n, C, H, W)`` or ``(n, C, Z, H, W)``.
    channel_names
        One name per channel; ``channel_0``, ``channel_1``, ... by default.
    masks
        ``(n, H, W)`` or ``(n, Z, H, W)``, nonzero inside the cell.

    Raises
    ------
    InputError
        If the shape is not one of the above or the number of names differs from the number of channels.
    """
    shape = tuple(images.shape)
    if len(shape) not in (4, 5):
        raise InputError(
            f"Images must have the axes (cell, channel, y, x) or (cell, channel, z, y, x), found shape {shape}. "
            "A single-channel stack needs a channel axis: images[:, None]."
        )
    names = [str(name) for name in channel_names] if channel_names is not None else default_names(shape[1])
    if len(names) != shape[1]:
        raise InputError(f"{len(names)} channel names were given ({', '.join(names)}) for {shape[1]} channels.")
    if masks is not None and tuple(masks.shape) != (shape[0], *shape[2:]):
        raise InputError(f"Masks of shape {tuple(masks.shape)} do not fit images of shape {shape}: one per cell.")
    cells.obsm[keys.IMAGES] = images
    cells.uns[keys.IMAGES] = {keys.CHANNEL_NAMES: names}
    if masks is not None:
        cells.obsm[keys.MASKS] = masks


def channel_names(cells: AnnData) -> list[str]:
    """Names of the image channels, ``channel_0``, ... where none are stored."""
    about = cells.uns.get(keys.IMAGES, {})
    stored = about.get(keys.CHANNEL_NAMES)
    if stored is None:
        stored = default_names(cells.obsm[keys.IMAGES].shape[1])
    return [str(stored[i]) for i in about.get(keys.CHANNELS_TAKEN, range(len(stored)))]


def with_channels(cells: AnnData, names: Sequence[str]) -> AnnData:
    """The same cells with some of their channels, by name; of images on disk they are read when asked for.

    What is on disk is only for `channel_names` and `measured`: ``obsm["images"]`` still has all channels.
    """
    import anndata as ad

    stored, present = cells.obsm[keys.IMAGES], channel_names(cells)
    columns, kept = [present.index(name) for name in names], ad.AnnData(obs=cells.obs)
    masks = cells.obsm.get(keys.MASKS)
    if on_disk(stored):
        set_images(kept, stored, channel_names=present, masks=masks)
        kept.uns[keys.IMAGES][keys.CHANNELS_TAKEN] = columns
    else:
        set_images(kept, stored[:, columns], channel_names=names, masks=masks)
    return kept


class _Channels:
    """Some channels of images on disk, read when asked for.

    Parameters
    ----------
    array
        Images ``(n, C, ...)`` in any store.
    columns
        Which channels, in order.
    """

    def __init__(self, array: Any, columns: Sequence[int]) -> None:
        self.array, self.columns = array, list(columns)
        self.shape = (array.shape[0], len(self.columns), *array.shape[2:])
        self.dtype = array.dtype

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        read = self.array[rows] if isinstance(rows, slice) else take_rows(self.array, rows)
        return np.asarray(read)[:, self.columns]


def modality_of(cells: AnnData, layer: str | None = None) -> Modality:
    """Tell what was measured: images if ``obsm["images"]`` exists and no layer is named, else counts or profiles.

    Counts are non-negative whole numbers; anything else is a profile. A matrix in which 99 % of the values are such
    numbers counts as counts, so that a stray negative or missing value is found by the check of counts rather than
    hidden by a model of profiles.

    Raises
    ------
    InputError
        If there is neither an image array nor a matrix, or the layer does not exist.
    """
    if layer is None and keys.IMAGES in cells.obsm:
        return "images"
    values = some_values(measured(cells, layer))
    if whole_numbers(values):
        return "counts"
    with np.errstate(invalid="ignore"):
        share = float(np.mean((values >= 0) & (values == np.floor(values))))
    return "counts" if share >= _MOSTLY else "profiles"


def measured(cells: AnnData, layer: str | None = None) -> Any:
    """Return the array of measurements: images, the named layer, or ``X``; cells are rows."""
    if layer is not None:
        if layer not in cells.layers:
            present = ", ".join(map(repr, cells.layers)) or "none"
            raise InputError(f"There is no layer {layer!r}; layers present: {present}.")
        return cells.layers[layer]
    if keys.IMAGES in cells.obsm:
        taken = cells.uns.get(keys.IMAGES, {}).get(keys.CHANNELS_TAKEN)
        return cells.obsm[keys.IMAGES] if taken is None else _Channels(cells.obsm[keys.IMAGES], taken)
    if cells.X is None or cells.n_vars == 0:
        raise InputError('The cells hold no measurements: neither obsm["images"] nor a matrix X with variables.')
    return cells.X


def stored_values(matrix: Any) -> np.ndarray:
    """Explicit values of a dense or sparse matrix, flat (zeros of a sparse matrix are left out)."""
    return np.asarray(matrix.data if sp.issparse(matrix) else matrix).ravel()


def some_values(matrix: Any) -> np.ndarray:
    """Values by which the kind of a matrix is told: all `stored_values`, of one on disk those of its first cells."""
    if on_disk(matrix):
        # a fit looks at every value
        matrix = take_rows(matrix, np.arange(min(matrix.shape[0], _LOOKED_AT)))
    return stored_values(matrix)


def whole_numbers(values: np.ndarray) -> bool:
    """Whether all values are finite, non-negative whole numbers."""
    if values.dtype.kind in "ub":
        return True
    if values.dtype.kind == "i":
        return bool((values >= 0).all())
    # in parts, or the answers for each value would take more memory than a fit
    parts = (values[start : start + _LOOKED_AT_ONCE] for start in range(0, values.size, _LOOKED_AT_ONCE))
    return all(bool((np.isfinite(part) & (part >= 0) & (part == np.floor(part))).all()) for part in parts)


def take_rows(array: Any, rows: np.ndarray) -> Any:
    """Rows of any store of measurements in the order asked for: of a sparse matrix as one, else as an ndarray.

    Arrays on disk are read once per distinct row in ascending order, which their libraries require or reward.
    """
    rows = np.asarray(rows)
    if isinstance(array, np.ndarray):
        return np.asarray(array[rows])
    if sp.issparse(array):
        return array[rows]
    if rows.size and np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        read = array[int(rows[0]) : int(rows[0]) + rows.size]
        return read if is_sparse(array) else np.asarray(read)
    unique, inverse = np.unique(rows, return_inverse=True)
    read = array.oindex[unique] if hasattr(array, "oindex") else array[unique]
    return read[inverse] if is_sparse(array) else np.asarray(read)[inverse]


def is_sparse(array: Any) -> bool:
    """Whether a matrix is sparse, in memory or on disk (AnnData's ``CSRDataset``)."""
    return sp.issparse(array) or (hasattr(array, "to_memory") and getattr(array, "format", None) in ("csr", "csc"))


def on_disk(array: Any) -> bool:
    """Whether reading random rows of an array is slow."""
    return isinstance(array, np.memmap) or not (isinstance(array, np.ndarray) or sp.issparse(array))


def is_two_valued(images: Any, rows: np.ndarray) -> bool:
    """Whether up to 200 of the images hold two grey levels at most, as masks do."""
    spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), 200)).astype(int)]
    return len(np.unique(take_rows(images, np.unique(spread)))) <= 2


def default_names(n_channels: int) -> list[str]:
    """Names of channels that have none: ``channel_0``, ``channel_1``, ..."""
    return [f"channel_{i}" for i in range(n_channels)]
