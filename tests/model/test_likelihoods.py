"""Likelihoods are normalised, agree with scipy, and their means and draws belong to their densities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from noises import WIDTH, gaussian, logistic, poisson_gaussian, with_theta
from scipy import stats
from torch import Tensor

from latentcell.model import likelihoods as lk

N_DRAWS = 40_000


@dataclass(frozen=True)
class Case:
    """One distribution over one channel: its support as points with weights of a sum or a quadrature."""

    build: Callable[[], lk.Likelihood]
    params: tuple[float, ...]
    points: np.ndarray
    weights: np.ndarray
    size: float | None = None
    rtol: float = 1e-6

    def log_p(self) -> np.ndarray:
        likelihood = self.build().double().eval()
        n = len(self.points)
        x = torch.tensor(self.points)[:, None]
        size = None if self.size is None else torch.full((n,), self.size, dtype=torch.float64)
        with torch.no_grad():
            return likelihood.log_prob(x, self.expanded(n, torch.float64), size).numpy()

    def expanded(self, n: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self.params, dtype=dtype).expand(n, -1).contiguous()

    def moment(self, power: int, about: float = 0.0) -> float:
        return float((self.weights * np.exp(self.log_p()) * (self.points - about) ** power).sum())


def whole(last: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(last + 1.0), np.ones(last + 1)


def interval(low: float, high: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    edges = np.linspace(low, high, n // 200 + 1)
    half = np.diff(edges) / 2
    return (half[:, None] * (nodes + 1) + edges[:-1, None]).ravel(), (half[:, None] * weights).ravel()


def real_line(centre: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature that also covers heavy tails: x = centre + spread sinh(u)."""
    u = np.linspace(-14, 14, 8001)
    return centre + spread * np.sinh(u), spread * np.cosh(u) * (u[1] - u[0])


def above_anscombe(gain: float) -> tuple[np.ndarray, np.ndarray]:
    y, weights = interval(0, 30)
    return gain * (y**2 / 4 - 3 / 8), weights * gain * y / 2


CASES = {
    "nb": Case(lambda: with_theta(lk.NegativeBinomial, 0.7), (0.3,), *whole(2000), size=6.0),
    "nb_overdispersed": Case(lambda: with_theta(lk.NegativeBinomial, -1.0), (0.3,), *whole(4000), size=11.0),
    "zinb": Case(lambda: with_theta(lk.ZeroInflatedNegativeBinomial, 0.5), (0.0, -0.4), *whole(2000), size=5.0),
    "poisson": Case(lambda: lk.Poisson(1), (0.0,), *whole(200), size=7.5),
    "gaussian": Case(lambda: gaussian(0.3), (0.8,), *interval(-8, 9)),
    "student_t": Case(lambda: lk.StudentT(1), (-0.5,), *real_line(-0.5, 0.6), rtol=1e-5),
    "bernoulli": Case(lk.Bernoulli, (-0.7,), *whole(1)),
    "continuous_bernoulli_dark": Case(lk.ContinuousBernoulli, (-3.0,), *interval(0, 1)),
    "continuous_bernoulli_flat": Case(lk.ContinuousBernoulli, (0.001,), *interval(0, 1)),
    "continuous_bernoulli_bright": Case(lk.ContinuousBernoulli, (8.0,), *interval(0, 1)),
    "discretized_logistic": Case(lambda: logistic(-4.0), (0.45,), np.arange(256) * WIDTH, np.ones(256)),
    "discretized_logistic_narrow": Case(
        lambda: logistic(-7.0), (100.3 * WIDTH,), np.arange(256) * WIDTH, np.ones(256), rtol=2e-2
    ),
    "poisson_gaussian_bright": Case(lambda: poisson_gaussian(0.02, 0.8), (0.5,), *above_anscombe(0.02)),
    "poisson_gaussian_dark": Case(lambda: poisson_gaussian(0.1, 1.5), (0.3,), *above_anscombe(0.1), rtol=5e-3),
}


each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each_case
def test_probabilities_sum_or_integrate_to_one(case: Case) -> None:
    assert case.moment(0) == pytest.approx(1, abs=max(1e-6, case.rtol))


@pytest.mark.parametrize("location", [-0.2, 0.0, 0.3, 0.999, 1.3])
def test_discretized_logistic_sums_to_one_at_the_ends_of_the_grey_scale(location: float) -> None:
    for log_scale in (-7.5, -4.0, -1.0):
        case = Case(lambda s=log_scale: logistic(s), (location,), np.arange(256) * WIDTH, np.ones(256))
        assert case.moment(0) == pytest.approx(1, abs=1e-6)


@each_case
def test_mean_is_the_mean_of_the_distribution(case: Case) -> None:
    size = None if case.size is None else torch.tensor([case.size], dtype=torch.float64)
    mean = case.build().double().mean(case.expanded(1, torch.float64), size)
    # a grey level is the finest that a mean of whole levels can be asked to hit
    assert float(mean) == pytest.approx(case.moment(1), rel=max(case.rtol, 1e-6), abs=1e-7)


