"""Linear layers, and layer normalisation with SiLU and dropout, one after another for a few rows at a time.

A row's activations are kept side by side in `kept` ``(n, total)`` for the gradient: the inputs of a linear layer, or
the normalised inputs of an activation followed by 1 / SD. `flat` holds all parameters: of a linear layer the weights
``(out, in)`` and the bias, of an activation scale and shift. `plan` has a row for each layer, with the columns named
below.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.float32 import add, compiled, on_threads, scaled_silu, silu_slope

# columns of a plan: 1 for linear layers and 0 for activations, inputs, outputs, and the first place of the layer in
# `flat`, in a row of `kept`, in a row of `bits`, in the outputs of all layers and in their vectors side by side
LINEAR, N_IN, N_OUT, FLAT, KEPT, BITS, OUT, VECTORS = range(8)
_F = np.float32
_EPS = _F(1e-5)
# blocks of rows summed apart, whatever the number of threads
BLOCKS = 16
# rows that one thread takes at a time without a gradient
_ROWS = 32


@compiled
def _add_products(a, b, weights, at, out_a, out_b):
    """``out += x @ weights[:, at : at + out.size]`` for two rows x: each weight is then read once for both."""
    # unsigned, or each place would be checked for counting from the end
    at = np.uint64(at)
    whole = a.size - a.size % 4
    for i in range(0, whole, 4):
        a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
        b0, b1, b2, b3 = b[i], b[i + 1], b[i + 2], b[i + 3]
        for k in range(out_a.size):
            c = at + np.uint64(k)
            w0, w1, w2, w3 = weights[i, c], weights[i + 1, c], weights[i + 2, c], weights[i + 3, c]
            out_a[k] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            out_b[k] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
    for i in range(whole, a.size):
        for k in range(out_a.size):
            out_a[k] += a[i] * weights[i, at + np.uint64(k)]
            out_b[k] += b[i] * weights[i, at + np.uint64(k)]


@compiled
def _normalise(x, out):
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
def _drop(values, bits, dropout):
    lowest, factor = dropout
    for k in range(values.size):
        values[k] = values[k] * factor if bits[k] >= lowest else _F(0)


@compiled
def _split(flat, layer):
    """Parameters of an activation: scale and shift; of a linear layer: weights and bias."""
    first = layer[N_IN] * layer[N_OUT] if layer[LINEAR] else layer[N_IN]
    at = layer[FLAT]
    return flat[at : at + first], flat[at + first : at + first + layer[N_OUT]]


@on_threads
def turn(flat, plan, turned):
    """Fill `turned` with the weights of linear layers as ``(in, out)``, at their places in `flat`."""
    for layer in plan:
        if layer[LINEAR]:
            n_in, n_out, at = layer[N_IN], layer[N_OUT], layer[FLAT]
            for i in prange(n_in):
                for k in range(n_out):
                    turned[at + i * n_out + k] = flat[at + k * n_in + i]


@compiled
def _activated(x, layer, flat, kept, bits, dropout, out):
    scale, shift = _split(flat, layer)
    at, width = layer[KEPT], layer[N_IN]
    kept[at + width] = _normalise(x, kept[at : at + width])
    scaled_silu(kept[at : at + width], scale, shift, out)
    if bits.size:
        _drop(out, bits[layer[BITS] : layer[BITS] + width], dropout)


@on_threads
def forward(x, flat, turned, plan, bits, dropout, kept, out):
    """Fill `out` with the outputs of the last layer, and `kept` with what `backward` needs unless it is empty.

    `dropout` are the lowest of `bits` that keep a unit and the factor of those kept; without bits nothing is dropped.
    """
    n, last = len(x), plan[-1]
    widest, total = max(plan[:, N_IN].max(), plan[:, N_OUT].max()), last[KEPT] + last[N_IN] + 1
    n_blocks = max(BLOCKS, n // _ROWS)
    for block in prange(n_blocks):
        low, high = block * n // n_blocks, (block + 1) * n // n_blocks
        space = kept[low:high] if kept.size else np.empty((high - low, total), dtype=np.float32)
        now, then = np.empty((high - low + 1, widest), dtype=np.float32), np.empty((high - low + 1, widest), np.float32)
        for i in range(low, high):
            now[i - low, : x.shape[1]] = x[i]
        for layer in plan:
            n_in, n_out, at = layer[N_IN], layer[N_OUT], layer[KEPT]
            if layer[LINEAR]:
                _, bias = _split(flat, layer)
                weights = turned[layer[FLAT] : layer[FLAT] + n_in * n_out].reshape(n_in, n_out)
                # a row more than there are: of an odd number the last has company
                for i in range(high - low):
                    then[i, :n_out] = bias
                    if kept.size:
                        space[i, at : at + n_in] = now[i, :n_in]
                for i in range(0, high - low, 2):
                    _add_products(now[i, :n_in], now[i + 1, :n_in], weights, 0, then[i, :n_out], then[i + 1, :n_out])
            else:
                for i in range(high - low):
                    drawn = bits[low + i] if bits.size else bits[0]
                    _activated(now[i, :n_in], layer, flat, space[i], drawn, dropout, then[i, :n_out])
            now, then = then, now
        for i in range(low, high):
            out[i] = now[i - low, : out.shape[1]]


@compiled
def _through_activation(gradient, layer, flat, kept, bits, dropout, sums):
    """Replace the gradient for a row's outputs by that for its inputs; add those for scale and shift to `sums`."""
    scale, shift = _split(flat, layer)
    at, width, place = layer[KEPT], layer[N_IN], layer[VECTORS]
    d_scale, d_shift = sums[place : place + width], sums[place + width : place + 2 * width]
    normed, inverse_sd = kept[at : at + width], kept[at + width]
    if bits.size:
        _drop(gradient, bits[layer[BITS] : layer[BITS] + width], dropout)
    for k in range(width):
        y = normed[k] * scale[k] + shift[k]
        gradient[k] *= silu_slope(y)
    for k in range(width):
        d_scale[k] += gradient[k] * normed[k]
        d_shift[k] += gradient[k]
    mean, along = _F(0), _F(0)
    for k in range(width):
        gradient[k] *= scale[k]
        mean += gradient[k]
        along += gradient[k] * normed[k]
    mean, along = mean / width, along / width
    for k in range(width):
        gradient[k] = inverse_sd * (gradient[k] - mean - normed[k] * along)


