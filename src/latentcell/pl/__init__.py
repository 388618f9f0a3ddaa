"""Figures, returned and never shown: what the model learnt, how it was trained, and the answers."""

from __future__ import annotations

from latentcell.pl._style import save
from latentcell.pl.grid import latent_grid
from latentcell.pl.interpolation import interpolation
from latentcell.pl.latent import latent
from latentcell.pl.reconstruction import reconstruction
from latentcell.pl.training import training
from latentcell.pl.traversal import traversal

__all__ = ["interpolation", "latent", "latent_grid", "reconstruction", "save", "training", "traversal"]
