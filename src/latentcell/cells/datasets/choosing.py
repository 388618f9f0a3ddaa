"""What the data sets share: which cells to take, and crops of several sizes brought to one."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell.cells.crops import overlap
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("latentcell")


def named(asked: str | Sequence[str] | None, present: Iterable[object], what: str) -> list[str]:
    """Names asked for, all that are present by default.

    Raises
    ------
    InputError
        If one is not present; the message lists those that are.
    """
    known = [str(name) for name in dict.fromkeys(present)]
    if asked is None:
        return known
    wanted = [asked] if isinstance(asked, str) else [str(name) for name in asked]
    absent = [name for name in wanted if name not in known]
    if absent:
        raise InputError(f"There is no {what} {listed(absent)}; there are {listed(sorted(known), 60)}.")
    return wanted


def drawn(groups: pd.DataFrame, n: int | None, rng: int | np.random.Generator | None) -> np.ndarray:
    """Rows in order, at most `n` of each group (a distinct row of `groups`) drawn at random; all for None.

    Every group draws on its own, so that the same cells come whatever other groups are asked for with the same seed.
    """
    if n is not None and n < 1:
        raise InputError(f"n={n} takes no cell: at least 1 of each group.")
    if n is None or not len(groups):
        return np.arange(len(groups))
    seed = int(np.random.default_rng(rng).integers(2**32))
    labels = groups.astype(str).agg("/".join, axis=1).to_numpy()
    rows, small = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < n:
            small.append(f"{label} ({len(members)})")
        generator = np.random.default_rng([seed, *label.encode()])
        rows.append(members if len(members) <= n else generator.choice(members, n, replace=False))
    if small:
        logger.warning("fewer than %d cells in %s: all of them are taken", n, listed(small))
    return np.sort(np.concatenate(rows))


def stages(values: Iterable[object], order: Sequence[str]) -> pd.Categorical[str]:
    """Stages as a categorical that knows their order, without those that no cell has."""
    present = [str(value) for value in values]
    return pd.Categorical(present, categories=[stage for stage in order if stage in set(present)], ordered=True)


def centred(image: NDArray[Any], lengths: Sequence[int]) -> NDArray[Any]:
    """Middle of an image along its last axes, or the image in the middle of zeros where it is smaller."""
    axes = len(lengths)
    have = image.shape[-axes:]
    out = np.zeros((*image.shape[:-axes], *lengths), image.dtype)
    origin = [(h - want) // 2 for h, want in zip(have, lengths, strict=True)]
    # mypy knows no index of an ellipsis and slices
    shared: Any = overlap(origin, lengths, have)
    source, target = shared
    out[..., *target] = image[..., *source]
    return out


def averaging_factor(extent: Sequence[int], size: Sequence[int]) -> int:
    """Smallest whole factor by which the largest crop must be shrunk along every axis to fit `size`."""
    return max(1, *(math.ceil(have / want) for have, want in zip(extent, size, strict=True)))


def averaged(image: NDArray[Any], size: Sequence[int], factor: int) -> NDArray[np.float64]:
    """Image placed in the middle of ``size * factor`` and averaged over blocks of `factor` to `size`, float64.

    Pixels keep their shape and every crop its scale: a large cell stays larger than a small one.
    """
    placed = centred(image, [length * factor for length in size])
    blocks = placed.reshape(*image.shape[: -len(size)], *(n for length in size for n in (length, factor)))
    lead = image.ndim - len(size)
    return np.asarray(blocks.mean(axis=tuple(lead + 1 + 2 * axis for axis in range(len(size))), dtype=np.float64))


def member(archive: zipfile.ZipFile, ending: str) -> str:
    """Name of the one file in an archive whose path ends so, whatever folder it was packed in.

    Raises
    ------
    InputError
        If there is none.
    """
    found = [name for name in archive.namelist() if ("/" + name).endswith("/" + ending) and "__MACOSX" not in name]
    if not found:
        raise InputError(f"{archive.filename} holds no {ending}; it holds {listed(archive.namelist())}.")
    return found[0]
