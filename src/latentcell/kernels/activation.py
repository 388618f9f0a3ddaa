"""Layer normalisation, SiLU and dropout in one pass, and the gradient in another."""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.float32 import compiled, exp, on_threads

_F = np.float32
_EPS = _F(1e-5)
# blocks of rows summed apart, whatever the number of threads
BLOCKS = 16


@compiled
def normalise(x, out):
    """Fill `out` with `x` at mean 0 and SD 1; return 1 / SD."""
    width = x.size
    mean = _F(0)
    for k in range(width):
        mean += x[k]
    mean /= width
    variance = _F(0)
    for k in range(width):
        variance += (x[k] - mean) * (x[k] - mean)
    inverse_sd = _F(1) / np.sqrt(variance / width + _EPS)
    for k in range(width):
        out[k] = (x[k] - mean) * inverse_sd
    return inverse_sd


@compiled
def silu(x, scale, shift, out):
    """``out = y / (1 + exp(-y))`` with ``y = x * scale + shift``."""
    for k in range(x.size):
        y = x[k] * scale[k] + shift[k]
        out[k] = y / (_F(1) + exp(-y))


@on_threads
def forward(x, weight, bias, bits, dropout, normed, inverse_sd, out):
    """``out = dropout(silu(layer_norm(x)))``; keeps the normalised rows and 1 / SD for `backward`.

    `dropout` are the lowest of `bits` that keep a unit and the factor of those kept; without bits nothing is dropped.
    """
    n = len(x)
    for block in prange(BLOCKS):
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            inverse_sd[i] = normalise(x[i], normed[i])
            silu(normed[i], weight, bias, out[i])
            if bits.size:
                _drop(out[i], bits[i], dropout)


@compiled
def _drop(values, bits, dropout):
    lowest, factor = dropout
    for k in range(values.size):
        values[k] = values[k] * factor if bits[k] >= lowest else _F(0)


@on_threads
def backward(gradient, weight, bias, bits, dropout, normed, inverse_sd, sums):
    """Replace `gradient` by that for x; `sums` ``(2, BLOCKS, width)`` takes those for weight and bias."""
    n, width = gradient.shape
    for block in prange(BLOCKS):
        sums[:, block] = 0
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            if bits.size:
                _drop(gradient[i], bits[i], dropout)
            for k in range(width):
                y = normed[i, k] * weight[k] + bias[k]
                s = _F(1) / (_F(1) + exp(-y))
                gradient[i, k] *= s * (_F(1) + y * (_F(1) - s))
            for k in range(width):
                sums[0, block, k] += gradient[i, k] * normed[i, k]
                sums[1, block, k] += gradient[i, k]
            mean, along = _F(0), _F(0)
            for k in range(width):
                gradient[i, k] *= weight[k]
                mean += gradient[i, k]
                along += gradient[i, k] * normed[i, k]
            mean, along = mean / width, along / width
            for k in range(width):
                gradient[i, k] = inverse_sd[i] * (gradient[i, k] - mean - normed[i, k] * along)
