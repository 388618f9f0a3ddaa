"""Shortest paths as decoded: curves in the latent space along which the measurement changes least."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentcell.model.adam import Adam


def geodesics(
    decode: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    t: float,
    *,
    n_steps: int = 8,
    n_iterations: int = 60,
) -> Tensor:
    """Position at `t` on the geodesics between paired positions, under the metric that the decoder pulls back.

    Minimises the energy sum_k |f(z_k+1) - f(z_k)|^2 of a chain of positions with fixed ends, whose minimum is a
    shortest curve walked at constant speed (Arvanitidis et al. 2018; Chen et al. 2018), from the straight line on, by
    Adam. Costs `n_iterations` decodings, with gradients, of `n_steps` positions per pair.

    Parameters
    ----------
    decode
        Decoder f from ``(m, d)`` to measurements ``(m, ...)`` in which distances mean something; called with the
        positions of all pairs, step after step.
    start, end
        ``(n, d)``, paired by row.
    t
        Share of the way, 0 to 1.

    Returns
    -------
    ``(n, d)``, between nodes on the chord.
    """
    n, d = start.shape
    shares = torch.linspace(0, 1, n_steps + 1, device=start.device)[1:-1, None, None]
    line = (1 - shares) * start + shares * end
    # a step of the straight way is the unit of a move, pair by pair: no pair's path depends on the others
    unit = (end - start).norm(dim=1, keepdim=True).clamp_min(1e-6) / n_steps
    offset = torch.zeros_like(line, requires_grad=True)
    optimiser = Adam([offset])
    for _ in range(n_iterations):
        nodes = torch.cat([start[None], line + unit * offset, end[None]])
        decoded = decode(nodes.reshape(-1, d)).reshape(n_steps + 1, n, -1)
        energy = (decoded[1:] - decoded[:-1]).square().sum()
        (gradient,) = torch.autograd.grad(energy, [offset])
        offset.grad = gradient
        optimiser.step(0.1)
    nodes = torch.cat([start[None], line + unit * offset.detach(), end[None]])
    place = t * n_steps
    before = min(int(place), n_steps - 1)
    rest = place - before
    return (1 - rest) * nodes[before] + rest * nodes[before + 1]
