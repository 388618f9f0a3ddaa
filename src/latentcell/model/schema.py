"""What a model was fitted on: variables, channels, scaling and batches, and how new cells are held against it."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from latentcell import keys
from latentcell.cells.batches import Source
from latentcell.cells.check import check_measurements, refuse
from latentcell.cells.images import (
    Modality,
    channel_names,
    default_names,
    is_sparse,
    measured,
    on_disk,
    stored_values,
    take_rows,
    whole_numbers,
)
from latentcell.cells.orientation import align
from latentcell.errors import InputError, listed
from latentcell.model.guidance import Guidance

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.likelihoods import Support

Orientation = Literal["as_is", "augment", "align"]

logger = logging.getLogger("latentcell")

# training cells read to find the intensity range of each channel
_SCALING_CELLS = 2000
_PERCENTILES = (0.1, 99.9)
# cells hashed at once, and cells totalled at once
_HASHED, _TOTALLED = 256, 2048


@dataclass(frozen=True)
class Schema:
    """Everything about the cells that a fitted model must remember to read others alike.

    Attributes
    ----------
    modality
        ``"images"``, ``"counts"`` or ``"profiles"``.
    layer
        Layer that was read, or None.
    names
        Channel names of images, else variable names, in the model's order.
    shape
        Shape of one cell: ``(C, H, W)``, ``(C, Z, H, W)`` or ``(F,)``.
    location, scale
        Per channel or variable: the model sees ``(stored - location) / scale``.
    clip
        Whether scaled values are cut to [0, 1].
    orientation
        What is done about the orientation of images.
    masked
        Whether the likelihood counts only pixels in the cell's mask (and a margin).
    batch_key, batch_levels, batch_shares
        Column of ``obs`` that conditions the decoder, its levels, and the share of training cells in each.
    library_size
        Median total count of the training cells (counts only).
    grey_levels
        Number of grey levels of integer images, else None.
    guidance
        Guided and nuisance factors.
    """

    modality: Modality
    layer: str | None
    names: list[str]
    shape: tuple[int, ...]
    location: list[float]
    scale: list[float]
    clip: bool
    orientation: Orientation
    masked: bool
    batch_key: str | None
    batch_levels: list[str]
    batch_shares: list[float]
    library_size: float | None
    grey_levels: int | None
    guidance: Guidance = field(default_factory=Guidance)

    @classmethod
    def register(
        cls,
        cells: AnnData,
        rows: np.ndarray,
        *,
        also_check: np.ndarray,
        modality: Modality,
        layer: str | None,
        support: Support,
        orientation: Orientation,
        batch_key: str | None,
    ) -> Schema:
        """Read from the training cells `rows` what the model must remember; `also_check` are the held-out cells.

        Raises
        ------
        InputError
            If the measurements contain what cannot be trained on (see `check_measurements`), names repeat, or the
            batch column is missing or incomplete.
        """
        array = measured(cells, layer)
        names = channel_names(cells) if modality == "images" else [str(name) for name in cells.var_names]
        _refuse_duplicates(names, modality)
        problems = check_measurements(
            array,
            kind=modality,
            cell_names=cells.obs_names,
            variable_names=names,
            rows=np.sort(np.concatenate([rows, also_check])),
            layers=cells.layers,
        )
        refuse(problems)
        for problem in problems:
            logger.warning("%s", problem)
        location, scale = _scaling(array, rows, modality, support)
        levels, shares = _batches(cells, rows, batch_key)
        return cls(
            modality=modality,
            layer=layer,
            names=names,
            shape=tuple(int(length) for length in array.shape[1:]),
            location=location.tolist(),
            scale=scale.tolist(),
            clip=support == "unit",
            orientation=orientation if modality == "images" else "as_is",
            masked=modality == "images" and keys.MASKS in cells.obsm,
            batch_key=batch_key,
            batch_levels=levels,
            batch_shares=shares,
            library_size=float(np.median(library_sizes(array, rows))) if modality == "counts" else None,
            grey_levels=2 ** (8 * array.dtype.itemsize) if modality == "images" and array.dtype.kind == "u" else None,
        )

    def digest(self) -> str:
        """Hex digest of everything remembered."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @property
    def n_covariates(self) -> int:
        """Width of what the decoder is told: one-hot batch membership, then nuisance columns."""
        return len(self.batch_levels) + self.guidance.n_columns

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Schema:
        """Inverse of `to_dict`."""
        guidance = Guidance.from_dict(stored["guidance"]) if "guidance" in stored else Guidance()
        return cls(**{**stored, "shape": tuple(stored["shape"]), "guidance": guidance})

    def source(self, cells: AnnData) -> Source:
        """Measurements of `cells` in the model's order and scale.

        Raises
        ------
        InputError
            If the cells do not match the model and cannot be reordered by name.
        """
        if self.modality == "images" and keys.IMAGES not in cells.obsm:
            raise InputError('The model was fitted on images, but these cells have no obsm["images"].')
        array = cells.X if self.modality != "images" and self.layer is None else measured(cells, self.layer)
        if array is None:
            raise InputError(f"The model was fitted on {self.modality}, but these cells have no matrix X.")
        columns = self._columns(cells)
        if self.modality == "images" and tuple(array.shape[2:]) != self.shape[1:]:
            raise InputError(
                f"The model was fitted on crops of {_times(self.shape[1:])} pixels, these cells have "
                f"{_times(array.shape[2:])}. Crop or resample them to the same size."
            )
        if columns is not None and self.modality != "images" and not on_disk(array):
            array, columns = array[:, columns], None
        if sp.issparse(array) and array.format != "csr":
            array = array.tocsr()
        if sp.issparse(array) and not array.has_canonical_format:
            # values stored twice for one place are to be added
            array = array.copy()
            array.sum_duplicates()
        if self.modality == "counts" and not (on_disk(array) or whole_numbers(stored_values(array))):
            refuse(check_measurements(array, kind="counts", cell_names=cells.obs_names, variable_names=self.names))
        per_cell = (-1, *[1] * (len(self.shape) - 1))
        return Source(
            names=cells.obs_names,
            array=array,
            location=np.asarray(self.location, dtype=np.float32).reshape(per_cell),
            scale=np.asarray(self.scale, dtype=np.float32).reshape(per_cell),
            clip=self.clip,
            columns=columns,
            counts=self.modality == "counts",
            size=library_sizes(array, None).astype(np.float32) if self.modality == "counts" else None,
            covariates=self._membership(cells),
            masks=self.masks(cells),
            prepare=align if self.orientation == "align" else None,
        )

    def masks(self, cells: AnnData) -> Any | None:
        """Masks of `cells`, in any store; None for a model without."""
        if not self.masked:
            return None
        if keys.MASKS not in cells.obsm:
            raise InputError('The model was fitted with cell masks, but these cells have no obsm["masks"].')
        return cells.obsm[keys.MASKS]

    def covariates(self, levels: np.ndarray) -> np.ndarray:
        """One-hot rows for batch `levels`; a level the model never saw gets the training shares, with a warning.

        Followed by nuisance columns at their average.
        """
        unknown = sorted(set(map(str, levels)) - set(self.batch_levels))
        if unknown:
            warnings.warn(
                f"{len(unknown)} levels of {self.batch_key!r} were not in training ({listed(unknown)}); their cells "
                "are decoded with the average of the training levels.",
                stacklevel=3,
            )
        onehot = np.zeros((len(levels), self.n_covariates), dtype=np.float32)
        codes = pd.Index(self.batch_levels).get_indexer(pd.Index(np.asarray(levels, dtype=object).astype(str)))
        onehot[np.arange(len(levels))[codes >= 0], codes[codes >= 0]] = 1
        onehot[codes < 0, : len(self.batch_levels)] = self.batch_shares
        return onehot

    def decoder_covariates(self, batch: Any, n: int) -> np.ndarray | None:
        """Covariates of `n` cells to decode: in one level, in one level each, or in the average of the levels."""
        if self.batch_key is None:
            if batch is not None:
                raise InputError(f"batch={batch!r} was given, but the model has no batch_key.")
            return np.zeros((n, self.n_covariates), dtype=np.float32) if self.n_covariates else None
        if batch is None:
            average = [*self.batch_shares, *[0.0] * self.guidance.n_columns]
            return np.tile(np.asarray(average, dtype=np.float32), (n, 1))
        return self.covariates(np.broadcast_to(np.asarray(batch, dtype=object), n))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Measurements in stored units ``(n, ...)`` as the model sees them, but for clipping, float32."""
        location, scale = self._per_channel(values.ndim)
        return np.asarray((values - location) / scale, dtype=np.float32)

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        """Scaled measurements ``(n, ...)`` back in stored units."""
        location, scale = self._per_channel(values.ndim)
        return np.asarray(values * scale + location)

    def _per_channel(self, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
        """Location and scale, to broadcast against cells of `n_axes` axes."""
        shape = (1, -1, *[1] * (n_axes - 2))
        location, scale = (np.asarray(each, dtype=np.float32) for each in (self.location, self.scale))
        return location.reshape(shape), scale.reshape(shape)

    def _columns(self, cells: AnnData) -> np.ndarray | None:
        """Where the model's channels or variables stand in `cells`; None where the order is already right."""
        what = "channels" if self.modality == "images" else "variables"
        found = channel_names(cells) if self.modality == "images" else [str(name) for name in cells.var_names]
        if found == self.names:
            return None
        if self.modality == "images" and found == default_names(len(self.names)):
            logger.info("the channels have no names; they are taken in the model's order: %s", ", ".join(self.names))
            return None
        _refuse_duplicates(found, self.modality)
        position = pd.Index(found).get_indexer(pd.Index(self.names))
        if (position < 0).any():
            missing = [name for name, at in zip(self.names, position, strict=True) if at < 0]
            extra = [name for name in found if name not in set(self.names)]
            raise InputError(
                f"The cells do not match the model: of its {len(self.names)} {what}, {len(missing)} are missing "
                f"({listed(missing)}); {len(extra)} are unknown to it ({listed(extra)}). Give cells with the same "
                f"{what}, in any order."
            )
        if len(found) == len(self.names):
            logger.info("%s were put in the model's order by name", what)
        return np.asarray(position)

    def _membership(self, cells: AnnData) -> np.ndarray | None:
        if self.n_covariates == 0:
            return None
        nuisance = self.guidance.columns(cells).astype(np.float32)
        if self.batch_key is None:
            return nuisance
        if self.batch_key not in cells.obs:
            raise InputError(
                f"The model's decoder is conditioned on obs[{self.batch_key!r}], which these cells lack; columns "
                f"present: {listed(cells.obs.columns)}."
            )
        membership = self.covariates(cells.obs[self.batch_key].to_numpy())
        membership[:, len(self.batch_levels) :] = nuisance
        return membership


