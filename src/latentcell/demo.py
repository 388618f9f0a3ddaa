"""The demonstration: simulated cells whose truth is known, fitted, questioned and checked in minutes, offline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# share of a factor's variance that the latent position of new cells must explain, or must not where it is a nuisance
_RECOVERED, _REMOVED = 0.5, 0.1
# of perturbations by 3 SD of cells, and of those without effect at a false discovery rate of 0.05
_CALLED, _NULL_CALLED = 0.7, 0.2
# correlation of a guided dimension with its factor; level below which a factor without effect must not fall
_FOLLOWED, _LEVEL = 0.8, 0.05
_FACTORS = ("size", "intensity", "elongation", "nucleus_ratio")
_PROGRAMMES = ("programme_1", "programme_2", "programme_3", "programme_4")
_BASELINES = ("source", "target", "mixture")


@dataclass(frozen=True)
class Check:
    """One answer held against the simulated truth.

    Attributes
    ----------
    question
        What was asked and in which unit.
    value
        What the fit answered.
    limit
        What the value is compared with.
    passed
        Whether it lies on the right side.
    """

    question: str
    value: float
    limit: float
    passed: bool

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}  {self.question}: {self.value:.2f} (limit {self.limit:.2f})"


def run(out: str | Path, *, rng: int = 0) -> list[Check]:
    """Run the demonstration and write its figures, tables and models below `out`.

    A time course of cell images is simulated and its middle time hidden. A VAE is fitted to the others; the middle
    is predicted and compared with the hidden cells; the simulated factors are read back from the latent positions of
    new cells. The same is done for counts of genes with known programmes. A screen of images, with perturbations that
    act and others that do not, is questioned for its hits. Cell type and phase of simulated counts are placed on latent
    dimensions of their own and read back from cells that no fit has seen.

    Writes ``images/`` and ``counts/`` (figures, model), ``interpolate/`` (``evaluation.csv``, ``predicted.h5ad``,
    figure), ``factors/`` and ``screen/`` (what the commands of these names write) and ``checks.csv``.

    Returns
    -------
    The checks, in order.
    """
    out = Path(out)
    checks = [
        *_images(out, rng),
        *_counts(out / "counts", rng),
        *_factors(out / "factors", rng),
        *_screen(out / "screen", rng),
    ]
    pd.DataFrame(checks).to_csv(out / "checks.csv", index=False)
    return checks


def explained(latent: np.ndarray, factor: np.ndarray) -> float:
    """Share of a factor's variance that a ridge regression on the latent position explains, 5-fold cross-validated."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    model = make_pipeline(StandardScaler(), PolynomialFeatures(2), RidgeCV(np.logspace(-1, 4, 11)))
    predicted = cross_val_predict(model, latent, factor, cv=KFold(5, shuffle=True, random_state=0))
    return float(1 - np.mean((factor - predicted) ** 2) / np.var(factor))


def _images(out: Path, rng: int) -> list[Check]:
    import latentcell as lc
    from latentcell.cells.stores import write_h5ad

    logger.info("1 of 4: simulating 900 cells of five times; those of the middle one are hidden from the fit")
    cells = lc.cells.simulate.time_course(180, (0, 0.25, 0.5, 0.75, 1), size=40, rng=rng)
    model = lc.VAE(n_latent=8).fit(cells, exclude={"time": [0.5]}, epochs=120, rng=rng)
    model.save(out / "images" / "model")
    lc.tl.embed(cells, model)
    predicted = lc.tl.interpolate(cells, model, "time", truth=0.5, rng=rng)
    write_h5ad(predicted, out / "interpolate" / "predicted.h5ad", images=True)
    evaluation = predicted.uns["interpolate"]["evaluation"]
    for sentence in predicted.uns["interpolate"]["verdict"].values():
        logger.info("%s", sentence)
    evaluation.to_csv(out / "interpolate" / "evaluation.csv", index=False)
    for name, figure in {
        "images/latent_grid": lc.pl.latent_grid(model),
        "images/traversal": lc.pl.traversal(model),
        "images/reconstruction": lc.pl.reconstruction(model, cells, rng=rng),
        "images/latent": lc.pl.latent(cells, color="time"),
        "images/training": lc.pl.training(model),
        "interpolate/interpolation": lc.pl.interpolation(predicted, cells, model),
        "interpolate/path": lc.pl.path(predicted, cells, model),
    }.items():
        lc.pl.save(figure, out / name)
    fresh = lc.cells.simulate.time_course(200, size=40, rng=rng + 1)
    codes = model.encode(fresh).mu
    return [_nearer_than_baselines(evaluation), *_recovered(fresh, codes, _FACTORS), _removed(fresh, codes)]


