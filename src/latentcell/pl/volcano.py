"""Which measured variables go with each factor and each latent dimension, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from latentcell.errors import InputError
from latentcell.pl._images import panel_axes
from latentcell.pl._style import ACCENT, MUTED, PALE, SECOND, SMALL, new_figure, note, shortened, styled
from latentcell.pl.effects import chosen, defaults, unit
from latentcell.pl.factors import LEVEL, answered, dimension_titles

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

_PANELS, _COLUMNS, _WIDEST = 8, 3, 12.6  # inches
_INSIDE, _BESIDE, _HEIGHT = 1.5, 0.6, 2.45  # inches of the dots of a panel, of its axis, and of its height
_LETTERS, _LETTER, _GAP = 16, 0.07, 0.12  # letters in a name; inches of one, and between dots and names
_LINE = 0.075  # of the height of a panel: one name
_MOST_NAMED = 20
_MANY = 2_000  # dots that an SVG holds as pixels


@styled
def volcano(cells: AnnData, names: Sequence[str | int] | None = None, *, n: int = 6) -> Figure:
    """Draw effect by sureness of every measured variable, a panel per factor and latent dimension.

    Height: the covariance over its standard error, whose p permutations gave. Filled: q at most 0.05, orange up and
    blue down with the factor or dimension. Named: the strongest of these; of a dimension that was not tested, all
    hollow, the strongest of all.

    Parameters
    ----------
    cells
        As `latentcell.tl.factors` left them.
    names
        What to show: dimensions (``3`` or ``"z3"``), factors (``"stage"``) or single levels (``"stage=late"``). By
        default the factors, then the most used dimensions, eight in all.
    n
        Variables named in each panel.

    Raises
    ------
    InputError
        If no factors were asked for on these cells, or a name is unknown.
    """
    if not 0 <= n <= _MOST_NAMED:
        raise InputError(f"n is {n}: name 0 to {_MOST_NAMED} variables in a panel.")
    result = answered(cells)
    table = result["effects"]
    named = list(dict.fromkeys(table["name"].astype(str)))
    if names is None:
        shown = [name for block in defaults(result, named) for name in block][:_PANELS]
    else:
        shown = chosen(named, names)
    if not shown:
        raise InputError("names is empty: name at least one dimension or factor.")
    panels = [_Panel.of(table[table["name"] == name], unit(cells, name), n) for name in shown]
    inside = _INSIDE + max(sum(panel.sides) for panel in panels)
    n_columns = max(1, min(_COLUMNS, len(shown), int(_WIDEST / (inside + _BESIDE))))
    width = n_columns * (inside + _BESIDE) + 0.3
    figure = new_figure(width, -(-len(shown) // n_columns) * _HEIGHT + 0.9)
    titles, untested = dimension_titles(cells), not all(panel.tested for panel in panels)
    for i, (ax, name, panel) in enumerate(zip(panel_axes(figure, len(shown), n_columns), shown, panels, strict=True)):
        _draw(ax, panel, inside)
        if i % n_columns:
            ax.set_ylabel("")
        ax.set_title(f"{_title(name, titles)}\n{panel.counted}", fontsize=9)
    note(figure, _said(len(named) - len(shown), untested=untested), width)
    return figure


def apart(places: ArrayLike, step: float, low: float, high: float) -> NDArray[np.float64]:
    """Places of labels as near to `places` as can be, `step` apart (less where they do not fit), in `low` to `high`.

    By isotonic regression: labels in descending order, each moved up by the steps above it, must not rise.
    """
    wanted = np.asarray(places, dtype=np.float64)
    n = len(wanted)
    if not n:
        return wanted
    steps = min(step, (high - low) / max(1, n - 1)) * np.arange(n)
    order = np.argsort(-wanted, kind="stable")
    moved = isotonic_regression(wanted[order] + steps, increasing=False).x
    result = np.empty(n)
    result[order] = np.clip(moved, low + steps[-1], high) - steps
    return result


@dataclass(frozen=True)
class _Panel:
    """Variables of one factor or dimension: effects, |statistic|, q, units tested, and those named."""

    variable: NDArray[Any]
    effect: NDArray[np.float64]
    height: NDArray[np.float64]
    q: NDArray[np.float64]
    n: int
    named: NDArray[np.intp]
    unit: str

    @classmethod
    def of(cls, rows: pd.DataFrame, unit: str, n: int) -> _Panel:
        """From rows of ``uns["factors"]["effects"]``; named are the `n` strongest of those found."""
        effect, q = rows["effect"].to_numpy(float), rows["q"].to_numpy(float)
        height = np.abs(rows["statistic"].to_numpy(float))
        few = np.flatnonzero(~np.isnan(effect) if np.isnan(q).all() else q <= LEVEL)
        few = few[np.argsort(-np.abs(effect[few]), kind="stable")][:n]
        names = np.array([shortened(str(name), _LETTERS) for name in rows["variable"]], dtype=object)
        return cls(names, effect, height, q, int(rows["n"].max()), few, unit)

    @property
    def tested(self) -> bool:
        """Whether there are q."""
        return not bool(np.isnan(self.q).all())

    @property
    def sides(self) -> tuple[float, float]:
        """Inches that names take left and right of the dots."""
        longest = [
            max((len(self.variable[i]) for i in self.named if np.sign(self.effect[i]) == side), default=0)
            for side in (-1, 1)
        ]
        return _GAP + _LETTER * longest[0], _GAP + _LETTER * longest[1]

    @property
    def counted(self) -> str:
        """How many variables were found, for the title."""
        if not self.tested:
            return f"not tested, {len(self.q):,} variables"
        up, down = (int(((self.q <= LEVEL) & (side * self.effect > 0)).sum()) for side in (1, -1))
        return f"{up} up, {down} down of {len(self.q):,} (n = {self.n:,})"


def _draw(ax: Axes, panel: _Panel, inside: float) -> None:
    effect, found, n = panel.effect, panel.q <= LEVEL, len(panel.q)
    height = panel.height
    for mask, color in ((~found, MUTED), (found & (effect > 0), SECOND), (found & (effect <= 0), ACCENT)):
        ax.plot(effect[mask], height[mask], "o", color=color, markersize=3.2, markeredgewidth=0.6,
                markerfacecolor="white" if color == MUTED else color, rasterized=n > _MANY)  # fmt: skip
    ax.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    ax.set_xlabel(f"effect ({panel.unit})")
    ax.set_ylabel("|covariance| / standard error")
    top = 1.08 * max(float(np.nanmax(height, initial=0.0)), 1.0)
    ax.set_ylim(-0.03 * top, top)
    reach = max(float(np.nanmax(np.abs(effect), initial=0.0)), 1e-3)
    left, right = panel.sides
    per_inch = 2 * reach / (inside - left - right)
    ax.set_xlim(-reach - per_inch * left, reach + per_inch * right)
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(-reach, reach)
    ax.set_xticks([tick for tick in ticks if abs(tick) <= 1.02 * reach])
    few = panel.named
    _names(ax, panel.variable[few], effect[few], height[few], reach + _GAP * per_inch, top)


def _names(
    ax: Axes, names: NDArray[Any], effect: NDArray[np.float64], height: NDArray[np.float64], place: float, top: float
) -> None:
    """Names in a column on the side of their effect, tied to their dots by thin lines, so that they never overlap."""
    for side in (-1, 1):
        few = np.flatnonzero(np.sign(effect) == side)
        # of dots at one height the outermost comes first, so that lines do not cross,
        few = few[np.lexsort((-np.abs(effect[few]), -height[few]))]
        # and names lie below their dots, where most panels are empty
        levels = apart(height[few], _LINE * top, 0.04 * top, max(height[few], default=top))
        for i, level in zip(few, levels, strict=True):
            ax.annotate(
                names[i], (effect[i], height[i]), (side * place, level), fontsize=SMALL,
                va="center", ha="left" if side > 0 else "right", zorder=5,
                arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 2,
                            "relpos": (0.0 if side > 0 else 1.0, 0.5)},
            )  # fmt: skip


def _title(name: str, titles: dict[int, str]) -> str:
    """Name of a panel; for a dimension with the factor that it holds."""
    number = name.removeprefix("z")
    if not (number.isdigit() and int(number) in titles):
        return shortened(name, 40)
    return f"$z_{{{number}}}$  {shortened(titles[int(number)].partition('  ')[0], 40)}"


def _said(left: int, *, untested: bool) -> str:
    text = (
        f"Filled: q ≤ {LEVEL:g} by permutation (Benjamini-Hochberg over the variables of a panel), orange up and blue "
        "down; the sign of a dimension is arbitrary. n: cells, or replicates where these are the unit."
    )
    if untested:
        text += (
            " Not tested: a code is not tested on the cells that it was trained on, and too few others are left; read "
            "its order, not its sureness."
        )
    return text + (f" {left} more factors and dimensions are not shown: name them." if left else "")
