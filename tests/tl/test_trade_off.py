"""A sweep of an objective: what each value gives and takes on cells that no fit has seen, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from driven import BRIEF, MAKERS, SETTINGS, fitted, pictured, profiles, quick
from sklearn.metrics import mean_poisson_deviance

import latentcell as lc
from latentcell.cells.factors import read_factors
from latentcell.errors import InputError
from latentcell.stats.association import correlation
from latentcell.tl.refit import fitted_like
from latentcell.tl.trade_off import _verdict

N = 200
COLUMNS = [
    *("objective", "value", "seed", "label", "alignment", "alignment_dose", "alignment_stage"),
    *("reconstruction", "held_out_nll", "ari", "nmi", "n_active"),
]
FIT: dict[str, Any] = {**BRIEF, "epochs": 15}


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with quick():
        yield


def swept(cells: AnnData, model: lc.VAE | None = None, factors: Any = ("dose", "stage"), **options: Any):
    model = lc.VAE(4, width=16) if model is None else model
    return lc.tl.trade_off(cells, model, factors, **{"objective": {"beta": [1]}, "seeds": 1, "fit": FIT} | options)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return profiles(N)


@pytest.fixture(scope="module")
def done(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """A sweep of two values with two seeds, and where its fits are kept."""
    folder = tmp_path_factory.mktemp("sweep")
    return swept(cells, objective={"beta": [1, 50]}, seeds=2, folder=folder), folder


# what is measured


def test_there_is_one_row_for_each_value_and_seed(done) -> None:
    table, _ = done
    assert list(table.columns) == COLUMNS
    assert table["objective"].tolist() == ["beta=1", "beta=1", "beta=50", "beta=50"]
    assert table["value"].tolist() == [1, 1, 50, 50]
    assert table["seed"].tolist() == [0, 1, 0, 1]
    assert table["label"].eq("stage").all()
    assert table.notna().all(axis=None) or table.loc[table["n_active"] == 0, ["ari", "nmi"]].isna().all(axis=None)
    assert table["alignment"].between(0, 1).all()
    np.testing.assert_allclose(table["alignment"], table[["alignment_dose", "alignment_stage"]].mean(axis=1))


def test_fits_differ_in_the_objective_and_the_seed_only(done) -> None:
    table, folder = done
    assert sorted(path.name for path in folder.iterdir()) == [
        *("beta=1_seed_0", "beta=1_seed_1", "beta=50_seed_0", "beta=50_seed_1"),
    ]
    models = [lc.VAE.load(folder / f"{row.objective}_seed_{row.seed}") for row in table.itertuples()]
    assert [model.objective.beta for model in models] == [1, 1, 50, 50]
    assert len({model.sha256() for model in models}) == 4
    assert {(model.n_latent, model.width) for model in models} == {(4, 16)}


def test_a_fifth_of_the_cells_the_same_is_held_out_of_every_fit(done, cells: AnnData) -> None:
    _, folder = done
    seen = np.array([lc.VAE.load(path).seen(cells) for path in sorted(folder.iterdir())])
    assert (seen == seen[0]).all()
    assert (~seen[0]).sum() == N // 5


def test_the_measures_are_those_of_the_stored_fit_on_held_out_cells(done, cells: AnnData) -> None:
    table, folder = done
    row, model = table.iloc[0], lc.VAE.load(folder / "beta=1_seed_0")
    active = model.latent_.set_index("dimension")["active"].sort_index().to_numpy()
    codes = model.encode(cells).mu * active
    best = correlation(codes, read_factors(cells, ["dose", "stage"])).max(0)
    np.testing.assert_allclose(row[["alignment_dose", "alignment_stage"]].astype(float), best, rtol=1e-5)
    assert row["n_active"] == active.sum() > 0
    new = cells[~model.seen(cells)].copy()
    assert row["held_out_nll"] == pytest.approx(model.nll(new, n_samples=50)["nll"].mean(), rel=1e-4)
    scale = np.asarray(model.schema_.scale).reshape(-1)
    x, y = new.X / scale, model.reconstruct(new) / scale
    assert row["reconstruction"] == pytest.approx(1 - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-3)
    assert 0.3 < row["reconstruction"] < 1
    assert row["alignment_dose"] > 0.7


def test_more_weight_on_the_prior_costs_reconstruction(done) -> None:
    means = done[0].groupby("value")[["reconstruction", "held_out_nll", "n_active"]].mean()
    assert means.loc[50, "reconstruction"] < means.loc[1, "reconstruction"]
    assert means.loc[50, "held_out_nll"] > means.loc[1, "held_out_nll"]
    assert means.loc[50, "n_active"] <= means.loc[1, "n_active"]


def test_the_same_seed_gives_the_same_table_and_fits_are_read_again(done, cells: AnnData, monkeypatch) -> None:
    table, folder = done
    pd.testing.assert_frame_equal(swept(cells), table.iloc[:1], rtol=1e-6)

    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(lc.VAE, "fit", refuse)
    again = swept(cells, objective={"beta": [1, 50]}, seeds=2, folder=folder)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs == table.attrs


def test_stored_fits_that_saw_the_held_out_cells_are_refused_or_made_anew(cells: AnnData, tmp_path: Path) -> None:
    """Which cells are held out depends on the seed: a stored fit of another has seen most of them."""
    swept(cells, folder=tmp_path, fit=BRIEF)
    expected = swept(cells, rng=7, fit=BRIEF)
    with suppress(InputError):
        pd.testing.assert_frame_equal(swept(cells, rng=7, folder=tmp_path, fit=BRIEF), expected, rtol=1e-6)


def test_cells_and_model_are_left_as_they_were(cells: AnnData) -> None:
    before, model = cells.copy(), fitted(cells, fit=BRIEF)
    digest = model.sha256()
    swept(cells, model, fit=BRIEF)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    np.testing.assert_array_equal(cells.X, before.X)
    assert not cells.obsm
    assert not cells.uns
    assert model.sha256() == digest


# clusters against a label


def test_clusters_are_held_against_the_first_factor_with_levels(done, cells: AnnData) -> None:
    row = done[0].iloc[0]
    chosen = swept(cells, label="stage").iloc[0]
    assert (row["ari"], row["nmi"]) == (chosen["ari"], chosen["nmi"])
    assert chosen["label"] == "stage"
    other = swept(cells, label="plate").iloc[0]
    assert other["label"] == "plate"
    assert abs(other["ari"]) < 0.1


def test_without_a_label_there_are_no_scores_of_clusters(cells: AnnData) -> None:
    table = swept(cells, factors=["dose"], fit=BRIEF)
    assert table[["ari", "nmi"]].isna().all(axis=None)
    assert table["label"].tolist() == [""]
    assert "ari" in table
    assert "ARI" not in " ".join(table.attrs["verdict"])


def test_a_label_of_numbers_is_taken_as_levels_and_cells_without_one_do_not_count(cells: AnnData) -> None:
    made = cells.copy()
    made.obs["cluster"] = np.where(np.arange(N) < 20, np.nan, made.obs["stage"].cat.codes)
    row = swept(made, factors=["dose"], label="cluster").iloc[0]
    assert np.isfinite(row["ari"])
    assert row["label"] == "cluster"
    assert row["alignment_dose"] == swept(made, factors=["dose"]).iloc[0]["alignment_dose"]


def test_a_model_that_collapses_has_no_clusters(cells: AnnData) -> None:
    row = swept(cells, objective={"beta": [5000]}).iloc[0]
    assert row["n_active"] == 0
    assert row["alignment"] == 0
    assert np.isnan(row["ari"])


@pytest.mark.parametrize("modality", ["counts", "images", "masked images"])
def test_other_measurements_are_swept_alike(modality: str) -> None:
    cells = pictured(60, masks=True) if modality == "masked images" else MAKERS[modality](60)
    model = fitted(cells, fit=BRIEF)
    table = swept(cells, model, fit=BRIEF)
    assert list(table.columns) == COLUMNS
    shown = table.drop(columns=["objective", "label", "ari", "nmi"])
    assert np.isfinite(shown.to_numpy(float)).all()
    assert table["reconstruction"].iloc[0] < 1


def test_of_counts_the_share_of_the_poisson_deviance_is_told(tmp_path: Path) -> None:
    cells = MAKERS["counts"](100)
    row = swept(cells, folder=tmp_path, fit=FIT | {"epochs": 60}).iloc[0]
    model = lc.VAE.load(tmp_path / "beta=1_seed_0")
    new = cells[~model.seen(cells)].copy()
    x, y = np.asarray(new.X, dtype=float), np.asarray(model.reconstruct(new), dtype=float)
    # without a code: the mean profile, as deep as each cell
    null = np.outer(x.sum(1), x.sum(0) / x.sum())
    lost, whole = (mean_poisson_deviance(x.ravel(), mean.ravel()) for mean in (y, null))
    assert row["reconstruction"] == pytest.approx(1 - lost / whole, rel=1e-3)
    assert 0 < row["reconstruction"] < 1


def test_fits_train_as_the_given_model_did_unless_told_otherwise(cells: AnnData, tmp_path: Path) -> None:
    model = fitted(cells, fit=BRIEF)
    told = {}
    for name, fit in {"inherited": {}, "other": {"epochs": 1}}.items():
        swept(cells, model, fit=fit, folder=tmp_path / name)
        told[name] = lc.VAE.load(tmp_path / name / "beta=1_seed_0").report_
    assert [each["most_epochs"] for each in told.values()] == [2, 1]
    assert asdict(SETTINGS) == model.report_["settings"]
    # another machine has other threads
    assert all(each["settings"] == asdict(SETTINGS) | {"threads": None} for each in told.values())
    assert fitted_like(lc.VAE(4), {"split_key": "well"}) == {"split_key": "well"}


def test_any_setting_can_be_swept_and_guided_factors_stay_guided(cells: AnnData, tmp_path: Path) -> None:
    model = lc.VAE(4, width=16, factors=lc.Factors(guided=["dose"]))
    table = swept(cells, model, objective={"tc": [2.5]}, folder=tmp_path, fit=BRIEF)
    assert table["objective"].tolist() == ["tc=2.5"]
    assert lc.VAE.load(tmp_path / "tc=2.5_seed_0").factors == model.factors


# the verdict


def told(alignment: list[list[float]], **changed: Any) -> list[str]:
    """Verdict on values 1, 2, 4 ... with the given alignment of each seed."""
    rows = [
        {"objective": f"beta={2**i}", "value": 2**i, "seed": seed, "label": "stage", "alignment": value,
         "alignment_dose": value, "reconstruction": 0.9 - 0.1 * i, "held_out_nll": 100 + 10 * i, "ari": 0.8 - 0.2 * i,
         "nmi": 0.5, "n_active": 4, **changed}
        for i, seeds in enumerate(alignment)
        for seed, value in enumerate(seeds)
    ]  # fmt: skip
    return _verdict(pd.DataFrame(rows))


def test_the_mildest_value_that_is_nearly_the_best_is_recommended_with_what_it_costs() -> None:
    sentences = told([[0.50, 0.52], [0.79, 0.81], [0.81, 0.83]])
    assert len(sentences) == 2
    assert sentences[0] == (
        "Mean correlation of the best dimension with each factor: beta=1 0.51, beta=2 0.80, beta=4 0.82, SD over seeds "
        "0.01. Recommended: beta=2, the mildest within 5 % of the best."
    )
    assert sentences[1] == (
        "Against beta=1 that costs 10.0 nats per held-out cell and 0.100 of the variance explained; 4.0 to 4.0 "
        "dimensions in use; ARI 0.80 to 0.60."
    )


def test_a_gain_within_what_seeds_make_is_said_to_be_none() -> None:
    sentences = told([[0.50, 0.80], [0.60, 0.90]])
    assert "within what seeds make" in sentences[-1]
    assert "guide it" in sentences[-1]
    assert not any("within what seeds make" in each for each in told([[0.50, 0.51], [0.60, 0.61]]))


def test_the_first_value_costs_nothing_against_itself() -> None:
    assert not any("costs" in each for each in told([[0.9, 0.91], [0.5, 0.51]]))


def test_the_mildest_value_is_the_smallest_number_in_whatever_order_values_are_given() -> None:
    rows = pd.DataFrame(
        {"objective": ["beta=10", "beta=9"], "value": [10.0, 9.0], "seed": 0, "alignment": [0.9, 0.9],
         "reconstruction": 0.5, "held_out_nll": 1.0, "ari": np.nan, "nmi": np.nan, "n_active": 1}
    )  # fmt: skip
    assert _verdict(rows)[0] == (
        "Mean correlation of the best dimension with each factor: beta=9 0.90, beta=10 0.90. Recommended: beta=9, the "
        "mildest within 5 % of the best."
    )


def test_clusters_that_were_not_measured_are_not_spoken_of() -> None:
    sentences = told([[0.5, 0.52], [0.8, 0.82]], ari=np.nan)
    assert not any("ARI" in each for each in sentences)
    assert sentences[1].endswith("; 4.0 to 4.0 dimensions in use.")


def test_a_single_seed_has_no_spread_to_speak_of() -> None:
    sentences = told([[0.5], [0.8]])
    assert "nan" not in " ".join(sentences)
    assert not any("seeds make" in each for each in sentences)
    assert "SD over seeds" not in sentences[0]
    more = "One fit each cannot tell settings from seeds: give more seeds."
    assert sentences[-1] == more
    assert more not in told([[0.5, 0.52], [0.8, 0.82]])
    assert more not in told([[0.5]])


def test_the_verdict_of_a_sweep_goes_with_its_table(done) -> None:
    table, _ = done
    sentences = table.attrs["verdict"]
    assert sentences == _verdict(table)
    means = table.groupby("value")["alignment"].mean()
    assert sentences[0].startswith(
        f"Mean correlation of the best dimension with each factor: beta=1 {means[1]:.2f}, beta=50 {means[50]:.2f}, SD "
    )
    mildest = means.index[means >= 0.95 * means.max()][0]
    assert f"Recommended: beta={mildest:g}, the mildest within 5 % of the best." in sentences[0]


# refused


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("something was fitted")

    monkeypatch.setattr(lc.VAE, "fit", refuse)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": {}}, "name one setting and its values"),
        ({"objective": {"beta": []}}, "name one setting and its values"),
        ({"objective": {"beta": [1], "tc": [2]}}, "name one setting and its values"),
        ({"objective": {"alpha": [1, 2]}}, "'alpha=1' is not understood"),
        ({"objective": {"beta": [1, -2]}}, "beta must be finite and not negative"),
        ({"objective": {"beta": [float("nan")]}}, "beta must be finite"),
        ({"factors": ["age"]}, "no column 'age'; columns of obs: 'dose'"),
        ({"factors": []}, "[Nn]ame at least one"),
        ({"factors": ["same"]}, "obs\\['same'\\] has the same value in all 200"),
        ({"factors": ["name"]}, "has 200 levels for 200 cells"),
        ({"factors": ["empty"]}, "obs\\['empty'\\] is empty for all cells"),
        ({"label": "age"}, "no column 'age'"),
        ({"label": "turn:cyclic"}, "turn"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_fitted(options: dict, message: str, cells: AnnData) -> None:
    made = cells.copy()
    made.obs["same"], made.obs["name"], made.obs["empty"] = "a", made.obs_names, np.nan
    made.obs["turn"] = np.linspace(0, 0.99, N)
    with pytest.raises(InputError, match=message):
        swept(made, **options)


def test_values_may_be_an_array(cells: AnnData) -> None:
    table = swept(cells, objective={"beta": np.array([1.0, 2.0])}, fit=BRIEF)
    assert table["objective"].tolist() == ["beta=1", "beta=2"]
