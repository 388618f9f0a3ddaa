"""BBBC048: Jurkat cells from imaging flow cytometry, in seven stages of the cell cycle."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell.atomic import replacing
from latentcell.cells.datasets import choosing
from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.fetching import Remote, fetch
from latentcell.cells.images import set_images
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

# no checksum is published
_ARCHIVE = Remote("bbbc048", "BBBC048v1.zip", "https://data.broadinstitute.org/bbbc/BBBC048/BBBC048v1.zip")
_INNER = "CellCycle.zip"
_STAGES = ("G1", "S", "G2", "Prophase", "Metaphase", "Anaphase", "Telophase")
_CHANNELS = ("Ch3", "Ch4", "Ch6")
_SIDE = 66
_FILE = re.compile(r"(?:^|/)(?P<stage>\w+)/(?P<cell>\d+)_Ch3\.ome\.jpg$")


def bbbc048(
    stages: str | Sequence[str] | None = None, *, n: int | None = 500, rng: int | np.random.Generator | None = 0
) -> AnnData:
    """Jurkat cells by stage of the cell cycle, three channels of 66 x 66 pixels (BBBC048v1).

    Downloads 1.6 GB from the Broad Institute, which publishes no checksum, and unpacks the archive inside it beside
    it. Mitotic cells are few: 606 prophases, fewer of every later stage.

    Parameters
    ----------
    stages
        Stages to take: ``G1``, ``S``, ``G2``, ``Prophase``, ``Metaphase``, ``Anaphase``, ``Telophase``.
    n
        Cells of each stage at most, drawn at random; None takes all 32,266.

    Returns
    -------
    AnnData
        ``obsm["images"]`` ``(n, 3, 66, 66)`` uint8. Channels carry the names of the files, ``Ch3``, ``Ch4`` and
        ``Ch6``, the detectors of the cytometer; users of the set take Ch3 for bright field. They were stored as JPEG.
        ``obs``: ``stage``, in order.

    Raises
    ------
    InputError
        If the file cannot be fetched or does not hold the cells, or a stage does not exist.
    """
    from anndata import AnnData

    wanted = choosing.named(stages, _STAGES, "stage of the cell cycle")
    with zipfile.ZipFile(_inner_archive()) as archive:
        table = _listed(archive)
        table = table[table["stage"].isin(wanted)].reset_index(drop=True)
        table = table.iloc[choosing.drawn(table[["stage"]], n, rng)].reset_index(drop=True)
        if not len(table):
            raise InputError(f"{archive.filename} holds no cells of the stages {', '.join(wanted)}.")
        images = np.zeros((len(table), len(_CHANNELS), _SIDE, _SIDE), np.uint8)
        for row, first in enumerate(table["file"]):
            for channel, name in enumerate(_CHANNELS):
                images[row, channel] = _picture(archive, first.replace("_Ch3.", f"_{name}."))
    names = [f"{stage}_{cell}" for stage, cell in zip(table["stage"], table["cell"], strict=True)]
    cells = AnnData(obs=pd.DataFrame({"stage": choosing.stages(table["stage"], _STAGES)}, index=pd.Index(names)))
    set_images(cells, images, channel_names=_CHANNELS)
    return labelled(cells, "bbbc048")


def _inner_archive() -> Path:
    """Archive of the pictures, taken out of the one that is downloaded, in which they could not be found fast."""
    inner = _ARCHIVE.target().with_name(_INNER)
    if inner.exists():
        return inner
    with (
        zipfile.ZipFile(fetch(_ARCHIVE)) as outer,
        replacing(inner) as unfinished,
        outer.open(choosing.member(outer, _INNER)) as source,
        unfinished.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 2**20)
    return inner


def _listed(archive: zipfile.ZipFile) -> pd.DataFrame:
    found = [(match["stage"], match["cell"], name) for name in archive.namelist() if (match := _FILE.search(name))]
    return pd.DataFrame(sorted(found), columns=["stage", "cell", "file"])


def _picture(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(archive.read(name))) as picture:
            return choosing.centred(np.asarray(picture.convert("L")), (_SIDE, _SIDE))
    except KeyError:
        raise InputError(
            f"{archive.filename} holds no {name}, a channel of a cell whose first channel is there."
        ) from None
    except OSError as error:
        raise InputError(f"The picture {name} in {archive.filename} cannot be read: {error}.") from error
