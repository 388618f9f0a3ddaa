"""dSprites: drawn shapes whose factors are known, the yardstick of disentanglement."""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.choosing import member
from latentcell.cells.datasets.fetching import Remote, fetch
from latentcell.cells.images import set_images
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_SPRITES = Remote(
    "dsprites",
    _FILE,
    f"https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/master/{_FILE}",
    "md5:7da33b31b13a06f4b04a70402ce90c2e",
)
_SHAPES = ("square", "ellipse", "heart")
# columns of latents_values: colour (always white), shape, then these
_FACTORS = ("scale", "orientation", "x", "y")
# images unpacked at once
_BLOCK = 4096


def dsprites(n: int | None = 10_000, *, rng: int | np.random.Generator | None = 0) -> AnnData:
    """Squares, ellipses and hearts at every scale, angle and place (Matthey 2017).

    Downloads 27 MB from GitHub, whose checksum is pinned. The file's ``metadata``, a pickle, is not read.

    Parameters
    ----------
    n
        Images drawn at random without replacement; None takes all 737,280 (3 GB).

    Returns
    -------
    AnnData
        ``obsm["images"]`` ``(n, 1, 64, 64)`` uint8, 0 or 1. ``obs``: ``shape``, ``scale``, ``orientation`` (0 to 2 pi),
        ``x``, ``y`` (0 to 1).

    Raises
    ------
    InputError
        If the file cannot be fetched or is of another kind.
    """
    from anndata import AnnData

    with zipfile.ZipFile(fetch(_SPRITES)) as archive:
        values = _rows(archive, "latents_values", None)
        if n is not None and n < 1:
            raise InputError(f"n={n} takes no image.")
        n_all = len(values)
        if n is None or n >= n_all:
            rows = np.arange(n_all)
        else:
            rows = np.sort(np.random.default_rng(rng).choice(n_all, n, replace=False))
        images = _rows(archive, "imgs", rows)
        shapes = _rows(archive, "latents_classes", rows)[:, 1]
    if images.ndim != 3 or len(images) != len(rows):
        raise InputError(f"The images of {_FILE} have shape {images.shape}; expected one plane (y, x) for each.")
    obs = pd.DataFrame(
        {"shape": pd.Categorical([_SHAPES[shape] for shape in shapes], list(_SHAPES))},
        index=pd.Index([f"sprite_{row}" for row in rows]),
    )
    for column, factor in enumerate(_FACTORS):
        obs[factor] = values[rows, column + 2]
    cells = AnnData(obs=obs)
    set_images(cells, images[:, None], channel_names=["sprite"])
    return labelled(cells, "dsprites")


def _rows(archive: zipfile.ZipFile, name: str, rows: np.ndarray | None) -> np.ndarray:
    """Rows (ascending) of an array in an npz file, unpacked block by block: the whole would be gigabytes."""
    with archive.open(member(archive, f"{name}.npy")) as stream:
        version = np.lib.format.read_magic(stream)
        read_header: Any = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read_header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        if fortran or dtype.hasobject:
            raise InputError(f"{name} of {archive.filename} is not stored as plain numbers in rows.")
        wanted = np.arange(shape[0]) if rows is None else rows
        found = np.empty((len(wanted), *shape[1:]), dtype)
        width = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, shape[0], _BLOCK):
            stop = min(start + _BLOCK, shape[0])
            content = stream.read((stop - start) * width)
            low, high = np.searchsorted(wanted, [start, stop])
            if high > low:
                block = np.frombuffer(content, dtype).reshape(stop - start, *shape[1:])
                found[low:high] = block[wanted[low:high] - start]
    return found
