"""Orientation of cells: a nuisance that `align` removes and `augmentation` averages over.

Rotations are in the image plane, also for volumes: depth is set by the microscope, not by chance.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentcell import kernels

# width of the Gaussian window, in half image sides, that keeps neighbouring cells out of the axis
_WINDOW = 0.5


def align(images: np.ndarray, masks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn each cell so that its longest axis is horizontal and its heavier sides lie right and below.

    The axis is the first principal axis of intensity above the median, summed over channels (each divided by its
    mean over the given cells would make a cell depend on its neighbours in the batch, so each channel is divided by
    its own sum within the cell) inside `masks`, or inside a Gaussian window where there is none. The two remaining
    mirror ambiguities are settled by the sign of the third moments.

    Parameters
    ----------
    images
        ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, any unit.
    masks
        ``(n, H, W)`` or ``(n, Z, H, W)`` boolean, or None.

    Returns
    -------
    Turned images (float32, bilinear) and masks of the same shapes.
    """
    x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    mask = None if masks is None else torch.from_numpy(masks.astype(np.float32))[:, None]
    weight = _weight(x, mask)
    angle = _axis_angle(weight)
    none = torch.ones_like(angle)
    turned_weight = turn(weight[:, None], angle, none, none)[:, 0]
    grid = _grid(turned_weight)
    flip_x = _sign((turned_weight * grid[0] ** 3).flatten(1).sum(1))
    flip_y = _sign((turned_weight * grid[1] ** 3).flatten(1).sum(1))
    turned = turn(x, angle, flip_x, flip_y)
    if mask is None:
        return turned.numpy(), None
    return turned.numpy(), (turn(mask, angle, flip_x, flip_y, outside="zeros")[:, 0] > 0.5).numpy()


def _weight(x: Tensor, mask: Tensor | None) -> Tensor:
    """Foreground weight of each pixel, ``(n, H, W)``; volumes are summed over depth."""
    if x.dim() == 5:
        x = x.sum(2)
        mask = None if mask is None else mask.amax(2)
    flat = x.flatten(2)
    x = (x - flat.median(2).values[..., None, None]).clamp(min=0)
    x = x / x.flatten(2).sum(2).clamp(min=1e-12)[..., None, None]
    weight = x.mean(1)
    if mask is not None:
        return weight * mask[:, 0]
    grid = _grid(weight)
    return weight * torch.exp(-(grid[0] ** 2 + grid[1] ** 2) / (2 * _WINDOW**2))


def _axis_angle(weight: Tensor) -> Tensor:
    """Angle of the first principal axis of each ``(n, H, W)`` weight image, in pixels of equal size."""
    height, width = weight.shape[-2:]
    grid = _grid(weight)
    grid = grid * torch.tensor([width / 2, height / 2])[:, None, None]
    total = weight.flatten(1).sum(1).clamp(min=1e-12)[:, None, None]

    def moment(values: Tensor) -> Tensor:
        return (weight * values).flatten(1).sum(1)[:, None, None] / total

    dx, dy = grid[0] - moment(grid[0]), grid[1] - moment(grid[1])
    xx, yy, xy = (moment(a).flatten() for a in (dx * dx, dy * dy, dx * dy))
    return 0.5 * torch.atan2(2 * xy, xx - yy)


def turn(x: Tensor, angle: Tensor, flip_x: Tensor, flip_y: Tensor, outside: str = "reflection") -> Tensor:
    """Sample each image along its rotated (by `angle`) and then mirrored axes, in the plane."""
    height, width = x.shape[-2:]
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0], theta[:, 0, 1] = cos * flip_x, -sin * flip_y * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sin * flip_x * width / height, cos * flip_y
    return resample(x, theta, outside)


def resample(x: Tensor, theta: Tensor, outside: str = "reflection") -> Tensor:
    """Sample each image ``(n, C, [Z,] H, W)`` under an affine map ``(n, 2, 3)`` of its plane, bilinearly."""
    planes = x.flatten(1, -3)  # depth, if any, joins the channels: every plane moves alike
    if kernels.in_use(x.device, x.dtype):
        from latentcell.kernels import affine

        out = torch.empty(planes.shape)
        kernels.share_threads()
        maps = theta.to(torch.float32).contiguous().numpy()
        affine.resample(planes.contiguous().numpy(), maps, outside == "reflection", out.numpy())
        return out.view(x.shape)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode=outside, align_corners=False).view(x.shape)


def _grid(weight: Tensor) -> Tensor:
    """Coordinates x and y of the pixels in [-1, 1], ``(2, H, W)``."""
    height, width = weight.shape[-2:]
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy]).to(weight)


def _sign(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0)
