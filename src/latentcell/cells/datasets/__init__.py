"""Public data sets as AnnData: fetched once from their original hosts, checked, and kept in one folder.

``available()`` lists them; ``load(name)`` calls the function of that name. Files lie in the folder named by the
environment variable ``LATENTCELL_CACHE``, else in the user's cache folder; ``LATENTCELL_MIRROR`` names a server that
holds copies in the same layout (``MIRROR/dataset/path``), for example a served cache folder. A download that breaks off
goes on where it stopped. Each data set has its own licence and paper to cite: see ``uns["dataset"]`` of the cells.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentcell.cells.datasets.allen import allen_cells
    from latentcell.cells.datasets.allen_tables import allen_features
    from latentcell.cells.datasets.catalogue import available, load, save
    from latentcell.cells.datasets.compounds import bbbc021
    from latentcell.cells.datasets.fetching import cache_folder
    from latentcell.cells.datasets.films import mitocheck
    from latentcell.cells.datasets.jurkat import bbbc048
    from latentcell.cells.datasets.sprites import dsprites
    from latentcell.cells.datasets.transcriptomes import embryoid_body, kang2018

__all__ = [
    "allen_cells", "allen_features", "available", "bbbc021", "bbbc048", "cache_folder", "dsprites", "embryoid_body",
    "kang2018", "load", "mitocheck", "save",
]  # fmt: skip

_HOMES = {
    "allen_cells": "allen",
    "allen_features": "allen_tables",
    "available": "catalogue",
    "bbbc021": "compounds",
    "bbbc048": "jurkat",
    "cache_folder": "fetching",
    "dsprites": "sprites",
    "embryoid_body": "transcriptomes",
    "kang2018": "transcriptomes",
    "load": "catalogue",
    "mitocheck": "films",
    "save": "catalogue",
}


def __getattr__(name: str) -> Any:
    # the list of data sets needs neither pandas nor anndata
    if name not in _HOMES:
        raise AttributeError(f"module 'latentcell.cells.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"latentcell.cells.datasets.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
