"""What the questions share: distances, transport, hand-made image features, recipes of hit calling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentcell.lazy import attached

if TYPE_CHECKING:
    from latentcell.stats.curves import turn
    from latentcell.stats.distances import (
        Interval,
        bootstrap_interval,
        energy_distance,
        mmd,
        sliced_wasserstein,
        wasserstein,
    )
    from latentcell.stats.features import image_features
    from latentcell.stats.hit_calling import hit_p_values
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

# every fit needs some of this package, and none of them SciPy's statistics and interpolation
__getattr__, __dir__ = attached(
    __name__,
    {
        "Interval": "latentcell.stats.distances:Interval",
        "bootstrap_interval": "latentcell.stats.distances:bootstrap_interval",
        "displace": "latentcell.stats.transport:displace",
        "energy_distance": "latentcell.stats.distances:energy_distance",
        "hit_p_values": "latentcell.stats.hit_calling:hit_p_values",
        "image_features": "latentcell.stats.features:image_features",
        "mmd": "latentcell.stats.distances:mmd",
        "pair": "latentcell.stats.transport:pair",
        "shift": "latentcell.stats.transport:shift",
        "sliced_wasserstein": "latentcell.stats.distances:sliced_wasserstein",
        "turn": "latentcell.stats.curves:turn",
        "wasserstein": "latentcell.stats.distances:wasserstein",
    },
)
