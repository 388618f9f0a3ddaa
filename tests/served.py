"""A small file server in place of the hosts of public data sets, and small files in the form that those hosts have."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


class Server:
    """Serves bytes by path, with ranges; can break a transfer off, and remembers what it was asked for.

    Attributes
    ----------
    files
        Content by path.
    cut
        By path, after how many bytes to break off; each number is used up by one request.
    asked
        Path and ``Range`` header of every request.
    versioned
        Whether files carry an ETag.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.versioned = True
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def serve(self, dataset: str, files: Mapping[str, bytes]) -> None:
        self.files |= {f"/{dataset}/{path}": content for path, content in files.items()}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                asked = self.headers.get("Range")
                server.asked.append((path, asked))
                content = server.files.get(path)
                if content is None:
                    self.send_error(404)
                    return
                tag = f'"{hashlib.md5(content).hexdigest()}"'
                start = 0
                if asked and self.headers.get("If-Range") == tag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content) > 0 and start:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                if server.versioned:
                    self.send_header("ETag", tag)
                self.end_headers()
                cuts = server.cut.get(path)
                self.wfile.write(content[start : start + cuts.pop(0)] if cuts else content[start:])

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def npz_of_sprites(n: int = 60) -> tuple[bytes, np.ndarray, np.ndarray]:
    """An archive as dSprites has it, with its images and classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (n, 64, 64), dtype=np.uint8)
    classes = np.stack([np.zeros(n, int), *(rng.integers(0, k, n) for k in (3, 6, 40, 32, 32))], axis=1)
    values = np.stack([np.ones(n), classes[:, 1] + 1, 0.5 + classes[:, 2] / 10, *(classes[:, 3:] / 32).T], axis=1)
    out = io.BytesIO()
    metadata = np.array({"title": "dSprites dataset"}, dtype=object)
    np.savez_compressed(out, metadata=metadata, imgs=images, latents_classes=classes, latents_values=values)
    return out.getvalue(), images, classes


def market(counts: np.ndarray) -> bytes:
    """Matrix Market file of cells by genes, written as genes by cells."""
    genes, cells = np.nonzero(counts.T)
    lines = [f"{g + 1} {c + 1} {counts[c, g]}" for g, c in zip(genes, cells, strict=True)]
    head = f"%%MatrixMarket matrix coordinate integer general\n{counts.shape[1]} {counts.shape[0]} {len(lines)}"
    return "\n".join([head, *lines, ""]).encode()


def tarred(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


GENES = ["ENSG1\tA", "ENSG2\tB", "ENSG3\tB", "ENSG4\tC"]


def files_of_kang() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files of GSE96583, batch 2, and the counts of both samples; the last cell of each is a doublet."""
    rng = np.random.default_rng(1)
    counts = {"ctrl": rng.integers(0, 4, (5, 4)), "stim": rng.integers(0, 4, (4, 4))}
    barcodes = {
        "ctrl": ["AAAC-1", "CCCG-1", "GGGT-1", "TTTA-1", "ACGT-1"],
        "stim": ["AAAC-1", "GATT-1", "CATC-1", "TACG-1"],
    }
    rows = ["tsne1\ttsne2\tind\tstim\tcluster\tcell\tmultiplets"]
    for sample, names in barcodes.items():
        # the table is not in the order of the matrix
        for i, name in reversed(list(enumerate(names))):
            shown = name + "1" if sample == "stim" and name in barcodes["ctrl"] else name
            kind = "doublet" if i == len(names) - 1 else "singlet"
            rows.append(
                f"{shown}\t0.5\t-1.5\t{(101, 1016)[i % 2]}\t{sample}\t{i}\t{('B cells', 'NK cells')[i % 2]}\t{kind}"
            )
    raw = {}
    for sample, accession, name in (("ctrl", "GSM2560248", "2.1"), ("stim", "GSM2560249", "2.2")):
        raw[f"{accession}_{name}.mtx.gz"] = gzip.compress(market(counts[sample]))
        raw[f"{accession}_barcodes.tsv.gz"] = gzip.compress("\n".join(barcodes[sample]).encode())
    files = {
        "GSE96583_RAW.tar": tarred({"GSM2560245_A.mat.gz": b"of the first batch", **raw}),
        "GSE96583_batch2.genes.tsv.gz": gzip.compress("\n".join(GENES).encode()),
        "GSE96583_batch2.total.tsne.df.tsv.gz": gzip.compress("\n".join(rows).encode()),
    }
    return files, counts


