"""Figures, returned and never shown: what the model learnt, how it was trained, and the answers."""

from __future__ import annotations

from latentcell.pl._style import save
from latentcell.pl.changes import changes
from latentcell.pl.contact_sheet import contact_sheet
from latentcell.pl.coupling import coupling, reconstruction_kl
from latentcell.pl.effects import effects
from latentcell.pl.evaluation import evaluation
from latentcell.pl.factors import dimension_titles, factors
from latentcell.pl.grid import latent_grid
from latentcell.pl.integrated import integrated, organisation, predicted
from latentcell.pl.interpolation import interpolation
from latentcell.pl.latent import latent
from latentcell.pl.path import path
from latentcell.pl.reconstruction import reconstruction
from latentcell.pl.screen import screen
from latentcell.pl.similarity import similarity
from latentcell.pl.stability import stability
from latentcell.pl.trade_off import trade_off
from latentcell.pl.training import training
from latentcell.pl.traversal import traversal
from latentcell.pl.volcano import volcano

__all__ = [
    "changes",
    "contact_sheet",
    "coupling",
    "dimension_titles",
    "effects",
    "evaluation",
    "factors",
    "integrated",
    "interpolation",
    "latent",
    "latent_grid",
    "organisation",
    "path",
    "predicted",
    "reconstruction",
    "reconstruction_kl",
    "save",
    "screen",
    "similarity",
    "stability",
    "trade_off",
    "training",
    "traversal",
    "volcano",
]
