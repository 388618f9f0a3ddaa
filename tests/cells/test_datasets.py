"""Public data sets become cells as the house knows them, from files in the form that their hosts have."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import latentcell as lc
from latentcell import InputError
from latentcell.cells import datasets
from latentcell.cells.check import info, refuse
from latentcell.cells.datasets import allen_tables, choosing, compounds, transcriptomes
from served import (
    Server,
    archive_of_embryoid_bodies,
    archive_of_features,
    field_of_cells,
    files_of_allen,
    files_of_kang,
    files_of_mitocheck,
    npz_of_sprites,
    zipped,
)

OPTIONS = {"allen_cells": {"size": 16}, "bbbc021": {"size": 32}, "mitocheck": {"size": 16}}
FEATURES = "allen_features"


def features_served(server: Server) -> None:
    values = [8.5, 2734.3, 2007.4, 6.8, 776.7, 703.0, "NaN", -1, 0, 1, *range(8), 23.7, 1, 466577, -0.98, 54]
    rows = [
        ([str(466577 + i), "10221", "AICS-54"], [v if v == "NaN" else v + i / 10 for v in values]) for i in range(4)
    ]
    for _, row in rows:
        row[7:10], row[19:21], row[22] = [-1, 0, 1], [1, -1], 54
    rows[0][1][19:21], rows[0][1][9] = [0, 466578], 0
    server.serve(FEATURES, {f"{subset}.zip": archive_of_features(rows) for subset in ("i1m1", "i2m2", "edges")})


# what all of them keep to


@pytest.mark.parametrize("name", [dataset.name for dataset in datasets.available()])
def test_a_data_set_passes_the_checks_of_a_fit_and_survives_a_file(served: Server, tmp_path: Path, name: str) -> None:
    features_served(served)
    cells = datasets.load(name, **OPTIONS.get(name, {}))
    report = info(cells)
    refuse(report.problems)
    assert report.n_cells == cells.n_obs > 0
    assert report.modality == {FEATURES: "profiles", "kang2018": "counts", "embryoid_body": "counts"}.get(
        name, "images"
    )
    assert cells.obs_names.is_unique
    assert cells.var_names.is_unique
    assert set(cells.uns["dataset"]) == {"name", "what", "size", "licence", "citation", "home"}
    assert cells.uns["dataset"]["name"] == name
    lc.VAE(2)
    asked = len(served.asked)
    again = datasets.load(name, **OPTIONS.get(name, {}))
    assert len(served.asked) == asked
    for suffix in (".h5ad", ".zarr"):
        path = tmp_path / f"cells{suffix}"
        datasets.save(again, path)
        found = lc.read(path)
        assert found.obs_names.tolist() == cells.obs_names.tolist()
        assert found.obs.astype(str).equals(cells.obs.astype(str)[found.obs.columns])
        if report.modality == "images":
            np.testing.assert_array_equal(found.obsm["images"], cells.obsm["images"])


def test_the_list_names_a_function_for_every_data_set() -> None:
    for dataset in datasets.available():
        assert callable(getattr(datasets, dataset.name))
        assert all([dataset.what, dataset.size, dataset.licence, dataset.citation, dataset.home])
    assert set(dir(datasets)) >= {dataset.name for dataset in datasets.available()}
    with pytest.raises(AttributeError, match="nothing"):
        datasets.nothing  # noqa: B018


def test_unknown_names_and_options_are_refused_before_anything_is_downloaded(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no data set 'kang'; there are .*'kang2018'"):
        datasets.load("kang")
    with pytest.raises(InputError, match="kang2018 does not take 'plates'; it takes 'singlets'"):
        datasets.load("kang2018", plates=["x"], n=None)
    with pytest.raises(InputError, match=r"\.h5ad or \.zarr"):
        datasets.save(ad.AnnData(np.ones((2, 2))), tmp_path / "cells.csv")
    assert server.asked == []


# dSprites


def test_dsprites_draws_rows_with_their_factors(served: Server) -> None:
    _, images, classes = npz_of_sprites()
    cells = datasets.dsprites(20, rng=1)
    rows = [int(name.removeprefix("sprite_")) for name in cells.obs_names]
    assert rows == sorted(set(rows))
    assert len(rows) == 20
    np.testing.assert_array_equal(cells.obsm["images"][:, 0], images[rows])
    assert cells.obs["shape"].tolist() == [("square", "ellipse", "heart")[k] for k in classes[rows, 1]]
    np.testing.assert_allclose(cells.obs["scale"], 0.5 + classes[rows, 2] / 10)
    assert datasets.dsprites(20, rng=1).obs_names.equals(cells.obs_names)
    assert not datasets.dsprites(20, rng=2).obs_names.equals(cells.obs_names)
    np.testing.assert_array_equal(datasets.dsprites(None).obsm["images"][:, 0], images)
    with pytest.raises(InputError, match="n=0"):
        datasets.dsprites(0)


def test_a_changed_archive_is_refused(served: Server) -> None:
    served.files["/dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"] += b"more"
    with pytest.raises(InputError, match="checksum"):
        datasets.dsprites(5)
    assert not list(datasets.cache_folder().rglob("*.npz*"))


# transcriptomes


def test_kang_matches_cells_to_donor_type_and_condition_whatever_the_order(served: Server) -> None:
    _, counts = files_of_kang()
    cells = datasets.kang2018(singlets=False)
    assert sp.issparse(cells.X)
    np.testing.assert_array_equal(cells.X.toarray(), np.concatenate([counts["ctrl"], counts["stim"]]))
    assert cells.obs["condition"].tolist() == ["control"] * 5 + ["stimulated"] * 4
    assert cells.obs["donor"].tolist() == ["101", "1016", "101", "1016", "101", "101", "1016", "101", "1016"]
    assert cells.obs_names[0] == "ctrl_AAAC-1"
    assert cells.obs_names[5] == "stim_AAAC-1"
    # two genes share symbol B
    assert cells.var_names.tolist() == ["A", "ENSG2", "ENSG3", "C"]
    assert cells.var["gene_id"].tolist() == ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]
    single = datasets.kang2018()
    assert single.n_obs == 7
    assert set(single.obs["multiplets"]) == {"singlet"}


def test_kang_refuses_files_that_do_not_belong_together(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = gzip.decompress(files_of_kang()[0]["GSE96583_batch2.total.tsne.df.tsv.gz"]).decode().splitlines()[:-1]
    path = datasets.cache_folder() / "other.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lacking).encode()))
    fetched = transcriptomes.fetch
    monkeypatch.setattr(
        transcriptomes, "fetch", lambda remote: path if remote is transcriptomes._CELLS else fetched(remote)
    )
    with pytest.raises(InputError, match=r"names 4 cells of sample ctrl, the matrix 5|names 3 cells of sample stim"):
        datasets.kang2018()


def test_embryoid_bodies_come_with_days_in_order(served: Server) -> None:
    _, counts = archive_of_embryoid_bodies()
    cells = datasets.embryoid_body()
    np.testing.assert_array_equal(cells.X.toarray(), np.concatenate(list(counts.values())))
    assert cells.obs.groupby("sample", observed=True)["day"].first().tolist() == [1.5, 7.5, 13.5, 19.5, 25.5]
    assert cells.obs["days"].cat.categories.tolist() == ["0-3", "6-9", "12-15", "18-21", "24-27"]
    assert cells.obs["days"].cat.ordered
    assert cells.obs_names[:4].tolist() == ["T0_1A_ACG0-1", "T0_1A_ACG1-1", "T0_1A_ACG2-1", "T2_3B_ACG0-1"]


def listed_at_mendeley(server: Server, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None) -> None:
    """The list of files of Mendeley Data, whose addresses expire, instead of a mirror."""
    content, _ = archive_of_embryoid_bodies()
    hashed = sha256 or hashlib.sha256(content).hexdigest()
    details = {"download_url": f"{server.url}/signed/1a2b?expires=9", "sha256_hash": hashed, "size": len(content)}
    listing = [{"filename": "README.txt"}, {"filename": "scRNAseq.zip", "content_details": details}]
    server.files |= {"/signed/1a2b": content, "/list": json.dumps(listing).encode()}
    monkeypatch.delenv("LATENTCELL_MIRROR")
    monkeypatch.setattr(transcriptomes, "_LISTING", replace(transcriptomes._LISTING, url=f"{server.url}/list"))


def test_the_time_course_is_found_and_checked_through_the_list_of_its_host(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed_at_mendeley(server, monkeypatch)
    assert datasets.embryoid_body().n_obs == 25
    asked = len(server.asked)
    assert datasets.embryoid_body().n_obs == 25
    assert len(server.asked) == asked


def test_the_time_course_is_refused_with_another_checksum_than_listed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed_at_mendeley(server, monkeypatch, sha256="0" * 64)
    with pytest.raises(InputError, match=r"scRNAseq\.zip .*checksum"):
        datasets.embryoid_body()
    server.files["/list"] = b"<html>moved</html>"
    with pytest.raises(InputError, match=r"lists its files in a new way\. Download scRNAseq\.zip from https://data"):
        datasets.embryoid_body()
    del server.files["/list"]
    with pytest.raises(InputError, match=r"What is wanted in the end is scRNAseq\.zip, at .*embryoid_body"):
        datasets.embryoid_body()


# Broad Bioimage Benchmark Collection


def test_bbbc021_cuts_cells_out_of_fields_and_leaves_out_those_at_the_border(served: Server) -> None:
    cells = datasets.bbbc021(size=32, n=None)
    # three whole nuclei in each of two fields in each of two wells
    assert cells.n_obs == 12
    assert cells.obsm["images"].shape == (12, 3, 32, 32)
    assert cells.obsm["images"].dtype == np.uint16
    assert list(cells.uns["images"]["channel_names"]) == ["DNA", "actin", "tubulin"]
    assert "masks" not in cells.obsm
    first = cells.obs[cells.obs["well"] == "Week1_22123_B02"]
    assert set(first["compound"]) == {"DMSO"}
    # a dose of 0.3 is written 0.300000012 in the table of mechanisms
    assert set(cells.obs.loc[cells.obs["compound"] == "taxol", "moa"]) == {"Microtubule stabilizers"}
    found = sorted(map(tuple, first.loc[first["field"] == "1", ["y", "x"]].round().astype(int).to_numpy()))
    assert found == [(40, 50), (80, 140), (110, 60)]
    # the middle of a crop is the middle of the nucleus
    assert (cells.obsm["images"][:, 0, 12:20, 12:20] > 2500).all()


def test_bbbc021_takes_the_wells_and_numbers_asked_for(served: Server) -> None:
    cells = datasets.bbbc021(compounds="taxol", n=2, size=32, rng=3)
    assert set(cells.obs["position"]) == {"C05"}
    assert cells.n_obs == 2
    assert datasets.bbbc021(n=2, size=32, rng=3)[2:].obs_names.equals(cells.obs_names)
    with pytest.raises(InputError, match="no compound on these plates 'aspirin'; there are 'DMSO', 'taxol'"):
        datasets.bbbc021(compounds=["aspirin"])
    with pytest.raises(InputError, match="no plate 'Week9'; there are 'Week1_22123', 'Week1_22141'"):
        datasets.bbbc021("Week9")
    with pytest.raises(InputError, match="None of the wells"):
        datasets.bbbc021(wells="B02", compounds="taxol")
    with pytest.raises(InputError, match=r"no file .*Week1_22141\.zip"):
        datasets.bbbc021("Week1_22141")


def test_touching_nuclei_are_told_apart_and_specks_are_not_nuclei() -> None:
    field = field_of_cells(0, [(60, 60), (60, 80)])
    field[100:104, 100:104] = 4000
    labels = compounds.nuclei(field)
    assert labels.max() == 2
    assert labels[60, 55] != labels[60, 85]
    assert labels[102, 102] == 0
    assert not compounds.nuclei(np.full((20, 20), 7, np.uint16)).any()


def test_bbbc048_reads_the_three_channels_of_a_cell_by_stage(served: Server) -> None:
    cells = datasets.bbbc048(n=None)
    assert cells.obs["stage"].tolist() == ["G1"] * 5 + ["Prophase"] * 2
    assert cells.obs["stage"].cat.ordered
    assert list(cells.uns["images"]["channel_names"]) == ["Ch3", "Ch4", "Ch6"]
    np.testing.assert_allclose(cells.obsm["images"].mean(axis=(2, 3))[-1], [100, 81, 200], atol=1)
    assert datasets.bbbc048("Prophase").n_obs == 2
    few = datasets.bbbc048(n=2, rng=0)
    assert few.obs["stage"].value_counts().tolist() == [2, 2]
    with pytest.raises(InputError, match="no stage of the cell cycle 'M'"):
        datasets.bbbc048("M")
    with pytest.raises(InputError, match="holds no cells of the stages Telophase"):
        datasets.bbbc048("Telophase")


def test_a_nested_archive_that_is_not_there_is_named(server: Server) -> None:
    server.serve("bbbc048", {"BBBC048v1.zip": zipped({"Cells.zip": b""})})
    with pytest.raises(InputError, match=r"holds no CellCycle\.zip; it holds 'Cells\.zip'"):
        datasets.bbbc048()


# MitoCheck


def test_mitocheck_cuts_annotated_cells_out_of_hosted_films(served: Server) -> None:
    _, film = files_of_mitocheck()
    cells = datasets.mitocheck(size=16)
    # the film of the fourth cell is not hosted, and the second cell lies at a corner
    assert cells.obs["phenotype"].tolist() == ["Binuclear", "Prometaphase", "Prometaphase"]
    assert set(cells.obs["gene"]) == {"KIF14"}
    assert set(cells.obs["movie"]) == {"LT0013_38/B18"}
    np.testing.assert_array_equal(cells.obsm["images"][0, 0], film[0, 1, 0, 32:48, 42:58])
    np.testing.assert_array_equal(cells.obsm["images"][1, 0, :10, 5:], film[0, 0, 0, 80:90, 0:11])
    assert not cells.obsm["images"][1, 0, 10:].any()
    assert not cells.obsm["images"][1, 0, :, :5].any()
    assert datasets.mitocheck("Prometaphase", n=1, size=16).n_obs == 1
    with pytest.raises(InputError, match="no phenotype 'Large'; there are 'Binuclear', 'Prometaphase'"):
        datasets.mitocheck("Large")


def test_a_film_of_another_kind_is_refused(served: Server) -> None:
    path = next(path for path in served.files if path.endswith(".ch5"))
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["images"] = np.zeros(3)
    served.files[path] = out.getvalue()
    with pytest.raises(InputError, match="holds no images where a CellH5 file has them"):
        datasets.mitocheck()
    next(datasets.cache_folder().rglob("*.ch5")).write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be opened"):
        datasets.mitocheck()


# Allen Institute


def test_allen_cells_are_projected_and_shrunk_by_one_factor(served: Server) -> None:
    _, crops = files_of_allen()
    cells = datasets.allen_cells(n=5, size=16)
    # the outlier is left out
    assert cells.obs_names.tolist() == [str(230741 + i) for i in range(8)]
    assert cells.obs["structure"].tolist() == ["TOMM20", "LMNB1"] * 4
    assert cells.obs["stage"].tolist() == ["M0", "M0", "M4M5", "M4M5"] * 2
    assert cells.obs["stage"].cat.ordered
    # the largest crop is 30 pixels high: two pixels become one for all
    np.testing.assert_allclose(cells.obs["um_per_pixel"], 2 * 0.108333)
    assert set(cells.obs.columns) >= {"field", "plate", "well", "edge"}
    assert list(cells.uns["images"]["channel_names"]) == ["membrane", "DNA", "structure"]
    raw, segmented = crops["230741"]
    framed = np.zeros((3, 32, 32))
    framed[:, 8:24, 6:26] = raw.max(axis=0)
    expected = framed.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))[[1, 0, 2]]
    np.testing.assert_array_equal(cells.obsm["images"][0], np.rint(expected))
    inside = np.zeros((32, 32))
    inside[8:24, 6:26] = (segmented[:, 1] > 0).any(axis=0)
    np.testing.assert_array_equal(cells.obsm["masks"][0], inside.reshape(16, 2, 16, 2).mean(axis=(1, 3)) >= 0.5)
    # a larger cell stays larger
    assert cells.obsm["masks"][7].sum() > cells.obsm["masks"][0].sum()


def test_allen_cells_as_stacks_with_channels_in_the_order_asked_for(served: Server) -> None:
    _, crops = files_of_allen()
    cells = datasets.allen_cells("LMNB1", "M0", view="volume", channels=["DNA", "structure"], size=(8, 32, 32))
    assert cells.obsm["images"].shape == (2, 2, 8, 32, 32)
    assert cells.obsm["masks"].shape == (2, 8, 32, 32)
    np.testing.assert_allclose(cells.obs["um_per_pixel"], 0.108333)
    raw, _ = crops[cells.obs_names[0]]
    top, left = (32 - raw.shape[2]) // 2, 6
    depth = (8 - raw.shape[0]) // 2
    placed = cells.obsm["images"][0, :, :, :, left : left + 20]
    held = placed[:, :, top : top + raw.shape[2]]
    assert any(
        np.array_equal(held[:, z : z + raw.shape[0]], raw.transpose(1, 0, 2, 3)[[0, 2]]) for z in (depth, depth + 1)
    )
    assert datasets.allen_cells("LMNB1", "M0", n=1, view="volume").obsm["images"].shape == (1, 3, 64, 64, 64)


def test_a_stopped_run_goes_on_with_the_cell_it_had_reached(served: Server) -> None:
    missing = "/allen_cells/crop_raw/0004_raw.ome.tif"
    kept = served.files.pop(missing)
    with pytest.raises(InputError, match=r"Cell 230745 \(TOMM20, M0\): There is no file .*0004_raw"):
        datasets.allen_cells(size=16)
    served.files[missing] = kept
    before = {path for path, _ in served.asked} - {missing}
    served.asked.clear()
    assert datasets.allen_cells(size=16).n_obs == 8
    assert before.isdisjoint(path for path, _ in served.asked)


def test_cells_are_drawn_by_seed_whatever_else_is_asked_for(served: Server, caplog: pytest.LogCaptureFixture) -> None:
    one = datasets.allen_cells("TOMM20", n=1, size=16, rng=5)
    both = datasets.allen_cells(n=1, size=16, rng=5)
    assert one.n_obs == 2
    assert set(one.obs_names) <= set(both.obs_names)
    with caplog.at_level(logging.WARNING):
        datasets.allen_cells("TOMM20", "M0", n=50, size=16)
    assert "fewer than 50 cells in 'TOMM20/M0 (2)'" in caplog.text


def test_allen_refuses_what_does_not_exist_or_does_not_fit(served: Server) -> None:
    with pytest.raises(InputError, match="no structure 'ACTB'; there are 'LMNB1', 'TOMM20'"):
        datasets.allen_cells("ACTB")
    with pytest.raises(InputError, match="no stage 'G1'; there are 'M0', 'M1M2'"):
        datasets.allen_cells(stages="G1")
    with pytest.raises(InputError, match="No cell shows 'TOMM20' at the stages 'M3'"):
        datasets.allen_cells("TOMM20", "M3")
    with pytest.raises(InputError, match="no channel 'brightfield'"):
        datasets.allen_cells(channels=["brightfield"])
    with pytest.raises(InputError, match="neither 'max' nor 'volume'"):
        datasets.allen_cells(view="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not fit view='max'"):
        datasets.allen_cells(size=(8, 16, 16))
    with pytest.raises(InputError, match="n=0"):
        datasets.allen_cells(n=0)


def test_a_table_of_another_kind_is_refused(server: Server) -> None:
    server.serve("allen_cells", {"metadata.csv": b"CellId,structure_name\n1,TOMM20\n"})
    with pytest.raises(InputError, match="has no column 'cell_stage', 'crop_raw'"):
        datasets.allen_cells()
    with pytest.raises(InputError, match="scale_micron of a cell is 'nan'"):
        allen_tables.voxel("nan")


def test_allen_features_of_all_cells_are_in_micrometres(served: Server) -> None:
    cells = datasets.allen_features("all", structures="TOMM20")
    assert cells.n_obs == 4
    side = 0.108333
    np.testing.assert_allclose(cells[:, "MEM_shape_volume"].X[0], 1_000_000 * side**3, rtol=1e-6)
    np.testing.assert_allclose(cells[:, "NUC_position_depth"].X[0], 40 * side, rtol=1e-6)
    np.testing.assert_allclose(cells[:, "STR_connectivity_cc"].X[0], 3)
    assert set(cells.obs.columns) == {"structure", "stage", "field", "plate", "well"}


def test_allen_features_of_a_subset_set_incomplete_ones_aside(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    features_served(server)
    with caplog.at_level(logging.WARNING):
        cells = datasets.allen_features("i1m1")
    assert "intracellular-structure-volume" in caplog.text
    assert "intracellular-structure-volume" in cells.obs
    assert cells.var_names.tolist() == [
        "cell-height", "cell-volume", "cell-surface-area", "dna-height", "dna-volume", "dna-surface-area",
        *(f"shape-mode-{i}" for i in range(1, 9)),
    ]  # fmt: skip
    assert cells.obs["stage"].tolist() == ["interphase", "prophase", "prophase", "prophase"]
    assert cells.obs["class"].tolist() == ["interphase", "prophase", "prophase", "prophase"]
    assert cells.obs["neighbour"].tolist() == ["466578", "", "", ""]
    assert cells.obs_names[0] == "466577"
    assert datasets.allen_features("edges").obs["class"].tolist()[:2] == ["non-edge", "edge"]
    with pytest.raises(InputError, match="no subset 'main'"):
        datasets.allen_features("main")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no structure 'AICS-1'; there are 'AICS-54'"):
        datasets.allen_features(structures="AICS-1")


def test_features_of_another_layout_are_refused(server: Server) -> None:
    server.serve(FEATURES, {"i1m1.zip": archive_of_features([(["1", "2", "AICS-5"], [1.0, 2.0])]), "edges.zip": b"no"})
    with pytest.raises(InputError, match="lists other features than the 23 expected"):
        datasets.allen_features()
    with pytest.raises(InputError, match="is not the archive of features"):
        datasets.allen_features("edges")


@pytest.mark.parametrize("subset", ["i1m1", "edges"])
def test_the_layout_of_features_is_that_of_the_true_tables(server: Server, data_dir: Path, subset: str) -> None:
    table = data_dir / "images" / f"allen_hipsc_{subset}.csv.gz"
    if not table.exists():
        pytest.skip(f"no {table}")
    with gzip.open(table, "rt") as file:
        rows = list(csv.DictReader(file))[:200]
    values = [name for name in rows[0] if name not in ("CellId", "FOVId", "line")]
    assert tuple(values) == allen_tables._VALUES
    entries = [
        ([row["CellId"], row["FOVId"], row["line"]], [float(row[v]) if row[v] else "NaN" for v in values])
        for row in rows
    ]
    server.serve(FEATURES, {f"{subset}.zip": archive_of_features(entries)})
    cells = datasets.allen_features(subset)  # type: ignore[arg-type]
    np.testing.assert_allclose(cells[:, "cell-volume"].X[:, 0], [float(row["cell-volume"]) for row in rows], rtol=1e-6)
    refuse(info(cells).problems)


# shared arithmetic


@pytest.mark.parametrize(("have", "want"), [((5, 7), (5, 7)), ((5, 7), (8, 4)), ((4, 4), (7, 9)), ((9, 8), (2, 3))])
def test_a_crop_is_placed_in_the_middle(have: tuple[int, int], want: tuple[int, int]) -> None:
    image = np.arange(1, 1 + math.prod(have)).reshape(1, *have)
    placed = choosing.centred(image, want)
    assert placed.shape == (1, *want)
    low = [(h - w) // 2 for h, w in zip(have, want, strict=True)]
    for y in range(want[0]):
        for x in range(want[1]):
            source = y + low[0], x + low[1]
            seen = 0 <= source[0] < have[0] and 0 <= source[1] < have[1]
            assert placed[0, y, x] == (image[0][source] if seen else 0)


def test_averaging_keeps_the_sum_and_takes_the_least_factor() -> None:
    image = np.random.default_rng(0).random((2, 13, 9))
    factor = choosing.averaging_factor(image.shape[1:], (8, 8))
    assert factor == 2
    small = choosing.averaged(image, (8, 8), factor)
    assert small.shape == (2, 8, 8)
    np.testing.assert_allclose(small.sum(axis=(1, 2)) * factor**2, image.sum(axis=(1, 2)))
    assert choosing.averaging_factor((3, 4), (8, 8)) == 1


def test_rows_are_drawn_group_by_group() -> None:
    groups = pd.DataFrame({"a": list("xxyyyyz"), "b": [1, 1, 1, 1, 2, 2, 2]})
    rows = choosing.drawn(groups, 1, 0)
    assert groups.iloc[rows].astype(str).agg("".join, axis=1).tolist() == ["x1", "y1", "y2", "z2"]
    np.testing.assert_array_equal(choosing.drawn(groups, None, 0), np.arange(7))
    np.testing.assert_array_equal(choosing.drawn(groups, 10, 0), np.arange(7))
