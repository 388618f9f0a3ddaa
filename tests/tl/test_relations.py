"""Codes and factors: what goes with what beyond permuted factors, scores beside PCA, and what leaks of a nuisance."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from driven import quick, relations_module
from linear import LinearModel
from scipy.stats import binom

from latentcell.errors import InputError
from latentcell.stats.association import correlation
from latentcell.stats.factor import Factor
from latentcell.tl.coded import Coded
from latentcell.tl.dimensions import dimensions_table, names, variance_explained
from latentcell.tl.effects import Design
from latentcell.tl.refit import Match
from latentcell.tl.relations import leak, principal_components, relations, scores

NOTHING = Design(None, None, None)
COLUMNS = ["factor", "dimension", "correlation", "null_95", "p"]
LEVEL = 0.05
N_DRAWS = 150


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with quick():
        yield


def numbers(values: Any, name: str = "dose") -> Factor:
    return Factor(name, "continuous", np.asarray(values, dtype=float))


def levels(values: Any, name: str = "stage") -> Factor:
    values = np.asarray(values, dtype=float)
    return Factor(name, "categorical", values, tuple("abcdefgh"[: int(np.nanmax(values)) + 1]))


def found(codes: np.ndarray, factors: list[Factor], design: Design = NOTHING, rng: int = 0) -> Any:
    return relations(codes, factors, design, rng=np.random.default_rng(rng))


def rejected(draw: Any, n: int = N_DRAWS) -> float:
    """Share of drawn (codes, factor, design) with a dimension at p <= 0.05."""
    smallest = []
    for seed in range(n):
        codes, factor, design = draw(np.random.default_rng([7, seed]))
        smallest.append(found(codes, [factor], design, seed)["p"].min())
    return float(np.mean(np.array(smallest) <= LEVEL))


def most(n: int = N_DRAWS) -> float:
    """Share of n tests at level 0.05 that is exceeded by chance once in 10,000 times."""
    return float(binom.ppf(0.9999, n, LEVEL)) / n


# no more is found than is there


def turn(n: int, rng: np.random.Generator) -> Factor:
    return Factor("phase", "cyclic", rng.random(n))


def ranked(n: int, rng: np.random.Generator) -> Factor:
    return Factor("grade", "ordinal", rng.integers(3, size=n).astype(float), ("low", "middle", "high"))


KINDS = {
    "numbers": lambda n, rng: numbers(rng.normal(size=n)),
    "levels": lambda n, rng: levels(rng.integers(3, size=n)),
    "a circle": turn,
    "ranks": ranked,
    "half unknown": lambda n, rng: numbers(np.where(rng.random(n) < 0.5, rng.normal(size=n), np.nan)),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_permuted_factor_is_found_in_one_of_twenty_draws_and_no_more(kind: str) -> None:
    n = 60
    codes = np.random.default_rng(0).normal(size=(n, 4)) ** 3  # fixed, and far from normal

    def draw(rng: np.random.Generator) -> Any:
        return codes, KINDS[kind](n, rng), NOTHING

    assert rejected(draw) <= most()


WELL = np.repeat(np.arange(20), 5)


def wells_differ(rng: np.random.Generator) -> Any:
    """Codes that differ between wells, and a treatment of wells that does nothing."""
    codes = 2 * rng.normal(size=(20, 3))[WELL] + 0.3 * rng.normal(size=(100, 3))
    return codes, levels(rng.permutation(np.arange(20) % 2)[WELL])


def test_a_treatment_of_wells_is_found_by_chance_only_where_wells_are_the_unit() -> None:
    assert rejected(lambda rng: (*wells_differ(rng), Design(WELL, None, None))) <= most()
    assert rejected(lambda rng: (*wells_differ(rng), NOTHING), 40) > 0.5


def plates_differ(rng: np.random.Generator) -> Any:
    """Codes and doses that are both higher on the second plate, and independent on either."""
    plate = (np.arange(80) >= 40).astype(float)
    codes = 1.5 * plate[:, None] + rng.normal(size=(80, 3))
    return codes, numbers(1.5 * plate + rng.normal(size=80)), plate


def test_a_factor_that_goes_with_a_nuisance_is_found_by_chance_only_within_its_levels() -> None:
    def within(rng: np.random.Generator) -> Any:
        codes, dose, plate = plates_differ(rng)
        return codes, dose, Design(None, plate, None)

    assert rejected(within) <= most()
    assert rejected(lambda rng: (*plates_differ(rng)[:2], NOTHING), 40) > 0.5


def test_wells_are_exchanged_within_their_plates_only() -> None:
    plate = np.arange(20) % 2

    def draw(rng: np.random.Generator) -> Any:
        codes = 2 * rng.normal(size=(20, 3))[WELL] + 3 * plate[WELL, None] + rng.normal(size=(100, 3))
        drug = (rng.random(20) < 0.25 + 0.5 * plate)[WELL]
        return codes, levels(drug), Design(WELL, plate[WELL].astype(float), None)

    assert rejected(draw) <= most()


def test_a_factor_of_cells_is_permuted_within_wells_of_other_composition() -> None:
    def draw(rng: np.random.Generator) -> Any:
        effect = 2 * rng.normal(size=20)
        codes = effect[WELL, None] + rng.normal(size=(100, 3))
        return codes, numbers(effect[WELL] + rng.normal(size=100)), Design(WELL, None, None)

    assert rejected(draw) <= most()


# what is there is found


def followed(n: int = 80) -> tuple[np.ndarray, list[Factor]]:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(n, 3))
    stage = np.digitize(codes[:, 0] + 0.2 * rng.normal(size=n), [-0.5, 0.5])
    return codes, [numbers(codes[:, 2] + 0.3 * rng.normal(size=n)), levels(stage), turn(n, rng)]


def test_each_dimension_that_follows_a_factor_is_found_with_its_correlation() -> None:
    codes, factors = followed()
    table = found(codes, factors)
    assert list(table.columns) == COLUMNS
    assert table["factor"].tolist() == ["dose"] * 3 + ["stage"] * 3 + ["phase"] * 3
    assert table["dimension"].tolist() == [0, 1, 2] * 3
    np.testing.assert_allclose(table["correlation"], correlation(codes, factors).T.ravel())
    assert table.loc[table["p"] <= LEVEL, ["factor", "dimension"]].to_numpy().tolist() == [["dose", 2], ["stage", 0]]
    assert (table["null_95"] == table.groupby("factor")["null_95"].transform("first")).all()
    assert (table.loc[table["p"] <= LEVEL, "correlation"] > table.loc[table["p"] <= LEVEL, "null_95"]).all()
    assert table["p"].between(1 / 20, 1).all()
    for _, one in table.groupby("factor"):
        assert one.sort_values("correlation")["p"].is_monotonic_decreasing


def test_a_dimension_that_is_always_zero_holds_nothing() -> None:
    codes, factors = followed()
    codes[:, 2] = 0
    table = found(codes, factors).query("dimension == 2")
    assert (table["correlation"] == 0).all()
    assert (table["p"] == 1).all()


def test_unknown_cells_do_not_count() -> None:
    codes, (dose, *_) = followed()
    known = np.arange(80) < 50
    part = numbers(np.where(known, dose.value, np.nan))
    np.testing.assert_allclose(
        found(codes, [part])["correlation"], found(codes[known], [dose.take(known)])["correlation"]
    )


def test_relations_are_the_same_with_the_same_seed_and_of_few_cells_where_there_are_many(monkeypatch) -> None:
    codes, factors = followed()
    before = codes.copy()
    assert found(codes, factors).equals(found(codes, factors))
    assert not found(codes, factors).equals(found(codes, factors, rng=1))
    np.testing.assert_array_equal(codes, before)
    monkeypatch.setattr(relations_module, "_MOST_CELLS", 40)
    design = Design(np.arange(80) // 2, np.arange(80) % 4 // 2, None)
    few = found(codes, factors, design)
    assert not np.allclose(few["correlation"], found(codes, factors, design, rng=1)["correlation"])
    assert (few.query("factor == 'dose' and dimension == 2")["correlation"] > 0.8).all()


# leak


def leaked(codes: np.ndarray, nuisance: list[Factor], rng: int = 0) -> Any:
    return leak(codes, nuisance, rng=np.random.default_rng(rng))


@pytest.fixture(scope="module")
def plated() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes that hold the plate, codes that do not, and the plate of 150 cells on three plates."""
    rng = np.random.default_rng(0)
    plate = rng.integers(3, size=150)
    free = rng.normal(size=(150, 3))
    held = free.copy()
    held[:, 1] = 4 * plate + 0.3 * rng.normal(size=150)
    return held, free, plate


