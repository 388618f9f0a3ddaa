"""What the codes of the training cells are like together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Population:
    """Normal distribution of codes: where cells lie, which need not be where the prior puts them.

    With thousands of pixels a few nats hardly bend the codes of all cells together to N(0, I), and what lies elsewhere
    under the prior was never a cell.

    Attributes
    ----------
    mean
        ``(d,)``.
    root
        ``(d, d)``, whose product with its transpose is the covariance.
    """

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, mu: np.ndarray, var: np.ndarray) -> Population:
        """From posterior means and variances ``(n, d)``; of few cells it stays near the prior N(0, I)."""
        n, d = mu.shape
        inside = np.nan_to_num(var).mean(0) if n else np.zeros(d)
        mean = mu.sum(0) / (n + 1)
        scatter = (mu - mean).T @ (mu - mean) + n * np.diag(inside)
        covariance = (scatter + d * np.eye(d)) / (n + d)
        return cls(mean.astype(np.float32), np.linalg.cholesky(covariance).astype(np.float32))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Codes ``(n, d)`` float32."""
        return self.mean + rng.standard_normal((n, len(self.mean)), dtype=np.float32) @ self.root.T
