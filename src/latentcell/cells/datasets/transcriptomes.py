"""Counts: blood cells under interferon (Kang 2018) and embryoid bodies over 27 days (Moon 2019)."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from latentcell.cells.datasets.catalogue import labelled
from latentcell.cells.datasets.choosing import member, stages
from latentcell.cells.datasets.fetching import Remote, fetch, mirrored
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_GEO = "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE96nnn/GSE96583/suppl"
# checksums on which several independent users of these files agree; GEO publishes none
_MATRICES = Remote(
    "kang2018",
    "GSE96583_RAW.tar",
    f"{_GEO}/GSE96583_RAW.tar",
    "sha256:e5d41a3248a813f99d68fd5c9eb9773de7f46a83680a67f4a02d683b8955fe80",
)
_GENES = Remote(
    "kang2018",
    "GSE96583_batch2.genes.tsv.gz",
    f"{_GEO}/GSE96583_batch2.genes.tsv.gz",
    "sha256:93aa4e9b530ef9d6411ca129b416324c5cc1cc5a01a1fa6ed4f4a845480ed3ca",
)
_CELLS = Remote(
    "kang2018",
    "GSE96583_batch2.total.tsne.df.tsv.gz",
    f"{_GEO}/GSE96583_batch2.total.tsne.df.tsv.gz",
    "sha256:1d57e72e92ca8695250e88cc0f1c3fa8c0be1175d974f8b427c58f1274dc6c09",
)
# the two samples of the second experiment, by their name in the table of cells
_SAMPLES = {"ctrl": ("GSM2560248", "2.1", "control"), "stim": ("GSM2560249", "2.2", "stimulated")}

_MENDELEY = "https://data.mendeley.com/datasets/v6n743h5ng/1"
_LISTING = Remote(
    "embryoid_body",
    "files.json",
    "https://data.mendeley.com/public-api/datasets/v6n743h5ng/files?folder_id=root&version=1",
)
_TIMES = Remote("embryoid_body", "scRNAseq.zip", _MENDELEY, page=_MENDELEY)
# folder of each sample: days over which its cells were pooled
_DAYS = {"T0_1A": (0, 3), "T2_3B": (6, 9), "T4_5C": (12, 15), "T6_7D": (18, 21), "T8_9E": (24, 27)}


def kang2018(*, singlets: bool = True) -> AnnData:
    """Blood cells of eight lupus patients, control and after six hours of interferon beta (GEO GSE96583, batch 2).

    Downloads 77 MB from GEO, whose checksums are pinned.

    Parameters
    ----------
    singlets
        Whether to keep only cells called single by their genotypes and given a type by the authors: 24,673 of 29,065.

    Returns
    -------
    AnnData
        Counts in ``X`` (CSR, float32). ``obs``: ``donor``, ``condition`` (``control``, ``stimulated``), ``cell_type``,
        ``multiplets``, ``cluster``. ``var``: ``gene_id``; genes are named by symbol, by Ensembl identifier where
        several share one.

    Raises
    ------
    InputError
        If a file cannot be fetched or its tables do not fit together.
    """
    from anndata import AnnData

    genes = pd.read_csv(fetch(_GENES), sep="\t", header=None, names=["gene_id", "symbol"], dtype=str)
    table = pd.read_csv(fetch(_CELLS), sep="\t", index_col=0, dtype={"ind": str, "cell": str, "multiplets": str})
    parts, described = [], []
    with tarfile.open(fetch(_MATRICES)) as archive:
        for sample, (accession, matrix, condition) in _SAMPLES.items():
            barcodes = _unpacked(archive, f"{accession}_barcodes.tsv.gz").decode().split()
            counts = _read_market(_unpacked(archive, f"{accession}_{matrix}.mtx.gz"))
            part = _of_sample(table, sample, barcodes)
            if counts.shape != (len(barcodes), len(genes)):
                raise InputError(
                    f"The matrix of sample {accession} has {counts.shape[0]:,} cells and {counts.shape[1]:,} genes, "
                    f"its lists {len(barcodes):,} and {len(genes):,}: the files do not belong together."
                )
            parts.append(counts)
            described.append(part.assign(condition=condition))
    rows = pd.concat(described)
    obs = pd.DataFrame(
        {
            "donor": rows["ind"],
            "condition": pd.Categorical(rows["condition"], ["control", "stimulated"]),
            "cell_type": rows["cell"],
            "multiplets": rows["multiplets"],
            "cluster": rows["cluster"].astype(str),
        }
    )
    cells = AnnData(X=sp.vstack(parts, format="csr"), obs=obs, var=_gene_table(genes))
    if singlets:
        cells = cells[((obs["multiplets"] == "singlet") & obs["cell_type"].notna()).to_numpy()].copy()
    return labelled(cells, "kang2018")


def embryoid_body() -> AnnData:
    """Human embryonic stem cells that differentiate as embryoid bodies over 27 days, five pooled samples (Moon 2019).

    Downloads 162 MB from Mendeley Data, checked against the checksum in its list of files.

    Returns
    -------
    AnnData
        Counts in ``X`` (CSR, float32). ``obs``: ``day`` (the middle of the days that a sample pools: 1.5, 7.5, 13.5,
        19.5, 25.5), ``days`` (``"0-3"``, ``"6-9"``, ..., in order) and ``sample``. ``var``: ``gene_id``.

    Raises
    ------
    InputError
        If the file cannot be fetched or lacks a sample.
    """
    from anndata import AnnData

    parts, names, samples = [], [], []
    genes: pd.DataFrame | None = None
    with zipfile.ZipFile(_time_course()) as archive:
        for sample in _DAYS:
            files = {name: member(archive, f"{sample}/{name}") for name in ("genes.tsv", "barcodes.tsv", "matrix.mtx")}
            listed = pd.read_csv(io.BytesIO(archive.read(files["genes.tsv"])), sep="\t", header=None, dtype=str)
            listed = listed.iloc[:, :2].set_axis(["gene_id", "symbol"], axis=1)
            if genes is not None and not listed.equals(genes):
                raise InputError(f"Sample {sample} lists other genes than the samples before it.")
            genes = listed
            barcodes = archive.read(files["barcodes.tsv"]).decode().split()
            parts.append(_read_market(archive.read(files["matrix.mtx"])))
            names += [f"{sample}_{barcode}" for barcode in barcodes]
            samples += [sample] * len(barcodes)
    days = [_DAYS[sample] for sample in samples]
    obs = pd.DataFrame(
        {
            "day": [sum(pooled) / 2 for pooled in days],
            "days": stages((f"{a}-{b}" for a, b in days), [f"{a}-{b}" for a, b in _DAYS.values()]),
            "sample": pd.Categorical(samples),
        },
        index=pd.Index(names),
    )
    cells = AnnData(X=sp.vstack(parts, format="csr"), obs=obs, var=_gene_table(genes))
    return labelled(cells, "embryoid_body")


def _time_course() -> Path:
    """Archive of the time course: Mendeley gives out an address that expires, with the checksum beside it."""
    if _TIMES.target().exists() or mirrored():
        return fetch(_TIMES)
    try:
        listing = json.loads(fetch(_LISTING, fresh=True).read_text())
        content = next(entry for entry in listing if entry["filename"] == _TIMES.path)["content_details"]
        archive = replace(_TIMES, url=content["download_url"], known_hash=f"sha256:{content['sha256_hash']}")
    except InputError as error:
        raise InputError(f"{error} What is wanted in the end is {_TIMES.path}, at {_TIMES.target()}.") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(
            f"Mendeley Data lists its files in a new way. Download {_TIMES.path} from {_MENDELEY} and put it at "
            f"{_TIMES.target()}."
        ) from error
    return fetch(archive)


def _of_sample(table: pd.DataFrame, sample: str, barcodes: list[str]) -> pd.DataFrame:
    """Rows of a sample's cells in the order of its barcodes, named ``sample_barcode``.

    Barcodes that occur in both samples have got a second 1 in the table.
    """
    rows = table[table["stim"] == sample]
    known = set(barcodes)
    rows = rows.set_axis([b[:-1] if b not in known and b.endswith("-11") else b for b in rows.index.astype(str)])
    if set(rows.index) != known or not rows.index.is_unique or len(known) != len(barcodes):
        raise InputError(
            f"The table of cells names {len(rows):,} cells of sample {sample}, the matrix {len(barcodes):,}, and they "
            "are not the same: the files do not belong together."
        )
    return rows.loc[barcodes].set_axis([f"{sample}_{barcode}" for barcode in barcodes])


def _gene_table(genes: Any) -> pd.DataFrame:
    """``var``: symbols where they are unique, else Ensembl identifiers."""
    unique = ~genes["symbol"].duplicated(keep=False) & genes["symbol"].notna()
    names = np.where(unique, genes["symbol"], genes["gene_id"])
    return pd.DataFrame({"gene_id": genes["gene_id"].to_numpy()}, index=pd.Index(names.astype(str)))


def _unpacked(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        stream = archive.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise InputError(f"{archive.name!s} holds no {name}.")
    return gzip.decompress(stream.read())


def _read_market(content: bytes) -> sp.csr_matrix:
    """Matrix Market file of genes by cells as cells by genes."""
    from scipy.io import mmread

    return sp.csr_matrix(mmread(io.BytesIO(content)).T, dtype=np.float32)
