"""Every operation of METHOD.md in plain PyTorch: the definition the kernels are measured against.

Arguments come checked from `ops`: settings are float or (B,) tensors of the compute dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..windows import Windows

TINY = 1e-20  # the least divisor of equation 5

Setting = float | Tensor


def compute_dtype(images: Tensor) -> torch.dtype:
    """Dtype of the arithmetic: float64 for float64 images, float32 for all others."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def _per_image(value: Setting) -> Setting:
    """Shape a (B,) tensor so that it broadcasts over (B, C, H, W)."""
    return value[:, None, None, None] if isinstance(value, Tensor) else value


def gradient_norm(grad: Tensor, normalize: str) -> Tensor:
    """N of equation 5, (B, 1, 1, 1), at least 1e-20. Float64 inside: tiny squares survive."""
    exact = grad.double()
    axes = (1, 2, 3)
    if normalize == "mean_abs":
        norm = exact.abs().mean(axes, keepdim=True)
    elif normalize == "max_abs":
        norm = exact.abs().amax(axes, keepdim=True)
    elif normalize == "rms":
        norm = exact.square().mean(axes, keepdim=True).sqrt()
    else:
        norm = torch.ones_like(exact[:, :1, :1, :1])
    return norm.clamp(min=TINY).to(grad.dtype)


def update(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    *,
    eps: Setting,
    alpha: Setting,
    background: Setting,
    active: Tensor | None,
    momentum: Tensor | None,
    keep_momentum: bool,
    gain: float,
    decay: float,
    bounds: tuple[float, float],
    sign: float,
    normalize: str,
    in_place: bool,
) -> tuple[Tensor, Tensor | None]:
    """Equations 3 and 5 to 7; returns the new images and, if kept, the new momentum."""
    dtype = compute_dtype(images)
    x, g = images.to(dtype), grad.to(dtype)
    beta, lo, hi = _per_image(background), *bounds

    mask = torch.ones((), dtype=dtype, device=x.device) if domain is None else domain[:, None]
    weight = beta + (1 - beta) * mask  # equation 3
    velocity = g / gradient_norm(g, normalize)  # equation 5
    if momentum is not None:
        velocity = decay * momentum + velocity  # equation 6
    direction = velocity.sign() if math.isinf(gain) else (gain * velocity).tanh()
    budget, step = _per_image(eps) * weight, _per_image(alpha) * weight
    moved = adv.to(dtype) + sign * step * direction
    new = moved.maximum((x - budget).clamp(min=lo)).minimum((x + budget).clamp(max=hi))  # eq. 7

    new = new.to(adv.dtype)
    old_momentum = torch.zeros_like(velocity) if momentum is None else momentum
    if active is not None:
        alive = active[:, None, None, None]
        new, velocity = torch.where(alive, new, adv), torch.where(alive, velocity, old_momentum)
    if in_place:
        new = adv.copy_(new)
        velocity = velocity if momentum is None else momentum.copy_(velocity)
    return new, velocity if keep_momentum else None


def occlude(
    images: Tensor,
    windows: Windows,
    first: int,
    count: int,
    *,
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    """Copies of each image with windows first … first+count−1 zeroed out, one at a time."""
    kind = compute_dtype(images)
    value = fill.to(images)[:, None, None]
    centre, scale = mean.to(images.device, kind), std.to(images.device, kind)
    copies = images.repeat_interleave(count, 0)
    for i in range(count):
        rows, cols = windows[first + i]
        copies[i::count, :, rows, cols] = value
    copies = (copies.to(kind) - centre[:, None, None]) / scale[:, None, None]
    return copies.to(dtype).contiguous(memory_format=memory_format)


def window_mean(scores: Tensor, windows: Windows) -> Tensor:
    """Equation 2: (B, windows) to (B, H, W). Sums in float64 and in the order of the windows."""
    shape = (len(scores), windows.height, windows.width)
    total = torch.zeros(shape, dtype=torch.float64, device=scores.device)
    cover = torch.zeros(shape[1:], dtype=torch.float64, device=scores.device)
    for k, (rows, cols) in enumerate(windows):
        total[:, rows, cols] += scores[:, k, None, None].double()
        cover[rows, cols] += 1
    return (total / cover).to(scores.dtype)
