"""Every operation of METHOD.md in plain PyTorch: the definition the kernels are measured against.

A backend is four functions that fill outputs, which `operators` has allocated, from checked
arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.numerics import allocation, column, compute_dtype, normalised
from ..common.windows import Windows
from .calls import Occlude, Paste, Update

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


@torch.no_grad()
def update(out: Tensor, momentum_out: Tensor | None, u: Update) -> None:
    """Equations 3 and 5 to 7 into `out`, which may be `u.adv`, and `momentum_out`."""
    dtype, (lo, hi) = compute_dtype(u.images), u.bounds
    x, g = u.images.to(dtype), u.grad.to(dtype)
    velocity = g / gradient_norm(g, u.normalize)  # equation 5
    if u.momentum is not None:
        velocity = u.decay * u.momentum + velocity  # equation 6
    direction = velocity.sign() if math.isinf(u.gain) else (u.gain * velocity).tanh()
    weight = allocation(u.background, u.domain)  # equation 3
    budget, step = column(u.eps) * weight, column(u.alpha) * weight
    moved = u.adv.to(dtype) + u.sign * step * direction
    new = moved.maximum((x - budget).clamp(min=lo)).minimum((x + budget).clamp(max=hi))  # eq. 7

    old = torch.zeros_like(velocity) if u.momentum is None else u.momentum
    out.copy_(_active(u, new.to(u.adv.dtype), u.adv))
    if momentum_out is not None:
        momentum_out.copy_(_active(u, velocity, old))


def _active(u: Update, new: Tensor, old: Tensor) -> Tensor:
    """New values of the active images, old ones of the others."""
    return new if u.active is None else torch.where(u.active[:, None, None, None], new, old)


@torch.no_grad()
def occlude(out: Tensor, o: Occlude) -> None:
    """Copies of each image with windows first … first+count−1 zeroed out, one at a time."""
    fill, mean, std = o.constants(compute_dtype(o.images))
    value = fill.to(o.images.dtype)[:, None, None]
    copies = o.images.repeat_interleave(o.count, 0)
    for i in range(o.count):
        rows, cols = o.windows[o.first + i]
        copies[i :: o.count, :, rows, cols] = value
    out.copy_(normalised(copies, mean, std))


@torch.no_grad()
def window_mean(out: Tensor, scores: Tensor, windows: Windows) -> None:
    """Equation 2: (B, windows) to (B, H, W). Sums in float64 and in the order of the windows."""
    total = torch.zeros_like(out, dtype=torch.float64)
    cover = torch.zeros_like(total[0])
    for k, (rows, cols) in enumerate(windows):
        total[:, rows, cols] += scores[:, k, None, None].double()
        cover[rows, cols] += 1
    out.copy_(total / cover)


@torch.no_grad()
def paste(out: Tensor, p: Paste) -> None:
    """Cut tiles out of clean maps and overwrite what the crops cover, one tile at a time."""
    height, width = p.clean.shape[2:]
    places = zip(p.image.tolist(), p.rows[p.row].tolist(), p.cols[p.col].tolist(), strict=True)
    for n, (image, (top, *rows), (left, *cols)) in enumerate(places):
        whole = p.clean[image]
        if p.crops is not None and rows[0] < rows[1] and cols[0] < cols[1]:
            whole = whole.clone()
            crop = p.crops[n if len(p.crops) > 1 else 0]
            whole[:, slice(*rows), slice(*cols)] = crop[:, : rows[1] - rows[0], : cols[1] - cols[0]]
        tile = out[n]
        tile.fill_(p.pad)
        bottom, right = min(top + tile.shape[1], height), min(left + tile.shape[2], width)
        y, x = max(top, 0), max(left, 0)
        if y < bottom and x < right:
            tile[:, y - top : bottom - top, x - left : right - left] = whole[:, y:bottom, x:right]
