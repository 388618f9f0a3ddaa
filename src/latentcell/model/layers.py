"""Fully connected layers with what stands between them, as one step of differentiation.

At the sizes of models of cells, starting the many small operators of such layers takes longer than their arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentcell import kernels

_LOWEST = torch.iinfo(torch.int64).min
_EMPTY = np.empty((0, 0), dtype=np.float32)
_NO_BITS = np.empty((1, 0), dtype=np.int16)


class NormSiLU(nn.Module):
    """Layer normalisation (Ba et al. 2016) and SiLU.

    LayerNorm, not BatchNorm: a cell's code must not depend on the other cells of its batch.

    Parameters
    ----------
    width
        Number of units.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``(n, width)``."""
        return F.silu(F.layer_norm(x, x.shape[1:], self.weight, self.bias))


class Layers(nn.Sequential):
    """`NormSiLU` and linear layers, one after another.

    Parameters
    ----------
    layers
        The layers in order.
    dropout
        Share of the units of each `NormSiLU` set to zero at random in training, the others scaled up by as much.
    """

    def __init__(self, *layers: nn.Module, dropout: float = 0.0) -> None:
        super().__init__(*layers)
        self.dropout = dropout
        self._ordered = tuple(self.parameters())
        self._plan = _plan(layers)
        self._n_units = sum(len(layer.bias) for layer in layers if isinstance(layer, NormSiLU))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(n, k)`` from ``(n, m)``."""
        bits, (lowest, factor) = self._dropped(x)
        if kernels.in_use(x.device, x.dtype):
            return _Layers.apply(x, self._plan, bits, (lowest, factor), *self._ordered)
        at = 0
        for layer in self:
            x = layer(x)
            if bits is not None and isinstance(layer, NormSiLU):
                x = x * (bits[:, at : at + x.shape[1]] >= lowest) * factor
                at += x.shape[1]
        return x

    def _dropped(self, x: Tensor) -> tuple[Tensor | None, tuple[int, float]]:
        """Random bits for each unit of a `NormSiLU`, the lowest that keep it, and the factor of those kept."""
        n = len(x) * self._n_units
        if not (self.training and self.dropout and n):
            return None, (0, 1.0)
        # 16 bits per unit take a third of the time of the floats that PyTorch's dropout draws
        words = torch.empty(math.ceil(n / 4), dtype=torch.int64, device=x.device).random_(_LOWEST, None)
        lowest, factor = round(self.dropout * 2**16) - 2**15, 1 / (1 - self.dropout)
        return words.view(torch.int16)[:n].view(len(x), self._n_units), (lowest, factor)


def _plan(layers: Sequence[nn.Module]) -> np.ndarray:
    """Kind, sizes and places of each layer, as `latentcell.kernels.layers` reads them."""
    rows, flat, kept, bits, outputs, vectors = [], 0, 0, 0, 0, 0
    for layer in layers:
        linear = isinstance(layer, nn.Linear)
        n_in, n_out = reversed(layer.weight.shape) if linear else (len(layer.bias),) * 2
        rows.append((linear, n_in, n_out, flat, kept, bits, outputs, vectors))
        flat += sum(each.numel() for each in layer.parameters())
        # an activation also keeps 1 / SD
        kept += n_in + (not linear)
        bits += 0 if linear else n_out
        outputs += n_out if linear else 0
        vectors += n_out if linear else 2 * n_out
    return np.array(rows, dtype=np.int64)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plan: np.ndarray,
        bits: Tensor | None,
        dropout: tuple[int, float],
        *parameters: Tensor,
    ) -> Tensor:
        from latentcell.kernels import layers

        flat = torch.cat([each.detach().reshape(-1) for each in parameters]).numpy()
        drawn = (_NO_BITS if bits is None else bits.numpy(), (np.int16(dropout[0]), np.float32(dropout[1])))
        needed = any(ctx.needs_input_grad)
        kept = np.empty((len(x), plan[-1, layers.KEPT] + plan[-1, layers.N_IN] + 1), np.float32) if needed else _EMPTY
        turned, out = np.empty_like(flat), torch.empty(len(x), int(plan[-1, layers.N_OUT]))
        kernels.share_threads()
        layers.turn(flat, plan, turned)
        layers.forward(x.detach().contiguous().numpy(), flat, turned, plan, *drawn, kept, out.numpy())
        ctx.kept, ctx.sizes, ctx.width = (flat, plan, *drawn, kept), [each.shape for each in parameters], x.shape[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from latentcell.kernels import layers

        flat, plan, *_ = ctx.kept
        outputs = np.empty(len(gradient) * int((plan[:, layers.N_OUT] * plan[:, layers.LINEAR]).sum()), np.float32)
        d_x, d_flat = torch.empty(len(gradient), ctx.width), torch.empty(len(flat))
        kernels.share_threads()
        layers.backward(gradient.contiguous().numpy(), *ctx.kept, outputs, d_x.numpy(), d_flat.numpy())
        parts = d_flat.split([math.prod(size) for size in ctx.sizes])
        return d_x, None, None, None, *(part.view(size) for part, size in zip(parts, ctx.sizes, strict=True))
