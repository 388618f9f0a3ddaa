"""Pairs of a cell and a structure it shows: which there are, how they are read, and what is hidden."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import latentcell as lc
from latentcell.cells.structures import (
    average_images,
    check_trained,
    find_pairs,
    hidden,
    hidden_at_random,
    pair_source,
    ranges,
)
from latentcell.errors import InputError


def several(n: int = 30, dtype: str = "float32") -> ad.AnnData:
    """Cells with DNA and two structures, of which every third cell lacks the first and every fifth the second."""
    rng = np.random.default_rng(0)
    images = (rng.random((n, 3, 8, 8)) * 100 + 1).astype(dtype)
    missing = 0 if dtype != "float32" else np.nan
    images[::3, 1] = missing
    images[::5, 2] = missing
    cells = ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    lc.cells.set_images(cells, images, channel_names=["DNA", "golgi", "actin"])
    return cells


def single(n: int = 40) -> ad.AnnData:
    cells = several(n, "uint16")
    cells.obsm["images"][:] = np.maximum(cells.obsm["images"], 1)
    cells.obs["what"] = np.where(np.arange(n) % 2, "mito", "er")
    return cells


def source_of(cells: ad.AnnData, target: list[str], key: str | None = None):
    pairs = find_pairs(cells, target, key)
    found = ranges(cells.obsm["images"], pairs, np.arange(len(pairs)))
    scaling = (np.array([5.0]), np.array([50.0]))
    return pairs, found, pair_source(
        cells, pairs, reference=[0], scaling=scaling, found=found, batches=None, masks=cells.obsm.get("masks"),
        blind=False,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_channels_that_are_missing_or_dark_throughout_make_no_pair(dtype: str) -> None:
    pairs = find_pairs(several(30, dtype), ["golgi", "actin"], None)
    expected = {(i, s) for i in range(30) for s in (0, 1) if i % (3, 5)[s]}
    assert set(zip(pairs.cell.tolist(), pairs.structure.tolist(), strict=True)) == expected
    assert (pairs.channel == pairs.structure + 1).all()


def test_one_channel_shows_what_the_column_names() -> None:
    cells = single()
    pairs = find_pairs(cells, ["golgi"], "what")
    assert pairs.structures == ["er", "mito"]
    named = np.asarray(pairs.structures)[pairs.structure]
    assert (named == cells.obs["what"].to_numpy()[pairs.cell]).all()


def test_a_pair_holds_its_structure_scaled_by_its_kind_and_the_reference() -> None:
    cells = several()
    pairs, found, source = source_of(cells, ["golgi", "actin"])
    rows = np.array([3, 0, 17])
    batch = source.batch(rows)
    images = cells.obsm["images"]
    for i, row in enumerate(rows):
        cell, structure = pairs.cell[row], pairs.structure[row]
        location, scale = found[structure]
        shown = (images[cell, 1 + structure] - location) / scale
        np.testing.assert_allclose(batch.x[i, 0], shown, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.x[i, 1], (images[cell, 0] - 5) / 50, rtol=1e-5, atol=1e-6)
        assert batch.covariates[i].tolist() == [structure == 0, structure == 1, 1]
    assert source.names[3] == f"c{pairs.cell[3]} ({pairs.structures[pairs.structure[3]]})"


def test_masks_are_those_of_the_pairs_cells() -> None:
    cells = several()
    masks = np.zeros((30, 8, 8), dtype=np.uint8)
    masks[np.arange(30), np.arange(30) % 8] = 1
    cells.obsm["masks"] = masks
    pairs, _, source = source_of(cells, ["golgi", "actin"])
    _, read = source.raw(np.arange(len(pairs)))
    assert np.array_equal(read, masks[pairs.cell] > 0)


def test_average_images_are_those_of_each_kind() -> None:
    pairs, _, source = source_of(several(), ["golgi", "actin"])
    rows = np.arange(len(pairs))
    x = source.batch(rows).x[:, 0].numpy()
    parts = [source.batch(part) for part in np.array_split(rows, 4)]
    mean, variance = average_images(parts, 2)
    for s in (0, 1):
        mine = x[pairs.structure == s]
        np.testing.assert_allclose(mean[s], mine.mean(0), rtol=1e-5)
        assert variance[s] == pytest.approx(((mine - mine.mean(0)) ** 2).mean(), rel=1e-5)


def test_hidden_channels_are_zero_and_said_to_be() -> None:
    _, _, source = source_of(several(), ["golgi", "actin"])
    batch = source.batch(np.arange(6))
    kept = torch.tensor([1.0, 0, 1, 0, 1, 0])[:, None]
    changed = hidden(batch, kept, 2)
    assert (changed.x[1::2, 1] == 0).all()
    assert torch.equal(changed.x[::2], batch.x[::2])
    assert torch.equal(changed.x[:, 0], batch.x[:, 0])
    assert changed.covariates[:, 2].tolist() == kept[:, 0].tolist()
    assert (batch.covariates[:, 2] == 1).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_subset_is_hidden_as_often(share: float) -> None:
    _, _, source = source_of(several(), ["golgi", "actin"])
    batch = source.batch(np.zeros(4000, dtype=int))
    changed = hidden_at_random(batch, share, 2, torch.Generator().manual_seed(0))
    told = changed.covariates[:, 2].mean().item()
    assert told == pytest.approx(1 - share / 2, abs=0.03)


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_structure_without_a_name_is_refused_and_its_cells_named(name: str | None) -> None:
    cells = single()
    cells.obs.loc["c7", "what"] = name
    with pytest.raises(InputError, match=r"1 cells show something .* \('c7'\)"):
        find_pairs(cells, ["golgi"], "what")
    cells.obsm["images"][7, 1] = 0
    assert 7 not in find_pairs(cells, ["golgi"], "what").cell


@pytest.mark.parametrize(
    ("target", "key", "message"),
    [
        (["nothing"], None, "no channel 'nothing'; channels present: 'DNA', 'golgi', 'actin'"),
        (["golgi", "actin"], "what", "Give one, or leave structure_key out"),
        (["golgi"], "nothing", "no column 'nothing'"),
    ],
)
def test_unknown_channels_and_columns_are_refused(target: list[str], key: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_pairs(single(), target, key)


def test_a_structure_that_no_cell_shows_is_refused() -> None:
    cells = several()
    cells.obsm["images"][:, 1] = np.nan
    with pytest.raises(InputError, match="No cell shows 'golgi'"):
        find_pairs(cells, ["golgi", "actin"], None)


def test_a_structure_of_one_grey_value_is_refused() -> None:
    cells = several()
    cells.obsm["images"][:, 1] = 7.0
    pairs = find_pairs(cells, ["golgi", "actin"], None)
    with pytest.raises(InputError, match="'golgi' has the same grey value, 7"):
        ranges(cells.obsm["images"], pairs, np.arange(len(pairs)))


def test_a_structure_of_very_few_pixels_has_its_brightest_as_range() -> None:
    cells = several()
    cells.obsm["images"][:, 1] = 0
    cells.obsm["images"][1, 1, 2, 3] = 90
    pairs = find_pairs(cells, ["DNA", "golgi"], None)
    found = ranges(cells.obsm["images"], pairs, np.arange(len(pairs)))
    np.testing.assert_allclose(found[1], [0, 90], atol=20)
    cells.obsm["images"][1, 1] = 5
    pairs = find_pairs(cells, ["golgi"], None)
    with pytest.raises(InputError, match="same grey value"):
        ranges(cells.obsm["images"], pairs, np.arange(len(pairs)))


def test_few_cells_of_a_structure_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    pairs = find_pairs(single(19), ["golgi"], "what")
    with caplog.at_level(logging.WARNING):
        check_trained(pairs, np.arange(19))
    assert "fewer than 10 training cells show mito (9)" in caplog.text


def test_a_structure_that_no_training_cell_shows_is_refused() -> None:
    pairs = find_pairs(single(20), ["golgi"], "what")
    with pytest.raises(InputError, match="No training cell shows 'mito'"):
        check_trained(pairs, np.arange(0, 20, 2))


def test_a_column_of_structures_that_was_not_named_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    cells = single()
    cells.obs["structure"] = cells.obs["what"]
    with caplog.at_level(logging.WARNING, logger="latentcell"):
        find_pairs(cells, ["golgi"], "what")
        assert not caplog.text
        find_pairs(cells, ["golgi"], None)
    assert "obs['structure'] names 2 structures" in caplog.text
