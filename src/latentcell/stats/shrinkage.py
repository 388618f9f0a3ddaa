"""Covariances from few replicates: shrinkage, and sphering by what controls do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def oas_shrinkage(x: Array, f: int) -> float:
    """Oracle-approximating shrinkage of a covariance X'X / f with mean variance 1 towards the identity.

    Chen, Wiesel, Eldar and Hero 2010, eq. 23; between 0.01 and 0.99, so that the inverse exists and a correlation
    is never ignored altogether.
    """
    p = max(1, x.shape[1])
    gram = x @ x.T if len(x) < p else x.T @ x
    trace_square = float((gram**2).sum()) / f**2
    trace = float(np.trace(gram)) / f
    spread = (f + 1 - 2 / p) * (trace_square - trace**2 / p)
    shrinkage = 1.0 if spread <= 0 else ((1 - 2 / p) * trace_square + trace**2) / spread
    return float(np.clip(shrinkage, 0.01, 0.99))


def sphered(values: Array, residuals: Array, f: int) -> Array:
    """Values in units in which replicates vary evenly in all directions, ``(n, p)``.

    Features are divided by their SD, then multiplied by the inverse square root of the shrunken correlation: directions
    in which controls vary much count less (typical variation normalisation, Ando et al. 2017).

    Parameters
    ----------
    values
        ``(n, p)``, any p.
    residuals
        Control replicates minus the mean of their block, ``(m, p)``.
    f
        Degrees of freedom of `residuals`.
    """
    sd = np.sqrt((residuals**2).sum(axis=0) / f)
    kept = sd > 1e-9 * max(1.0, float(sd.max(initial=0.0)))
    x, z = residuals[:, kept] / sd[kept], values[:, kept] / sd[kept]
    shrinkage = oas_shrinkage(x, f)
    _, s, axes = np.linalg.svd(x, full_matrices=False)
    width = np.sqrt((1 - shrinkage) * s**2 / f + shrinkage)
    along = z @ axes.T
    # off the axes that controls span, the covariance is the shrinkage target alone
    return np.asarray(z / np.sqrt(shrinkage) + (along * (1 / width - 1 / np.sqrt(shrinkage))) @ axes)