@on_threads
def backward(gradient, flat, plan, bits, dropout, kept, outputs, d_x, d_flat):
    """Fill `d_x` and `d_flat` with the gradients for the inputs and the parameters.

    `outputs` ``(n * total,)`` is space for the gradients for the outputs of all layers.
    """
    n = len(gradient)
    widest = max(plan[:, N_IN].max(), plan[:, N_OUT].max())
    sums = np.zeros((BLOCKS, plan[-1, VECTORS] + 2 * plan[-1, N_OUT]), dtype=np.float32)
    for block in prange(BLOCKS):
        low, high = block * n // BLOCKS, (block + 1) * n // BLOCKS
        now, then = np.empty((high - low + 1, widest), dtype=np.float32), np.empty((high - low + 1, widest), np.float32)
        for i in range(low, high):
            now[i - low, : gradient.shape[1]] = gradient[i]
        for step in range(len(plan) - 1, -1, -1):
            layer = plan[step]
            n_in, n_out = layer[N_IN], layer[N_OUT]
            if layer[LINEAR]:
                weights, _ = _split(flat, layer)
                d_bias = sums[block, layer[VECTORS] : layer[VECTORS] + n_out]
                for i in range(high - low):
                    then[i, :n_in] = 0
                    at = n * layer[OUT] + (low + i) * n_out
                    outputs[at : at + n_out] = now[i, :n_out]
                    add(now[i, :n_out], d_bias)
                table = weights.reshape(n_out, n_in)
                for i in range(0, high - low, 2):
                    _add_products(now[i, :n_out], now[i + 1, :n_out], table, 0, then[i, :n_in], then[i + 1, :n_in])
                now, then = then, now
            else:
                for i in range(high - low):
                    drawn = bits[low + i] if bits.size else bits[0]
                    _through_activation(now[i, :n_in], layer, flat, kept[low + i], drawn, dropout, sums[block])
        for i in range(low, high):
            d_x[i] = now[i - low, : d_x.shape[1]]
    for layer in plan:
        n_vectors = (1 if layer[LINEAR] else 2) * layer[N_OUT]
        at = layer[FLAT] + (layer[N_IN] * layer[N_OUT] if layer[LINEAR] else 0)
        d_flat[at : at + n_vectors] = 0
        for block in range(BLOCKS):
            add(sums[block, layer[VECTORS] : layer[VECTORS] + n_vectors], d_flat[at : at + n_vectors])
    for part in prange(BLOCKS):
        for layer in plan:
            if layer[LINEAR]:
                _weight_gradient(layer, part, n, kept, outputs, d_flat)


@compiled
def _weight_gradient(layer, part, n, kept, outputs, d_flat):
    """Gradients for one part of the outputs of a linear layer, over all rows."""
    n_in, n_out = layer[N_IN], layer[N_OUT]
    columns = np.empty((2, n), dtype=np.float32)
    spare = np.empty(n_in, dtype=np.float32)
    low, high = part * n_out // BLOCKS, (part + 1) * n_out // BLOCKS
    for k in range(low, high, 2):
        both = k + 1 < high
        for i in range(n):
            at = n * layer[OUT] + i * n_out + k
            columns[0, i] = outputs[at]
            columns[1, i] = outputs[at + 1] if both else _F(0)
        at = layer[FLAT] + k * n_in
        first, second = d_flat[at : at + n_in], d_flat[at + n_in : at + 2 * n_in] if both else spare
        first[:] = 0
        second[:] = 0
        _add_products(columns[0], columns[1], kept, layer[KEPT], first, second)
