"""MitoCheck: nuclei whose phenotype experts named, cut out of the films of the genome-wide knock-down screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell.cells.crops import overlap
from latentcell.cells.datasets import choosing
from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.fetching import Remote, fetch
from latentcell.cells.images import set_images
from latentcell.cells.tables import read_table
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

# the annotations of Neumann 2010 and the list of their films that IDR hosts, as Way Lab published them; the commits in
# the addresses fix their content
_LABELS = Remote(
    "mitocheck",
    "features.samples.txt",
    "https://raw.githubusercontent.com/WayScience/mitocheck_data/3ebd0ca7c288f608e9b23987a8ddbabd5476bd8f/"
    "mitocheck_metadata/features.samples.txt",
)
_HOSTED = Remote(
    "mitocheck",
    "training_locations.tsv",
    "https://raw.githubusercontent.com/WayScience/mitocheck_data/025bebc16531cd17208f0fe563339fb3a484d3ea/"
    "0.locate_data/locations/training_locations.tsv",
)
_FILMS = "https://ftp.ebi.ac.uk/pub/databases/IDR/idr0013-neumann-mitocheck/20150916-mitocheck-analysis/mitocheck"
_LINE = re.compile(
    r"^(?P<phenotype>[^\t]+)\tPL(?P<screen>(?P<plate>LT\d+_\d+)--.+)___P(?P<number>\d{5})_01"
    r"___T(?P<frame>\d{5})___X(?P<x>\d{4})___Y(?P<y>\d{4})$"
)
# two classes carry working names in the annotations
_RENAMED = {"Shape1": "Binuclear", "Shape3": "Polylobed"}


def mitocheck(
    phenotypes: str | Sequence[str] | None = None,
    *,
    movies: int = 3,
    n: int | None = None,
    size: int = 64,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    """HeLa nuclei (H2B-GFP) with the phenotype that experts gave them, from films of knock-downs (Neumann 2010).

    The annotations name a film, a frame and a position for each cell. The films are downloaded from the Image Data
    Resource (idr0013, plain HTTPS), some 100 MB each, and stay in the cache; no checksums are published. Films that it
    does not host are left out.

    Parameters
    ----------
    phenotypes
        Classes to take, such as ``Interphase``, ``Prometaphase``, ``Binuclear``, ``Polylobed``; all by default.
    movies
        Films to download: those with the most cells of these classes.
    n
        Cells of each phenotype at most, drawn at random; None takes all.
    size
        Side of a crop in pixels.

    Returns
    -------
    AnnData
        ``obsm["images"]`` ``(n, 1, size, size)`` as stored, centred on the cell, zero beyond the field. ``obs``:
        ``phenotype``, ``gene`` (target of the knock-down), ``plate``, ``well``, ``movie`` (cells of one film are not
        independent: use it as ``split_key``), ``frame`` (from 0), ``x``, ``y``.

    Raises
    ------
    InputError
        If a file cannot be fetched or is of another kind, or a phenotype does not exist.
    """
    from anndata import AnnData

    table = _annotations(fetch(_LABELS)).merge(_hosted(fetch(_HOSTED)), on=["plate", "number"])
    if not len(table):
        raise InputError("None of the annotated cells lies in a film that the Image Data Resource hosts.")
    wanted = choosing.named(phenotypes, sorted(table["phenotype"].unique()), "phenotype")
    table = table[table["phenotype"].isin(wanted)].reset_index(drop=True)
    if movies < 1:
        raise InputError(f"movies={movies} gives no cells: at least 1.")
    counts = table["movie"].value_counts()
    ranked = sorted(counts.index, key=lambda movie: (-counts[movie], movie))
    table = table[table["movie"].isin(ranked[:movies])].reset_index(drop=True)
    table = table.iloc[choosing.drawn(table[["phenotype"]], n, rng)].reset_index(drop=True)
    crops: dict[int, np.ndarray] = {}
    for _, of_movie in table.groupby("movie", sort=False):
        film = fetch(_film(of_movie.iloc[0]))
        crops |= dict(zip(of_movie.index, _cut_out(film, of_movie, size), strict=True))
    obs = table[["phenotype", "gene", "plate", "well", "movie", "frame", "x", "y"]].set_index(
        pd.Index(
            [f"{c.plate}_{c.number:05d}_T{c.frame:05d}_X{c.x:04d}_Y{c.y:04d}" for c in table.itertuples()], name=None
        )
    )
    cells = AnnData(obs=obs)
    set_images(cells, np.stack([crops[row] for row in range(len(table))])[:, None], channel_names=["H2B"])
    return labelled(cells, "mitocheck")


def _annotations(path: Path) -> pd.DataFrame:
    """Cells of the training set: class, film, frame and position; a cell that was named twice is taken once."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    matches = [_LINE.match(line) for line in lines]
    unread = [line for line, match in zip(lines, matches, strict=True) if match is None]
    if unread or not lines:
        raise InputError(
            f"{path} is not the list of annotated cells: cannot read {unread[0] if unread else 'a line'!r}."
        )
    table = pd.DataFrame([match.groupdict() for match in matches if match])
    for column in ("number", "frame", "x", "y"):
        table[column] = table[column].astype(int)
    table["phenotype"] = table["phenotype"].replace(_RENAMED)
    return table.drop_duplicates(["screen", "number", "frame", "x", "y"])


