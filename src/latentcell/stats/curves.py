"""The course of a process through the means of populations at known times.

Everything is expressed in weights of the known times, so that progress and curvature found in one space (say, all
genes) move cells in another (the latent space).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

Array = NDArray[np.float64]


class Turn(NamedTuple):
    """Where a process stands at a time.

    Attributes
    ----------
    line
        Weights ``(k,)`` of the known means, summing to 1: its place on the straight line between the two neighbours,
        whose weights are the shares of the way still to go and covered.
    bend
        Weights ``(k,)`` of the known means, summing to 0: their weighted sum is how far the process has left the
        straight line.
    curvature
        Share of the curve's bend that is used, 0 to 1, see `curvature`.
    """

    line: Array
    bend: Array
    curvature: float


def turn(times: NDArray[np.floating], means: NDArray[np.floating], at: float) -> Turn:
    """Progress and bend at a time between known ones.

    The process advances by what changes, not by the clock: s_k is the cumulative distance between consecutive means,
    s(t) the monotone piecewise cubic through it (Fritsch and Carlson 1980). The curve through the means, as a function
    of s, is the cubic with the three-point tangents of Catmull and Rom inside and the chord's slope at both ends. Its
    deviation from the straight line between the neighbours counts in so far as it predicts the inner known times
    (`curvature`).

    Parameters
    ----------
    times
        Known times ``(k,)``, ascending, without the one to be predicted.
    means
        Mean measurement or position ``(k, p)`` at each.
    at
        Time between the first and the last.
    """
    known, m = np.asarray(times, dtype=np.float64), np.asarray(means, dtype=np.float64)
    s, place = _advance(known, m, at)
    line = _line(s, place)
    share = curvature(known, m)
    return Turn(line, share * (_curve(s, place) - line), share)


def curvature(times: NDArray[np.floating], means: NDArray[np.floating]) -> float:
    """Share of the bend that the known times themselves support, 0 to 1.

    Each inner time is left out and predicted from the others by the straight line l_k and by the curve l_k + b_k; the
    share is the least-squares weight of b_k in m_k - l_k over all k, cut at 0 and 1. With fewer than four known times
    nothing supports a bend and it is 0.
    """
    known, m = np.asarray(times, dtype=np.float64), np.asarray(means, dtype=np.float64)
    explained = possible = 0.0
    for k in range(1, len(known) - 1):
        others = np.delete(np.arange(len(known)), k)
        if len(others) < 3:
            continue
        s, place = _advance(known[others], m[others], known[k])
        line = _line(s, place)
        bend = (_curve(s, place) - line) @ m[others]
        explained += float((m[k] - line @ m[others]) @ bend)
        possible += float(bend @ bend)
    return float(np.clip(explained / possible, 0.0, 1.0)) if possible > 0 else 0.0


def _advance(times: Array, means: Array, at: float) -> tuple[Array, float]:
    """Cumulative change at the known times and at `at`; time itself where nothing changes."""
    steps = np.linalg.norm(np.diff(means, axis=0), axis=1)
    if not (steps > 1e-12 * steps.max(initial=0.0)).all():
        return times, at
    s = np.concatenate([[0.0], np.cumsum(steps)])
    advance = PchipInterpolator(times, s)(at) if len(times) > 2 else np.interp(at, times, s)
    return s, float(advance)


def _segment(s: Array, place: float) -> int:
    """Index of the known time that ends the segment in which `place` lies."""
    return int(np.clip(np.searchsorted(s, place), 1, len(s) - 1))


def _line(s: Array, place: float) -> Array:
    after = _segment(s, place)
    share = (place - s[after - 1]) / (s[after] - s[after - 1])
    weights = np.zeros(len(s))
    weights[after - 1], weights[after] = 1 - share, share
    return weights


def _curve(s: Array, place: float) -> Array:
    if len(s) == 2:
        return _line(s, place)
    gaps = np.diff(s)[:, None]
    slopes = np.diff(np.eye(len(s)), axis=0) / gaps
    inner = (slopes[:-1] * gaps[1:] + slopes[1:] * gaps[:-1]) / (gaps[1:] + gaps[:-1])
    tangents = np.vstack([slopes[:1], inner, slopes[-1:]])
    return np.asarray(CubicHermiteSpline(s, np.eye(len(s)), tangents)(place))