def test_a_plate_that_codes_hold_leaks_almost_wholly(plated) -> None:
    held, _, plate = plated
    row = leaked(held, [levels(plate, "plate")]).iloc[0]
    assert row["factor"] == "plate"
    assert row["score"] > 0.95
    assert row["chance"] == pytest.approx(1 / 3)
    assert row["null_95"] < 0.6
    assert row["p"] == pytest.approx(1 / 10)  # of 19 // 2 permutations


def test_a_plate_that_codes_do_not_hold_is_told_at_chance(plated) -> None:
    _, free, plate = plated
    row = leaked(free, [levels(plate, "plate")]).iloc[0]
    assert abs(row["score"] - 1 / 3) < 0.15
    assert row["p"] > LEVEL


def test_a_number_leaks_as_share_of_its_variance(plated) -> None:
    held, free, plate = plated
    depth = numbers(plate + 0.1 * np.random.default_rng(1).normal(size=150), "depth")
    row, none = leaked(held, [depth]).iloc[0], leaked(free, [depth]).iloc[0]
    assert row["chance"] == none["chance"] == 0
    assert row["score"] > 0.9
    assert none["score"] < 0.2


def test_a_leak_lies_in_all_dimensions_together() -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice([-1.0, 1.0], size=(200, 2)) + 0.1 * rng.normal(size=(200, 2))
    plate = levels((codes[:, 0] * codes[:, 1] > 0).astype(float), "plate")
    assert correlation(codes, [plate]).max() < 0.2
    assert leaked(codes, [plate])["score"][0] > 0.9


