"""What the codes of many cells are like together: total correlation, moments, distance from the prior, dependence.

Pure functions of tensors, differentiable, on which objectives rest. Codes are `z` ``(n, d)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)
# values of the pairwise density held at once
_BLOCK_VALUES = 250_000
# squared widths of the kernel, in units of the prior's mean squared distance 2 d: near, middle and far structure
_KERNEL_WIDTHS = (0.125, 0.5, 2.0)


class Decomposition(NamedTuple):
    """Parts of the mean KL to N(0, I) in nats (Chen et al. 2018, eq. 2); they sum to it in expectation.

    Attributes
    ----------
    index_code
        Mutual information between cell and code.
    total_correlation
        KL of the aggregate posterior from the product of its marginals: 0 where dimensions are independent.
    dimension_wise
        KL of the marginals from the prior, summed over dimensions.
    """

    index_code: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


def stratified_log_weights(n: int, n_train: int) -> Tensor:
    """Log weights ``(n, n)`` of minibatch stratified sampling (Chen et al. 2018, app. C.2), rows summing to 1.

    Row i estimates the aggregate posterior at the code of cell i from a batch of n of `n_train` cells: the cell itself
    stands for 1 / N, one other for (N - M) / (N M) and each of the rest for 1 / M, where M = n - 1.
    """
    others, n_train = n - 1, max(n, n_train)
    weights = torch.full((n, n), 1 / others)
    row = torch.arange(n)
    weights[row, row] = 1 / n_train
    weights[row, (row + 1) % n] = (n_train - others) / (n_train * others)
    return weights.log()


def decomposition(z: Tensor, mu: Tensor, log_var: Tensor, n_train: int) -> Decomposition:
    """Estimate the parts of the KL from a batch by minibatch stratified sampling.

    Biased where posteriors are narrow and the batch is small: the code of a cell is then explained by no other cell.

    Parameters
    ----------
    z
        One draw per cell from its posterior N(`mu`, exp(`log_var`)), all ``(n, d)``, n at least 2.
    n_train
        Cells that the aggregate posterior is over.
    """
    n, d = z.shape
    log_weights = stratified_log_weights(n, n_train).to(z)
    step = max(1, _BLOCK_VALUES // (n * d))
    joint, marginals = [], []
    for start in range(0, n, step):
        rows = slice(start, start + step)
        pairwise = _log_normal(z[rows, None], mu, log_var)
        joint.append(torch.logsumexp(pairwise.sum(2) + log_weights[rows], 1))
        marginals.append(torch.logsumexp(pairwise + log_weights[rows, :, None], 1).sum(1))
    log_q, log_product = torch.cat(joint), torch.cat(marginals)
    log_own = _log_normal(z, mu, log_var).sum(1)
    log_prior = -0.5 * (z.square() + _LOG_2PI).sum(1)
    return Decomposition(
        (log_own - log_q).mean(), (log_q - log_product).mean(), (log_product - log_prior).mean()
    )  # fmt: skip


def gaussian_total_correlation(z: Tensor) -> Tensor:
    """Total correlation of codes as if jointly Gaussian, -1/2 log det corr(z), nats; dead dimensions are left out.

    NaN for fewer cells than twice the dimensions, whose correlations are chance.
    """
    alive = z[:, z.var(0) > 1e-8]
    if alive.shape[1] < 2:
        return z.new_zeros(())
    if len(z) < 2 * alive.shape[1]:
        return z.new_full((), math.nan)
    return -0.5 * torch.linalg.slogdet(torch.corrcoef(alive.T))[1]


def off_diagonal_moments(mu: Tensor, log_var: Tensor | None, diagonal: float) -> Tensor:
    """Squared distance of the covariance of codes from the identity (Kumar et al. 2018, eq. 6 and 7).

    Parameters
    ----------
    log_var
        None for DIP-VAE I, the covariance of posterior means; given for DIP-VAE II, that of draws.
    diagonal
        Weight of the squared distance of the variances from 1, relative to that of the covariances from 0.
    """
    covariance = torch.cov(mu.T).reshape(mu.shape[1], mu.shape[1])
    if log_var is not None:
        covariance = covariance + torch.diag(log_var.exp().mean(0))
    variances = covariance.diagonal()
    off = covariance.square().sum() - variances.square().sum()
    return off + diagonal * (variances - 1).square().sum()


def distance_from_prior(z: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between codes and N(0, I), unbiased (Gretton et al. 2012, lemma 6).

    A mean of Gaussian kernels, whose expectations under the prior are known, so that none need be drawn.
    """
    n, d = z.shape
    square = (z[:, None] - z[None]).square().sum(2)
    radius = z.square().sum(1)
    total = z.new_zeros(())
    for share in _KERNEL_WIDTHS:
        width = share * 2 * d  # the kernel is exp(-|a - b|^2 / (2 width))
        among = (torch.exp(-square / (2 * width)).sum() - n) / (n * (n - 1))
        between = (width / (width + 1)) ** (d / 2) * torch.exp(-radius / (2 * (width + 1))).mean()
        total = total + among - 2 * between + (width / (width + 2)) ** (d / 2)
    return total / len(_KERNEL_WIDTHS)


def dependence(a: Tensor, b: Tensor) -> Tensor:
    """Dependence between the rows of two tables ``(n, p)`` and ``(n, q)``, from about 0 to 1.

    The Hilbert-Schmidt independence criterion with Gaussian kernels, unbiased (Song et al. 2012, eq. 5), over the
    geometric mean of its value for each table with itself: 0 in expectation where the tables are independent, which a
    correlation of zero does not promise.
    """
    ours, theirs = _centred_kernel(a), _centred_kernel(b)
    # a table without variation, such as a batch of cells from one plate, depends on nothing
    scale = ((ours * ours).sum() * (theirs * theirs).sum()).clamp_min(1e-12)
    return (ours * theirs).sum() / scale.sqrt()


def _centred_kernel(x: Tensor) -> Tensor:
    """Kernel matrix with zero diagonal, U-centred (Szekely and Rizzo 2014, definition 2)."""
    n = len(x)
    square = (x[:, None] - x[None]).square().sum(2)
    kernel = torch.exp(-square / square.detach().mean().clamp_min(1e-12))
    kernel = kernel - torch.diag(kernel.diagonal())
    rows = kernel.sum(1) / (n - 2)
    centred = kernel - rows[:, None] - rows[None] + kernel.sum() / ((n - 1) * (n - 2))
    return centred - torch.diag(centred.diagonal())


def shuffled_dimensions(z: Tensor, generator: torch.Generator) -> Tensor:
    """Codes with each dimension permuted over cells by itself: draws from the product of the marginals."""
    order = torch.rand(z.shape, generator=generator).argsort(0).to(z.device)
    return z.gather(0, order)


def density_ratio_loss(ours: Tensor, independent: Tensor) -> Tensor:
    """Cross-entropy of telling codes from codes with shuffled dimensions, from logits ``(n, 2)`` of each."""
    zeros = torch.zeros(len(ours), dtype=torch.long, device=ours.device)
    return 0.5 * (F.cross_entropy(ours, zeros) + F.cross_entropy(independent, zeros + 1))


def _log_normal(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * (_LOG_2PI + log_var + (z - mu).square() * torch.exp(-log_var))
