"""Likelihoods at extremes, under masks, and their tracked noise levels; gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from noises import WIDTH, gaussian, poisson_gaussian, with_theta
from scipy import stats
from torch import Tensor

from latentcell.model import likelihoods as lk

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
