"""Minibatches hold each cell once, scaled as the model wants it, from any store."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from latentcell.cells import batches
from latentcell.cells.batches import Batch, Source, in_order, shuffled
from latentcell.errors import InputError

STORES = ["ndarray", "csr", "csr_array", "memmap", "h5py", "zarr"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and several rounds of mixing from a few dozen cells."""
    monkeypatch.setattr(batches, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(batches, "_BLOCKS_MIXED", 3)


def stored(values: np.ndarray, kind: str, folder: Path):
    if kind == "csr":
        return sp.csr_matrix(values)
    if kind == "csr_array":
        return sp.csr_array(values)
    if kind == "memmap":
        np.save(folder / "x.npy", values)
        return np.load(folder / "x.npy", mmap_mode="r")
    if kind == "h5py":
        return h5py.File(folder / "x.h5", "w").create_dataset("x", data=values, chunks=(5, *values.shape[1:]))
    if kind == "zarr":
        array = zarr.create_array(str(folder / "x.zarr"), shape=values.shape, chunks=(5, *values.shape[1:]), dtype="u1")
        array[:] = values
        return array
    return values


def matrix(n: int = 75, f: int = 6) -> np.ndarray:
    return np.random.default_rng(0).poisson(2.0, (n, f)).astype(np.uint8)


def images(n: int = 75) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 2, 5, 6), dtype=np.uint8)


def source(array, location: float = 0.0, scale: float = 1.0, **options) -> Source:
    n_axes = len(array.shape) - 1
    shape = (-1, *[1] * (n_axes - 1))
    location, scale = (np.full(array.shape[1], value, dtype=np.float32).reshape(shape) for value in (location, scale))
    return Source(
        names=np.array([f"cell_{i}" for i in range(array.shape[0])]),
        array=array,
        location=location,
        scale=scale,
        **options,
    )


@pytest.mark.parametrize("kind", STORES)
def test_shuffling_gives_each_row_once_with_its_own_measurements(kind: str, tmp_path: Path) -> None:
    values = matrix()
    size = values.sum(1).astype(np.float32)
    from_store = source(stored(values, kind, tmp_path), size=size, covariates=values[:, :2].astype(np.float32))
    rows = np.arange(3, 75)
    drawn = list(shuffled(from_store, rows, 12, np.random.default_rng(1)))
    index = np.concatenate([batch.index for batch in drawn])
    np.testing.assert_array_equal(np.sort(index), rows)
    assert not np.array_equal(index, rows)
    np.testing.assert_array_equal(torch.cat([batch.x for batch in drawn]), values[index])
    np.testing.assert_array_equal(torch.cat([batch.size for batch in drawn]), size[index])
    np.testing.assert_array_equal(torch.cat([batch.covariates for batch in drawn]), values[index, :2])
    assert max(len(batch) for batch in drawn) <= 12


@pytest.mark.parametrize("kind", ["ndarray", "memmap", "h5py", "zarr"])
def test_shuffling_images_with_masks_gives_each_row_once_with_its_own_mask(kind: str, tmp_path: Path) -> None:
    values = images()
    masks = np.zeros((75, 5, 6), dtype=bool)
    masks[np.arange(75), np.arange(75) % 5, 0] = True
    from_store = source(stored(values, kind, tmp_path), masks=masks)
    in_memory = torch.cat([batch.mask for batch in in_order(source(values, masks=masks), np.arange(75), 75)])
    drawn = list(shuffled(from_store, np.arange(75), 10, np.random.default_rng(1)))
    index = np.concatenate([batch.index for batch in drawn])
    np.testing.assert_array_equal(np.sort(index), np.arange(75))
    assert torch.equal(torch.cat([batch.mask for batch in drawn]), in_memory[index])
    # what lies outside the mask is not the cell's
    np.testing.assert_array_equal(torch.cat([batch.x for batch in drawn]), values[index] * in_memory[index].numpy())


