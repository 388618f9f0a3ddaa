"""Simulated images: every factor does what it says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from latentcell.cells import simulate
from latentcell.cells.simulate.factors import SCORED, from_scores, to_scores
from latentcell.errors import InputError

DNA, CELL, PUNCTA = range(3)
TYPICAL = {
    "size": 16.0, "nucleus_ratio": 0.5, "elongation": 1.3, "intensity": 1.0, "texture": 0.25, "n_puncta": 10.0,
    "orientation": 0.5, "phase": 0.2,
}  # fmt: skip


def table(n: int = 1, **changed) -> pd.DataFrame:
    return pd.DataFrame({**{k: np.full(n, v) for k, v in TYPICAL.items()}, "cell_seed": np.arange(n), **changed})


def second_moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle of the major axis and ratio of the axes of every mask."""
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]] - (mask.shape[1] - 1) / 2
    weight = mask / mask.sum(axis=(1, 2), keepdims=True)
    mx, my = (weight * x).sum((1, 2))[:, None, None], (weight * y).sum((1, 2))[:, None, None]
    xx, yy, xy = ((weight * v).sum((1, 2)) for v in ((x - mx) ** 2, (y - my) ** 2, (x - mx) * (y - my)))
    spread = np.hypot(xx - yy, 2 * xy)
    return 0.5 * np.arctan2(2 * xy, xx - yy), np.sqrt((xx + yy + spread) / (xx + yy - spread))


@pytest.fixture(scope="module")
def population() -> anndata.AnnData:
    return simulate.images(300, rng=7)


