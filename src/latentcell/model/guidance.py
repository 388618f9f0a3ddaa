"""Factors that a model is told of: those that place cells in chosen dimensions, and those that it must not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from latentcell.cells.factors import read_factors, read_nuisance, refuse_inseparable, refuse_unvarying
from latentcell.errors import InputError, listed
from latentcell.stats.factor import Array, Factor, Kind

if TYPE_CHECKING:
    from anndata import AnnData

# correlation of a guided dimension with its factor under the prior; what is left is how cells of one level may differ
_CORRELATION = 0.95
SPREAD = float(np.sqrt(1 - _CORRELATION**2))
"""SD of codes around the position of their factor."""

# knots that remember how a number is spread
_KNOTS = 257


@dataclass(frozen=True)
class Factors:
    """Factors that a `latentcell.VAE` is told of in training.

    A guided factor gets the first free dimensions for itself: one for a number or an ordered factor, two for a cyclic
    one (cosine and sine), one for two levels and K - 1 for K levels without order. There the prior of a cell is
    centred on the position of its level (conditional prior, Khemakhem et al. 2020), elsewhere and where the factor is
    unknown it is N(0, I). The encoder never sees a factor, so new cells need none. Nuisance factors are told to the
    decoder, and their dependence with what factors leave unsaid of the code is penalised (Lopez et al. 2018).

    Parameters
    ----------
    guided
        Columns of ``obs``, each ``name`` or ``name:kind`` (see `latentcell.cells.factors.read_factors`); values may be
        missing for part of the cells.
    nuisance
        Columns of ``obs`` that the latent space should not hold: plate, donor, library size.
    weight
        Weight of the cells' positions beyond what the prior asks for, per measured value of a cell; more makes
        dimensions follow the factor more closely, at the cost of what no factor explains.
    independence
        Weight of the dependence between nuisance and code, in nats per measured value of a cell.
    """

    guided: Sequence[str] = ()
    nuisance: Sequence[str] = ()
    weight: float = 0.05
    independence: float = 0.1

    def __post_init__(self) -> None:
        for name in ("guided", "nuisance"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        if not (0 <= self.weight < np.inf and 0 <= self.independence < np.inf):
            raise InputError(f"{self}: weight and independence must be finite and not negative.")


@dataclass(frozen=True)
class Guide:
    """Where the levels of a guided factor lie in its dimensions.

    Attributes
    ----------
    column, kind, levels, period
        As of the factor; `column` is how it is read from ``obs``.
    start
        First of its dimensions.
    numbers, scores
        For a continuous factor: knots of the map from its values to standard normal scores.
    positions
        For levels: position of each, ``(K, width)``.
    """

    column: str
    kind: Kind
    start: int
    period: float = 1.0
    levels: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, factor: Factor, start: int) -> Guide:
        """From a factor of the training cells."""
        known = factor.value[factor.known]
        if factor.kind == "cyclic":
            return cls(factor.text, factor.kind, start, factor.period)
        if factor.kind == "continuous":
            numbers, scores = _score_map(known)
            return cls(factor.text, factor.kind, start, numbers=numbers, scores=scores)
        n = len(factor.levels)
        if factor.kind == "ordinal":
            at = _level_scores(np.bincount(known.astype(int), minlength=n))[:, None]
        else:
            at = simplex(n)
        placed = tuple(tuple(map(float, row)) for row in _CORRELATION * at)
        return cls(factor.text, factor.kind, start, levels=factor.levels, positions=placed)

    @property
    def name(self) -> str:
        """Name of the factor."""
        return self.column.partition(":")[0]

    @property
    def width(self) -> int:
        """Number of its dimensions."""
        return 2 if self.kind == "cyclic" else len(self.positions[0]) if self.positions else 1

    @property
    def dimensions(self) -> list[int]:
        """Its dimensions."""
        return list(range(self.start, self.start + self.width))

    def place(self, factor: Factor) -> Array:
        """Position of each cell, ``(n, width)``; NaN where the factor is unknown or its level was not in training."""
        if self.kind == "cyclic":
            # a uniform phase then has variance 1 in either dimension
            return np.sqrt(2) * _CORRELATION * factor.columns()[0]
        if self.kind == "continuous":
            return _CORRELATION * np.interp(factor.value, self.numbers, self.scores)[:, None]
        index = {level: i for i, level in enumerate(self.levels)}
        table = np.vstack([np.asarray(self.positions), np.full(self.width, np.nan)])
        translated = np.array([index.get(level, -1) for level in factor.levels] + [-1])
        return table[translated[np.where(factor.known, factor.value, -1).astype(int)]]

    def read(self, codes: Array) -> Any:
        """Factor of each cell as its code ``(n, d)`` tells it: a number in the column's units, or the nearest level."""
        own = np.asarray(codes, dtype=np.float64)[:, self.start : self.start + self.width]
        if self.kind == "cyclic":
            return self.period * ((np.arctan2(own[:, 1], own[:, 0]) / (2 * np.pi)) % 1.0)
        if self.kind == "continuous":
            return np.interp(own[:, 0] / _CORRELATION, self.scores, self.numbers)
        distance = ((own[:, None] - np.asarray(self.positions)) ** 2).sum(2)
        return np.asarray(self.levels, dtype=object)[distance.argmin(1)]


