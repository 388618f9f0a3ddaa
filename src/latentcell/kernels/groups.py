"""Group normalisation and SiLU of images in one pass over each cell, and the gradient in another.

Images are ``(n, positions * channels)`` float32 with the channels of a position side by side. What belongs to a channel
is laid out once for many positions, so that loops are long.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.float32 import add, compiled, on_threads, scaled_silu, silu_slope

_F = np.float32
_EPS = _F(1e-5)
# blocks of cells summed apart, whatever the number of threads
BLOCKS = 16
# values that one round of a loop takes, about
_LONG = 256


@compiled
def places(channels):
    """Places that what belongs to channels is laid out for."""
    return channels * max(1, _LONG // channels)


@compiled
def _add_squares(values, mean, total):
    for k in range(values.size):
        total[k] += (values[k] - mean[k]) * (values[k] - mean[k])


@compiled
def _to_groups(total, channels, n_groups, scale):
    """Spread ``scale`` times the sum of each group in `total` over its places."""
    size = channels // n_groups
    sums = np.zeros(n_groups, dtype=np.float32)
    for k in range(total.size):
        sums[(k % channels) // size] += total[k]
    for k in range(total.size):
        total[k] = sums[(k % channels) // size] * scale


@compiled
def _moments(x, channels, n_groups, mean, inverse_sd):
    """Fill `mean` and `inverse_sd` with those of each place's group."""
    width, scale = mean.size, _F(n_groups / x.size)
    mean[:] = 0
    inverse_sd[:] = 0
    for at in range(0, x.size, width):
        add(x[at : at + width], mean)
    _to_groups(mean, channels, n_groups, scale)
    for at in range(0, x.size, width):
        _add_squares(x[at : at + width], mean, inverse_sd)
    _to_groups(inverse_sd, channels, n_groups, scale)
    for k in range(width):
        inverse_sd[k] = _F(1) / np.sqrt(inverse_sd[k] + _EPS)


@compiled
def _tiled(values, width):
    out = np.empty(width, dtype=np.float32)
    for k in range(width):
        out[k] = values[k % values.size]
    return out


@on_threads
def forward(x, weight, bias, n_groups, moments, out):
    """``out = silu(group_norm(x))``; `moments` ``(n, 2, width)`` keeps mean and 1 / SD, laid out, for `backward`."""
    n = len(x)
    for block in prange(BLOCKS):
        channels, width = weight.size, moments.shape[2]
        weights, biases = _tiled(weight, width), _tiled(bias, width)
        scale, shift = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            mean, inverse_sd = moments[i, 0], moments[i, 1]
            _moments(x[i], channels, n_groups, mean, inverse_sd)
            for k in range(width):
                scale[k] = inverse_sd[k] * weights[k]
                shift[k] = biases[k] - mean[k] * scale[k]
            for at in range(0, x.shape[1], width):
                scaled_silu(x[i, at : at + width], scale, shift, out[i, at : at + width])


@compiled
def _through_silu(gradient, x, affine, out):
    scale, shift = affine
    for k in range(x.size):
        y = x[k] * scale[k] + shift[k]
        out[k] = gradient[k] * silu_slope(y)


@compiled
def _add_products(values, x, mean, along):
    for k in range(values.size):
        along[k] += values[k] * (x[k] - mean[k])


@compiled
def _through_norm(values, x, direct, through_x, constant):
    for k in range(values.size):
        values[k] = values[k] * direct[k] + x[k] * through_x[k] + constant[k]


@on_threads
def backward(gradient, x, weight, bias, n_groups, moments, d_x, sums):
    """Fill `d_x` with the gradient for `x`; `sums` ``(2, BLOCKS, width)`` takes those for weight and bias, laid out."""
    n = len(x)
    for block in prange(BLOCKS):
        channels, width = weight.size, moments.shape[2]
        weights, biases = _tiled(weight, width), _tiled(bias, width)
        scale, shift = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
        plain, along = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
        sums[:, block] = 0
        share = _F(n_groups / x.shape[1])
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            mean, inverse_sd = moments[i, 0], moments[i, 1]
            plain[:] = 0
            along[:] = 0
            for k in range(width):
                scale[k] = inverse_sd[k] * weights[k]
                shift[k] = biases[k] - mean[k] * scale[k]
            for at in range(0, x.shape[1], width):
                part = slice(at, at + width)
                _through_silu(gradient[i, part], x[i, part], (scale, shift), d_x[i, part])
                add(d_x[i, part], plain)
                _add_products(d_x[i, part], x[i, part], mean, along)
            for k in range(width):
                along[k] *= inverse_sd[k]
                sums[0, block, k] += along[k]
                sums[1, block, k] += plain[k]
                along[k] *= weights[k]
                plain[k] *= weights[k]
            _to_groups(along, channels, n_groups, share)
            _to_groups(plain, channels, n_groups, share)
            for k in range(width):
                along[k] *= -inverse_sd[k] * inverse_sd[k]
                plain[k] = -mean[k] * along[k] - plain[k] * inverse_sd[k]
            for at in range(0, x.shape[1], width):
                _through_norm(d_x[i, at : at + width], x[i, at : at + width], scale, along, plain)
