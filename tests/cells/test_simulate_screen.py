"""Simulated screens: the stated design, effects of the stated strength, nulls that are nulls."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, ttest_ind

from latentcell.cells import simulate
from latentcell.cells.images import modality_of
from latentcell.cells.simulate.factors import SCORED, to_scores
from latentcell.errors import InputError


def quiet(**changed) -> anndata.AnnData:
    """A screen without nuisances, so that effects can be measured on cells."""
    settings = {"modality": "profiles", "position_effect": 0.0, "well_noise": 0.0, "cells_per_well": 150}
    return simulate.screen(**{**settings, "rng": 0, **changed})


def test_every_plate_holds_its_controls_and_one_well_of_every_perturbation():
    obs = simulate.screen(modality="profiles", n_plates=2, n_control_wells=8, n_perturbations=5, rng=0).obs
    wells = obs[["plate", "well", "row", "column", "perturbation"]].drop_duplicates()
    assert len(wells) == 2 * 13
    per_plate = pd.crosstab(wells["plate"], wells["perturbation"])
    assert (per_plate["control"] == 8).all()
    assert (per_plate.drop(columns="control") == 1).all().all()
    assert not wells.duplicated(["plate", "row", "column"]).any()
    assert (
        wells["well"].astype(str)
        == [f"{chr(64 + r)}{c:02d}" for r, c in zip(wells["row"], wells["column"], strict=True)]
    ).all()
    per_perturbation = obs.groupby("perturbation", observed=True)[["kind", "strength", "is_null"]].nunique()
    assert (per_perturbation == 1).all().all()


def test_a_third_of_the_perturbations_is_null_and_the_others_run_through_all_kinds():
    table = simulate.screen(modality="profiles", n_perturbations=33, cells_per_well=2, rng=0).uns["simulation"][
        "perturbations"
    ]
    compounds = table.drop(index="control")
    assert (compounds["kind"] == "null").sum() == 11
    assert (compounds["is_null"] == (compounds["kind"] == "null")).all()
    active = compounds[~compounds["is_null"]]
    assert (active["kind"].value_counts() == 2).all()
    assert set(active["kind"]) == set(simulate.KINDS)
    assert (active.groupby("kind")["strength"].nunique() == 2).all()


def test_random_layouts_differ_between_plates_and_contiguous_ones_do_not():
    def places(layout: str) -> list[dict]:
        obs = simulate.screen(modality="profiles", n_plates=2, cells_per_well=3, layout=layout, rng=0).obs
        obs = obs[obs["perturbation"] != "control"]
        return [dict(zip(p["perturbation"], p["well"], strict=True)) for _, p in obs.groupby("plate", observed=True)]

    random, contiguous = places("random"), places("contiguous")
    assert random[0] != random[1]
    assert contiguous[0] == contiguous[1]


@pytest.mark.parametrize(
    ("kind", "factor", "sign"),
    [("bigger", "size", 1), ("dimmer", "intensity", -1), ("smoother", "texture", -1), ("elongated", "elongation", 1)],
)
def test_a_shift_moves_its_factor_by_its_strength_and_no_other(kind, factor, sign):
    cells = quiet(n_perturbations=16, strengths=(1.5,))
    scores = to_scores(cells.obs)
    treated, control = (scores[(cells.obs["kind"] == k).to_numpy()] for k in (kind, "control"))
    shift = (treated.mean() - control.mean())[list(SCORED)]
    assert shift[factor] == pytest.approx(sign * 1.5, abs=0.2)
    assert shift.drop(factor).abs().max() < 0.2


def test_arrest_collects_mitotic_cells_and_toxicity_removes_cells():
    obs = quiet(n_perturbations=16, strengths=(2.0,)).obs
    mitotic = (obs["cell_cycle"] == "M").groupby(obs["kind"], observed=True).mean()
    assert mitotic["mitotic_arrest"] == pytest.approx(1 - np.exp(-0.7) * 0.94, abs=0.06)
    assert mitotic["control"] == pytest.approx(0.06, abs=0.02)
    wells = obs.groupby(["kind", "plate", "well"], observed=True).size().groupby("kind", observed=True).mean()
    assert wells["fewer_cells"] / wells["control"] == pytest.approx(np.exp(-1), abs=0.08)


def test_null_perturbations_have_the_distribution_of_the_controls():
    p = []
    for seed in range(15):
        cells = simulate.screen(modality="profiles", n_perturbations=9, cells_per_well=5, strengths=(0.0,), rng=seed)
        means = cells.to_df().groupby([cells.obs["plate"], cells.obs["well"]], observed=True).mean()
        label = cells.obs.groupby(["plate", "well"], observed=True)["kind"].first().loc[means.index]
        p.append(ttest_ind(means[label == "null"].iloc[:, 0], means[label == "control"].iloc[:, 0]).pvalue)
    assert kstest(p, "uniform").pvalue > 0.01


def test_edges_plates_and_wells_shift_cells_when_asked_and_only_then():
    def fraction(cells: anndata.AnnData, key: list[str]) -> float:
        values = to_scores(cells.obs)[list(SCORED)].set_axis(cells.obs_names)
        values = values[(cells.obs["kind"] == "control").to_numpy()]
        groups = [cells.obs.loc[values.index, k] for k in key]
        return float((values.groupby(groups, observed=True).mean().var() / values.var()).mean())

    noisy = quiet(well_noise=0.5, rng=1)
    assert fraction(noisy, ["plate", "well"]) > 0.2
    assert fraction(quiet(), ["plate", "well"]) < 0.02
    cells = quiet(position_effect=2.0, n_control_wells=80, n_perturbations=1, cells_per_well=30)
    edge = cells.obs["row"].isin([1, 8]) | cells.obs["column"].isin([1, 12])
    scores = to_scores(cells.obs)[list(SCORED)].to_numpy()
    shift = scores[edge].mean(axis=0) - scores[~edge].mean(axis=0)
    np.testing.assert_allclose(shift, 2 * cells.uns["simulation"]["edge_direction"], atol=0.35)


@pytest.mark.parametrize("modality", ["images", "profiles", "counts"])
def test_every_modality_is_recognised_reproducible_and_survives_h5ad(modality, tmp_path: Path):
    def simulated() -> anndata.AnnData:
        return simulate.screen(
            modality=modality, n_plates=1, n_control_wells=3, n_perturbations=3, cells_per_well=4, size=32, rng=4
        )

    cells, again = simulated(), simulated()
    assert modality_of(cells) == modality
    pd.testing.assert_frame_equal(cells.obs, again.obs)
    cells.write_h5ad(tmp_path / "screen.h5ad")
    back = anndata.read_h5ad(tmp_path / "screen.h5ad")
    pd.testing.assert_frame_equal(back.obs, cells.obs)
    assert list(back.uns["simulation"]["perturbations"].index) == list(cells.uns["simulation"]["perturbations"].index)
    first, second = (c.obsm["images"] if modality == "images" else c.to_df().to_numpy() for c in (again, back))
    np.testing.assert_array_equal(first, second)


def test_profiles_are_linear_in_the_scores_with_known_loadings():
    cells = quiet()
    signal = to_scores(cells.obs).to_numpy() @ cells.varm["loadings"].to_numpy().T
    residual = np.asarray(cells.X) - signal
    assert residual.std() == pytest.approx(0.5, rel=0.02)
    assert abs(residual.mean()) < 0.01


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modality": "video"}, "video"),
        ({"n_plates": 0}, "n_plates=0"),
        ({"cells_per_well": 2.5}, "cells_per_well"),
        ({"strengths": (-1.0,)}, "strengths"),
        ({"strengths": ()}, "strengths"),
        ({"well_noise": -0.1}, "well_noise"),
        ({"position_effect": np.nan}, "position_effect"),
        ({"layout": "diagonal"}, "diagonal"),
        ({"n_perturbations": 2000}, "1,536"),
    ],
)
def test_bad_arguments_are_refused_by_name(changed, message):
    with pytest.raises(InputError, match=message):
        simulate.screen(**changed)
