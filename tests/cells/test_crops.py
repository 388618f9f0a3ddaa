"""Cutting cells out of labelled fields."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell import InputError, read
from latentcell.cells.crops import crop_cells


def field(boxes: list[tuple[int, int, int, int]], shape: tuple[int, int] = (40, 50)) -> tuple[np.ndarray, np.ndarray]:
    """Image of two channels and labels with one rectangle (y0, y1, x0, x1) per cell."""
    labels = np.zeros(shape, np.uint16)
    for i, (y0, y1, x0, x1) in enumerate(boxes):
        labels[y0:y1, x0:x1] = i + 1
    ramp = np.arange(labels.size, dtype=np.uint16).reshape(shape)
    return np.stack([ramp, ramp + 7]), labels


@settings(max_examples=40, deadline=None)
@given(
    y=st.integers(0, 35),
    x=st.integers(0, 45),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    size=st.integers(8, 20),
)
def test_the_mask_holds_the_whole_cell_and_the_image_under_it_is_unchanged(y, x, height, width, size):
    image, labels = field([(y, y + height, x, x + width)])
    cells = crop_cells(image, labels, size=size)
    inside = cells.obsm["masks"][0] > 0
    assert inside.sum() == cells.obs["area"].iloc[0] == (labels == 1).sum()
    for channel in range(2):
        np.testing.assert_array_equal(cells.obsm["images"][0, channel][inside], image[channel][labels == 1])
    assert not cells.obs["exceeds_crop"].iloc[0]


def test_cells_at_the_border_are_padded_with_zeros_and_flagged():
    image, labels = field([(0, 4, 0, 4), (20, 24, 20, 24)])
    cells = crop_cells(image + 1, labels, size=8, field="f1")
    assert cells.obs["touches_border"].tolist() == [True, False]
    corner = cells.obsm["images"][0, 0]
    assert not corner[:2].any()
    assert not corner[:, :2].any()
    np.testing.assert_array_equal(corner[2:, 2:], image[0, :6, :6] + 1)
    assert cells.obs_names.tolist() == ["f1_1", "f1_2"]


def test_centroid_area_and_field_are_recorded():
    image, labels = field([(10, 14, 20, 26)])
    obs = crop_cells(image, labels, size=8, field="well A1").obs.iloc[0]
    assert (obs["field"], obs["label"], obs["y"], obs["x"], obs["area"]) == ("well A1", 1, 11.5, 22.5, 24)


def test_neighbours_stay_in_the_image_but_not_in_the_mask():
    image, labels = field([(10, 14, 10, 14), (10, 14, 15, 19)])
    cells = crop_cells(image, labels, size=12)
    assert cells.obsm["masks"].sum(axis=(1, 2)).tolist() == [16, 16]
    assert (cells.obsm["images"][0, 0] > 0).all()


def test_cells_larger_than_the_crop_are_flagged_and_counted(caplog):
    image, labels = field([(5, 30, 5, 30), (35, 38, 35, 38)])
    cells = crop_cells(image, labels, size=16)
    assert cells.obs["exceeds_crop"].tolist() == [True, False]
    assert "1 of 2 cells are larger" in caplog.text


def test_three_dimensional_fields_keep_their_planes_or_crop_them():
    labels = np.zeros((6, 20, 20), np.int32)
    labels[2:4, 8:12, 8:12] = 5
    image = np.arange(labels.size, dtype=np.float32).reshape(1, *labels.shape)
    whole = crop_cells(image, labels, size=8)
    assert whole.obsm["images"].shape == (1, 1, 6, 8, 8)
    assert whole.obs.iloc[0][["z", "y", "x"]].tolist() == [2.5, 9.5, 9.5]
    thin = crop_cells(image, labels, size=(2, 4, 4))
    np.testing.assert_array_equal(thin.obsm["images"][0, 0], image[0, 2:4, 8:12, 8:12])
    assert thin.obsm["masks"].all()


def test_label_numbers_may_have_gaps_and_may_be_stored_as_float():
    image, labels = field([(3, 6, 3, 6), (20, 24, 20, 24)])
    labels[labels == 2] = 900
    assert crop_cells(image, labels.astype(np.float32), size=8).obs["label"].tolist() == [1, 900]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((40, 50), int), "labels no cell"),
        (np.zeros((40, 51), int), r"shape \(40, 51\).*\(2, 40, 50\)"),
        (np.full((40, 50), 0.5), "whole numbers"),
        (np.full((40, 50), -1), "whole numbers from 0"),
        (field([(1, 3, 1, 3), (9, 12, 9, 12)])[1] > 0, "binary mask: 2 separate pieces"),
    ],
)
def test_labels_that_cannot_tell_cells_apart_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        crop_cells(field([])[0], labels, size=8)


def test_missing_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(InputError, match=r"latentcell\[fields\]"):
        crop_cells(*field([(3, 6, 3, 6)]), size=8)


def write_fields(folder, boxes):
    rows = []
    for i, some in enumerate(boxes):
        image, labels = field(some)
        tifffile.imwrite(folder / f"f{i}.tif", image, metadata={"axes": "CYX", "channel_names": ["DNA", "actin"]})
        tifffile.imwrite(folder / f"f{i}_labels.tif", labels)
        rows.append({"image": f"f{i}.tif", "labels": f"f{i}_labels.tif", "well": f"A{i}", "x": 100 + i})
    pd.DataFrame(rows).to_csv(folder / "fields.csv", index=False)


def test_a_folder_of_fields_is_cut_into_cells_that_inherit_the_table(tmp_path):
    write_fields(tmp_path, [[(3, 8, 3, 8), (20, 24, 20, 24)], [], [(10, 30, 10, 30)]])
    cells = read(tmp_path)
    assert cells.obsm["images"].shape == (3, 2, 32, 32)
    assert cells.obsm["masks"].shape == (3, 32, 32)
    assert cells.obs["well"].tolist() == ["A0", "A0", "A2"]
    assert cells.obs["field_x"].tolist() == [100, 100, 102]
    assert cells.obs_names.tolist() == ["f0_1", "f0_2", "f2_1"]
    assert cells.uns["images"]["channel_names"] == ["DNA", "actin"]
    assert read(tmp_path, crop_size=8).obsm["images"].shape == (3, 2, 8, 8)


def test_fields_without_any_cell_or_with_missing_label_files_are_refused(tmp_path):
    write_fields(tmp_path, [[], []])
    with pytest.raises(InputError, match="None of the 2 label images"):
        read(tmp_path)
    (tmp_path / "f1_labels.tif").unlink()
    with pytest.raises(InputError, match=r"'labels' of the table names 1 of 2 files.*'f1_labels\.tif'"):
        read(tmp_path)


def test_fields_of_different_sizes_are_fine_but_not_of_different_channels(tmp_path):
    write_fields(tmp_path, [[(3, 8, 3, 8)], [(3, 8, 3, 8)]])
    tifffile.imwrite(tmp_path / "f1.tif", np.zeros((2, 30, 30), np.uint16), metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "f1_labels.tif", field([(3, 8, 3, 8)], (30, 30))[1])
    assert read(tmp_path).n_obs == 2
    tifffile.imwrite(
        tmp_path / "f1.tif", np.zeros((3, 30, 30), np.uint16), metadata={"axes": "CYX"}, photometric="minisblack"
    )
    with pytest.raises(InputError, match=r"2 x 40 x 50 uint16.*3 x 30 x 30 uint16"):
        read(tmp_path)
