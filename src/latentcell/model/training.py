"""The training loop: plain, resumable, and ignorant of what it trains.

It takes a module ``module(batch, generator) -> (log_px, posterior, z)``, minibatches, an objective and settings. All
randomness of epoch e derives from (seed, e), so a fit resumed from a checkpoint gives the weights of an unbroken one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentcell.cells.batches import Batch
from latentcell.errors import InputError
from latentcell.model.adam import Adam
from latentcell.model.critic import Critic
from latentcell.model.files import read_tensors, write_tensors
from latentcell.model.objectives import Objective
from latentcell.model.settings import Settings

logger = logging.getLogger(__name__)

# seconds between checkpoints at least: writing must not dominate fits of small data
_CHECKPOINT_EVERY = 15.0
# a loss this many times beyond its start never comes back
_EXPLODED = 1e4
# factor of a cut of the learning rate, and how many cuts are made before training stops
_CUT = 1 / 3
_MOST_CUTS = 2


@dataclass(frozen=True)
class Data:
    """Minibatches for the loop.

    Attributes
    ----------
    n_train
        Number of training cells.
    train
        Minibatches of one epoch, from the epoch's generators.
    held_out
        Minibatches of the held-out cells, in a fixed order.
    """

    n_train: int
    train: Callable[[np.random.Generator, torch.Generator], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]]


@dataclass
class Progress:
    """State of a fit between epochs; with weights and optimiser it is the whole of a checkpoint."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_merit: float = -math.inf
    best_epoch: int = -1
    recent_merit: float = -math.inf
    recent_epoch: int = -1
    cuts: int = 0
    first_loss: float | None = None
    threads: int = 1
    history: list[dict[str, float]] = field(default_factory=list)

    def stalled(self, merit: float, patience: int) -> bool:
        """Take note of an epoch's merit; true when it has not risen for `patience` epochs, and then start anew.

        It is compared with the best since the end of the objective's schedule or the last cut, not with the best of
        all: a lucky epoch of the warm-up must not end a training that still gains.
        """
        if merit > self.recent_merit:
            self.recent_merit, self.recent_epoch = merit, self.epoch
        if self.epoch - self.recent_epoch < patience:
            return False
        self.recent_merit, self.recent_epoch = -math.inf, self.epoch
        return True


class NonFiniteLossError(RuntimeError):
    """The loss of a batch is not a number or exploded; `index` holds the rows of its cells."""

    def __init__(self, index: np.ndarray, step: int) -> None:
        super().__init__(f"loss not finite or exploding at step {step}")
        self.index = index
        self.step = step


def train(
    module: nn.Module,
    data: Data,
    objective: Objective,
    settings: Settings,
    *,
    epochs: int,
    seed: int,
    max_minutes: float | None = None,
    hooks: Hooks | None = None,
) -> Progress:
    """Fit `module` in place and leave it with the weights of the best held-out ELBO.

    Parameters
    ----------
    epochs
        Passes over the training cells at most.
    seed
        Root of all randomness.
    max_minutes
        Stop, with the learning rate annealed, after this much training time, also within an epoch.
    hooks
        Where to checkpoint and whom to tell of each epoch.

    Raises
    ------
    NonFiniteLossError
        If the loss is not finite or explodes.
    """
    hooks = hooks or Hooks()
    device = next(module.parameters()).device
    optimiser = Adam(module.parameters())
    progress, best = Progress(threads=torch.get_num_threads()), _weights(module)
    if hooks.checkpoint is not None and hooks.checkpoint.exists():
        progress, best = _resume(hooks.checkpoint, hooks.identity, module, optimiser, objective.critic)
        logger.info("going on after %d epochs from %s", progress.epoch, hooks.checkpoint)
    saved_at = time.monotonic()
    while progress.epoch < epochs and not _finished(progress, max_minutes):
        started = time.monotonic()
        budget = _Budget(epochs, max_minutes, started)
        # dropout draws from torch's global generator: seeded for the epoch, and given back as it was
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence([seed, progress.epoch]).generate_state(1)[0]))
            row = _one_epoch(module, data, objective, optimiser, settings, progress, seed=seed, budget=budget)
        measured, merit = _held_out(module, data, objective, seed, device)
        row |= measured
        progress.seconds += time.monotonic() - started
        row |= {"epoch": progress.epoch, "seconds": progress.seconds}
        progress.history.append(row)
        # weights from before the schedule has run out belong to another objective, unless that is the ELBO itself
        settled = budget.scheduled(progress, 1.0) >= objective.schedule_steps
        if (settled or objective.optimises_elbo) and merit > progress.best_merit:
            progress.best_merit, progress.best_epoch, best = merit, progress.epoch, _weights(module)
        if settled and progress.stalled(merit, settings.patience):
            progress.cuts += 1
            module.load_state_dict(best)
        progress.epoch += 1
        if hooks.on_epoch is not None:
            hooks.on_epoch(row)
        stop = hooks.stop_requested is not None and hooks.stop_requested()
        if hooks.checkpoint is not None and (stop or time.monotonic() - saved_at > hooks.every):
            state = _state(module, optimiser, objective.critic, best)
            write_tensors(hooks.checkpoint, state, {"identity": hooks.identity, "progress": asdict(progress)})
            saved_at = time.monotonic()
        if stop:
            raise KeyboardInterrupt
    if progress.best_epoch >= 0:
        module.load_state_dict(best)
    module.eval()
    return progress


