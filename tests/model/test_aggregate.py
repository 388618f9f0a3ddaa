"""What codes are like together: against closed forms, known distributions and definitions written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from latentcell.model import aggregate
from latentcell.model.aggregate import (
    decomposition,
    density_ratio_loss,
    dependence,
    distance_from_prior,
    gaussian_total_correlation,
    off_diagonal_moments,
    shuffled_dimensions,
    stratified_log_weights,
)
from latentcell.model.critic import Critic


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on one thread: several wait for each other where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def posteriors(n: int = 6, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draws, means and log variances of n posteriors."""
    mu, log_var = normal(n, d, seed=seed), 0.5 * normal(n, d, seed=seed + 100) - 1
    return mu + (0.5 * log_var).exp() * normal(n, d, seed=seed + 200), mu, log_var


def total_correlation_of(covariance: np.ndarray) -> float:
    sd = np.sqrt(np.diag(covariance))
    return -0.5 * np.linalg.slogdet(covariance / np.outer(sd, sd))[1]


# minibatch stratified sampling


@pytest.mark.parametrize(("n", "n_train"), [(2, 2), (2, 50), (3, 10), (5, 5), (16, 1000), (128, 20_000), (7, 6)])
def test_each_row_weighs_the_cell_itself_one_other_for_the_cells_not_drawn_and_the_rest_alike(
    n: int, n_train: int
) -> None:
    weights = stratified_log_weights(n, n_train).exp().double().numpy()
    total, others = max(n, n_train), n - 1
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.diag(weights), 1 / total, rtol=1e-5)
    off = weights[~np.eye(n, dtype=bool)].reshape(n, others)
    expected = np.sort([*[1 / others] * (others - 1), (total - others) / (total * others)])
    np.testing.assert_allclose(np.sort(off, axis=1), np.tile(expected, (n, 1)), rtol=1e-5)


def test_no_two_cells_stand_for_the_cells_not_drawn_by_the_same_other() -> None:
    weights = stratified_log_weights(6, 100).exp()
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-5)


def test_cells_far_apart_have_an_index_code_information_of_log_n() -> None:
    """A cell explained by itself alone counts 1 / N: not so where the weights of the first column are taken for it."""
    mu = 100 * torch.arange(8.0, dtype=torch.float64)[:, None] * torch.ones(2, dtype=torch.float64)
    log_var = torch.zeros_like(mu)
    parts = decomposition(mu.clone(), mu, log_var, 1000)
    assert float(parts.index_code) == pytest.approx(math.log(1000), rel=1e-6)
    # each marginal, too, is explained by one cell alone, so that all but one dimension repeat it
    assert float(parts.total_correlation) == pytest.approx(math.log(1000), rel=1e-6)


def test_cells_of_one_posterior_have_no_index_code_information_and_independent_dimensions() -> None:
    z, mu, log_var = posteriors(10)
    parts = decomposition(z, mu[:1].expand_as(mu), log_var[:1].expand_as(mu), 500)
    assert float(parts.index_code) == pytest.approx(0, abs=1e-6)
    assert float(parts.total_correlation) == pytest.approx(0, abs=1e-6)


# parts of the KL


