"""The estimator: where AnnData meets tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch

from latentcell.cells.batches import Batch, in_order, read_ahead
from latentcell.cells.images import Modality, is_two_valued, measured
from latentcell.errors import InputError, NotFittedError
from latentcell.model import files, objectives
from latentcell.model.decoding import Conditions, decode
from latentcell.model.fit import augmented, fit_module, fit_report, make_plan, seed_of, threads_for
from latentcell.model.geodesic import geodesics
from latentcell.model.guidance import Factors, Guidance
from latentcell.model.guided import Guided
from latentcell.model.module import ImportanceNLL, VAEModule, importance_nll, modality_for, resolve_likelihood
from latentcell.model.objectives import Objective
from latentcell.model.packing import packed, unpacked, weights
from latentcell.model.placing import Placed, place
from latentcell.model.refine import STEPS, RefinerPlan, fit_refiner, seen_split
from latentcell.model.refiner import Refiner
from latentcell.model.schema import Orientation, Schema, fingerprints
from latentcell.model.settings import Settings, checked
from latentcell.model.split import split_cells

if TYPE_CHECKING:
    from anndata import AnnData

# cells decoded at once, cells with counts encoded at once, and geodesics found at once
_BLOCK, _COUNTS_BLOCK, _PATHS = 256, 4096, 32
# cells behind the mean with which training of counts starts
_START_CELLS = 2000


class Latent(NamedTuple):
    """Codes of cells: posterior mean `mu` and variance `var`, each ``(n, d)`` float32."""

    mu: np.ndarray
    var: np.ndarray


class VAE:
    """Variational autoencoder of single cells: images, counts or profiles.

    Parameters
    ----------
    n_latent
        Latent dimensions d.
    likelihood
        Noise of the measurements. ``"auto"`` takes ``nb`` for counts, ``gaussian`` for profiles and images and
        ``bernoulli`` for masks. Others: ``zinb``, ``poisson``; ``student_t``; ``continuous_bernoulli``,
        ``discretized_logistic``, ``poisson_gaussian`` (``poisson_gaussian=2.2`` sets the camera's gain).
    objective
        What training maximises: an object of `latentcell.objectives` or its text, such as ``"beta=4"``.
    factors
        Factors that guide latent dimensions or should be absent; see `latentcell.Factors`.
    batch_key
        Column of ``obs`` (plate, donor, library) that the decoder is told, so that the latent space need not hold it.
    layer
        Layer to read instead of ``X``; with images, names a matrix to read instead of them.
    orientation
        For images: ``"align"`` shows the encoder cells at any angle and asks the decoder for the cell turned to its
        principal axis, ``"augment"`` trains on random turns and mirrors, ``"as_is"`` takes crops as they are.
        Cell masks in ``obsm["masks"]`` are part of the measurement: values outside them (and a margin of 3 pixels) do
        not count, and the decoder draws the cell's region too.
    width
        Channels of the first convolution (16: 16-32-64-128 for 64 x 64 crops), or width of the two hidden layers of
        counts and profiles (128).

    Attributes
    ----------
    schema_ : Schema
        What the model was fitted on.
    history_ : DataFrame
        One row per epoch: loss and ELBO terms in nats per cell, on training (``elbo``) and held-out cells
        (``val_elbo``).
    report_ : dict
        Held-out likelihood, active dimensions, seed, versions, time.
    latent_ : DataFrame
        Collapse report: one row per latent dimension.

    Examples
    --------
    >>> import latentcell as lc
    >>> cells = lc.cells.simulate.counts(200, 50, rng=0)
    >>> model = lc.VAE(n_latent=4).fit(cells, epochs=3, rng=0)
    >>> model.encode(cells).mu.shape
    (200, 4)
    """

    schema_: Schema
    history_: pd.DataFrame
    report_: dict[str, Any]
    latent_: pd.DataFrame
    _refiner: Refiner | None = None

    def __init__(
        self,
        n_latent: int = 16,
        *,
        likelihood: str = "auto",
        objective: Objective | str = "elbo",
        factors: Factors | None = None,
        batch_key: str | None = None,
        layer: str | None = None,
        orientation: Orientation = "align",
        width: int | None = None,
    ) -> None:
        if n_latent < 1:
            raise InputError(f"n_latent is {n_latent}; a latent space needs at least one dimension.")
        if orientation not in ("align", "augment", "as_is"):
            raise InputError(f"orientation is {orientation!r}; choose 'align', 'augment' or 'as_is'.")
        self.n_latent = n_latent
        self.likelihood = likelihood
        self.objective = objectives.parse(objective) if isinstance(objective, str) else objective
        self.factors = factors or Factors()
        self.batch_key = batch_key
        self.layer = layer
        self.orientation: Orientation = orientation
        self.width = width

    def __getattr__(self, name: str) -> Any:
        # reached only for attributes that do not exist: those that `fit` sets
        if name in ("schema_", "history_", "report_", "latent_", "_module", "_likelihood", "_fitted", "_held_out"):
            raise NotFittedError("This VAE has not been fitted: call fit(cells) first, or VAE.load a fitted one.")
        raise AttributeError(f"VAE has no attribute {name!r}")

    def fit(
        self,
        cells: AnnData,
        *,
        exclude: Mapping[str, Sequence[Any]] | None = None,
        split_key: str | None = None,
        epochs: int | None = None,
        max_minutes: float | None = None,
        settings: Settings | None = None,
        checkpoint: str | Path | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> Self:
        """Train on `cells`.

        Parameters
        ----------
        exclude
            Groups kept away from training, early stopping and scaling: ``{"stage": ["metaphase"]}``.
        split_key
            Column of ``obs`` whose groups (track, donor, field) never stand on both sides of the validation split.
        epochs
            Passes over the cells at most; by default enough for 3,000 optimiser steps, of images 5,000.
        max_minutes
            Stop after this much training, with the learning rate annealed in time. The result then depends on the
            machine's speed.
        settings
            `latentcell.Settings`: batch size, learning rate and so on.
        checkpoint
            File written during training; when it exists, training goes on from it.
        rng
            Seed; the same seed gives the same weights on one machine.

        Raises
        ------
        InputError
            If the cells cannot be trained on; the message names cells, variables or columns.
        """
        settings = checked(settings)
        seed = seed_of(rng)
        modality = modality_for(cells, self.layer, self.likelihood)
        split = split_cells(cells, exclude=exclude, split_key=split_key, share=settings.validation, seed=seed)
        two_valued = modality == "images" and is_two_valued(measured(cells, self.layer), split.train)
        name, number, support = resolve_likelihood(self.likelihood, modality, two_valued)
        guidance = Guidance.register(cells, split.train, self.factors, self.n_latent, self.batch_key)
        schema = Schema.register(
            cells,
            split.train,
            also_check=split.held_out,
            modality=modality,
            layer=self.layer,
            support=support,
            orientation=self.orientation,
            batch_key=self.batch_key,
        )
        self.schema_, self._likelihood = replace(schema, guidance=guidance), (name, number)
        self._module, self._refiner = self._build(seed).to(settings.torch_device()), None
        source = replace(self.schema_.source(cells), position=guidance.positions(cells, self.n_latent))
        self._fitted = np.sort(fingerprints(source, split.used))
        self._held_out = np.sort(fingerprints(source, split.held_out))
        objective = self._guided()
        plan = make_plan(
            len(split.train),
            settings,
            modality=modality,
            objective=objective,
            epochs=epochs,
            max_minutes=max_minutes,
            checkpoint=checkpoint,
            seed=seed,
        )
        with threads_for(settings.threads or plan.stored_threads()):
            some = split.train[:: math.ceil(len(split.train) / _START_CELLS)]
            self._module.start_at(in_order(source, some, plan.batch_size))
            progress = fit_module(
                self._module,
                source,
                split,
                objective=objective,
                augment=partial(augmented, orientation=self.schema_.orientation),
                digest=self.schema_.digest(),
                plan=plan,
            )
            self.report_, self.latent_ = fit_report(self._module, source, split, progress, plan)
        self.history_ = pd.DataFrame(progress.history)
        self.report_ |= {
            "modality": modality,
            "likelihood": name,
            "objective": objectives.describe(self.objective),
            "guided": {guide.name: guide.dimensions for guide in guidance.guides},
            "nuisance": list(self.factors.nuisance),
            "n_latent": self.n_latent,
        }
        return self

    def fit_refiner(
        self,
        cells: AnnData,
        *,
        steps: int = STEPS,
        max_minutes: float | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> Self:
        """Learn the texture of images that a decoded mean lacks, so that ``decode(z, sharp=True)`` can draw it.

        See `latentcell.model.refiner.Refiner` (conditional flow matching). Of `cells` only those that the VAE itself
        was fitted on are used, so that what was excluded stays unseen. Adds ``report_["refiner"]``: steps, seconds,
        seed, loss, and on the cells of early stopping the loss and three drifts, RMS and median over cells: how far,
        in posterior SDs, the code of a sharp draw lies from the code asked for (``drift``), without corrections
        (``drift_uncorrected``), and how far turning the real cell moves its code (``drift_turned``).

        Parameters
        ----------
        steps
            Optimiser steps of 32 cells; 2,000 take about 6 minutes for crops of 2 x 64 x 64 on two free cores.
        max_minutes
            Stop after this much training, with the learning rate annealed in time.
        rng
            Seed of the refiner; the VAE's weights do not change.

        Raises
        ------
        InputError
            If the model is not one of images, or has seen too few of `cells`.
        """
        source, seed = self.schema_.source(cells), seed_of(rng)
        split = seen_split(fingerprints(source), self._fitted, self._held_out, seed)
        with threads_for(None):
            self._refiner, self.report_["refiner"] = fit_refiner(
                self._module, self.schema_, source, split, RefinerPlan(steps, max_minutes, seed)
            )
        return self

    def encode(self, cells: AnnData) -> Latent:
        """Posterior mean and variance of each cell; independent of batch size and order.

        The variance is NaN where the objective does not fit it (`latentcell.objectives.MMD`).

        Raises
        ------
        InputError
            If the cells do not match those that the model was fitted on.
        """
        mu, var = np.full((2, cells.n_obs, self.n_latent), np.nan, dtype=np.float32)
        # as many threads as are free: two that share one core take ten times as long as one
        with torch.inference_mode(), threads_for(None):
            for batch in self._batches(cells, size=_COUNTS_BLOCK if self.schema_.modality == "counts" else None):
                posterior = self._module.network.encode(batch.x, batch.covariates)
                mu[batch.index] = posterior.mu.cpu().numpy()
                if self.objective.fits_posterior:
                    var[batch.index] = posterior.log_var.exp().cpu().numpy()
        return Latent(mu, var)

    def decode(
        self,
        z: np.ndarray,
        *,
        batch: Any = None,
        library_size: float | np.ndarray | None = None,
        noise: bool = False,
        sharp: bool = False,
        rng: int | np.random.Generator | None = None,
    ) -> np.ndarray:
        """Measurements at latent positions, in stored units, ``(n, C, [Z,] H, W)`` or ``(n, F)`` float32.

        Parameters
        ----------
        z
            ``(n, d)``.
        batch
            Level of the batch column for all cells, or one per cell; by default the average of the training levels.
        library_size
            Total counts per cell, a number or ``(n,)``; by default the training cells' median.
        noise
            False gives the mean of the likelihood (to look at), True a draw from it (to compare populations).
        sharp
            Draw a whole cell with the texture that the mean lacks (images, after `fit_refiner`). The texture is drawn,
            not measured: another `rng` gives another cell of the same code. One `rng` gives the texture by the
            position of the code in `z`, whatever the other codes are.

        Raises
        ------
        InputError
            If `z` or `batch` do not fit the model, or `sharp` cannot be had.
        """
        z = np.atleast_2d(np.asarray(z, dtype=np.float32))
        if z.shape[1] != self.n_latent:
            raise InputError(f"z has {z.shape[1]} columns, but the model has {self.n_latent} latent dimensions.")
        if sharp and noise:
            raise InputError("sharp=True and noise=True exclude each other: a sharp cell is a draw, noise included.")
        given = Conditions(self.schema_.decoder_covariates(batch, len(z)), library_size)
        return decode(self._module, self.schema_, z, given, refiner=self._refiner_for(sharp), noise=noise, rng=rng)

    def region(self, z: np.ndarray, *, batch: Any = None) -> np.ndarray | None:
        """Probability that each pixel lies in the cell's region, ``(n, ...)``; None for a model without masks."""
        if not self.schema_.masked:
            return None
        z = np.atleast_2d(np.asarray(z, dtype=np.float32))
        covariates, parts = self.schema_.decoder_covariates(batch, len(z)), []
        with torch.inference_mode():
            for start in range(0, len(z), _BLOCK):
                rows = slice(start, start + _BLOCK)
                told = None if covariates is None else torch.from_numpy(covariates[rows]).to(self._device)
                found = self._module.region(torch.from_numpy(z[rows]).to(self._device), told)
                assert found is not None
                parts.append(found[:, 0].cpu().numpy())
        return np.concatenate(parts)

    def sample(
        self,
        n: int,
        *,
        batch: Any = None,
        noise: bool = False,
        sharp: bool = False,
        rng: int | np.random.Generator | None = None,
    ) -> np.ndarray:
        """Measurements of `n` cells that never were: codes from the prior N(0, I), decoded (see `decode`)."""
        generator = np.random.default_rng(rng)
        z = generator.standard_normal((n, self.n_latent))
        return self.decode(z, batch=batch, noise=noise, sharp=sharp, rng=generator)

    def reconstruct(
        self, cells: AnnData, *, sharp: bool = False, rng: int | np.random.Generator | None = None
    ) -> np.ndarray:
        """Decoded posterior mean of each cell in its own batch, nuisance and library size (see `decode`)."""
        source = self.schema_.source(cells)
        given = Conditions(source.covariates, source.size)
        mu = self.encode(cells).mu
        return decode(self._module, self.schema_, mu, given, refiner=self._refiner_for(sharp), rng=rng)

    def read_factors(self, cells: AnnData) -> pd.DataFrame:
        """Guided factors of each cell as its code tells them, one column each; cells need no annotation.

        Numbers come in the units of their column, cyclic ones within a period, levels by their nearest position.

        Raises
        ------
        InputError
            If the model has no guided factors.
        """
        guides = self.schema_.guidance.guides
        if not guides:
            raise InputError("This model has no guided factors: fit one with factors=Factors(guided=[...]).")
        mu = self.encode(cells).mu
        return pd.DataFrame({guide.name: guide.read(mu) for guide in guides}, index=cells.obs_names)

    def geodesic(self, start: np.ndarray, end: np.ndarray, t: float, *, batch: Any = None) -> np.ndarray:
        """Positions ``(n, d)`` at share `t` of the shortest paths, as decoded, between paired positions ``(n, d)``.

        See `latentcell.model.geodesic.geodesics`. Distances are those of scaled means, of counts those of the square
        roots of expected counts, in which noise is about even. About 500 decodings with gradients per pair.
        """
        covariates = self.schema_.decoder_covariates(batch, len(start))
        blocks = []
        for first in range(0, len(start), _PATHS):
            rows = slice(first, first + _PATHS)
            given = None if covariates is None else torch.from_numpy(covariates[rows]).to(self._device)
            a, b = (torch.from_numpy(np.asarray(z[rows], dtype=np.float32)).to(self._device) for z in (start, end))
            decode = partial(self._module.smooth_means, covariates=given, library_size=self.schema_.library_size)
            blocks.append(geodesics(decode, a, b, t).cpu().numpy())
        return np.concatenate(blocks) if blocks else np.empty((0, self.n_latent), dtype=np.float32)

    def unfitted(self, objective: Objective | str | None = None) -> Self:
        """Return a new model with the same settings, or another `objective`, and no weights."""
        return type(self)(
            self.n_latent,
            likelihood=self.likelihood,
            objective=self.objective if objective is None else objective,
            factors=self.factors,
            batch_key=self.batch_key,
            layer=self.layer,
            orientation=self.orientation,
            width=self.width,
        )

    def normalized_expression(self, cells: AnnData, *, library_size: float = 1e4, batch: Any = None) -> np.ndarray:
        """Expected counts of each cell at a common library size, ``(n, G)``, in the cell's own batch by default."""
        if self.modality_ != "counts":
            raise InputError(f"Normalised expression is for counts; this model was fitted on {self.modality_}.")
        if batch is None and self.batch_key:
            batch = cells.obs[self.batch_key].to_numpy()
        return self.decode(self.encode(cells).mu, batch=batch, library_size=library_size)

    def measurements(self, cells: AnnData, rows: np.ndarray | None = None) -> np.ndarray:
        """Measurements as the model sees them but in stored units, ``(n, ...)`` float32, of all cells or of `rows`.

        Dense, in the model's order, turned if it aligns, and at the background level outside the masks if it has any.
        """
        blocks = [self.schema_.unscaled(batch.dense.cpu().numpy()) for batch in self._batches(cells, rows)]
        return np.concatenate([np.empty((0, *self.schema_.shape), dtype=np.float32), *blocks])

    def place(self, cells: AnnData, *, rng: int | np.random.Generator | None = 0) -> Iterator[Placed]:
        """Blocks of cells in order, read once: codes, ELBO terms and residuals; see `latentcell.model.placing.Placed`.

        For what does not fit in memory, or needs more than one of these. `rng` is the seed of the posterior draw
        behind the ELBO.
        """
        generator = torch.Generator().manual_seed(int(np.random.default_rng(rng).integers(2**62)))
        return place(self._module, self._batches(cells), generator)

    def elbo(self, cells: AnnData, *, rng: int | np.random.Generator | None = 0) -> pd.DataFrame:
        """Evidence lower bound of each cell in nats, by one posterior draw: columns ``elbo``, ``log_px``, ``kl``.

        Nats refer to the scaled measurements, so they compare between models only at equal scaling and data.
        """
        blocks = [(block.log_px, block.kl) for block in self.place(cells, rng=rng)]
        log_px, kl = (np.concatenate(term) for term in zip(*blocks, strict=True))
        return pd.DataFrame({"elbo": log_px - kl, "log_px": log_px, "kl": kl}, index=cells.obs_names)

    def nll(self, cells: AnnData, *, n_samples: int = 100, rng: int | np.random.Generator | None = 0) -> pd.DataFrame:
        """Importance-weighted negative log likelihood of each cell in nats and its effective sample size.

        See `latentcell.model.module.importance_nll` (Burda et al. 2016).
        """
        result: ImportanceNLL = importance_nll(
            self._module, self._batches(cells), n_samples, np.random.default_rng(rng)
        )
        return pd.DataFrame(result._asdict(), index=cells.obs_names)

    def seen(self, cells: AnnData, *, early_stopping: bool = True) -> np.ndarray:
        """Which of `cells` the model was fitted on, by their measurements, ``(n,)``.

        Those held out for early stopping count as seen unless `early_stopping` is False.
        """
        fitted = self._fitted if early_stopping else np.setdiff1d(self._fitted, self._held_out)
        return np.isin(fingerprints(self.schema_.source(cells)), fitted)

    def sha256(self) -> str:
        """Hex digest of the weights, the refiner's included: the same for the same model, saved or not."""
        return files.tensors_sha256(weights(self))

    def save(self, folder: str | Path) -> str:
        """Write the model to a folder (safetensors and JSON, atomically); returns the weights' sha256."""
        return files.write_model(Path(folder), *packed(self))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a model folder; executes nothing from it.

        Raises
        ------
        InputError
            If the folder holds no model, or a damaged or newer one.
        """
        tensors, config = files.read_model(Path(folder))
        try:
            return unpacked(cls, tensors, config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"The description and the weights in {folder} do not make a model: {error}. The folder was changed or "
                "copied in part; copy it again or refit."
            ) from None

    @property
    def modality_(self) -> Modality:
        """What the model was fitted on."""
        return self.schema_.modality

    @property
    def names_(self) -> list[str]:
        """Channel names of images, else variable names."""
        return self.schema_.names

    @property
    def refined(self) -> bool:
        """Whether it has a refiner, so that it can draw sharp cells."""
        return self._refiner is not None

    @property
    def dimensions_(self) -> list[int]:
        """Latent dimensions in order of their KL, most used first."""
        return [int(i) for i in self.latent_.sort_values("kl", ascending=False, kind="stable")["dimension"]]

    def _refiner_for(self, sharp: bool) -> Refiner | None:
        """Refiner to draw with, or None for decoded means."""
        if sharp and self._refiner is None:
            raise NotFittedError(
                "This VAE has no refiner, which sharp=True draws with: call fit_refiner(cells) first, with the images "
                "that the VAE was fitted on."
            )
        return self._refiner if sharp else None

    def _guided(self) -> Objective:
        """Objective with what factors add to it."""
        guidance = self.schema_.guidance
        if not guidance.guides and not guidance.nuisance:
            return self.objective
        n_values = int(np.prod(self.schema_.shape))
        return Guided(self.objective, self.factors.weight * n_values, self.factors.independence * n_values)

    @property
    def _device(self) -> torch.device:
        return next(self._module.parameters()).device

    def _build(self, seed: int) -> VAEModule:
        name, number = self._likelihood
        width = self.width or (16 if self.modality_ == "images" else 128)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VAEModule(self.schema_, name, number, self.n_latent, width)

    def _batches(self, cells: AnnData, rows: np.ndarray | None = None, size: int | None = None) -> Iterator[Batch]:
        self._module.eval()
        source = self.schema_.source(cells)
        rows = np.arange(len(source)) if rows is None else rows
        batches = in_order(source, rows, size or _BLOCK)
        for batch in read_ahead(batches) if source.on_disk else batches:
            yield batch.to(self._device)
