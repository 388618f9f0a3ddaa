"""Figures of the documentation's start page: HeLa cells between two stages, and a simulated screen at a glance.

``python -m benchmarks.start_page``
"""

from __future__ import annotations

import warnings
from pathlib import Path

from benchmarks.common import data_dir

import latentcell as lc

IMAGES = Path("docs/images")


def between() -> None:
    """The path from prometaphase to early anaphase through cells of which no metaphase was seen."""
    cells = lc.read(data_dir() / "images" / "hela_h2b_mitosis", channel_names=["H2B", "tubulin"])
    model = lc.VAE(16).fit(cells, exclude={"stage": ["metaphase", "apoptosis"]}, split_key="track", rng=0)
    alive = cells[cells.obs["stage"] != "apoptosis"].copy()
    predicted = lc.tl.interpolate(
        alive, model, "stage", source="prometaphase", target="early_anaphase", truth="metaphase", rng=0
    )
    lc.pl.save(lc.pl.path(predicted, alive, model), IMAGES / "hela_path")


def deviates() -> None:
    """A screen of three plates whose hits are known."""
    plates = lc.cells.simulate.screen(n_plates=3, strengths=(2.0, 3.0), size=32, rng=0)
    lc.tl.screen(plates, group="perturbation", control="control", replicate="well", block="plate", rng=0)
    lc.pl.save(lc.pl.screen(plates), IMAGES / "screen")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    deviates()
    between()