def archive_of_embryoid_bodies() -> tuple[bytes, dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    files, counts = {"__MACOSX/scRNAseq/T0_1A/matrix.mtx": b"resource fork"}, {}
    for i, sample in enumerate(("T0_1A", "T2_3B", "T4_5C", "T6_7D", "T8_9E")):
        counts[sample] = rng.integers(0, 3, (3 + i, 4))
        files[f"scRNAseq/{sample}/matrix.mtx"] = market(counts[sample])
        files[f"scRNAseq/{sample}/genes.tsv"] = "\n".join(GENES).encode()
        files[f"scRNAseq/{sample}/barcodes.tsv"] = "\n".join(f"ACG{j}-1" for j in range(3 + i)).encode()
    return zipped(files), counts


def crop_of_allen(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw crop (Z, C, Y, X) of DNA, membrane, structure, and its five segmentations."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(100, 4000, (shape[0], 3, *shape[1:]), dtype=np.uint16)
    segmented = np.zeros((shape[0], 5, *shape[1:]), np.uint8)
    segmented[:, 1, 1:-1, 1:-1] = 255
    return raw, segmented


def ome_tiff(stack: np.ndarray) -> bytes:
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, stack, ome=True, metadata={"axes": "ZCYX"})
    return out.getvalue()


NAME_DICT = {
    "crop_raw": ["dna", "membrane", "structure"],
    "crop_seg": [
        "dna_segmentation", "membrane_segmentation", "membrane_segmentation_roof", "struct_segmentation",
        "struct_segmentation_roof",
    ],
}  # fmt: skip


def files_of_allen() -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Table and crops of eight cells: two structures, interphase and metaphase, two each; a ninth is an outlier."""
    import pandas as pd

    rows, files, crops = [], {}, {}
    for i in range(9):
        cell = 230741 + i
        shape = (6 + i % 3, 16 + 2 * i, 20)
        raw, segmented = crop_of_allen(shape, i)
        crops[str(cell)] = raw, segmented
        files[f"crop_raw/{i:04x}_raw.ome.tif"] = ome_tiff(raw)
        files[f"crop_seg/{i:04x}_segmentation.ome.tif"] = ome_tiff(segmented)
        rows.append(
            {
                "Unnamed: 0": i, "CellId": cell, "roi": f"[0, {shape[0]}, 5, {5 + shape[1]}, 7, 27]",
                "crop_raw": f"crop_raw/{i:04x}_raw.ome.tif", "crop_seg": f"crop_seg/{i:04x}_segmentation.ome.tif",
                "name_dict": str(NAME_DICT), "fov_path": f"fov_path/{i}_original.tiff",
                "structure_name": ("TOMM20", "LMNB1")[i % 2], "scale_micron": "[0.108333, 0.108333, 0.108333]",
                "edge_flag": 0, "FOVId": 1000 + i // 3, "PlateId": 3500001, "WellId": 77 + i // 4,
                "cell_stage": ("M0", "M4M5")[(i // 2) % 2], "outlier": "Yes" if i == 8 else "No",
                "MEM_shape_volume": 1_000_000 + i, "MEM_position_depth": 60 + i, "MEM_roundness_surface_area": 9000 + i,
                "NUC_shape_volume": 300_000 + i, "NUC_position_depth": 40 + i, "NUC_roundness_surface_area": 4000 + i,
                "STR_shape_volume": 5000 + i, "STR_connectivity_cc": 3 + i, "NUC_shcoeffs_L0M0C": 21.5,
            }
        )  # fmt: skip
    files["metadata.csv"] = pd.DataFrame(rows).to_csv(index=False).encode()
    return files, crops


def archive_of_features(rows: list[tuple[list[str], list[Any]]]) -> bytes:
    """``cell_feature_analysis.json`` in a zip, from identifiers and values of each cell."""
    entries = [{"file_info": [*known, "", "", "", ""], "features": values} for known, values in rows]
    return zipped({"cell_feature_analysis.json": json.dumps(entries).encode()})


def field_of_cells(seed: int, centres: list[tuple[int, int]], shape: tuple[int, int] = (160, 200)) -> np.ndarray:
    """One plane of a field: bright discs on noise, uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    plane = rng.normal(300, 10, shape)
    for cy, cx in centres:
        plane += 3000 * ((y - cy) ** 2 + (x - cx) ** 2 < 12**2)
    return plane.astype(np.uint16)


def files_of_bbbc021() -> dict[str, bytes]:
    """Tables, and the archive of one plate with two wells of two fields; one cell of each field lies at its border."""
    import pandas as pd
    import tifffile

    rows, members = [], {}
    for well, compound, dose in (("B02", "DMSO", 0.0), ("C05", "taxol", 0.3)):
        for site in (1, 2):
            names = {}
            for wave, stain in (("w1", "DAPI"), ("w2", "Tubulin"), ("w4", "Actin")):
                names[stain] = f"Week1_150607_{well}_s{site}_{wave}0A1B-{well}{site}.tif"
                out = io.BytesIO()
                tifffile.imwrite(out, field_of_cells(site, [(40, 50), (110, 60), (80, 140), (2, 100)]))
                members[f"Week1_22123/{names[stain]}"] = out.getvalue()
            row = {"TableNumber": 1, "ImageNumber": len(rows) + 1}
            for stain, name in names.items():
                row |= {f"Image_FileName_{stain}": name, f"Image_PathName_{stain}": "Week1/Week1_22123"}
            row |= {
                "Image_Metadata_Plate_DAPI": "Week1_22123", "Image_Metadata_Well_DAPI": well, "Replicate": 1,
                "Image_Metadata_Compound": compound, "Image_Metadata_Concentration": dose,
            }  # fmt: skip
            rows.append(row)
    rows.append({**rows[-1], "Image_Metadata_Plate_DAPI": "Week1_22141"})
    moa = "compound,concentration,moa\ntaxol,0.300000012,Microtubule stabilizers\nDMSO,0.0,DMSO\n"
    return {
        "BBBC021_v1_image.csv": pd.DataFrame(rows).to_csv(index=False).encode(),
        "BBBC021_v1_moa.csv": moa.encode(),
        "BBBC021_v1_images_Week1_22123.zip": zipped(members),
    }


def archive_of_bbbc048() -> bytes:
    """Nested archives with three pictures a cell: five cells in G1, two in prophase."""
    from PIL import Image

    members = {}
    for stage, cells in (("G1", range(5)), ("Prophase", range(50, 52))):
        for cell in cells:
            for channel, level in (("Ch3", 100), ("Ch4", 30 + cell), ("Ch6", 200)):
                out = io.BytesIO()
                Image.fromarray(np.full((66, 66), level, np.uint8)).save(out, "JPEG", quality=95)
                members[f"CellCycle/{stage}/{cell}_{channel}.ome.jpg"] = out.getvalue()
            members[f"CellCycle/{stage}/{cell}_merged.jpg"] = b"not needed"
    return zipped({"CellCycle.zip": zipped(members), "readme.txt": b"see paper"})


def files_of_mitocheck() -> tuple[dict[str, bytes], np.ndarray]:
    """Annotations, list of hosted films, and one film of two frames (the other is not hosted)."""
    import h5py

    film = np.random.default_rng(3).integers(1, 255, (1, 2, 1, 90, 120), dtype=np.uint8)
    out = io.BytesIO()
    screen = "LT0013_38--ex2005_05_06--sp2005_04_11--tt163--c3"
    with h5py.File(out, "w") as file:
        file.create_dataset(
            f"sample/0/plate/{screen}/experiment/00042/position/1/image/channel", data=film, compression="gzip"
        )
        file.create_dataset("definition/image/channel", data=np.zeros(3))
    other = "LT0010_27--ex2005_05_13--sp2005_03_23--tt17--c5"
    labels = [
        f"Shape1\tPL{screen}___P00042_01___T00001___X0050___Y0040",
        f"Prometaphase\tPL{screen}___P00042_01___T00000___X0003___Y0088",
        f"Prometaphase\tPL{screen}___P00042_01___T00001___X0100___Y0060",
        f"Large\tPL{other}___P00173_01___T00082___X0397___Y0618",
    ]
    hosted = "\tPlate\tWell\tWell Number\tFrames\tOriginal Gene Target\n0\tLT0013_38\tB18\t42\t2,1\tKIF14\n"
    files = {
        "features.samples.txt": "\n".join([*labels, ""]).encode(),
        "training_locations.tsv": hosted.encode(),
        f"{screen}/hdf5/00042_01.ch5": out.getvalue(),
    }
    return files, film
