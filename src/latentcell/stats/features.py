"""A fixed bank of hand-made features per cell: a representation of images that no model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray

from latentcell.errors import InputError
from latentcell.stats.distances import Array
from latentcell.threads import free_threads

Features = dict[str, Array]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SCALES = (1, 2, 4, 8)
N_RINGS = 5
N_BINS = 64

_CHUNK_VALUES = 250_000  # pixels held as float64 at a time: 2 MB, which stay in a core's cache


def image_features(images: NDArray[np.generic], *, channel_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Hand-made features of every cell, the same for a cell turned by 90 degrees or mirrored.

    Per channel, named ``<channel>_<feature>``:

    - ``mean``, ``sd``, ``skew``, ``q05`` ... ``q99``: moments and quantiles of all pixels, in stored intensity units;
    - ``area`` (share of pixels above Otsu's threshold), ``aspect`` (long over short axis of that foreground),
      ``edge`` (length of its outline over the square root of its area; in 3-D, surface over area to the 2/3) and
      ``contrast`` (foreground minus background mean);
    - ``spread`` and ``elongation``: radius of gyration, in pixels, and long over short axis of the foreground, each
      pixel weighted by its intensity above the threshold;
    - ``gradient``: root mean square difference of neighbouring pixels over the SD of the pixels;
    - ``grain1`` ... ``grain8``: share of the pixel variance that the difference of two Gaussians (SDs s and 2 s, in
      pixels, mirrored borders, within planes) passes, for s = 1, 2, 4, 8;
    - ``ring0`` ... ``ring4``: how the foreground's intensity is distributed from the cell's centre of mass outwards,
      in overlapping rings up to half the crop's width.

    Per pair of channels ``<a>_<b>_correlation``: Pearson correlation over pixels. A feature that is undefined, as on a
    blank image, is 0.

    Parameters
    ----------
    images
        ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, any numeric type.
    channel_names
        One name per channel; ``channel_0``, ... by default.

    Returns
    -------
    DataFrame ``(n, features)``, float64, in the order of the cells.

    Raises
    ------
    InputError
        If the array has another number of axes, holds missing values, or the names do not fit the channels.
    """
    if images.ndim not in (4, 5):
        raise InputError(
            f"Images must have the axes (cell, channel, y, x) or (cell, channel, z, y, x), found shape {images.shape}."
        )
    names = [f"channel_{i}" for i in range(images.shape[1])] if channel_names is None else list(channel_names)
    if len(names) != images.shape[1]:
        raise InputError(f"{len(names)} channel names were given for {images.shape[1]} channels.")
    step = max(1, _CHUNK_VALUES // max(1, int(np.prod(images.shape[1:]))))
    starts = range(0, max(len(images), 1), step)
    with ThreadPoolExecutor(free_threads()) as pool:
        chunks = pool.map(lambda start: _chunk_features(_finite(images[start : start + step], start), names), starts)
        return pd.concat(chunks, ignore_index=True)


def _finite(images: NDArray[np.generic], start: int) -> Array:
    pixels = np.asarray(images, dtype=np.float64)
    bad = ~np.isfinite(pixels).all(axis=tuple(range(1, pixels.ndim)))
    if bad.any():
        raise InputError(f"The image of cell {start + int(np.argmax(bad))} holds missing or infinite pixels.")
    return pixels


def _chunk_features(images: Array, names: list[str]) -> pd.DataFrame:
    flat = _flat(images)
    threshold = _otsu(flat)
    excess = np.maximum(images - threshold.reshape(threshold.shape + (1,) * (images.ndim - 2)), 0.0)
    features = {
        **_intensity(flat),
        **_foreground(images, excess > 0),
        **_weighted_shape(excess),
        **_texture(images),
        **_rings(excess),
    }
    columns = {
        f"{name}_{feature}": values[:, c] for c, name in enumerate(names) for feature, values in features.items()
    }
    deviation = flat - flat.mean(axis=2, keepdims=True)
    for a, b in combinations(range(len(names)), 2):
        product = (deviation[:, a] * deviation[:, b]).mean(axis=1)
        columns[f"{names[a]}_{names[b]}_correlation"] = _ratio(product, features["sd"][:, a] * features["sd"][:, b])
    return pd.DataFrame(columns)


def _flat(images: Array) -> Array:
    return images.reshape(*images.shape[:2], int(np.prod(images.shape[2:])))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, 0 where the denominator is not positive."""
    positive = denominator > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1.0), 0.0)


def _intensity(flat: Array) -> Features:
    """Moments and quantiles of all pixels; `flat` is (n, C, pixels), every feature (n, C)."""
    mean = flat.mean(axis=2)
    deviation = flat - mean[..., None]
    sd = _sd(flat)
    ranks = {f"q{round(100 * q):02d}": round(q * (flat.shape[2] - 1)) for q in QUANTILES}
    # numpy sorts with vector instructions and raises to a power without them: ten times faster this way
    ranked = np.sort(flat, axis=2)
    quantiles = {name: ranked[..., rank] for name, rank in ranks.items()}
    return {
        "mean": mean,
        "sd": sd,
        "skew": _ratio((deviation * deviation * deviation).mean(axis=2), sd**3),
        **quantiles,
    }


def _sd(flat: Array) -> Array:
    """SD over the last axis, exactly 0 where all values agree: rounding must not turn a blank image into texture."""
    constant = flat.max(axis=-1) == flat.min(axis=-1)
    return np.asarray(np.where(constant, 0.0, flat.std(axis=-1)))


def _otsu(flat: Array) -> Array:
    """Threshold (n, C) that maximises the variance between two classes of pixels (Otsu 1979), on 64 bins."""
    low, high = flat.min(axis=2), flat.max(axis=2)
    width = np.where(high > low, (high - low) / N_BINS, 1.0)
    bins = np.minimum(((flat - low[..., None]) / width[..., None]).astype(np.intp), N_BINS - 1)
    n_images = low.size
    offset = np.arange(n_images).reshape(low.shape)[..., None] * N_BINS
    histogram = np.bincount((bins + offset).ravel(), minlength=n_images * N_BINS).reshape(*low.shape, N_BINS)
    share = histogram / flat.shape[2]
    below = np.cumsum(share, axis=2)[..., :-1]
    moment = np.cumsum(share * np.arange(N_BINS), axis=2)
    between = _ratio((moment[..., -1:] * below - moment[..., :-1]) ** 2, below * (1 - below))
    # empty bins between two well separated classes tie: take the middle of the plateau
    best = between >= between.max(axis=2, keepdims=True) * (1 - 1e-9)
    first, last = best.argmax(axis=2), best.shape[2] - 1 - best[..., ::-1].argmax(axis=2)
    return np.asarray(np.where(high > low, low + width * (1 + (first + last) / 2), high))


def _foreground(images: Array, mask: NDArray[np.bool_]) -> Features:
    """Size, outline and elongation of the pixels above the threshold, and how much brighter they are."""
    space = tuple(range(2, images.ndim))
    n_pixels = float(np.prod(images.shape[2:]))
    count = mask.sum(axis=space).astype(np.float64)
    outline = sum(np.diff(mask, axis=axis).sum(axis=space) for axis in space)
    inside = _ratio((images * mask).sum(axis=space), count)
    outside = _ratio((images * ~mask).sum(axis=space), n_pixels - count)
    _, long, short = _principal_axes(mask.astype(np.float64))
    return {
        "area": count / n_pixels,
        "aspect": np.where(count > 0, np.sqrt(long / short), 0.0),
        "edge": _ratio(np.asarray(outline, dtype=np.float64), count ** (1 - 1 / len(space))),
        "contrast": np.where(count > 0, inside - outside, 0.0),
    }


def _weighted_shape(weights: Array) -> Features:
    gyration, long, short = _principal_axes(weights)
    lit = weights.max(axis=tuple(range(2, weights.ndim))) > 0
    return {"spread": np.where(lit, gyration, 0.0), "elongation": np.where(lit, np.sqrt(long / short), 0.0)}


def _centre(weights: Array) -> list[Array]:
    """Centre of mass per spatial axis, each (n, C) in pixels; the crop's centre where nothing weighs."""
    total = weights.sum(axis=tuple(range(2, weights.ndim)))
    centre = []
    for axis in range(2, weights.ndim):
        position = _axis_positions(weights, axis)
        marginal = weights.sum(axis=tuple(a for a in range(2, weights.ndim) if a != axis))
        centre.append(_ratio(marginal @ position, total))
    return centre


def _axis_positions(weights: Array, axis: int) -> Array:
    """Pixel positions along an axis, 0 at its middle so that mirroring only changes their sign."""
    return np.asarray(np.arange(weights.shape[axis]) - (weights.shape[axis] - 1) / 2)


def _principal_axes(weights: Array) -> tuple[Array, Array, Array]:
    """Radius of gyration, and the largest and smallest variance along principal axes, each (n, C) in pixels.

    A pixel is a square of variance 1/12 rather than a point, so that one pixel or one line has finite axes.
    """
    space = range(2, weights.ndim)
    centre = _centre(weights)
    total = weights.sum(axis=tuple(space))
    covariance = np.zeros((*weights.shape[:2], len(centre), len(centre)))
    for a in range(len(centre)):
        for b in range(a, len(centre)):
            rest = tuple(axis for axis in space if axis not in (a + 2, b + 2))
            marginal = weights.sum(axis=rest)
            x, y = _axis_positions(weights, a + 2), _axis_positions(weights, b + 2)
            second = marginal @ x**2 if a == b else np.einsum("ncij,i,j->nc", marginal, x, y)
            moment = _ratio(second, total) - centre[a] * centre[b]
            covariance[..., a, b] = covariance[..., b, a] = moment + (1 / 12 if a == b else 0.0)
    variances = np.maximum(np.linalg.eigvalsh(covariance), 1 / 12)
    return np.sqrt(variances.sum(axis=-1)), variances[..., -1], variances[..., 0]


def _texture(images: Array) -> Features:
    """Neighbour differences and the granularity spectrum, both relative to the pixel variance and within planes."""
    space = tuple(range(2, images.ndim))
    sd = _sd(_flat(images))
    squares = sum((np.diff(images, axis=axis) ** 2).mean(axis=space) for axis in (-2, -1) if images.shape[axis] > 1)
    features = {"gradient": _ratio(np.sqrt(squares), sd)}
    # the cosine transform diagonalises Gaussian filters with mirrored borders, and preserves sums of squares
    spectrum = scipy.fft.dctn(images, axes=(-2, -1), norm="ortho") ** 2
    frequency = [np.pi * np.arange(size) / size for size in images.shape[-2:]]
    squared = frequency[0][:, None] ** 2 + frequency[1] ** 2
    variance = sd**2 * float(np.prod(images.shape[2:]))
    for scale in SCALES:
        gain = np.exp(-0.5 * scale**2 * squared) - np.exp(-2 * scale**2 * squared)
        energy = np.einsum("...ij,ij->...", spectrum, gain**2)
        features[f"grain{scale}"] = _ratio(energy.sum(axis=tuple(range(2, energy.ndim))), variance)
    return features


def _rings(weights: Array) -> Features:
    """Share of each channel's weight at rising distance, in the plane, from the centre of mass of all channels."""
    plane = weights if weights.ndim == 4 else weights.sum(axis=2)
    share = plane * _ratio(np.ones(plane.shape[:2]), plane.sum(axis=(2, 3)))[..., None, None]
    y, x = (c[:, 0, None, None] for c in _centre(share.mean(axis=1, keepdims=True)))
    distance = np.sqrt((_axis_positions(plane, 2)[:, None] - y) ** 2 + (_axis_positions(plane, 3) - x) ** 2)
    position = np.minimum(distance * (2 * (N_RINGS - 1) / min(plane.shape[2:])), N_RINGS - 1)
    features = {}
    for ring in range(N_RINGS):
        # a pixel between two rings counts for both: a hard edge would make the profile jump with the centre
        membership = np.maximum(1 - np.abs(position - ring), 0.0)
        features[f"ring{ring}"] = np.einsum("ncij,nij->nc", share, membership)
    return features
