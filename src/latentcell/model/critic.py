"""The discriminator of FactorVAE: it tells codes from codes with shuffled dimensions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from latentcell.model.adam import Adam
from latentcell.model.aggregate import density_ratio_loss, shuffled_dimensions

_WIDTH, _LAYERS = 256, 4  # the paper's 1,000 by 6 takes ten times as long on a CPU as the rest of the model
_LEARNING_RATE, _BETAS = 1e-4, (0.5, 0.9)


class Critic(nn.Module):
    """Density-ratio estimator of the total correlation (Kim and Mnih 2018, eq. 3), trained as it is used.

    Parameters
    ----------
    n_latent
        Latent dimensions d.
    seed
        Of its weights and of the shuffling.
    device
        Where it is trained; by default on the CPU.
    """

    def __init__(self, n_latent: int, seed: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.seed = seed
        widths = [n_latent, *[_WIDTH] * _LAYERS]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
            self.net = nn.Sequential(*layers, nn.Linear(_WIDTH, 2)).to(device)
        self.optimiser = Adam(self.net.parameters(), _BETAS)

    def learn(self, z: Tensor, step: int) -> None:
        """Take one step towards telling `z` ``(n, d)`` from shuffled codes; randomness derives from the step."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * step)
        shuffled = shuffled_dimensions(z, generator)
        self.optimiser.clear()
        density_ratio_loss(self.net(z), self.net(shuffled)).backward()
        self.optimiser.step(_LEARNING_RATE)

    def total_correlation(self, z: Tensor) -> Tensor:
        """Estimate of the total correlation of codes ``(n, d)`` in nats."""
        logits = self.net(z)
        return (logits[:, 0] - logits[:, 1]).mean()
