"""Images sampled under affine maps of their plane."""

from __future__ import annotations

import numpy as np
from numba import prange

from latentcell.kernels.float32 import compiled, on_threads

_F = np.float32
_I = np.int32


@compiled
def _reflected(at, length):
    """Places along an axis of `length` pixels, mirrored at its ends into [0, length - 1]."""
    span = _F(length)
    for k in range(at.size):
        shifted = abs(at[k] + _F(0.5))
        times = np.floor(shifted / span)
        rest = shifted - times * span
        odd = times - _F(2) * np.floor(times * _F(0.5))
        inside = rest if odd == _F(0) else span - rest
        at[k] = min(max(inside - _F(0.5), _F(0)), span - _F(1))


@compiled
def _neighbours(at, length, low, high, low_weight, high_weight):
    """Fill in the pixels on both sides of each place and their weights, which are 0 outside the image."""
    last = _I(length - 1)
    for k in range(at.size):
        # far outside is as good as just outside, and a whole number can hold it
        place = min(max(at[k], _F(-2)), _F(length + 1))
        below = np.floor(place)
        share = place - below
        first = _I(below)
        second = _I(first + _I(1))
        low_weight[k] = _F(1) - share if _I(0) <= first <= last else _F(0)
        high_weight[k] = share if _I(0) <= second <= last else _F(0)
        low[k] = min(max(first, _I(0)), last)
        high[k] = min(max(second, _I(0)), last)


@compiled
def _weighted(plane, corners, weights, out):
    a, b, c, d = corners[0], corners[1], corners[2], corners[3]
    p, q, r, s = weights[0], weights[1], weights[2], weights[3]
    for k in range(out.size):
        out[k] = (
            p[k] * plane[np.uint32(a[k])]
            + q[k] * plane[np.uint32(b[k])]
            + r[k] * plane[np.uint32(c[k])]
            + s[k] * plane[np.uint32(d[k])]
        )


@on_threads
def resample(x, theta, reflect, out):
    """Fill `out` ``(n, planes, H, W)`` with `x` sampled bilinearly at ``theta @ (x, y, 1)``.

    `theta` ``(n, 2, 3)`` maps coordinates in which the image is the square from -1 to 1; beyond it lies its mirror
    image, or zeros unless `reflect`.
    """
    n, planes, height, width = x.shape
    for i in prange(n):
        places = np.empty((2, width), dtype=np.float32)
        sides, shares = np.empty((4, width), dtype=np.int32), np.empty((4, width), dtype=np.float32)
        corners, weights = np.empty((4, width), dtype=np.int32), np.empty((4, width), dtype=np.float32)
        flat = x[i].reshape(planes, height * width)
        t = theta[i]
        for row in range(height):
            v = _F((2 * row + 1) / height - 1)
            from_x, from_y = t[0, 1] * v + t[0, 2], t[1, 1] * v + t[1, 2]
            for k in range(width):
                u = _F(2 * k + 1) / _F(width) - _F(1)
                places[0, k] = ((t[0, 0] * u + from_x + _F(1)) * _F(width) - _F(1)) * _F(0.5)
                places[1, k] = ((t[1, 0] * u + from_y + _F(1)) * _F(height) - _F(1)) * _F(0.5)
            if reflect:
                _reflected(places[0], width)
                _reflected(places[1], height)
            _neighbours(places[0], width, sides[0], sides[1], shares[0], shares[1])
            _neighbours(places[1], height, sides[2], sides[3], shares[2], shares[3])
            for corner in range(4):
                across, down = corner % 2, 2 + corner // 2
                for k in range(width):
                    corners[corner, k] = sides[down, k] * _I(width) + sides[across, k]
                    weights[corner, k] = shares[down, k] * shares[across, k]
            for plane in range(planes):
                _weighted(flat[plane], corners, weights, out[i, plane, row])
