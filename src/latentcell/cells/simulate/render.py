"""From factors to fluorescence images: deterministic geometry, then optics, then photons.

A cell is an irregular ellipsoid; a 2-D image is its central section, computed as a stack of one plane. Whatever a
factor does not determine (outline, chromatin pattern, positions of puncta) follows from the cell's own seed, so that
the same cell can be rendered again with one factor changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from latentcell.cells.simulate.factors import MAX_PUNCTA, NAMES, SIZE, check
from latentcell.cells.simulate.geometry import (
    Array,
    Grid,
    blur,
    blur_matrix,
    chunks,
    column,
    ellipsoid,
    field,
    outline_radius,
    placed,
    spots,
)
from latentcell.errors import InputError

CHANNELS = ("DNA", "cell", "puncta")
_N_WAVES = 24
_N_NUCLEOLI = 3
_HARMONICS = 4
_VOXELS_PER_CHUNK = 2**18
_GAIN = {"uint8": 0.5, "uint16": 10.0, "float32": 1.0}


@dataclass(frozen=True)
class Optics:
    """A microscope: what happens to light between the cell and the file.

    Parameters
    ----------
    psf
        Standard deviation of the Gaussian point spread function in pixels of a 64-pixel crop; twice that along z.
    photons
        Photons per pixel where the stain has brightness 1 (the nucleus of a typical G1 cell).
    background
        Photons per pixel where there is no cell.
    read_noise
        Standard deviation of the camera noise in photons.
    offset
        Camera offset in photons, added before digitisation, so that dark noise is not clipped at 0.
    """

    psf: float = 1.0
    photons: float = 120.0
    background: float = 6.0
    read_noise: float = 2.0
    offset: float = 10.0


def render(
    factors: pd.DataFrame | Mapping[str, ArrayLike],
    *,
    size: int = SIZE,
    depth: int | None = None,
    psf: float = Optics.psf,
) -> tuple[Array, NDArray[np.uint8]]:
    """Render the noise-free image of every cell, blurred by the microscope.

    The same factors and seeds give the same image, whatever other cells are in the table. To ask what one factor
    does, render a table twice: ``render(cells.obs)`` and ``render(cells.obs.assign(texture=0))``.

    ================  ==================================================  ======================
    factor            effect                                              channels
    ================  ==================================================  ======================
    size              radius of the cell in pixels; area is pi size^2     all
    nucleus_ratio     radius of the G1 nucleus over that of the cell      all (puncta avoid it)
    elongation        major over minor axis of the cell, area fixed       all
    orientation       angle of the major axis, from x to y, in radians    all
    intensity         brightness of the stain of cell body and membrane   cell
    texture           amplitude (log scale) of chromatin granularity      DNA
    n_puncta          number of spots in the cytoplasm                    puncta
    phase             place in the cell cycle, see below                  all
    ================  ==================================================  ======================

    DNA is conserved: its sum is set by phase alone, doubling smoothly through S (0.45 to 0.75). The nucleus
    grows with the cube root of its DNA. Mitosis (0.94 to 1): chromosomes condense, the cell rounds up and shrinks by
    12 % in radius, a metaphase plate forms across the major axis (0.97), splits (0.98) and the cell pinches (1).

    Parameters
    ----------
    factors
        One row per cell with all factors above, optionally ``cell_seed`` (row numbers by default).
    size
        Height and width of the crop in pixels.
    depth
        Number of planes of a stack as tall as it is wide, so that planes are ``size / depth`` pixels apart.
        None for one central section.
    psf
        Blur, see `Optics`.

    Returns
    -------
    images
        ``(n, 3, size, size)`` or ``(n, 3, depth, size, size)``, float32, in units of the brightness of a G1 nucleus.
    masks
        ``(n, size, size)`` or ``(n, depth, size, size)``, uint8, 1 inside the cell.

    Raises
    ------
    InputError
        If a factor is missing, missing in a cell or outside its limits, or the crop is too small.
    """
    if size < 16 or (depth is not None and depth < 4):
        raise InputError(f"A crop of size={size}, depth={depth} cannot show a cell: use at least 16 pixels, 4 planes.")
    table = pd.DataFrame(factors).reset_index(drop=True)
    check(table, size=size)
    if "cell_seed" not in table:
        table["cell_seed"] = np.arange(len(table))
    grid = Grid.of(size, depth)
    images = np.empty((len(table), 3, *grid.shape), np.float32)
    masks = np.empty((len(table), *grid.shape), np.uint8)
    blurs = [blur_matrix(grid.z, 2 * psf * grid.unit), blur_matrix(grid.x, psf * grid.unit)]
    for rows in chunks(len(table), max(1, _VOXELS_PER_CHUNK // int(np.prod(grid.shape)))):
        sharp, masks[rows] = _stain(table.iloc[rows], grid)
        images[rows] = blur(sharp, *blurs)
    if depth is None:
        return images[:, :, 0], masks[:, 0]
    return images, masks


def expose(
    expected: Array,
    *,
    optics: Optics | None = None,
    dtype: str = "uint16",
    rng: np.random.Generator | int | None = None,
) -> np.ndarray:
    """Photograph noise-free images: photons arrive (Poisson), the camera reads (Gaussian) and digitises.

    Parameters
    ----------
    expected
        Brightness as returned by `render`.
    dtype
        ``"uint16"`` (10 counts per photon), ``"uint8"`` (0.5) or ``"float32"`` (photons); integers saturate.

    Returns
    -------
    Array of `dtype` and of the shape of `expected`.
    """
    if dtype not in _GAIN:
        raise InputError(f"Images can be simulated as {', '.join(_GAIN)}, not {dtype!r}.")
    optics = optics or Optics()
    rng = np.random.default_rng(rng)
    taken = np.empty(expected.shape, dtype)
    for rows in chunks(len(expected), 32):
        light = rng.poisson(expected[rows] * optics.photons + optics.background).astype(np.float32)
        light += optics.offset + optics.read_noise * rng.standard_normal(light.shape, np.float32)
        light *= _GAIN[dtype]
        if dtype != "float32":
            light = np.clip(np.rint(light), 0, np.iinfo(dtype).max)
        taken[rows] = light
    return taken


class _Details:
    """What the factors leave open, drawn from one seed per cell; every array has one row per cell."""

    def __init__(self, seeds: np.ndarray, *, flat: bool) -> None:
        n_normal = 4 * _HARMONICS + 3 + 3 * _N_WAVES * 2 + 4 * MAX_PUNCTA + 3 * _N_NUCLEOLI
        n_uniform = 4 * _N_WAVES + MAX_PUNCTA + 2 * _N_NUCLEOLI
        normal = np.empty((len(seeds), n_normal), np.float32)
        uniform = np.empty((len(seeds), n_uniform), np.float32)
        for i, seed in enumerate(seeds):
            rng = np.random.default_rng(int(seed))
            normal[i], uniform[i] = rng.standard_normal(n_normal, np.float32), rng.random(n_uniform, np.float32)
        self._normal, self._uniform, self._flat = normal, uniform, flat
        damping = 1 / (1 + np.arange(_HARMONICS, dtype=np.float32))
        self.outline = self._normals(2 * _HARMONICS).view(np.complex64) * damping
        # the second harmonic would be elongation, which is a factor
        self.outline[:, 0] = 0
        self.nucleus_outline = self._normals(2 * _HARMONICS).view(np.complex64) * damping
        self.nucleus_shift = np.clip(self._normals(3), -2, 2)
        self.chromatin = self._waves(3.5, 14.0)
        self.cytoplasm = self._waves(5.0, 16.0)
        self.spot_direction = self._directions(MAX_PUNCTA)
        self.spot_brightness = np.exp(0.25 * self._normals(MAX_PUNCTA))
        self.spot_radius = self._uniforms(MAX_PUNCTA)
        self.nucleolus = self._directions(_N_NUCLEOLI) * (0.2 + 0.45 * self._uniforms(_N_NUCLEOLI))[..., None]
        self.nucleolus_depth = 0.3 + 0.5 * self._uniforms(_N_NUCLEOLI)

    def _normals(self, k: int) -> Array:
        taken, self._normal = self._normal[:, :k], self._normal[:, k:]
        return np.ascontiguousarray(taken)

    def _uniforms(self, k: int) -> Array:
        taken, self._uniform = self._uniform[:, :k], self._uniform[:, k:]
        return taken

    def _directions(self, k: int) -> Array:
        vectors = self._normals(3 * k).reshape(-1, k, 3)
        if self._flat:
            vectors[..., 2] = 0
        return np.asarray(vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + np.float32(1e-6)))

    def _waves(self, shortest: float, longest: float) -> tuple[Array, Array]:
        """Wave vectors in the frame of the cell (radians per pixel of a 64-pixel crop) and phases."""
        length = shortest + (longest - shortest) * self._uniforms(_N_WAVES)
        return self._directions(_N_WAVES) * (2 * np.pi / length)[..., None], 2 * np.pi * self._uniforms(_N_WAVES)


def _stain(table: pd.DataFrame, grid: Grid) -> tuple[Array, NDArray[np.uint8]]:
    """Fluorophore density of a chunk of cells, ``(n, 3, Z, Y, X)``, and masks ``(n, Z, Y, X)``."""
    factor = {name: table[name].to_numpy(np.float32) for name in NAMES}
    detail = _Details(table["cell_seed"].to_numpy(), flat=len(grid.z) == 1)
    cycle = _Cycle.at(factor["phase"])
    radius = factor["size"] * (1 - 0.12 * cycle.rounded)
    elongation = (1 - cycle.rounded) * factor["elongation"] + cycle.rounded * (1 + 0.45 * cycle.split)
    stretch = np.sqrt(elongation)
    axes = np.stack([radius * stretch, radius / stretch, radius * 0.8], axis=1)
    outline = detail.outline * (0.075 * (1 - 0.85 * cycle.rounded))[:, None]
    outline[:, 0] += 0.42 * cycle.pinched
    rho, distance = ellipsoid(grid.frame(factor["orientation"]), axes, outline)
    body = np.clip(distance + 0.5, 0, 1)

    dna, nucleus = _dna(factor, detail, cycle, radius, grid)
    envelope = nucleus * column(1 - cycle.condensed)
    grain = np.exp(0.22 * field(detail.cytoplasm, factor["orientation"], grid))
    cytoplasm = body * (0.25 + 0.75 * np.clip(1 - rho * rho, 0, 1)) * grain
    cytoplasm *= (1 - 0.6 * envelope) * column(0.5 + 0.25 * cycle.rounded)
    membrane = 0.65 * np.exp(-0.5 * (distance / (0.9 * grid.unit)) ** 2)
    cell = (cytoplasm + membrane) * column(factor["intensity"])
    puncta = _puncta(factor, detail, axes, outline, grid) + 0.1 * body * (1 - 0.5 * envelope)
    return np.stack([dna, cell, puncta], axis=1), (distance > 0).astype(np.uint8)


@dataclass(frozen=True)
class _Cycle:
    """How far every process of the cell cycle has gone, each from 0 to 1 ``(n,)``; `content` from 1 to 2."""

    content: Array
    condensed: Array
    rounded: Array
    aligned: Array
    split: Array
    pinched: Array

    @classmethod
    def at(cls, phase: Array) -> _Cycle:
        def step(start: float, end: float) -> Array:
            t = np.clip((phase - start) / (end - start), 0, 1)
            return np.asarray(t * t * (3 - 2 * t), np.float32)

        return cls(
            content=1 + step(0.45, 0.75),
            condensed=step(0.93, 0.955),
            rounded=step(0.935, 0.96),
            aligned=step(0.95, 0.97),
            split=step(0.98, 1.0),
            pinched=step(0.986, 1.0),
        )


def _dna(factor: dict[str, Array], detail: _Details, cycle: _Cycle, radius: Array, grid: Grid) -> tuple[Array, Array]:
    """DNA density, whose sum over the crop is the DNA content, and the region of the nucleus (0 to 1)."""
    nucleus = factor["size"] * factor["nucleus_ratio"] * np.cbrt(cycle.content) * (1 - 0.1 * cycle.condensed)
    stretch = factor["elongation"] ** 0.3
    interphase = np.stack([nucleus * stretch, nucleus / stretch, nucleus * 0.8], axis=1)
    narrow, wide = radius * (0.17 - 0.02 * cycle.split), radius * (0.62 - 0.17 * cycle.split)
    plate = np.stack([narrow, wide, wide * 0.9], axis=1)
    axes = interphase * (plate / interphase) ** cycle.aligned[:, None]
    shift = detail.nucleus_shift * (0.07 * (1 - cycle.aligned) * radius)[:, None]
    u, v, w = grid.frame(factor["orientation"], shift * [1, 1, float(len(grid.z) > 1)])
    # sister plates move apart along the long axis, their edges bent towards the poles
    gap = radius * 0.5 * cycle.split
    bend = column(0.35 * cycle.split / wide) * v * v
    u = np.where(u < 0, -1, 1) * (np.abs(u) - column(gap) - bend) if cycle.split.any() else u
    outline = detail.nucleus_outline * (0.035 * (1 + cycle.aligned))[:, None]
    rho, distance = ellipsoid((u, v, w), axes, outline)
    region = np.clip(distance + 0.5, 0, 1)
    density = region * (1 - 0.3 * np.minimum(rho, 1) ** 2)
    # condensed chromosomes are threads: the zero lines of the field that makes interphase chromatin granular
    grain = field(detail.chromatin, factor["orientation"], grid)
    threads = column(1.6 * cycle.condensed * (1 - 0.75 * cycle.aligned)) * np.abs(grain)
    density *= np.exp(column(factor["texture"] * (1 - 0.5 * cycle.condensed)) * grain - threads)
    hole = column(1 - cycle.condensed) * spots(
        detail.nucleolus_depth,
        placed(detail.nucleolus * interphase[:, None] + shift[:, None], factor["orientation"]),
        1.5,
        grid,
    )
    density *= np.clip(1 - hole, 0.15, 1)
    total = np.maximum(density.sum(axis=(1, 2, 3)), 1e-6)
    return density * column(_g1_dna(grid) * cycle.content / total), region


def _g1_dna(grid: Grid) -> float:
    """Total brightness of G1 DNA: 1 per pixel over the nucleus of a typical cell."""
    radius = 8.0 * grid.unit
    if len(grid.z) == 1:
        return float(np.pi * radius**2)
    return float(4 / 3 * np.pi * 0.8 * radius**3 / (grid.z[1] - grid.z[0]))


def _puncta(factor: dict[str, Array], detail: _Details, axes: Array, outline: np.ndarray, grid: Grid) -> Array:
    """Spots between nucleus and membrane; the k-th spot of a cell stays where it is when others come or go."""
    inner = np.minimum(1.05 * factor["nucleus_ratio"], 0.8)[:, None]
    distance = inner + (0.9 - inner) * detail.spot_radius
    distance *= outline_radius(detail.spot_direction[..., 0] + 1j * detail.spot_direction[..., 1], outline)
    positions = placed(detail.spot_direction * distance[..., None] * axes[:, None], factor["orientation"])
    present = np.clip(factor["n_puncta"][:, None] - np.arange(MAX_PUNCTA, dtype=np.float32), 0, 1)
    used = max(1, int(np.ceil(factor["n_puncta"].max())))
    weights = (1.8 * present * detail.spot_brightness)[:, :used]
    return spots(weights, positions[:, :used], 0.8, grid)