def test_levels_that_no_known_cell_has_and_cells_without_one_do_not_count(plated) -> None:
    held, _, plate = plated
    part = levels(np.where(plate == 2, np.nan, plate), "plate")
    row = leaked(held, [Factor("plate", "categorical", part.value, ("a", "b", "c"))]).iloc[0]
    assert row["chance"] == 0.5
    assert row["score"] > 0.95


def test_without_nuisance_the_table_of_leaks_is_empty_with_its_columns(plated) -> None:
    table = leaked(plated[0], [])
    assert len(table) == 0
    assert list(table.columns) == ["factor", "score", "chance", "null_95", "p"]


# scores and their baseline


def coded_by(codes: np.ndarray, n_refits: int = 2, *, guided: bool = False) -> Coded:
    """The same codes by a model and its refits, which use all dimensions but the last of the first refit."""
    d = codes.shape[1]

    def model(active: np.ndarray) -> Any:
        guides = ("a guide",) if guided else ()
        latent = pd.DataFrame({"dimension": np.arange(d), "active": active})
        return SimpleNamespace(schema_=SimpleNamespace(guidance=SimpleNamespace(guides=guides)), latent_=latent)

    every, less = np.ones(d, dtype=bool), np.arange(d) < d - 1
    models = [model(every), model(less), model(every)][: 1 + n_refits]
    match = Match(np.arange(d), np.ones(d), np.ones(d))
    untrained = np.zeros(len(codes), dtype=bool)
    return Coded(models, np.stack([codes] * (1 + n_refits)), [match] * n_refits, codes, untrained)


