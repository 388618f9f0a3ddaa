"""From cells and a module to a trained module and its report: what surrounds the training loop."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from latentcell.cells.augmentation import noisy, turned, varied
from latentcell.cells.batches import Batch, Source, in_order, shuffled
from latentcell.cells.images import Modality
from latentcell.errors import InputError, listed
from latentcell.model.conditional import ConditionalModule
from latentcell.model.files import read_tensors
from latentcell.model.module import VAEModule, importance_nll
from latentcell.model.objectives import Objective
from latentcell.model.report import collapse_verdict, latent_report, total_correlation
from latentcell.model.schema import Orientation
from latentcell.model.settings import Settings
from latentcell.model.split import Split
from latentcell.model.training import Data, Hooks, NonFiniteLossError, Progress, train
from latentcell.progress import fit_progress, stop_on_interrupt
from latentcell.threads import free_threads

# optimiser steps that a fit of default length takes at most, with batches of many and of few cells
_STEPS, _STEPS_OF_FEW = 3000, 5000
# cells of a minibatch
_FEW, _MANY = 32, 128
# the fewest and most epochs of a default fit
_EPOCHS = (20, 400)
# held-out cells and posterior draws behind the report
_REPORT_CELLS = 256
_NLL_CELLS, _REPORT_DRAWS = 128, 50
# cells behind the total correlation, whose estimate is biased for few: those of training, too, since it looks at codes
_TC_CELLS = 1000
# standard deviation of the noise on the encoder's view, in units of a channel's intensity range
INPUT_NOISE = 0.1


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Attributes
    ----------
    settings
        Learning rate and so on.
    batch_size
        Cells per optimiser step.
    epochs
        Passes over the training cells at most.
    max_minutes
        Training time at most, or None.
    checkpoint
        File to write and to resume from, or None.
    seed
        Root of all randomness.
    """

    settings: Settings
    batch_size: int
    epochs: int
    max_minutes: float | None
    checkpoint: Path | None
    seed: int

    def stored_threads(self) -> int | None:
        """CPU threads of the fit to be resumed, which must go on with the same to end the same; None for a new fit."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        return int(read_tensors(self.checkpoint)[1]["progress"]["threads"])


def make_plan(
    n_train: int,
    settings: Settings,
    *,
    modality: Modality,
    objective: Objective,
    epochs: int | None,
    max_minutes: float | None,
    checkpoint: str | Path | None,
    seed: int,
) -> Plan:
    """Fill in what was left open: how many cells a minibatch has, and how many epochs there are.

    Images take time by the cell, so small batches make more steps of the same time; of counts and profiles, whose
    steps take time by the step, a batch has about a tenth of the cells.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs is {epochs}; training takes at least one pass over the cells.")
    if max_minutes is not None and not max_minutes > 0:
        raise InputError(f"max_minutes is {max_minutes:g}; training takes some time.")
    few = modality == "images" and not objective.compares_cells
    tenth = int(np.clip(2 ** round(math.log2(max(n_train, 1) / 10)), _FEW, _MANY))
    batch_size = settings.batch_size or (_FEW if few else tenth)
    fewest, most = _EPOCHS
    steps = _STEPS_OF_FEW if few else _STEPS
    default = int(np.clip(round(steps / math.ceil(n_train / batch_size)), fewest, most))
    return Plan(settings, batch_size, epochs or default, max_minutes, Path(checkpoint) if checkpoint else None, seed)


def fit_module(
    module: VAEModule | ConditionalModule,
    source: Source,
    split: Split,
    *,
    objective: Objective,
    augment: Callable[[Batch, torch.Generator], Batch],
    digest: str,
    plan: Plan,
) -> Progress:
    """Train `module` in place on the cells of `split`, with a progress bar.

    Parameters
    ----------
    augment
        Changes training batches at random.
    digest
        What the cells are and how they are read, so that a checkpoint of other cells is refused.

    Raises
    ------
    InputError
        If the loss is not finite or explodes, naming the cells of the batch.
    """
    size = plan.batch_size
    ready = source.prepared(split.used)

    device = next(module.parameters()).device

    def epoch(rng: np.random.Generator, noise: torch.Generator) -> Iterator[Batch]:
        # on a GPU the turns are made there: its steps would wait for those of the processor
        for batch in shuffled(ready, split.train, size, rng):
            yield augment(batch.to(device), noise)

    objective = objective.within(plan.epochs * math.ceil(len(split.train) / size))
    objective = objective.started(module.n_latent, plan.seed, device)
    data = Data(len(split.train), epoch, lambda: in_order(ready, split.held_out, size))
    cell_names = source.names
    identity = {
        "objective": str(objective),
        "likelihood": type(module.likelihood).__name__,
        "data": digest,
        "settings": asdict(replace(plan.settings, threads=None, device=None)),
        "batch_size": plan.batch_size,
        "epochs": plan.epochs,
        "seed": plan.seed,
        "training cells": _digest(cell_names[split.train]),
        "held-out cells": _digest(cell_names[split.held_out]),
        "factors of the cells": _placed(source, split),
        "latent dimensions or width": sum(values.numel() for values in module.parameters()),
    }
    try:
        with fit_progress(plan.epochs, len(split.train)) as on_epoch, stop_on_interrupt() as stop_requested:
            return train(
                module,
                data,
                objective,
                plan.settings,
                epochs=plan.epochs,
                seed=plan.seed,
                max_minutes=plan.max_minutes,
                hooks=Hooks(plan.checkpoint, identity, on_epoch, stop_requested=stop_requested),
            )
    except NonFiniteLossError as error:
        raise InputError(
            f"Training stopped at step {error.step}: the loss is not finite or exploded on the cells "
            f"{listed(cell_names[error.index])}. Look at their measurements for extreme values, or lower the learning "
            "rate. Nothing was overwritten."
        ) from None