@dataclass(frozen=True)
class Hooks:
    """What surrounds the loop.

    Attributes
    ----------
    checkpoint
        File to resume from if it exists and to write while training, or None.
    identity
        JSON-ready description of the fit; a checkpoint of another fit is refused.
    on_epoch
        Called with the row of the history after each epoch.
    every
        Seconds between checkpoints.
    stop_requested
        Asked after each epoch; if true, the state is saved and `KeyboardInterrupt` raised.
    """

    checkpoint: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    on_epoch: Callable[[dict[str, float]], None] | None = None
    every: float = _CHECKPOINT_EVERY
    stop_requested: Callable[[], bool] | None = None


def learning_rate(peak: float, share: float, cuts: int = 0) -> float:
    """Rate at a share in [0, 1] of training after some cuts.

    It warms up over the first hundredth, is cut to a third whenever the held-out ELBO has stopped rising, and falls
    to zero over the last quarter, so that a training that is cut short by its budget ends as settled as one that is
    not.
    """
    warm = min(1.0, (share + 1e-3) / 0.01)
    return peak * warm * _CUT**cuts * min(1.0, max(0.0, 1 - share) / 0.25)


def _one_epoch(
    module: nn.Module,
    data: Data,
    objective: Objective,
    optimiser: Adam,
    settings: Settings,
    progress: Progress,
    *,
    seed: int,
    budget: _Budget,
) -> dict[str, float]:
    """One pass over the training cells, or what of it the time allows."""
    module.train()
    device = next(module.parameters()).device
    rng = np.random.default_rng([seed, progress.epoch])
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    sums: dict[str, float] = {}
    n_cells = 0
    for batch in data.train(rng, noise):
        part = n_cells / data.n_train
        done = budget.spent(progress, part)
        if part and done >= 1:
            break
        rate = learning_rate(settings.learning_rate, done, progress.cuts)
        log_px, posterior, z = module(batch.to(device), noise)
        terms = objective(log_px, posterior, z, data.n_train, budget.scheduled(progress, part))
        optimiser.clear()
        (terms.loss / batch.n_measured).backward()
        norm = optimiser.gradient_norm()
        _refuse_divergence(terms.loss, norm, log_px, batch, progress)
        optimiser.step(rate, min(1.0, settings.clip / (norm + 1e-6)))
        progress.step += 1
        n_cells += len(batch)
        kl = float(terms.kl_per_dim.detach().sum())
        elbo = float(terms.elbo.detach().mean())
        row = {"loss": float(terms.loss.detach()), "elbo": elbo, "log_px": elbo + kl, "kl": kl, **terms.extras}
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value * len(batch)
    return {name: total / n_cells for name, total in sums.items()} | {"learning_rate": rate}


