"""Cells in which the dependence of each structure on nucleus and membrane is known."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from latentcell.cells.images import set_images
from latentcell.cells.simulate.factors import SCORED, SIZE, draw
from latentcell.cells.simulate.geometry import Array, Grid, blur, blur_matrix, chunks, spots
from latentcell.cells.simulate.imaging import check_number, seed_of
from latentcell.cells.simulate.render import Optics, expose, render

STRUCTURES = ("perinuclear", "cortex", "midway", "beads")
"""Tied to the nucleus, to the membrane, to both, and to neither."""
_REFERENCE = ("membrane", "DNA")
# brightness of DNA above which a pixel is of the nucleus
_NUCLEUS = 0.35
_N_BEADS = 4
_CHUNK = 64


def organisation(
    n: int,
    *,
    size: int = SIZE,
    depth: int | None = None,
    every: bool = False,
    dtype: str = "uint16",
    optics: Optics | None = None,
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Simulate cells with membrane, DNA and one of four structures whose dependence on these two is known.

    ===========  ==========================  ==============================================================
    structure    tied to                     where
    ===========  ==========================  ==============================================================
    perinuclear  nucleus                     a ring 1 pixel outside the nucleus
    cortex       membrane                    a band 2.5 pixels under the membrane
    midway       nucleus and membrane        half-way between them
    beads        neither                     four spots anywhere in the crop, also outside the cell
    ===========  ==========================  ==============================================================

    The first three are brighter on one side, ``obs["side"]`` in radians, which nothing else tells; that and
    ``obs["brightness"]`` is their organisation. Cells are in G1. Pixels are those of a 64-pixel crop.

    Parameters
    ----------
    n
        Number of cells.
    size, depth
        Height and width of the crops, and planes of stacks (None for images).
    every
        Show all four structures in every cell, in channels of their own, instead of one in the channel ``structure``.
    dtype, optics
        As in `images`.

    Returns
    -------
    AnnData with ``obsm["images"]`` (membrane, DNA, structure), ``obsm["masks"]``, ``obs["structure"]`` (unless
    `every`), ``obs["side"]``, ``obs["brightness"]`` and the factors of shape.
    """
    check_number("n", n)
    seed, optics = seed_of(rng), optics or Optics()
    generator = np.random.default_rng(seed)
    scores = {name: generator.standard_normal(n) for name in SCORED}
    obs = draw(scores, size=size, overrides={"phase": (0.0, 0.4)}, rng=generator)
    obs["side"] = generator.uniform(-np.pi, np.pi, n)
    obs["brightness"] = np.exp(0.25 * generator.standard_normal(n))
    shown = generator.permutation(np.arange(n) % len(STRUCTURES))
    expected, masks = render(obs, size=size, depth=depth, psf=optics.psf)
    placed = _structures(expected[:, 0], masks, obs, Grid.of(size, depth), optics.psf, generator)
    reference = expected[:, [1, 0]]
    if every:
        names = [*_REFERENCE, *STRUCTURES]
        sharp = np.concatenate([reference, placed], axis=1)
    else:
        names = [*_REFERENCE, "structure"]
        sharp = np.concatenate([reference, placed[np.arange(n), shown][:, None]], axis=1)
        obs["structure"] = pd.Categorical(np.asarray(STRUCTURES, dtype=object)[shown], list(STRUCTURES))
    cells = AnnData(obs=obs.set_axis([f"cell_{i}" for i in range(n)]))
    set_images(cells, expose(sharp, optics=optics, dtype=dtype, rng=generator), channel_names=names, masks=masks)
    cells.uns["simulation"] = {
        "function": "organisation", "seed": seed, "size": size, "depth": depth or 0, "every": every, "dtype": dtype,
        "optics": asdict(optics),
    }  # fmt: skip
    return cells


def _structures(
    dna: Array, masks: np.ndarray, obs: pd.DataFrame, grid: Grid, psf: float, rng: np.random.Generator
) -> Array:
    """Brightness of the four structures in every cell, ``(n, 4, ...)``, blurred."""
    # pixels of a 64-pixel crop between neighbours along each axis
    steps = [1.0, 1.0] if masks.ndim == 3 else [float(grid.z[1] - grid.z[0]), 1.0, 1.0]
    spacing = np.array(steps) / grid.unit
    blurs = [blur_matrix(grid.z, 2 * psf * grid.unit), blur_matrix(grid.x, psf * grid.unit)]
    angle = np.arctan2(grid.x[:, None], grid.x[None])
    placed = np.empty((len(dna), len(STRUCTURES), *dna.shape[1:]), dtype=np.float32)
    for rows in chunks(len(dna), _CHUNK):
        part = obs.iloc[rows]
        lit = (1 + 0.7 * np.cos(angle - part["side"].to_numpy()[:, None, None])).astype(np.float32)
        lit *= part["brightness"].to_numpy(np.float32)[:, None, None]
        if masks.ndim == 4:
            lit = lit[:, None]
        inside, outside = _distances(dna[rows], masks[rows], spacing)
        share = outside / np.maximum(outside + inside, 1e-3)
        within = masks[rows] > 0
        placed[rows, 0] = lit * _bell(outside, 1.0, 1.0)
        placed[rows, 1] = lit * _bell(inside, 2.5, 1.2) * within
        placed[rows, 2] = lit * _bell(share, 0.5, 0.1) * (within & (outside > 0))
        placed[rows, 3] = _beads(part["brightness"].to_numpy(), grid, rng).reshape(dna[rows].shape)
    stack = placed if masks.ndim == 4 else placed[:, :, None]
    return blur(stack, *blurs).reshape(placed.shape)


def _distances(dna: Array, masks: np.ndarray, spacing: np.ndarray) -> tuple[Array, Array]:
    """Depth under the membrane (0 outside the cell) and distance from the nucleus (negative within), in pixels."""
    inside, outside = np.empty_like(dna), np.empty_like(dna)
    for i, (bright, mask) in enumerate(zip(dna, masks, strict=True)):
        # nucleoli are dark, but not outside
        nucleus = binary_fill_holes(bright > _NUCLEUS * bright.max())
        inside[i] = distance_transform_edt(mask, spacing)
        outside[i] = distance_transform_edt(~nucleus, spacing) - distance_transform_edt(nucleus, spacing)
    return inside, outside


def _bell(values: Array, centre: float, width: float) -> Array:
    return np.asarray(np.exp(-0.5 * ((values - centre) / width) ** 2), dtype=np.float32)


def _beads(brightness: np.ndarray, grid: Grid, rng: np.random.Generator) -> Array:
    n = len(brightness)
    reach = np.array([grid.x[-1], grid.x[-1], grid.z[-1]], dtype=np.float32)
    positions = (rng.uniform(-1, 1, (n, _N_BEADS, 3)) * reach).astype(np.float32)
    weights = np.repeat(2 * brightness[:, None], _N_BEADS, axis=1).astype(np.float32)
    return spots(weights, positions, 1.5, grid)
