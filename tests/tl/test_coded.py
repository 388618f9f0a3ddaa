"""Codes by a model and its refits: dimensions matched, and guided factors judged on cells that a fit never saw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from driven import SETTINGS, fitted, profiles, quick
from scipy.stats import binom

import latentcell as lc
from latentcell.cells.factors import read_factors
from latentcell.errors import InputError
from latentcell.tl.coded import Coded, coded
from latentcell.tl.effects import Design
from latentcell.tl.relations import relations

N = 120
FIT: dict[str, Any] = {"epochs": 8, "settings": SETTINGS}
GUIDED = lc.Factors(guided=["stage"])


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with quick():
        yield


def asked(cells: AnnData, model: lc.VAE, *, seeds: int = 2, by: str | None = None, **options: Any) -> Coded:
    replicate = None if by is None else cells.obs[by].astype(str).to_numpy()
    return coded(cells, model, seeds=seeds, replicate=replicate, **{"folder": None, "fit": FIT, "seed": 10} | options)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """The last 30 are kept away from all fits; tests must not change them."""
    made = profiles(N)
    made.obs["part"] = np.where(np.arange(N) < 90, "old", "new")
    return made


@pytest.fixture(scope="module")
def plain(cells: AnnData) -> lc.VAE:
    return fitted(cells, fit={**FIT, "exclude": {"part": ["new"]}})


@pytest.fixture(scope="module")
def guided(cells: AnnData) -> lc.VAE:
    return fitted(cells, fit={**FIT, "exclude": {"part": ["new"]}}, factors=GUIDED)


@pytest.fixture(scope="module")
def by_plain(cells: AnnData, plain: lc.VAE) -> Coded:
    return asked(cells, plain)


@pytest.fixture(scope="module")
def by_guided(cells: AnnData, guided: lc.VAE) -> Coded:
    return asked(cells, guided, seeds=3, by="well")


def used(found: Coded, i: int, cells: AnnData) -> np.ndarray:
    """Codes of a fit, encoded anew, dimensions in the model's order and 0 where the fit does not use them."""
    model = found.models[i]
    active = model.latent_.set_index("dimension")["active"].sort_index().to_numpy()
    codes = np.where(active, model.encode(cells).mu.astype(float), 0)
    return codes[:, found.matches[i - 1].order] * found.matches[i - 1].sign if i else codes


def judges(found: Coded, cells: AnnData) -> list[list[int]]:
    """For each cell, the fits that give its code and have not seen it."""
    seen = [model.seen(cells) for model in found.models]
    alike = [np.isclose(found.in_use(i), found.mu, atol=1e-6).all(axis=1) for i in range(len(found.models))]
    return [[i for i in range(len(seen)) if alike[i][c] and not seen[i][c]] for c in range(cells.n_obs)]


# without guided factors


def test_codes_of_all_cells_by_model_and_refits_have_matched_dimensions(by_plain: Coded, cells: AnnData) -> None:
    assert by_plain.codes.shape == (3, N, 4)
    assert len(by_plain.models) == 3
    np.testing.assert_array_equal(by_plain.codes[0], by_plain.models[0].encode(cells).mu)
    for i in (1, 2):
        np.testing.assert_allclose(by_plain.in_use(i), used(by_plain, i, cells), atol=1e-6)
        centred = by_plain.codes[[0, i]] - by_plain.codes[[0, i]].mean(1, keepdims=True)
        assert ((centred[0] * centred[1]).sum(0) >= 0).all()
        expected = [np.corrcoef(by_plain.codes[0, :, k], by_plain.codes[i, :, k])[0, 1] for k in range(4)]
        np.testing.assert_allclose(by_plain.stability[i - 1], expected, atol=1e-4)
    assert by_plain.stability.shape == (2, 4)


def test_factors_are_held_against_the_model_whose_unused_dimensions_are_zero(by_plain: Coded, cells: AnnData) -> None:
    np.testing.assert_allclose(by_plain.mu, used(by_plain, 0, cells), atol=1e-6)
    np.testing.assert_array_equal(by_plain.mu, by_plain.in_use(0))


def test_dimensions_that_a_fit_does_not_use_are_zero_wherever_they_were_matched() -> None:
    cells = profiles(60)
    found = asked(cells, fitted(cells, fit=FIT, n_latent=6, objective="beta=4"), seeds=2)
    for i, model in enumerate(found.models):
        active = set(model.latent_.loc[model.latent_["active"], "dimension"])
        order = found.matches[i - 1].order if i else np.arange(6)
        for k in range(6):
            assert (found.in_use(i)[:, k] == 0).all() == (order[k] not in active)
    assert any((~model.latent_["active"]).any() for model in found.models)


