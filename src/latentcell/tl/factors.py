"""What drives variation: factors on latent dimensions, and their covariance with what was measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell import keys
from latentcell.cells.factors import read_factors, read_nuisance, refuse_inseparable
from latentcell.cells.levels import column
from latentcell.errors import InputError, listed
from latentcell.stats.association import factor_association
from latentcell.stats.gene_sets import read_gmt, usable_sets
from latentcell.tl.coded import Coded, active_dimensions, coded
from latentcell.tl.dimensions import dimensions_table
from latentcell.tl.effects import (
    MOST_CELLS,
    Design,
    columns_of,
    effect_maps,
    effects_table,
    implied,
    measured_variables,
)
from latentcell.tl.embed import provenance
from latentcell.tl.relations import leak, principal_components, read_back, relations, scores
from latentcell.tl.said import said

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE
    from latentcell.stats.factor import Factor

logger = logging.getLogger("latentcell")


def factors(
    cells: AnnData,
    model: VAE,
    factors: str | Sequence[str],
    *,
    nuisance: str | Sequence[str] = (),
    seeds: int = 5,
    replicate: str | None = None,
    gene_sets: str | Path | Mapping[str, Sequence[str]] | None = None,
    folder: str | Path | None = None,
    fit: Mapping[str, Any] | None = None,
    rng: int = 0,
) -> None:
    """Say which latent dimension holds which factor, how surely, and how each covaries with each measured variable.

    The model is fitted again with other seeds, because which dimension holds what depends on the seed (Locatello et
    al. 2019), and dimensions are matched. A model with guided factors has seen their values: each of its refits leaves
    out a part of the cells, and every cell is judged by a fit that has not seen it.

    Writes ``obsm["factors"]`` (codes that factors were held against, ``(n, d)`` float32) and ``uns["factors"]``:

    - ``metrics``: disentanglement scores with permutation null, p and interval (`stats.disentanglement.metrics`), for
      the model, each refit, and principal components as the baseline;
    - ``relations``: correlation of each dimension with each factor beside its null;
    - ``dimensions``: what each dimension carries, its factor, its stability and its name;
    - ``stability``: absolute correlation of each dimension with its match in each refit;
    - ``effects``: covariance of each dimension and each factor with each variable: genes (log1p of counts per 10,000),
      features of profiles, hand-made features of images;
    - ``maps``, for images: the same with each pixel, a dict of arrays ``(columns, C, [Z,] H, W)``; ``map_names``;
    - ``read_back``: how well guided factors are read from codes of cells that the fit has not seen;
    - ``leak``: what the dimensions tell of nuisance factors; ``association``: which factors go together;
    - ``gene_sets``: enrichment of each dimension and factor, where sets were given;
    - ``verdict``: sentences; ``params``.

    Parameters
    ----------
    cells
        Cells with the factors in ``obs``. At most 5,000 are used for covariances and scores.
    model
        Fitted.
    factors
        Columns of ``obs``, each ``name`` or ``name:kind`` with the kind continuous, ordinal, categorical or cyclic
        (``phase:cyclic`` for shares of a turn, ``hour:cyclic=24`` for another period). Without a kind numbers are
        continuous, ordered categories ordinal and everything else categorical.
    nuisance
        Columns that covariances are adjusted for and whose leak is measured. Within their levels only are factors
        permuted.
    seeds
        Number of refits.
    replicate
        Column of ``obs`` with the unit: well, donor, embryo. Without, cells count as independent, which those of one
        well are not.
    gene_sets
        GMT file, or genes by set.
    folder
        Keeps the refitted models: those there already are read, an interrupted fit goes on.
    fit
        Arguments of ``VAE.fit`` in which the refits differ from the model's own fit, such as
        ``{"split_key": "donor"}``.
    rng
        Seed of everything.

    Raises
    ------
    InputError
        If a column is no factor or cannot be separated from a nuisance factor, or cells do not match the model.
    """
    asked, held = read_factors(cells, _as_guided(model, _several(factors))), read_nuisance(cells, _several(nuisance))
    if not asked:
        raise InputError(f"Name at least one factor; columns of obs: {listed(cells.obs.columns, 12)}.")
    refuse_inseparable(asked, held)
    for factor in asked:
        logger.info("factor %r is read as %s", factor.name, factor.kind)
        known = factor.value[factor.known]
        if factor.kind == "continuous" and len(np.unique(known)) == len(known) and (known == known.round()).all():
            logger.warning("%s is another whole number in every cell: is it a name of cells?", factor.name)
    sets = None if gene_sets is None else _sets(gene_sets, model)
    unit = None if replicate is None else _units(cells, replicate)
    design = Design.of(held, unit)
    found = coded(
        cells,
        model,
        seeds=seeds,
        replicate=unit,
        folder=None if folder is None else Path(folder),
        fit=dict(fit or {}),
        seed=rng,
    )
    result = _result(cells, found, asked, held, design, sets, rng)
    result["params"] = {
        "factors": [factor.text for factor in asked],
        "nuisance": [factor.text for factor in held],
        "seeds": seeds,
        "replicate": replicate or "",
        "rng": rng,
        **{name: value for name, value in provenance(model, rng).items() if name.endswith("sha256")},
    }
    result["verdict"] = said(result, found, asked, held, replicate)
    cells.obsm[keys.FACTORS] = found.mu.astype(np.float32)
    cells.uns[keys.FACTORS] = result
    logger.info("added %r (adata.uns; codes in adata.obsm, %d x %d)", keys.FACTORS, *found.mu.shape)


def _result(
    cells: AnnData,
    found: Coded,
    asked: list[Factor],
    held: list[Factor],
    design: Design,
    sets: Mapping[str, Sequence[str]] | None,
    seed: int,
) -> dict[str, Any]:
    """Tables and maps."""
    model, rng = found.models[0], np.random.default_rng([seed, 4])
    # in random order, so that a first part of them is a sample too
    rows = rng.permutation(cells.n_obs)[:MOST_CELLS]
    logger.info("covariances of %d cells", len(rows))
    variables = measured_variables(cells, model, rows)
    used = active_dimensions(model)
    active = [k for k in model.dimensions_ if used[k]]
    columns = columns_of(found, asked, active, rows)
    effects, enriched = effects_table(
        columns, variables, rows, implied(found, columns, rows, design), design, gene_sets=sets, seed=seed
    )
    logger.info("scores of %d dimensions against %d factors", found.mu.shape[1], len(asked))
    related = relations(found.mu, asked, design, rng=rng)
    baseline = principal_components(variables.to_numpy(), found.mu.shape[1], rng=rng)
    taken = [factor.take(rows) for factor in asked]
    varying = [factor for factor in taken if len(np.unique(factor.value[factor.known])) > 1]
    result: dict[str, Any] = {
        "metrics": scores(found.take(rows), varying, design.take(rows), baseline, rng=rng),
        "relations": related,
        "dimensions": dimensions_table(found, related, effects, rows),
        "stability": pd.DataFrame(found.stability.T, columns=[f"seed {i}" for i in range(1, len(found.models))]),
        "effects": effects,
        "leak": leak(found.codes[0], held, rng=rng),
        "read_back": read_back(found, asked),
        "association": factor_association([*asked, *held]),
    }
    if sets is not None:
        result["gene_sets"] = enriched
    if model.modality_ == "images":
        result["maps"] = effect_maps(cells, model, columns, rows, design, seed=seed)
        result["map_names"] = [each.name for each in columns]
    return result


def _as_guided(model: VAE, names: list[str]) -> list[str]:
    """Names with the kinds by which they guided the model."""
    guided = {guide.name: guide.column for guide in model.schema_.guidance.guides}
    read = []
    for text in names:
        name, _, kind = text.partition(":")
        own = guided.get(name, text)
        if kind and own.partition(":")[2].partition("=")[0] != kind.partition("=")[0]:
            raise InputError(
                f"The model was guided by {own!r}, so {name!r} cannot be judged as {kind!r}: leave that out."
            )
        read.append(own)
    return read


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _units(cells: AnnData, replicate: str) -> Any:
    values = column(cells, replicate)
    if values.isna().any():
        missing = cells.obs_names[values.isna().to_numpy()]
        raise InputError(f"obs[{replicate!r}] is empty for {len(missing)} cells ({listed(missing)}).")
    return values.astype(str).to_numpy()


def _sets(given: str | Path | Mapping[str, Sequence[str]], model: VAE) -> Mapping[str, Sequence[str]]:
    if model.modality_ == "images":
        raise InputError("Gene sets need genes, but this model was fitted on images.")
    sets = given if isinstance(given, Mapping) else read_gmt(given)
    usable_sets(model.names_, sets)
    return sets
