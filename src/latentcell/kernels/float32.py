"""How kernels are compiled, and elementary functions in float32 arithmetic that become vector code in loops.

Calls of the C library would go value by value: pip's numba has no vector library.
"""

from __future__ import annotations

import numpy as np
from numba import njit


def _can_keep() -> bool:
    """Whether there is a place to write to: beside this file, or in the user's cache."""
    try:
        njit(cache=True)(_can_keep)
    except RuntimeError:
        return False
    return True


_CACHE = _can_keep()
# loops may be summed in any order, as vector code does
compiled = njit(cache=_CACHE, nogil=True, fastmath=True, error_model="numpy")
on_threads = njit(cache=_CACHE, nogil=True, fastmath=True, error_model="numpy", parallel=True)

_F = np.float32
_I = np.int32
_LOG2_E = _F(1.4426950408889634)
# log 2 in two parts, the first with few bits, so that n * part is exact
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_LN2 = _F(0.6931471805599453)
# bits of sqrt(1/2): mantissas are taken from [sqrt(1/2), sqrt(2))
_SQRT_HALF = _I(0x3F3504F3)


@njit(inline="always")
def exp(x):
    """e^x with relative error 3e-7; arguments are cut to [-87, 88] (Cephes' expf)."""
    x = min(max(x, _F(-87.0)), _F(88.0))
    n = np.floor(x * _LOG2_E + _F(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _F(1.9875691500e-4)
    p = p * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    return (p * r * r + r + _F(1.0)) * _I((_I(n) + _I(127)) << _I(23)).view(np.float32)


@njit(inline="always")
def log1p(u):
    """log(1 + u) for u > -1, with relative error 3e-7 for u >= 0, also where u is tiny."""
    bits = _F(_F(1.0) + u).view(np.int32)
    exponent = (bits - _SQRT_HALF) >> _I(23)
    mantissa = _I(bits - (exponent << _I(23))).view(np.float32)
    # 1 + u has lost the last digits of a small u
    f = u if exponent == _I(0) else mantissa - _F(1.0)
    s = f / (_F(2.0) + f)
    z = s * s
    p = _F(2 / 9)
    p = p * z + _F(2 / 7)
    p = p * z + _F(2 / 5)
    p = p * z + _F(2 / 3)
    return _F(exponent) * _LN2 + s * (_F(2.0) + z * p)


@njit(inline="always")
def highest(values):
    """Largest of some numbers, compared as whole ones, which unlike floats makes a vector loop."""
    found = _I(-0x80000000)
    for i in range(values.size):
        bits = _F(values[i]).view(np.int32)
        # the order of negative floats is that of their bits reversed
        found = max(found, _I(bits ^ _I((bits >> _I(31)) & _I(0x7FFFFFFF))))
    return _I(found ^ _I((found >> _I(31)) & _I(0x7FFFFFFF))).view(np.float32)


@njit(inline="always")
def silu(y):
    """``y / (1 + exp(-y))``."""
    return y / (_F(1.0) + exp(-y))


@njit(inline="always")
def silu_slope(y):
    """Return the derivative of `silu`."""
    e = exp(min(-y, _F(60.0)))
    s = _F(1.0) / (_F(1.0) + e)
    # e s is 1 - s without the digits lost that a large y brings back
    return s * (_F(1.0) + y * e * s)


@compiled
def add(values, total):
    """``total += values``."""
    for k in range(values.size):
        total[k] += values[k]


@compiled
def scaled_silu(x, scale, shift, out):
    """``out = silu(x * scale + shift)``."""
    for k in range(x.size):
        out[k] = silu(x[k] * scale[k] + shift[k])
