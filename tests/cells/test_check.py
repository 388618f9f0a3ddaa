"""What is found in cells before a model sees them."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentcell import InputError, info
from latentcell.cells import scan, stores
from latentcell.cells.check import check_measurements, refuse


def found(array, kind="counts", rows=None):
    cells = [f"cell{i}" for i in range(array.shape[0])]
    names = [f"g{i}" for i in range(array.shape[1])]
    return check_measurements(array, kind=kind, cell_names=cells, variable_names=names, rows=rows)


def counts(n=30, g=6):
    return np.random.default_rng(0).poisson(3, (n, g)).astype(np.float32)


FORMS = pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])


@FORMS
def test_good_counts_have_no_problems(form):
    assert found(form(counts())) == []


@FORMS
@pytest.mark.parametrize(
    ("value", "what"), [(-2, "negative"), (1.5, "no whole numbers"), (np.nan, "missing"), (np.inf, "missing")]
)
def test_a_bad_count_is_an_error_that_names_cell_and_gene(form, value, what):
    matrix = counts()
    matrix[7, 2] = value
    (problem,) = found(form(matrix))
    assert problem.severity == "error"
    assert what in problem.what
    assert problem.where == ("variable g2: cell cell7",)
    with pytest.raises(InputError, match="variable g2: cell cell7"):
        refuse([problem])


@FORMS
def test_cells_without_counts_are_named(form):
    matrix = counts()
    matrix[[3, 9]] = 0
    (problem,) = found(form(matrix))
    assert (problem.severity, problem.where) == ("error", ("cell3", "cell9"))


def test_log_normalised_values_given_as_counts_say_so_and_ask_for_the_raw_layer():
    (problem,) = found(np.log1p(counts()))
    assert "as in log-normalised data" in problem.what
    assert "layer" in problem.advice


@FORMS
def test_constant_features_are_a_warning_but_genes_seen_in_no_cell_are_common(form):
    matrix = counts()
    matrix[:, 1], matrix[:, 4] = 2, 0
    assert found(form(matrix)) == []
    (problem,) = found(form(matrix + 0.5 * (matrix > 2)), kind="profiles")
    assert (problem.severity, problem.where) == ("warning", ("g1", "g4"))


def test_scaled_counts_without_ones_are_pointed_out():
    raw = np.random.default_rng(0).poisson(0.5, (40, 200)).astype(np.float32)
    assert not any("normalised" in problem.what for problem in found(raw))
    (problem,) = found(raw * 3)
    assert "typically 3 rather than 1" in problem.what


def test_counts_scaled_to_one_total_are_pointed_out():
    raw = np.random.default_rng(0).poisson(2, (40, 200))
    scaled = np.rint(raw / raw.sum(axis=1, keepdims=True) * 1e6)
    (problem,) = found(scaled)
    assert "nearly equal totals" in problem.what


def test_only_the_rows_asked_for_are_looked_at():
    matrix = np.random.default_rng(0).normal(size=(10, 3))
    matrix[5] = np.nan
    assert found(matrix, "profiles", rows=np.arange(6, 10)) == []
    (problem,) = found(matrix, "profiles", rows=np.array([2, 5, 8]))
    assert problem.where[0] == "variable g0: cell cell5"


def test_profiles_may_be_negative_and_fractional_but_not_missing():
    matrix = np.random.default_rng(0).normal(size=(10, 3))
    assert found(matrix, "profiles") == []
    matrix[[2, 4], 1] = np.nan
    (problem,) = found(matrix, "profiles")
    assert problem.where == ("variable g1: cell cell2 and 1 more",)


def test_image_faults_are_told_apart():
    images = np.random.default_rng(0).random((6, 2, 4, 4)).astype(np.float32)
    assert found(images, "images") == []
    images[1] = 0
    images[4, 1, 2, 2] = np.nan
    assert [(p.severity, p.where) for p in found(images, "images")] == [
        ("error", ("channel g1: cell cell4",)),
        ("warning", ("cell1",)),
    ]


def test_one_flat_channel_is_a_warning_and_all_flat_channels_an_error():
    images = np.random.default_rng(0).integers(0, 9, (6, 2, 4, 4), dtype=np.uint8)
    images[:, 1] = 5
    assert [(p.severity, p.where) for p in found(images, "images")] == [("warning", ("g1",))]
    images[:, 0] = 3
    assert [p.severity for p in found(images, "images")] == ["error"]


def test_refuse_joins_errors_and_lets_warnings_pass():
    matrix = counts()
    matrix[:, 1] = 2
    refuse(found(matrix))
    matrix[0, 0], matrix[1, 0] = -1, 0.5
    with pytest.raises(InputError, match=r"negative.*no whole numbers") as error:
        refuse(found(matrix))
    assert "\n" not in str(error.value)
    assert "same value" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(
    matrix=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 6)),
        elements=st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.5, -1.0, np.nan, np.inf]),
    ),
    block=st.sampled_from([1, 100, 2**26]),
)
def test_sparse_dense_and_blockwise_scans_agree(matrix, block):
    reference = scan.scan_matrix(matrix)
    finite = np.where(np.isfinite(matrix), matrix, 0)
    np.testing.assert_allclose(reference.totals, finite.sum(axis=1))
    assert reference.n_zero == (matrix == 0).sum()
    before, scan.BLOCK_BYTES = scan.BLOCK_BYTES, block
    try:
        others = [scan.scan_matrix(form(matrix)) for form in (np.asarray, sp.csr_matrix, sp.csc_array)]
    finally:
        scan.BLOCK_BYTES = before
    for other in others:
        for name in ("totals", "smallest", "low", "high", "whole", "n_zero"):
            np.testing.assert_allclose(getattr(other, name), getattr(reference, name), err_msg=name)
        for name in ("not_finite", "negative", "fractional"):
            np.testing.assert_array_equal(getattr(other, name).n_cells, getattr(reference, name).n_cells)
            np.testing.assert_array_equal(getattr(other, name).first, getattr(reference, name).first)


def test_large_images_are_read_from_disk_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LAZY_BYTES", 0)
    monkeypatch.setattr(scan, "BLOCK_BYTES", 3 * 2 * 4 * 4)
    asked = []
    take = scan.take_rows
    monkeypatch.setattr(scan, "take_rows", lambda array, rows: asked.append(len(rows)) or take(array, rows))
    images = np.random.default_rng(0).integers(1, 99, (10, 2, 4, 4), dtype=np.uint8)
    images[8] = 0
    cells = ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(10)]), obsm={"images": images})
    cells.write_h5ad(tmp_path / "c.h5ad")
    report = info(tmp_path / "c.h5ad")
    assert asked == [3, 3, 3, 1]
    assert report.problems[0].where == ("c8",)
    assert report.value_range["channel_1"] == (0, images[:, 1].max())


# info


def test_report_of_counts_is_readable_and_goes_into_json():
    cells = ad.AnnData(sp.csr_matrix(counts()), obs={"stage": ["a"] * 20 + ["b"] * 10, "depth": np.arange(30.0)})
    cells.obs["depth"] = cells.obs["depth"].replace({0: -np.inf, 1: np.nan})
    report = info(cells)
    assert (report.modality, report.n_cells, report.n_vars, report.problems) == ("counts", 30, 6, [])
    assert report.sparsity == pytest.approx((counts() == 0).mean())
    assert report.obs["stage"]["levels"] == {"a": 20, "b": 10}
    assert report.obs["depth"] == {"missing": 2, "low": 2.0, "high": 29.0}
    assert "a (20), b (10)" in str(report)
    assert "no problems found" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_repeated_names_are_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = ad.AnnData(
            counts(3, 3), obs=pd.DataFrame(index=["a", "a", "b"]), var=pd.DataFrame(index=["x", "y", "y"])
        )
    assert [p.where for p in info(cells).problems if "more than once" in p.what] == [("a",), ("y",)]


def test_log_normalised_matrix_points_to_the_layer_with_raw_counts():
    cells = ad.AnnData(np.log1p(counts()), layers={"raw": counts()})
    (problem,) = info(cells).problems
    assert problem.severity == "warning"
    assert "'raw'" in problem.advice
    assert info(cells, layer="raw").modality == "counts"


def test_identifiers_among_features_are_pointed_out():
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    values[:, 3] = np.arange(20)
    cells = ad.AnnData(values, var=pd.DataFrame(index=["a", "b", "c", "CellId"]))
    (problem,) = info(cells).problems
    assert problem.where == ("CellId",)


def test_a_folder_of_several_crop_sizes_or_damaged_files_is_reported_not_refused(tmp_path):
    for i, size in enumerate((8, 8, 8, 9)):
        tifffile.imwrite(tmp_path / f"c{i}.tif", np.ones((size, 8), np.uint8))
    (tmp_path / "c9.tif").write_bytes(b"II*")
    report = info(tmp_path)
    (problem,) = report.problems
    assert problem.severity == "error"
    assert "3 of 1 x 8 x 8 uint8, 1 of 1 x 9 x 8 uint8, 1 unreadable" in problem.what
    assert problem.where == ("c3.tif", "c9.tif")
    assert "several sizes" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_all_missing_values_still_give_a_json_report():
    cells = ad.AnnData(np.full((3, 2), np.nan, np.float32))
    report = info(cells)
    assert report.value_range == {}
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_table_beside_an_anndata_is_refused():
    with pytest.raises(InputError, match="obs"):
        info(ad.AnnData(counts()), "table.csv")


# real files


def test_rounded_tpm_is_told_from_raw_counts(data_dir):
    (problem,) = info(data_dir / "rna" / "shalek2014_lps.h5ad").problems
    assert problem.severity == "warning"
    assert "TPM" in problem.what
    for name in ("klein2015_mesc", "rnamix", "schiebinger2019_d10_11", "worm_neuron"):
        problems = info(data_dir / "rna" / f"{name}.h5ad").problems
        assert not any("TPM" in p.what for p in problems), name


def test_real_missing_values_name_the_features(data_dir):
    problems = info(data_dir / "images" / "allen_hipsc_i1m1.csv.gz").problems
    errors = [p for p in problems if p.severity == "error"]
    assert len(errors) == 1
    assert errors[0].where[0].startswith("variable intracellular-structure-volume: cell 0")


def test_real_images_have_no_problems(data_dir):
    report = info(data_dir / "images" / "osteosarcoma_shapes.h5ad")
    assert report.problems == []
    assert report.shape == (1, 64, 64)


def test_counts_behind_log_normalised_profiles_are_found_where_their_layer_is_on_disk(tmp_path):
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (50, 6)).astype(np.float32))
    cells = ad.AnnData(np.log1p(counts.toarray()))
    cells.layers["raw"] = counts
    stores.write_zarr(cells, tmp_path / "cells.zarr")
    stored = ad.io.sparse_dataset(zarr.open(tmp_path / "cells.zarr", mode="r")["layers/raw"])
    problems = check_measurements(
        cells.X, kind="profiles", cell_names=cells.obs_names, variable_names=cells.var_names, layers={"raw": stored}
    )
    assert any("The layer 'raw' holds whole numbers" in str(problem) for problem in problems)
