"""Objectives: closed forms, schedules, and the bound they always report."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentcell.errors import InputError
from latentcell.model import objectives
from latentcell.model.objectives import ELBO, Beta, Capacity, Objective, Posterior

N, D = 6, 3


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


@pytest.mark.parametrize(
    "objective", [ELBO(), Beta(8.0, free_bits=2.0), Beta(0.0), Capacity(25.0), ELBO(warmup=1000, free_bits=5.0)]
)
@pytest.mark.parametrize("step", [0, 10, 100_000])
def test_every_objective_reports_the_true_bound(objective: Objective, step: int) -> None:
    log_px, posterior, z = batch_terms()
    terms = objective(log_px, posterior, z, 100, step)
    torch.testing.assert_close(terms.elbo, log_px - posterior.kl().sum(1))
    torch.testing.assert_close(terms.kl_per_dim, posterior.kl().mean(0))


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
OBJECTIVES = st.one_of(
    st.builds(ELBO, warmup=STEPS, free_bits=WEIGHTS),
    st.builds(Beta, beta=WEIGHTS, warmup=STEPS, free_bits=WEIGHTS),
    st.builds(Capacity, capacity=WEIGHTS, gamma=st.floats(1e-6, 1e6), steps=st.integers(1, 10**6)),
)


@given(OBJECTIVES)
def test_a_description_gives_the_objective_back(objective: Objective) -> None:
    assert objectives.from_description(objectives.describe(objective)) == objective


@given(OBJECTIVES)
def test_the_command_line_form_gives_every_parameter(objective: Objective) -> None:
    options = dict(vars(objective))
    name = type(objective).__name__.lower()
    own = options.pop(name, None)
    text = name if own is None else f"{name}={own!r}"
    assert objectives.parse(",".join([text, *(f"{key}={value!r}" for key, value in options.items())])) == objective


def test_short_forms_take_the_defaults() -> None:
    assert objectives.parse("elbo") == ELBO()
    assert objectives.parse("Beta = 2, free_bits=0.1".replace(" = ", "=")) == Beta(2.0, free_bits=0.1)
    assert objectives.parse("capacity=10") == Capacity(10.0)


@pytest.mark.parametrize(
    "text",
    ["", "elob", "beta=four", "beta=-1", "capacity=-3", "elbo=2", "elbo,beta=3", "beta=4,", "beta=4,typo=2", "4"],
)
def test_text_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        objectives.parse(text)


@pytest.mark.parametrize("text", ["beta=nan", "beta=inf", "elbo,free_bits=nan", "capacity=inf", "capacity=1,gamma=nan"])
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
