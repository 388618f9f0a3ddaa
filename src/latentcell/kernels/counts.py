"""Log likelihood of counts and its gradient in one pass over each cell, with the costly terms at nonzeros only.

With mean mu, dispersion theta and u = mu / theta the negative binomial is

    log p(x) = x log mu - log x! - (theta + x) log(1 + u) + sum_{j < x} log(1 + j / theta),

which at x = 0 leaves -theta log(1 + u), needs nothing of the last sum at x = 1, and stays exact as theta grows towards
the Poisson limit. The means of a cell are its size times the softmax of its scores s, so a gradient g for log mu is
g - softmax(s) sum(g) for the scores.

The kernels add `bias` to `scores` ``(n, outputs)``, replace them by that gradient, and put the log likelihood of each
cell into `log_p`. `x` are the starts, columns and values of a sparse matrix; `genes` holds theta and 1 / theta, and
`rising` what `rise` makes of it; `d_log_theta` ``(BLOCKS, g)`` takes the gradient for log theta, cells weighted by
`weight`. It is summed in blocks of cells whose number is not that of the threads, so that results are the same with
any.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from latentcell.kernels.float32 import compiled, exp, highest, log1p, on_threads

_F = np.float32
# blocks of cells summed apart: as many threads as can help
BLOCKS = 16
_CHUNK = 1024
# counts of 2 to TABLE + 1 have their sum over j in a table
TABLE = 16
_SECOND, _LAST = np.uint32(2), np.float32(TABLE + 1)
_FACTORIALS = np.array([math.lgamma(x + 1) for x in range(256)], dtype=np.float32)


@on_threads
def rise(theta, genes, rising):
    """Fill `genes` with theta and 1 / theta, and ``rising[:, g, k - 2]``.

    With sum_{j < k} log(1 + j / theta_g) and its derivative for log theta.
    """
    for g in prange(theta.size):
        genes[0, g] = theta[g]
        genes[1, g] = _F(1) / theta[g]
        for k in range(TABLE):
            ratio = _F(k + 1) * genes[1, g]
            rising[0, g, k] = log1p(ratio)
            rising[1, g, k] = -ratio / (_F(1) + ratio)
        for k in range(1, TABLE):
            rising[0, g, k] += rising[0, g, k - 1]
            rising[1, g, k] += rising[1, g, k - 1]


@compiled
def _stirling(y):
    """Return log gamma(y) and its derivative for y >= 16, beside constants that cancel in differences."""
    inverse = 1 / y
    square = inverse * inverse
    log_y = math.log(y)
    value = (y - 0.5) * log_y - y + inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    slope = log_y - 0.5 * inverse - square * (1 / 12 - square * (1 / 120 - square / 252))
    return value, slope


@compiled
def _beyond_table(x, theta):
    """Return the sum over TABLE < j < x of log(1 + j / theta) and its derivative for log theta."""
    # the differences need double precision
    first = np.float64(TABLE + 1)
    dispersion, more = np.float64(theta), np.float64(x) - first
    above, above_slope = _stirling(dispersion + first + more)
    below, below_slope = _stirling(dispersion + first)
    value = above - below - more * math.log(dispersion)
    return _F(value), _F(dispersion * (above_slope - below_slope) - more)


@compiled
def _risen(cell, theta, rising, weight, d_log_theta):
    """Return the sum over nonzeros x and over j < x of log(1 + j / theta); add its derivative to `d_log_theta`."""
    columns, values, _ = cell
    total = 0.0
    for i in range(columns.size):
        c, x = np.uint32(columns[i]), values[i]
        if x > _F(1):
            k = np.uint32(min(x, _LAST)) - _SECOND
            total += rising[0, c, k]
            d_log_theta[c] += weight * rising[1, c, k]
        if x > _F(TABLE + 1):
            value, slope = _beyond_table(x, theta[c])
            total += value
            d_log_theta[c] += weight * slope
    return total


@compiled
def _log_factorial(x):
    return _FACTORIALS[np.uint32(x)] if x < 256 else _F(math.lgamma(x + 1.0))


@compiled
def _softmax_terms(scores, bias, cell, mu):
    """Fill `mu` with the means of a cell; return the sum of x log mu - log x! over its nonzeros."""
    columns, values, size = cell
    for g in range(scores.size):
        scores[g] += bias[g]
    top = highest(scores)
    total = _F(0)
    for g in range(scores.size):
        e = exp(scores[g] - top)
        mu[g] = e
        total += e
    scale = size / total
    for g in range(scores.size):
        mu[g] *= scale
    shift = math.log(size) - math.log(total) - top
    observed = 0.0
    for j in range(columns.size):
        observed += values[j] * (scores[np.uint32(columns[j])] + shift) - _log_factorial(values[j])
    return observed


@compiled
def _ratios(mu, inverse, ratio, log_ratio):
    """Fill `ratio` with 1 / (1 + u) and `log_ratio` with log(1 + u)."""
    # short loops over few arrays: with more, the compiler gives up proving that they do not overlap
    for g in range(mu.size):
        u = mu[g] * inverse[g]
        ratio[g] = _F(1) / (_F(1) + u)
        log_ratio[g] = log1p(u)


@compiled
def _through_softmax(scores, mu, share):
    """Turn the gradient for log mu in `scores` into that for the scores; `share` is its sum over that of mu."""
    for g in range(scores.size):
        scores[g] -= mu[g] * share


@on_threads
def poisson(scores, bias, x, size, log_p):
    """Poisson; see the module. There is no theta."""
    starts, columns, values = x
    n = scores.shape[0]
    for block in prange(BLOCKS):
        mu = np.empty(scores.shape[1], dtype=np.float32)
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            cell = (columns[starts[i] : starts[i + 1]], values[starts[i] : starts[i + 1]], size[i])
            log_p[i] = _softmax_terms(scores[i], bias, cell, mu) - size[i]
            row, total = scores[i], _F(0)
            for j in range(starts[i], starts[i + 1]):
                total += values[j]
            share = total / size[i]
            for g in range(row.size):
                row[g] = -mu[g] * share
            for j in range(starts[i], starts[i + 1]):
                row[np.uint32(columns[j])] += values[j]


@on_threads
def negative_binomial(scores, bias, x, size, genes, rising, weight, log_p, d_log_theta):
    """Negative binomial; see the module."""
    starts, columns, values = x
    n = scores.shape[0]
    for block in prange(BLOCKS):
        scratch = np.empty((3, genes.shape[1]), dtype=np.float32)
        d_log_theta[block] = 0
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            cell = (columns[starts[i] : starts[i + 1]], values[starts[i] : starts[i + 1]], size[i])
            log_p[i] = _negative_binomial(scores[i], bias, cell, genes, rising, scratch, weight[i], d_log_theta[block])


@compiled
def _negative_binomial(scores, bias, cell, genes, rising, scratch, weight, d_log_theta):
    columns, values, size = cell
    theta, mu, ratio, log_ratio = genes[0], scratch[0], scratch[1], scratch[2]
    log_p = _softmax_terms(scores, bias, cell, mu)
    _ratios(mu, genes[1], ratio, log_ratio)
    zeros, total = _F(0), _F(0)
    for g in range(scores.size):
        step = -mu[g] * ratio[g]
        scores[g] = step
        total += step
    for g in range(scores.size):
        a = theta[g] * log_ratio[g]
        zeros -= a
        d_log_theta[g] -= weight * (a + scores[g])
    for j in range(columns.size):
        c, x = np.uint32(columns[j]), values[j]
        log_p -= x * log_ratio[c]
        step = x * ratio[c]
        scores[c] += step
        total += step
        d_log_theta[c] += weight * (x - step)
    _through_softmax(scores, mu, total / size)
    return log_p + zeros + _risen(cell, theta, rising, weight, d_log_theta)


@on_threads
def zero_inflated(scores, bias, x, size, genes, rising, weight, log_p, d_log_theta):
    """Zero-inflated negative binomial; see the module. Behind the scores are the logits of an extra zero."""
    starts, columns, values = x
    n = scores.shape[0]
    for block in prange(BLOCKS):
        scratch = np.empty((5, genes.shape[1]), dtype=np.float32)
        d_log_theta[block] = 0
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            cell = (columns[starts[i] : starts[i + 1]], values[starts[i] : starts[i + 1]], size[i])
            log_p[i] = _zero_inflated(scores[i], bias, cell, genes, rising, scratch, weight[i], d_log_theta[block])


@compiled
def _zero_inflated_zeros(scores, extra, arrays, weight, d_log_theta):
    """Treat all counts as zeros; return the sum of their log likelihoods and that of their gradients for log mu."""
    logits, bias = extra
    theta, mu, ratio, log_ratio, gaps, kept = arrays
    zeros, total = _F(0), _F(0)
    for g in range(scores.size):
        logits[g] += bias[g]
    # log(e^logit + e^a) - log(1 + e^logit), with e^a the probability of 0 under the negative binomial
    for g in range(scores.size):
        gaps[g] = -theta[g] * log_ratio[g] - logits[g]
    for g in range(scores.size):
        logit, gap = logits[g], gaps[g]
        e, inflated = exp(-abs(gap)), exp(-abs(logit))
        inverse = _F(1) / (_F(1) + inflated)
        zeros += logit + max(gap, _F(0)) - max(logit, _F(0)) + log1p((e - inflated) * inverse)
        q = (_F(1) if gap > 0 else e) / (_F(1) + e)
        kept[g] = q
        logits[g] = _F(1) - q - (_F(1) if logit > 0 else inflated) * inverse
    for g in range(scores.size):
        step = -kept[g] * mu[g] * ratio[g]
        scores[g] = step
        total += step
    for g in range(scores.size):
        d_log_theta[g] -= weight * (kept[g] * theta[g] * log_ratio[g] + scores[g])
    return zeros, total


@compiled
def _zero_inflated(outputs, bias, cell, genes, rising, scratch, weight, d_log_theta):
    columns, values, size = cell
    theta, mu, ratio, log_ratio, gaps, kept = genes[0], scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    scores, logits = outputs[: theta.size], outputs[theta.size :]
    log_p = _softmax_terms(scores, bias, cell, mu)
    _ratios(mu, genes[1], ratio, log_ratio)
    zeros, total = _F(0), _F(0)
    # chunks that stay in the nearest cache
    for low in range(0, theta.size, _CHUNK):
        part = slice(low, min(low + _CHUNK, theta.size))
        sums = _zero_inflated_zeros(
            scores[part],
            (logits[part], bias[theta.size + low : theta.size + part.stop]),
            (theta[part], mu[part], ratio[part], log_ratio[part], gaps[part], kept[part]),
            weight,
            d_log_theta[part],
        )
        zeros += sums[0]
        total += sums[1]
    for j in range(columns.size):
        c, x = np.uint32(columns[j]), values[j]
        if x == _F(0):
            continue  # stored, but a zero like the others
        r, gap, lost = ratio[c], gaps[c], _F(1) - kept[c]
        # taken for a zero above: log of the share of e^a in the mixture
        log_p += min(gap, _F(0)) - log1p(exp(-abs(gap))) - x * log_ratio[c]
        step = x * r - lost * mu[c] * r
        scores[c] += step
        total += step
        logits[c] -= lost
        d_log_theta[c] += weight * (lost * (mu[c] * r - theta[c] * log_ratio[c]) + x * (_F(1) - r))
    _through_softmax(scores, mu, total / size)
    return log_p + zeros + _risen(cell, theta, rising, weight, d_log_theta)
