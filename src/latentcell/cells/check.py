"""What is in the cells, and what stands in the way of a true answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell.cells.folders import list_crops, sizes_message, survey
from latentcell.cells.images import Modality, channel_names, measured, modality_of, some_values, whole_numbers
from latentcell.cells.read import as_table, read
from latentcell.cells.report import Problem, Report, summarised
from latentcell.cells.scan import ImageScan, MatrixScan, Offending, scan_images, scan_matrix
from latentcell.cells.stores import is_zarr
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_SHOWN = 5
# log1p of counts stays below this: log(1 + 5e8)
_LOG_CEILING = 20
# totals of raw counts vary between cells; below this coefficient of variation they were made equal
_EQUAL_TOTALS = 0.15
_MIN_CELLS_FOR_TOTALS = 10
_MIN_NORMALISED_TOTAL = 1e4
# where so many genes have no count in a cell, others have exactly one
_MANY_VARIABLES, _MANY_ZEROS = 50, 0.25


def info(
    source: str | Path | AnnData,
    table: str | Path | pd.DataFrame | None = None,
    *,
    obs_columns: Sequence[str] | None = None,
    layer: str | None = None,
) -> Report:
    """Summarise cells, or the file or folder that holds them, and name every problem.

    Large images are read block by block. A folder whose crops differ in size is reported, not refused.

    Parameters
    ----------
    source
        Anything that `latentcell.read` reads, or an AnnData.
    table
        Table that describes crops, as in `latentcell.read`.
    obs_columns
        Numeric columns of a profile table that annotate, as in `latentcell.read`.
    layer
        Matrix to look at instead of the images or ``X``.

    Raises
    ------
    InputError
        If the source cannot be read, or there is nothing measured in it.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir() and not is_zarr(path) and path.suffix != ".zarr":
            mixed = _mixed_folder(path, table, str(source))
            if mixed is not None:
                return mixed
        name, cells = str(source), read(path, table, obs_columns=obs_columns)
    elif table is not None:
        raise InputError("A table describes a file or folder of images; the annotations of an AnnData are in its obs.")
    else:
        name, cells = "cells", source
    modality = modality_of(cells, layer)
    array = measured(cells, layer)
    value_range, sparsity, problems = _images_content(cells) if modality == "images" else _matrix_content(cells, layer)
    problems += _repeated(cells.obs_names, "cells", "cells.obs_names_make_unique()")
    problems += _repeated(cells.var_names, "variables", "cells.var_names_make_unique()")
    return Report(
        source=name,
        modality=modality,
        n_cells=cells.n_obs,
        n_vars=int(array.shape[1]),
        shape=tuple(int(length) for length in array.shape[1:]),
        dtype=str(array.dtype),
        value_range={v: (float(low), float(high)) for v, (low, high) in value_range.items() if low <= high},
        sparsity=sparsity,
        layers=tuple(cells.layers),
        obs=summarised(cells.obs),
        problems=problems,
    )


_Content = tuple[dict[str, tuple[float, float]], float | None, list[Problem]]


def _images_content(cells: AnnData) -> _Content:
    """Value range by channel, no sparsity, problems."""
    scan, channels = scan_images(measured(cells)), channel_names(cells)
    value_range = dict(zip(channels, zip(scan.low, scan.high, strict=True), strict=True))
    return value_range, None, _image_problems(scan, np.asarray(cells.obs_names), np.asarray(channels))


def _matrix_content(cells: AnnData, layer: str | None) -> _Content:
    """Value range, share of zeros, problems."""
    array, modality, variables = measured(cells, layer), modality_of(cells, layer), np.asarray(cells.var_names)
    scan = scan_matrix(array)
    problems = _matrix_problems(scan, modality, np.asarray(cells.obs_names), variables, cells.layers)
    value_range = {"all": (scan.low.min(initial=np.inf), scan.high.max(initial=-np.inf))}
    return value_range, scan.n_zero / max(1, math.prod(array.shape)), problems