def test_the_same_seed_gives_the_same_cells_and_another_seed_others():
    first, again, other = (simulate.images(5, size=32, rng=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.obsm["images"], again.obsm["images"])
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert not np.array_equal(first.obsm["images"], other.obsm["images"])


def test_a_generator_can_be_replayed_from_the_recorded_seed():
    cells = simulate.images(4, size=32, rng=np.random.default_rng(3))
    replayed = simulate.images(4, size=32, rng=cells.uns["simulation"]["seed"])
    np.testing.assert_array_equal(cells.obsm["images"], replayed.obsm["images"])


def test_images_follow_the_data_contract(population):
    assert population.obsm["images"].shape == (300, 3, 64, 64)
    assert population.obsm["images"].dtype == np.uint16
    assert population.obsm["masks"].shape == (300, 64, 64)
    assert list(population.uns["images"]["channel_names"]) == list(simulate.CHANNELS)
    assert population.n_vars == 0


def test_mask_area_measures_size(population):
    area = population.obsm["masks"].sum(axis=(1, 2))
    assert np.corrcoef(np.sqrt(area), population.obs["size"])[0, 1] > 0.95
    interphase = (population.obs["phase"] < 0.93).to_numpy()
    expected = np.pi * population.obs["size"].to_numpy() ** 2
    np.testing.assert_allclose(area[interphase], expected[interphase], rtol=0.06)


def test_second_moments_of_the_mask_measure_orientation_and_elongation():
    angle = np.linspace(0, np.pi, 40, endpoint=False)
    _, masks = simulate.render(table(40, orientation=angle, elongation=np.full(40, 2.0)))
    measured, ratio = second_moments(masks)
    error = np.angle(np.exp(2j * (measured - angle))) / 2
    assert np.abs(error).max() < 0.15
    stretch = np.linspace(1.2, 2.5, 40)
    ratio = second_moments(simulate.render(table(40, elongation=stretch))[1])[1]
    assert np.corrcoef(ratio, stretch)[0, 1] > 0.95
    assert abs(np.mean(ratio / stretch) - 1) < 0.1


def test_dna_is_conserved_by_every_factor_and_doubles_through_s_phase():
    n = 60
    rng = np.random.default_rng(0)
    varied = table(
        n, size=rng.uniform(11, 20, n), texture=rng.uniform(0, 0.8, n), nucleus_ratio=rng.uniform(0.4, 0.6, n)
    )
    totals = {
        phase: simulate.render(varied.assign(phase=phase))[0][:, DNA].sum(axis=(1, 2))
        for phase in (0.1, 0.6, 0.85, 0.97)
    }
    assert totals[0.1].std() / totals[0.1].mean() < 0.01
    np.testing.assert_allclose(totals[0.6] / totals[0.1], 1.5, rtol=0.01)
    np.testing.assert_allclose(totals[0.85] / totals[0.1], 2, rtol=0.01)
    np.testing.assert_allclose(totals[0.97] / totals[0.1], 2, rtol=0.01)


def test_nucleus_ratio_sets_the_area_of_the_nucleus():
    ratio = np.linspace(0.35, 0.65, 20)
    dna = simulate.render(table(20, nucleus_ratio=ratio, texture=np.zeros(20)), psf=0)[0][:, DNA]
    area = (dna > 0.1 * dna.max(axis=(1, 2), keepdims=True)).sum(axis=(1, 2))
    np.testing.assert_allclose(area, np.pi * (ratio * TYPICAL["size"]) ** 2, rtol=0.15)


def test_metaphase_plate_lies_across_the_major_axis_and_anaphase_has_two_plates():
    angle = np.array([0.2, 0.9, 2.0])
    plate = simulate.render(table(3, orientation=angle, phase=np.full(3, 0.972)))[0][:, DNA]
    measured, ratio = second_moments(plate)
    assert np.abs(np.cos(measured - angle)).max() < 0.15
    assert (ratio > 2).all()
    anaphase = simulate.render(table(1, orientation=np.zeros(1), phase=np.array([0.999])))[0][0, DNA]
    profile = anaphase.sum(axis=0)
    assert profile[28:36].max() < 0.2 * profile.max()
    assert abs(profile[:32].sum() / profile.sum() - 0.5) < 0.05


def test_each_puncta_adds_light_at_its_own_place():
    counts = np.arange(0, 31, 5)
    spots = simulate.render(table(len(counts), n_puncta=counts, cell_seed=np.zeros(len(counts), int)))[0][:, PUNCTA]
    assert (np.diff(spots, axis=0) >= -1e-6).all()
    energy = (spots - spots[0]).sum(axis=(1, 2))
    assert np.corrcoef(energy, counts)[0, 1] > 0.98


def test_texture_is_the_log_contrast_within_the_nucleus():
    smooth, half, rough = (
        simulate.render(table(30, texture=np.full(30, t)), psf=0)[0][:, DNA, 28:36, 28:36] for t in (0.0, 0.3, 0.6)
    )
    grain = np.log(rough / smooth).std(axis=(1, 2))
    np.testing.assert_allclose(np.log(half / smooth).std(axis=(1, 2)), grain / 2, rtol=1e-3)
    assert grain.mean() == pytest.approx(0.6, rel=0.25)


@pytest.mark.parametrize(
    ("factor", "value", "changed"),
    [
        ("texture", 0.6, {DNA}),
        ("intensity", 1.7, {CELL}),
        ("n_puncta", 20.0, {PUNCTA}),
        ("size", 18.0, {DNA, CELL, PUNCTA}),
    ],
)
def test_a_counterfactual_changes_only_the_channels_of_its_factor(population, factor, value, changed):
    cells = population[:20].copy()
    cells.obs["phase"] = 0.3
    before, mask_before = simulate.render(cells.obs)
    after, mask_after = simulate.render(cells.obs.assign(**{factor: value}))
    differs = {c for c in range(3) if not np.array_equal(before[:, c], after[:, c])}
    assert differs == changed
    assert np.array_equal(mask_before, mask_after) == (factor != "size")


def test_a_cell_renders_alike_alone_and_among_others(population):
    together = simulate.render(population.obs)[0]
    np.testing.assert_allclose(simulate.render(population.obs.iloc[[17]])[0][0], together[17], atol=1e-5)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_allowed_factors_give_finite_light_and_a_mask(data):
    corner = {name: data.draw(st.sampled_from([f.low, f.high]), name) for name, f in SCORED.items()}
    corner["size"] /= 4
    corner["phase"] = data.draw(st.sampled_from([0.0, 0.5, 0.94, 0.972, 0.985, 0.9999]))
    seed = data.draw(st.integers(0, 2**32 - 1))
    image, mask = simulate.render(
        {**{k: [v] for k, v in corner.items()}, "orientation": [1.0], "cell_seed": [seed]}, size=16
    )
    assert np.isfinite(image).all()
    assert image.min() > -1e-4
    assert mask.any()
    assert image[0, DNA].sum() > 0


def test_photographs_are_poisson_photons_plus_camera_noise(population):
    expected = np.full((400, 1, 16, 16), 0.8, np.float32)
    optics = simulate.Optics(photons=100, background=5, read_noise=3, offset=20)
    taken = simulate.expose(expected, optics=optics, dtype="float32", rng=0)
    assert taken.mean() == pytest.approx(105, rel=0.003)
    assert taken.var() == pytest.approx(85 + 9, rel=0.02)
    assert simulate.expose(expected, dtype="uint8", rng=0).dtype == np.uint8


def test_fixing_a_factor_leaves_the_other_factors_as_drawn():
    free = simulate.images(20, size=32, rng=5).obs
    fixed = simulate.images(
        20, size=32, factors={"texture": 0.1, "phase": (0.1, 0.2), "n_puncta": np.arange(20)}, rng=5
    ).obs
    untouched = ["size", "elongation", "orientation", "intensity", "nucleus_ratio", "cell_seed"]
    pd.testing.assert_frame_equal(free[untouched], fixed[untouched])
    assert (fixed["texture"] == 0.1).all()
    assert fixed["phase"].between(0.1, 0.2).all()
    assert fixed["n_puncta"].tolist() == list(range(20))
    assert (fixed["cell_cycle"] == "G1").all()


def test_stacks_are_ellipsoids_whose_volume_follows_size():
    cells = simulate.images(40, size=32, depth=16, rng=0, factors={"phase": 0.1})
    assert cells.obsm["images"].shape == (40, 3, 16, 32, 32)
    volume = cells.obsm["masks"].sum(axis=(1, 2, 3))
    ellipsoid = 4 / 3 * np.pi * 0.8 * cells.obs["size"].to_numpy() ** 3 / 2
    np.testing.assert_allclose(volume, ellipsoid, rtol=0.1)
    total = simulate.render(cells.obs, size=32, depth=16)[0][:, DNA].sum(axis=(1, 2, 3))
    assert total.std() / total.mean() < 0.02


def test_factors_keep_their_meaning_in_smaller_crops():
    large, small = simulate.images(50, size=64, rng=2), simulate.images(50, size=32, rng=2)
    np.testing.assert_allclose(small.obs["size"], large.obs["size"] / 2)
    area = [cells.obsm["masks"].mean(axis=(1, 2)) for cells in (large, small)]
    np.testing.assert_allclose(area[1], area[0], rtol=0.1)


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.sampled_from([32, 64]))
@settings(max_examples=30, deadline=None)
def test_scores_survive_the_way_to_factors_and_back(values, size):
    scores = {name: np.array([value]) for name, value in zip(SCORED, values, strict=True)}
    factors = from_scores(scores, size=size).assign(phase=0.0)
    back = to_scores(factors, size=size)
    for name in set(SCORED) - {"n_puncta"}:
        assert back[name][0] == pytest.approx(scores[name][0], abs=1e-9)