def _hosted(path: Path) -> pd.DataFrame:
    """Films that can be had: plate and number of the well, its name and the gene knocked down there."""
    table = read_table(path)
    needed = {"Plate": "plate", "Well Number": "number", "Well": "well", "Original Gene Target": "gene"}
    absent = [column for column in needed if column not in table]
    if absent:
        raise InputError(f"{path} has no column {absent[0]!r}: it is not the list of films.")
    table = table[list(needed)].rename(columns=needed)
    table["number"] = table["number"].astype(int)
    table["movie"] = table["plate"] + "/" + table["well"]
    return table.drop_duplicates(["plate", "number"])


def _film(cell: pd.Series) -> Remote:
    path = f"{cell['screen']}/hdf5/{cell['number']:05d}_01.ch5"
    return Remote("mitocheck", path, f"{_FILMS}/{path}")


def _cut_out(film: Path, cells: pd.DataFrame, size: int) -> list[np.ndarray]:
    """Crop of each cell from a CellH5 film: ``image/channel`` is (channel, time, z, y, x)."""
    import h5py

    try:
        file = h5py.File(film, "r")
    except OSError as error:
        raise InputError(f"The film {film} cannot be opened: {error}. Delete it and run again.") from error
    with file:
        stack = _image_of(file, film)
        crops = []
        for frame, y, x in cells[["frame", "y", "x"]].to_numpy().tolist():
            if frame >= stack.shape[1] or y >= stack.shape[3] or x >= stack.shape[4]:
                raise InputError(
                    f"The cell at frame {frame}, y {y}, x {x} lies outside the film {film}, which has "
                    f"{stack.shape[1]} frames of {stack.shape[3]} x {stack.shape[4]} pixels."
                )
            crops.append(_window(stack, frame, y, x, size))
    return crops


def _image_of(file: Any, film: Path) -> Any:
    found: list[Any] = []

    def look(name: str, item: Any) -> None:
        if name.endswith("/image/channel") and getattr(item, "ndim", 0) == 5:
            found.append(item)

    if "sample/0/plate" in file:
        file["sample/0/plate"].visititems(look)
    if not found:
        raise InputError(f"{film} holds no images where a CellH5 file has them (sample/0/plate/.../image/channel).")
    return found[0]


def _window(stack: Any, frame: int, y: int, x: int, size: int) -> np.ndarray:
    source, target = overlap((y - size // 2, x - size // 2), (size, size), stack.shape[3:])
    out = np.zeros((size, size), stack.dtype)
    out[target] = stack[(0, frame, 0, *source)]
    return out
