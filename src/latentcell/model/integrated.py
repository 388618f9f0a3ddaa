"""The Integrated Cell: where structures lie, given the shape of their cell.

Johnson et al. 2017; Donovan-Maiye et al. 2022.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch

from latentcell import keys
from latentcell.atomic import replacing
from latentcell.cells.batches import Batch, in_order, with_margin
from latentcell.cells.images import channel_names, measured, set_images, take_rows, with_channels
from latentcell.cells.structures import (
    Pairs,
    PairSource,
    average_images,
    check_trained,
    check_varied,
    find_channels,
    find_pairs,
    hidden,
    hidden_at_random,
    pair_source,
    ranges,
)
from latentcell.errors import InputError, NotFittedError, listed
from latentcell.model import files, objectives, packing
from latentcell.model.conditional import LIKELIHOODS, ConditionalModule
from latentcell.model.fit import augmented, fit_module, fit_report, make_plan, seed_of, threads_for
from latentcell.model.module import importance_nll
from latentcell.model.objectives import Objective
from latentcell.model.population import Population
from latentcell.model.schema import Orientation
from latentcell.model.settings import Settings, checked
from latentcell.model.split import Split, split_cells
from latentcell.model.vae import VAE, Latent

if TYPE_CHECKING:
    from anndata import AnnData

# cells drawn at once, pairs of cells and structures at once, and cells copied at once
_BLOCK = 128
# training cells whose codes are looked at
_MET = 5000
_FITTED = (
    "reference_",
    "structures_",
    "report_",
    "history_",
    "latent_",
    "averages_",
    "ranges_",
    "_module",
    "_shapes",
    "_organisations",
)


class Integrated(NamedTuple):
    """Codes of cells.

    Attributes
    ----------
    shape
        Codes of the reference, `latentcell.model.vae.Latent` of ``(n, d)``.
    organisation
        Codes of the structures given the reference, `Latent` of ``(n, S, d)``; NaN where a cell does not show one.
    """

    shape: Latent
    organisation: Latent


class Shape(NamedTuple):
    """Shapes of cells, in which structures are drawn.

    Attributes
    ----------
    reference
        Reference images in stored units, ``(n, R, ...)`` float32, at the background level outside the cell.
    region
        1 where the cell is (and a margin), ``(n, ...)``; None for a model without masks.
    """

    reference: np.ndarray
    region: np.ndarray | None


class IntegratedCell:
    """Model of cells that share reference channels and each show one or some of several structures.

    A `latentcell.VAE` learns the shape: q(z_r | r), p(r | z_r). A conditional one learns the organisation, where a
    structure c lies in a cell of a given shape: q(z_t | t, r, c), p(t | z_t, r, c), so that all structures can be drawn
    in one cell. In training the reference channels are hidden from some cells, each subset of them alike, so that one
    model gives p(t | c) without any, with one, and with all: what `latentcell.tl.coupling` compares.

    Parameters
    ----------
    reference
        Names of the channels that every cell has.
    target
        Name of the channel that shows one structure per cell, or names of several, each of which is a structure.
    structure_key
        Column of ``obs`` that says which structure the one target channel shows.
    n_latent
        Latent dimensions of shape and of organisation.
    likelihood
        Noise of the structures: ``"gaussian"`` or ``"student_t"``.
    objective
        What training maximises; see `latentcell.objectives`.
    batch_key
        Column of ``obs`` that both decoders are told.
    orientation
        ``"align"``: shapes are turned to their principal axis, and structures are learned under random turns, so that
        they are drawn in cells at any angle. ``"as_is"``: neither.
    width
        Channels of the first convolution.
    hide
        Share of training pairs from which some reference channels are hidden; 1 hides all from all, which makes a model
        without a reference to compare with.

    Attributes
    ----------
    reference_ : VAE
        Model of the shape, for `latentcell.tl.factors`, `latentcell.tl.interpolate` and the figures of a VAE.
    structures_ : list of str
        Structures by name.
    ranges_ : ndarray
        Location and scale by which the images of each structure are scaled, ``(S, 2)``.
    averages_ : tuple of ndarray
        Mean image of each structure in training, ``(S, ...)`` as the model sees it, and squared deviation from it.
    report_, history_, latent_
        As of a VAE, of the conditional model.

    Examples
    --------
    >>> import latentcell as lc
    >>> cells = lc.cells.simulate.organisation(40, size=32, rng=0)
    >>> model = lc.IntegratedCell(["membrane", "DNA"], "structure", structure_key="structure", n_latent=(4, 4), width=4)
    >>> model = model.fit(cells, epochs=1, rng=0)
    >>> model.sample(2, rng=0).obsm["images"].shape
    (2, 6, 32, 32)
    """

    reference_: VAE
    structures_: list[str]
    report_: dict[str, Any]
    history_: pd.DataFrame
    latent_: pd.DataFrame
    averages_: tuple[np.ndarray, np.ndarray]
    ranges_: np.ndarray

    def __init__(
        self,
        reference: Sequence[str],
        target: str | Sequence[str],
        *,
        structure_key: str | None = None,
        n_latent: tuple[int, int] = (16, 16),
        likelihood: str = "gaussian",
        objective: Objective | str = "elbo",
        batch_key: str | None = None,
        orientation: Orientation = "align",
        width: int = 16,
        hide: float = 0.5,
    ) -> None:
        self.reference = [reference] if isinstance(reference, str) else list(reference)
        self.target = [target] if isinstance(target, str) else list(target)
        self.structure_key, self.n_latent, self.likelihood = structure_key, (n_latent[0], n_latent[1]), likelihood
        self.objective = objectives.parse(objective) if isinstance(objective, str) else objective
        self.batch_key, self.orientation, self.width, self.hide = batch_key, orientation, width, hide
        self._check()

    def _check(self) -> None:
        both = sorted(set(self.reference) & set(self.target))
        if not self.reference or not self.target or both:
            raise InputError(
                f"Name at least one reference and one target channel, and none as both; found reference "
                f"{self.reference} and target {self.target}."
            )
        if min(self.n_latent) < 1:
            raise InputError(f"n_latent is {self.n_latent}: shape and organisation need at least one dimension each.")
        if self.likelihood not in LIKELIHOODS:
            raise InputError(f"likelihood is {self.likelihood!r}; choose one of: {', '.join(LIKELIHOODS)}.")
        if self.orientation not in ("align", "as_is"):
            raise InputError(f"orientation is {self.orientation!r}; choose 'align' or 'as_is'.")
        if not 0 <= self.hide <= 1:
            raise InputError(f"hide is {self.hide}; it is a share between 0 and 1.")

    def __getattr__(self, name: str) -> Any:
        # reached only for attributes that do not exist: those that `fit` sets
        if name in _FITTED:
            raise NotFittedError(
                "This IntegratedCell has not been fitted: call fit(cells) first, or load a fitted one."
            )
        raise AttributeError(f"IntegratedCell has no attribute {name!r}")

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
        shape: VAE | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> Self:
        """Train both models on `cells`, first that of the shape.

        Parameters
        ----------
        exclude, split_key, settings, rng
            As in `latentcell.VAE.fit`.
        epochs, max_minutes
            As in `latentcell.VAE.fit`, for each of the two models; of `max_minutes` each takes half.
        checkpoint
            Start of the names of two files; when they exist, training goes on from them.
        shape
            Model of the shape to use instead of training one, such as the `reference_` of another fit.

        Raises
        ------
        InputError
            If a channel is unknown or constant, or a cell shows a structure without a name.
        """
        settings, seed = checked(settings), seed_of(rng)
        check_varied(cells, self.reference)
        pairs = find_pairs(cells, self.target, self.structure_key)
        minutes = max_minutes / 2 if max_minutes is not None and shape is None else max_minutes
        split = split_cells(cells, exclude=exclude, split_key=split_key, share=settings.validation, seed=seed)
        chosen = Split(pairs.of(split.train), pairs.of(split.held_out))
        if not len(chosen.train) or not len(chosen.held_out):
            raise InputError(
                "No structure is shown by the training cells, or none by those held out for early stopping."
            )
        check_trained(pairs, chosen.train)
        found = ranges(measured(cells), pairs, chosen.train)
        if shape is not None and shape.names_ != self.reference:
            raise InputError(f"shape is a model of {listed(shape.names_)}; the reference is {listed(self.reference)}.")
        self.reference_ = shape or VAE(
            self.n_latent[0],
            objective=self.objective,
            batch_key=self.batch_key,
            orientation=self.orientation,
            width=self.width,
        ).fit(
            with_channels(cells, self.reference),
            exclude=exclude,
            split_key=split_key,
            epochs=epochs,
            max_minutes=minutes,
            settings=settings,
            checkpoint=_beside(checkpoint, "reference"),
            rng=seed,
        )
        self.structures_, self.ranges_ = pairs.structures, found
        self._module = self._build(seed).to(settings.torch_device())
        source = self._source(cells, pairs)
        self.averages_ = average_images(in_order(source, chosen.train, _BLOCK), len(self.structures_))
        plan = make_plan(
            len(chosen.train),
            settings,
            modality="images",
            objective=self.objective,
            epochs=epochs,
            max_minutes=minutes,
            checkpoint=_beside(checkpoint, "target"),
            seed=seed,
        )
        with threads_for(settings.threads or plan.stored_threads()):
            progress = fit_module(
                self._module,
                source,
                chosen,
                objective=self.objective,
                augment=self._augmented,
                digest=self._digest(),
                plan=plan,
            )
            self.report_, self.latent_ = fit_report(self._module, source, chosen, progress, plan)
        self.history_ = pd.DataFrame(progress.history)
        self._meet(cells[split.train])
        self.report_ |= {"structures": self.structures_, "reference": self.reference, "hide": self.hide}
        return self

    def unfitted(self, objective: Objective | str | None = None) -> Self:
        """Return a new model with the same settings, or another `objective`, and no weights."""
        return type(self)(**self._settings(), objective=self.objective if objective is None else objective)

    def encode(self, cells: AnnData) -> Integrated:
        """Codes of shape and organisation of each cell."""
        pairs = self.pairs(cells)
        mu, var = np.full((2, cells.n_obs, len(self.structures_), self.n_latent[1]), np.nan, dtype=np.float32)
        with torch.inference_mode(), threads_for(None):
            for batch in self.batches(cells, pairs):
                posterior = self._module.network.encode(batch.dense, batch.covariates)
                at = pairs.cell[batch.index], pairs.structure[batch.index]
                mu[at] = posterior.mu.cpu().numpy()
                if self.objective.fits_posterior:
                    var[at] = posterior.log_var.exp().cpu().numpy()
        return Integrated(self.reference_.encode(cells), Latent(mu, var))

    def embed(self, cells: AnnData) -> AnnData:
        """Write the codes into `cells` and return them.

        Writes ``obsm["shape"]`` and ``obsm["organisation"]`` ``(n, d)`` float32, and the posterior variances as
        ``shape_var`` and ``organisation_var``. Where the structures are channels of their own, there is an
        ``organisation_NAME`` for each. Cells that do not show a structure have NaN.
        """
        codes = self.encode(cells)
        cells.obsm[keys.SHAPE], cells.obsm[keys.variance(keys.SHAPE)] = codes.shape.mu, codes.shape.var
        if self.structure_key is None:
            for i, name in enumerate(self.structures_):
                key = f"{keys.ORGANISATION}_{name}"
                cells.obsm[key] = codes.organisation.mu[:, i]
                cells.obsm[keys.variance(key)] = codes.organisation.var[:, i]
            return cells
        cell, structure = np.nonzero(np.isfinite(codes.organisation.mu).all(2))
        named = (keys.ORGANISATION, keys.variance(keys.ORGANISATION))
        for key, values in zip(named, codes.organisation, strict=True):
            kept = np.full((cells.n_obs, self.n_latent[1]), np.nan, dtype=np.float32)
            kept[cell] = values[cell, structure]
            cells.obsm[key] = kept
        return cells

    def decode(self, shape: Shape, z: np.ndarray, structure: str, *, batch: Any = None) -> np.ndarray:
        """Images of a structure at codes `z` ``(n, d)`` in cells of given shapes, stored units.

        Parameters
        ----------
        shape
            From `shapes` or `shapes_at`.
        structure
            One of ``structures_``.
        batch
            Level of the batch column; by default the average of the training levels.

        Returns
        -------
        ``(n, ...)`` float32.
        """
        number, schema = self._number(structure), self.reference_.schema_
        if z.shape != (len(shape.reference), self.n_latent[1]):
            raise InputError(
                f"z is {z.shape}, but there are {len(shape.reference)} cells and {self.n_latent[1]} dimensions."
            )
        told = np.zeros((len(z), len(self.structures_) + len(self.reference)), dtype=np.float32)
        told[:, number], told[:, len(self.structures_) :] = 1, self.hide < 1
        levels = schema.decoder_covariates(batch, len(z))
        told = told if levels is None else np.concatenate([told, levels], axis=1)
        location, scale = self.ranges_[number]
        device, drawn = next(self._module.parameters()).device, []
        with torch.inference_mode():
            for start in range(0, len(z), _BLOCK):
                rows = slice(start, start + _BLOCK)
                scaled = self.reference_.schema_.scaled(shape.reference[rows]) * (self.hide < 1)
                codes, seen, given = (
                    torch.from_numpy(np.asarray(each, dtype=np.float32)).to(device)
                    for each in (z[rows], scaled, told[rows])
                )
                x = self._module.network.decode(codes, seen, given)[:, 0].cpu().numpy()
                # what lies outside the cell was never asked for
                drawn.append((x if shape.region is None else x * shape.region[rows]) * scale + location)
        return np.concatenate(drawn).astype(np.float32)

    def shapes(self, cells: AnnData, rows: np.ndarray | None = None) -> Shape:
        """Reference and region of `cells`, or of some of their `rows`, at the angle at which they were imaged."""
        rows = np.arange(cells.n_obs) if rows is None else rows
        columns = find_channels(channel_names(cells), self.reference)
        reference = take_rows(measured(cells), rows)[:, columns].astype(np.float32)
        masks = self.reference_.schema_.masks(cells)
        if masks is None:
            return Shape(reference, None)
        region = with_margin(take_rows(masks, rows) > 0).numpy()
        return Shape(self.reference_.schema_.unscaled(self.reference_.schema_.scaled(reference) * region), region[:, 0])

    def shapes_at(self, z: np.ndarray, *, batch: Any = None) -> Shape:
        """Reference and region decoded at codes of shape ``(n, d)``."""
        reference = self.reference_.decode(z, batch=batch)
        return Shape(reference, self.reference_.region(z, batch=batch))

    def predict(
        self,
        cells: AnnData,
        structures: Sequence[str] | None = None,
        *,
        n_draws: int = 16,
        batch: Any = None,
        rng: int | np.random.Generator | None = 0,
    ) -> AnnData:
        """All structures in each cell of a given shape.

        Parameters
        ----------
        cells
            Cells with the reference channels; what else they show is not looked at.
        structures
            Which to draw; all by default.
        n_draws
            Draws of the organisation z_t, as that of the training cells, over which mean and SD are taken.

        Returns
        -------
        AnnData of the same cells: ``obsm["images"]`` ``(n, R + S, ...)`` float32, the reference and the mean of each
        structure, and ``obsm["spread"]`` ``(n, S, ...)``, the SD over z_t, in which only the organisation is unknown:
        noise and what the model has not learned are not in it.
        """
        import anndata as ad

        wanted = self.structures_ if structures is None else list(structures)
        generator, n_reference = np.random.default_rng(rng), len(self.reference)
        stored = measured(cells)
        images = np.empty((cells.n_obs, n_reference + len(wanted), *stored.shape[2:]), dtype=np.float32)
        spread = np.empty((cells.n_obs, len(wanted), *stored.shape[2:]), dtype=np.float32)
        for start in range(0, cells.n_obs, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, cells.n_obs))
            shape = self.shapes(cells, rows)
            images[rows, :n_reference] = shape.reference
            for i, structure in enumerate(wanted):
                total, square = np.zeros((2, *spread[rows, i].shape))
                for _ in range(n_draws):
                    z = self.organisations(structure, len(rows), generator)
                    drawn = self.decode(shape, z, structure, batch=batch)
                    total += drawn
                    square += drawn.astype(np.float64) ** 2
                mean = total / n_draws
                images[rows, n_reference + i] = mean
                spread[rows, i] = np.sqrt(np.maximum(square / n_draws - mean**2, 0))
        predicted = ad.AnnData(obs=cells.obs.copy())
        set_images(predicted, images, channel_names=[*self.reference, *wanted])
        predicted.obsm[keys.SPREAD] = spread
        return predicted

    def sample(
        self,
        n: int,
        structures: Sequence[str] | None = None,
        *,
        batch: Any = None,
        rng: int | np.random.Generator | None = None,
    ) -> AnnData:
        """Cells that never were, with all structures: z_r to the reference, z_t of each structure to its image.

        Codes are drawn from the normal distribution that those of the training cells have
        (`latentcell.model.population.Population`).

        Returns
        -------
        AnnData with ``obsm["images"]`` ``(n, R + S, ...)``, ``obsm["shape"]`` and ``obsm["organisation"]`` ``(n, S d)``
        (structure by structure).
        """
        import anndata as ad

        wanted, generator = self.structures_ if structures is None else list(structures), np.random.default_rng(rng)
        codes = self._shapes.draw(n, generator)
        organisation = np.stack([self.organisations(name, n, generator) for name in wanted], 1)
        shape = self.shapes_at(codes, batch=batch)
        drawn = [self.decode(shape, organisation[:, i], name, batch=batch) for i, name in enumerate(wanted)]
        sampled = ad.AnnData(obs=pd.DataFrame(index=[f"sample_{i}" for i in range(n)]))
        set_images(
            sampled, np.concatenate([shape.reference, np.stack(drawn, 1)], 1), channel_names=[*self.reference, *wanted]
        )
        sampled.obsm[keys.SHAPE], sampled.obsm[keys.ORGANISATION] = codes, organisation.reshape(n, -1)
        return sampled

    def nll(
        self,
        cells: AnnData,
        *,
        told: Sequence[str] | None = None,
        n_samples: int = 20,
        rng: int | np.random.Generator | None = 0,
    ) -> pd.DataFrame:
        """Importance-weighted -log p(t | r, c) of each structure that each cell shows, in nats (Burda et al. 2016).

        Parameters
        ----------
        told
            Reference channels that the model is told; all by default, ``[]`` for none.

        Returns
        -------
        Columns ``cell`` (row), ``structure``, ``nll`` and ``ess``, the effective number of draws.
        """
        pairs = self.pairs(cells)
        columns = range(len(self.reference)) if told is None else find_channels(self.reference, told)
        kept = torch.zeros(len(self.reference))
        kept[list(columns)] = 1

        def batches() -> Iterator[Batch]:
            for batch in self.batches(cells, pairs):
                yield hidden(batch, kept.to(batch.dense.device).expand(len(batch), -1), len(self.structures_))

        with threads_for(None):
            result = importance_nll(self._module, batches(), n_samples, np.random.default_rng(rng))
        names = np.asarray(self.structures_, dtype=object)[pairs.structure]
        return pd.DataFrame({"cell": pairs.cell, "structure": names, **result._asdict()})

    def seen(self, cells: AnnData) -> np.ndarray:
        """Which of `cells` the model was fitted on, by their reference channels, ``(n,)``."""
        return self.reference_.seen(cells)

    def save(self, folder: str | Path) -> str:
        """Write the model to a folder, atomically; returns the sha256 of the conditional model's weights."""
        with replacing(Path(folder)) as temporary:
            temporary.mkdir()
            self.reference_.save(temporary / "reference")
            return files.write_model(temporary / "target", *packing.packed_structures(self))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a model folder; executes nothing from it.

        Raises
        ------
        InputError
            If the folder holds no such model, or a damaged or newer one.
        """
        if not (Path(folder) / "target").is_dir():
            raise InputError(
                f"{folder} holds no IntegratedCell: it should contain the folders 'reference' and 'target'."
            )
        tensors, config = files.read_model(Path(folder) / "target")
        try:
            return packing.unpacked_structures(cls, tensors, config, VAE.load(Path(folder) / "reference"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The description and the weights in {folder} do not make a model: {error}.") from None

    def organisations(self, structure: str, n: int, rng: np.random.Generator) -> np.ndarray:
        """Codes of the organisation of a structure ``(n, d)``, drawn from where those of the training cells lie."""
        return self._organisations[self._number(structure)].draw(n, rng)

    def _number(self, structure: str) -> int:
        if structure not in self.structures_:
            raise InputError(
                f"There is no structure {structure!r} in this model; it knows: {listed(self.structures_)}."
            )
        return self.structures_.index(structure)

    def _meet(self, cells: AnnData) -> None:
        """Remember where the codes of the training cells lie."""
        some = cells[:: math.ceil(cells.n_obs / _MET)].copy()
        (mu, var), (z, z_var) = self.encode(some)
        self._shapes = Population.of(mu, var)
        shown = np.isfinite(z).all(2).T
        self._organisations = [Population.of(z[rows, i], z_var[rows, i]) for i, rows in enumerate(shown)]

    def _settings(self) -> dict[str, Any]:
        """Arguments of the constructor but the objective."""
        names = ("reference", "target", "structure_key", "n_latent", "likelihood", "batch_key", "orientation", "width")
        return {name: getattr(self, name) for name in names} | {"hide": self.hide}

    def _digest(self) -> str:
        about = [self.reference_.schema_.digest(), self.structures_, self.ranges_.tolist(), self.hide, self.orientation]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _build(self, seed: int) -> ConditionalModule:
        schema = self.reference_.schema_
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ConditionalModule(
                (1 + len(self.reference), *schema.shape[1:]),
                len(self.structures_),
                self.likelihood,
                n_latent=self.n_latent[1],
                n_told=len(self.structures_) + len(self.reference) + len(schema.batch_levels),
                width=self.width,
            )

    def pairs(self, cells: AnnData) -> Pairs:
        """Pairs in `cells` whose structures the model knows, numbered as in the model."""
        pairs = find_pairs(cells, self.target, self.structure_key)
        numbers = pd.Index(self.structures_).get_indexer(pd.Index(pairs.structures))
        unknown = [name for name, number in zip(pairs.structures, numbers, strict=True) if number < 0]
        if unknown:
            raise InputError(f"The model was not fitted on {listed(unknown)}; it knows: {listed(self.structures_)}.")
        return Pairs(pairs.cell, numbers[pairs.structure], pairs.channel, self.structures_)

    def _source(self, cells: AnnData, pairs: Pairs) -> PairSource:
        schema = self.reference_.schema_
        given = self.reference_.schema_.source(cells)
        return pair_source(
            cells,
            pairs,
            reference=find_channels(channel_names(cells), self.reference),
            scaling=(np.asarray(schema.location), np.asarray(schema.scale)),
            found=self.ranges_,
            batches=given.covariates,
            masks=given.masks,
            blind=self.hide == 1,
        )

    def batches(self, cells: AnnData, pairs: Pairs) -> Iterator[Batch]:
        """Minibatches of pairs in order, as the model sees them."""
        self._module.eval()
        source, device = self._source(cells, pairs), next(self._module.parameters()).device
        for batch in in_order(source, np.arange(len(pairs)), _BLOCK):
            yield batch.to(device)

    def _augmented(self, batch: Batch, noise: torch.Generator) -> Batch:
        changed = augmented(batch, noise, "as_is" if self.orientation == "as_is" else "augment")
        return changed if self.hide == 1 else hidden_at_random(changed, self.hide, len(self.structures_), noise)


def _beside(checkpoint: str | Path | None, name: str) -> Path | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}-{name}{path.suffix}")
