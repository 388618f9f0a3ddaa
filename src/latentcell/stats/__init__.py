"""What the questions share: distances between populations, optimal transport, hand-made image features."""

from __future__ import annotations

from latentcell.stats.distances import (
    Interval,
    bootstrap_interval,
    energy_distance,
    mmd,
    sliced_wasserstein,
    wasserstein,
)
from latentcell.stats.image_features import image_features
from latentcell.stats.transport import displace, pair

__all__ = [
    "Interval",
    "bootstrap_interval",
    "displace",
    "energy_distance",
    "image_features",
    "mmd",
    "pair",
    "sliced_wasserstein",
    "wasserstein",
]
