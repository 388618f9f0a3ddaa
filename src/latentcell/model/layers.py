"""Fully connected layers with what stands between them, as one step of differentiation.

At the sizes of models of cells, starting the many small operators of such layers takes longer than their arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentcell import kernels

_LOWEST = torch.iinfo(torch.int64).min


class NormSiLU(nn.Module):
    """Layer normalisation (Ba et al. 2016), SiLU, and in training dropout.

    LayerNorm, not BatchNorm: a cell's code must not depend on the other cells of its batch.

    Parameters
    ----------
    width
        Number of units.
    dropout
        Share of units set to zero at random in training, the others scaled up by as much.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``(n, width)``."""
        out = F.silu(F.layer_norm(x, x.shape[1:], self.weight, self.bias))
        bits, (lowest, factor) = self.dropped(x)
        return out if bits is None else out * (bits >= lowest) * factor

    def dropped(self, x: Tensor) -> tuple[Tensor | None, tuple[int, float]]:
        """Random bits for each unit of `x`, the lowest that keep it, and the factor of those kept."""
        if not (self.training and self.dropout):
            return None, (0, 1.0)
        # 16 bits per unit take a third of the time of the floats that PyTorch's dropout draws
        words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device).random_(_LOWEST, None)
        lowest, factor = round(self.dropout * 2**16) - 2**15, 1 / (1 - self.dropout)
        return words.view(torch.int16)[: x.numel()].view(x.shape), (lowest, factor)


class Layers(nn.Sequential):
    """`NormSiLU` and linear layers, one after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._ordered = tuple(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(n, k)`` from ``(n, m)``."""
        if kernels.in_use(x.device, x.dtype):
            return _Layers.apply(x, tuple(self), *self._ordered)
        return super().forward(x)


class _Activated(NamedTuple):
    """What the gradient of a `NormSiLU` needs, as arrays."""

    weight: np.ndarray
    bias: np.ndarray
    bits: np.ndarray
    dropout: tuple[np.int16, np.float32]
    normed: np.ndarray
    inverse_sd: np.ndarray


_NO_BITS = np.empty((0, 0), dtype=np.int16)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[nn.Module], *parameters: Tensor) -> Tensor:
        kernels.share_threads()
        ctx.kept = []
        for layer in layers:
            if isinstance(layer, NormSiLU):
                x, kept = _activate(layer, x)
                ctx.kept.append(kept)
            elif isinstance(layer, nn.Linear):
                ctx.kept.append((x, layer.weight))
                x = F.linear(x, layer.weight, layer.bias)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from latentcell.kernels import activation

        kernels.share_threads()
        gradients: list[Tensor] = []
        owned = False
        for kept in reversed(ctx.kept):
            if isinstance(kept, _Activated):
                if not owned or not gradient.is_contiguous():
                    gradient = gradient.clone(memory_format=torch.contiguous_format)
                sums = torch.empty(2, activation.BLOCKS, gradient.shape[1])
                activation.backward(gradient.numpy(), *kept, sums.numpy())
                d_weight, d_bias = sums.sum(1)
            else:
                x, weight = kept
                d_weight, d_bias = gradient.t() @ x, gradient.sum(0)
                gradient = gradient @ weight.detach()
            owned = True
            gradients += [d_bias, d_weight]
        return gradient, None, *reversed(gradients)


def _activate(layer: NormSiLU, x: Tensor) -> tuple[Tensor, _Activated]:
    from latentcell.kernels import activation

    x = x.detach().contiguous()
    bits, (lowest, factor) = layer.dropped(x)
    normed, out = torch.empty_like(x), torch.empty_like(x)
    kept = _Activated(
        layer.weight.detach().numpy(),
        layer.bias.detach().numpy(),
        _NO_BITS if bits is None else bits.numpy(),
        (np.int16(lowest), np.float32(factor)),
        normed.numpy(),
        np.empty(len(x), dtype=np.float32),
    )
    activation.forward(x.numpy(), *kept, out.numpy())
    return out, kept
