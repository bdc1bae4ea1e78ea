"""Every operation of METHOD.md in plain PyTorch: the definition the kernels are measured against.

A backend is three functions that fill outputs which `ops` has checked and allocated. Settings are
numbers or tensors (B,) of the compute dtype; all image-like tensors of an update share one layout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import Setting, allocation, column, compute_dtype, normalised
from ..windows import Windows

TINY = 1e-20  # the least divisor of equation 5


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
    out: Tensor,
    momentum_out: Tensor | None,
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    momentum: Tensor | None,
    active: Tensor | None,
    *,
    eps: Setting,
    alpha: Setting,
    background: Setting,
    gain: float,
    decay: float,
    bounds: tuple[float, float],
    sign: float,
    normalize: str,
) -> None:
    """Equations 3 and 5 to 7 into `out`, which may be `adv`, and `momentum_out`."""
    dtype, (lo, hi) = compute_dtype(images), bounds
    x, g = images.to(dtype), grad.to(dtype)
    velocity = g / gradient_norm(g, normalize)  # equation 5
    if momentum is not None:
        velocity = decay * momentum + velocity  # equation 6
    direction = velocity.sign() if math.isinf(gain) else (gain * velocity).tanh()
    weight = allocation(background, domain)  # equation 3
    budget, step = column(eps) * weight, column(alpha) * weight
    moved = adv.to(dtype) + sign * step * direction
    new = moved.maximum((x - budget).clamp(min=lo)).minimum((x + budget).clamp(max=hi))  # eq. 7

    alive = True if active is None else active[:, None, None, None]
    old = torch.zeros_like(velocity) if momentum is None else momentum
    out.copy_(_where(alive, new.to(adv.dtype), adv))
    if momentum_out is not None:
        momentum_out.copy_(_where(alive, velocity, old))


def _where(alive: Tensor | bool, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(alive, new, old) if isinstance(alive, Tensor) else new


def occlude(
    out: Tensor,
    images: Tensor,
    windows: Windows,
    first: int,
    count: int,
    *,
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
) -> None:
    """Copies of each image with windows first … first+count−1 zeroed out, one at a time."""
    kind = compute_dtype(images)
    value = fill.to(images)[:, None, None]
    copies = images.repeat_interleave(count, 0)
    for i in range(count):
        rows, cols = windows[first + i]
        copies[i::count, :, rows, cols] = value
    out.copy_(normalised(copies, mean.to(images.device, kind), std.to(images.device, kind)))


def window_mean(out: Tensor, scores: Tensor, windows: Windows) -> None:
    """Equation 2: (B, windows) to (B, H, W). Sums in float64 and in the order of the windows."""
    total = torch.zeros_like(out, dtype=torch.float64)
    cover = torch.zeros_like(total[0])
    for k, (rows, cols) in enumerate(windows):
        total[:, rows, cols] += scores[:, k, None, None].double()
        cover[rows, cols] += 1
    out.copy_(total / cover)
