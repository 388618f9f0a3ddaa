"""The generative model as one module: network and likelihood joined, and what can be computed from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentcell.cells.batches import Batch
from latentcell.cells.counts import Counts
from latentcell.cells.images import Modality, modality_of
from latentcell.errors import InputError
from latentcell.model import counted
from latentcell.model import likelihoods as lk
from latentcell.model.conditional import ConditionalModule
from latentcell.model.guidance import SPREAD
from latentcell.model.networks import MLP, ConvNet, Network
from latentcell.model.posterior import Known, Posterior
from latentcell.model.schema import Schema

if TYPE_CHECKING:
    from anndata import AnnData

_LOG_2PI = math.log(2 * math.pi)

# name -> (modalities, support, constructor from the schema and an optional number)
_Build = Callable[[Schema, float | None], lk.Likelihood]
_LIKELIHOODS: dict[str, tuple[tuple[str, ...], lk.Support, _Build]] = {
    "nb": (("counts",), "counts", lambda s, _: lk.NegativeBinomial(s.shape[0])),
    "zinb": (("counts",), "counts", lambda s, _: lk.ZeroInflatedNegativeBinomial(s.shape[0])),
    "poisson": (("counts",), "counts", lambda s, _: lk.Poisson(s.shape[0])),
    "gaussian": (("profiles", "images"), "real", lambda s, _: lk.Gaussian(s.shape[0])),
    "student_t": (("profiles", "images"), "real", lambda s, _: lk.StudentT(s.shape[0])),
    "continuous_bernoulli": (("images",), "unit", lambda s, _: lk.ContinuousBernoulli()),
    "bernoulli": (("images",), "unit", lambda s, _: lk.Bernoulli()),
    "discretized_logistic": (("images",), "real", lambda s, _: _discretized_logistic(s)),
    "poisson_gaussian": (
        ("images",),
        "nonnegative",
        lambda s, gain: lk.PoissonGaussian([(gain or 1.0) / scale for scale in s.scale]),
    ),
}
_WITH_NUMBER = ("poisson_gaussian",)
_DEFAULTS = {"counts": "nb", "profiles": "gaussian", "images": "gaussian"}


def resolve_likelihood(name: str, modality: str, two_valued: bool = False) -> tuple[str, float | None, lk.Support]:
    """Likelihood name, its number and its support for a modality; ``"auto"`` takes the default.

    `name` may carry a number: ``"poisson_gaussian=2.2"`` sets the gain in stored units per photo-electron.

    Raises
    ------
    InputError
        If the name is unknown or the likelihood does not fit the modality.
    """
    base, _, number = name.partition("=")
    if base == "auto":
        base = "bernoulli" if two_valued else _DEFAULTS[modality]
    fitting = [key for key, (modalities, _, _) in _LIKELIHOODS.items() if modality in modalities]
    if base not in fitting:
        problem = "is unknown" if base not in _LIKELIHOODS else f"is not for {modality}"
        raise InputError(f"The likelihood {base!r} {problem}. For {modality} choose one of: {', '.join(fitting)}.")
    if base == "bernoulli" and not two_valued:
        raise InputError(
            "The Bernoulli likelihood is for masks, pixels of two values, but these images have more. Use "
            "continuous_bernoulli for grey values bounded on both sides, or gaussian."
        )
    if number and base not in _WITH_NUMBER:
        raise InputError(f"The likelihood {base!r} takes no number; found {name!r}.")
    return base, _positive(name, number) if number else None, _LIKELIHOODS[base][1]


def modality_for(cells: AnnData, layer: str | None, likelihood: str) -> Modality:
    """What is to be modelled: images, or a matrix as the kind that a named likelihood asks for.

    With ``"auto"`` whole numbers are counts and anything else profiles; a named likelihood of counts on other values
    is left for the check of the measurements to refuse.
    """
    found = modality_of(cells, layer)
    fitting = _LIKELIHOODS.get(likelihood.partition("=")[0], ((), None, None))[0]
    if found == "images" or not fitting:
        return found
    return "counts" if "counts" in fitting else "profiles" if "profiles" in fitting else found


def _positive(name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"The number in the likelihood {name!r} must be positive, found {number!r}.")
    return value


class VAEModule(nn.Module):
    """Encoder, decoder and likelihood.

    With masks, a cell's measurement is its region m and the values in it: p(x, m | z) = p(m | z) p(x in m | z), with m
    a Bernoulli per pixel from one more output of the decoder.

    Parameters
    ----------
    schema
        Shapes and scaling of the cells.
    likelihood, number
        As returned by `resolve_likelihood`.
    n_latent
        Latent dimensions d.
    width
        Channels of the first convolution, or width of the hidden layers.
    """

    def __init__(self, schema: Schema, likelihood: str, number: float | None, n_latent: int, width: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.likelihood = _LIKELIHOODS[likelihood][2](schema, number)
        self.masked = schema.masked
        self.n_batches = len(schema.batch_levels)
        n_outputs = self.likelihood.n_outputs(schema.shape[0]) + self.masked
        self.network: Network
        if schema.modality == "images":
            self.network = ConvNet(schema.shape, n_outputs, n_latent, width=width, n_covariates=schema.n_covariates)
        else:
            self.network = MLP(
                schema.shape[0],
                n_outputs,
                n_latent,
                hidden=(width, width),
                n_covariates=schema.n_covariates,
                counts=schema.modality == "counts",
            )

    @torch.no_grad()
    def start_at(self, batches: Iterable[Batch]) -> None:
        """Let the decoder of counts expect the mean expression of some cells, so that training need not find it."""
        if not isinstance(self.likelihood, lk.CountLikelihood) or not isinstance(self.network, MLP):
            return
        bias = self.network.last.bias
        # half a count keeps genes that these cells do not express above zero
        profile = torch.full((self.network.first.in_features,), 0.5, dtype=torch.float64)
        for batch in batches:
            profile += batch.dense.sum(0, dtype=torch.float64).cpu()
        bias.copy_(self.likelihood.at_profile(profile / profile.sum()).to(bias))

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Posterior, Tensor]:
        """Log likelihood ``(n,)`` at one posterior draw, the posterior and the draw ``(n, d)``."""
        posterior = self.network.encode(batch.x, batch.covariates)._replace(known=self._known(batch))
        z = posterior.draw(generator)
        return self.log_likelihood(batch, z), posterior, z

    def _known(self, batch: Batch) -> Known | None:
        """Positions and nuisance of a batch in training; None where neither is known."""
        columns = None if batch.covariates is None else batch.covariates[:, self.n_batches :]
        nuisance = None if columns is None or columns.shape[1] == 0 else columns
        if batch.position is None and nuisance is None:
            return None
        position = batch.position
        if position is None:
            position = torch.full((len(batch), self.n_latent), math.nan, device=next(self.parameters()).device)
        return Known(position, SPREAD, nuisance)

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Log p(x | z) of each cell in nats, ``(n,)``."""
        if isinstance(batch.x, Counts) and isinstance(self.network, MLP):
            hidden = self.network.hidden(z, batch.covariates)
            return counted.log_prob(self.likelihood, batch.x, hidden, self.network.last, batch.size)
        params = self.network.decode(z, batch.covariates)
        target = batch.dense if batch.target is None else batch.target
        if not self.masked or batch.mask is None:
            return self.likelihood.log_prob(target, params, batch.size)
        log_region = -F.binary_cross_entropy_with_logits(params[:, -1:], batch.mask, reduction="none")
        return self.likelihood.log_prob(target, params[:, :-1], mask=batch.mask) + log_region.flatten(1).sum(1)

    def measurements(
        self, z: Tensor, covariates: Tensor | None, size: Tensor | None, noise: np.random.Generator | None
    ) -> Tensor:
        """Mean of the measurements at `z`, or a draw when given a generator; scaled, 0 outside the cell's region."""
        params = self.network.decode(z, covariates)
        values = params[:, :-1] if self.masked else params
        x = self.likelihood.mean(values, size) if noise is None else self.likelihood.sample(values, size, noise)
        return x * torch.sigmoid(params[:, -1:]) if self.masked else x

    def region(self, z: Tensor, covariates: Tensor | None) -> Tensor | None:
        """Probability that each pixel lies in the cell's region, ``(n, 1, ...)``; None for a model without masks."""
        return torch.sigmoid(self.network.decode(z, covariates)[:, -1:]) if self.masked else None

    def smooth_means(self, z: Tensor, covariates: Tensor | None, library_size: float | None) -> Tensor:
        """Mean of the measurements at positions of one or several steps for each row of `covariates`, differentiable.

        Of counts the square root, so that distances weigh genes by what their noise lets see.
        """
        given = None if covariates is None else covariates.repeat(len(z) // len(covariates), 1)
        size = None if library_size is None else z.new_full((len(z),), library_size)
        mean = self.measurements(z, given, size, None)
        return mean if size is None else mean.clamp_min(0).sqrt()


class ImportanceNLL(NamedTuple):
    """Importance-weighted negative log likelihood of each cell and its effective sample size, each ``(n,)``."""

    nll: np.ndarray
    ess: np.ndarray


@torch.inference_mode()
def importance_nll(
    module: VAEModule | ConditionalModule, batches: Iterable[Batch], n_samples: int, rng: np.random.Generator
) -> ImportanceNLL:
    """Estimate -log p(x) per cell by K posterior draws (Burda et al. 2016, eq. 8).

    The bound tightens with K. The effective sample size (sum w)^2 / sum w^2 says how many draws carry it: near K the
    posterior fits, near 1 the estimate rests on one draw and the true value is lower.
    """
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    nll, ess = [], []
    for batch in batches:
        moved = batch.to(device)
        posterior = module.network.encode(moved.x, moved.covariates)
        log_w = torch.stack([_log_weight(module, moved, posterior, generator) for _ in range(n_samples)]).double()
        total = torch.logsumexp(log_w, 0)
        nll.append((math.log(n_samples) - total).cpu().numpy())
        ess.append(torch.exp(2 * total - torch.logsumexp(2 * log_w, 0)).cpu().numpy())
    return ImportanceNLL(np.concatenate(nll), np.concatenate(ess))


def _log_weight(
    module: VAEModule | ConditionalModule, batch: Batch, posterior: Posterior, generator: torch.Generator
) -> Tensor:
    """Log of p(x | z) p(z) / q(z | x) at one draw, ``(n,)``; the constants of p(z) and q cancel."""
    z = posterior.draw(generator)
    log_q = -0.5 * ((z - posterior.mu).square() / posterior.log_var.exp() + posterior.log_var).sum(1)
    return module.log_likelihood(batch, z) - 0.5 * z.square().sum(1) - log_q


def _discretized_logistic(schema: Schema) -> lk.DiscretizedLogistic:
    if schema.grey_levels is None:
        raise InputError(
            "The discretised logistic needs whole grey levels (uint8 or uint16 images); these images are stored as "
            "floating point. Use gaussian."
        )
    location, scale = np.asarray(schema.location), np.asarray(schema.scale)
    return lk.DiscretizedLogistic(
        (1 / scale).tolist(), (-location / scale).tolist(), ((schema.grey_levels - 1 - location) / scale).tolist()
    )
