"""Where factors place cells, what the decoder is told of nuisance, and what both add to the loss."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import latentcell as lc
from latentcell.errors import InputError
from latentcell.model.aggregate import dependence
from latentcell.model.guidance import SPREAD, Factors, Guidance, Guide, Nuisance, simplex
from latentcell.model.guided import Guided
from latentcell.model.objectives import ELBO, MMD, Beta, Capacity, FactorVAE, Objective
from latentcell.model.posterior import Known, Posterior
from latentcell.stats.factor import Factor


def numbers(values: Any) -> Factor:
    return Factor("dose", "continuous", np.asarray(values, dtype=float))


def levels(names: list[str | None], kind: Any = "categorical") -> Factor:
    present = sorted({name for name in names if name is not None})
    codes = [math.nan if name is None else present.index(name) for name in names]
    return Factor("type", kind, np.array(codes, dtype=float), tuple(present))


def placed(factor: Factor, start: int = 0) -> np.ndarray:
    return Guide.of(factor, start).place(factor)


# positions of numbers


@pytest.mark.parametrize("shape", ["normal", "skewed", "uniform"])
@pytest.mark.parametrize("n", [20, 200, 5000])
def test_numbers_lie_like_a_standard_normal_shrunk_by_the_correlation(shape: str, n: int) -> None:
    rng = np.random.default_rng(0)
    values = {"normal": rng.normal(size=n), "skewed": np.exp(3 * rng.normal(size=n)), "uniform": rng.random(n)}[shape]
    at = placed(numbers(values))
    assert at.shape == (n, 1)
    assert at.mean() == pytest.approx(0, abs=0.01)
    assert at.var() == pytest.approx(0.95**2, abs=0.02)
    assert at.var() + SPREAD**2 == pytest.approx(1, abs=0.02)
    quantiles = np.arange(0.1, 1, 0.1)
    np.testing.assert_allclose(np.quantile(at, quantiles), 0.95 * norm.ppf(quantiles), atol=0.15)
    assert (np.diff(at[np.argsort(values), 0]) > 0).all()


def test_ties_lie_at_their_middle() -> None:
    at = placed(numbers([0] * 8 + [1] * 4 + [5] * 4))[:, 0]
    scores = norm.ppf([0.25, 0.625, 0.875])
    shares = np.array([0.5, 0.25, 0.25])
    scores -= shares @ scores
    np.testing.assert_allclose(at[[0, 8, 12]], 0.95 * scores / np.sqrt(shares @ scores**2))
    assert len(np.unique(at)) == 3


def test_numbers_nearly_all_tied_stay_near_one_place_and_finite() -> None:
    values = np.zeros(1000)
    values[:50] = np.arange(1.0, 51)
    at = placed(numbers(values))[:, 0]
    assert np.isfinite(at).all()
    assert at.var() == pytest.approx(0.95**2, abs=0.01)
    assert at[50:].max() < at[0] < at[49]


def test_numbers_outside_those_of_training_lie_at_its_ends_and_missing_ones_nowhere() -> None:
    guide = Guide.of(numbers([1, 2, 3, 4]), 0)
    at = guide.place(numbers([-100, 1, 2.5, 4, 100, np.nan]))[:, 0]
    assert at[0] == at[1] < at[2] < at[3] == at[4]
    assert at[2] == pytest.approx(0)
    assert np.isnan(at[5])


def test_missing_numbers_of_training_cells_do_not_count() -> None:
    assert Guide.of(numbers([3, np.nan, 1, 2, np.nan]), 0) == Guide.of(numbers([3, 1, 2]), 0)


@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=600).filter(lambda x: len({*x}) > 1)
)
def test_numbers_are_read_from_their_position(values: list[float]) -> None:
    factor = numbers(values)
    guide = Guide.of(factor, 2)
    codes = np.full((len(values), 4), np.nan)
    codes[:, [2]] = guide.place(factor)
    np.testing.assert_allclose(guide.read(codes), values, rtol=1e-6, atol=1e-6 * np.ptp(values))


def test_many_different_numbers_are_remembered_by_few_knots() -> None:
    values = np.random.default_rng(0).normal(size=20_000) ** 3
    guide = Guide.of(numbers(values), 0)
    assert len(guide.numbers) == len(guide.scores) <= 257
    assert guide.numbers[0] == values.min()
    assert guide.numbers[-1] == values.max()
    np.testing.assert_allclose(guide.read(guide.place(numbers(values))), values, atol=1e-8)


# positions on a circle


@pytest.mark.parametrize("period", [1.0, 24.0])
def test_phases_lie_on_a_circle_and_are_read_from_it_in_their_units(period: float) -> None:
    turn = np.array([0.0, 0.1, 0.25, 0.6, 0.999])
    factor = Factor("hour", "cyclic", turn, period=period)
    guide = Guide.of(factor, 1)
    assert guide.width == 2
    assert guide.dimensions == [1, 2]
    at = guide.place(factor)
    np.testing.assert_allclose((at**2).sum(1), 2 * 0.95**2)
    codes = np.column_stack([np.full(5, 9.0), 0.1 * at])
    np.testing.assert_allclose(guide.read(codes), period * turn, atol=1e-9)


def test_evenly_spread_phases_have_the_variance_of_the_prior_and_missing_ones_no_place() -> None:
    factor = Factor("phase", "cyclic", np.append(np.arange(100) / 100, np.nan))
    at = placed(factor)
    np.testing.assert_allclose(at[:100].var(0) + SPREAD**2, 1)
    assert np.isnan(at[100]).all()


def test_a_phase_read_is_never_the_end_of_a_turn() -> None:
    guide = Guide.of(Factor("hour", "cyclic", np.array([0.0, 0.5]), period=24.0), 0)
    hours = guide.read(np.array([[1.0, -1e-12], [1.0, 1e-12], [1.0, -1e-3]]))
    assert ((hours >= 0) & (hours < 24)).all()


# positions of levels


@pytest.mark.parametrize("n", [2, 3, 4, 7, 30])
def test_corners_are_equally_far_apart_around_zero_with_unit_mean_square(n: int) -> None:
    corners = simplex(n)
    assert corners.shape == (n, n - 1)
    apart = np.sqrt(((corners[:, None] - corners) ** 2).sum(2))[np.triu_indices(n, 1)]
    np.testing.assert_allclose(apart, apart[0])
    np.testing.assert_allclose(corners.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose((corners**2).mean(0), 1)
    np.testing.assert_array_equal(simplex(n), corners)


def test_two_levels_lie_one_at_either_side() -> None:
    assert np.sort(simplex(2).ravel()).tolist() == pytest.approx([-1, 1])


def test_levels_without_order_lie_at_corners_and_are_read_from_the_nearest() -> None:
    factor = levels(["b", "a", None, "c", "b"])
    guide = Guide.of(factor, 1)
    assert guide.width == 2
    at = guide.place(factor)
    assert np.isnan(at[2]).all()
    np.testing.assert_allclose(at[[1, 0, 3]], 0.95 * simplex(3))
    codes = np.column_stack([np.full(5, 100.0), at + 0.3 * np.random.default_rng(0).uniform(-1, 1, at.shape)])
    assert guide.read(codes)[[0, 1, 3, 4]].tolist() == ["b", "a", "c", "b"]


def test_ordered_levels_lie_along_one_dimension_at_the_scores_of_their_shares() -> None:
    factor = Factor("stage", "ordinal", np.repeat([0.0, 1, 2], [10, 80, 10]), ("early", "middle", "late"))
    guide = Guide.of(factor, 0)
    at = guide.place(factor)
    assert guide.width == 1
    assert at[[0, 10, 99], 0].tolist() == pytest.approx([-0.95 * math.sqrt(5), 0, 0.95 * math.sqrt(5)])
    assert at.var() == pytest.approx(0.95**2)
    assert guide.read(at).tolist() == ["early"] * 10 + ["middle"] * 80 + ["late"] * 10


@pytest.mark.parametrize("kind", ["ordinal", "categorical"])
def test_levels_are_found_by_name_and_new_ones_lie_nowhere(kind: str) -> None:
    guide = Guide.of(levels(["a", "b", "c", "a"], kind), 0)
    known = guide.place(levels(["a", "b", "c"], kind))
    found = guide.place(levels(["c", "new", None, "a", "b"], kind))
    np.testing.assert_array_equal(found[[0, 3, 4]], known[[2, 0, 1]])
    assert np.isnan(found[[1, 2]]).all()
    assert np.isnan(guide.place(levels([None, None], kind))).all()


# nuisance columns


def test_levels_of_a_nuisance_are_centred_indicators() -> None:
    factor = levels(["p1", "p1", "p2", "p3"])
    nuisance = Nuisance.of(factor)
    columns = nuisance.columns(factor)
    np.testing.assert_allclose(columns, np.eye(3)[[0, 0, 1, 2]] - [0.5, 0.25, 0.25])
    assert nuisance.width == 3
    assert nuisance.scale == 1


def test_two_levels_of_a_nuisance_have_a_column_each() -> None:
    factor = levels(["p1", "p2"])
    np.testing.assert_allclose(Nuisance.of(factor).columns(factor), [[0.5, -0.5], [-0.5, 0.5]])


def test_a_new_or_missing_level_of_a_nuisance_is_the_average() -> None:
    nuisance = Nuisance.of(levels(["p1", "p1", "p2", "p3"]))
    columns = nuisance.columns(levels(["p3", "p9", None, "p1"]))
    np.testing.assert_allclose(columns, [[-0.5, -0.25, 0.75], [0, 0, 0], [0, 0, 0], [0.5, -0.25, -0.25]])
    np.testing.assert_array_equal(nuisance.columns(levels([None, None])), np.zeros((2, 3)))


def test_missing_levels_of_training_cells_do_not_count_in_the_average() -> None:
    assert Nuisance.of(levels(["p1", None, "p2", "p2", None])).centre == pytest.approx((1 / 3, 2 / 3))


def test_numbers_of_a_nuisance_are_standardised_by_the_training_cells() -> None:
    trained = numbers([10, 20, np.nan, 30])
    nuisance = Nuisance.of(trained)
    columns = nuisance.columns(numbers([20, 30, np.nan, 1000]))
    sd = np.std([10, 20, 30])
    np.testing.assert_allclose(columns, [[0], [10 / sd], [0], [980 / sd]])


def test_a_phase_as_a_nuisance_is_cosine_and_sine() -> None:
    factor = Factor("hour", "cyclic", np.arange(8) / 8, period=24.0)
    nuisance = Nuisance.of(factor)
    columns = nuisance.columns(factor)
    assert nuisance.width == 2
    np.testing.assert_allclose(columns.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(columns.std(0), 1)


def test_ordered_levels_as_a_nuisance_are_told_by_name() -> None:
    nuisance = Nuisance.of(Factor("stage", "ordinal", np.array([0.0, 1, 2, 1]), ("early", "middle", "late")))
    told = nuisance.columns(Factor("stage", "ordinal", np.array([0.0, 1, np.nan]), ("early", "late")))
    all_of_them = nuisance.columns(Factor("stage", "ordinal", np.array([0.0, 1, 2]), ("early", "middle", "late")))
    np.testing.assert_allclose(told[:2], all_of_them[[0, 2]])
    np.testing.assert_array_equal(told[2], np.zeros(nuisance.width))
    assert len(np.unique(all_of_them, axis=0)) == 3


# all factors of a model


def some_cells(n: int = 40) -> AnnData:
    rng = np.random.default_rng(0)
    stage = pd.Categorical(rng.choice(["early", "late"], n), ["early", "late"], ordered=True)
    obs = {
        "dose": rng.normal(size=n),
        "hour": rng.uniform(0, 24, n),
        "type": rng.choice(list("abc"), n),
        "stage": stage,
    }
    obs |= {"plate": rng.integers(1, 4, n), "size": rng.lognormal(size=n)}
    return AnnData(obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]))


ALL = Factors(guided=["hour:cyclic=24", "type", "stage", "dose"], nuisance=["plate", "size"])


def registered(factors: Factors = ALL, n_latent: int = 8) -> Guidance:
    return Guidance.register(some_cells(), np.arange(30), factors, n_latent)


def test_guided_factors_take_the_first_dimensions_in_their_order() -> None:
    guidance = registered()
    assert [guide.name for guide in guidance.guides] == ["hour", "type", "stage", "dose"]
    assert [guide.dimensions for guide in guidance.guides] == [[0, 1], [2, 3], [4], [5]]
    assert guidance.n_columns == 3 + 1


def test_positions_are_missing_in_free_dimensions_only() -> None:
    cells = some_cells()
    at = registered().positions(cells, 8)
    assert (at.shape, at.dtype) == ((40, 8), np.float32)
    assert np.isfinite(at[:, :6]).all()
    assert np.isnan(at[:, 6:]).all()
    cells.obs["type"] = None
    assert (
        np.isnan(registered().positions(cells, 8)).all(0).tolist()
        == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2
    )


def test_positions_and_columns_of_cells_do_not_depend_on_the_other_cells() -> None:
    cells, guidance = some_cells(), registered()
    rows = np.array([3, 31, 7])
    np.testing.assert_array_equal(guidance.positions(cells[rows], 8), guidance.positions(cells, 8)[rows])
    np.testing.assert_array_equal(guidance.columns(cells[rows]), guidance.columns(cells)[rows])


def test_a_guidance_is_the_same_after_json() -> None:
    guidance = registered()
    stored = json.loads(json.dumps(asdict(guidance), allow_nan=False))
    assert Guidance.from_dict(stored) == guidance
    assert Guidance.from_dict(asdict(guidance)) == guidance
    assert Guidance.from_dict(json.loads(json.dumps(asdict(Guidance())))) == Guidance()


def test_nothing_named_gives_no_positions_and_no_columns() -> None:
    guidance = registered(Factors())
    assert guidance == Guidance()
    assert guidance.positions(some_cells(), 8) is None
    assert guidance.columns(some_cells()).shape == (40, 0)


def test_cells_left_out_of_training_leave_no_trace() -> None:
    cells = some_cells()
    expected = Guidance.register(cells, np.arange(30), ALL, 8)
    cells.obs.iloc[30:, cells.obs.columns.get_loc("dose")] = 1e6
    cells.obs["type"] = cells.obs["type"].where(np.arange(40) < 30, "other")
    cells.obs.iloc[30:, cells.obs.columns.get_loc("plate")] = 9
    assert Guidance.register(cells, np.arange(30), ALL, 8) == expected


def test_more_guided_dimensions_than_there_are_is_refused_naming_each_width() -> None:
    with pytest.raises(InputError, match=r"take 6 latent dimensions \(hour 2, type 2, stage 1, dose 1\).*model has 5"):
        registered(n_latent=5)
    assert len(registered(n_latent=6).guides) == 4


def test_a_guided_factor_that_is_a_nuisance_is_refused() -> None:
    with pytest.raises(InputError, match="'plate'"):
        registered(Factors(guided=["plate:categorical"], nuisance=["plate"]))


def test_a_single_name_is_a_list_of_one() -> None:
    assert Factors(guided="dose", nuisance="plate") == Factors(guided=["dose"], nuisance=("plate",))


@pytest.mark.parametrize(
    "options", [{"weight": -1}, {"independence": -0.1}, {"weight": math.nan}, {"weight": math.inf}]
)
def test_weights_that_are_no_weights_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="finite and not negative"):
        Factors(**options)


@pytest.mark.parametrize("factors", [Factors(guided=["nothing"]), Factors(nuisance=["nothing"])])
def test_factors_that_are_no_columns_are_refused_before_anything_is_trained(factors: Factors) -> None:
    cells = lc.cells.simulate.counts(20, 10, rng=0)
    with pytest.raises(InputError, match="no column 'nothing'"):
        lc.VAE(3, width=4, factors=factors).fit(cells, epochs=1, rng=0)


# the conditional prior


def posterior(n: int = 8, d: int = 4, seed: int = 0, **known: Any) -> Posterior:
    g = torch.Generator().manual_seed(seed)
    mu, log_var = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    return Posterior(mu, log_var - 1, Known(**known) if known else None)


def positions(n: int = 8, d: int = 4, guided: int = 2) -> torch.Tensor:
    at = torch.full((n, d), math.nan, dtype=torch.float64)
    at[1:, :guided] = torch.randn(n - 1, guided, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return at


def test_the_kl_of_a_known_position_is_that_from_a_normal_around_it() -> None:
    at = positions()
    found = posterior(position=at, spread=SPREAD, nuisance=None).kl()
    plain = posterior()
    q = torch.distributions.Normal(plain.mu, (0.5 * plain.log_var).exp())
    around = torch.distributions.Normal(at.nan_to_num(0.0), SPREAD)
    expected = torch.distributions.kl_divergence(q, around)
    torch.testing.assert_close(found[1:, :2], expected[1:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[:, 2:], plain.kl()[:, 2:])
    torch.testing.assert_close(found[0], plain.kl()[0])


def test_the_kl_is_zero_for_codes_at_their_position_as_wide_as_its_spread() -> None:
    at = positions()
    log_var = torch.where(at.isnan(), 0.0, 2 * math.log(SPREAD))
    kl = Posterior(at.nan_to_num(0.0), log_var, Known(at, SPREAD, None)).kl()
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-6, rtol=0)


def test_unknown_positions_leave_the_kl_to_the_standard_prior() -> None:
    nowhere = torch.full((8, 4), math.nan, dtype=torch.float64)
    torch.testing.assert_close(posterior(position=nowhere, spread=SPREAD, nuisance=None).kl(), posterior().kl())


def test_gradients_of_the_kl_match_finite_differences_and_are_finite_where_positions_are_missing() -> None:
    known = Known(positions(), SPREAD, None)
    plain = posterior()
    inputs = (plain.mu.requires_grad_(), plain.log_var.detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda mu, log_var: Posterior(mu, log_var, known).kl(), inputs)
    Posterior(*inputs, known).kl().sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in inputs)


# what factors add to an objective


def guided_terms(objective: Objective, known: Known | None, n: int = 8) -> tuple[Any, Any, Posterior]:
    """Terms with and without what factors add."""
    given_posterior = posterior(n)._replace(known=known)
    log_px = -torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = given_posterior.draw(torch.Generator().manual_seed(2))
    plain = objective.objective(log_px, given_posterior, z, 100, 5_000)
    return objective(log_px, given_posterior, z, 100, 5_000), plain, given_posterior


def test_the_label_term_is_the_expected_log_density_of_the_position_under_the_code() -> None:
    at = positions()
    found, plain, q = guided_terms(Guided(ELBO(), 7.0, 0.0), Known(at, SPREAD, None))
    square = (q.mu - at).square() + q.log_var.exp()
    expected = 7 * float(torch.nan_to_num(square, nan=0.0).sum()) / (8 * 2 * SPREAD**2)
    assert float(found.loss - plain.loss) == pytest.approx(expected, rel=1e-9)
    assert found.extras["misplaced"] == pytest.approx(expected / 7, rel=1e-9)


def test_the_nuisance_term_is_the_dependence_with_what_factors_leave_unsaid() -> None:
    at, told = positions(), torch.randn(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, plain, q = guided_terms(Guided(ELBO(), 0.0, 11.0), Known(at, SPREAD, told))
    expected = float(dependence(q.mu - at.nan_to_num(0.0), told))
    assert float(found.loss - plain.loss) == pytest.approx(11 * expected, rel=1e-6)
    assert found.extras["nuisance"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("known", [None, Known(torch.full((8, 4), math.nan, dtype=torch.float64), SPREAD, None)])
def test_where_nothing_is_known_nothing_is_added(known: Known | None) -> None:
    found, plain, _ = guided_terms(Guided(ELBO(), 7.0, 11.0), known)
    assert torch.equal(found.loss, plain.loss)


def test_weights_of_zero_add_nothing() -> None:
    told = torch.randn(8, 2, dtype=torch.float64)
    found, plain, _ = guided_terms(Guided(Beta(2.0), 0.0, 0.0), Known(positions(), SPREAD, told))
    assert torch.equal(found.loss, plain.loss)
    assert found.extras == plain.extras


def test_a_batch_too_small_to_show_dependence_adds_none() -> None:
    told = torch.randn(3, 2, dtype=torch.float64)
    nowhere = torch.full((3, 4), math.nan, dtype=torch.float64)
    found, plain, _ = guided_terms(Guided(ELBO(), 1.0, 1.0), Known(nowhere, SPREAD, told), n=3)
    assert torch.equal(found.loss, plain.loss)


@pytest.mark.parametrize("objective", [ELBO(), Beta(4.0), Capacity(5.0)])
def test_the_bound_reported_is_that_of_the_conditional_prior(objective: Objective) -> None:
    found, plain, q = guided_terms(Guided(objective, 7.0, 11.0), Known(positions(), SPREAD, torch.randn(8, 2).double()))
    torch.testing.assert_close(found.elbo, plain.elbo)
    torch.testing.assert_close(found.kl_per_dim, q.kl().mean(0))


def test_schedule_critic_and_what_is_fitted_are_those_of_the_other_objective() -> None:
    guided = Guided(FactorVAE(warmup=1000), 1.0, 1.0)
    assert guided.schedule_steps == 1000
    assert guided.within(90).schedule_steps == 30
    assert guided.critic is None
    started = guided.started(4, 0, torch.device("cpu"))
    assert started.critic is started.objective.critic is not None
    assert guided.fits_posterior
    assert not Guided(MMD(), 1.0, 1.0).fits_posterior
    assert not Guided(ELBO(), 1.0, 1.0).optimises_elbo