def library_sizes(array: Any, rows: np.ndarray | None) -> np.ndarray:
    """Total of each row, ``(n,)`` float64."""
    rows = np.arange(array.shape[0]) if rows is None else rows
    blocks = np.array_split(rows, max(1, len(rows) // _TOTALLED))
    totals = [np.asarray(take_rows(array, block).sum(axis=1), dtype=np.float64).ravel() for block in blocks]
    return np.concatenate(totals)


def fingerprints(source: Source, rows: np.ndarray | None = None) -> np.ndarray:
    """A 64-bit hash of each cell's measurements, ``(n,)`` uint64.

    It depends on the values alone, not on the cell's name, its position or how the matrix is stored, so a model can
    tell whether it has seen a cell before.
    """
    rows = np.arange(len(source)) if rows is None else rows
    hashes = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), _HASHED):
        for i, (occupied, values) in enumerate(_occupied(source, rows[start : start + _HASHED]), start):
            digest = hashlib.blake2b(occupied.tobytes(), digest_size=8)
            digest.update(values.tobytes())
            hashes[i] = np.frombuffer(digest.digest(), dtype=np.uint64)[0]
    return hashes


def _occupied(source: Source, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (int32) and values (float32) of what is not zero in each cell."""
    if is_sparse(source.array):
        block = source.rows(rows).astype(np.float32)
        block.sum_duplicates()
        block.eliminate_zeros()
        columns = block.indices.astype(np.int32)
        for low, high in pairwise(block.indptr):
            yield columns[low:high], block.data[low:high]
        return
    block = source.stored(rows)
    for values in block.reshape(len(block), -1):
        occupied = np.flatnonzero(values)
        yield occupied.astype(np.int32), values[occupied]


def _scaling(array: Any, rows: np.ndarray, modality: Modality, support: Support) -> tuple[np.ndarray, np.ndarray]:
    if modality == "counts":
        return np.zeros(array.shape[1]), np.ones(array.shape[1])
    if modality == "profiles":
        values = array[np.sort(rows)]
        values = np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)
        location, scale = values.mean(0), values.std(0)
    else:
        spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SCALING_CELLS)).astype(int)]
        values = take_rows(array, np.sort(np.unique(spread)))
        values = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        if support == "nonnegative":
            location, high = np.zeros(len(values)), np.percentile(values, _PERCENTILES[1], axis=1)
        elif support == "unit":
            location, high = values.min(1).astype(np.float64), values.max(1).astype(np.float64)
        else:
            location, high = np.percentile(values, _PERCENTILES, axis=1)
        scale = high - location
    # a variable that never changes (to float32's resolution) carries nothing: leave its values as they are
    return location, np.where(scale > 1e-6 * np.abs(location), scale, 1.0)


def _batches(cells: AnnData, rows: np.ndarray, batch_key: str | None) -> tuple[list[str], list[float]]:
    if batch_key is None:
        return [], []
    if batch_key not in cells.obs:
        raise InputError(f"There is no obs column {batch_key!r} for batches; columns: {listed(cells.obs.columns)}.")
    column = cells.obs[batch_key].iloc[rows]
    if column.isna().any():
        named = cells.obs_names[rows][column.isna().to_numpy()]
        raise InputError(f"obs[{batch_key!r}] is empty for {len(named)} cells ({listed(named)}).")
    shares = column.astype(str).value_counts(normalize=True).sort_index()
    return [str(level) for level in shares.index], [float(share) for share in shares]


def _refuse_duplicates(names: list[str], modality: Modality) -> None:
    repeated = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(repeated):
        what = "Channel" if modality == "images" else "Variable"
        raise InputError(
            f"{what} names must be unique; repeated: {listed(repeated)}. "
            "For genes, adata.var_names_make_unique() gives them suffixes."
        )


def _times(size: Any) -> str:
    return " x ".join(str(length) for length in size)