def test_refits_train_on_the_cells_of_the_model_and_leave_it_as_it_was(cells: AnnData, plain: lc.VAE) -> None:
    before, obs = plain.sha256(), cells.obs.copy()
    found = asked(cells, plain, seeds=1)
    np.testing.assert_array_equal(found.models[1].seen(cells), cells.obs["part"] == "old")
    assert plain.sha256() == before == found.models[0].sha256()
    assert cells.obs.equals(obs)


def test_cells_that_did_not_train_the_model_are_untrained_those_of_early_stopping_too(
    by_plain: Coded, cells: AnnData, plain: lc.VAE
) -> None:
    trained = plain.seen(cells, early_stopping=False)
    assert trained.sum() == plain.report_["n_train"] < 90
    np.testing.assert_array_equal(by_plain.untrained, ~trained)


def test_a_model_that_saw_none_of_the_cells_is_fitted_again_on_all_of_them(plain: lc.VAE) -> None:
    others = profiles(60, seed=5)
    found = asked(others, plain, seeds=1)
    assert found.untrained.all()
    assert found.models[1].seen(others).all()


def test_without_refits_there_are_the_codes_of_the_model(cells: AnnData, plain: lc.VAE) -> None:
    found = asked(cells, plain, seeds=0)
    assert found.codes.shape == (1, N, 4)
    assert found.matches == []
    assert found.stability.shape == (0, 4)


def test_refits_differ_from_each_other_and_are_the_same_with_the_same_seed(by_plain: Coded, cells, plain) -> None:
    again = asked(cells, plain)
    assert [model.sha256() for model in again.models] == [model.sha256() for model in by_plain.models]
    np.testing.assert_array_equal(again.codes, by_plain.codes)
    assert len({model.sha256() for model in by_plain.models}) == 3
    assert asked(cells, plain, seeds=1, seed=77).models[1].sha256() != by_plain.models[1].sha256()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_refit_has_the_seed_of_the_model_which_would_come_back_to_itself(seed: int) -> None:
    cells = profiles(40)
    model = fitted(cells, fit={**FIT, "epochs": 1}, rng=seed)
    found = asked(cells, model, seeds=2, fit={**FIT, "epochs": 1}, seed=0)
    assert all(refit.sha256() != model.sha256() for refit in found.models[1:])


def test_some_cells_can_be_taken(by_plain: Coded) -> None:
    rows = np.array([5, 2, 100])
    few = by_plain.take(rows)
    np.testing.assert_array_equal(few.mu, by_plain.mu[rows])
    np.testing.assert_array_equal(few.codes, by_plain.codes[:, rows])
    np.testing.assert_array_equal(few.untrained, by_plain.untrained[rows])
    np.testing.assert_array_equal(few.in_use(1), by_plain.in_use(1)[rows])


# guided: judged by fits that have not seen the cell


def test_every_cell_of_a_guided_model_is_coded_by_a_fit_that_has_not_seen_it(by_guided: Coded, cells: AnnData) -> None:
    assert all(judges(by_guided, cells))
    assert by_guided.untrained.all()


def test_refits_leave_out_a_part_each_and_every_cell_of_the_model_once(by_guided: Coded, cells: AnnData) -> None:
    old = (cells.obs["part"] == "old").to_numpy()
    unseen = np.array([~model.seen(cells) for model in by_guided.models[1:]])
    assert (unseen[:, old].sum(0) == 1).all()
    assert unseen[:, ~old].all()
    assert unseen[:, old].sum(1).tolist() == [30, 30, 30]


def test_replicates_are_left_out_whole(by_guided: Coded, cells: AnnData) -> None:
    for model in by_guided.models[1:]:
        assert len(set(zip(cells.obs["well"], model.seen(cells), strict=True))) == cells.obs["well"].nunique()


def test_cells_that_no_fit_saw_are_coded_by_the_model(by_guided: Coded, cells: AnnData) -> None:
    new = (cells.obs["part"] == "new").to_numpy()
    np.testing.assert_array_equal(by_guided.mu[new], by_guided.in_use(0)[new])


def test_guided_dimensions_stay_in_their_places_with_their_signs(by_guided: Coded) -> None:
    for match in by_guided.matches:
        assert match.order[:2].tolist() == [0, 1]
        assert match.sign[:2].tolist() == [1, 1]
        assert sorted(match.order) == [0, 1, 2, 3]


def test_cells_without_replicates_are_parted_one_by_one(cells: AnnData, guided: lc.VAE) -> None:
    found = asked(cells, guided, seeds=4)
    assert all(judges(found, cells))
    sizes = sorted((~model.seen(cells))[:90].sum() for model in found.models[1:])
    assert sizes == [22, 22, 23, 23]
    assert any(len(set(model.seen(cells)[:10])) == 2 for model in found.models[1:])


def test_a_guided_model_that_saw_none_of_the_cells_is_judged_by_refits_on_them(guided: lc.VAE) -> None:
    others = profiles(60, seed=5)
    found = asked(others, guided, seeds=2)
    assert all(judges(found, others))
    assert [model.seen(others).sum() for model in found.models] == [0, 30, 30]


