"""What the questions share: distances, transport, hand-made image features, recipes of hit calling."""

from __future__ import annotations

from latentcell.stats.curves import turn
from latentcell.stats.distances import (
    Interval,
    bootstrap_interval,
    energy_distance,
    mmd,
    sliced_wasserstein,
    wasserstein,
)
from latentcell.stats.hit_calling import hit_p_values
from latentcell.stats.image_features import image_features
from latentcell.stats.transport import displace, pair, shift

__all__ = [
    "Interval",
    "bootstrap_interval",
    "displace",
    "energy_distance",
    "hit_p_values",
    "image_features",
    "mmd",
    "pair",
    "shift",
    "sliced_wasserstein",
    "turn",
    "wasserstein",
]
