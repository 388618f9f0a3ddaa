"""Objectives: closed forms, schedules, what each fits, and the bound they always report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from tiny import SETTINGS, count_cells, fit, profile_cells

import latentcell as lc
from latentcell.errors import InputError
from latentcell.model import objectives
from latentcell.model.aggregate import decomposition, distance_from_prior, off_diagonal_moments
from latentcell.model.files import read_tensors
from latentcell.model.objectives import (
    DIP,
    ELBO,
    MMD,
    Beta,
    BetaTC,
    Capacity,
    FactorVAE,
    Objective,
    Posterior,
)
from latentcell.model.training import Hooks

N, D = 6, 3
CPU = torch.device("cpu")
TEXTS = ["elbo", "beta=4", "capacity=5", "tc=6", "dip=10", "dip=10,kind=2", "mmd=100", "factorvae=10"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on one thread: several wait for each other where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch_terms(seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, Posterior, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    posterior = Posterior(scale * torch.randn(N, D, generator=g), torch.randn(N, D, generator=g) - 1)
    return -20 * torch.rand(N, generator=g), posterior, posterior.draw(g)


def test_kl_matches_torch_distributions() -> None:
    _, posterior, _ = batch_terms()
    q = torch.distributions.Normal(posterior.mu, (0.5 * posterior.log_var).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected)


def test_kl_of_the_prior_is_zero() -> None:
    assert torch.equal(Posterior(torch.zeros(2, 3), torch.zeros(2, 3)).kl(), torch.zeros(2, 3))


def test_posterior_draws_have_its_mean_and_variance() -> None:
    posterior = Posterior(torch.tensor([[1.5, -2.0]]).expand(20000, -1), torch.tensor([[0.0, -3.0]]).expand(20000, -1))
    z = posterior.draw(torch.Generator().manual_seed(0))
    np.testing.assert_allclose(z.mean(0), [1.5, -2.0], atol=0.03)
    np.testing.assert_allclose(z.var(0), [1.0, np.exp(-3)], rtol=0.05)


def test_elbo_is_beta_one() -> None:
    log_px, posterior, z = batch_terms()
    for step in (0, 50, 10_000):
        elbo, beta = (o(log_px, posterior, z, 100, step) for o in (ELBO(), Beta(1.0)))
        assert torch.equal(elbo.loss, beta.loss)
        assert elbo.extras == beta.extras


def test_elbo_loss_after_warmup_is_the_negative_bound() -> None:
    log_px, posterior, z = batch_terms()
    terms = ELBO(warmup=10)(log_px, posterior, z, 100, 10)
    torch.testing.assert_close(terms.loss, -terms.elbo.mean())


EVERY = [ELBO(), Beta(8.0, free_bits=2.0), Beta(0.0), Capacity(25.0), ELBO(warmup=1000, free_bits=5.0)]
EVERY += [BetaTC(), BetaTC(tc=3.0, index_code=0.5, dimension_wise=2.0, free_bits=1.0), DIP(), DIP(kind=2, diagonal=5.0)]
EVERY += [MMD(), MMD(beta=1.0, mmd=10.0), FactorVAE()]


@pytest.mark.parametrize("objective", EVERY, ids=str)
@pytest.mark.parametrize("step", [0, 10, 100_000])
def test_every_objective_reports_the_true_bound(objective: Objective, step: int) -> None:
    log_px, posterior, z = batch_terms()
    terms = objective.started(D, 0, CPU)(log_px, posterior, z, 100, step)
    torch.testing.assert_close(terms.elbo, log_px - posterior.kl().sum(1))
    torch.testing.assert_close(terms.kl_per_dim, posterior.kl().mean(0))
    torch.testing.assert_close(terms.kl_per_dim.sum(), (log_px - terms.elbo).mean())
    assert terms.loss.shape == ()
    assert torch.isfinite(terms.loss)
    assert all(isinstance(value, float) and np.isfinite(value) for value in terms.extras.values())


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_every_objective_moves_means_and_variances_by_finite_gradients(objective: Objective) -> None:
    log_px, posterior, _ = batch_terms()
    mu, log_var = (values.clone().requires_grad_() for values in posterior[:2])
    moving = Posterior(mu, log_var)
    objective.started(D, 0, CPU)(log_px, moving, moving.draw(torch.Generator().manual_seed(1)), 100, 5).loss.backward()
    assert torch.isfinite(mu.grad).all()
    assert torch.isfinite(log_var.grad).all()


@pytest.mark.parametrize("step", [0, 3, 5_000])
@pytest.mark.parametrize(
    "neutral", [BetaTC(tc=1.0), DIP(dip=0.0), DIP(dip=0.0, kind=2), MMD(beta=1.0, mmd=0.0), FactorVAE(tc=0.0)], ids=str
)
def test_without_their_penalty_they_are_the_bound_exactly(neutral: Objective, step: int) -> None:
    log_px, posterior, z = batch_terms()
    expected = ELBO()(log_px, posterior, z, 100, step)
    assert torch.equal(neutral.started(D, 0, CPU)(log_px, posterior, z, 100, step).loss, expected.loss)


def added(objective: Objective, step: int = 10**6) -> tuple[float, dict[str, float]]:
    """What an objective of beta = 1 adds to the loss of the bound, and what it logs."""
    log_px, posterior, z = batch_terms()
    terms = objective(log_px, posterior, z, 100, step)
    weighed = Beta(objective.beta, warmup=objective.warmup, free_bits=objective.free_bits)
    return float((terms.loss - weighed(log_px, posterior, z, 100, step).loss).detach()), terms.extras


@pytest.mark.parametrize("weights", [(1, 6, 1), (0, 1, 1), (1, 1, 2.5), (2, 3, 0.5)])
def test_the_parts_of_the_kl_are_weighed_as_asked(weights: tuple[float, float, float]) -> None:
    index_code, tc, dimension_wise = weights
    _, posterior, z = batch_terms()
    parts = decomposition(z, posterior.mu, posterior.log_var, 100)
    found, extras = added(BetaTC(tc=tc, index_code=index_code, dimension_wise=dimension_wise))
    excess = [(weight - 1) * float(part) for weight, part in zip(weights, parts, strict=True)]
    assert found == pytest.approx(sum(excess), abs=1e-4)
    assert {name: extras[name] for name in parts._fields} == pytest.approx(
        {name: float(part) for name, part in parts._asdict().items()}
    )


@pytest.mark.parametrize(("kind", "diagonal"), [(1, 10.0), (2, 1.0)])
def test_moments_are_those_of_means_or_draws_with_the_diagonal_of_the_paper(kind: int, diagonal: float) -> None:
    _, posterior, _ = batch_terms()
    expected = off_diagonal_moments(posterior.mu, posterior.log_var if kind == 2 else None, diagonal)
    assert added(DIP(dip=3.0, kind=kind))[0] == pytest.approx(3 * float(expected), rel=1e-4)
    other = off_diagonal_moments(posterior.mu, posterior.log_var if kind == 2 else None, 0.0)
    assert added(DIP(dip=3.0, kind=kind, diagonal=0.0))[0] == pytest.approx(3 * float(other), rel=1e-4)


def test_the_discrepancy_is_that_of_draws() -> None:
    _, _, z = batch_terms()
    found, extras = added(MMD(beta=1.0, mmd=50.0))
    assert found == pytest.approx(50 * float(distance_from_prior(z)), rel=1e-4)
    assert extras["mmd"] == pytest.approx(float(distance_from_prior(z)))


def test_the_critics_estimate_is_taken_after_its_step_on_the_same_codes() -> None:
    _, _, z = batch_terms()
    objective = FactorVAE(tc=7.0).started(D, 3, CPU)
    twin = FactorVAE().started(D, 3, CPU).critic
    twin.learn(z, 40)
    found, extras = added(objective, step=40)
    assert extras["total_correlation"] == pytest.approx(float(twin.total_correlation(z).detach()), rel=1e-5)
    warmed = 41 / objective.warmup
    assert found == pytest.approx(7 * warmed * extras["total_correlation"], abs=1e-4)


def test_factorvae_is_not_called_before_it_has_a_critic() -> None:
    log_px, posterior, z = batch_terms()
    assert FactorVAE().critic is None
    with pytest.raises(RuntimeError, match="started"):
        FactorVAE()(log_px, posterior, z, 100, 0)
    assert FactorVAE().started(D, 0, CPU) == FactorVAE()


@pytest.mark.parametrize("objective", [BetaTC(warmup=8), DIP(warmup=8), MMD(beta=1.0, warmup=8)], ids=str)
def test_the_warm_up_scales_the_penalty_with_the_kl(objective: Objective) -> None:
    assert added(objective, 3)[0] == pytest.approx(0.5 * added(objective, 7)[0], rel=1e-3)
    assert added(objective, 7)[0] == added(objective, 100)[0] != 0


@pytest.mark.parametrize("objective", [BetaTC(), DIP(), DIP(kind=2), MMD()], ids=str)
def test_codes_that_follow_a_penalty_lose_their_correlation(objective: Beta) -> None:
    g = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, 2, generator=g) @ torch.tensor([[0.9, 0.8], [0.0, 0.4]])
    turn = torch.eye(2).requires_grad_()
    log_var = torch.full((200, 2), -2.0)
    optimiser = torch.optim.Adam([turn], lr=0.02)
    before = float(torch.corrcoef(mixed.T)[0, 1])
    for step in range(200):
        posterior = Posterior(mixed @ turn, log_var)
        optimiser.zero_grad()
        objective.penalty(posterior, posterior.draw(g), 200, step)[0].backward()
        optimiser.step()
    after = float(torch.corrcoef((mixed @ turn.detach()).T)[0, 1])
    assert before > 0.85
    assert abs(after) < 0.3


def test_only_the_bound_itself_judges_weights_of_any_epoch() -> None:
    assert [each for each in EVERY if each.optimises_elbo] == [ELBO()]
    assert Beta(1.0).optimises_elbo
    assert not BetaTC(tc=1.0).optimises_elbo


def test_widths_are_fitted_where_the_kl_of_each_cell_counts() -> None:
    assert [each for each in EVERY if not each.fits_posterior] == [Beta(0.0), MMD()]


def test_warmup_is_linear_and_ends_at_beta() -> None:
    log_px, posterior, z = batch_terms()
    weights = [Beta(4.0, warmup=10)(log_px, posterior, z, 100, step).extras["beta"] for step in range(15)]
    np.testing.assert_allclose(weights, [4 * min(1, (step + 1) / 10) for step in range(15)])
    assert Beta(4.0, warmup=0)(log_px, posterior, z, 100, 0).extras["beta"] == 4.0


def test_the_loss_weighs_the_kl_by_the_current_beta() -> None:
    log_px, posterior, z = batch_terms()
    terms = Beta(4.0, warmup=8)(log_px, posterior, z, 100, 3)
    torch.testing.assert_close(terms.loss, 2.0 * posterior.kl().sum(1).mean() - log_px.mean())


@given(st.floats(0, 5), st.integers(0, 20))
def test_free_bits_floor_each_dimension_after_averaging_over_the_batch(free: float, seed: int) -> None:
    log_px, posterior, z = batch_terms(seed, scale=2.0)
    terms = ELBO(warmup=0, free_bits=free)(log_px, posterior, z, 100, 0)
    expected = sum(max(free, float(kl)) for kl in posterior.kl().mean(0)) - float(log_px.mean())
    assert float(terms.loss) == pytest.approx(expected, rel=1e-5)


def test_free_bits_leave_a_dimension_below_them_alone() -> None:
    mu = torch.full((4, 2), 0.01, requires_grad=True)
    posterior = Posterior(mu, torch.zeros(4, 2))
    ELBO(warmup=0, free_bits=0.5)(torch.zeros(4), posterior, mu, 4, 0).loss.backward()
    assert torch.equal(mu.grad, torch.zeros(4, 2))


def test_capacity_acts_on_the_batch_mean_of_the_kl() -> None:
    """Two cells with KL 0 and 2 C satisfy a capacity of C exactly, though neither has it."""
    mu = torch.tensor([[0.0], [2.0]])
    posterior = Posterior(mu, torch.zeros(2, 1))
    assert posterior.kl().flatten().tolist() == [0.0, 2.0]
    loss = Capacity(1.0, gamma=10.0, steps=1)(torch.zeros(2), posterior, mu, 2, 5).loss
    assert float(loss) == 0.0


def test_capacity_grows_linearly_and_stays() -> None:
    log_px, posterior, z = batch_terms()
    objective = Capacity(10.0, gamma=3.0, steps=4)
    found = [objective(log_px, posterior, z, 10, step) for step in range(6)]
    assert [terms.extras["capacity"] for terms in found] == [2.5, 5.0, 7.5, 10.0, 10.0, 10.0]
    kl = float(posterior.kl().sum(1).mean())
    for terms in found:
        expected = 3 * abs(kl - terms.extras["capacity"]) - float(log_px.mean())
        assert float(terms.loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", [Beta(2.0, warmup=7), Capacity(5.0, steps=7)])
def test_the_objective_no_longer_changes_after_its_schedule(objective: Objective) -> None:
    log_px, posterior, z = batch_terms()
    before, last, later = (
        objective(log_px, posterior, z, 10, objective.schedule_steps + shift).loss for shift in (-2, -1, 1000)
    )
    assert not torch.equal(before, last)
    assert torch.equal(last, later)


WEIGHTS = st.floats(0, 1e6)
STEPS = st.integers(0, 10**6)
KL = {"warmup": STEPS, "free_bits": WEIGHTS}
OBJECTIVES = st.one_of(
    st.builds(ELBO, **KL),
    st.builds(Beta, beta=WEIGHTS, **KL),
    st.builds(Capacity, capacity=WEIGHTS, gamma=st.floats(1e-6, 1e6), steps=st.integers(1, 10**6)),
    st.builds(BetaTC, beta=WEIGHTS, tc=WEIGHTS, index_code=WEIGHTS, dimension_wise=WEIGHTS, **KL),
    st.builds(DIP, beta=WEIGHTS, dip=WEIGHTS, kind=st.sampled_from([1, 2]), diagonal=st.none() | WEIGHTS, **KL),
    st.builds(MMD, beta=WEIGHTS, mmd=WEIGHTS, **KL),
    st.builds(FactorVAE, beta=WEIGHTS, tc=WEIGHTS, **KL),
)
# name on the command line, and the parameter that the number behind it sets
NAMES = {ELBO: ("elbo", ""), Beta: ("beta", "beta"), Capacity: ("capacity", "capacity"), BetaTC: ("tc", "tc")}
NAMES |= {DIP: ("dip", "dip"), MMD: ("mmd", "mmd"), FactorVAE: ("factorvae", "tc")}


@given(OBJECTIVES)
def test_a_description_gives_the_objective_back(objective: Objective) -> None:
    described = objectives.describe(objective)
    assert objectives.from_description(described) == objective
    again = objectives.from_description(json.loads(json.dumps(described, allow_nan=False)))
    assert again == objective
    assert objectives.describe(again) == described


def test_a_description_does_not_hold_the_critic() -> None:
    started = FactorVAE(tc=3.0).started(D, 0, CPU)
    assert objectives.describe(started) == objectives.describe(FactorVAE(tc=3.0))
    assert str(started) == str(FactorVAE(tc=3.0))


@given(OBJECTIVES)
def test_the_command_line_form_gives_every_parameter(objective: Objective) -> None:
    options = {key: value for key, value in vars(objective).items() if value is not None}
    name, own = NAMES[type(objective)]
    text = f"{name}={options.pop(own)!r}" if own else name
    assert objectives.parse(",".join([text, *(f"{key}={value!r}" for key, value in options.items())])) == objective


def test_short_forms_take_the_defaults() -> None:
    assert objectives.parse("elbo") == ELBO()
    assert objectives.parse("Beta = 2, free_bits=0.1".replace(" = ", "=")) == Beta(2.0, free_bits=0.1)
    assert objectives.parse("capacity=10") == Capacity(10.0)
    assert objectives.parse("tc") == BetaTC(tc=6.0, beta=1.0)
    assert objectives.parse("DIP=5,kind=2") == DIP(dip=5.0, kind=2)
    assert objectives.parse("mmd") == MMD(beta=0.0, mmd=1000.0)
    assert objectives.parse("factorvae=35") == FactorVAE(tc=35.0, beta=1.0)


REFUSED = ["", "elob", "beta=four", "beta=-1", "capacity=-3", "elbo=2", "elbo,beta=3", "beta=4,", "beta=4,typo=2", "4"]
REFUSED += ["tc=-1", "tc=6,index_code=-1", "tc,gamma=2", "dip=-1", "dip,kind=3", "dip,kind=1.5", "dip,diagonal=-1"]
REFUSED += [
    "mmd=-5",
    "mmd,kind=1",
    "mmd,beta=-1",
    "factorvae=-1",
    "factorvae,gamma=3",
    "factorvae,trained=1",
    "betatc=6",
]


@pytest.mark.parametrize("text", REFUSED)
def test_text_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        objectives.parse(text)


NO_NUMBERS = ["beta=nan", "beta=inf", "elbo,free_bits=nan", "capacity=inf", "capacity=1,gamma=nan", "tc=nan", "tc=inf"]
NO_NUMBERS += ["dip=inf", "dip,diagonal=nan", "mmd=nan", "factorvae=inf"]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_weights_that_are_no_finite_number_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        objectives.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_understood_or_refused_in_words(text: str) -> None:
    with contextlib.suppress(InputError):
        assert objectives.parse(text).schedule_steps >= 0


def test_a_schedule_leaves_most_of_a_short_fit_to_the_final_objective() -> None:
    assert objectives.Beta(4.0, warmup=1000).within(90) == objectives.Beta(4.0, warmup=30)
    assert objectives.ELBO(warmup=10).within(90) == objectives.ELBO(warmup=10)
    assert objectives.Capacity(5.0, steps=1000).within(90) == objectives.Capacity(5.0, steps=60)
    assert DIP(kind=2).within(90) == DIP(kind=2, warmup=30)
    assert BetaTC(tc=3.0).within(90) == BetaTC(tc=3.0, warmup=30)


# objectives in training


@pytest.mark.parametrize("text", TEXTS)
def test_every_objective_trains_a_model_that_its_seed_determines(text: str, tmp_path: Path) -> None:
    cells = count_cells()
    first, second, other = (fit(cells, objective=text, rng=seed) for seed in (3, 3, 4))
    assert first.sha256() == second.sha256() != other.sha256()
    assert np.isfinite(first.history_).all(axis=None)
    assert np.isfinite(first.elbo(cells)).all(axis=None)
    json.dumps(first.report_, allow_nan=False)
    assert first.report_["objective"] == objectives.describe(objectives.parse(text))
    first.save(tmp_path / "model")
    loaded = lc.VAE.load(tmp_path / "model")
    assert loaded.objective == objectives.parse(text) == first.objective == first.unfitted().objective
    np.testing.assert_array_equal(loaded.encode(cells).mu, first.encode(cells).mu)
    np.testing.assert_array_equal(loaded.encode(cells).var, first.encode(cells).var)


def test_objectives_give_different_models() -> None:
    cells = count_cells()
    assert len({fit(cells, objective=text).sha256() for text in TEXTS}) == len(TEXTS)


@pytest.mark.parametrize(("text", "logged"), [("tc", "total_correlation"), ("dip", "moments"), ("mmd", "mmd")])
def test_what_is_penalised_is_in_the_history(text: str, logged: str) -> None:
    assert logged in fit(profile_cells(), objective=text).history_


@pytest.mark.parametrize("text", TEXTS)
def test_a_single_latent_dimension_can_be_trained_by_every_objective(text: str) -> None:
    model = fit(profile_cells(), objective=text, n_latent=1)
    assert np.isfinite(model.history_).all(axis=None)
    assert model.report_["total_correlation"] == pytest.approx(0, abs=1e-6)
    assert model.report_["total_correlation_gaussian"] == 0


def test_the_report_says_how_dependent_the_dimensions_are() -> None:
    report = fit(profile_cells(200), epochs=30, objective="beta=0.1,warmup=0").report_
    assert np.isfinite(report["total_correlation"])
    assert report["total_correlation_gaussian"] >= 0


def stopped_after(epochs: int, file: Path, identity: dict[str, Any], _: Any, **__: Any) -> Hooks:
    """Hooks that interrupt the fit after some epochs, each of which was saved."""

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] + 1 == epochs:
            raise KeyboardInterrupt

    return Hooks(file, identity, on_epoch, every=0)


def checkpointed(cells: AnnData, file: Path, objective: str) -> lc.VAE:
    model = lc.VAE(2, width=8, objective=objective)
    return model.fit(cells, epochs=6, settings=SETTINGS, checkpoint=file, rng=0)


@pytest.mark.parametrize("text", ["factorvae=10,warmup=0", "tc=6", "mmd=100"])
@pytest.mark.parametrize("stops", [(2,), (3, 5)], ids=["once", "twice"])
def test_a_fit_interrupted_and_resumed_is_exact_critic_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, stops: tuple[int, ...]
) -> None:
    cells = profile_cells()
    expected = fit(cells, epochs=6, n_latent=2, objective=text)
    for epochs in stops:
        with monkeypatch.context() as patch:
            patch.setattr("latentcell.model.fit.Hooks", partial(stopped_after, epochs))
            with pytest.raises(KeyboardInterrupt):
                checkpointed(cells, tmp_path / "c", text)
    names = {name.partition(".")[0] for name in read_tensors(tmp_path / "c")[0]}
    assert ({"critic", "critic_adam"} <= names) is text.startswith("factorvae")
    resumed = checkpointed(cells, tmp_path / "c", text)
    assert resumed.sha256() == expected.sha256()
    different = ["seconds"]
    assert resumed.history_.drop(columns=different).equals(expected.history_.drop(columns=different))


@pytest.mark.parametrize(("first", "second"), [("tc=6", "tc=7"), ("factorvae", "tc=10"), ("elbo", "factorvae=0")])
def test_a_checkpoint_of_another_objective_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.setattr("latentcell.model.fit.Hooks", partial(Hooks, every=0))
    checkpointed(profile_cells(), tmp_path / "c", first)
    with pytest.raises(InputError, match="another fit"):
        checkpointed(profile_cells(), tmp_path / "c", second)


# objectives that do not fit the width of codes


@pytest.mark.parametrize("text", ["mmd=100", "beta=0"])
def test_widths_that_mean_nothing_are_not_given_out(text: str) -> None:
    cells = profile_cells()
    model = fit(cells, objective=text)
    codes = model.encode(cells)
    assert np.isfinite(codes.mu).all()
    assert codes.var.shape == codes.mu.shape
    assert codes.var.dtype == np.float32
    assert np.isnan(codes.var).all()
    assert model.encode(cells[:0]).var.shape == (0, 3)


def test_widths_mean_something_where_the_kl_of_each_cell_has_a_weight() -> None:
    cells = profile_cells()
    assert np.isfinite(fit(cells, objective="mmd=100,beta=0.5").encode(cells).var).all()


def test_embedding_writes_no_width_that_means_nothing_and_leaves_no_old_one() -> None:
    cells = profile_cells()
    lc.tl.embed(cells, fit(cells))
    assert "vae_var" in cells.obsm
    model = fit(cells, objective="mmd=100")
    lc.tl.embed(cells, model)
    assert set(cells.obsm) == {"vae"}
    np.testing.assert_array_equal(cells.obsm["vae"], model.encode(cells).mu)
    assert np.isfinite(cells.obs[["vae_elbo", "vae_log_px", "vae_kl"]]).all(axis=None)
    lc.tl.embed(cells, fit(cells), key_added="other")
    lc.tl.embed(cells, model)
    assert set(cells.obsm) == {"vae", "other", "other_var"}


@pytest.mark.parametrize("fitted", [False, True])
def test_a_screen_refuses_a_model_whose_widths_mean_nothing(fitted: bool) -> None:
    cells = lc.cells.simulate.screen(
        modality="profiles", n_plates=2, n_control_wells=4, n_perturbations=2, cells_per_well=6, rng=0
    )
    model = lc.VAE(2, width=8, objective="mmd")
    if fitted:
        model.fit(cells, epochs=1, rng=0)
    with pytest.raises(InputError, match=r"width of codes.*Use another objective, such as elbo"):
        lc.tl.screen(cells, model, group="perturbation", control="control", replicate="well", block="plate", rng=0)
    assert not set(cells.obsm) & {"vae", "vae_var"}


def judged(objective: Any, log_px: float, kl: float) -> tuple[dict[str, float], float]:
    """Held-out terms and merit of one cell whose code has a KL of `kl`."""
    posterior = Posterior(torch.tensor([[(2 * kl) ** 0.5]]), torch.zeros(1, 1))
    merit = float(objective.merit(torch.tensor([log_px]), posterior))
    return {"val_log_px": log_px, "val_kl": kl, "val_elbo": log_px - kl}, merit


@pytest.mark.parametrize(("text", "best"), [("mmd=100,warmup=0", 4), ("tc=6,warmup=0", 2)])
def test_weights_are_judged_by_the_held_out_likelihood_where_widths_mean_nothing_and_else_by_the_bound(
    monkeypatch: pytest.MonkeyPatch, text: str, best: int
) -> None:
    log_px, kl = iter([-9.0, -8.0, -6.0, -5.0, -4.0, -7.0]), iter([0.0, 1.0, 2.0, 5.0, 9.0, 3.0])

    def held_out(module: Any, data: Any, objective: Any, *_: Any) -> tuple[dict[str, float], float]:
        return judged(objective, next(log_px), next(kl))

    monkeypatch.setattr("latentcell.model.training._held_out", held_out)
    model = fit(profile_cells(), objective=text, epochs=6)
    assert model.report_["best_epoch"] == best
    assert model.report_["held_out_log_px"] == [-9, -8, -6, -5, -4, -7][best]


@pytest.mark.parametrize("text", ["mmd=100,warmup=0", "mmd=100,beta=1,warmup=0"])
def test_training_ends_when_what_judges_it_no_longer_rises(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The likelihood rises and the bound falls with every epoch."""
    epochs = iter(range(100))

    def held_out(module: Any, data: Any, objective: Any, *_: Any) -> tuple[dict[str, float], float]:
        rising = 0.1 * next(epochs)
        return judged(objective, rising, 2 * rising)

    monkeypatch.setattr("latentcell.model.training._held_out", held_out)
    settings = replace(SETTINGS, patience=3)
    model = lc.VAE(2, width=8, objective=text).fit(profile_cells(), epochs=40, settings=settings, rng=0)
    assert (len(model.history_) == 40) is ("beta" not in text)
