"""How much each reference channel helps to place each structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentcell.pl._style import INK, LEVELS, MUTED, new_figure, note, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_QUESTIONS = {
    "alone": "told one channel, against none",
    "beyond": "told all, against all but this one",
}
_NOTE = (
    "Bars: nats per cell by which knowing the channel raises the likelihood of the structure's image, in cells that "
    "the model has not seen; lines: 95 % bootstrap intervals over {units}. Grey: all channels together."
)


@styled
def reconstruction_kl(table: pd.DataFrame) -> Figure:
    """Draw a table of `latentcell.tl.reconstruction_kl`: what is said of each cell against how well it is drawn."""
    figure = new_figure(4.6, 3.6)
    ax = figure.subplots()
    ax.plot(table["kl"], table["log_px"], "o-", color=LEVELS[0])
    for row in table.itertuples():
        ax.annotate(f"{row.beta:g}", (row.kl, row.log_px), (5, -9), textcoords="offset points", fontsize=8)
    ax.set(xlabel="KL, nats per cell", ylabel="log p(t | z, r, c), nats per cell")
    note(figure, "Held-out cells; numbers: beta. The ELBO is their difference.", figure.get_figwidth())
    return figure


@styled
def coupling(table: pd.DataFrame) -> Figure:
    """Draw a table of `latentcell.tl.coupling`: a panel per question, a group of bars per structure."""
    structures = list(dict.fromkeys(table["structure"]))
    order = table[(table["channel"] == "all") & (table["question"] == "all")].set_index("structure")["nats"]
    structures.sort(key=lambda name: -order.get(name, 0.0))
    channels = [name for name in dict.fromkeys(table["channel"]) if name != "all"]
    height = 1.6 + 0.26 * len(structures) * (len(channels) + 1)
    figure = new_figure(9.5, height)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, (question, title) in zip(axes, _QUESTIONS.items(), strict=True):
        for k, channel in enumerate(["all", *channels]):
            asked = "all" if channel == "all" else question
            rows = table[(table["channel"] == channel) & (table["question"] == asked)].set_index("structure")
            rows = rows.reindex(structures)
            at = np.arange(len(structures)) + (k - len(channels) / 2) * 0.8 / (len(channels) + 1)
            color = MUTED if channel == "all" else LEVELS[k - 1]
            ax.barh(at, rows["nats"], 0.7 / (len(channels) + 1), color=color, alpha=0.45 if channel == "all" else 1.0,
                    label="all channels, against none" if channel == "all" else channel)  # fmt: skip
            ax.hlines(at, rows["low"], rows["high"], color=INK, linewidth=1.2)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set(title=title, xlabel="nats per cell", yticks=range(len(structures)))
        ax.set_yticklabels(structures)
    axes[0].invert_yaxis()
    axes[1].legend(loc="lower right")
    n_cells, n_units = int(table["n_cells"].sum()), int(table["n_units"].sum())
    note(figure, _NOTE.format(units="cells" if n_cells == n_units else "replicates"), figure.get_figwidth())
    return figure
