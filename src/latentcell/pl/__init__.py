"""Figures, returned and never shown: what the model learnt, how it was trained, and the answers."""

from __future__ import annotations

from latentcell.pl._style import save
from latentcell.pl.changes import changes
from latentcell.pl.contact_sheet import contact_sheet
from latentcell.pl.evaluation import evaluation
from latentcell.pl.grid import latent_grid
from latentcell.pl.interpolation import interpolation
from latentcell.pl.latent import latent
from latentcell.pl.path import path
from latentcell.pl.reconstruction import reconstruction
from latentcell.pl.screen import screen
from latentcell.pl.similarity import similarity
from latentcell.pl.training import training
from latentcell.pl.traversal import traversal

__all__ = [
    "changes",
    "contact_sheet",
    "evaluation",
    "interpolation",
    "latent",
    "latent_grid",
    "path",
    "reconstruction",
    "save",
    "screen",
    "similarity",
    "training",
    "traversal",
]
