"""Walks through the latent space: which dimensions, from where to where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from latentcell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE

QUANTILES = (0.02, 0.98)


@dataclass(frozen=True)
class Walk:
    """Positions along latent dimensions.

    Attributes
    ----------
    dims
        Dimensions walked.
    values
        Positions on each, ``(len(dims), n)``, ascending.
    base
        Where all other dimensions stay, ``(d,)``.
    """

    dims: list[int]
    values: NDArray[np.float64]
    base: NDArray[np.float64]

    @classmethod
    def through(cls, model: VAE, dims: Sequence[int], n: int, cells: AnnData | None = None) -> Walk:
        """Quantiles 0.02 to 0.98 of the prior around 0, or of the posterior means of `cells` around their median.

        Raises
        ------
        InputError
            If a dimension does not exist or fewer than two steps are asked for.
        """
        unknown = [dim for dim in dims if not 0 <= dim < model.n_latent]
        if unknown:
            raise InputError(
                f"Latent dimension {unknown[0]} does not exist: the model has {model.n_latent}, counted from 0."
            )
        if n < 2:
            raise InputError(f"n is {n}: a walk along a latent dimension needs at least two steps.")
        shares = np.linspace(*QUANTILES, n)
        if cells is None:
            values = np.tile(norm.ppf(shares), (len(dims), 1))
            return cls(list(dims), values, np.zeros(model.n_latent))
        mu = np.asarray(model.encode(cells).mu, dtype=np.float64)
        return cls(list(dims), np.quantile(mu[:, list(dims)], shares, axis=0).T, np.median(mu, axis=0))

    def along_each(self) -> NDArray[np.float64]:
        """Positions ``(len(dims) * n, d)``, one dimension after the other."""
        n = self.values.shape[1]
        z = np.tile(self.base, (len(self.dims) * n, 1))
        for i, dim in enumerate(self.dims):
            z[i * n : (i + 1) * n, dim] = self.values[i]
        return z

    def plane(self) -> NDArray[np.float64]:
        """Positions ``(n * n, d)`` on the plane of two dimensions: the first grows rightwards, the second upwards."""
        right, up = np.meshgrid(self.values[0], self.values[1][::-1])
        z = np.tile(self.base, (right.size, 1))
        z[:, self.dims[0]], z[:, self.dims[1]] = right.ravel(), up.ravel()
        return z


def dimension_label(model: VAE, dim: int) -> str:
    """Name of a latent dimension with the information that it carries about cells."""
    kl = float(model.latent_.set_index("dimension")["kl"].loc[dim])
    return f"$z_{{{dim}}}$  KL {kl:.1f} nats"


def position_labels(values: NDArray[Any]) -> list[str]:
    """Latent positions as tick labels."""
    return [f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−") for value in values]