@dataclass(frozen=True)
class Nuisance:
    """A nuisance factor as columns given to the decoder.

    Attributes
    ----------
    column, levels
        As of the factor; `column` is how it is read from ``obs``.
    centre, scale
        Of the columns in training: they are centred, and numbers divided by their SD. A level is an indicator, its
        centre its share.
    """

    column: str
    centre: tuple[float, ...]
    scale: float
    levels: tuple[str, ...] = ()

    @classmethod
    def of(cls, factor: Factor) -> Nuisance:
        """From a factor of the training cells."""
        columns = _indicators(factor)[factor.known]
        scale = 1.0 if factor.levels else float(columns.std())
        return cls(factor.text, tuple(map(float, columns.mean(0))), scale, factor.levels)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.centre)

    def columns(self, factor: Factor) -> Array:
        """Columns ``(n, width)``, 0 (the average) where the factor is unknown or its level was not in training."""
        values = _indicators(factor)
        if self.levels:
            known = np.full((len(values), self.width), np.nan)
            for i, level in enumerate(self.levels):
                if level in factor.levels:
                    known[:, i] = values[:, factor.levels.index(level)]
            new = ~np.isin(np.asarray(factor.levels, dtype=object), self.levels)
            known[values[:, new].any(axis=1)] = np.nan
            values = np.where(np.isnan(known).all(1, keepdims=True), np.nan, np.nan_to_num(known))
        return np.nan_to_num((values - np.asarray(self.centre)) / self.scale, nan=0.0)


