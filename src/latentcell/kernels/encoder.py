"""The whole encoder of counts, cell by cell, for use without gradients: nothing leaves the nearest caches."""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.activation import normalise, silu
from latentcell.kernels.float32 import compiled, on_threads
from latentcell.kernels.sparse import log1p_of

# cells that one thread takes at a time
_CELLS = 32


@on_threads
def encode(x, first, bias, layers, widths, out):
    """Codes of sparse counts: log(1 + x), a linear layer, and after each norm and SiLU another one.

    Parameters
    ----------
    x
        Starts, columns and values of the cells.
    first, bias
        Weights ``(g, h)`` and bias of the first layer.
    layers
        Flat weights of the rest, layer by layer: scale and shift of the norm, weights ``(in, out)``, bias.
    widths
        Inputs of each of the other layers, and outputs of the last.
    out
        ``(n, widths[-1])``.
    """
    starts, columns, values = x
    n, widest = out.shape[0], 0
    for width in widths:
        widest = max(widest, width)
    for part in prange((n + _CELLS - 1) // _CELLS):
        a, b = np.empty(widest, dtype=np.float32), np.empty(widest, dtype=np.float32)
        for i in range(part * _CELLS, min(n, (part + 1) * _CELLS)):
            for k in range(bias.size):
                a[k] = bias[k]
            logged = np.empty(starts[i + 1] - starts[i], dtype=np.float32)
            log1p_of(values[starts[i] : starts[i + 1]], logged)
            _add_sparse(columns[starts[i] : starts[i + 1]], logged, first, a[: bias.size])
            at = 0
            for layer in range(widths.size - 1):
                n_in, n_out = widths[layer], widths[layer + 1]
                normalise(a[:n_in], b[:n_in])
                silu(b[:n_in], layers[at : at + n_in], layers[at + n_in : at + 2 * n_in], a[:n_in])
                at += 2 * n_in
                weights = layers[at : at + n_in * n_out].reshape(n_in, n_out)
                at += n_in * n_out
                _linear(a[:n_in], weights, layers[at : at + n_out], b[:n_out])
                at += n_out
                a, b = b, a
            for k in range(out.shape[1]):
                out[i, k] = a[k]


@compiled
def _add_sparse(columns, values, weights, total):
    # four at a time: the sums are then read and written a quarter as often
    whole = columns.size - columns.size % 4
    for j in range(0, whole, 4):
        c0, c1 = np.uint32(columns[j]), np.uint32(columns[j + 1])
        c2, c3 = np.uint32(columns[j + 2]), np.uint32(columns[j + 3])
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        for k in range(total.size):
            total[k] += v0 * weights[c0, k] + v1 * weights[c1, k] + v2 * weights[c2, k] + v3 * weights[c3, k]
    for j in range(whole, columns.size):
        c = np.uint32(columns[j])
        for k in range(total.size):
            total[k] += values[j] * weights[c, k]


@compiled
def _linear(x, weights, bias, out):
    for k in range(out.size):
        out[k] = bias[k]
    whole = x.size - x.size % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for k in range(out.size):
            out[k] += x0 * weights[i, k] + x1 * weights[i + 1, k] + x2 * weights[i + 2, k] + x3 * weights[i + 3, k]
    for i in range(whole, x.size):
        for k in range(out.size):
            out[k] += x[i] * weights[i, k]