@pytest.mark.parametrize("kind", STORES)
def test_reading_in_order_gives_the_same_from_every_store(kind: str, tmp_path: Path) -> None:
    values = matrix()
    rows = np.array([5, 4, 70, 5, 0])
    drawn = list(in_order(source(stored(values, kind, tmp_path)), rows, 2))
    assert [len(batch) for batch in drawn] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat([batch.x for batch in drawn]), values[rows])
    np.testing.assert_array_equal(np.concatenate([batch.index for batch in drawn]), rows)
    assert drawn[0].x.dtype == torch.float32


@pytest.mark.parametrize("kind", ["ndarray", "csr", "h5py", "zarr"])
def test_the_same_seed_shuffles_alike_and_another_differently(kind: str, tmp_path: Path) -> None:
    from_store = source(stored(matrix(), kind, tmp_path))
    orders = [
        np.concatenate([b.index for b in shuffled(from_store, np.arange(75), 16, np.random.default_rng(seed))])
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@given(st.integers(2, 60), st.integers(2, 20), st.booleans())
def test_only_a_last_batch_of_a_single_cell_is_left_out(n: int, batch_size: int, on_disk: bool) -> None:
    from_store = source(OnDisk(matrix(60)) if on_disk else matrix(60))
    drawn = list(shuffled(from_store, np.arange(n), batch_size, np.random.default_rng(0)))
    index = np.concatenate([batch.index for batch in drawn])
    assert len(np.unique(index)) == len(index)
    assert min(len(batch) for batch in drawn) > 1
    assert set(range(n)) >= set(index.tolist())
    rounds = -(-n // batch_size) if not on_disk else n // 8 + 1
    assert n - len(index) <= (int(n % batch_size == 1) if not on_disk else rounds)


class OnDisk:
    """A store that can only be read by slices and ascending rows."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape
        self.dtype = values.dtype

    def __getitem__(self, rows) -> np.ndarray:
        if not isinstance(rows, slice):
            assert (np.diff(rows) > 0).all(), "h5py reads ascending distinct rows only"
        return self.values[rows]


@pytest.mark.parametrize("kind", ["ndarray", "zarr"])
def test_a_single_training_cell_is_still_given(kind: str, tmp_path: Path) -> None:
    from_store = source(stored(matrix(), kind, tmp_path))
    assert [b.index.tolist() for b in shuffled(from_store, np.array([7]), 4, np.random.default_rng(0))] == [[7]]


def test_measurements_are_scaled_per_channel() -> None:
    values = images()
    scaled = source(values)
    location, scale = np.float32([10, 20]).reshape(-1, 1, 1), np.float32([2, 4]).reshape(-1, 1, 1)
    scaled = Source(names=scaled.names, array=values, location=location, scale=scale)
    x = scaled.batch(np.arange(4)).x.numpy()
    np.testing.assert_allclose(x[:, 0], (values[:4, 0] - 10.0) / 2, rtol=1e-6)
    np.testing.assert_allclose(x[:, 1], (values[:4, 1] - 20.0) / 4, rtol=1e-6)


def test_clipping_cuts_scaled_values_to_the_unit_interval() -> None:
    values = images()
    x = source(values, location=50, scale=100, clip=True).batch(np.arange(75)).x.numpy()
    np.testing.assert_allclose(x, ((values - 50.0) / 100).clip(0, 1), rtol=1e-6)
    assert source(values, location=50, scale=100).batch(np.arange(75)).x.max() > 1


@pytest.mark.parametrize("kind", ["ndarray", "memmap", "h5py", "zarr"])
def test_columns_are_taken_in_the_models_order(kind: str, tmp_path: Path) -> None:
    values, columns = matrix(), np.array([3, 0, 5])
    array = stored(values, kind, tmp_path)
    narrow = np.zeros(3, dtype=np.float32)
    ordered = Source(names=np.arange(75), array=array, location=narrow, scale=narrow + 1, columns=columns)
    np.testing.assert_array_equal(ordered.batch(np.array([9, 2])).x, values[[9, 2]][:, columns])
    np.testing.assert_array_equal(ordered.stored(np.array([9, 2])), values[[9, 2]][:, columns])


def test_preparation_sees_raw_measurements_and_masks() -> None:
    values, masks = images(), np.ones((75, 5, 6), dtype=np.uint8)
    seen = []

    def prepare(x: np.ndarray, m: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        seen.append((x.copy(), m.copy()))
        return x[..., ::-1], m

    batch = source(values, location=10, scale=2, masks=masks, prepare=prepare).batch(np.arange(3))
    np.testing.assert_array_equal(seen[0][0], values[:3])
    assert seen[0][1].dtype == bool
    np.testing.assert_allclose(batch.x, (values[:3, ..., ::-1] - 10.0) / 2, rtol=1e-6)


def test_the_mask_grows_by_three_pixels_in_the_plane_only() -> None:
    masks = np.zeros((1, 3, 20, 20), dtype=bool)
    masks[0, 1, 10, 10] = True
    volume = source(np.ones((1, 2, 3, 20, 20), dtype=np.uint8), masks=masks).batch(np.array([0]))
    expected = np.zeros((3, 20, 20))
    expected[1, 7:14, 7:14] = 1
    assert volume.mask.shape == (1, 1, 3, 20, 20)
    np.testing.assert_array_equal(volume.mask[0, 0], expected)
    plane = source(np.ones((1, 2, 20, 20), dtype=np.uint8), masks=masks[:, 1]).batch(np.array([0]))
    np.testing.assert_array_equal(plane.mask[0, 0], expected[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_cell(bad: float) -> None:
    values = matrix().astype(np.float32)
    values[11, 3] = bad
    with pytest.raises(InputError, match="cell_11"):
        source(values).batch(np.arange(8, 16))


def whole_batch() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        x=torch.tensor(rng.normal(size=(5, 2, 3, 3))),
        size=torch.arange(5.0),
        covariates=torch.eye(5),
        mask=torch.ones(5, 1, 3, 3),
        index=np.arange(10, 15),
        target=torch.tensor(rng.normal(size=(5, 2, 3, 3))),
    )


def test_cells_held_in_memory_keep_every_part_together() -> None:
    rng = np.random.default_rng(0)
    whole = Source(
        names=np.array([f"c{i}" for i in range(9)]),
        array=rng.integers(0, 200, (9, 2, 4, 4), dtype=np.uint16),
        location=np.float32(3),
        scale=np.float32(2),
        size=np.arange(9, dtype=np.float32),
        covariates=np.eye(9, dtype=np.float32),
        masks=rng.random((9, 4, 4)) < 0.5,
    )
    rows = np.array([7, 2, 5])
    held, expected = whole.held(rows).batch(np.array([2, 0])), whole.batch(rows[[2, 0]])
    for part in ("x", "size", "covariates", "mask"):
        assert torch.equal(getattr(held, part), getattr(expected, part)), part


def test_moving_a_batch_moves_every_part() -> None:
    batch = whole_batch()
    moved = batch.to(torch.device("meta"))
    for part in ("x", "size", "covariates", "mask", "target"):
        assert getattr(moved, part).device.type == "meta", part
    assert moved.index is batch.index
    assert torch.equal(batch.to(torch.device("cpu")).x, batch.x)


def test_a_prepared_source_gives_what_preparing_on_the_fly_gives() -> None:
    values = images().astype(np.float32)
    masks = values[:, 0] > 100

    def mirror(x: np.ndarray, m: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        return x[..., ::-1], None if m is None else m[..., ::-1]

    rows = np.array([3, 7, 50, 60])
    for held_masks in (None, masks):
        lazy = source(values, masks=held_masks, prepare=mirror, columns=np.array([1, 0]))
        ready = lazy.prepared(rows)
        assert ready.prepare is None
        assert torch.equal(ready.batch(rows).x, lazy.batch(rows).x)
        if held_masks is not None:
            assert torch.equal(ready.batch(rows).mask, lazy.batch(rows).mask)


@pytest.mark.parametrize("kind", ["memmap", "h5py", "zarr"])
def test_what_lies_on_disk_is_read_by_blocks_and_never_prepared_whole(kind: str, tmp_path: Path) -> None:
    from_store = source(stored(images(), kind, tmp_path), prepare=lambda x, m: (x, m))
    assert from_store.on_disk
    assert from_store.prepared(np.arange(75)) is from_store
    assert not source(images()).on_disk
