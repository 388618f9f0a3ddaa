"""latentcell: variational autoencoding for biologists.

Three questions about cells, for images, counts and measured profiles with the same verbs: what lies between
(``tl.interpolate``), what drives variation (``tl.factors``), what deviates (``tl.screen``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentcell.lazy import attached

if TYPE_CHECKING:
    from latentcell import cells, pl, stats, tl
    from latentcell.cells.check import info
    from latentcell.cells.read import read
    from latentcell.errors import InputError
    from latentcell.model import likelihoods, objectives
    from latentcell.model.guidance import Factors
    from latentcell.model.integrated import IntegratedCell
    from latentcell.model.settings import Settings
    from latentcell.model.vae import VAE

__version__ = "0.1.0"
__all__ = [
    "VAE", "Factors", "InputError", "IntegratedCell", "Settings", "cells", "info", "likelihoods", "objectives", "pl",
    "read", "stats", "tl",
]  # fmt: skip

__getattr__, __dir__ = attached(
    __name__,
    {
        "VAE": "latentcell.model.vae:VAE",
        "Factors": "latentcell.model.guidance:Factors",
        "InputError": "latentcell.errors:InputError",
        "IntegratedCell": "latentcell.model.integrated:IntegratedCell",
        "Settings": "latentcell.model.settings:Settings",
        "cells": "latentcell.cells",
        "info": "latentcell.cells.check:info",
        "likelihoods": "latentcell.model.likelihoods",
        "objectives": "latentcell.model.objectives",
        "pl": "latentcell.pl",
        "read": "latentcell.cells.read:read",
        "stats": "latentcell.stats",
        "tl": "latentcell.tl",
    },
)