@pytest.mark.parametrize(("n", "d", "n_train"), [(2, 1, 2), (6, 3, 6), (6, 3, 1000), (40, 10, 300)])
def test_parts_sum_to_the_log_ratio_of_posterior_and_prior_in_every_batch(n: int, d: int, n_train: int) -> None:
    z, mu, log_var = posteriors(n, d)
    q, p = torch.distributions.Normal(mu, (0.5 * log_var).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = (q.log_prob(z) - p.log_prob(z)).sum(1).mean()
    torch.testing.assert_close(sum(decomposition(z, mu, log_var, n_train)), expected)


def test_parts_are_those_of_the_definition_written_out() -> None:
    z, mu, log_var = posteriors(5, 2)
    weights = stratified_log_weights(5, 30).exp().double()
    density = torch.distributions.Normal(mu[None], (0.5 * log_var[None]).exp()).log_prob(z[:, None]).exp()
    joint = (weights * density.prod(2)).sum(1).log()
    marginals = (weights[:, :, None] * density).sum(1).log().sum(1)
    parts = decomposition(z, mu, log_var, 30)
    own = torch.distributions.Normal(mu, (0.5 * log_var).exp()).log_prob(z).sum(1)
    torch.testing.assert_close(parts.index_code, (own - joint).mean())
    torch.testing.assert_close(parts.total_correlation, (joint - marginals).mean())


def test_in_one_dimension_there_is_nothing_to_correlate() -> None:
    assert float(decomposition(*posteriors(8, 1), 100).total_correlation) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_parts_of_gaussian_codes_are_near_their_closed_forms(correlation: float) -> None:
    """Posteriors half as wide as the prior around correlated means: all codes together are N(0, C), unit variances."""
    n, d, share = 2500, 3, 0.5
    means = share * ((1 - correlation) * np.eye(d) + correlation)
    mu = torch.from_numpy(np.random.default_rng(0).multivariate_normal(np.zeros(d), means, n))
    log_var = torch.full_like(mu, math.log(1 - share))
    z = mu + math.sqrt(1 - share) * normal(n, d)
    together = means + (1 - share) * np.eye(d)
    parts = decomposition(z, mu, log_var, n)
    information = 0.5 * (np.linalg.slogdet(together)[1] - d * math.log(1 - share))
    assert float(parts.total_correlation) == pytest.approx(total_correlation_of(together), abs=0.05)
    assert float(parts.index_code) == pytest.approx(information, abs=0.08)
    assert float(parts.dimension_wise) == pytest.approx(0, abs=0.05)
    assert float(gaussian_total_correlation(z)) == pytest.approx(total_correlation_of(together), abs=0.03)


@pytest.mark.parametrize("block_values", [1, 50, 10**9])
def test_blocks_do_not_change_the_parts(monkeypatch: pytest.MonkeyPatch, block_values: int) -> None:
    z, mu, log_var = posteriors(23, 4)
    expected = decomposition(z, mu, log_var, 200)
    monkeypatch.setattr(aggregate, "_BLOCK_VALUES", block_values)
    torch.testing.assert_close(tuple(decomposition(z, mu, log_var, 200)), tuple(expected))


# total correlation as if Gaussian


def test_gaussian_total_correlation_is_that_of_the_sample_correlation() -> None:
    z = normal(200, 4) @ normal(4, 4, seed=1)
    expected = total_correlation_of(np.cov(z.numpy().T))
    assert float(gaussian_total_correlation(3 + 10 * z)) == pytest.approx(expected, rel=1e-9)


def test_two_dimensions_have_minus_half_the_log_of_what_is_unexplained() -> None:
    z = normal(50, 2)
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    r = float(torch.corrcoef(z.T)[0, 1])
    assert float(gaussian_total_correlation(z)) == pytest.approx(-0.5 * math.log(1 - r**2))


def test_dead_dimensions_are_left_out() -> None:
    z = normal(50, 3)
    dead = torch.cat([z, torch.full((50, 2), 0.3, dtype=torch.float64), 1e-6 * normal(50, 1, seed=1)], 1)
    torch.testing.assert_close(gaussian_total_correlation(dead), gaussian_total_correlation(z))
    assert float(gaussian_total_correlation(dead[:, 2:])) == 0


# covariance of codes


def test_moments_of_means_are_those_of_their_covariance() -> None:
    mu = normal(30, 3) @ normal(3, 3, seed=1)
    covariance = np.cov(mu.numpy().T)
    off = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    expected = off + 10 * ((np.diag(covariance) - 1) ** 2).sum()
    assert float(off_diagonal_moments(mu, None, 10.0)) == pytest.approx(expected, rel=1e-9)


def test_moments_of_draws_add_the_mean_posterior_variance_on_the_diagonal() -> None:
    mu, log_var = normal(30, 3) @ normal(3, 3, seed=1), normal(30, 3, seed=2)
    covariance = np.cov(mu.numpy().T) + np.diag(np.exp(log_var.numpy()).mean(0))
    off = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    expected = off + 2 * ((np.diag(covariance) - 1) ** 2).sum()
    assert float(off_diagonal_moments(mu, log_var, 2.0)) == pytest.approx(expected, rel=1e-9)


def test_that_is_the_covariance_of_draws() -> None:
    n = 20_000
    mu, log_var = 2 * normal(n, 2) @ normal(2, 2, seed=1), normal(n, 2, seed=2) - 1
    drawn = mu + (0.5 * log_var).exp() * normal(n, 2, seed=3)
    found, expected = (
        float(each) for each in (off_diagonal_moments(mu, log_var, 1), off_diagonal_moments(drawn, None, 1))
    )
    assert found == pytest.approx(expected, rel=0.05)
    assert found != pytest.approx(float(off_diagonal_moments(mu, None, 1)), rel=0.05)


def test_whitened_codes_have_no_moments_to_remove() -> None:
    mu = normal(40, 4)
    mu = mu - mu.mean(0)
    white = math.sqrt(39) * torch.linalg.qr(mu)[0]
    assert float(off_diagonal_moments(white, None, 10.0)) == pytest.approx(0, abs=1e-12)


def test_one_dimension_has_a_variance_only() -> None:
    mu = normal(10, 1)
    assert float(off_diagonal_moments(mu, None, 3.0)) == pytest.approx(3 * (float(mu.var()) - 1) ** 2)


# distance from the prior


@pytest.mark.parametrize("d", [1, 2, 16])
def test_codes_from_the_prior_are_at_distance_zero_in_expectation(d: int) -> None:
    found = np.array([float(distance_from_prior(normal(32, d, seed=seed))) for seed in range(400)])
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert found.min() < 0 < found.max()


@pytest.mark.parametrize("d", [1, 4, 16])
@pytest.mark.parametrize(
    "change",
    [lambda z: z + 1, lambda z: 0.3 * z, lambda z: 2.5 * z, torch.zeros_like, torch.abs],
    ids=["shifted", "narrow", "wide", "collapsed", "one-sided"],
)
def test_other_codes_are_at_a_distance(d: int, change: Callable[[Tensor], Tensor]) -> None:
    ours = [float(distance_from_prior(change(normal(200, d, seed=seed)))) for seed in range(5)]
    prior = [float(distance_from_prior(normal(200, d, seed=seed))) for seed in range(20)]
    assert min(ours) > max(0.0, *prior)


@pytest.mark.parametrize("d", [1, 3])
def test_expectations_under_the_prior_are_those_of_draws_from_it(d: int) -> None:
    z, prior = 0.5 * normal(40, d) + 0.7, normal(100_000, d, seed=1)
    other = normal(100_000, d, seed=2)
    expected = 0.0
    for share in aggregate._KERNEL_WIDTHS:
        width = share * 2 * d
        among = torch.exp(-torch.cdist(z, z).square() / (2 * width))
        between = torch.exp(-torch.cdist(z, prior).square() / (2 * width)).mean()
        apart = torch.exp(-(prior - other).square().sum(1) / (2 * width)).mean()
        expected += float((among.sum() - 40) / (40 * 39) - 2 * between + apart) / len(aggregate._KERNEL_WIDTHS)
    assert float(distance_from_prior(z)) == pytest.approx(expected, abs=0.01)


def test_the_distance_falls_as_codes_approach_the_prior() -> None:
    z = normal(300, 4)
    found = [float(distance_from_prior(z + shift)) for shift in (2.0, 1.0, 0.5, 0.0)]
    assert found == sorted(found, reverse=True)


# dependence


def independence_criterion(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased criterion of Song et al. (2012, eq. 5), written out."""
    m = len(a)
    kernels = []
    for x in (a, b):
        square = ((x[:, None] - x[None]) ** 2).sum(2)
        kernel = np.exp(-square / square.mean())
        np.fill_diagonal(kernel, 0)
        kernels.append(kernel)
    k, one = kernels, np.ones(m)
    inner = np.trace(k[0] @ k[1]) + one @ k[0] @ one * (one @ k[1] @ one) / ((m - 1) * (m - 2))
    return (inner - 2 / (m - 2) * one @ k[0] @ k[1] @ one) / (m * (m - 3))


def test_dependence_is_the_unbiased_criterion_over_that_of_each_with_itself() -> None:
    a, b = normal(20, 3), normal(20, 2, seed=1)
    b[:, 0] += a[:, 0]
    first, second = a.numpy(), b.numpy()
    expected = independence_criterion(first, second) / math.sqrt(
        independence_criterion(first, first) * independence_criterion(second, second)
    )
    assert float(dependence(a, b)) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(dependence(b, a), dependence(a, b))


@pytest.mark.parametrize("levels", [False, True], ids=["numbers", "levels"])
def test_independent_tables_have_no_dependence_in_expectation(levels: bool) -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(300):
        told = torch.from_numpy(np.eye(3)[rng.integers(3, size=48)]) if levels else normal(48, 2, seed=1000 + seed)
        found.append(float(dependence(normal(48, 4, seed=seed), told)))
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.mean(found) < 0.01


def test_a_table_depends_wholly_on_itself_in_any_unit() -> None:
    a = normal(40, 3)
    assert float(dependence(a, a)) == pytest.approx(1)
    assert float(dependence(a, 1e3 * a - 7)) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["square", "circle", "spread"])
def test_dependence_without_correlation_is_seen(kind: str) -> None:
    x, noise = normal(300, 1), normal(300, 1, seed=1)
    pairs = {
        "square": (x, x.square() + 0.1 * noise),
        "circle": (torch.cos(4 * x), torch.sin(4 * x)),
        "spread": (x, (1 + 3 * (x.abs() > 1)) * noise),
    }
    a, b = pairs[kind]
    assert abs(float(torch.corrcoef(torch.cat([a, b], 1).T)[0, 1])) < 0.15
    independent = [float(dependence(a, b[torch.randperm(300, generator=generator(seed))])) for seed in range(50)]
    assert float(dependence(a, b)) > 2 * max(independent)


def test_the_order_of_cells_does_not_matter() -> None:
    a, b = normal(30, 2), normal(30, 1, seed=1).exp()
    order = torch.randperm(30, generator=generator())
    torch.testing.assert_close(dependence(a[order], b[order]), dependence(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 32, 128])
def test_cells_of_one_plate_show_no_dependence_and_no_gradient_that_matters(n: int, dtype: torch.dtype) -> None:
    codes = normal(n, 5).to(dtype).requires_grad_()
    plate = torch.tensor([0.6, -0.3, -0.3], dtype=dtype).expand(n, 3)
    found = dependence(codes, plate)
    found.backward()
    assert abs(float(found.detach())) < 1e-3
    assert torch.isfinite(codes.grad).all()
    informative = codes.detach().clone().requires_grad_()
    dependence(informative, normal(n, 3, seed=1).to(dtype)).backward()
    assert float(codes.grad.norm()) < 0.01 * float(informative.grad.norm())


def test_collapsed_codes_show_no_dependence_and_finite_gradients() -> None:
    codes = torch.zeros(16, 3, requires_grad=True)
    found = dependence(codes, normal(16, 2).float())
    found.backward()
    assert abs(float(found.detach())) < 1e-3
    assert torch.isfinite(codes.grad).all()


# shuffled codes and the critic


def test_shuffling_keeps_every_dimensions_values_and_breaks_their_ties() -> None:
    z = normal(500, 1).expand(500, 3)
    shuffled = shuffled_dimensions(z, generator(1))
    torch.testing.assert_close(shuffled.sort(0).values, z.sort(0).values)
    assert torch.corrcoef(shuffled.T).triu(1).abs().max() < 0.2
    assert torch.equal(shuffled, shuffled_dimensions(z, generator(1)))
    assert not torch.equal(shuffled, shuffled_dimensions(z, generator(2)))


def test_telling_shuffled_codes_apart_costs_log_two_by_guessing_and_nothing_with_certainty() -> None:
    guess = torch.zeros(5, 2)
    assert float(density_ratio_loss(guess, guess)) == pytest.approx(math.log(2))
    sure = torch.tensor([[50.0, -50.0]]).expand(5, 2)
    assert float(density_ratio_loss(sure, -sure)) == pytest.approx(0, abs=1e-6)
    assert float(density_ratio_loss(-sure, sure)) == pytest.approx(100)


def trained_critic(z: Tensor, steps: int, seed: int = 0) -> Critic:
    critic = Critic(z.shape[1], seed)
    for step in range(steps):
        critic.learn(z[64 * step % len(z) :][:64], step)
    return critic


def test_the_critic_finds_the_total_correlation_of_gaussian_codes() -> None:
    correlation = 0.9
    z = normal(64 * 250, 2).float()
    correlated = torch.stack([z[:, 0], correlation * z[:, 0] + math.sqrt(1 - correlation**2) * z[:, 1]], 1)
    expected = -0.5 * math.log(1 - correlation**2)
    found = [float(trained_critic(codes, 250).total_correlation(codes).detach()) for codes in (correlated, z)]
    assert found[0] == pytest.approx(expected, abs=0.35)
    assert found[1] == pytest.approx(0, abs=0.1)


def test_a_critic_is_determined_by_its_seed_and_the_steps_and_leaves_torchs_seed_alone() -> None:
    z = normal(256, 3).float()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second, other = (trained_critic(z, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_learning_moves_the_critic_and_never_the_codes() -> None:
    z = normal(32, 3).float().requires_grad_()
    critic = Critic(3, 0)
    before = [weight.clone() for weight in critic.parameters()]
    critic.learn(z.detach(), 0)
    assert z.grad is None
    assert not any(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))
    critic.total_correlation(z).backward()
    assert z.grad.abs().sum() > 0


# gradients


@pytest.mark.parametrize("part", range(3))
def test_gradients_of_the_parts_match_finite_differences(part: int) -> None:
    inputs = tuple(values.requires_grad_() for values in posteriors(5, 2))
    assert torch.autograd.gradcheck(lambda *given: decomposition(*given, 40)[part], inputs)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda z: distance_from_prior(z),
        lambda z: gaussian_total_correlation(z),
        lambda z: off_diagonal_moments(z, None, 10.0),
        lambda z: off_diagonal_moments(z, 0.3 * z - 1, 1.0),
        lambda z: density_ratio_loss(z[:, :2], z[:, 1:]),
    ],
    ids=["distance from the prior", "Gaussian total correlation", "means", "draws", "density ratio"],
)
def test_gradients_of_penalties_match_finite_differences(penalty: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(penalty, normal(7, 3).requires_grad_())


def centred_kernel(x: Tensor, width: Tensor) -> Tensor:
    """U-centred kernel matrix of a width, written out as the projection that makes its rows sum to 0."""
    n = len(x)
    kernel = torch.exp(-(x[:, None] - x[None]).square().sum(2) / width)
    kernel.fill_diagonal_(0)
    rows = kernel.sum(1, keepdim=True)
    return (kernel - (rows + rows.T) / (n - 2) + kernel.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)


def test_gradients_of_dependence_match_finite_differences_at_a_fixed_width_of_the_kernel() -> None:
    """The width follows the codes, but changing it is no way to reduce the dependence."""
    a, b = normal(9, 2).requires_grad_(), normal(9, 2, seed=1)
    dependence(a, b).backward()
    codes = a.detach()
    width, other = ((x[:, None] - x[None]).square().sum(2).mean() for x in (codes, b))
    theirs = centred_kernel(b, other)

    def at_width(x: Tensor) -> float:
        ours = centred_kernel(x, width)
        assert ours.sum(1).abs().max() < 1e-12
        return float((ours * theirs).sum() / (ours.norm() * theirs.norm()))

    step = 1e-6 * torch.eye(18, dtype=torch.float64).reshape(18, 9, 2)
    slopes = [(at_width(codes + move) - at_width(codes - move)) / 2e-6 for move in step]
    np.testing.assert_allclose(a.grad.flatten(), slopes, atol=1e-7)
