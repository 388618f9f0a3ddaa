"""One hit, shown: control cells, the group's cells, what the shift alone would draw, and what the model cannot."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentcell import keys
from latentcell.errors import InputError, listed
from latentcell.pl._images import Display, channel_key, draw_tiles, projected, scale_bar
from latentcell.pl._style import ACCENT, INK, MUTED, SMALL, filled, new_figure, note, shortened, styled
from latentcell.pl.screen import screened
from latentcell.tl.hits import FDR
from latentcell.tl.wells import MAP_SIDE

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from latentcell.model.vae import VAE

_TILE = 0.95  # inches
_ROWS = ("control cells", "controls, decoded", "controls + shift", "cells of the group")
_NOTE = (
    "Controls and the cells of the group come from the same blocks, drawn at random, on one scale of brightness. Third "
    "row: the controls above with the group's mean shift added to their codes, decoded by a model that has seen "
    "controls only. Maps: mean squared residual of the group over that of controls, log2, by place."
)
_TOP = 20
_LEAST = 0.1  # of a channel's mean residual: added to every place of a map before ratios are taken


class Members(NamedTuple):
    """Rows of a label's cells and of control cells in the same blocks that did not train, else of any."""

    treated: NDArray[np.intp]
    control: NDArray[np.intp]


@styled
def contact_sheet(
    cells: AnnData, model: VAE, label: str, *, n: int = 8, rng: int | np.random.Generator | None = 0
) -> Figure:
    """Draw what a group does to cells.

    Images: `n` control cells, the same decoded, decoded with the group's mean shift (the counterfactual), the group's
    most typical cells, and where its residuals differ. Counts and profiles: the variables and latent dimensions that
    moved most, with their intervals.

    Parameters
    ----------
    cells
        As `latentcell.tl.screen` left them.
    model
        The model that it returned.
    label
        Row of ``uns["screen"]["hits"]``: a group, or group and dose.
    n
        Cells per row.
    rng
        Chooses the control cells.

    Raises
    ------
    InputError
        If no screen was run, or the label is not in it.
    """
    if n < 1:
        raise InputError(f"n is {n}; a contact sheet shows at least one cell per row.")
    result = screened(cells)
    hits = result["hits"]
    if label not in set(hits["label"]):
        near = difflib.get_close_matches(str(label), list(hits["label"]), n=3, cutoff=0.3) or list(hits["label"])
        raise InputError(f"The screen has no group {label!r}; did you mean one of {listed(near)}?")
    hit = hits.set_index("label").loc[label]
    if model.modality_ != "images":
        return _variables(result["reasons"], hit, label)
    members = find_members(cells, result, label)
    return _pictures(cells, model, hit, members, n, np.random.default_rng(rng))


def find_members(cells: AnnData, result: dict[str, Any], label: str) -> Members:
    """Cells of a label and control cells to hold against them."""
    labels, roles = (cells.obs[f"{keys.SCREEN}_{name}"].to_numpy(object) for name in ("label", "role"))
    treated, control = labels == label, roles != "tested"
    if block := result["params"]["block"]:
        names = cells.obs[block].astype(str).to_numpy()
        shared = control & np.isin(names, names[treated])
        control = shared if shared.any() else control
    fresh = control & (roles == "calibrated")
    return Members(np.flatnonzero(treated), np.flatnonzero(fresh if fresh.any() else control))


