"""From stages or times to positions on a path: which two levels are the ends, and where between them to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentcell.cells.levels import Level, level_rows, ordered_levels, times
from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """The two ends and the places between them.

    Attributes
    ----------
    key, source, target
        Column of ``obs`` and its levels at the ends.
    at
        Places as asked for: times where the key is numeric, else positions.
    positions
        The same from 0 (source) to 1 (target).
    numeric
        Whether the levels are times.
    """

    key: str
    source: Level
    target: Level
    at: NDArray[np.float64]
    positions: NDArray[np.float64]
    numeric: bool

    @classmethod
    def of(
        cls,
        cells: AnnData,
        key: str,
        *,
        source: Level | None,
        target: Level | None,
        at: float | Sequence[float] | None,
        truth: Level | None,
    ) -> Span:
        """Fill in what was left open: ends are the levels around `at` or `truth`, the place is `truth` or half-way.

        Raises
        ------
        InputError
            If a level does not exist, levels have no order and an end is missing, the ends are the same, or `at` lies
            outside them.
        """
        numeric = times(cells, key) is not None
        asked = None if at is None else np.atleast_1d(np.asarray(at, dtype=np.float64))
        if asked is not None and (asked.ndim != 1 or asked.size == 0 or not np.isfinite(asked).all()):
            raise InputError(f"`at` must be a number or a list of numbers, found {at!r}.")
        source, target = _ends(cells, key, source, target, truth, asked if numeric else None)
        if np.array_equal(level_rows(cells, key, source), level_rows(cells, key, target)):
            raise InputError(
                f"Source and target are both {source!r}: there is nothing between a population and itself."
            )
        if not numeric:
            positions = np.array([0.5]) if asked is None else asked
            return cls(key, source, target, positions, _inside(positions, 0.0, 1.0, ""), False)
        start, end = float(source), float(target)
        if asked is None:
            asked = np.array([(start + end) / 2 if truth is None else float(truth)])
        explained = f" {key!r} holds numbers, so `at` is a time; half-way is {(start + end) / 2:g}."
        return cls(key, start, end, asked, (_inside(asked, start, end, explained) - start) / (end - start), True)

    def name(self, level: Level) -> str:
        """What a level is called in a sentence: times with their column, ``day 10.5``."""
        return f"{self.key} {float(level):g}" if self.numeric else str(level)

    def known_levels(self, cells: AnnData, hidden: Level | None) -> dict[Level, float]:
        """The ends and the levels beyond them, with their places relative to the ends (source 0, target 1), ascending.

        Levels between the ends are left out, and so is the hidden one.
        """
        levels = ordered_levels(cells, self.key)
        if self.numeric:
            start, length = float(self.source), float(self.target) - float(self.source)
            places = [(float(level) - start) / length for level in levels]
        else:
            names = list(map(str, levels))
            first, last = names.index(str(self.source)), names.index(str(self.target))
            places = [(i - first) / (last - first) for i in range(len(names))]
        known = {
            level: place
            for level, place in zip(levels, places, strict=True)
            if not 0 < place < 1 and not _same(level, hidden)
        }
        return dict(sorted(known.items(), key=lambda item: item[1]))


def _same(level: Level, other: Level | None) -> bool:
    return other is not None and (str(level) == str(other) or (isinstance(level, float) and level == float(other)))


def neighbours(levels: Sequence[Level], level: Level) -> tuple[Level, Level]:
    """Levels just before and just after one, or around a time that is none of them.

    Raises
    ------
    InputError
        If there is no level on one side.
    """
    numeric = all(isinstance(each, int | float) for each in levels)
    if numeric:
        before = [each for each in levels if float(each) < float(level)]
        after = [each for each in levels if float(each) > float(level)]
    else:
        names = list(map(str, levels))
        if str(level) not in names:
            raise InputError(f"{level!r} is none of the levels {', '.join(names)}.")
        before, after = list(levels[: names.index(str(level))]), list(levels[names.index(str(level)) + 1 :])
    if not before or not after:
        side = "before" if not before else "after"
        raise InputError(f"No level comes {side} {level!r}: it is not between others. Levels: {_shown(levels)}.")
    return before[-1], after[0]


def _ends(
    cells: AnnData,
    key: str,
    source: Level | None,
    target: Level | None,
    truth: Level | None,
    asked: NDArray[np.float64] | None,
) -> tuple[Level, Level]:
    """Fill in ends that were not named with the levels around the truth, or around all times asked for."""
    if source is not None and target is not None:
        return source, target
    if truth is None and asked is None:
        raise InputError(
            "Name `source` and `target`, or `truth` with ordered levels, or `at` with a column of times: otherwise it "
            "is open what to interpolate."
        )
    levels = ordered_levels(cells, key)
    if truth is not None:
        level_rows(cells, key, truth)  # refuses unknown levels with those that exist
        around = [neighbours(levels, truth)]
    else:
        around = [neighbours(levels, float(time)) for time in np.asarray(asked)]
    if len(set(around)) > 1:
        raise InputError("The times in `at` lie between different levels: name `source` and `target`, or give fewer.")
    before, after = around[0]
    if source is None and target is None:
        return before, after
    if source is None and target is not None:
        return (after if _reaches(levels, target, before) else before), target
    assert source is not None
    return source, (before if _reaches(levels, after, source) else after)


def _reaches(levels: Sequence[Level], first: Level, last: Level) -> bool:
    """Whether `first` is `last` or comes before it in their order."""
    i, j = (next((k for k, each in enumerate(levels) if _same(each, one)), -1) for one in (first, last))
    return 0 <= i <= j


def _inside(values: NDArray[np.float64], start: float, end: float, explained: str) -> NDArray[np.float64]:
    low, high = min(start, end), max(start, end)
    outside = values[(values < low) | (values > high) | ~np.isfinite(values)]
    if outside.size:
        raise InputError(
            f"`at` must lie between {start:g} (the source) and {end:g} (the target), found {outside[0]:g}.{explained}"
        )
    return values


def _shown(levels: Sequence[Level]) -> str:
    return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in levels)
