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
        self.width = width
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``(n, width)``."""
        return F.silu(F.layer_norm(x, x.shape[1:], self.weight, self.bias))


class Layers(nn.Module):
    """`NormSiLU` and linear layers, one after another, with all their parameters side by side in one tensor.

    Parameters
    ----------
    layers
        The layers in order; their values are taken as the first.
    dropout
        Share of the units of each `NormSiLU` set to zero at random in training, the others scaled up by as much.
    """

    def __init__(self, *layers: NormSiLU | nn.Linear, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self._plan = _plan(layers)
        self._n_units = sum(layer.width for layer in layers if isinstance(layer, NormSiLU))
        self.values = nn.Parameter(
            torch.cat([each.detach().reshape(-1) for layer in layers for each in layer.parameters()])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(n, k)`` from ``(n, m)``."""
        bits, (lowest, factor) = self._dropped(x)
        if kernels.in_use(x.device, x.dtype):
            return _Layers.apply(x, self.values, self._plan, bits, (lowest, factor))
        for linear, n_in, n_out, at, _, first_bit, *_ in self._plan.tolist():
            first = n_in * n_out if linear else n_in
            weight, bias = self.values[at : at + first + n_out].split([first, n_out])
            if linear:
                x = F.linear(x, weight.view(n_out, n_in), bias)
                continue
            x = F.silu(F.layer_norm(x, (n_in,), weight, bias))
            if bits is not None:
                x = x * (bits[:, first_bit : first_bit + n_in] >= lowest) * factor
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


def _plan(layers: Sequence[NormSiLU | nn.Linear]) -> np.ndarray:
    """Kind, sizes and places of each layer, as `latentcell.kernels.layers` reads them."""
    rows, flat, kept, bits, outputs, vectors = [], 0, 0, 0, 0, 0
    for layer in layers:
        if isinstance(layer, nn.Linear):
            n_in, n_out = layer.in_features, layer.out_features
            rows.append((1, n_in, n_out, flat, kept, bits, outputs, vectors))
            kept, outputs, vectors = kept + n_in, outputs + n_out, vectors + n_out
        else:
            width = layer.width
            rows.append((0, width, width, flat, kept, bits, outputs, vectors))
            # the last place is that of 1 / SD
            kept, bits, vectors = kept + width + 1, bits + width, vectors + 2 * width
        flat += sum(each.numel() for each in layer.parameters())
    return np.array(rows, dtype=np.int64)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, plan: np.ndarray, bits: Tensor | None, dropout: tuple[int, float]
    ) -> Tensor:
        from latentcell.kernels import layers

        flat, last = values.detach().numpy(), plan[-1]
        drawn = (_NO_BITS if bits is None else bits.numpy(), (np.int16(dropout[0]), np.float32(dropout[1])))
        needed = any(ctx.needs_input_grad)
        kept = np.empty((len(x), last[layers.KEPT] + last[layers.N_IN] + 1), np.float32) if needed else _EMPTY
        turned, out = np.empty_like(flat), torch.empty(len(x), int(last[layers.N_OUT]))
        kernels.share_threads()
        layers.turn(flat, plan, turned)
        layers.forward(x.detach().contiguous().numpy(), flat, turned, plan, *drawn, kept, out.numpy())
        ctx.save_for_backward(values)
        ctx.rest, ctx.width = (plan, *drawn, kept), x.shape[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from latentcell.kernels import layers

        (values,), (plan, bits, dropout, kept) = ctx.saved_tensors, ctx.rest
        outputs = np.empty(len(gradient) * int((plan[:, layers.N_OUT] * plan[:, layers.LINEAR]).sum()), np.float32)
        d_x, d_values = torch.empty(len(gradient), ctx.width), torch.empty_like(values)
        kernels.share_threads()
        given = (gradient.contiguous().numpy(), values.detach().numpy(), plan, bits, dropout, kept)
        layers.backward(*given, outputs, d_x.numpy(), d_values.numpy())
        return d_x, d_values, None, None, None


class GroupNormSiLU(nn.GroupNorm):
    """Group normalisation (Wu and He 2018) and SiLU of images."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``(n, channels, ...)``."""
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        if kernels.in_use(x.device, x.dtype) and x.is_contiguous(memory_format=layout):
            return _GroupNormSiLU.apply(x, self.weight, self.bias, self.num_groups)
        return F.silu(super().forward(x))


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, n_groups: int) -> Tensor:
        from latentcell.kernels import groups

        moments = np.empty((len(x), 2, groups.places(len(weight))), dtype=np.float32)
        out = torch.empty_like(x)
        kernels.share_threads()
        groups.forward(_by_cell(x), weight.detach().numpy(), bias.detach().numpy(), n_groups, moments, _by_cell(out))
        ctx.save_for_backward(x, weight, bias)
        ctx.n_groups, ctx.moments = n_groups, moments
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from latentcell.kernels import groups

        x, weight, bias = ctx.saved_tensors
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        d_x = torch.empty_like(x)
        sums = torch.empty(2, groups.BLOCKS, ctx.moments.shape[2])
        kernels.share_threads()
        groups.backward(
            _by_cell(gradient.contiguous(memory_format=layout)),
            _by_cell(x),
            weight.detach().numpy(),
            bias.detach().numpy(),
            ctx.n_groups,
            ctx.moments,
            _by_cell(d_x),
            sums.numpy(),
        )
        d_weight, d_bias = sums.view(2, -1, len(weight)).sum(1)
        return d_x, d_weight, d_bias, None


def _by_cell(x: Tensor) -> np.ndarray:
    """Images in channels-last layout as ``(n, positions * channels)``, without a copy."""
    return x.detach().movedim(1, -1).reshape(len(x), -1).numpy()
