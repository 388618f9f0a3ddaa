"""Training a refiner on the cells that a VAE was trained on, and drawing sharp cells with it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentcell.cells.augmentation import noisy, turned
from latentcell.cells.batches import Batch, Source
from latentcell.errors import InputError
from latentcell.model.adam import Adam
from latentcell.model.fit import INPUT_NOISE
from latentcell.model.module import VAEModule
from latentcell.model.refiner import Refiner
from latentcell.model.schema import Orientation, Schema
from latentcell.model.split import Split
from latentcell.progress import progress_bar, stop_on_interrupt

# optimiser steps of a training of default length, and cells in each
STEPS, _BATCH = 2000, 32
# peak learning rate of Adam, largest norm of the gradient, memory of the averaged weights
_RATE, _CLIP, _MEMORY = 2e-3, 1.0, 0.995
# spread of the brightness of channels in training, as a share
_GAIN = 0.1
# steps of Heun's method per draw, corrections of the code asked for, the share of the miss that the first one moves it
_FLOW_STEPS, ROUNDS, _DAMPING = 6, 3, 0.6
# seen cells that a training needs; the share held out where the VAE's own held-out cells are not given
_FEWEST, _HELD_OUT = 16, 0.1
# cells at most behind the residual SD and the report; steps behind the loss that is shown
_REPORT_CELLS, _RECENT = 64, 100


@dataclass(frozen=True)
class RefinerPlan:
    """How long to train a refiner: optimiser steps and minutes at most, and the root of all randomness."""

    steps: int
    max_minutes: float | None
    seed: int


def fit_refiner(
    module: VAEModule, schema: Schema, source: Source, split: Split, plan: RefinerPlan
) -> tuple[Refiner, dict[str, Any]]:
    """Train a refiner on the training cells of `split`, with a progress bar; returns it and a JSON-ready report.

    Each cell is shown as the VAE's training shows it, coded by a draw of its posterior and decoded, so that the
    refiner meets means as blurred and as displaced as those of new codes. Its weights are averaged over the steps.

    Raises
    ------
    InputError
        If the cells are no images or training diverges.
    """
    if schema.modality != "images":
        raise InputError(
            f"Sharp draws are for images; this model was fitted on {schema.modality}, whose draws with noise=True "
            "already look like measurements."
        )
    if plan.steps < 1:
        raise InputError(f"steps is {plan.steps}; training a refiner takes at least one.")
    device = next(module.parameters()).device
    rng = np.random.default_rng([plan.seed, 3])
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    ready = source.prepared(split.used)
    some = ready.batch(np.sort(rng.permutation(split.train)[:_REPORT_CELLS])).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        refiner = Refiner(schema.shape).to(device)
    refiner.scale_to(some.dense - _decoded(module, some, noise), _limits(module, schema))
    rows, started = _endless(split.train, rng), time.monotonic()

    def loss() -> Tensor:
        pairs = _training_pairs(module, ready.batch(next(rows)), schema.orientation, noise)
        return refiner.loss(*pairs, noise).mean()

    averaged, losses = _optimised(refiner, loss, plan)
    held_out = ready.batch(split.held_out[:_REPORT_CELLS]).to(device)
    report = {
        "steps": len(losses),
        "seconds": time.monotonic() - started,
        "seed": plan.seed,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "n_train": len(split.train),
        "n_held_out": len(split.held_out),
        "loss": float(np.mean(losses[-_RECENT:])),
        **_held_out_report(module, averaged, held_out, rng),
    }
    return averaged, report


def _optimised(refiner: Refiner, loss: Callable[[], Tensor], plan: RefinerPlan) -> tuple[Refiner, list[float]]:
    """Minimise `loss`, which draws a batch at each call; returns the averaged weights and the loss of each step.

    Ctrl-C ends it early and keeps what was learnt.
    """
    averaged = copy.deepcopy(refiner).requires_grad_(False).eval()
    optimiser = Adam(refiner.parameters())
    losses: list[float] = []
    started = time.monotonic()
    with progress_bar("refine", plan.steps) as update, stop_on_interrupt() as stop_requested:
        for step in range(plan.steps):
            minutes = (time.monotonic() - started) / 60
            share = max(step / plan.steps, minutes / plan.max_minutes if plan.max_minutes else 0.0)
            if step > 0 and (share >= 1 or stop_requested()):
                break
            rate = _RATE * min(1.0, (step + 1) / 50) * min(1.0, 2 * max(0.0, 1 - share))
            optimiser.clear()
            value = loss()
            value.backward()
            norm = optimiser.gradient_norm()
            if not math.isfinite(norm):
                raise InputError(
                    f"Training of the refiner diverged at step {step}: look for extreme values among the pixels. The "
                    "model is as it was."
                )
            optimiser.step(rate, min(1.0, _CLIP / (norm + 1e-6)))
            memory = min(_MEMORY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(averaged.parameters()), list(refiner.parameters()), 1 - memory)
            losses.append(float(value.detach()))
            update(step + 1, f"flow loss {np.mean(losses[-_RECENT:]):.3f}")
    return averaged, losses


def seen_split(cells: np.ndarray, fitted: np.ndarray, held_out: np.ndarray, seed: int) -> Split:
    """Split cells as the VAE's fit split them, by fingerprint; cells that it never saw are on neither side.

    Where none of its held-out cells is given, a random tenth of the others takes their place.

    Raises
    ------
    InputError
        If the VAE has seen too few of the cells.
    """
    rows = np.flatnonzero(np.isin(cells, fitted))
    if len(rows) < _FEWEST:
        raise InputError(
            f"The VAE was fitted on {len(rows)} of these {len(cells)} cells, and a refiner needs at least {_FEWEST} of "
            "them: others are held out and stay unseen. Give the cells that the VAE was fitted on."
        )
    out = np.isin(cells[rows], held_out)
    if not 2 <= out.sum() <= len(rows) // 2:
        chosen = np.random.default_rng([seed, 4]).permutation(len(rows))[: max(2, round(_HELD_OUT * len(rows)))]
        out = np.isin(np.arange(len(rows)), chosen)
    return Split(rows[~out], rows[out])


@torch.no_grad()
def sharpened(
    module: VAEModule,
    refiner: Refiner,
    z: Tensor,
    covariates: Tensor | None,
    rng: np.random.Generator,
    rounds: int = ROUNDS,
) -> Tensor:
    """Draw one cell at each code: scaled, and 0 outside the decoder's region where the model has masks.

    A draw's own code misses the one asked for, since the encoder reads shapes more exactly than the flow keeps them.
    So other codes are asked for until, with the same noise, the draw's code is `z`: the root of
    ``encode(draw(asked)) - z`` by Broyden's method (Broyden 1965), of whose draws the nearest is kept. Every one is a
    draw of the generative model; no pixel is optimised.

    Parameters
    ----------
    z
        Codes ``(n, d)``.
    rng
        Gives the noise that fixes each draw, cell by cell.
    rounds
        Corrections of the code asked for.
    """
    shape = (len(z), len(refiner.spread), *refiner.size)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(z)

    def drawn(asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, their miss of the code ``(n, d)`` and its size in posterior SDs ``(n,)``."""
        x = refiner.draw(module.measurements(asked, covariates, None, None), noise, _FLOW_STEPS)
        region = module.region(asked, covariates)
        x = x if region is None else x * (region > 0.5)
        posterior = module.network.encode(x, covariates)
        miss = posterior.mu - z
        return x, miss, (miss.square() / posterior.log_var.exp()).mean(1)

    x, miss, size = drawn(z)
    asked, inverse = z, torch.eye(z.shape[1]).to(z).expand(len(z), -1, -1) * _DAMPING
    for _ in range(rounds):
        step = -torch.einsum("nij,nj->ni", inverse, miss)
        asked = asked + step
        new_x, new_miss, new_size = drawn(asked)
        change = torch.einsum("nij,nj->ni", inverse, new_miss - miss)
        scale = (step * change).sum(1)
        scale = torch.where(scale.abs() > 1e-3 * step.square().sum(1), scale, torch.inf)
        weight = torch.einsum("ni,nij->nj", step, inverse) / scale[:, None]
        inverse, miss = inverse + torch.einsum("ni,nj->nij", step - change, weight), new_miss
        better = new_size < size
        x = torch.where(better.view(-1, *[1] * (x.dim() - 1)), new_x, x)
        size = torch.where(better, new_size, size)
    return x