def _counts(out: Path, rng: int) -> list[Check]:
    import latentcell as lc

    logger.info("2 of 4: simulating counts of 300 genes in 2,000 cells; 400 of them are hidden from the fit")
    cells = lc.cells.simulate.counts(2000, 300, rng=rng)
    cells.obs["set"] = np.where(np.arange(cells.n_obs) < 1600, "train", "new")
    model = lc.VAE(n_latent=8).fit(cells, exclude={"set": ["new"]}, rng=rng)
    model.save(out / "model")
    lc.tl.embed(cells, model)
    for name, figure in {
        "traversal": lc.pl.traversal(model),
        "latent": lc.pl.latent(cells, color="cell_type"),
        "training": lc.pl.training(model),
    }.items():
        lc.pl.save(figure, out / name)
    new = cells[cells.obs["set"] == "new"]
    return _recovered(new, new.obsm["vae"], _PROGRAMMES)


def _factors(out: Path, rng: int) -> list[Check]:
    import latentcell as lc
    from latentcell.results import write_factors

    logger.info("3 of 4: simulating counts in three batches; cell type and phase get latent dimensions of their own")
    cells = lc.cells.simulate.counts(1200, 200, n_batches=3, rng=rng)
    names, chance = ["cell_type", "phase:cyclic"], "nothing"
    cells.obs[chance] = np.random.default_rng(rng).permutation(cells.obs["programme_3"].to_numpy())
    model = lc.VAE(8, factors=lc.Factors(guided=names, nuisance=["batch"])).fit(cells, epochs=80, rng=rng)
    lc.tl.factors(cells, model, [*names, chance], nuisance=["batch"], seeds=2, fit={"epochs": 80}, rng=rng)
    write_factors(cells, model, out)
    related = cells.uns["factors"]["relations"].groupby("factor")
    found, p = related["correlation"].max(), related["p"].min()
    return [
        _at_least(
            "factors, correlation of cell type with its dimension in unseen cells", found["cell_type"], _FOLLOWED
        ),
        _at_least("factors, correlation of the phase with its dimension, unseen cells", found["phase"], _FOLLOWED),
        _at_least("factors, p of a permuted factor", p[chance], _LEVEL),
    ]


def _screen(out: Path, rng: int) -> list[Check]:
    import latentcell as lc
    from latentcell.results import write_screen

    logger.info("4 of 4: simulating a screen: 3 plates of 16 controls and 16 perturbations, of which 5 do nothing")
    cells = lc.cells.simulate.screen(
        cells_per_well=30, n_perturbations=16, strengths=(3.0,), position_effect=0.0, size=32, rng=rng
    )
    model = lc.tl.screen(
        cells, lc.VAE(8), group="perturbation", control="control", replicate="well", block="plate",
        fit={"epochs": 60}, rng=rng,
    )  # fmt: skip
    write_screen(cells, model, out, sheets=3)
    truth = cells.uns["simulation"]["perturbations"]
    hits = cells.uns["screen"]["hits"].join(truth[["kind", "is_null"]], on="label")
    called, fewer = hits["q"] <= 0.05, hits["kind"] == "fewer_cells"
    acting = ~hits["is_null"] & ~fewer
    return [
        _at_least("screen, share of the perturbations that act which is called", called[acting].mean(), _CALLED),
        _at_most(
            "screen, share of those that do nothing which is called", called[hits["is_null"]].mean(), _NULL_CALLED
        ),
        _at_most("screen, smallest q of the loss of cells, by count", hits.loc[fewer, "q_count"].min(), 0.05),
    ]


def _at_least(question: str, value: float, limit: float) -> Check:
    return Check(question, float(value), limit, bool(value >= limit))


def _at_most(question: str, value: float, limit: float) -> Check:
    return Check(question, float(value), limit, bool(value <= limit))


def _nearer_than_baselines(evaluation: pd.DataFrame) -> Check:
    """Energy distance of the prediction against the best of what needs no model, in model space."""
    rows = evaluation.query("space == 'model' and metric == 'energy distance'").set_index("method")["value"]
    prediction, best = float(rows.iloc[0]), float(rows[list(_BASELINES)].min())
    question = "hidden middle, distance of the prediction (limit: the best of either end and their mixture, no model)"
    return Check(question, prediction, best, prediction < best)


def _recovered(cells: AnnData, latent: np.ndarray, factors: Sequence[str]) -> list[Check]:
    checks = []
    for name in factors:
        value = explained(latent, cells.obs[name].to_numpy(dtype=float))
        checks.append(Check(f"{name}, share of its variance read back", value, _RECOVERED, value > _RECOVERED))
    return checks


def _removed(cells: AnnData, latent: np.ndarray) -> Check:
    """Orientation is a nuisance: the latent space should not hold it."""
    double_angle = 2 * cells.obs["orientation"].to_numpy(dtype=float)
    value = max(explained(latent, np.cos(double_angle)), explained(latent, np.sin(double_angle)))
    return Check("orientation, share that the latent space still holds", value, _REMOVED, value < _REMOVED)
