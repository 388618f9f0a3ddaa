"""latentcell: variational autoencoding for biologists.

Three questions about cells, for images, counts and measured profiles with the same verbs: what lies between
(``tl.interpolate``), what drives variation (``tl.factors``), what deviates (``tl.screen``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentcell import cells, pl, stats, tl
    from latentcell.cells.check import info
    from latentcell.cells.read import read
    from latentcell.errors import InputError
    from latentcell.model import likelihoods, objectives
    from latentcell.model.guidance import Factors
    from latentcell.model.integrated import IntegratedCell
    from latentcell.model.vae import VAE

__version__ = "0.1.0"
__all__ = [
    "VAE", "Factors", "InputError", "IntegratedCell", "cells", "info", "likelihoods", "objectives", "pl", "read",
    "stats", "tl",
]  # fmt: skip

# name -> (module, attribute or None for the module itself); resolved on first use, so that `import latentcell`
# costs milliseconds and loads neither torch nor matplotlib
_LAZY: dict[str, tuple[str, str | None]] = {
    "VAE": ("latentcell.model.vae", "VAE"),
    "Factors": ("latentcell.model.guidance", "Factors"),
    "InputError": ("latentcell.errors", "InputError"),
    "IntegratedCell": ("latentcell.model.integrated", "IntegratedCell"),
    "cells": ("latentcell.cells", None),
    "info": ("latentcell.cells.check", "info"),
    "likelihoods": ("latentcell.model.likelihoods", None),
    "objectives": ("latentcell.model.objectives", None),
    "pl": ("latentcell.pl", None),
    "read": ("latentcell.cells.read", "read"),
    "stats": ("latentcell.stats", None),
    "tl": ("latentcell.tl", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'latentcell' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