def fit_report(
    module: VAEModule | ConditionalModule, source: Source, split: Split, progress: Progress, plan: Plan
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Report of a finished fit (JSON-ready) and the collapse report of its latent dimensions."""
    rng = np.random.default_rng([plan.seed, 2])
    device = next(module.parameters()).device
    rows = split.held_out
    if len(rows) > _REPORT_CELLS:
        rows = np.sort(rng.choice(rows, _REPORT_CELLS, replace=False))
    held_out = [batch.to(device) for batch in in_order(source, rows, plan.batch_size)]
    latent = latent_report(module, held_out, rng)
    many = np.sort(rng.permutation(split.used)[:_TC_CELLS])
    together = total_correlation(module, in_order(source, many, plan.batch_size), len(split.train), plan.seed)
    some = held_out[: math.ceil(_NLL_CELLS / plan.batch_size)]
    nll = importance_nll(module, some, _REPORT_DRAWS, rng)
    chosen = progress.best_epoch if progress.best_epoch >= 0 else len(progress.history) - 1
    terms = progress.history[chosen]
    n_epochs = len(progress.history)
    report = {
        "n_train": len(split.train),
        "n_held_out": len(split.held_out),
        "n_excluded": len(source) - len(split.used),
        "n_measured": held_out[0].n_measured,
        "held_out_elbo": terms["val_elbo"],
        "held_out_log_px": terms["val_log_px"],
        "held_out_kl": terms["val_kl"],
        "held_out_nll": float(nll.nll.mean()),
        "nll_draws": _REPORT_DRAWS,
        "nll_median_effective_draws": float(np.median(nll.ess)),
        "total_correlation": together.total_correlation,
        "total_correlation_gaussian": None if math.isnan(together.gaussian) else together.gaussian,
        "n_active": int(latent["active"].sum()),
        "verdict": collapse_verdict(latent, still_improving=chosen >= 0.9 * (n_epochs - 1) and progress.cuts == 0),
        "epochs": n_epochs,
        "most_epochs": plan.epochs,
        "best_epoch": chosen,
        "seconds": progress.seconds,
        "cells_per_second": n_epochs * len(split.train) / max(progress.seconds, 1e-9),
        "seed": plan.seed,
        "threads": progress.threads,
        "device": str(device),
        "settings": asdict(plan.settings) | {"batch_size": plan.batch_size},
        "versions": {name: version(name) for name in ("latentcell", "torch", "anndata", "numpy")}
        | {"python": platform.python_version()},
        "latent": latent.to_dict("list"),
    }
    return report, latent


def seed_of(rng: int | np.random.Generator | None) -> int:
    """Seed to record: the number given, or one drawn."""
    return int(rng) if isinstance(rng, int | np.integer) else int(np.random.default_rng(rng).integers(2**31))


@contextmanager
def threads_for(n: int | None) -> Iterator[None]:
    """Train on `n` CPU threads, by default on the free ones; then as many as before."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n or free_threads())
        yield
    finally:
        torch.set_num_threads(before)


def _placed(source: Source, split: Split) -> str | None:
    """Digest of where factors place the cells of a fit."""
    return None if source.position is None else hashlib.sha256(source.position[split.used].tobytes()).hexdigest()


def _digest(names: pd.Index) -> str:
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()


def augmented(batch: Batch, noise: torch.Generator, orientation: Orientation) -> Batch:
    """Training images after augmentation, by what is done about their `orientation`.

    With ``"align"`` the encoder sees the cell at a random angle and with noise, and the decoder is asked for its clean
    canonical orientation, so that the code becomes indifferent to both. The objective stays a lower bound (Im et al.
    2017, denoising criterion). With ``"augment"`` both see the turned cell. In both the cell is varied a little first.
    """
    if orientation == "as_is":
        return batch
    original = varied(batch, noise)
    seen = turned(original, noise)
    if orientation == "augment":
        return seen
    return replace(original, x=noisy(seen.dense, INPUT_NOISE, noise), target=original.dense)
