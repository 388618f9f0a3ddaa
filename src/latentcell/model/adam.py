"""Adam (Kingma and Ba 2015) on weights in any memory layout."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from latentcell import kernels

_EPS = 1e-8
# weights of fewer values are kept side by side and moved together: starting many short loops would take longer
_SMALL = 2**13


class Adam:
    """Adam with one learning rate, whose gradients can be scaled on the way.

    PyTorch's own is as fast on the weights, but needs passes of its own to clip a gradient, and its first step imports
    a compiler for two seconds. Small weights are moved to a common place in memory, where they stay.

    Parameters
    ----------
    weights
        What to optimise, all on one device.
    betas
        Memory of the first and of the second moment.
    """

    def __init__(self, weights: Iterable[Tensor], betas: tuple[float, float] = (0.9, 0.999)) -> None:
        weights = list(weights)
        self.betas = betas
        self.n_steps = 0
        self.small = [each for each in weights if each.numel() < _SMALL]
        self.large = [each for each in weights if each.numel() >= _SMALL]
        together = torch.cat([weights[0].new_empty(0).detach(), *(each.detach().reshape(-1) for each in self.small)])
        self.small_gradient = torch.zeros_like(together)
        sizes = [each.numel() for each in self.small]
        self.places = [
            place.view(each.shape) for each, place in zip(self.small, self.small_gradient.split(sizes), strict=True)
        ]
        for each, values, place in zip(self.small, together.split(sizes), self.places, strict=True):
            each.data, each.grad = values.view(each.shape), place
        self.groups = [together, *(_in_memory_order(each.detach()) for each in self.large)]
        self.moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in self.groups]
        self.compiled = kernels.in_use(together.device, together.dtype)

    def clear(self) -> None:
        """Forget all gradients."""
        self.small_gradient.zero_()
        for each in self.large:
            each.grad = None

    def gradient_norm(self) -> float:
        """Euclidean length of the gradient of all weights."""
        gradients = self._gradients()
        if not self.compiled:
            return float(torch.stack([each.square().sum() for each in gradients]).sum().sqrt())
        from latentcell.kernels import optimiser

        kernels.share_threads()
        return math.sqrt(sum(optimiser.sum_of_squares(each.numpy()) for each in gradients))

    @torch.no_grad()
    def step(self, rate: float, scale: float = 1.0) -> None:
        """Move the weights by their gradients times `scale`, at learning rate `rate`."""
        self.n_steps += 1
        beta1, beta2 = self.betas
        size, correction = rate / (1 - beta1**self.n_steps), 1 / math.sqrt(1 - beta2**self.n_steps)
        moved = zip(self.groups, self._gradients(), self.moments, strict=True)
        if self.compiled:
            from latentcell.kernels import optimiser

            kernels.share_threads()
            rates = tuple(np.float32(value) for value in (beta1, beta2, scale, size, _EPS, correction))
            for each, gradient, (first, second) in moved:
                optimiser.adam(each.numpy(), gradient.numpy(), first.numpy(), second.numpy(), rates)
            return
        for each, gradient, (first, second) in moved:
            first.lerp_(gradient * scale, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=(1 - beta2) * scale**2)
            each.addcdiv_(first, second.sqrt().mul_(correction).add_(_EPS), value=-size)

    def _gradients(self) -> list[Tensor]:
        """Gradients in the order of `groups`, each flat and in the memory order of its weights."""
        for each, place in zip(self.small, self.places, strict=True):
            if each.grad is not place:  # set, not added to
                place.copy_(torch.zeros_like(place) if each.grad is None else each.grad)
                each.grad = place
        found = [self.small_gradient]
        for each in self.large:
            gradient = torch.zeros_like(each) if each.grad is None else each.grad
            if gradient.stride() != each.stride():
                gradient = torch.empty_like(each.detach()).copy_(gradient)
            found.append(_in_memory_order(gradient))
        return found

    def state(self) -> dict[str, Tensor]:
        """All that a resumed training needs."""
        tensors = {"n_steps": torch.tensor(self.n_steps)}
        for i, moments in enumerate(self.moments):
            tensors |= {f"{i}.{kind}": each for kind, each in zip(("first", "second"), moments, strict=True)}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the `state` of another."""
        self.n_steps = int(tensors["n_steps"])
        for i, moments in enumerate(self.moments):
            for kind, each in zip(("first", "second"), moments, strict=True):
                each.copy_(tensors[f"{i}.{kind}"])


def _in_memory_order(values: Tensor) -> Tensor:
    """Flat view of values whose memory has no gaps."""
    return values.as_strided((values.numel(),), (1,))
