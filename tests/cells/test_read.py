"""Reading files as biologists have them, and refusing what cannot be read."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
import zarr
from PIL import Image

from latentcell import InputError, read
from latentcell.cells import stores
from latentcell.cells.images import take_rows

RNG = np.random.default_rng(0)


def image_cells(n: int = 7) -> ad.AnnData:
    cells = ad.AnnData(
        obs=pd.DataFrame({"stage": list("ab") * (n // 2) + ["a"] * (n % 2)}, index=[f"c{i}" for i in range(n)])
    )
    cells.obsm["images"] = RNG.integers(0, 255, (n, 2, 8, 6), dtype=np.uint16)
    cells.obsm["masks"] = RNG.integers(0, 2, (n, 8, 6), dtype=np.uint8)
    cells.uns["images"] = {"channel_names": ["DNA", "tubulin"]}
    return cells


def write_crops(folder: Path, n: int = 4, shape: tuple[int, ...] = (2, 8, 6)) -> np.ndarray:
    crops = folder / "crops"
    crops.mkdir(parents=True)
    images = RNG.integers(0, 255, (n, *shape), dtype=np.uint8)
    for i, image in enumerate(images):
        tifffile.imwrite(crops / f"c{i}.tif", image, metadata={"axes": "CYX"})
    return images


# stores


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_store_gives_back_the_same_rows_lazily_or_in_memory(tmp_path, monkeypatch, suffix, limit):
    monkeypatch.setattr(stores, "LAZY_BYTES", limit)
    cells = image_cells()
    path = tmp_path / f"cells{suffix}"
    cells.write_h5ad(path) if suffix == ".h5ad" else stores.write_zarr(cells, path)
    found = read(path)
    images = found.obsm["images"]
    assert isinstance(images, np.ndarray if limit else (h5py.Dataset if suffix == ".h5ad" else zarr.Array))
    rows = np.array([5, 0, 3, 3])
    np.testing.assert_array_equal(take_rows(images, rows), cells.obsm["images"][rows])
    np.testing.assert_array_equal(take_rows(found.obsm["masks"], rows), cells.obsm["masks"][rows])
    assert found.obs["stage"].tolist() == cells.obs["stage"].tolist()
    assert list(found.uns["images"]["channel_names"]) == ["DNA", "tubulin"]
    np.testing.assert_array_equal(found[[4, 1]].obsm["images"], cells.obsm["images"][[4, 1]])


def test_write_zarr_keeps_matrix_layers_raw_and_annotations(tmp_path):
    counts = sp.random(6, 5, 0.5, format="csr", rng=0)
    cells = ad.AnnData(
        X=counts, obs={"donor": ["a", "b"] * 3}, layers={"log": counts.log1p()}, obsm={"vae": np.ones((6, 2))}
    )
    cells.raw = cells.copy()
    stores.write_zarr(cells, tmp_path / "c.zarr")
    found = read(tmp_path / "c.zarr")
    np.testing.assert_array_equal(found.X.toarray(), counts.toarray())
    np.testing.assert_array_equal(found.layers["log"].toarray(), counts.log1p().toarray())
    np.testing.assert_array_equal(found.raw.X.toarray(), counts.toarray())
    assert found.obs["donor"].tolist() == ["a", "b"] * 3
    assert found.obsm["vae"].shape == (6, 2)


def test_write_zarr_sets_chunks_of_sixteen_cells_in_shards(tmp_path):
    cells = ad.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(40)]))
    cells.obsm["images"] = np.arange(40 * 1 * 4 * 4, dtype=np.uint16).reshape(40, 1, 4, 4)
    stores.write_zarr(cells, tmp_path / "c.zarr")
    stored = zarr.open_group(tmp_path / "c.zarr", mode="r")["obsm/images"]
    assert stored.chunks == (16, 1, 4, 4)
    assert stored.shards == (48, 1, 4, 4)
    np.testing.assert_array_equal(stored[:], cells.obsm["images"])


def test_write_zarr_leaves_nothing_behind_when_it_fails(tmp_path):
    cells = image_cells()
    cells.uns["bad"] = object()
    with pytest.raises(Exception, match=r"object|bad|No method"):
        stores.write_zarr(cells, tmp_path / "c.zarr")
    assert list(tmp_path.iterdir()) == []


def test_write_zarr_refuses_to_replace_an_existing_store(tmp_path):
    stores.write_zarr(image_cells(), tmp_path / "c.zarr")
    with pytest.raises(InputError, match="exists already"):
        stores.write_zarr(image_cells(), tmp_path / "c.zarr")


def test_lazy_images_can_be_written_to_zarr_without_being_loaded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LAZY_BYTES", 0)
    monkeypatch.setattr(stores, "_SHARD_BYTES", 1)
    cells = image_cells(50)
    cells.write_h5ad(tmp_path / "c.h5ad")
    stores.write_zarr(read(tmp_path / "c.h5ad"), tmp_path / "c.zarr")
    np.testing.assert_array_equal(read(tmp_path / "c.zarr").obsm["images"][:], cells.obsm["images"])


def test_scportrait_images_are_taken_as_images(tmp_path):
    cells = image_cells()
    cells.obsm["single_cell_images"] = cells.obsm.pop("images")
    cells.uns["single_cell_images"] = {"channel_names": cells.uns.pop("images")["channel_names"]}
    cells.write_h5ad(tmp_path / "c.h5ad")
    found = read(tmp_path / "c.h5ad")
    assert found.obsm["images"].shape == (7, 2, 8, 6)
    assert list(found.uns["images"]["channel_names"]) == ["DNA", "tubulin"]


def test_repeated_cell_names_are_read_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = ad.AnnData(np.ones((2, 2), np.float32), obs=pd.DataFrame(index=["a", "a"]))
        cells.write_h5ad(tmp_path / "c.h5ad")
    assert read(tmp_path / "c.h5ad").obs_names.tolist() == ["a", "a"]


def test_files_from_before_anndata_0_7_are_read(tmp_path):
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((2, 1), np.float32)
        file["obs"] = np.array([(b"a", 1.0), (b"b", 2.0)], dtype=[("index", "S1"), ("day", "f8")])
        file["var"] = np.array([(b"g",)], dtype=[("index", "S1")])
    cells = read(tmp_path / "old.h5ad")
    assert cells.obs_names.tolist() == ["a", "b"]
    assert cells.obs["day"].tolist() == [1, 2]


def test_truncated_h5ad_is_refused_with_its_name(tmp_path):
    image_cells().write_h5ad(tmp_path / "c.h5ad")
    whole = (tmp_path / "c.h5ad").read_bytes()
    (tmp_path / "short.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5ad").write_text("not HDF5")
    for name in ("short.h5ad", "text.h5ad"):
        with pytest.raises(InputError, match=f"{name} cannot be opened"):
            read(tmp_path / name)


def test_hdf5_that_is_no_anndata_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(InputError, match="is not an AnnData"):
        read(tmp_path / "x.h5ad")


# arrays


def test_npy_stays_a_memory_map_and_takes_its_annotations_from_a_table(tmp_path):
    images = RNG.integers(0, 9, (3, 2, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    table = pd.DataFrame({"cell": ["p", "q", "r"], "Metadata_Plate": [1, 1, 2]})
    cells = read(tmp_path / "x.npy", table, channel_names=["a", "b"])
    assert isinstance(cells.obsm["images"], np.memmap)
    assert cells.obs_names.tolist() == ["p", "q", "r"]
    assert cells.obs["Plate"].tolist() == [1, 1, 2]
    np.testing.assert_array_equal(cells.obsm["images"], images)
    with pytest.raises(InputError, match="3 cells, the table 2 rows"):
        read(tmp_path / "x.npy", table.iloc[:2])


def test_a_stack_of_single_channel_crops_gets_a_channel_axis(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 5), np.uint8))
    assert read(tmp_path / "x.npy").obsm["images"].shape == (3, 1, 4, 5)


def test_npz_of_one_array_or_one_array_per_cell(tmp_path):
    images = RNG.integers(0, 9, (2, 3, 4, 5, 6), dtype=np.uint8)
    channels = np.array(["a", "b", "c"])
    np.savez(tmp_path / "one.npz", images=images, channels=channels)
    np.savez(tmp_path / "each.npz", early=images[0], late=images[1], channel_names=channels)
    one, each = read(tmp_path / "one.npz"), read(tmp_path / "each.npz")
    np.testing.assert_array_equal(one.obsm["images"], images)
    np.testing.assert_array_equal(each.obsm["images"], images)
    assert each.obs_names.tolist() == ["early", "late"]
    assert one.uns["images"]["channel_names"] == each.uns["images"]["channel_names"] == ["a", "b", "c"]


def test_npz_with_arrays_of_different_shapes_names_them(tmp_path):
    np.savez(tmp_path / "x.npz", first=np.zeros((2, 4, 4)), second=np.zeros((2, 5, 4)))
    with pytest.raises(InputError, match=r"first: \(2, 4, 4\).*second: \(2, 5, 4\)"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_pickled_arrays_are_never_loaded(tmp_path, name):
    evil = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "x.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "x.npz", evil)
    with pytest.raises(InputError, match="pickle"):
        read(tmp_path / name)


# folders of crops


def test_a_folder_with_one_table_is_read_in_the_order_of_the_table(tmp_path):
    images = write_crops(tmp_path)
    order = [2, 0, 3, 1]
    pd.DataFrame(
        {"file": [f"crops/c{i}.tif" for i in order], "cell": [f"cell{i}" for i in order], "dose": order}
    ).to_csv(tmp_path / "cells.csv", index=False)
    cells = read(tmp_path)
    np.testing.assert_array_equal(cells.obsm["images"], images[order])
    assert cells.obs_names.tolist() == [f"cell{i}" for i in order]
    assert cells.obs["dose"].tolist() == order


@pytest.mark.parametrize("form", ["c{}.tif", "c{}", "crops\\c{}.tif", "./crops/c{}.tif"])
def test_files_are_found_by_name_stem_or_windows_path(tmp_path, form):
    images = write_crops(tmp_path)
    cells = read(tmp_path, pd.DataFrame({"where": [form.format(i) for i in (3, 1)], "stage": ["c1", "x"]}))
    np.testing.assert_array_equal(cells.obsm["images"], images[[3, 1]])
    assert cells.obs_names.tolist() == ["c3", "c1"]


def test_numbered_files_are_found_when_the_table_lost_leading_zeros(tmp_path):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i:04d}.tif", np.full((4, 4), i, np.uint8))
    (tmp_path / "t.tsv").write_text("frame\tid\n7\t0002\n8\t0001\n")
    assert read(tmp_path).obsm["images"][:, 0, 0, 0].tolist() == [2, 1]


def test_without_a_table_every_image_is_a_cell_and_sub_folders_annotate(tmp_path):
    for name in ("dead/a.png", "dead/b.png", "live/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((5, 4), 7, np.uint8)).save(tmp_path / name)
    (tmp_path / "dead" / "._a.png").write_bytes(b"leftover of a file manager")
    cells = read(tmp_path)
    assert cells.obs["folder"].tolist() == ["dead", "dead", "live"]
    assert cells.obs_names.tolist() == ["dead/a.png", "dead/b.png", "live/a.png"]
    assert cells.obsm["images"].shape == (3, 1, 5, 4)


def test_name_column_names_the_cells_and_must_be_unique(tmp_path):
    write_crops(tmp_path)
    table = pd.DataFrame({"file": [f"c{i}" for i in range(4)], "id": list("wxyz"), "well": ["A1"] * 4})
    assert read(tmp_path, table, name_column="id").obs_names.tolist() == list("wxyz")
    with pytest.raises(InputError, match="'A1' occur more than once"):
        read(tmp_path, table, name_column="well")
    with pytest.raises(InputError, match="no column 'nowhere'"):
        read(tmp_path, table, name_column="nowhere")


def test_images_that_the_table_does_not_name_are_left_out_with_a_warning(tmp_path, caplog):
    write_crops(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, pd.DataFrame({"file": ["c0", "c1"]})).n_obs == 2
    assert "2 images" in caplog.text


def test_missing_files_are_named_and_counted(tmp_path):
    write_crops(tmp_path)
    pd.DataFrame({"file": ["crops/c0.tif", "crops/no1.tif", "crops/no2.tif"]}).to_csv(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"2 of 3 files.*'crops/no1.tif', 'crops/no2.tif'"):
        read(tmp_path)


def test_a_table_that_names_no_image_is_refused(tmp_path):
    write_crops(tmp_path)
    with pytest.raises(InputError, match=r"No column of the table names the images.*'stage'"):
        read(tmp_path, pd.DataFrame({"stage": ["early", "late"]}))


def test_two_tables_need_a_choice(tmp_path):
    write_crops(tmp_path)
    for name in ("a.csv", "b.csv"):
        pd.DataFrame({"file": ["c0"], "source": name}).to_csv(tmp_path / name, index=False)
    with pytest.raises(InputError, match=r"2 tables \('a.csv', 'b.csv'\)"):
        read(tmp_path)
    assert read(tmp_path, "b.csv").obs["source"].tolist() == ["b.csv"]


def test_crops_of_different_sizes_are_counted_and_named(tmp_path):
    write_crops(tmp_path)
    tifffile.imwrite(tmp_path / "crops" / "odd.tif", np.zeros((2, 9, 6), np.uint8), metadata={"axes": "CYX"})
    with pytest.raises(InputError, match=r"4 of 2 x 8 x 6 uint8, 1 of 2 x 9 x 6 uint8; the rarer are 'odd.tif'"):
        read(tmp_path)


def test_a_truncated_tiff_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RNG.integers(0, 255, (64, 64), dtype=np.uint8), compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    for length in (5, len(whole) // 2):
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.tif cannot be read"):
            read(tmp_path)


def test_an_empty_folder_a_missing_path_and_an_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        read(tmp_path)
    with pytest.raises(InputError, match="There is no file or folder"):
        read(tmp_path / "nothing.h5ad")
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"Supported: \.h5ad.*Save the sheet as CSV"):
        read(tmp_path / "x.xlsx")


def test_options_that_do_not_apply_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="crop_size cannot be used with"):
        read(tmp_path / "p.csv", crop_size=32)


# axes and channels of image files


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        (np.zeros((8, 6), np.uint8), {}, (1, 8, 6)),
        (np.zeros((2, 8, 6), np.uint8), {}, (2, 8, 6)),
        (np.zeros((8, 6, 2), np.uint8), {}, (2, 8, 6)),
        (np.zeros((8, 6, 3), np.uint8), {"photometric": "rgb"}, (3, 8, 6)),
        (np.zeros((8, 6, 4), np.uint8), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, (3, 8, 6)),
        (np.zeros((5, 8, 6), np.uint8), {"metadata": {"axes": "ZYX"}}, (1, 5, 8, 6)),
        (np.zeros((5, 2, 8, 6), np.uint16), {"metadata": {"axes": "ZCYX"}}, (2, 5, 8, 6)),
        (np.zeros((2, 5, 8, 6), np.uint16), {"metadata": {"axes": "CZYX"}}, (2, 5, 8, 6)),
        (np.zeros((1, 2, 5, 8, 6), np.float32), {"metadata": {"axes": "TCZYX"}}, (2, 5, 8, 6)),
        (np.zeros((1, 5, 2, 8, 6), np.uint16), {"imagej": True, "metadata": {"axes": "TZCYX"}}, (2, 5, 8, 6)),
    ],
)
def test_tiff_axes_are_put_in_order(tmp_path, array, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", array, **{"photometric": "minisblack", **options})
    images = read(tmp_path).obsm["images"]
    assert images.shape == (1, *expected)
    assert images.dtype == array.dtype


def test_channels_and_planes_are_not_mixed_up_when_axes_are_reordered(tmp_path):
    array = np.arange(3 * 2 * 4 * 5, dtype=np.uint16).reshape(3, 2, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(read(tmp_path).obsm["images"][0], array.swapaxes(0, 1))


def test_a_time_series_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((3, 8, 6), np.uint8), metadata={"axes": "TYX"}, photometric="minisblack"
    )
    with pytest.raises(InputError, match=r"axes TYX.*time series"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ome.tif", {"metadata": {"axes": "CYX", "Channel": {"Name": ["DNA", "tubulin"]}}}),
        ("a.tif", {"metadata": {"axes": "CYX", "channel_names": ["DNA", "tubulin"]}}),
        ("a.tif", {"imagej": True, "metadata": {"axes": "CYX", "Labels": ["DNA", "tubulin"]}}),
    ],
)
def test_channel_names_come_from_the_file_unless_given(tmp_path, name, options):
    tifffile.imwrite(tmp_path / name, np.zeros((2, 8, 6), np.uint8), photometric="minisblack", **options)
    assert read(tmp_path).uns["images"]["channel_names"] == ["DNA", "tubulin"]
    assert read(tmp_path, channel_names=["x", "y"]).uns["images"]["channel_names"] == ["x", "y"]
    assert read(tmp_path).obs_names.tolist() == ["a"]


def test_files_with_channels_in_another_order_are_refused(tmp_path):
    for name, channels in (("a", ["DNA", "tubulin"]), ("b", ["tubulin", "DNA"])):
        metadata = {"axes": "CYX", "channel_names": channels}
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((2, 8, 6), np.uint8), metadata=metadata)
    with pytest.raises(InputError, match=r"b\.tif stores its channels in the order 'tubulin', 'DNA'"):
        read(tmp_path)


def test_png_keeps_sixteen_bits_and_colours_but_drops_transparency(tmp_path):
    grey = (np.arange(20).reshape(4, 5) * 3000).astype(np.uint16)
    (tmp_path / "grey").mkdir()
    Image.fromarray(grey).save(tmp_path / "grey" / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "grey").obsm["images"][0, 0], grey)
    (tmp_path / "rgba").mkdir()
    Image.fromarray(np.full((4, 5, 4), 9, np.uint8)).save(tmp_path / "rgba" / "a.png")
    cells = read(tmp_path / "rgba")
    assert cells.obsm["images"].shape == (1, 3, 4, 5)
    assert cells.uns["images"]["channel_names"] == ["red", "green", "blue"]


# profile tables


def test_annotations_are_told_from_features(tmp_path):
    (tmp_path / "p.csv").write_text(
        "Metadata_Plate,Image_Metadata_Well,Cells_Area,compound,dose,Nuclei_Area\n1,A1,10.5,DMSO,0,3\n2,B2,11,taxol,5,4\n"
    )
    cells = read(tmp_path / "p.csv", obs_columns=["dose"])
    assert cells.obs.columns.tolist() == ["Plate", "Well", "compound", "dose"]
    assert cells.var_names.tolist() == ["Cells_Area", "Nuclei_Area"]
    assert cells.X.dtype == np.float32
    np.testing.assert_array_equal(cells.X, [[10.5, 3], [11, 4]])


def test_full_names_are_kept_where_the_short_ones_would_clash(tmp_path):
    (tmp_path / "p.csv").write_text("Metadata_Plate,Image_Metadata_Plate,f\n1,x,0.5\n2,y,0.25\n")
    assert read(tmp_path / "p.csv").obs.columns.tolist() == ["Metadata_Plate", "Image_Metadata_Plate"]


def test_missing_values_written_as_text_become_nan_in_features_and_stay_text_in_annotations(tmp_path):
    (tmp_path / "p.csv").write_text("area,compound\n1.5,None\nNA,DMSO\nnan,NA\n,x\nNone,y\n")
    cells = read(tmp_path / "p.csv")
    np.testing.assert_array_equal(cells.X.ravel(), [1.5, np.nan, np.nan, np.nan, np.nan])
    assert cells.obs["compound"].tolist() == ["None", "DMSO", "NA", "x", "y"]


def test_a_feature_spoilt_by_text_is_kept_as_annotation_with_a_warning(tmp_path, caplog):
    (tmp_path / "p.csv").write_text("area,f\n1.5,1\n2.5,2\n>9,3\n")
    with caplog.at_level(logging.WARNING):
        cells = read(tmp_path / "p.csv")
    assert cells.obs.columns.tolist() == ["area"]
    assert "'>9'" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.tsv", "drug\tf\nµ\t1.5\n"),
        ("p.csv", "drug;f;g\nµ;1,5;2\n"),
        ("p.csv", "drug;f;g\nµ;1.5;2\n"),
        ("p.csv", "\ufeffdrug,f\nµ,1.5\n"),
    ],
)
def test_separators_decimal_commas_and_byte_order_marks_of_spreadsheets(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    cells = read(tmp_path / name)
    assert cells.obs["drug"].tolist() == ["µ"]
    assert cells.X[0, 0] == 1.5


def test_parquet_and_compressed_text_hold_the_same_profiles(tmp_path):
    table = pd.DataFrame({"Metadata_Well": ["A1", "A2"], "f": [0.5, np.nan]})
    table.to_parquet(tmp_path / "p.parquet")
    table.to_csv(tmp_path / "p.csv.gz")
    first, second = read(tmp_path / "p.parquet"), read(tmp_path / "p.csv.gz")
    np.testing.assert_array_equal(first.X, second.X)
    assert first.obs["Well"].tolist() == second.obs["Well"].tolist()
    assert second.var_names.tolist() == ["f"]


@pytest.mark.parametrize(("text", "message"), [("", "cannot be read"), ("a,b\n", "no rows"), ("a\nx\n", "no measured")])
def test_tables_without_content_are_refused(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "p.csv")


def test_text_that_is_not_utf8_is_refused_with_advice(tmp_path):
    (tmp_path / "p.csv").write_bytes("dose,f\n5 µM,1\n".encode("cp1252"))
    with pytest.raises(InputError, match="CSV UTF-8"):
        read(tmp_path / "p.csv")


def test_unknown_obs_columns_are_named(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column 'dose'"):
        read(tmp_path / "p.csv", obs_columns=["dose"])


# real files


def test_real_folder_of_crops(data_dir):
    cells = read(data_dir / "images" / "hela_h2b_mitosis", channel_names=["H2B", "tubulin"])
    assert cells.obsm["images"].shape == (709, 2, 64, 64)
    assert cells.obsm["images"].dtype == np.uint8
    assert cells.obs["stage"].value_counts()["interphase"] == 162
    assert cells.obs_names[0] == "cell_0000"


def test_real_profile_tables(data_dir):
    wells = read(data_dir / "images" / "bbbc021_wells.csv.gz", obs_columns=["Replicate"])
    assert wells.shape == (632, 516)
    assert wells.obs["Plate"].nunique() == 55
    allen = read(data_dir / "images" / "allen_hipsc_edges.csv.gz", obs_columns=["CellId", "FOVId"])
    assert allen.n_obs == 9647
    assert np.isnan(allen.X).sum() == 19257


def test_real_h5ad_of_images_and_counts(data_dir):
    assert read(data_dir / "images" / "bbbc021_cells.h5ad").obsm["images"].shape == (2808, 3, 64, 64)
    assert read(data_dir / "rna" / "shalek2014_lps.h5ad").shape == (390, 4016)
