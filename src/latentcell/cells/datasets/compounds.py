"""BBBC021: MCF7 cells under compounds at several doses, cut out of whole fields around their nuclei."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import ndimage

from latentcell import keys
from latentcell.cells.datasets import choosing
from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.fetching import Remote, fetch
from latentcell.cells.images import set_images
from latentcell.cells.tables import read_table
from latentcell.errors import InputError
from latentcell.progress import progress_bar

if TYPE_CHECKING:
    from anndata import AnnData

_BASE = "https://data.broadinstitute.org/bbbc/BBBC021"
# checksums on which independent users of these files agree; none are published, and none are known of the images
_IMAGES = Remote(
    "bbbc021",
    "BBBC021_v1_image.csv",
    f"{_BASE}/BBBC021_v1_image.csv",
    "sha256:7fd8a9363970548736a03eba3e14bd2b737c967f0e0fdf436bc91004676f50e7",
)
_MECHANISMS = Remote(
    "bbbc021",
    "BBBC021_v1_moa.csv",
    f"{_BASE}/BBBC021_v1_moa.csv",
    "sha256:cddb6c6b72c043fd25f3a41d84624d4817927a1d76fe87dc829674181dd62719",
)
_CHANNELS = {"DNA": "DAPI", "actin": "Actin", "tubulin": "Tubulin"}
_PLATE, _WELL = "Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI"
_COMPOUND, _DOSE = "Image_Metadata_Compound", "Image_Metadata_Concentration"
_SITE = re.compile(r"_s(\d+)_w")
# pixels: blur before the threshold, least area of a nucleus, distance between centres of touching nuclei
_BLUR, _LEAST, _APART = 2.0, 300, 12


def bbbc021(
    plates: str | Sequence[str] = "Week1_22123",
    *,
    compounds: str | Sequence[str] | None = None,
    wells: str | Sequence[str] | None = None,
    n: int | None = 100,
    size: int = 96,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    """MCF7 cells under compounds: DNA, actin and tubulin, one crop around each nucleus (BBBC021v1, Caie 2010).

    Downloads about 0.8 GB per plate from the Broad Institute. The set holds whole fields; nuclei are found here by a
    threshold on DNA (Otsu) and a watershed between touching ones, and cells at the border of a field are left out.
    There are no outlines of cells, so neighbours appear in the crops and there are no masks. Needs
    ``latentcell[fields]``.

    Parameters
    ----------
    plates
        Names such as ``Week1_22123``; 55 exist.
    compounds, wells
        Which to take of these plates, for example ``["DMSO", "taxol"]`` and, by place, ``["B02", "C02"]``; all by
        default.
    n
        Cells of each well at most, drawn at random; None takes all.
    size
        Side of a crop in pixels.

    Returns
    -------
    AnnData
        ``obsm["images"]`` ``(n, 3, size, size)`` uint16 as stored. ``obs``: ``compound``, ``concentration``, ``moa``
        (mechanism of action, missing where none is annotated), ``plate``, ``well`` (unique across plates),
        ``position`` (such as B02), ``replicate``, ``field``, ``x``, ``y``, ``area`` (of the nucleus, pixels).

    Raises
    ------
    InputError
        If a file cannot be fetched, a plate, compound or well does not exist, or scikit-image is missing.
    """
    from anndata import AnnData

    fields = _fields(plates, compounds, wells)
    archives = {plate: fetch(_plate_archive(plate)) for plate in fields["plate"].unique()}
    seed = int(np.random.default_rng(rng).integers(2**32))
    tables, crops, done = [], [], 0
    with progress_bar("bbbc021", len(fields)) as update:
        for (plate, well), of_well in fields.groupby(["plate", "well"], sort=False):
            with zipfile.ZipFile(archives[plate]) as archive:
                parts = [part for _, field in of_well.iterrows() for part in _cells_of(field, archive, size)]
            done += len(of_well)
            update(done, f"fields, last {well}")
            if not parts:
                continue
            obs = pd.concat([part.obs for part in parts])
            # a plate's cells are gigabytes: only those that are kept stay
            rows = choosing.drawn(obs[["well"]], n, seed)
            tables.append(obs.iloc[rows])
            crops.append(np.concatenate([part.obsm[keys.IMAGES] for part in parts])[rows])
    if not tables:
        raise InputError("No nucleus was found in the fields asked for.")
    cells = AnnData(obs=pd.concat(tables))
    set_images(cells, np.concatenate(crops), channel_names=list(_CHANNELS))
    return labelled(cells, "bbbc021")


def _plate_archive(plate: str) -> Remote:
    name = f"BBBC021_v1_images_{plate}.zip"
    return Remote("bbbc021", name, f"{_BASE}/{name}")


def _fields(
    plates: str | Sequence[str], compounds: str | Sequence[str] | None, wells: str | Sequence[str] | None
) -> pd.DataFrame:
    """Table of the fields asked for: where they lie in the archives and what was done to their cells."""
    table = read_table(fetch(_IMAGES))
    table = table[table[_PLATE].isin(choosing.named(plates, sorted(table[_PLATE].unique()), "plate"))]
    by_compound = choosing.named(compounds, table[_COMPOUND].unique(), "compound on these plates")
    by_well = choosing.named(wells, table[_WELL].unique(), "well on these plates")
    table = table[table[_COMPOUND].isin(by_compound) & table[_WELL].isin(by_well)]
    if not len(table):
        raise InputError("None of the wells asked for holds one of the compounds asked for.")
    known = read_table(fetch(_MECHANISMS)).rename(columns={"compound": _COMPOUND, "concentration": _DOSE})
    # doses are written with different numbers of digits in the two tables
    table["dose"], known["dose"] = table[_DOSE].astype(float).round(6), known[_DOSE].astype(float).round(6)
    table = table.merge(known[[_COMPOUND, "dose", "moa"]], on=[_COMPOUND, "dose"], how="left")
    described = pd.DataFrame(
        {
            "compound": table[_COMPOUND],
            "concentration": table["dose"],
            "moa": table["moa"],
            "plate": table[_PLATE],
            "well": table[_PLATE] + "_" + table[_WELL],
            "position": table[_WELL],
            "replicate": table["Replicate"].astype(str),
            "field": table["Image_FileName_DAPI"].str.extract(_SITE, expand=False).fillna("0"),
        }
    )
    for channel, stain in _CHANNELS.items():
        described[f"file_{channel}"] = table[f"Image_FileName_{stain}"]
    return described.sort_values(["plate", "well", "field"]).reset_index(drop=True)


def _cells_of(field: pd.Series, archive: zipfile.ZipFile, size: int) -> list[AnnData]:
    """Cells of one field, none or one part."""
    import tifffile

    from latentcell.cells.crops import crop_cells

    planes = []
    for channel in _CHANNELS:
        content = archive.read(choosing.member(archive, str(field[f"file_{channel}"])))
        planes.append(tifffile.imread(io.BytesIO(content)))
    labels = nuclei(planes[0])
    if not labels.any():
        return []
    cells = crop_cells(
        np.stack(planes), labels, size=size, channel_names=list(_CHANNELS), field=f"{field['well']}_s{field['field']}"
    )
    cells = cells[~cells.obs["touches_border"].to_numpy()].copy()
    measured = cells.obs[["x", "y", "area"]]
    described = field.drop([f"file_{channel}" for channel in _CHANNELS])
    cells.obs = pd.DataFrame({name: [value] * cells.n_obs for name, value in described.items()}, index=cells.obs.index)
    cells.obs[["x", "y", "area"]] = measured
    return [cells] if cells.n_obs else []


def nuclei(dna: np.ndarray) -> np.ndarray:
    """Label the nuclei of a field ``(H, W)``: 0 is background.

    Blurred, thresholded (Otsu), holes filled, and touching nuclei split where their distance to the background is
    least; pieces smaller than a nucleus are dropped.
    """
    try:
        from skimage.feature import peak_local_max
        from skimage.filters import threshold_otsu
        from skimage.segmentation import watershed
    except ImportError as error:
        raise InputError("Finding nuclei needs scikit-image: pip install 'latentcell[fields]'.") from error
    smooth = ndimage.gaussian_filter(dna.astype(np.float32), _BLUR)
    if smooth.min() == smooth.max():
        return np.zeros(dna.shape, np.int32)
    inside = ndimage.binary_fill_holes(smooth > threshold_otsu(smooth))
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), _BLUR)
    pieces, _ = ndimage.label(inside)
    peaks = peak_local_max(depth, min_distance=_APART, labels=pieces, exclude_border=False)
    seeds = np.zeros(dna.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = np.asarray(watershed(-depth, seeds, mask=inside), np.int32)
    small = np.bincount(labels.ravel()) < _LEAST
    small[0] = False
    labels[small[labels]] = 0
    return labels
