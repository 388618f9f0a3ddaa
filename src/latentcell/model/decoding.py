"""From codes to measurements in stored units, block by block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from latentcell.model.module import VAEModule
from latentcell.model.refine import sharpened
from latentcell.model.refiner import Refiner
from latentcell.model.schema import Schema

_BLOCK, _SHARP_BLOCK = 256, 32  # cells decoded at once, and cells drawn at once


class Conditions(NamedTuple):
    """What the decoder is told beside the code.

    Attributes
    ----------
    covariates
        ``(n, k)`` float32 or None.
    library_size
        Total counts of each cell, ``(n,)`` or a number, or None for the training cells' median.
    """

    covariates: np.ndarray | None
    library_size: float | np.ndarray | None


def decode(
    module: VAEModule,
    schema: Schema,
    z: np.ndarray,
    given: Conditions,
    *,
    refiner: Refiner | None = None,
    noise: bool = False,
    rng: int | np.random.Generator | None = None,
) -> np.ndarray:
    """Measurements ``(n, ...)`` float32 at codes ``(n, d)``: means, draws with `noise`, or draws of the `refiner`."""
    generator = np.random.default_rng(rng)
    size = None
    if schema.library_size is not None:
        total = schema.library_size if given.library_size is None else given.library_size
        size = np.broadcast_to(np.asarray(total, dtype=np.float32), len(z)).copy()
    device, block = next(module.parameters()).device, _BLOCK if refiner is None else _SHARP_BLOCK

    def on_device(values: np.ndarray | None, rows: slice) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values[rows]).to(device)

    decoded = np.empty((len(z), *schema.shape), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(z), block):
            rows = slice(start, start + block)
            codes, told = torch.from_numpy(z[rows]).to(device), on_device(given.covariates, rows)
            if refiner is not None:
                x = sharpened(module, refiner, codes, told, generator)
            else:
                x = module.measurements(codes, told, on_device(size, rows), generator if noise else None)
            decoded[rows] = schema.unscaled(x.cpu().numpy())
    return decoded