def _training_pairs(
    module: VAEModule, batch: Batch, orientation: Orientation, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cells, and means decoded at draws of the posteriors that the encoder gives them in training.

    The brightness of channels varies as in the VAE's training. The small stretches of that training are left out, as
    resampling blurs; instead cells are turned by a multiple of 90 degrees or mirrored together with their means.
    """
    batch = batch.to(next(module.parameters()).device)
    if orientation == "as_is":
        return batch.dense, _decoded(module, batch, noise)
    gain = torch.exp(_GAIN * torch.randn(batch.dense.shape[:2], generator=noise)).to(batch.dense.device)
    batch = replace(batch, x=batch.dense * gain.view(*gain.shape, *[1] * (batch.dense.dim() - 2)))
    seen = batch
    if orientation == "align":
        seen = turned(batch, noise)
        seen = replace(seen, x=noisy(seen.dense, INPUT_NOISE, noise))
    mean = _decoded(module, seen, noise)
    symmetry = int(torch.randint(8, (1,), generator=noise))
    return _mirrored(batch.dense, symmetry), _mirrored(mean, symmetry)


def _mirrored(x: Tensor, symmetry: int) -> Tensor:
    """Apply one of the symmetries of the pixel grid in the plane: eight where it is square, else four."""
    if symmetry & 1:
        x = x.flip(-1)
    if symmetry & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if symmetry & 4 and x.shape[-1] == x.shape[-2] else x


@torch.no_grad()
def _decoded(module: VAEModule, batch: Batch, noise: torch.Generator) -> Tensor:
    """Decoder's mean at one draw of each cell's posterior."""
    z = module.network.encode(batch.x, batch.covariates).draw(noise)
    return module.measurements(z, batch.covariates, None, None)


@torch.no_grad()
def _held_out_report(module: VAEModule, refiner: Refiner, batch: Batch, rng: np.random.Generator) -> dict[str, float]:
    """Flow loss of held-out cells, and how far the codes of sharp draws lie from the codes asked for.

    The yardstick is ``drift_turned``: how far the codes of the real cells move when these are turned by any angle.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    loss = refiner.loss(batch.dense, _decoded(module, batch, generator), generator)
    z = module.network.encode(batch.x, batch.covariates).mu
    seed = int(rng.integers(2**31))
    views = {"drift_turned": turned(batch.to(torch.device("cpu")), generator).dense.to(z)}
    for name, rounds in (("drift_uncorrected", 0), ("drift", ROUNDS)):
        views[name] = sharpened(module, refiner, z, batch.covariates, np.random.default_rng(seed), rounds)
    report = {"held_out_loss": float(loss.mean())}
    for name, x in views.items():
        posterior = module.network.encode(x, batch.covariates)
        miss = ((posterior.mu - z).square() / posterior.log_var.exp()).mean(1)
        report |= {name: float(miss.mean().sqrt()), f"{name}_median": float(miss.median().sqrt())}
    return report


def _limits(module: VAEModule, schema: Schema) -> Tensor:
    """Lowest and highest scaled value that each channel can take, ``(C, 2)``."""
    scale, location = torch.tensor(schema.scale), torch.tensor(schema.location)
    low, high = torch.full_like(scale, -math.inf), torch.full_like(scale, math.inf)
    if module.likelihood.support == "nonnegative":
        low = -location / scale
    if schema.clip:
        low, high = torch.zeros_like(scale), torch.ones_like(scale)
    elif schema.grey_levels is not None:
        low, high = -location / scale, (schema.grey_levels - 1 - location) / scale
    return torch.stack([low, high], 1)


def _endless(rows: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of rows, each row once per pass in random order."""
    pool = np.empty(0, dtype=rows.dtype)
    while True:
        while len(pool) < _BATCH:
            pool = np.concatenate([pool, rng.permutation(rows)])
        yield pool[:_BATCH]
        pool = pool[_BATCH:]
