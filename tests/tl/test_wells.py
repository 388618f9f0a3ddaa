"""Descriptions of replicates are the plain sums they claim to be, and cell number alone moves none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from latentcell.model.placing import Placed
from latentcell.stats.relabelling import Layout, layout, relabelling_test
from latentcell.tl.design import Design
from latentcell.tl.wells import (
    CENTROID,
    ENERGY,
    LATENT,
    LOG_VAR,
    RESIDUAL,
    SPREAD,
    Views,
    count_levels,
    describe,
    gather,
    needed,
    octaves,
    pooled,
)


def energies(image: np.ndarray) -> np.ndarray:
    return octaves(image[None, None].astype(np.float32))[0]


@pytest.mark.parametrize("shape", [(8, 8), (16, 32), (64, 64), (3, 16, 16)])
def test_octave_energies_of_each_channel_add_up_to_its_mean_square(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2, *shape)).astype(np.float32)
    found = octaves(x).reshape(5, 2, -1)
    assert found.shape[-1] == int(np.log2(min(shape[-2:]))) - 1
    np.testing.assert_allclose(found.sum(-1), np.square(x).reshape(5, 2, -1).mean(-1), rtol=1e-5)
    assert (found > 0).all()


def test_a_residual_that_is_flat_on_tiles_has_nothing_finer_than_the_tiles() -> None:
    tiles = np.random.default_rng(0).normal(size=(4, 4))
    expected = [0.0, 0.0, 0.0, (tiles**2).mean()]
    np.testing.assert_allclose(energies(np.kron(tiles, np.ones((8, 8)))), expected, atol=1e-6)


@pytest.mark.parametrize(("width", "octave"), [(1, 0), (2, 1), (4, 2)])
def test_a_checkerboard_is_in_the_octave_of_its_squares_alone(width: int, octave: int) -> None:
    fields = np.indices((32 // width, 32 // width)).sum(0) % 2 * 2.0 - 1
    expected = np.zeros(4)
    expected[octave] = 9.0
    np.testing.assert_allclose(energies(3 * np.kron(fields, np.ones((width, width)))), expected, atol=1e-5)


def test_octaves_of_stacks_are_means_over_their_planes() -> None:
    stack = np.random.default_rng(0).normal(size=(2, 3, 5, 16, 16)).astype(np.float32)
    planes = np.stack([octaves(stack[:, :, z]) for z in range(5)])
    np.testing.assert_allclose(octaves(stack), planes.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [(), (3,)])
def test_maps_of_residuals_are_means_over_the_pixels_of_each_place(depth: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, *depth, 16, 24)).astype(np.float32)
    signed, square = pooled(x)
    tiles = x.reshape(4, 2, -1, 4, 4, 4, 6)
    np.testing.assert_allclose(signed, tiles.mean(axis=(2, 4, 6)).reshape(4, 32), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(square, (tiles**2).mean(axis=(2, 4, 6)).reshape(4, 32), rtol=1e-5)


@pytest.mark.parametrize(
    ("treated", "controls", "expected"),
    [((63,), (80, 80, 80), 63), ((64,), (80, 80, 80), None), ((90,), (80, 80), None), ((90, 20), (80, 80), 20),
     ((50,), (10, 60, 300), None), ((45,), (10, 60, 300), 45)],
)  # fmt: skip
def test_fewer_cells_are_needed_where_a_treated_replicate_has_clearly_fewer_than_controls_have(
    treated: tuple[int, ...], controls: tuple[int, ...], expected: int | None
) -> None:
    assert needed(np.array(treated + controls), np.arange(len(treated + controls)), len(treated)) == expected


@pytest.mark.parametrize(
    ("fewest", "levels"),
    [((1,), (1, 80)), ((2,), (2, 80)), ((5,), (4, 80)), ((20,), (16, 80)), ((24,), (24, 80)), ((47,), (32, 80)),
     ((63,), (48, 80)), ((64,), (80,)), ((200,), (200,)), ((20, 22, 7, 80), (6, 16, 80))],
)  # fmt: skip
def test_levels_are_the_steps_below_the_numbers_of_cells_that_occur_and_all_cells(
    fewest: tuple[int, ...], levels: tuple[int, ...]
) -> None:
    n_cells = np.array([*fewest, 80, 80, 80])
    controls = np.arange(len(fewest), len(n_cells))
    plans = [Layout((np.append(i, controls),), (1,)) for i in range(len(fewest))]
    assert count_levels(n_cells, plans) == levels


def by_hand(n_cells: Sequence[int], levels: tuple[int, ...], **changed: np.ndarray) -> Views:
    """Views that say the level they are of: level i holds 1000 i + row."""
    rows = np.arange(len(n_cells))[:, None]
    every = [{CENTROID: 1000.0 * i + rows, RESIDUAL: -1000.0 * i - rows} for i in range(len(levels))]
    every[-1] |= changed
    return Views(np.array(n_cells), np.arange(1), levels, tuple(every))


def test_controls_are_described_by_as_many_cells_where_the_group_has_fewer_and_in_those_blocks_only() -> None:
    views = by_hand([20, 80, 80, 75, 80, 80, 90], (16, 48, 90))
    plan = Layout((np.array([0, 1, 2]), np.array([3, 4, 5])), (1, 1))
    matched = views.matched(plan)
    assert matched[CENTROID][:, 0].tolist() == [0, 1, 2, 2003, 2004, 2005, 2006]
    assert matched[RESIDUAL][:, 0].tolist() == [0, -1, -2, -2003, -2004, -2005, -2006]
    assert views[CENTROID][:, 0].tolist() == [2000 + i for i in range(7)]


def test_the_level_taken_is_the_highest_that_no_treated_replicate_falls_short_of() -> None:
    views = by_hand([10, 40, 80, 80, 50, 80, 80], (4, 8, 16, 32, 80))
    plan = Layout((np.array([0, 1, 2, 3]), np.array([4, 5, 6])), (2, 1))
    assert views.matched(plan)[CENTROID][:, 0].tolist() == [1000, 1001, 1002, 1003, 3004, 3005, 3006]


def test_nothing_changes_where_numbers_of_cells_are_alike() -> None:
    views = by_hand([70, 80, 80, 20], (16, 80))
    matched = views.matched(Layout((np.arange(3),), (1,)))
    assert list(matched) == list(views.everything)
    for name, values in matched.items():
        np.testing.assert_array_equal(values, views[name])


def test_a_view_that_is_not_known_of_a_replicate_of_the_layout_is_left_out() -> None:
    spread = np.array([[0.0], [np.nan], [0.0], [0.0], [0.0]])
    views = by_hand([5] * 5, (5,), spread=spread)
    assert set(views.matched(Layout((np.array([0, 1, 2]),), (1,)))) == {CENTROID, RESIDUAL}
    assert set(views.matched(Layout((np.array([0, 2, 3]),), (1,)))) == {CENTROID, RESIDUAL, SPREAD}


def placed(n: int, d: int = 3, p: int = 5, seed: int = 0, shape: tuple[int, ...] | None = None) -> Placed:
    rng = np.random.default_rng(seed)
    drawn = (rng.normal(size=s) for s in [(n, d), (n, d), (n,), (n,), (n, *(shape or (p,)))])
    mu, log_var, log_px, kl, residual = (each.astype(np.float32) for each in drawn)
    return Placed(np.arange(n), mu, np.exp(log_var), log_px, kl, residual)


def cut(whole: Placed, ends: Sequence[int]) -> Iterator[Placed]:
    for rows in np.split(np.arange(len(whole.mu)), ends):
        yield Placed(*(each[rows] for each in whole))


@pytest.fixture
def pass_() -> tuple[Placed, np.ndarray, np.ndarray]:
    """Cells as placed, the replicate of each, and which count."""
    rng = np.random.default_rng(1)
    well = rng.permutation(np.append(np.repeat(np.arange(4), 3), rng.integers(4, size=48)))
    used = rng.random(60) < 0.7
    used[[np.flatnonzero(well == i)[j] for i in range(4) for j in (0, 1)]] = True
    return placed(60), well, used


def test_views_are_what_pandas_says_of_the_cells_that_count_along_active_dimensions(pass_) -> None:
    whole, well, used = pass_
    active = np.array([True, False, True])
    _, views = gather(cut(whole, [7, 30]), well, images=False, active=active, used=used)
    groups = [
        pd.DataFrame(values[used].astype(float)).groupby(well[used])
        for values in (whole.mu[:, active], np.log(whole.var[:, active]), whole.residual, whole.residual**2)
    ]
    expected = {
        CENTROID: groups[0].mean(), SPREAD: np.log(groups[0].std()), LOG_VAR: groups[1].mean(),
        RESIDUAL: groups[2].mean(), ENERGY: np.log(groups[3].mean()),
    }  # fmt: skip
    assert set(views.everything) == set(expected)
    for name, table in expected.items():
        np.testing.assert_allclose(views[name], table.to_numpy(), rtol=1e-5, atol=1e-6)
    assert views.n_cells.tolist() == np.bincount(well[used]).tolist()
    assert views.dimensions.tolist() == [0, 2]
    assert views.levels == (views.n_cells.max(),)


def test_what_is_kept_of_single_cells_is_kept_of_all_in_their_order(pass_) -> None:
    whole, well, used = pass_
    per_cell, _ = gather(cut(whole, [7, 30]), well, images=False, active=np.array([True, False, True]), used=used)
    for name in ("mu", "var", "log_px", "kl"):
        np.testing.assert_array_equal(getattr(per_cell, name), getattr(whole, name))
    np.testing.assert_allclose(per_cell.residual_energy[:, 0], (whole.residual**2).mean(1), rtol=1e-6)


@given(ends=st.lists(st.integers(1, 59), unique=True, max_size=6).map(sorted))
def test_views_do_not_depend_on_how_the_pass_is_cut_into_blocks(ends: list[int]) -> None:
    whole, well = placed(60), np.arange(60) % 4
    given_: dict[str, Any] = {"images": False, "levels": (4, 10, 15)}
    once, again = (gather(cut(whole, where), well, rng=np.random.default_rng(0), **given_)[1] for where in ([], ends))
    for first, second in zip(once.by_level, again.by_level, strict=True):
        for name, values in first.items():
            np.testing.assert_allclose(second[name], values, rtol=1e-9, atol=1e-9)


def test_of_images_residuals_are_kept_by_place_and_log_energies_by_octave() -> None:
    whole, well = placed(40, shape=(2, 16, 16)), np.arange(40) % 4
    per_cell, views = gather(cut(whole, [11]), well, images=True)
    signed, square = pooled(whole.residual)
    np.testing.assert_allclose(per_cell.residual_energy, square, rtol=1e-5)
    for name, values in ((RESIDUAL, signed), (ENERGY, np.log(octaves(whole.residual)))):
        expected = pd.DataFrame(values.astype(float)).groupby(well).mean().to_numpy()
        np.testing.assert_allclose(views[name], expected, rtol=1e-4, atol=1e-5)


def test_replicates_of_one_cell_each_have_no_spread_and_no_energy() -> None:
    _, views = gather([placed(6)], np.arange(6), images=False)
    assert set(views.everything) == {CENTROID, RESIDUAL, LOG_VAR}
    _, mixed = gather([placed(6)], np.array([0, 1, 1, 2, 2, 2]), images=False)
    assert np.isnan(mixed[SPREAD][0]).all()
    assert np.isfinite(mixed[SPREAD][1:]).all()


def test_a_level_describes_each_replicate_by_that_many_of_its_cells_and_lower_levels_by_some_of_those() -> None:
    n_cells, levels = np.array([3, 12, 7, 20]), (2, 4, 12, 20)
    well = np.random.default_rng(0).permutation(np.repeat(np.arange(4), n_cells))
    bit = pd.Series(well).groupby(well).cumcount().to_numpy()
    whole = placed(len(well), d=1, p=1)._replace(mu=np.exp2(bit, dtype=np.float32)[:, None])
    whole = whole._replace(residual=whole.mu, var=np.exp(whole.mu / 2**14))
    _, views = gather(cut(whole, [5, 25]), well, images=False, levels=levels, rng=np.random.default_rng(0))
    smaller = np.zeros(4, dtype=int)
    for level, named in zip(levels, views.by_level, strict=True):
        number = np.minimum(n_cells, level)
        chosen = np.rint(named[CENTROID][:, 0] * number).astype(int)
        assert [each.bit_count() for each in chosen.tolist()] == number.tolist()
        assert (chosen & smaller == smaller).all()
        for i, members in enumerate(chosen.tolist()):
            codes = np.array([2.0**k for k in range(20) if members >> k & 1])
            np.testing.assert_allclose(named[SPREAD][i, 0], np.log(np.std(codes, ddof=1)), rtol=1e-6)
            np.testing.assert_allclose(named[ENERGY][i, 0], np.log(np.mean(codes**2)), rtol=1e-6)
        np.testing.assert_allclose(named[RESIDUAL], named[CENTROID])
        np.testing.assert_allclose(named[LOG_VAR], named[CENTROID] / 2**14, rtol=1e-4, atol=1e-6)
        smaller = chosen


def test_cells_that_stand_for_a_replicate_are_drawn_at_random() -> None:
    well, whole = (
        np.zeros(10, dtype=int),
        placed(10, d=1)._replace(mu=np.exp2(np.arange(10), dtype=np.float32)[:, None]),
    )
    often = np.zeros(10)
    for seed in range(300):
        _, views = gather([whole], well, images=False, levels=(4, 10), rng=np.random.default_rng(seed))
        often += int(4 * views.by_level[0][CENTROID][0, 0]) >> np.arange(10) & 1
    assert often.sum() == 4 * 300
    assert np.abs(often / 300 - 0.4).max() < 4 * np.sqrt(0.24 / 300)


def small_design() -> Design:
    wells = pd.DataFrame({"block": "a", "label": ["DMSO"] * 3 + ["x"], "is_control": [True] * 3 + [False]})
    return Design(wells, np.repeat(np.arange(4), [20, 20, 20, 6]), np.empty((4, 0)), paired=False)


@pytest.mark.parametrize(("active", "dimensions"), [([True, False, True], [0, 1]), ([False] * 3, [0, 1, 2])])
def test_replicates_are_described_along_the_dimensions_in_use_and_all_where_none_is(active, dimensions) -> None:
    latent = pd.DataFrame({"dimension": [1, 2, 0], "active": active})
    model: Any = SimpleNamespace(latent_=latent, modality_="profiles", place=lambda cells, rng: [placed(66)])
    design = small_design()
    _, views = describe(None, model, design, design.control)  # type: ignore[arg-type]
    assert views.dimensions.tolist() == dimensions
    assert {name: values.shape[1] for name, values in views.everything.items()} == (
        dict.fromkeys(LATENT, len(dimensions)) | {RESIDUAL: 5, ENERGY: 5}
    )
    assert views.levels == (6, 20)


def test_cells_that_do_not_count_lower_the_level_too() -> None:
    latent = pd.DataFrame({"dimension": range(3), "active": True})
    model: Any = SimpleNamespace(latent_=latent, modality_="profiles", place=lambda cells, rng: [placed(66)])
    design = small_design()
    used = np.append(np.ones(62, bool), [False] * 4)
    _, views = describe(None, model, design, design.control, used=used)  # type: ignore[arg-type]
    assert views.n_cells.tolist() == [20, 20, 20, 2]
    assert views.levels == (2, 20)


def test_a_drop_in_cell_number_alone_is_called_on_all_cells_and_not_on_matched_ones() -> None:
    n_cells = np.tile([20] + [80] * 8, 3)
    block, treated = np.repeat(np.array(list("abc"), dtype=object), 9), n_cells == 20
    plan, well = layout(treated, ~treated, block), np.repeat(np.arange(27), n_cells)
    levels, n = count_levels(n_cells, [plan]), 200

    def p_of(views: Mapping[str, np.ndarray], seed: int) -> float:
        assert len(views) == 5
        given_: dict[str, Any] = {"control": ~treated, "block": block, "n_relabellings": 99, "rng": seed}
        return relabelling_test(list(views.values()), plan, **given_).p

    everything, matched, shifted = np.empty(n), np.empty(n), np.empty(n)
    for seed in range(n):
        cells = placed(len(well), d=20, p=3, seed=seed)
        _, views = gather([cells], well, images=False, levels=levels, rng=seed)
        everything[seed], matched[seed] = p_of(views.everything, seed), p_of(views.matched(plan), seed)
        cells.mu[treated[well]] += 0.3
        _, views = gather([cells], well, images=False, levels=levels, rng=seed)
        shifted[seed] = p_of(views.matched(plan), seed)
    low, high = binom.ppf([0.001, 0.999], n, 0.05)
    assert low <= (matched <= 0.05).sum() <= high
    assert (everything <= 0.05).sum() > 3 * high
    assert (shifted <= 0.05).sum() > 3 * high