def check_measurements(
    array: Any,
    *,
    kind: Modality,
    cell_names: Sequence[str] | pd.Index,
    variable_names: Sequence[str] | pd.Index,
    rows: np.ndarray | None = None,
    layers: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Find what would spoil a fit, in one pass over the measurements.

    Parameters
    ----------
    array
        Images ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, or a dense or sparse matrix ``(n, G)``.
    kind
        What the likelihood expects. ``"counts"`` refuses negative and fractional values and cells without counts.
    cell_names, variable_names
        Names of all rows, and of variables or channels.
    rows
        Rows to look at, all by default.
    layers
        Other matrices of the cells, one of which may hold the counts behind profiles.
    """
    if kind == "images":
        return _image_problems(scan_images(array, rows), np.asarray(cell_names), np.asarray(variable_names))
    scan = scan_matrix(array, rows)
    return _matrix_problems(scan, kind, np.asarray(cell_names), np.asarray(variable_names), layers or {})


def refuse(problems: Sequence[Problem]) -> None:
    """Raise `InputError` with every problem of severity ``"error"`` in one paragraph; return if there is none."""
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    if errors:
        raise InputError(" ".join(errors))


def _image_problems(scan: ImageScan, cells: np.ndarray, channels: np.ndarray) -> list[Problem]:
    """Problems of images: missing pixels, channels without contrast, empty crops."""
    problems = []
    if scan.not_finite.n_cells.any():
        problems.append(
            Problem(
                "error",
                "Some pixels are missing (NaN) or infinite",
                _places(scan.not_finite, cells, channels, "channel"),
                "Replace them by the background or leave these cells out.",
            )
        )
    flat = np.flatnonzero(scan.low >= scan.high) if len(scan.rows) else np.empty(0, int)
    if flat.size:
        all_flat = flat.size == len(channels)
        problems.append(
            Problem(
                "error" if all_flat else "warning",
                f"{'all' if all_flat else 'some'} channels have one value in every pixel of every cell",
                _named(channels[flat]),
                "They carry no information: check the export, or leave these channels out.",
            )
        )
    empty = np.flatnonzero(scan.empty)
    if empty.size:
        problems.append(
            Problem(
                "warning",
                f"{empty.size:,} crops are empty: every pixel is zero",
                _named(cells[scan.rows[empty]]),
                "Leave these cells out, or check the positions at which they were cropped.",
            )
        )
    return problems


def _matrix_problems(
    scan: MatrixScan, kind: Modality, cells: np.ndarray, variables: np.ndarray, layers: Mapping[str, Any]
) -> list[Problem]:
    """Problems of counts or profiles."""
    problems = []
    if scan.not_finite.n_cells.any():
        problems.append(
            Problem(
                "error",
                f"{scan.not_finite.n_cells.sum():,} values are missing (NaN) or infinite",
                _places(scan.not_finite, cells, variables, "variable"),
                "Leave out these cells, set the variable aside by naming it in obs_columns (--obs-columns), or impute "
                "the values yourself: they are never filled silently.",
            )
        )
    if kind == "counts":
        problems += _count_problems(scan, cells, variables)
    constant = np.flatnonzero(scan.low >= scan.high) if len(scan.rows) > 1 else np.empty(0, int)
    # a gene that was seen in no cell is common and harmless in counts
    if constant.size and (kind == "profiles" or constant.size == len(variables)):
        problems.append(
            Problem(
                "error" if constant.size == len(variables) else "warning",
                f"{constant.size:,} of {len(variables):,} variables have the same value in every cell",
                _named(variables[constant]),
                "They carry no information; leave them out.",
            )
        )
    if kind == "profiles":
        problems += _disguise(scan, layers, variables)
    return problems


def _count_problems(scan: MatrixScan, cells: np.ndarray, variables: np.ndarray) -> list[Problem]:
    problems = []
    if scan.negative.n_cells.any():
        problems.append(
            Problem(
                "error",
                f"{scan.negative.n_cells.sum():,} counts are negative",
                _places(scan.negative, cells, variables, "variable"),
                "Counts cannot be; give the layer with raw counts, or a likelihood for continuous values.",
            )
        )
    if scan.fractional.n_cells.any():
        problems.append(
            Problem(
                "error",
                f"{scan.fractional.n_cells.sum():,} values are no whole numbers{_log_hint(scan)}",
                _places(scan.fractional, cells, variables, "variable"),
                'A model of counts needs raw counts: name the layer that holds them (for example layer="counts"), or '
                "choose a likelihood for continuous values.",
            )
        )
    elif not scan.negative.n_cells.any():
        problems += _made_equal(scan)
    empty = np.flatnonzero((scan.totals == 0) & np.isnan(scan.smallest))
    if empty.size:
        problems.append(
            Problem(
                "error",
                f"{empty.size:,} cells have no counts at all",
                _named(cells[scan.rows[empty]]),
                "Leave them out, for example with cells[cells.X.sum(axis=1) > 0].",
            )
        )
    return problems


def _log_hint(scan: MatrixScan) -> str:
    looks_logged = not scan.negative.n_cells.any() and scan.high.max(initial=-np.inf) < _LOG_CEILING
    return f" and none exceeds {scan.high.max():.3g}, as in log-normalised data" if looks_logged else ""


def _made_equal(scan: MatrixScan) -> list[Problem]:
    """Whole numbers that were normalised before rounding, such as TPM."""
    totals = scan.totals[scan.totals > 0]
    if len(totals) < _MIN_CELLS_FOR_TOTALS:
        return []
    smallest, zeros = np.nanmedian(scan.smallest), scan.n_zero / (len(scan.rows) * len(scan.low))
    spread = totals.std() / totals.mean()
    if spread < _EQUAL_TOTALS and np.median(totals) >= _MIN_NORMALISED_TOTAL:
        what = f"cells have nearly equal totals (about {np.median(totals):,.0f}, varying by {spread:.0%})"
    elif smallest > 1 and len(scan.low) >= _MANY_VARIABLES and zeros > _MANY_ZEROS:
        what = f"the smallest nonzero value of a cell is typically {smallest:.0f} rather than 1"
    else:
        return []
    return [
        Problem(
            "warning",
            f"The values are whole numbers but {what}, as in rounded TPM or other normalised data",
            (),
            "A model of counts assumes raw counts: use them if you have them, else take the logarithm and treat the "
            "cells as profiles.",
        )
    ]


def _disguise(scan: MatrixScan, layers: Mapping[str, Any], variables: np.ndarray) -> list[Problem]:
    """Profiles that may be something else: transformed counts, or identifiers among the features."""
    problems = []
    n_whole = int(scan.whole.sum())
    if not scan.negative.n_cells.any() and not n_whole and _log_hint(scan) and scan.n_zero:
        raw = [name for name, values in layers.items() if whole_numbers(some_values(values))]
        advice = f"The layer {raw[0]!r} holds whole numbers." if raw else "Keep the raw counts in a layer."
        problems.append(
            Problem(
                "warning",
                f"The values are not negative, many are zero{_log_hint(scan)}",
                (),
                f"They are treated as profiles; a model of counts needs raw counts. {advice}",
            )
        )
    varying = scan.whole & (scan.low < scan.high)
    if 0 < varying.sum() < len(variables) / 2:
        problems.append(
            Problem(
                "warning",
                f"{int(varying.sum())} variables hold whole numbers among continuous ones",
                _named(variables[varying]),
                "Identifiers, doses or codes are annotations: name them in obs_columns (--obs-columns).",
            )
        )
    return problems


def _mixed_folder(path: Path, table: str | Path | pd.DataFrame | None, name: str) -> Report | None:
    """Report on a folder whose crops differ in size or are damaged, None where they agree."""
    crops = list_crops(path, as_table(table, path))
    if crops.labels is not None:
        return None
    groups = survey(crops.files)
    if len(groups) == 1:
        return None
    rare = [file.name for files in list(groups.values())[1:] for file in files]
    return Report(
        source=name,
        modality="images",
        n_cells=len(crops.files),
        n_vars=0,
        shape=None,
        dtype="several",
        obs=summarised(crops.table),
        problems=[
            Problem("error", sizes_message(groups).rstrip("."), _named(rare), "Crop or resample them to one size.")
        ],
    )


def _repeated(names: pd.Index, kind: str, remedy: str) -> list[Problem]:
    repeated = names[names.duplicated()].unique()
    if not len(repeated):
        return []
    advice = f"Names must tell {kind} apart: run {remedy}."
    return [
        Problem("warning", f"{len(repeated):,} names of {kind} occur more than once", _named(list(repeated)), advice)
    ]


def _places(offending: Offending, cells: np.ndarray, variables: np.ndarray, word: str) -> tuple[str, ...]:
    concerned = np.flatnonzero(offending.n_cells)
    return _named(
        [
            f"{word} {variables[c]}: cell {cells[offending.first[c]]}"
            + (f" and {offending.n_cells[c] - 1:,} more" if offending.n_cells[c] > 1 else "")
            for c in concerned
        ]
    )


def _named(names: Sequence[str] | np.ndarray) -> tuple[str, ...]:
    shown = tuple(str(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else (*shown, f"and {len(names) - _SHOWN:,} more")
