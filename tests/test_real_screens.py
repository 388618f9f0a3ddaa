"""What a screen must show on real cells and wells; some train for minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import latentcell as lc

pytestmark = pytest.mark.slow


def nearest_mechanism(cells, hits: pd.DataFrame, cosine: np.ndarray, *, other_batch: bool) -> float:
    """Accuracy of the mechanism of the most similar treatment of another compound, and of another batch if asked."""
    treatment = [cells.obs["Compound"], cells.obs["Concentration"]]
    moa = cells.obs["moa"].groupby(treatment, observed=True).first()
    weeks = cells.obs["Plate"].astype(str).str.split("_").str[0].groupby(treatment, observed=True).agg(set)
    keys = list(zip(hits["group"], hits["dose"], strict=True))
    mechanism, compound = np.array([moa[key] for key in keys]), hits["group"].to_numpy()
    right = []
    for i, key in enumerate(keys):
        allowed = compound != compound[i]
        if other_batch:
            allowed &= np.array([not weeks[key] & weeks[other] for other in keys])
        if (mechanism[allowed] == mechanism[i]).any():
            right.append(mechanism[np.flatnonzero(allowed)[np.argmax(cosine[i, allowed])]] == mechanism[i])
    return float(np.mean(right))


def test_bbbc021_wells_find_mechanisms_of_action_and_admit_that_places_are_fixed(data_dir: Path) -> None:
    cells = lc.read(data_dir / "images" / "bbbc021_wells.csv.gz", obs_columns=["Replicate"])
    lc.tl.screen(cells, group="Compound", control="DMSO", replicate="Well", block="Plate", dose="Concentration", rng=0)
    result = cells.uns["screen"]
    hits, cosine = result["hits"], result["similarity"]
    assert nearest_mechanism(cells, hits, cosine, other_batch=False) > 0.757
    assert nearest_mechanism(cells, hits, cosine, other_batch=True) > 0.612
    assert "keep their place" in result["verdict"][0]
    assert not hits["valid"].any()
    assert hits["p"].isna().all()


def test_bbbc021_wells_of_unknown_place_are_called_and_their_controls_are_not(data_dir: Path) -> None:
    cells = lc.read(data_dir / "images" / "bbbc021_wells.csv.gz", obs_columns=["Replicate"])
    cells.obs["id"] = cells.obs["Plate"].astype(str) + " " + cells.obs["Well"].astype(str)
    lc.tl.screen(cells, group="Compound", control="DMSO", replicate="id", block="Plate", dose="Concentration", rng=0)
    result = cells.uns["screen"]
    assert (result["hits"]["q"] <= 0.05).mean() > 0.7
    assert result["params"]["rejection_low"] <= 0.05 <= result["params"]["rejection_high"]


def test_one_control_well_per_plate_gives_ranks_and_the_reason_and_pictures_of_real_cells(data_dir: Path) -> None:
    cells = lc.read(data_dir / "images" / "bbbc021_cells.h5ad")
    model = lc.tl.screen(
        cells, group="compound", control="DMSO", replicate="well", block="plate", dose="concentration",
        fit={"epochs": 15}, rng=0,
    )  # fmt: skip
    result = cells.uns["screen"]
    assert "single control replicate" in result["verdict"][0]
    assert result["hits"]["p"].isna().all()
    assert set(result["hits"]["group"]) == {"cyclohexamide"}
    sheet = lc.pl.contact_sheet(cells, model, result["hits"]["label"][0])
    assert [text.get_text() for text in sheet.axes[0].get_yticklabels()][-1] == "cells of the group"


def test_interferon_genes_lead_the_explanation_of_stimulated_blood_cells(data_dir: Path) -> None:
    cells = lc.read(data_dir / "rna" / "kang2018_scgen_valid.h5ad")
    lc.tl.screen(
        cells, group="condition", control="control", replicate="cell_type", block="cell_type", fit={"epochs": 40}, rng=0
    )
    reasons = cells.uns["screen"]["reasons"].query("kind == 'variable'")
    induced = {"ISG15", "ISG20", "IFI6", "IFIT1", "IFIT2", "IFIT3", "IRF7", "HERC5"}
    assert len(induced & set(reasons["name"].head(10))) >= 5
    assert (reasons.set_index("name").loc[["IFIT1", "IFIT3", "ISG15"], "low"] > 0).all()


def test_donors_who_got_nothing_are_not_called(data_dir: Path) -> None:
    cells = lc.read(data_dir / "rna" / "kang2018_ctrl12k.h5ad")
    donors = sorted(cells.obs["donor"].unique())
    model = lc.VAE(8).fit(cells[cells.obs["donor"].isin(donors[:2])].copy(), epochs=20, rng=0)
    rest = cells[cells.obs["donor"].isin(donors[2:])].copy()
    p = []
    for seed in range(12):
        half = np.random.default_rng(seed).random(rest.n_obs) < 0.5
        rest.obs["arm"] = np.where(half, "control", "posing")
        lc.tl.screen(rest, model, group="arm", control="control", replicate="donor", block="donor", rng=seed)
        hit = rest.uns["screen"]["hits"].iloc[0]
        p.append(hit["p"])
        assert hit["valid"]
        assert hit["min_p"] == pytest.approx(2 / 2**6)
    # 12 tests at 0.2: 8 or more rejections happen once in 1,700
    assert sum(each <= 0.2 for each in p) < 8