def _pictures(
    cells: AnnData, model: VAE, hit: pd.Series[Any], members: Members, n: int, rng: np.random.Generator
) -> Figure:
    codes = np.asarray(cells.obsm[keys.VAE])
    move = codes[members.treated].mean(axis=0) - codes[members.control].mean(axis=0)
    shown = np.sort(rng.choice(members.control, min(n, len(members.control)), replace=False))
    group = np.sort(rng.choice(members.treated, min(len(shown), len(members.treated)), replace=False))
    batch = {"batch": cells.obs[model.batch_key].to_numpy()[shown]} if model.batch_key else {}
    rows = [
        model.measurements(cells, shown), model.decode(codes[shown], **batch),
        model.decode(codes[shown] + move, **batch), model.measurements(cells, group),
    ]  # fmt: skip
    rows = [projected(each) for each in rows]
    display = Display.of(np.concatenate([rows[0], rows[3]]), model.names_)
    height, width = rows[0].shape[2:]
    panel = 4 * _TILE * height / width + 0.3
    sheet = len(shown) * _TILE + 1.4
    lines = len(_title(hit, str(hit.name), sheet + 1.9).splitlines())
    figure = new_figure(sheet + 1.9, panel + 0.75 + 0.17 * lines)
    left, right = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=(sheet, 1.9))))
    ax, gap = left.subplots(), max(2, width // 24)
    blank = np.ones((len(shown) - len(group), *rows[3].shape[1:]), np.float32) * display.low.reshape(-1, 1, 1)
    tiles = next(display.panels(np.concatenate([*rows, blank]), "composite"))[1]
    draw_tiles(ax, tiles, len(shown), gap=gap)
    ax.set_yticks(range(4), list(_ROWS), fontsize=9)
    scale_bar(ax, width, gap=gap)
    channel_key(ax, display, "composite")
    _residual_maps(right, cells, model, members)
    figure.suptitle(_title(hit, str(hit.name), sheet + 1.9), x=0.02, ha="left", fontsize=9.5)
    note(figure, _NOTE, sheet + 1.9)
    return figure


def _residual_maps(figure: SubFigure, cells: AnnData, model: VAE, members: Members) -> None:
    energy = np.asarray(cells.obsm[f"{keys.SCREEN}_residual"])
    treated, control = (energy[rows].mean(axis=0).reshape(len(model.names_), MAP_SIDE, MAP_SIDE) for rows in members)
    # empty places, where controls leave next to nothing over, are no measure of anything
    least = _LEAST * np.maximum(control.mean(axis=(1, 2), keepdims=True), 1e-12)
    maps = np.log2((treated + least) / (control + least))
    reach = max(0.5, float(np.abs(maps).max()))
    axes = np.atleast_1d(figure.subplots(len(maps), 1))
    for ax, one, name in zip(axes, maps, model.names_, strict=True):
        image = ax.imshow(one, cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest")
        ax.set_title(shortened(name, 18), fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(axes), orientation="horizontal", shrink=0.9, aspect=14)
    bar.set_label("residual, log2 of\ngroup over control", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


def _title(hit: pd.Series[Any], label: str, width: float) -> str:
    """Label and rank, what moved, p and cell count, in lines that fit."""
    sure = (
        f"p = {hit['p']:.2g}, q = {hit['q']:.2g}{'' if hit['q'] <= FDR else ' (not called)'}"
        if np.isfinite(hit["p"])
        else "no p-value, ranked only"
    )
    first = f"{label}: rank {int(hit['rank'])}, {sure}, effect {hit['effect']:.1f} SD, {hit['n_wells']} replicates"
    if np.isfinite(hit["count_effect"]):
        first += f", {2 ** hit['count_effect']:.2f} times the cells of controls"
    return "\n".join([filled(first, width - 0.4), filled(str(hit["why"]), width - 0.4)])


def _variables(reasons: pd.DataFrame, hit: pd.Series[Any], label: str) -> Figure:
    mine = reasons[(reasons["label"] == label) & reasons["effect"].notna()]
    figure = new_figure(9.0, 5.4)
    both = figure.subplots(1, 2, width_ratios=(2, 1))
    for ax, kind, title in zip(both, ("variable", "latent"), ("Measured variables", "Latent dimensions"), strict=True):
        _effects(ax, mine[mine["kind"] == kind].head(_TOP), title)
    figure.suptitle(_title(hit, label, 9.0), x=0.02, ha="left", fontsize=9.5)
    note(
        figure,
        "Shift from the controls of the same blocks, in SD; bars: 95 % intervals over replicates, one variable at a "
        "time. "
        "Crosses: the change when control cells are decoded with the group's shift, by a model that has seen "
        "controls only.",
        9.0,
    )
    return figure


def _effects(ax: Axes, table: pd.DataFrame, title: str) -> None:
    ax.set_title(title)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    for place, (effect, low, high, drawn) in enumerate(
        table[["effect", "low", "high", "counterfactual"]].to_numpy(dtype=float)
    ):
        ax.plot([low, high], [place, place], color=ACCENT, linewidth=1.6, solid_capstyle="round")
        ax.plot(effect, place, "o", color=ACCENT, markersize=4.8)
        ax.plot(drawn, place, "x", color=INK, markersize=4.5)
    prefix = "latent " if title.startswith("Latent") else ""
    ax.set_yticks(range(len(table)), [prefix + shortened(str(name), 34) for name in table["name"]])
    ax.set_ylim(max(len(table), 1) - 0.4, -0.6)
    unit = "SD of cells" if (table["unit"] == "cells").any() else "SD of replicates"
    ax.set_xlabel(f"shift ({unit})")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#ececec", linewidth=0.8)
    ax.set_axisbelow(True)
