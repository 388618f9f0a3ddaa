"""Which latent dimension holds which factor, beside what permuted factors and principal components reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from latentcell import keys
from latentcell.errors import InputError
from latentcell.pl._style import ACCENT, INK, MUTED, PALE, SECOND, SMALL, new_figure, note, shortened, styled
from latentcell.tl.coded import COMES_BACK

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

LEVEL = 0.05
"""p or q up to which something counts as found."""

LITTLE = 0.001
"""Share of the decoded variance below which a dimension changes next to nothing."""

PALE_NAMES = (
    f"Pale names: below {LITTLE:.1%} of the decoded variance; such a dimension can follow a factor and yet change next "
    "to nothing."
)

NOISE = "#f0f0f0"
"""Colour of what does not exceed its null."""

_CELL, _ROW, _NARROWEST = 0.56, 0.3, 7.2  # inches: width and height of a cell, width of a figure
_BESIDE = 1.5  # inches right of the heat map
_BAR = 0.34  # inches: height of a row of bars above the heat map
_DARK = 0.6  # correlation from which numbers are white
_FACTOR_LENGTH, _VARIABLE_LENGTH = 28, 20  # characters
_METRICS = {
    "one dimension per factor": {"mig": "MIG", "sap": "SAP", "completeness": "DCI completeness"},
    "one factor per dimension": {
        "modularity": "modularity",
        "disentanglement": "DCI disentanglement",
        "factor_vae_score": "FactorVAE score",
    },
    "factors told from all dimensions together": {"informativeness": "DCI informativeness"},
}


@styled
def factors(cells: AnnData, *, n: int = 16) -> Figure:
    """Draw how far each latent dimension follows each factor, and disentanglement scores, beside their nulls.

    Heat map: correlation of each factor (rows) with each dimension in use, the most used first; bold where it is the
    factor's largest, pale where it does not exceed that of permuted factors. Bars above it: how much of the decoded
    variance a dimension carries, and the share of refits in which it comes back. Beside it: the best of as many
    principal components, and what permuted factors reach. Below it: the variables that a dimension moves most, and
    scores with intervals, nulls, refits and principal components.

    Parameters
    ----------
    cells
        As `latentcell.tl.factors` left them: ``uns["factors"]``.
    n
        Dimensions shown at most.

    Raises
    ------
    InputError
        If no factors were asked for on these cells.
    """
    if n < 1:
        raise InputError(f"n is {n}: show at least one latent dimension.")
    result = answered(cells)
    every = used(result["dimensions"])
    shown = every.iloc[:n]
    names = list(dict.fromkeys(result["relations"]["factor"].astype(str)))
    labels = [shortened(name, _FACTOR_LENGTH) for name in names]
    around = _BESIDE + max(1.6, 0.3 + 0.068 * max(len(label) for label in labels))
    width = max(_NARROWEST, _CELL * len(shown) + around)
    cell = (width - around) / len(shown)
    label, inches, turned = _variables(shown, cell)
    heights = [_BAR, _BAR, _ROW * len(names) + 0.05, 2.9]
    figure = new_figure(width, sum(heights) + inches + 1.9)
    grid = figure.add_gridspec(4, 2, height_ratios=heights, width_ratios=[cell * len(shown), _BESIDE])
    places = ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1))
    top, middle, heat, beside, scores, key = (figure.add_subplot(grid[place]) for place in places)
    _bars(top, shown["variance_explained"].to_numpy(float), "decoded\nvariance")
    _bars(middle, shown["comes_back"].to_numpy(float), "comes\nback")
    top.set_title("Correlation of factors with latent dimensions")
    correlation, p = (_by_factor(result["relations"], value, names, shown) for value in ("correlation", "p"))
    _heat_map(heat, correlation, p <= LEVEL, best=True)
    heat.set_yticks(range(len(names)), labels)
    _dimensions(heat, shown, names, label, turned=turned)
    _beside(beside, result, names)
    _scores(scores, key, result["metrics"])
    note(figure, _said(result["dimensions"], every, shown), width)
    return figure


def answered(cells: AnnData) -> dict[str, Any]:
    """Tables of the last question for factors.

    Raises
    ------
    InputError
        If there was none.
    """
    if keys.FACTORS not in cells.uns:
        raise InputError(
            'These cells have no uns["factors"]: run latentcell.tl.factors(cells, model, ["factor", ...]) first.'
        )
    return dict(cells.uns[keys.FACTORS])


def used(dimensions: pd.DataFrame) -> pd.DataFrame:
    """Rows of the dimensions that the model uses, most used first; all where it uses none."""
    active = dimensions[dimensions["active"].astype(bool)]
    return active if len(active) else dimensions


def dimension_titles(cells: AnnData) -> dict[int, str]:
    """What each latent dimension is, in words: ``stage (0.91)  +IFIT1 −ISG15``.

    Its strongest factor with the correlation, or ``no factor`` where none exceeds permuted ones; then the variables
    that it moves most. For titles of `latentcell.pl.traversal`.

    Parameters
    ----------
    cells
        As `latentcell.tl.factors` left them.

    Raises
    ------
    InputError
        If no factors were asked for on these cells.
    """
    titles = {}
    for row in answered(cells)["dimensions"].itertuples():
        if not row.active:
            titles[int(row.dimension)] = "not used"
            continue
        variables = signed(str(row.name))
        titles[int(row.dimension)] = f"{holds(row)}  {variables}" if variables else holds(row)
    return titles


def holds(row: Any, length: int = 44) -> str:
    """Which factor a row of the table of dimensions holds, names shortened to `length`.

    ``stage (0.91)``, ``dose (0.80, guided)``, ``no factor``.
    """
    guided = f"guided by {shortened(str(row.guided_by), length)}" if str(row.guided_by) else ""
    if not row.p <= LEVEL:
        return f"no factor ({guided})" if guided else "no factor"
    guided = "guided" if str(row.guided_by) == str(row.top_factor) else guided
    factor = shortened(str(row.top_factor), length)
    return f"{factor} ({row.top_correlation:.2f}{', ' + guided if guided else ''})"


def signed(name: str) -> str:
    """Name of a dimension with a minus that can be told from a hyphen: ``+IFIT1 −ISG15``."""
    return " ".join("−" + word[1:] if word.startswith("-") else word for word in name.split())


def _by_factor(relations: pd.DataFrame, value: str, names: list[str], shown: pd.DataFrame) -> NDArray[np.float64]:
    """One column of the relations as ``(factors, dimensions)``."""
    table = relations.set_index(["factor", "dimension"])[value]
    return np.array([[table[name, k] for k in shown["dimension"]] for name in names], dtype=np.float64)


def _variables(shown: pd.DataFrame, cell: float) -> tuple[list[str], float, bool]:
    """Strongest variables of each dimension, one per line; inches that they take; whether they must stand upright."""
    lines = [
        [shortened(word, _VARIABLE_LENGTH) for word in signed(str(name)).split()] for name in shown["name"].fillna("")
    ]
    longest = max((len(word) for words in lines for word in words), default=0)
    turned = 0.058 * longest > cell - 0.06
    height = 0.058 * longest if turned else 0.13 * max(len(words) for words in lines)
    return ["\n".join(words) for words in lines], height, turned


def _bars(ax: Axes, shares: NDArray[np.float64], name: str) -> None:
    """One row of shares, 0 to 1, as bars with their percentages."""
    ax.bar(range(len(shares)), np.nan_to_num(shares), width=0.62, color=MUTED, alpha=0.7)
    for x, share in enumerate(shares):
        words = "–" if np.isnan(share) else "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
        ax.annotate(words, (x, np.nan_to_num(share)), (0, 1), textcoords="offset points", ha="center", fontsize=6.5)
    ax.set(xlim=(-0.5, len(shares) - 0.5), ylim=(0, 1.45), xticks=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL, labelpad=5)
    ax.spines[["left"]].set_visible(False)


def _heat_map(ax: Axes, values: NDArray[np.float64], found: NDArray[np.bool_], *, best: bool) -> None:
    """Correlations 0 to 1 with their numbers, the `best` of a row bold; those not `found` pale and small."""
    cmap = mpl.colormaps["Blues"].with_extremes(bad=NOISE)
    ax.imshow(np.ma.masked_array(values, ~found), cmap=cmap, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        real = bool(found[row, column])
        bold = best and real and value == np.nanmax(values[row])
        ax.text(
            column, row, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center",
            fontsize=8 if real else 6, color=("white" if value > _DARK else INK) if real else MUTED,
            fontweight="bold" if bold else "normal",
        )  # fmt: skip
    ax.set_xticks(np.arange(values.shape[1] - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(values.shape[0] - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)


def _dimensions(ax: Axes, shown: pd.DataFrame, names: list[str], variables: list[str], *, turned: bool) -> None:
    """Name the columns by dimension and variables, pale where they change next to nothing; frame what was guided."""
    ax.set_xticks(range(len(shown)), [f"$z_{{{k}}}$" for k in shown["dimension"]], fontsize=9)
    idle = (shown["variance_explained"] < LITTLE).to_numpy()
    for x, (guide, words) in enumerate(zip(shown["guided_by"].fillna("").astype(str), variables, strict=True)):
        ax.annotate(
            words, (x, 0), (0, -16), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            va="top", rotation=90 if turned else 0, fontsize=SMALL, linespacing=1.15,
            color=MUTED if idle[x] else INK,
        )  # fmt: skip
        if guide or idle[x]:
            ax.get_xticklabels()[x].set_color(SECOND if guide else MUTED)
        if guide in names:
            corner = (x - 0.46, names.index(guide) - 0.44)
            ax.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=SECOND, linewidth=1.6, zorder=4))


def _beside(ax: Axes, result: dict[str, Any], names: list[str]) -> None:
    """Best of the principal components, and what permuted factors reach, for each factor."""
    null = result["relations"].drop_duplicates("factor").set_index("factor")["null_95"].loc[names].to_numpy(float)
    scores = result["metrics"]
    chosen = scores[(scores["codes"] == "PCA") & (scores["metric"] == "max_correlation")]
    best = chosen.set_index("factor")["value"].reindex(names).to_numpy(float)
    values = np.column_stack([best, null])
    _heat_map(ax, values, np.column_stack([best > null, np.zeros(len(names), dtype=bool)]), best=False)
    ax.set_xticks([0, 1], ["best\nPCA", "permuted\n95 %"], fontsize=SMALL)
    ax.set_yticks([])


def _scores(ax: Axes, beside: Axes, table: pd.DataFrame) -> None:
    """Scores as bars before the pale band that permuted factors reach."""
    overall = table[table["factor"] == "all"]
    codes = list(dict.fromkeys(overall["codes"].astype(str)))
    own = next((name for name in codes if name in ("model", "cross-fitted")), codes[0])
    lowest = max(-0.3, min(0.0, float(overall["value"].min())))
    y, ticks = 0.0, {}
    for group, members in _METRICS.items():
        ax.annotate(group, (0, y), (2, 0), textcoords="offset points", va="center", fontsize=SMALL, color=MUTED)
        for metric, words in members.items():
            y += 1
            ticks[y] = words
            _score(ax, y, overall[overall["metric"] == metric].set_index("codes"), own)
        y += 1.15
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.set(xlim=(1.03 * lowest, 1.03), ylim=(y - 0.5, -0.6), xlabel="score of all factors together")
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.tick_params(axis="y", length=0)
    ax.spines[["left"]].set_visible(False)
    guided = ", judged on cells that fits had not seen" if own == "cross-fitted" else ""
    ax.set_title(f"Disentanglement{guided}")
    beside.set_axis_off()
    beside.legend(handles=_key(codes), loc="upper left", fontsize=SMALL, handlelength=1.4, borderaxespad=0.0)


def _score(ax: Axes, y: float, rows: pd.DataFrame, own: str) -> None:
    row = rows.loc[own]
    if np.isnan(row["value"]):
        ax.annotate("needs two factors", (0, y), (2, 0), textcoords="offset points", va="center", fontsize=SMALL)
        return
    ax.barh(y, max(0.0, np.nan_to_num(row["null_95"])), height=0.84, color=PALE)
    real = not row["p"] > LEVEL
    ax.barh(y, row["value"], height=0.42, color=ACCENT if real else "white", edgecolor=ACCENT, linewidth=0.8)
    ax.plot(row[["null_mean", "null_mean"]].to_numpy(float), [y - 0.42, y + 0.42], color=INK, linewidth=1.0)
    ax.plot(row[["low", "high"]].to_numpy(float), [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
    seeds = rows.loc[[name for name in rows.index if str(name).startswith("seed")], "value"].to_numpy(float)
    if len(seeds):
        ax.plot(seeds, np.full(len(seeds), y + 0.31), "o", color=INK, markersize=3)
    if "PCA" in rows.index:
        ax.plot(
            rows.loc[["PCA"], "value"].to_numpy(float),
            [y],
            "D",
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=SECOND,
        )


def _key(codes: list[str]) -> list[Any]:
    handles: list[Any] = [
        Patch(facecolor=ACCENT, edgecolor=ACCENT, label="model"),
        Line2D([], [], color=INK, linewidth=1.4, label="95 % interval"),
        Patch(color=PALE, label="permuted, up to 95 %"),
        Line2D([], [], color=INK, linestyle="", marker="|", markersize=9, label="permuted, mean"),
    ]
    if any(name.startswith("seed") for name in codes):
        handles.append(Line2D([], [], color=INK, linestyle="", marker="o", markersize=3, label="refits"))
    if "PCA" in codes:
        handles.append(
            Line2D([], [], linestyle="", marker="D", markersize=5, markerfacecolor="white", markeredgecolor=SECOND,
                   label="principal components")
        )  # fmt: skip
    return handles


def _said(dimensions: pd.DataFrame, every: pd.DataFrame, shown: pd.DataFrame) -> str:
    sentences = [
        f"Pale, small numbers do not exceed the largest correlation that permuted factors reach (p > {LEVEL:g}, for "
        "all dimensions of a factor together). Decoded variance: share that goes when the dimension is held at its "
        f"mean. Comes back: share of refits with |correlation| of at least {COMES_BACK:g}."
    ]
    if (shown["variance_explained"] < LITTLE).any():
        sentences.append(PALE_NAMES)
    if (shown["guided_by"].fillna("").astype(str) != "").any():
        sentences.append("Orange: guided by the factor.")
    if shown["comes_back"].isna().all():
        sentences.append("No refits were made, so what comes back is not known.")
    idle = dimensions.loc[~dimensions["active"].astype(bool), "dimension"]
    if len(idle) == len(dimensions):
        sentences.append("The model uses none of its dimensions.")
    elif len(idle):
        which = ", ".join(f"z{k}" for k in np.sort(idle))
        sentences.append(f"Not used by the model, so not shown: {which}.")
    if len(every) > len(shown):
        sentences.append(f"Less used dimensions not shown: {len(every) - len(shown)}.")
    return " ".join(sentences)
