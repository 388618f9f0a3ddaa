"""Sums and differences of populations in the latent space: prophase + anaphase - interphase."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from latentcell import keys
from latentcell.cells.images import set_images
from latentcell.cells.levels import level_rows
from latentcell.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE

On = Literal["means", "cells"]

logger = logging.getLogger("latentcell")

# a sign, an optional factor, and a level, in quotes where it holds spaces or signs
_TERM = re.compile(
    r"""\s*(?P<sign>[+-])?\s*(?:(?P<factor>\d+(?:\.\d+)?)\s*\*\s*)?(?:"(?P<quoted>[^"]+)"|(?P<name>[^\s"+*()/-]+))\s*"""
)


def arithmetic(
    cells: AnnData,
    model: VAE,
    expression: str,
    *,
    key: str | None = None,
    on: On = "means",
    rng: int | np.random.Generator | None = None,
) -> AnnData:
    """Decode a weighted sum of populations' latent positions, as word vectors are added.

    On means, one cell at z = sum of w_k mean(z | level k). On cells, each cell i of the first level is moved by the
    means of the others: z_i' = w_1 z_i + sum over k > 1 of w_k mean(z | level k), which keeps the spread of its
    population. A sum of positions has a meaning of its own only where the weights add up to 1 (a place) or where the
    rest is a difference added to a place, as in ``"prophase + anaphase - interphase"``.

    Parameters
    ----------
    cells
        Cells of all levels, measured as those that the model was fitted on.
    model
        A fitted `latentcell.VAE`.
    expression
        Levels with signs and factors: ``"prophase + anaphase - interphase"``, ``"0.5*day0 + 0.5*day4"``; names that
        hold spaces or signs in double quotes, ``'"T cell" - "B cell" + monocyte'``.
    key
        Column of ``obs`` with the levels; by default the only one that has all of them.
    on
        ``"means"`` or ``"cells"``.
    rng
        Seed of the sampled noise.

    Returns
    -------
    The decoded cells, as `latentcell.tl.interpolate` returns them: mean in ``obsm["images"]`` or ``X``, one draw in
    ``obsm["sampled"]`` or ``layers["sampled"]``, positions in ``obsm["vae"]``; ``obs["source_cell"]`` on cells.
    Decoded in each cell's own batch on cells, in the average batch on means; counts at the training cells' median
    total. ``uns["arithmetic"]``: expression, key and terms (DataFrame: level, weight, n_cells).

    Raises
    ------
    InputError
        If the expression cannot be read, a level does not exist, or no or several columns have all levels.
    """
    if on not in get_args(On):
        raise InputError(f"on={on!r} is unknown; choose one of {', '.join(get_args(On))}.")
    terms = parsed(expression)
    key = _key(cells, [level for level, _ in terms]) if key is None else key
    rows = [level_rows(cells, key, level) for level, _ in terms]
    positions = [np.asarray(model.encode(cells[each]).mu, dtype=np.float64) for each in rows]
    weights = [weight for _, weight in terms]
    moved = sum(w * z.mean(axis=0) for w, z in zip(weights[1:], positions[1:], strict=True))
    first = positions[0] if on == "cells" else positions[0].mean(axis=0, keepdims=True)
    z = (weights[0] * first + moved).astype(np.float32)
    obs = pd.DataFrame(index=pd.Index([f"{on[:-1]}_{number}" for number in range(len(z))]))
    if on == "cells":
        obs["source_cell"] = cells.obs_names[rows[0]].to_numpy()
        if model.batch_key is not None:
            obs[model.batch_key] = cells.obs[model.batch_key].to_numpy()[rows[0]]
    options = _own_batch(model, obs)
    sampled = model.decode(z, noise=True, rng=rng, **options)
    result = with_measurements(model, obs, model.decode(z, **options), sampled, z)
    table = pd.DataFrame({"level": [t[0] for t in terms], "weight": weights, "n_cells": [len(each) for each in rows]})
    result.uns[keys.ARITHMETIC] = {"expression": expression, "key": key, "on": on, "terms": table}
    logger.info("%d decoded cells: %s", result.n_obs, expression)
    return result


def with_measurements(
    model: VAE, obs: pd.DataFrame, mean: NDArray[Any], sampled: NDArray[Any], z: NDArray[np.float32]
) -> AnnData:
    """Cells with decoded means to look at, one draw to compare populations, and their latent positions.

    Of a model with masks they have the masks that it draws, so that any model can be asked about them.
    """
    if model.modality_ == "images":
        cells = AnnData(obs=obs)
        region = model.region(z, **_own_batch(model, obs))
        masks = None if region is None else (region > 0.5).astype(np.uint8)
        set_images(cells, mean, channel_names=model.names_, masks=masks)
        cells.obsm[keys.SAMPLED] = sampled
    else:
        cells = AnnData(X=mean, obs=obs, var=pd.DataFrame(index=pd.Index(model.names_)))
        cells.layers[keys.SAMPLED] = sampled
    cells.obsm[keys.VAE] = z
    return cells


def _own_batch(model: VAE, obs: pd.DataFrame) -> dict[str, Any]:
    """Options with which each cell is decoded in the batch that it has, if it has one."""
    return {"batch": obs[model.batch_key].to_numpy()} if model.batch_key in obs else {}


def parsed(expression: str) -> list[tuple[str, float]]:
    """Levels and weights of an expression such as ``"a + 0.5*b - c"``.

    Raises
    ------
    InputError
        If it cannot be read; the message marks the place.
    """
    terms: list[tuple[str, float]] = []
    expression = expression.strip()
    place = 0
    while place < len(expression):
        match = _TERM.match(expression, place)
        if match is None or match.end() == place or (terms and match["sign"] is None):
            raise InputError(
                f"The expression {expression!r} cannot be read at {expression[place:].strip()[:20]!r}: write levels "
                'with signs and factors, such as 0.5*prophase + 0.5*anaphase - "late G2", without parentheses and '
                "fractions; quote names with spaces or signs."
            )
        weight = float(match["factor"] or 1.0)
        terms.append((match["quoted"] or match["name"], -weight if match["sign"] == "-" else weight))
        place = match.end()
    if not terms:
        raise InputError("The expression is empty: write levels with signs, such as prophase + anaphase - interphase.")
    return terms


def _key(cells: AnnData, levels: list[str]) -> str:
    """Only column of obs that has all levels."""
    having = [str(name) for name in cells.obs if all(_has(cells, str(name), level) for level in levels)]
    if len(having) != 1:
        if having:
            found = f"{len(having)} columns have ({', '.join(having)}) all of the levels"
            raise InputError(f"{found} {', '.join(levels)}: name the column with key.")
        most = max(cells.obs, key=lambda name: sum(_has(cells, str(name), each) for each in levels), default=None)
        missing = [each for each in levels if most is None or not _has(cells, str(most), each)]
        nearest = "" if most is None else f"; {str(most)!r} comes nearest but lacks {', '.join(missing)}"
        raise InputError(f"No column of obs has all of the levels {', '.join(levels)}{nearest}.")
    return having[0]


def _has(cells: AnnData, key: str, level: str) -> bool:
    try:
        return len(level_rows(cells, key, level)) > 0
    except InputError:
        return False