def test_time_course_hides_a_middle_that_is_no_mixture_of_the_ends():
    cells = simulate.time_course(200, size=32, rng=0)
    size = {stage: np.log(cells.obs["size"][cells.obs["stage"] == stage]) for stage in ("early", "middle", "late")}
    for end, sign in (("early", -1), ("late", 1)):
        gap = sign * (size[end].mean() - size["middle"].mean()) / size["middle"].std()
        assert 2 < gap < 3
    ends = np.concatenate([size["early"], size["late"]])
    assert ks_2samp(ends, size["middle"]).statistic > 0.35
    assert list(cells.obs["stage"].cat.categories) == ["early", "middle", "late"]
    assert cells.obs["stage"].cat.ordered
    assert cells.obs["time"].dtype == float


def test_time_moves_every_lineage_by_the_same_vector_of_scores():
    cells = simulate.time_course(60, (0.0, 0.25, 1.0), size=32, paired=True, rng=1)
    scores = to_scores(cells.obs, size=32)
    early, late = (scores[(cells.obs["time"] == t).to_numpy()].reset_index(drop=True) for t in (0.0, 1.0))
    assert (cells.obs["lineage"].value_counts() == 3).all()
    step = late["texture"].to_numpy() - early["texture"].to_numpy()
    np.testing.assert_allclose(step, 3.0, atol=1e-6)
    np.testing.assert_allclose(late["elongation"].to_numpy(), early["elongation"].to_numpy(), atol=1e-6)
    assert np.corrcoef(early["size"], early["intensity"])[0, 1] > 0.1
    assert not np.allclose(cells.obs["orientation"][:60], cells.obs["orientation"][-60:])


def test_unpaired_time_course_has_new_cells_at_every_time():
    cells = simulate.time_course(10, (0.0, 1.0), size=32, rng=1)
    assert cells.obs["lineage"].is_unique
    assert list(cells.obs["stage"].cat.categories) == ["time_0", "time_1"]


@pytest.mark.parametrize("simulated", [
    lambda: simulate.images(3, size=32, factors={"texture": (0.1, 0.2), "size": np.full(3, 8.0)}, rng=0),
    lambda: simulate.images(2, size=16, depth=8, rng=0),
    lambda: simulate.time_course(2, size=32, rng=0),
])  # fmt: skip
def test_simulated_images_survive_h5ad(simulated, tmp_path: Path):
    cells = simulated()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.obsm["images"], cells.obsm["images"])
    np.testing.assert_array_equal(back.obsm["masks"], cells.obsm["masks"])
    pd.testing.assert_frame_equal(back.obs, cells.obs)
    assert back.uns["simulation"]["seed"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate.images(0), "n=0"),
        (lambda: simulate.images(2, size=8), "at least 16 pixels"),
        (lambda: simulate.images(2, depth=2), "4 planes"),
        (lambda: simulate.images(2, dtype="int64"), "int64"),
        (lambda: simulate.images(2, factors={"colour": 1}), "colour"),
        (lambda: simulate.images(2, factors={"phase": 1.0}), "phase"),
        (lambda: simulate.images(2, factors={"size": np.array([10, np.nan])}), "cell 1"),
        (lambda: simulate.images(2, factors={"size": [1.0, 2.0, 3.0]}), "2 cells"),
        (lambda: simulate.images(2, factors={"size": (9.0, 3.0)}), "range"),
        (lambda: simulate.images(2, size=32, factors={"size": 20}), "32 pixels"),
        (lambda: simulate.render({"size": [10.0]}), "lacks"),
        (lambda: simulate.time_course(2, (0.5, 0.2)), "increasing"),
        (lambda: simulate.time_course(2, (0.0, 2.0)), "between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
