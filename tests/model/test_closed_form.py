"""A linear decoder with normal noise is probabilistic PCA, whose density of a cell is known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import stats
from torch import Tensor, nn

import latentcell as lc
from latentcell.cells.batches import Batch
from latentcell.model.module import VAEModule, importance_nll
from latentcell.model.objectives import ELBO, Posterior
from latentcell.model.schema import Schema
from latentcell.model.settings import Settings

N, F, D = 40, 6, 2
SIGMA = 0.5


class LinearNetwork(nn.Module):
    """Decoder W z + b and its exact posterior (diagonal, as the columns of W are orthogonal), widened at will."""

    def __init__(self, weight: Tensor, offset: Tensor, sigma: float, widen: float = 1.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(weight), nn.Parameter(offset)
        precision = 1 + weight.square().sum(0) / sigma**2
        self.register_buffer("gain", weight / sigma**2 / precision)
        self.register_buffer("log_var", -precision.log() + 2 * np.log(widen))

    def encode(self, x: Tensor, covariates: Tensor | None = None) -> Posterior:
        mu = (x - self.offset) @ self.gain
        return Posterior(mu, self.log_var.expand_as(mu))

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        return z @ self.weight.T + self.offset


def linear_gaussian(widen: float = 1.0) -> tuple[VAEModule, Batch, np.ndarray]:
    """Module, cells drawn from it and the exact log p of each cell."""
    rng = np.random.default_rng(0)
    weight = np.linalg.qr(rng.normal(size=(F, D)))[0] * np.array([2.0, 1.0])
    offset = rng.normal(size=F)
    x = rng.normal(size=(N, D)) @ weight.T + offset + SIGMA * rng.normal(size=(N, F))
    exact = stats.multivariate_normal(offset, weight @ weight.T + SIGMA**2 * np.eye(F)).logpdf(x)
    module = VAEModule(_schema(), "gaussian", None, D, 4)
    module.network = LinearNetwork(torch.tensor(weight), torch.tensor(offset), SIGMA, widen)
    module.likelihood.variance.fill_(SIGMA**2)
    batch = Batch(torch.tensor(x), None, None, None, np.arange(N))
    return module.double().eval(), batch, exact


def _schema() -> Schema:
    return Schema(
        modality="profiles",
        layer=None,
        names=[f"f{i}" for i in range(F)],
        shape=(F,),
        location=[0.0] * F,
        scale=[1.0] * F,
        clip=False,
        orientation="as_is",
        masked=False,
        batch_key=None,
        batch_levels=[],
        batch_shares=[],
        library_size=None,
        grey_levels=None,
    )


def expected_elbo(module: VAEModule, batch: Batch) -> np.ndarray:
    """Exact expectation of the bound: log p(x | z) is quadratic in z, so sigma points integrate it exactly."""
    posterior = module.network.encode(batch.x)
    sd = (0.5 * posterior.log_var).exp()
    steps = np.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).double()
    log_px = torch.stack([module.log_likelihood(batch, posterior.mu + sd * step) for step in steps]).mean(0)
    terms = ELBO(warmup=0)(log_px, posterior, posterior.mu, N, 0)
    return terms.elbo.detach().numpy()


def test_elbo_with_the_exact_posterior_is_the_exact_log_density() -> None:
    module, batch, exact = linear_gaussian()
    np.testing.assert_allclose(expected_elbo(module, batch), exact, rtol=1e-6)


def test_single_draw_elbo_averages_to_the_exact_log_density() -> None:
    module, batch, exact = linear_gaussian()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = []
        for _ in range(2000):
            log_px, posterior, _ = module(batch, generator)
            draws.append((log_px - posterior.kl().sum(1)).mean().item())
    assert np.mean(draws) == pytest.approx(exact.mean(), abs=4 * np.std(draws) / np.sqrt(len(draws)))


@pytest.mark.parametrize("n_samples", [1, 7])
def test_importance_nll_with_the_exact_posterior_is_exact_with_every_draw_effective(n_samples: int) -> None:
    module, batch, exact = linear_gaussian()
    nll, ess = importance_nll(module, [batch], n_samples, np.random.default_rng(0))
    np.testing.assert_allclose(-nll, exact, rtol=1e-6)
    np.testing.assert_allclose(ess, n_samples, rtol=1e-6)


def test_elbo_with_a_wrong_posterior_lies_below_by_its_kl_divergence() -> None:
    module, batch, exact = linear_gaussian(widen=2.0)
    gap = exact - expected_elbo(module, batch)
    np.testing.assert_allclose(gap, D * (0.5 * (4 - 1) - np.log(2)), rtol=1e-6)


def test_importance_nll_approaches_the_exact_density_as_draws_are_added() -> None:
    module, batch, exact = linear_gaussian(widen=2.0)
    errors, shares = [], []
    for n_samples in (1, 10, 100, 1000):
        nll, ess = importance_nll(module, [batch], n_samples, np.random.default_rng(0))
        errors.append(abs(float((nll + exact).mean())))
        shares.append(float(ess.mean()) / n_samples)
    assert errors[0] > 5 * errors[2] > 0
    assert errors[3] < 0.02
    # for widened normal weights the effective share tends to (sqrt(2 - 1/4) / 2)^D, here 0.44
    assert shares[3] == pytest.approx((np.sqrt(2 - 0.25) / 2) ** D, abs=0.02)


def test_importance_nll_weighs_cells_however_they_are_batched() -> None:
    module, batch, exact = linear_gaussian()
    parts = [replace(batch, x=batch.x[rows], index=batch.index[rows]) for rows in (slice(0, 3), slice(3, N))]
    nll, _ = importance_nll(module, parts, 2, np.random.default_rng(0))
    np.testing.assert_allclose(-nll, exact, rtol=1e-6)


def test_a_trained_vae_reaches_the_exact_density_of_held_out_cells() -> None:
    rng = np.random.default_rng(1)
    weight = np.linalg.qr(rng.normal(size=(F, D)))[0] * np.array([2.0, 1.2])
    x = rng.normal(size=(3000, D)) @ weight.T + SIGMA * rng.normal(size=(3000, F)) + 3
    exact = stats.multivariate_normal(np.full(F, 3.0), weight @ weight.T + SIGMA**2 * np.eye(F)).logpdf(x[2000:])
    cells = AnnData(x.astype(np.float32))
    model = lc.VAE(n_latent=2, width=32).fit(
        cells[:2000], epochs=40, settings=Settings(batch_size=64, learning_rate=5e-3, threads=1), rng=0
    )
    in_stored_units = np.log(model.schema_.scale).sum()
    elbo = model.elbo(cells[2000:])["elbo"].mean() - in_stored_units
    nll = model.nll(cells[2000:], n_samples=50)
    assert elbo == pytest.approx(exact.mean(), abs=0.2)
    assert -nll["nll"].mean() - in_stored_units == pytest.approx(exact.mean(), abs=0.12)
    assert elbo - 0.03 < -nll["nll"].mean() - in_stored_units
    assert nll["ess"].median() > 25
    assert model.report_["n_active"] == 2