@dataclass(frozen=True)
class Guidance:
    """Guided and nuisance factors of a fitted model."""

    guides: tuple[Guide, ...] = ()
    nuisance: tuple[Nuisance, ...] = field(default=())

    @classmethod
    def register(
        cls, cells: AnnData, rows: Any, factors: Factors, n_latent: int, batch_key: str | None = None
    ) -> Guidance:
        """Read from the training cells `rows` what the model must remember; the decoder is told `batch_key` too.

        Raises
        ------
        InputError
            If a column is no factor (see `read_factors`), a guided factor cannot be separated from a nuisance factor,
            or there are too few latent dimensions.
        """
        # the kind of a column and the names of its levels are read from all cells, its levels from those of training
        guided = [each.take(rows).present() for each in read_factors(cells, factors.guided)]
        nuisance = [each.take(rows).present() for each in read_nuisance(cells, factors.nuisance)]
        for factor in (*guided, *nuisance):
            refuse_unvarying(factor)
        told = [] if batch_key is None else [each.take(rows) for each in read_nuisance(cells, [batch_key])]
        refuse_inseparable(guided, [*nuisance, *told])
        guides: list[Guide] = []
        for factor in guided:
            guides.append(Guide.of(factor, sum(each.width for each in guides)))
        taken = sum(each.width for each in guides)
        if taken > n_latent:
            wanted = ", ".join(f"{each.name} {each.width}" for each in guides)
            raise InputError(
                f"The guided factors take {taken} latent dimensions ({wanted}), but the model has {n_latent}: give it "
                "more, with some to spare for what no factor explains."
            )
        return cls(tuple(guides), tuple(Nuisance.of(each) for each in nuisance))

    @property
    def n_columns(self) -> int:
        """Width of the nuisance columns."""
        return sum(each.width for each in self.nuisance)

    def positions(self, cells: AnnData, n_latent: int) -> Array | None:
        """Position of each cell, ``(n, d)``, NaN in free dimensions and where unknown; None without guided factors."""
        if not self.guides:
            return None
        placed = np.full((cells.n_obs, n_latent), np.nan)
        for guide in self.guides:
            placed[:, guide.dimensions] = guide.place(read_factors(cells, [guide.column], varying=False)[0])
        return placed.astype(np.float32)

    def columns(self, cells: AnnData) -> Array:
        """Nuisance columns ``(n, k)`` of cells."""
        missing = [each.column.partition(":")[0] for each in self.nuisance]
        missing = [name for name in missing if name not in cells.obs]
        if missing:
            raise InputError(
                f"The model's decoder is told the nuisance factors {listed(missing)}, which these cells lack; columns "
                f"of obs: {listed(cells.obs.columns)}."
            )
        columns = [each.columns(read_factors(cells, [each.column], varying=False)[0]) for each in self.nuisance]
        return np.hstack([np.empty((cells.n_obs, 0)), *columns])

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Guidance:
        """Inverse of `dataclasses.asdict`, also after JSON."""
        return cls(
            tuple(Guide(**{name: _tupled(value) for name, value in each.items()}) for each in stored["guides"]),
            tuple(Nuisance(**{name: _tupled(value) for name, value in each.items()}) for each in stored["nuisance"]),
        )


def simplex(n: int) -> Array:
    """Corners of a regular simplex around 0, ``(n, n - 1)``, with mean square 1 in each dimension."""
    centred = np.eye(n) - 1 / n
    axes = np.linalg.svd(centred)[2][: n - 1]
    # signs of singular vectors are arbitrary: the first corner that lies off 0 along an axis is made positive
    corners = centred @ axes.T
    first = corners[np.abs(corners).argmax(0), np.arange(n - 1)]
    corners = corners * np.sign(first)
    return np.asarray(corners * np.sqrt(n))


def _score_map(known: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of the map from a number to its standard normal score, ties at their middle; scores have variance 1."""
    distinct, counts = np.unique(known, return_counts=True)
    scores = _level_scores(counts)
    if len(distinct) > _KNOTS:
        kept = np.unique(np.linspace(0, len(distinct) - 1, _KNOTS).round().astype(int))
        distinct, scores = distinct[kept], scores[kept]
    return tuple(map(float, distinct)), tuple(map(float, scores))


def _level_scores(counts: Any) -> Array:
    """Normal score of each level from the number of cells in it, standardised over cells."""
    shares = np.asarray(counts, dtype=np.float64) / np.sum(counts)
    scores = ndtri(np.cumsum(shares) - shares / 2)
    scores = scores - shares @ scores
    return np.asarray(scores / np.sqrt(shares @ scores**2))


def _indicators(factor: Factor) -> Array:
    """Numeric columns of a factor with one for each level."""
    if factor.kind in ("continuous", "cyclic"):
        return factor.columns()[0]
    return np.where(factor.known[:, None], factor.value[:, None] == np.arange(len(factor.levels)), np.nan)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value