@each_case
def test_draws_have_the_mean_and_variance_of_the_distribution(case: Case) -> None:
    size = None if case.size is None else torch.full((N_DRAWS,), case.size)
    with torch.no_grad():
        draws = case.build().sample(case.expanded(N_DRAWS, torch.float32), size, np.random.default_rng(7))
    x = draws.double().numpy().ravel()
    mean = case.moment(1)
    variance, fourth = case.moment(2, mean), case.moment(4, mean)
    assert x.mean() == pytest.approx(mean, abs=4.5 * np.sqrt(variance / N_DRAWS) + case.rtol * abs(mean))
    error = np.sqrt(max(fourth - variance**2, 0) / N_DRAWS)
    assert x.var() == pytest.approx(variance, abs=4.5 * error + case.rtol * variance)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "bernoulli", "discretized_logistic"])
def test_draws_lie_on_the_support(name: str) -> None:
    case = CASES[name]
    size = None if case.size is None else torch.full((500,), case.size)
    draws = case.build().sample(case.expanded(500, torch.float32), size, np.random.default_rng(0)).detach().numpy()
    assert np.abs(draws.ravel()[:, None] - case.points).min(axis=1).max() < 1e-5


def counts_and_scores(n_genes: int = 5) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    rng = np.random.default_rng(1)
    scores = torch.tensor(rng.normal(size=(7, n_genes)))
    size = torch.tensor(rng.uniform(5, 500, 7))
    mean = torch.softmax(scores, 1).numpy() * size.numpy()[:, None]
    return torch.tensor(rng.poisson(mean * 1.3).astype(float)), scores, size, mean


def test_negative_binomial_matches_scipy() -> None:
    x, scores, size, mean = counts_and_scores()
    likelihood = lk.NegativeBinomial(5).double()
    theta = np.array([0.1, 0.7, 1.0, 5.0, 200.0])
    likelihood.log_theta.data = torch.tensor(np.log(theta))
    expected = stats.nbinom.logpmf(x.numpy(), theta, theta / (theta + mean)).sum(1)
    np.testing.assert_allclose(likelihood.log_prob(x, scores, size).detach(), expected, rtol=1e-9)


def test_poisson_matches_scipy() -> None:
    x, scores, size, mean = counts_and_scores()
    expected = stats.poisson.logpmf(x.numpy(), mean).sum(1)
    np.testing.assert_allclose(lk.Poisson(5).log_prob(x, scores, size), expected, rtol=1e-9)


def test_zero_inflated_negative_binomial_mixes_zeros_into_scipys_negative_binomial() -> None:
    x, scores, size, mean = counts_and_scores()
    x[:, ::2] = 0
    logits = torch.linspace(-3, 3, 35, dtype=torch.float64).view(7, 5)
    extra = torch.sigmoid(logits).numpy()
    nb = stats.nbinom.pmf(x.numpy(), 1.0, 1 / (1 + mean))
    expected = np.log(extra * (x.numpy() == 0) + (1 - extra) * nb).sum(1)
    likelihood = lk.ZeroInflatedNegativeBinomial(5).double()
    found = likelihood.log_prob(x, torch.cat([scores, logits], 1), size).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_gaussian_matches_scipy_with_one_variance_per_channel() -> None:
    x, params = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = lk.Gaussian(3).double().eval()
    likelihood.variance.copy_(torch.tensor([0.1, 1.0, 4.0]))
    sd = np.sqrt([0.1, 1.0, 4.0])[:, None, None]
    expected = stats.norm.logpdf(x.numpy(), params.numpy(), sd).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(x, params), expected, rtol=1e-7)


def test_student_t_matches_scipy() -> None:
    x, params = torch.randn(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = lk.StudentT(2).double()
    likelihood.log_scale.data = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    likelihood.raw_df.data = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    df = 2 + 4 * np.log1p(np.exp([-2.0, 3.0]))
    expected = stats.t.logpdf(x.numpy(), df, params.numpy(), np.exp([-1.0, 0.5])).sum(1)
    np.testing.assert_allclose(likelihood.log_prob(x, params).detach(), expected, rtol=1e-9)


def test_bernoulli_matches_scipy() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    logits = torch.tensor([[-2.0, 0.3, 4.0]], dtype=torch.float64)
    expected = stats.bernoulli.logpmf(x.numpy(), torch.sigmoid(logits).numpy()).sum()
    assert float(lk.Bernoulli().log_prob(x, logits)) == pytest.approx(expected, rel=1e-9)


def test_discretized_logistic_matches_scipys_logistic_integrated_over_a_grey_level() -> None:
    levels = np.array([1, 40, 128, 254]) * WIDTH
    at, scale = 0.4, np.exp(-2.0)
    expected = np.log(np.diff(stats.logistic.cdf([levels - WIDTH / 2, levels + WIDTH / 2], at, scale), axis=0))[0]
    x = torch.tensor(levels)[:, None]
    found = logistic(-2.0).double().log_prob(x, torch.full_like(x, at)).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_poisson_gaussian_approximates_photon_noise() -> None:
    """Anscombe's transform of a Poisson signal is near normal with variance one."""
    gain, photons = 0.05, 40.0
    likelihood = poisson_gaussian(gain, 1.0)
    shown = float(np.sqrt(photons + 3 / 8) / np.sqrt(1 / gain + 3 / 8))
    counts = np.arange(28, 54)  # two standard deviations either side
    x = torch.tensor(gain * counts, dtype=torch.float32)[:, None]
    per_photon = likelihood.eval().log_prob(x, torch.full_like(x, shown)).numpy() + np.log(gain)
    np.testing.assert_allclose(per_photon, stats.poisson.logpmf(counts, photons), atol=0.15)