def test_dimensions_that_the_model_does_not_use_hold_nothing_whatever_refits_do_with_them() -> None:
    cells = profiles(150)
    fit = {**FIT, "epochs": 20}
    model = fitted(cells, factors=GUIDED, fit=fit, n_latent=5)
    active = model.latent_.set_index("dimension")["active"].sort_index().to_numpy()
    assert not active.all()
    assert (asked(cells, model, fit=fit).mu[:, ~active] == 0).all()


def smallest_p(codes: np.ndarray, cells: AnnData, seed: int) -> float:
    return relations(codes, read_factors(cells, ["chance"]), Design(None, None, None),
                     rng=np.random.default_rng(seed))["p"].min()  # fmt: skip


def test_a_guided_factor_that_is_chance_is_in_the_code_of_the_model_and_not_in_that_of_unseen_cells() -> None:
    cells, own, cross = profiles(80), [], []
    for seed in range(12):
        cells.obs["chance"] = np.random.default_rng(seed).permutation(cells.obs["dose"].to_numpy())
        model = fitted(cells, n_latent=3, fit={**FIT, "epochs": 20}, factors=lc.Factors(guided=["chance"]), rng=seed)
        found = asked(cells, model, seeds=2, fit={**FIT, "epochs": 20}, seed=100 + seed)
        own.append(smallest_p(found.codes[0], cells, seed))
        cross.append(smallest_p(found.mu, cells, seed))
    assert np.mean(np.array(own) <= 0.05) > 0.5
    assert np.sum(np.array(cross) <= 0.05) <= binom.ppf(0.999, 12, 0.05)


# kept in a folder


def test_refits_are_kept_and_read_again(cells: AnnData, guided: lc.VAE, tmp_path: Path, monkeypatch) -> None:
    first = asked(cells, guided, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed_1", "seed_2"]

    def refuse(self: lc.VAE, *_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(lc.VAE, "fit", refuse)
    second = asked(cells, guided, folder=tmp_path)
    np.testing.assert_array_equal(second.mu, first.mu)
    np.testing.assert_array_equal(second.codes, first.codes)
    assert [model.sha256() for model in second.models] == [model.sha256() for model in first.models]


@pytest.mark.parametrize(
    "changed", [{"seeds": 3}, {"seed": 11}, {"by": "well"}], ids=["more refits", "another seed", "replicates"]
)
def test_stored_refits_that_left_out_other_cells_are_refused_or_made_anew(
    changed: dict[str, Any], cells: AnnData, guided: lc.VAE, tmp_path: Path
) -> None:
    """Parts depend on how many there are, on the seed and on replicates: a stored refit may have seen the cell."""
    asked(cells, guided, folder=tmp_path)
    with suppress(InputError):
        assert all(judges(asked(cells, guided, folder=tmp_path, **changed), cells))


@pytest.mark.parametrize("n_latent", [3, 4])
def test_stored_refits_of_another_model_are_refused_or_made_anew(
    n_latent: int, cells: AnnData, plain: lc.VAE, tmp_path: Path
) -> None:
    asked(cells, plain, seeds=1, folder=tmp_path)
    other = fitted(cells, n_latent=n_latent, objective="beta=4", fit={**FIT, "exclude": {"part": ["new"]}})
    with suppress(InputError):
        refit = asked(cells, other, seeds=1, folder=tmp_path).models[1]
        assert (refit.n_latent, refit.objective) == (n_latent, other.objective)


def test_more_refits_of_a_model_without_guided_factors_add_to_those_kept(cells, plain, tmp_path: Path) -> None:
    first = asked(cells, plain, seeds=1, folder=tmp_path)
    second = asked(cells, plain, seeds=2, folder=tmp_path)
    assert second.models[1].sha256() == first.models[1].sha256()
    assert len(second.models) == 3


# refused


@pytest.mark.parametrize("seeds", [0, 1])
def test_a_guided_model_needs_two_refits_to_be_judged_by(seeds: int, cells: AnnData, guided: lc.VAE) -> None:
    with pytest.raises(InputError, match=rf"seeds is {seeds}: a model with guided factors .* at least two refits"):
        asked(cells, guided, seeds=seeds)


def test_fewer_replicates_than_refits_are_refused(cells: AnnData, guided: lc.VAE) -> None:
    with pytest.raises(InputError, match="There are 2 replicates for 3 refits"):
        asked(cells, guided, seeds=3, by="plate")


def test_a_negative_number_of_refits_is_refused_without_talk_of_guided_factors(cells: AnnData, plain: lc.VAE) -> None:
    with pytest.raises(InputError, match="seeds is -1") as refusal:
        asked(cells, plain, seeds=-1)
    assert "guided" not in str(refusal.value)
