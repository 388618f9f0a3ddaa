"""Every interior stage of a time course predicted by a model that never saw it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from latentcell import keys
from latentcell.cells.levels import Level, level_rows, ordered_levels
from latentcell.errors import InputError, listed
from latentcell.tl.interpolate import interpolate
from latentcell.tl.span import neighbours

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE

logger = logging.getLogger("latentcell")


def leave_one_out(
    cells: AnnData,
    model: VAE,
    key: str,
    *,
    levels: Sequence[Level] | None = None,
    folder: str | Path | None = None,
    fit: Mapping[str, Any] | None = None,
    rng: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Refit without each interior level, predict it from its neighbours, and compare.

    Parameters
    ----------
    cells
        Cells of all levels.
    model
        Says how to fit: each refit has its settings and none of its weights.
    key
        Column of ``obs`` with times or an ordered categorical.
    levels
        Levels to leave out, one at a time; by default all but the first and the last, in the order of `key`.
    folder
        Keeps the refitted models, one folder per level; those already there are not fitted again, and a fit that was
        interrupted goes on.
    fit
        More arguments of ``VAE.fit``, such as ``{"split_key": "donor", "exclude": {"stage": ["apoptosis"]}}``.
    rng
        Seed of the fits and of the predictions.
    options
        More arguments of `interpolate`: ``pairing``, ``path``, ``replicate`` and so on.

    Returns
    -------
    The evaluations, one below the other: columns held_out, source, target, space, method, metric, value, low, high.
    ``attrs["verdicts"]``: sentences by level and space.

    Raises
    ------
    InputError
        If the levels have no order, fewer than three exist, or a level to leave out has no neighbours.
    """
    known = ordered_levels(cells, key)
    left_out = known[1:-1] if levels is None else list(levels)
    if not left_out:
        raise InputError(
            f"{key!r} has {len(known)} levels: at least three are needed to leave one out between two others."
        )
    for level in left_out:
        level_rows(cells, key, level)
    names = [_file_name(level) for level in left_out]
    if len(set(names)) < len(names):
        raise InputError(f"Some levels of {key!r} have the same file name ({listed(names, 20)}): rename one of them.")
    ends = [neighbours(known, level) for level in left_out]
    tables, verdicts = [], {}
    for level, (source, target) in zip(left_out, ends, strict=True):
        logger.info("leaving out %s %s", key, level)
        refitted = _refitted(cells, model, key, level, None if folder is None else Path(folder), dict(fit or {}), rng)
        predicted = interpolate(cells, refitted, key, source=source, target=target, truth=level, rng=rng, **options)
        result = predicted.uns[keys.INTERPOLATE]
        table = result["evaluation"].copy()
        for place, (name, value) in enumerate({"held_out": level, "source": source, "target": target}.items()):
            table.insert(place, name, value)
        tables.append(table)
        verdicts[f"{level:g}" if isinstance(level, float) else str(level)] = dict(result["verdict"])
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs["verdicts"] = verdicts
    return whole


def _refitted(
    cells: AnnData, model: VAE, key: str, level: Level, folder: Path | None, fit: dict[str, Any], rng: int
) -> VAE:
    """Model fitted without a level; read from `folder` where an earlier run left it there."""
    stored = None if folder is None else folder / f"without_{_file_name(level)}"
    if stored is not None and stored.exists():
        logger.info("read %s", stored)
        return type(model).load(stored)
    exclude = {name: list(each) for name, each in dict(fit.pop("exclude", None) or {}).items()}
    exclude[key] = [*exclude.get(key, []), level]
    checkpoint = None if stored is None else stored.with_name(f"{stored.name}.checkpoint")
    refitted = model.unfitted().fit(cells, exclude=exclude, checkpoint=checkpoint, rng=rng, **fit)
    if stored is not None and checkpoint is not None:
        refitted.save(stored)
        checkpoint.unlink(missing_ok=True)
        logger.info("wrote %s", stored)
    return refitted


def _file_name(level: Level) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in str(level))
