"""How a fit went and which latent dimensions it uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from latentcell.pl._style import ACCENT, INK, MUTED, SECOND, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from latentcell.model.vae import VAE


@styled
def training(model: VAE) -> Figure:
    """Draw the course of a fit and its collapse report.

    Above: the true ELBO (not the loss, which an objective may reweigh) and the KL of each epoch in nats per cell, on
    training and held-out cells; the line marks the epoch whose weights the model has. Below: for each latent
    dimension, most used first, its KL and the nats per cell that the likelihood loses when the dimension is permuted
    across cells; a dimension near 0 in both is not used.

    Parameters
    ----------
    model
        A fitted `latentcell.VAE`.
    """
    figure = new_figure(9.0, 6.0)
    (elbo, kl), (by_kl, by_loss) = figure.subplots(2, 2)
    history, chosen = model.history_, int(model.report_["best_epoch"])
    _course(elbo, history, "elbo", chosen)
    _course(kl, history, "kl", chosen)
    elbo.set(ylabel="ELBO, nats per cell")
    kl.set(ylabel="KL to the prior, nats per cell")
    _zoom(elbo, history, "elbo")
    _zoom(kl, history, "kl")
    elbo.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    report = model.latent_.sort_values("kl", ascending=False, kind="stable")
    _bars(by_kl, report, "kl", "KL, nats")
    _bars(by_loss, report, "nll_change", "nats lost when permuted")
    if not report["active"].all():
        handles = [Patch(color=ACCENT, label="active"), Patch(color=MUTED, label="not active")]
        by_kl.legend(handles=handles, loc="upper right")
    n_active = int(report["active"].sum())
    by_kl.set_title(f"{n_active} of {len(report)} dimensions active")
    return figure


def _course(ax: Axes, history: pd.DataFrame, term: str, chosen: int) -> None:
    epochs = history["epoch"]
    marker = "o" if len(epochs) == 1 else None
    ax.plot(epochs, history[term], color=ACCENT, label="training cells", marker=marker)
    if f"val_{term}" in history:
        ax.plot(epochs, history[f"val_{term}"], color=SECOND, label="held-out cells", marker=marker)
    ax.axvline(chosen, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=f"chosen, epoch {chosen}")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("epoch")


def _zoom(ax: Axes, history: pd.DataFrame, term: str) -> None:
    """Leave the swings of the first epochs out of the range: what matters is how the two curves end."""
    curves = history[[column for column in (term, f"val_{term}") if column in history]].to_numpy()
    later = curves[len(curves) // 10 :]
    later = later[np.isfinite(later)]
    if later.size and later.max() > later.min():
        low, high = np.percentile(later, 2), later.max()
        ax.set_ylim(low - 0.1 * (high - low), high + 0.08 * (high - low))


def _bars(ax: Axes, report: pd.DataFrame, column: str, label: str) -> None:
    places = np.arange(len(report))
    ax.bar(places, report[column], color=np.where(report["active"], ACCENT, MUTED), width=0.75)
    step = -(-len(report) // 20)
    ax.set_xticks(places[::step], [f"$z_{{{dim}}}$" for dim in report["dimension"].iloc[::step]])
    ax.tick_params(axis="x", length=0, labelsize=9)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set(ylabel=label, xlabel="latent dimension, most used first", xlim=(-0.8, len(report) - 0.2))