def test_scores_are_those_of_model_refits_and_pca_and_only_the_first_have_nulls_and_intervals() -> None:
    codes, factors = followed()
    table = scores(coded_by(codes), factors, NOTHING, codes[:, ::-1], rng=np.random.default_rng(0))
    assert table["codes"].drop_duplicates().tolist() == ["model", "seed 1", "seed 2", "PCA"]
    assert list(table.columns[:3]) == ["codes", "metric", "factor"]
    first = table["codes"] == "model"
    informative = table["metric"].isin(["mig", "sap", "max_correlation", "informativeness"])
    assert table.loc[first & informative, ["low", "high", "null_mean", "null_95", "p"]].notna().all(axis=None)
    assert table.loc[~first, ["low", "high", "null_mean", "null_95", "p"]].isna().all(axis=None)
    best = table.query("metric == 'max_correlation' and factor == 'dose'").set_index("codes")
    expected = correlation(codes, factors)[:, 0]
    assert best.loc["model", "value"] == pytest.approx(expected.max())
    assert best.loc["model", "dimension"] == 2
    assert best.loc["seed 1", "value"] == pytest.approx(expected[:2].max())  # which does not use the last
    assert best.loc["seed 2", "value"] == pytest.approx(expected.max())
    assert best.loc["PCA", "dimension"] == 0


def test_scores_of_a_guided_model_are_cross_fitted_and_those_of_single_refits_are_left_out() -> None:
    codes, factors = followed()
    table = scores(coded_by(codes, guided=True), factors, NOTHING, None, rng=np.random.default_rng(0))
    assert set(table["codes"]) == {"cross-fitted"}


