"""Adam and the norm of a gradient, over flat arrays."""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.float32 import compiled, on_threads

_F = np.float32
# values that one thread takes at a time
_CHUNK = 16384


@on_threads
def sum_of_squares(gradient):
    """Sum of squares, in chunks whose sums are added in double precision."""
    sums = np.empty((gradient.size + _CHUNK - 1) // _CHUNK, dtype=np.float64)
    for chunk in prange(sums.size):
        sums[chunk] = _squares(gradient[chunk * _CHUNK : (chunk + 1) * _CHUNK])
    return sums.sum()


@compiled
def _squares(gradient):
    total = _F(0)
    for i in range(gradient.size):
        total += gradient[i] * gradient[i]
    return total


@on_threads
def adam(weights, gradient, first, second, rates):
    """One step of Adam; `rates` are those of the moments, the scale of the gradient, step size, eps and correction."""
    for chunk in prange((weights.size + _CHUNK - 1) // _CHUNK):
        part = slice(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        _adam(weights[part], gradient[part], first[part], second[part], rates)


@compiled
def _adam(weights, gradient, first, second, rates):
    beta1, beta2, scale, step, eps, correction = rates
    for i in range(weights.size):
        g = gradient[i] * scale
        m = first[i] + (g - first[i]) * (_F(1) - beta1)
        v = beta2 * second[i] + (_F(1) - beta2) * g * g
        first[i] = m
        second[i] = v
        weights[i] -= step * m / (np.sqrt(v) * correction + eps)
