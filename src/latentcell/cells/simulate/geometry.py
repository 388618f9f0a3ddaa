"""Shapes on a pixel grid: coordinates, irregular ellipsoids, random fields, spots and blur, for many cells at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentcell.cells.simulate.factors import SIZE

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Pixel positions (pixels, origin in the middle) along z and along y or x; `unit` is 1 for a 64-pixel crop."""

    z: Array
    x: Array
    unit: float

    @classmethod
    def of(cls, size: int, depth: int | None) -> Grid:
        """Grid of a crop; a stack is as tall as it is wide, so its planes are ``size / depth`` pixels apart."""
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        planes = depth or 1
        z = (np.arange(planes, dtype=np.float32) - np.float32((planes - 1) / 2)) * np.float32(size / planes)
        return cls(z, x, size / SIZE)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows and columns."""
        return len(self.z), len(self.x), len(self.x)

    def frame(self, angle: Array, shift: Array | None = None) -> tuple[Array, Array, Array]:
        """Measure coordinates along the long, short and z axis of every cell, minus its `shift` in that frame."""
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        shift = np.zeros((len(angle), 3), np.float32) if shift is None else shift
        u = (cos * self.x - shift[:, :1])[:, None, None, :] + (sin * self.x)[:, None, :, None]
        v = (-sin * self.x - shift[:, 1:2])[:, None, None, :] + (cos * self.x)[:, None, :, None]
        return u, v, (self.z - shift[:, 2:])[:, :, None, None]


def ellipsoid(frame: tuple[Array, Array, Array], axes: Array, outline: np.ndarray) -> tuple[Array, Array]:
    """Measure relative radius (1 on the surface) and distance in pixels (positive inside) from irregular ellipsoids.

    `frame` holds the coordinates along the three axes, `axes` ``(n, 3)`` their half-lengths; see `outline_radius`.
    """
    scaled = [x / column(axis) for x, axis in zip(frame, axes.T, strict=True)]
    rho = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) + np.float32(1e-4)
    squares = [(x / column(axis)) ** 2 for x, axis in zip(scaled, axes.T, strict=True)]
    gradient = np.sqrt(squares[0] + squares[1] + squares[2]) / rho
    direction = (scaled[0] + 1j * scaled[1]) / rho
    rho = rho / outline_radius(direction, outline)
    return rho, (1 - rho) / np.maximum(gradient, np.float32(1e-4))


def outline_radius(direction: np.ndarray, outline: np.ndarray) -> Array:
    """Relative radius of an irregular outline in the given directions.

    Parameters
    ----------
    direction
        ``(n, ...)`` complex numbers of modulus 1 in the plane, less towards the poles, where the outline is smooth.
    outline
        ``(n, k)`` complex amplitudes of the angular harmonics 2, 3, ...; the radius is normalised to leave the area as
        it is.
    """
    shape = (-1, *[1] * (direction.ndim - 1))
    wave = np.zeros((), np.complex64)
    for amplitude in outline.T[::-1]:
        wave = (wave + amplitude.reshape(shape)) * direction
    norm = np.sqrt(1 + 0.5 * (np.abs(outline) ** 2).sum(axis=1))
    return np.asarray((1 + (wave * direction).real) / norm.reshape(shape), np.float32)


def field(waves: tuple[Array, Array], angle: Array, grid: Grid) -> Array:
    """Random pattern of variance 1: a sum of plane waves, turning with the cell.

    Every wave is a product of factors along the axes, so the sum is one matrix product per cell.

    Parameters
    ----------
    waves
        Wave vectors ``(n, k, 3)`` in the frame of the cell, radians per pixel of a 64-pixel crop; phases ``(n, k)``.
    """
    vectors, phases = waves
    along_x, along_y, along_z = np.moveaxis(placed(vectors / np.float32(grid.unit), angle), -1, 0)
    left = _exp_i(along_z, grid.z)[:, :, None] * _exp_i(along_y, grid.x)[:, None]
    left = (left * np.exp(1j * phases)[:, None, None]).reshape(len(angle), -1, phases.shape[1])
    right = _exp_i(along_x, grid.x).swapaxes(1, 2)
    total: Array = left.real @ right.real - left.imag @ right.imag
    return (total * np.float32(np.sqrt(2 / phases.shape[1]))).reshape(-1, *grid.shape)


def spots(weights: Array, positions: Array, width: float, grid: Grid) -> Array:
    """Gaussian spots of given weights ``(n, k)`` and positions ``(n, k, 3)`` summed on the grid, ``(n, Z, Y, X)``.

    `width` is their standard deviation in the plane in pixels of a 64-pixel crop; along z it is 2.5 times that, so that
    spots survive the coarser steps and the longer blur.
    """

    def bell(axis: Array, centre: Array, width: float) -> Array:
        return np.asarray(np.exp(-0.5 * ((axis[:, None] - centre[:, None, :]) / np.float32(width)) ** 2))

    x, y, z = np.moveaxis(positions, -1, 0)
    across = width * grid.unit
    left = bell(grid.z, z, 2.5 * across)[:, :, None] * (bell(grid.x, y, across) * weights[:, None])[:, None]
    left = left.reshape(len(weights), -1, weights.shape[1])
    return np.asarray(left @ bell(grid.x, x, across).swapaxes(1, 2)).reshape(-1, *grid.shape)


def placed(points: Array, angle: Array) -> Array:
    """Turn vectors ``(n, k, 3)`` from the frame of the cell to that of the image."""
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    u, v, w = np.moveaxis(points, -1, 0)
    return np.stack([cos * u - sin * v, sin * u + cos * v, w], axis=-1).astype(np.float32)


def _exp_i(frequency: Array, axis: Array) -> np.ndarray:
    angle = frequency[:, None, :] * axis[:, None]
    turning = np.empty(angle.shape, np.complex64)
    turning.real, turning.imag = np.cos(angle), np.sin(angle)
    return turning


def column(values: np.ndarray) -> Array:
    """Reshape per-cell values to broadcast over ``(n, Z, Y, X)``."""
    return np.asarray(values, np.float32)[:, None, None, None]


def blur_matrix(axis: Array, width: float) -> Array:
    """Compute Gaussian weights between the pixels of an axis; light that leaves the crop is lost."""
    if width == 0 or len(axis) == 1:
        return np.eye(len(axis), dtype=np.float32)
    step = axis[1] - axis[0]
    reach = np.arange(-4 * len(axis), 4 * len(axis) + 1) * step
    total = np.exp(-0.5 * (reach / width) ** 2).sum()
    return np.asarray(np.exp(-0.5 * ((axis[:, None] - axis) / width) ** 2) / total, np.float32)


def blur(sharp: Array, along_z: Array, along_x: Array) -> Array:
    """Blur ``(n, C, Z, Y, X)`` with one matrix for z and one for x and y."""
    blurred = along_x @ (sharp @ along_x)
    if len(along_z) == 1:
        return np.asarray(blurred)
    return np.asarray(np.einsum("zk,nckyx->nczyx", along_z, blurred, optimize=True))


def chunks(n: int, length: int) -> Iterator[slice]:
    """Consecutive slices of at most `length` that cover `n` rows."""
    return (slice(start, start + length) for start in range(0, n, length))