def test_principal_components_are_those_of_standardised_variables() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3)) @ rng.normal(size=(3, 12)) + 0.1 * rng.normal(size=(100, 12))
    z = (x - x.mean(0)) / x.std(0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    found = principal_components(1000 * x + 5, 3, rng=np.random.default_rng(0))
    assert found.shape == (100, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(u * s)[:, :3], rtol=1e-3, atol=1e-3)


def test_there_are_no_more_components_than_cells_or_variables_and_a_constant_variable_counts_for_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    constant = np.hstack([x, np.full((30, 1), 7.0)])
    assert principal_components(constant, 5, rng=np.random.default_rng(0)).shape == (30, 3)
    assert principal_components(x[:2], 5, rng=np.random.default_rng(0)).shape == (2, 2)
    assert np.isfinite(principal_components(constant, 2, rng=np.random.default_rng(0))).all()


# what each dimension is


class Known(LinearModel):
    """A linear model that knows how its measurements are scaled, which dimensions it uses, and no guide."""

    guides: tuple[Any, ...] = ()

    @property
    def schema_(self) -> Any:
        scale = np.ones(len(self.names_), dtype=np.float32)
        return SimpleNamespace(scale=scale, guidance=SimpleNamespace(guides=self.guides))

    @property
    def latent_(self) -> pd.DataFrame:
        d = len(self.loadings)
        return pd.DataFrame({"dimension": np.arange(d), "kl": np.arange(d) + 0.5, "active": np.arange(d) > 0})


def test_the_variance_of_a_linear_decoder_is_shared_between_orthogonal_dimensions_and_an_ignored_one_has_none() -> None:
    rng = np.random.default_rng(0)
    codes = np.linalg.qr(rng.normal(size=(200, 4)) - rng.normal(size=4))[0]
    codes -= codes.mean(0)
    loadings = np.diag([3.0, 2.0, 0.0, 1.0]) @ np.linalg.qr(rng.normal(size=(8, 4)))[0].T
    shares = variance_explained(Known(loadings), codes)
    parts = codes.var(0) * (loadings**2).sum(1)
    np.testing.assert_allclose(shares, parts / ((codes @ loadings).var(0).sum()), rtol=1e-6)
    assert shares[2] == 0


@pytest.mark.parametrize("modality", ["profiles", "counts", "images"])
def test_a_dimension_that_the_decoder_ignores_explains_nothing_and_the_only_other_everything(modality: str) -> None:
    rng = np.random.default_rng(0)
    loadings = np.stack([rng.normal(size=256), np.zeros(256)])
    shares = variance_explained(Known(loadings, modality), rng.normal(size=(40, 2)))
    np.testing.assert_allclose(shares, [1, 0], atol=1e-6)


def test_a_decoder_that_draws_one_cell_only_has_nothing_to_explain() -> None:
    assert variance_explained(Known(np.zeros((2, 5))), np.ones((10, 2))).tolist() == [0, 0]


def effects_of(**effect: list[float]) -> pd.DataFrame:
    tables = [
        pd.DataFrame({"of": "dimension", "name": name, "variable": list("abcde"), "effect": values})
        for name, values in effect.items()
    ]
    factor = pd.DataFrame({"of": "factor", "name": "dose", "variable": list("abcde"), "effect": 9.0})
    return pd.concat([*tables, factor])


def test_a_dimension_is_named_by_the_variables_it_moves_most_with_their_signs() -> None:
    table = effects_of(z2=[0.1, -0.9, 0.5, 0.2, -0.3], z0=[0, 0, 0, 0, 0.1])
    found = names(table)
    assert found["z2"] == "-b +c -e"
    assert found["z0"].startswith("+e ")
    assert list(found) == ["z2", "z0"]
    assert names(table.query("of == 'factor'")) == {}


def test_the_table_of_dimensions_says_of_each_what_it_holds_and_whether_it_comes_back() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 3))
    dose = numbers(codes[:, 2] + 0.1 * rng.normal(size=60))
    model = Known(np.eye(3))
    model.guides = (SimpleNamespace(name="stage", dimensions=[1]),)
    matches = [Match(np.arange(3), np.ones(3), np.array(each)) for each in ([0.9, 0.5, 0.8], [0.7, 0.1, 1.0])]
    found_codes = Coded([model] * 3, np.stack([codes] * 3), matches, codes, np.zeros(60, dtype=bool))
    related = found(codes, [dose, levels(rng.integers(2, size=60))])
    table = dimensions_table(found_codes, related, effects_of(z2=[1, 2, 3, 4, 5]), np.arange(60))
    assert table["dimension"].tolist() == [2, 1, 0]
    assert table["kl"].is_monotonic_decreasing
    assert table["active"].tolist() == [True, True, False]
    assert table["guided_by"].tolist() == ["", "stage", ""]
    assert table["name"].tolist() == ["+e +d +c", "", ""]
    np.testing.assert_allclose(table["stability"], [0.9, 0.3, 0.8])
    np.testing.assert_allclose(table["comes_back"], [1, 0, 0.5])
    first = table.iloc[0]
    own = related.query("factor == 'dose' and dimension == 2").iloc[0]
    assert (first["top_factor"], first["top_correlation"], first["p"]) == ("dose", own["correlation"], own["p"])
    assert len(table) == 3
    alone = Coded([model], codes[None], [], codes, np.zeros(60, dtype=bool))
    unknown = dimensions_table(alone, related, effects_of(), np.arange(60))
    assert unknown[["stability", "comes_back"]].isna().all(axis=None)


# refused


def test_a_treatment_of_replicates_that_lie_on_several_plates_is_refused_by_name() -> None:
    codes, drug = wells_differ(np.random.default_rng(0))
    with pytest.raises(InputError, match=r"Replicate '0' has cells in several blocks.*'stage'"):
        found(codes, [drug], Design(WELL, np.arange(100) % 2, None))
