"""The two wide layers of a model of counts: from counts to the first hidden layer, and from the last one to log p.

Both know where the zeros are. On a CPU they run as compiled loops with analytic gradients (`latentcell.kernels`), else
as plain torch operators with the same results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentcell import kernels
from latentcell.cells.counts import Counts
from latentcell.model import likelihoods as lk

_EPS = 1e-8


def lay_out(layer: nn.Linear) -> None:
    """Keep a layer's weights input by input in memory, as `log1p_linear` and `log_prob` read and write them."""
    layer.weight.data = layer.weight.data.t().contiguous().t()


def log1p_linear(x: Counts, layer: nn.Linear) -> Tensor:
    """``layer(log(1 + x))``, ``(n, h)``."""
    if kernels.in_use(layer.weight.device, layer.weight.dtype):
        return _Log1pLinear.apply(layer.weight, layer.bias, x)
    return layer(torch.log1p(x.dense()))


def log_prob(likelihood: lk.Likelihood, x: Counts, hidden: Tensor, layer: nn.Linear, size: Tensor | None) -> Tensor:
    """Log likelihood of each cell in nats, ``(n,)``, whose parameters are ``layer(hidden)``."""
    kind = _KERNELS.get(type(likelihood))
    if kind is None or size is None or not kernels.in_use(hidden.device, hidden.dtype):
        return likelihood.log_prob(x.dense(), layer(hidden), size)
    log_theta = likelihood.log_theta.clamp(*lk.LOG_THETA) if isinstance(likelihood, lk.Dispersed) else None
    return _LogProb.apply(hidden, layer.weight, layer.bias, log_theta, x, size.clamp(min=_EPS), kind)


class _Log1pLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: Counts) -> Tensor:
        from latentcell.kernels import sparse

        starts, columns, values = _arrays(x)
        logged = np.empty_like(values)
        out = torch.empty(len(x), len(bias))
        kernels.share_threads()
        sparse.log1p_of(starts, values, logged)
        sparse.product(starts, columns, logged, _array(weight.t()), out.numpy())
        ctx.rows, ctx.n_genes = (starts, columns, logged), weight.shape[1]
        return out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        from latentcell.kernels import sparse

        starts, columns, logged = ctx.rows
        ends = np.empty(ctx.n_genes + 1, dtype=np.int64)
        rows, by_gene = np.empty_like(columns), np.empty_like(logged)
        out = torch.empty(ctx.n_genes, gradient.shape[1])
        sparse.transpose(starts, columns, logged, ends, rows, by_gene)
        kernels.share_threads()
        sparse.product(ends, rows, by_gene, _array(gradient), out.numpy())
        return out.t(), gradient.sum(0), None


class _LogProb(torch.autograd.Function):
    """Log likelihood of counts from the last hidden layer, with the gradient found on the way.

    The gradient of each cell's log p for the decoder's outputs is kept unweighted; what the cells weigh in the loss
    scales the narrow factors of the products that follow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_theta: Tensor | None,
        x: Counts,
        size: Tensor,
        kind: str,
    ) -> Tensor:
        log_p, scores, d_log_theta = _evaluate(
            hidden, weight, bias, log_theta, x=x, size=size, kind=kind, cell_weight=None
        )
        ctx.save_for_backward(hidden, weight, bias, log_theta, size, scores, d_log_theta)
        ctx.x, ctx.kind = x, kind
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, log_theta, size, scores, d_log_theta = ctx.saved_tensors
        column = gradient.unsqueeze(1)
        d_hidden = (scores @ weight).mul_(column)
        d_weight = ((hidden * column).t() @ scores).t()
        d_bias = gradient @ scores
        if d_log_theta is not None:
            if bool((gradient == gradient[0]).all()):
                d_log_theta = d_log_theta * gradient[0]
            else:
                *_, d_log_theta = _evaluate(
                    hidden, weight, bias, log_theta, x=ctx.x, size=size, kind=ctx.kind, cell_weight=gradient
                )
        return d_hidden, d_weight, d_bias, d_log_theta, None, None, None


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_theta: Tensor | None,
    *,
    x: Counts,
    size: Tensor,
    kind: str,
    cell_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log p ``(n,)``, its gradient for the decoder's outputs, and the sum over cells of that for log theta."""
    from latentcell.kernels import counts

    # the kernels add the bias: here it would cost a pass of its own
    scores = hidden @ weight.t()
    log_p = torch.empty(len(x))
    kernels.share_threads()
    if log_theta is None:
        counts.poisson(scores.numpy(), _array(bias), _arrays(x), _array(size), log_p.numpy())
        return log_p, scores, None
    theta = _array(log_theta.exp())
    genes, rising = np.empty((2, len(theta)), np.float32), np.empty((2, len(theta), counts.TABLE), np.float32)
    counts.rise(theta, genes, rising)
    d_log_theta = torch.empty(counts.BLOCKS, len(theta))
    each = _array(torch.ones(len(x)) if cell_weight is None else cell_weight)
    kernel = counts.zero_inflated if kind == "zinb" else counts.negative_binomial
    measured = (_arrays(x), _array(size), genes, rising, each)
    kernel(scores.numpy(), _array(bias), *measured, log_p.numpy(), d_log_theta.numpy())
    return log_p, scores, d_log_theta.sum(0)


_KERNELS: dict[type[lk.Likelihood], str] = {
    lk.NegativeBinomial: "nb",
    lk.ZeroInflatedNegativeBinomial: "zinb",
    lk.Poisson: "poisson",
}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().contiguous().numpy()


def _arrays(x: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x.starts.numpy(), x.columns.numpy(), x.values.numpy()