@dataclass(frozen=True)
class _Budget:
    """Epochs and minutes at most, and when the present epoch began."""

    epochs: int
    max_minutes: float | None
    started: float

    def spent(self, progress: Progress, part: float) -> float:
        """Share of training that is done, with a `part` of the present epoch."""
        of_epochs = (progress.epoch + part) / self.epochs
        if self.max_minutes is None:
            return of_epochs
        return max(of_epochs, (progress.seconds + time.monotonic() - self.started) / (60 * self.max_minutes))

    def scheduled(self, progress: Progress, part: float) -> int:
        """Step that an objective's schedule has reached: ahead of the true one where time runs out before the epochs.

        After no epoch at all it is the true one.
        """
        at = progress.epoch + part
        ahead = self.spent(progress, part) * self.epochs / at if at else 1.0
        return int(progress.step * max(1.0, ahead))


@torch.no_grad()
def _held_out(
    module: nn.Module, data: Data, objective: Objective, seed: int, device: torch.device
) -> tuple[dict[str, float], float]:
    """Mean true ELBO of the held-out cells and the objective's merit, with the same noise at every epoch."""
    module.eval()
    noise = torch.Generator().manual_seed(seed)
    log_px_sum = kl_sum = merit_sum = 0.0
    n_cells = 0
    for batch in data.held_out():
        log_px, posterior, _ = module(batch.to(device), noise)
        log_px_sum += float(log_px.double().sum())
        kl_sum += float(posterior.kl().double().sum())
        merit_sum += float(objective.merit(log_px, posterior).double().sum())
        n_cells += len(batch)
    log_px_mean, kl_mean = log_px_sum / n_cells, kl_sum / n_cells
    measured = {"val_elbo": log_px_mean - kl_mean, "val_log_px": log_px_mean, "val_kl": kl_mean}
    return measured, merit_sum / n_cells


def _refuse_divergence(loss: Tensor, norm: float, log_px: Tensor, batch: Batch, progress: Progress) -> None:
    value = float(loss.detach())
    if progress.first_loss is None:
        progress.first_loss = value
    limit = _EXPLODED * max(abs(progress.first_loss), float(batch.n_measured))
    if math.isfinite(value) and math.isfinite(norm) and value < limit:
        return
    # one broken cell spoils the shared noise level, and with it the likelihood of all: look at the cells first
    bad = ~torch.isfinite(batch.dense).flatten(1).all(1).cpu().numpy()
    if not bad.any():
        bad = ~torch.isfinite(log_px.detach()).cpu().numpy()
    raise NonFiniteLossError(batch.index[bad] if bad.any() else batch.index, progress.step)


def _finished(progress: Progress, max_minutes: float | None) -> bool:
    return progress.cuts > _MOST_CUTS or (max_minutes is not None and progress.seconds >= 60 * max_minutes)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _state(module: nn.Module, optimiser: Adam, critic: Critic | None, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name."""
    tensors = _named("now", module.state_dict()) | _named("best", best)
    tensors |= _named("adam", optimiser.state())
    if critic is not None:
        tensors |= _named("critic", critic.state_dict())
        tensors |= _named("critic_adam", critic.optimiser.state())
    return tensors


def _resume(
    path: Path,
    identity: dict[str, Any],
    module: nn.Module,
    optimiser: Adam,
    critic: Critic | None,
) -> tuple[Progress, dict[str, Tensor]]:
    tensors, stored = read_tensors(path)
    if stored["identity"] != json.loads(json.dumps(identity)):
        changed = [key for key in identity if stored["identity"].get(key) != json.loads(json.dumps(identity[key]))]
        raise InputError(
            f"{path} is the checkpoint of another fit (it differs in: {', '.join(changed) or 'its settings'}). Remove "
            "it to start afresh, or give the same cells and options to go on."
        )
    module.load_state_dict(_below("now", tensors))
    optimiser.load(_below("adam", tensors))
    if critic is not None:
        critic.load_state_dict(_below("critic", tensors))
        critic.optimiser.load(_below("critic_adam", tensors))
    return Progress(**stored["progress"]), _below("best", tensors)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): each for name, each in tensors.items() if name.startswith(f"{prefix}.")}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": each for name, each in tensors.items()}
