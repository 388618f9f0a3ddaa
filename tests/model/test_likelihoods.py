"""Likelihoods are normalised, agree with scipy, and their means and draws belong to their densities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from latentcell.model import likelihoods as lk

N_DRAWS = 40_000
WIDTH = 1 / 255


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


def gaussian(variance: float) -> lk.Gaussian:
    likelihood = lk.Gaussian(1)
    likelihood.variance.fill_(variance)
    return likelihood


def poisson_gaussian(gain: float, variance: float) -> lk.PoissonGaussian:
    likelihood = lk.PoissonGaussian([gain])
    likelihood.variance.fill_(variance)
    return likelihood


def with_theta(kind: type[lk.Likelihood], log_theta: float) -> lk.Likelihood:
    likelihood = kind(1)
    with torch.no_grad():
        likelihood.log_theta.fill_(log_theta)
    return likelihood


def logistic(log_scale: float) -> lk.DiscretizedLogistic:
    likelihood = lk.DiscretizedLogistic([WIDTH], [0.0], [1.0])
    with torch.no_grad():
        likelihood.log_scale.fill_(log_scale)
    return likelihood


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


SHAPED: dict[str, tuple[Callable[[], lk.Likelihood], int, str]] = {
    "nb": (lambda: lk.NegativeBinomial(3), 3, "counts"),
    "zinb": (lambda: lk.ZeroInflatedNegativeBinomial(3), 6, "counts"),
    "poisson": (lambda: lk.Poisson(3), 3, "counts"),
    "gaussian": (lambda: lk.Gaussian(3), 3, "real"),
    "student_t": (lambda: lk.StudentT(3), 3, "real"),
    "bernoulli": (lk.Bernoulli, 3, "binary"),
    "continuous_bernoulli": (lk.ContinuousBernoulli, 3, "unit"),
    "discretized_logistic": (lambda: lk.DiscretizedLogistic([WIDTH] * 3, [0.0] * 3, [1.0] * 3), 3, "levels"),
    "poisson_gaussian": (lambda: lk.PoissonGaussian([0.05] * 3), 3, "unit"),
}
each_likelihood = pytest.mark.parametrize("name", SHAPED)


def measurements(support: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    rng = np.random.default_rng(3)
    values = {
        "counts": lambda: rng.poisson(4.0, shape),
        "real": lambda: rng.normal(size=shape),
        "binary": lambda: rng.integers(0, 2, shape),
        "unit": lambda: rng.uniform(size=shape),
        "levels": lambda: rng.integers(0, 256, shape) * WIDTH,
    }[support]()
    return torch.tensor(values, dtype=dtype)


def size_for(support: str, n: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return torch.linspace(3, 30, n, dtype=dtype) if support == "counts" else None


@each_likelihood
def test_gradients_of_the_parameters_match_finite_differences(name: str) -> None:
    build, n_outputs, support = SHAPED[name]
    likelihood = build().double().eval()
    x, size = measurements(support, (4, 3)), size_for(support, 4)
    params = torch.tensor(np.random.default_rng(5).normal(size=(4, n_outputs)) * 0.7, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(x, p, size), (params,), atol=1e-4)


@each_likelihood
def test_gradients_of_learned_noise_match_finite_differences(name: str) -> None:
    build, n_outputs, support = SHAPED[name]
    likelihood = build().double().eval()
    x, size = measurements(support, (4, 3)), size_for(support, 4)
    params = torch.tensor(np.random.default_rng(5).normal(size=(4, n_outputs)) * 0.7)

    def total() -> Tensor:
        return likelihood.log_prob(x, params, size).sum()

    for weight in likelihood.parameters():
        (analytic,) = torch.autograd.grad(total(), weight)
        for j in range(weight.numel()):
            with torch.no_grad():
                weight[j] += 1e-5
                above = float(total())
                weight[j] -= 2e-5
                below = float(total())
                weight[j] += 1e-5
            assert float(analytic[j]) == pytest.approx((above - below) / 2e-5, rel=1e-5, abs=1e-6)


@each_likelihood
@pytest.mark.parametrize("extreme", [-50.0, 50.0])
def test_extreme_decoder_outputs_give_finite_densities_gradients_means_and_draws(name: str, extreme: float) -> None:
    build, n_outputs, support = SHAPED[name]
    likelihood = build().eval()
    x, size = measurements(support, (4, 3), torch.float32), size_for(support, 4, torch.float32)
    if support in ("unit", "binary"):
        x[0], x[1] = 0.0, 1.0
    params = torch.zeros(4, n_outputs)
    params[:, ::2] = extreme
    params.requires_grad_()
    log_p = likelihood.log_prob(x, params, size)
    log_p.sum().backward()
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(params.grad).all()
    with torch.no_grad():
        assert torch.isfinite(likelihood.mean(params, size)).all()
        assert torch.isfinite(likelihood.sample(params, size, np.random.default_rng(0))).all()


@pytest.mark.parametrize("kind", [lk.NegativeBinomial, lk.ZeroInflatedNegativeBinomial, lk.Poisson])
@pytest.mark.parametrize(("count", "total"), [(1e6, 1e7), (0.0, 0.0), (3.0, 0.0), (1e6, 10.0)])
def test_huge_counts_and_empty_libraries_are_finite(kind: type[lk.Likelihood], count: float, total: float) -> None:
    likelihood = kind(2)
    params = torch.zeros(1, likelihood.n_outputs(2), requires_grad=True)
    log_p = likelihood.log_prob(torch.tensor([[count, 0.0]]), params, torch.tensor([total]))
    log_p.sum().backward()
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("log_theta", [-8.0, -2.0, 0.0, 4.0, 7.0, 10.0])
@pytest.mark.parametrize("count", [0.0, 1.0, 20.0, 500.0])
def test_single_precision_keeps_a_count_within_a_hundredth_of_a_nat(log_theta: float, count: float) -> None:
    """Genes with little overdispersion have a large theta, where differences of log-gammas cancel."""
    likelihood = with_theta(lk.NegativeBinomial, log_theta)
    mean = np.float32(max(1.0, 0.9 * count))
    found = float(likelihood.log_prob(torch.tensor([[count]]), torch.zeros(1, 1), torch.tensor([mean])).detach())
    theta = np.exp(log_theta)
    assert found == pytest.approx(stats.nbinom.logpmf(count, theta, theta / (theta + mean)), abs=0.01, rel=1e-4)


def test_poisson_gaussian_mean_stays_on_the_support_where_the_decoder_is_far_below_zero() -> None:
    likelihood = poisson_gaussian(0.05, 0.04)
    means = likelihood.mean(torch.linspace(-50, 0, 200)[:, None])
    assert torch.isfinite(means).all()
    assert float(means.min()) >= -0.05 * 3 / 8 - 1e-3
    assert float(means.max()) < 0.05
    assert (means.diff(dim=0) > -1e-3).all()


@each_likelihood
def test_a_cells_density_does_not_depend_on_the_other_cells(name: str) -> None:
    build, n_outputs, support = SHAPED[name]
    likelihood = build().eval()
    x, size = measurements(support, (9, 3)).float(), size_for(support, 9, torch.float32)
    params = torch.tensor(np.random.default_rng(5).normal(size=(9, n_outputs)), dtype=torch.float32)
    together = likelihood.log_prob(x, params, size).detach()
    alone = [
        likelihood.log_prob(x[i : i + 1], params[i : i + 1], None if size is None else size[i : i + 1]).detach()
        for i in range(9)
    ]
    np.testing.assert_allclose(together, torch.cat(alone), rtol=1e-6, atol=1e-6)


IMAGE_LIKELIHOODS = ["gaussian", "student_t", "bernoulli", "continuous_bernoulli", "discretized_logistic"]


@pytest.mark.parametrize("name", [*IMAGE_LIKELIHOODS, "poisson_gaussian"])
@pytest.mark.parametrize("size", [(6, 7), (3, 6, 7)], ids=["2d", "3d"])
def test_pixels_outside_the_mask_do_not_count(name: str, size: tuple[int, ...]) -> None:
    build, n_outputs, support = SHAPED[name]
    likelihood = build().eval()
    x = measurements(support, (4, 3, *size)).float()
    params = torch.randn(4, n_outputs, *size, generator=torch.Generator().manual_seed(1))
    mask = (torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    elsewhere = torch.where(mask.bool(), x, measurements(support, (4, 3, *size)).float().flip(0))
    shifted = torch.where(mask.bool(), params, params * 3 + 1)
    inside = likelihood.log_prob(x, params, mask=mask).detach()
    np.testing.assert_array_equal(inside, likelihood.log_prob(elsewhere, shifted, mask=mask).detach())
    complement = likelihood.log_prob(x, params, mask=1 - mask).detach()
    np.testing.assert_allclose(inside + complement, likelihood.log_prob(x, params).detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "poisson_gaussian"])
def test_pixels_outside_the_mask_do_not_move_the_tracked_variance(name: str) -> None:
    mask = torch.zeros(4, 1, 6, 6)
    mask[:, :, 2:5, 1:4] = 1
    x, params = measurements("unit", (4, 3, 6, 6)).float(), torch.full((4, 3, 6, 6), 0.4)
    variances = []
    for outside in (0.0, 0.9):
        likelihood = SHAPED[name][0]().train()
        likelihood.log_prob(torch.where(mask.bool(), x, outside), params, mask=mask)
        variances.append(likelihood.variance.clone())
    np.testing.assert_array_equal(variances[0], variances[1])


def test_gaussian_variance_converges_to_the_mean_squared_residual() -> None:
    rng = np.random.default_rng(0)
    likelihood = lk.Gaussian(2).train()
    sd = np.array([0.2, 3.0])[:, None]
    for _ in range(400):
        x = torch.tensor(rng.normal(size=(64, 2, 30)) * sd, dtype=torch.float32)
        likelihood.log_prob(x, torch.zeros(64, 2, 30))
    np.testing.assert_allclose(likelihood.variance, sd.ravel() ** 2, rtol=0.02)


def test_first_tracked_variance_is_that_of_the_first_batch() -> None:
    likelihood = lk.Gaussian(1).train()
    likelihood.log_prob(torch.full((8, 1), 3.0), torch.zeros(8, 1))
    assert float(likelihood.variance) == pytest.approx(9.0)


def test_tracked_variance_maximises_the_likelihood_of_its_batch() -> None:
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) * 0.6
    likelihood = lk.Gaussian(1).train()
    likelihood.log_prob(x, torch.zeros(50, 1))
    best = likelihood.eval().log_prob(x, torch.zeros(50, 1)).sum()
    for factor in (0.9, 1.1):
        other = gaussian(float(likelihood.variance) * factor).eval()
        assert other.log_prob(x, torch.zeros(50, 1)).sum() < best


@pytest.mark.parametrize("name", ["gaussian", "poisson_gaussian"])
def test_tracked_variance_does_not_change_in_evaluation(name: str) -> None:
    likelihood = SHAPED[name][0]().eval()
    before = {key: value.clone() for key, value in likelihood.state_dict().items()}
    likelihood.log_prob(torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5))
    for key, value in likelihood.state_dict().items():
        assert torch.equal(value, before[key])


def test_perfect_reconstruction_stops_at_the_floor_of_sigma() -> None:
    likelihood = lk.Gaussian(1, floor=0.01).train()
    x = torch.rand(4, 1, 5, 5)
    log_p = likelihood.log_prob(x, x)
    assert float(likelihood.variance) == pytest.approx(1e-4)
    assert torch.isfinite(log_p).all()


def test_expected_counts_sum_to_the_library_size_and_to_one_without_it() -> None:
    scores, size = torch.randn(5, 3), torch.tensor([0.0, 1.0, 10.0, 1e3, 1e5])
    likelihood = lk.NegativeBinomial(3)
    np.testing.assert_allclose(likelihood.mean(scores, size).sum(1).detach(), size, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(likelihood.mean(scores).sum(1).detach(), 1.0, rtol=1e-6)


@each_likelihood
def test_the_same_seed_gives_the_same_draws(name: str) -> None:
    build, n_outputs, support = SHAPED[name]
    likelihood = build()
    params, size = torch.zeros(20, n_outputs), size_for(support, 20, torch.float32)
    with torch.no_grad():
        first, second, other = (likelihood.sample(params, size, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (20, 3)
