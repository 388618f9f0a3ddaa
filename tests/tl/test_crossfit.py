"""Controls that train never calibrate, and cells that a model may not have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import latentcell as lc
from latentcell.errors import InputError
from latentcell.model.settings import Settings
from latentcell.tl.crossfit import TRAINING_CELLS, fit_controls, refuse_seen, split_controls, training_cells
from latentcell.tl.design import Design, read_design


def design(controls: Sequence[int], treated: Sequence[int], n_cells: int = 3) -> Design:
    """A block for each number of controls and of treated replicates, all of `n_cells` cells."""
    blocks = [name for name, (n, m) in enumerate(zip(controls, treated, strict=True)) for _ in range(n + m)]
    is_control = [i < n for n, m in zip(controls, treated, strict=True) for i in range(n + m)]
    wells = pd.DataFrame({"block": [f"p{name}" for name in blocks], "is_control": is_control, "n_cells": n_cells})
    wells["label"] = wells["group"] = np.where(wells["is_control"], "DMSO", "x")
    wells["replicate"], wells["dose"] = [f"w{i}" for i in range(len(wells))], np.nan
    return Design(wells, np.repeat(np.arange(len(wells)), n_cells), np.empty((len(wells), 0)), paired=False)


def per_block(found: Design, chosen: np.ndarray) -> list[int]:
    return [int(chosen[found.block == name].sum()) for name in dict.fromkeys(found.block.tolist())]


@given(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 4)), min_size=1, max_size=5), st.integers(0, 99))
def test_a_control_trains_or_calibrates_and_at_most_half_of_each_block_train(
    sizes: list[tuple[int, int]], seed: int
) -> None:
    found = design(*zip(*sizes, strict=True))
    train, calibrate, within = split_controls(found, rng=np.random.default_rng(seed))
    assert not within
    assert not (train & calibrate).any()
    assert (train | calibrate).tolist() == found.control.tolist()
    assert per_block(found, train) == [n // 2 for n, _ in sizes]


def test_every_control_of_a_block_is_as_likely_to_train() -> None:
    found = design([6, 6], [1, 1])
    often = np.mean([split_controls(found, rng=np.random.default_rng(i))[0] for i in range(400)], axis=0)
    assert np.abs(often[found.control] - 0.5).max() < 4 * np.sqrt(0.25 / 400)


def test_fewer_controls_train_where_their_wells_have_many_cells() -> None:
    found = design([16, 16], [2, 2], n_cells=TRAINING_CELLS // 8 + 1)
    train, calibrate, _ = split_controls(found, rng=np.random.default_rng(0))
    assert per_block(found, train) == [4, 4]
    assert per_block(found, calibrate) == [12, 12]
    huge = design([16], [2], n_cells=2 * TRAINING_CELLS)
    assert per_block(huge, split_controls(huge, rng=np.random.default_rng(0))[0]) == [1]


def test_controls_of_blocks_in_which_nothing_is_tested_all_train_even_single_ones() -> None:
    found = design([4, 5, 1], [2, 0, 0])
    train, calibrate, within = split_controls(found, rng=np.random.default_rng(0))
    assert not within
    assert per_block(found, train) == [2, 5, 1]
    assert per_block(found, calibrate) == [2, 0, 0]


def test_a_single_control_of_a_tested_block_calibrates_where_others_can_train() -> None:
    found = design([4, 1], [2, 1])
    train, calibrate, within = split_controls(found, rng=np.random.default_rng(0))
    assert not within
    assert per_block(found, train) == [2, 0]
    assert per_block(found, calibrate) == [2, 1]


def test_single_controls_everywhere_do_both_and_that_is_said() -> None:
    found = design([1, 1], [2, 1])
    train, calibrate, within = split_controls(found, rng=np.random.default_rng(0))
    assert within
    assert train.tolist() == calibrate.tolist() == found.control.tolist()


def test_training_cells_are_all_cells_of_the_training_replicates_and_no_other() -> None:
    found = design([4, 4], [2, 2])
    train, _, _ = split_controls(found, rng=np.random.default_rng(0))
    rows = training_cells(found, train, within=False, rng=np.random.default_rng(1))
    assert rows.tolist() == np.flatnonzero(train[found.well]).tolist()


def test_half_of_the_cells_train_where_replicates_do_both() -> None:
    found = design([1, 1], [1, 1], n_cells=50)
    rows = training_cells(found, found.control, within=True, rng=np.random.default_rng(0))
    assert len(rows) == len(set(rows)) == 50
    assert found.control[found.well[rows]].all()
    assert (np.bincount(found.well[rows], minlength=4)[found.control] > 0).all()


def test_too_many_training_cells_are_thinned_evenly_over_replicates() -> None:
    found = design([4], [1], n_cells=TRAINING_CELLS // 2)
    rows = training_cells(found, found.control, within=False, rng=np.random.default_rng(0))
    assert len(rows) == len(set(rows)) == TRAINING_CELLS
    kept = np.bincount(found.well[rows], minlength=5)[found.control]
    assert np.abs(kept - TRAINING_CELLS / 4).max() < 4 * np.sqrt(TRAINING_CELLS * 0.25 * 0.75 / 2)


def profiles(n: int = 90) -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"well": np.repeat([f"w{i}" for i in range(n // 5)], 5)}, index=[f"c{i}" for i in range(n)])
    obs["drug"] = np.where(np.arange(n) < 2 * n // 3, "DMSO", "x")
    return AnnData(rng.normal(size=(n, 5)).astype(np.float32), obs=obs)


def test_a_screens_own_fit_sees_the_training_cells_and_no_other_and_leaves_the_cells_as_they_were() -> None:
    cells, rows = profiles(), np.arange(3, 60, 1)
    before = cells.obs.copy()
    settings = {"epochs": 1, "settings": Settings(batch_size=16, threads=1)}
    model = lc.VAE(n_latent=2, width=4)
    fitted = fit_controls(cells, model, rows, fit=settings, seed=0)
    assert np.flatnonzero(fitted.seen(cells)).tolist() == rows.tolist()
    assert (fitted.n_latent, fitted.width) == (2, 4)
    assert fitted is not model
    pd.testing.assert_frame_equal(cells.obs, before)


@pytest.mark.parametrize(("n", "warned"), [(49, True), (50, False)])
def test_few_training_cells_are_warned_of(n: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Untrained:
        def unfitted(self) -> Untrained:
            return self

        def fit(self, cells: AnnData, **given_: Any) -> Untrained:
            return self

    with caplog.at_level("WARNING", logger="latentcell"):
        fit_controls(profiles(), Untrained(), np.arange(n), fit={}, seed=0)  # type: ignore[arg-type]
    assert ("only 49 control cells train" in caplog.text) == warned


def seen_by_model(cells: AnnData, wells: Sequence[str]) -> np.ndarray:
    """Cells that a model has seen: the first of each of `wells`."""
    first = cells.obs.reset_index().groupby("well")["index"].first()
    return cells.obs_names.isin(first[list(wells)])


def two_plates() -> tuple[AnnData, Design]:
    """Controls a to d, treated replicates e and f, on two plates."""
    wells = [
        ("a", "p", "DMSO"),
        ("b", "p", "DMSO"),
        ("e", "p", "x"),
        ("c", "q", "DMSO"),
        ("d", "q", "DMSO"),
        ("f", "q", "y"),
    ]
    obs = pd.DataFrame([each for each in wells for _ in range(3)], columns=["well", "plate", "drug"])
    cells = AnnData(obs=obs.set_axis([f"c{i}" for i in range(len(obs))]))
    return cells, read_design(cells, group="drug", control="DMSO", replicate="well", block="plate")


def test_a_model_that_saw_none_of_the_cells_is_calibrated_by_all_controls() -> None:
    cells, found = two_plates()
    calibrating, remarks = refuse_seen(seen_by_model(cells, []), found)
    assert calibrating.tolist() == found.control.tolist()
    assert remarks == []


@pytest.mark.parametrize("wells", ["e", "abcde", "aef"])
def test_a_model_that_saw_a_single_cell_of_a_treated_replicate_is_refused(wells: str) -> None:
    cells, found = two_plates()
    with pytest.raises(InputError, match=r"fitted on cells of \d treated replicates \(first: 'x'\)"):
        refuse_seen(seen_by_model(cells, wells), found)


def test_a_model_that_saw_all_controls_is_refused() -> None:
    cells, found = two_plates()
    with pytest.raises(InputError, match="fitted on cells of all control replicates"):
        refuse_seen(seen_by_model(cells, "abcd"), found)


@pytest.mark.parametrize(("wells", "left"), [("a", "bcd"), ("ac", "bd"), ("ab", "cd")])
def test_controls_that_a_model_saw_do_not_calibrate_it_and_are_counted(wells: str, left: str) -> None:
    cells, found = two_plates()
    calibrating, remarks = refuse_seen(seen_by_model(cells, wells), found)
    assert found.wells.loc[calibrating, "replicate"].tolist() == list(left)
    assert remarks == [f"{len(wells)} control replicates trained the model and do not calibrate it."]


def test_a_model_that_saw_all_controls_beside_the_perturbations_is_refused_though_others_are_left() -> None:
    cells, _ = two_plates()
    cells = cells[~cells.obs["well"].isin(["f"])].copy()
    found = read_design(cells, group="drug", control="DMSO", replicate="well", block="plate")
    with pytest.raises(InputError, match="fitted on cells of all control replicates"):
        refuse_seen(seen_by_model(cells, "ab"), found)
