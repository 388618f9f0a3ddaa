"""From the bench to AnnData: reading, checking, cropping, simulating, and minibatches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentcell.cells import datasets, simulate
    from latentcell.cells.crops import crop_cells
    from latentcell.cells.images import set_images
    from latentcell.cells.levels import keep_out, ordered
    from latentcell.cells.stores import write_h5ad, write_zarr

__all__ = ["crop_cells", "datasets", "keep_out", "ordered", "set_images", "simulate", "write_h5ad", "write_zarr"]

_HOMES = {
    "crop_cells": "crops",
    "keep_out": "levels",
    "ordered": "levels",
    "set_images": "images",
    "write_h5ad": "stores",
    "write_zarr": "stores",
}


def __getattr__(name: str) -> Any:
    # lazily, so that a module that needs only `cells.images` does not load pandas and anndata for the simulator
    if name in ("datasets", "simulate"):
        return importlib.import_module(f"latentcell.cells.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"latentcell.cells.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'latentcell.cells' has no attribute {name!r}")
