"""What public data sets there are, with their licences and papers, and one call for all of them."""

from __future__ import annotations

import inspect
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentcell import keys
from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("latentcell")


@dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes
    ----------
    name
        Name of the function that fetches it, and of its folder in the cache.
    what
        What the cells are and what was measured.
    size
        How much is downloaded.
    licence
        Terms of the source, or where they are stated.
    citation
        Paper to cite.
    home
        Page of the data set.
    """

    name: str
    what: str
    size: str
    licence: str
    citation: str
    home: str


_DATASETS = [
    Dataset(
        "allen_cells",
        "3-D images of human stem cells: membrane, DNA and one of 25 structures, six stages of the cell cycle",
        "table of 1.7 GB, then about 35 MB per cell",
        "Allen Institute terms of use: not commercial, cite (allencell.org/terms-of-use.html)",
        "Viana et al. 2023, Nature 613, 345",
        "https://open.quiltdata.com/b/allencell/packages/aics/hipsc_single_cell_image_dataset",
    ),
    Dataset(
        "allen_features",
        "measured shape and position of the same cells; shape-matched subsets of interphase, mitotic and edge cells",
        "a few MB for a subset, 1.7 GB for all",
        "Allen Institute terms of use: not commercial, cite (allencell.org/terms-of-use.html)",
        "Viana et al. 2023, Nature 613, 345",
        "https://github.com/allen-cell-animated/cell-feature-data",
    ),
    Dataset(
        "bbbc021",
        "MCF7 cells under 113 compounds at eight doses: DNA, tubulin, actin; cells cut out around their nuclei",
        "about 0.8 GB per plate, 55 plates",
        "images (c) AstraZeneca, no open licence; see the page",
        "Caie et al. 2010, Mol Cancer Ther 9, 1913; Ljosa et al. 2012, Nat Methods 9, 637",
        "https://bbbc.broadinstitute.org/BBBC021",
    ),
    Dataset(
        "bbbc048",
        "32,266 Jurkat cells from imaging flow cytometry in seven stages of the cell cycle",
        "1.6 GB, and as much again unpacked",
        "CC BY-NC-SA 3.0",
        "Eulenberg et al. 2017, Nat Commun 8, 463; Blasi et al. 2016, Nat Commun 7, 10256",
        "https://bbbc.broadinstitute.org/BBBC048",
    ),
    Dataset(
        "dsprites",
        "737,280 drawn shapes whose five factors are known",
        "27 MB",
        "see LICENSE of the repository",
        "Matthey et al. 2017, github.com/google-deepmind/dsprites-dataset",
        "https://github.com/google-deepmind/dsprites-dataset",
    ),
    Dataset(
        "embryoid_body",
        "transcriptomes of human embryoid bodies over 27 days",
        "162 MB",
        "as stated at doi.org/10.17632/v6n743h5ng.1",
        "Moon et al. 2019, Nat Biotechnol 37, 1482",
        "https://data.mendeley.com/datasets/v6n743h5ng/1",
    ),
    Dataset(
        "kang2018",
        "transcriptomes of 24,673 blood cells of eight donors, control and stimulated with interferon beta",
        "77 MB",
        "none stated (GEO GSE96583)",
        "Kang et al. 2018, Nat Biotechnol 36, 89",
        "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE96583",
    ),
    Dataset(
        "mitocheck",
        "HeLa nuclei (H2B) of the MitoCheck training set with their phenotype, cut out of films of knock-downs",
        "one film of a well per 10 to 200 cells, each some 100 MB",
        "as stated at idr.openmicroscopy.org for idr0013",
        "Neumann et al. 2010, Nature 464, 721",
        "https://idr.openmicroscopy.org/webclient/?show=screen-1101",
    ),
]


def available() -> list[Dataset]:
    """List the public data sets by name, with what they are, how much is downloaded, licence, and paper to cite."""
    return list(_DATASETS)


def load(name: str, **options: Any) -> AnnData:
    """Fetch a data set by its name; `options` are those of its function, and None stands for the default.

    Raises
    ------
    InputError
        If there is no such data set or it does not take an option, or as its function.
    """
    import latentcell.cells.datasets as datasets

    refuse_unknown(name)
    function = getattr(datasets, name)
    taken = list(inspect.signature(function).parameters)
    given = {option: value for option, value in options.items() if value is not None}
    unknown = [option for option in given if option not in taken]
    if unknown:
        raise InputError(f"The data set {name} does not take {listed(unknown)}; it takes {listed(taken, len(taken))}.")
    cells: AnnData = function(**given)
    return cells


def refuse_unknown(name: str) -> None:
    """Raise `InputError` with the names there are if `name` is none of them."""
    names = [dataset.name for dataset in _DATASETS]
    if name not in names:
        raise InputError(f"There is no data set {name!r}; there are {listed(names, len(names))}.")


def save(cells: AnnData, path: str | Path) -> None:
    """Write cells to an ``.h5ad`` file or a ``.zarr`` store, whole or not at all.

    Raises
    ------
    InputError
        If the name ends otherwise, or the store exists.
    """
    from latentcell.cells.stores import write_h5ad, write_zarr

    check_writable(path)
    (write_zarr if Path(path).suffix == ".zarr" else write_h5ad)(cells, path)


def check_writable(path: str | Path) -> None:
    """Refuse what `save` could not write, before anything is downloaded."""
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"Cells are written as .h5ad or .zarr; {path} ends otherwise.")
    if path.suffix == ".zarr" and path.exists():
        raise InputError(f"{path} exists already: choose another name or delete it first.")


def labelled(cells: AnnData, name: str) -> AnnData:
    """Cells with ``uns["dataset"]``: name, licence, citation and home of the data set they come from."""
    dataset = next(dataset for dataset in _DATASETS if dataset.name == name)
    cells.uns[keys.DATASET] = asdict(dataset)
    logger.info("%s: %s cells; cite %s; licence: %s", name, f"{cells.n_obs:,}", dataset.citation, dataset.licence)
    return cells
