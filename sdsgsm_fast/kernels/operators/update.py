"""`update` and `update_`: METHOD.md, equations 3 and 5 to 7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...common import checks
from ...common.numerics import compute_dtype
from ..backends import choose
from ..calls import Update
from .registry import register

# Each of ε, α and β is a tensor (B,), or None and a number for all images. `numbers` are eps,
# alpha, background, gain, decay, lo, hi and sign: a list passes the dispatcher faster than they do.
_SETTINGS = "Tensor? each_eps, Tensor? each_alpha, Tensor? each_background, float[] numbers, str normalize, str backend"
_UPDATE = (
    "(Tensor adv, Tensor images, Tensor grad, Tensor? domain, Tensor? momentum, "
    f"Tensor? active, {_SETTINGS}) -> (Tensor, Tensor)"
)
_UPDATE_ = (
    "(Tensor(a!) adv, Tensor images, Tensor grad, Tensor? domain, "
    f"Tensor(b!)? momentum, Tensor? active, {_SETTINGS}) -> ()"
)


def _check_update(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    momentum: Tensor | None,
    active: Tensor | None,
    *settings: Tensor | None,
) -> None:
    """Require what the kernels read and write to be there."""
    # This runs at every step, so functions are called only to explain what is wrong.
    dtype, shape, device = images.dtype, images.shape, images.device
    if len(shape) != 4 or not images.numel():
        checks.image_batch("images", images)
    if dtype not in checks.KERNEL_DTYPES or grad.dtype not in checks.KERNEL_DTYPES:
        checks.kernel_dtype("images", dtype)
        checks.kernel_dtype("grad", grad.dtype)
    for name, value in (("adv", adv), ("grad", grad), ("momentum", momentum)):
        if value is not None and (value.shape != shape or value.device != device):
            checks.same_as_images(name, value, shape, device)
    if adv.dtype != dtype:
        raise TypeError(f"adv: expected {dtype} as images, found {adv.dtype}")
    if momentum is not None and momentum.dtype != compute_dtype(images):
        raise TypeError(f"momentum: expected {compute_dtype(images)}, found {momentum.dtype}")
    if domain is not None:
        of_pixels = (shape[0], shape[2], shape[3])
        if domain.dtype not in checks.KERNEL_DTYPES:
            checks.kernel_dtype("domain", domain.dtype)
        if domain.shape != of_pixels or domain.device != device:
            checks.same_as_images("domain", domain, of_pixels, device)
    if active is not None:
        if active.dtype != torch.bool:
            raise TypeError(f"active: expected torch.bool, found {active.dtype}")
        checks.same_as_images("active", active, shape[:1], device)
    if settings == (None, None, None):
        return
    for name, value in zip(("eps", "alpha", "background"), settings, strict=True):
        if value is not None:
            checks.kernel_dtype(name, value.dtype)
            checks.same_as_images(name, value, shape[:1], device)


def _layout(adv: Tensor) -> torch.memory_format:
    """Return the layout in which all tensors of an update are given to the kernel."""
    if not adv.is_contiguous() and adv.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _call(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    momentum: Tensor | None,
    active: Tensor | None,
    each_eps: Tensor | None,
    each_alpha: Tensor | None,
    each_background: Tensor | None,
    numbers: Sequence[float],
    normalize: str,
) -> Update:
    """What a backend gets: checked, dense and of one layout; copied where it was not."""
    _check_update(adv, images, grad, domain, momentum, active, each_eps, each_alpha, each_background)
    eps, alpha, background, gain, decay, lo, hi, sign = numbers
    layout, dtype = _layout(adv), compute_dtype(images)
    if gain > checks.FLOAT32_MAX and dtype == torch.float32:
        gain = math.inf
    return Update(
        _dense(adv, layout),
        _dense(images, layout),
        _dense(grad, layout),
        None if domain is None else _as(domain, dtype),
        None if momentum is None else _dense(momentum, layout),
        None if active is None else active.contiguous(),
        eps if each_eps is None else _as(each_eps, dtype),
        alpha if each_alpha is None else _as(each_alpha, dtype),
        background if each_background is None else _as(each_background, dtype),
        gain,
        decay,
        (lo, hi),
        sign,
        normalize,
    )


def _dense(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor if tensor.dtype == dtype else tensor.to(dtype)).contiguous()


def _update(adv: Tensor, images: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Kernel of `update`; the second result is empty where no momentum is kept."""
    *arguments, backend = rest
    call = _call(adv, images, *arguments)
    out = torch.empty_like(call.adv)
    kept = call.momentum is not None or call.decay > 0
    momentum = _momentum_like(out, kept)
    if out.numel():
        choose(backend, images).update(out, momentum if kept else None, call)
    return out, momentum


def _momentum_like(out: Tensor, kept: bool) -> Tensor:
    dtype = compute_dtype(out)
    return torch.empty_like(out, dtype=dtype) if kept else out.new_empty(0, dtype=dtype)


def _fake_update(adv: Tensor, images: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _check_update(adv, images, *rest[:7])
    out = torch.empty_like(adv, memory_format=_layout(adv))
    momentum, decay = rest[2], rest[7][4]
    return out, _momentum_like(out, momentum is not None or decay > 0)


def _update_(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    momentum: Tensor | None,
    active: Tensor | None,
    eps: Tensor | None,
    alpha: Tensor | None,
    background: Tensor | None,
    numbers: Sequence[float],
    normalize: str,
    backend: str,
) -> None:
    """Kernel of `update_`."""
    if adv.requires_grad or (momentum is not None and momentum.requires_grad):
        _refuse_graphs(adv, momentum)
    call = _call(adv, images, grad, domain, momentum, active, eps, alpha, background, numbers, normalize)
    if call.adv is not adv:  # a dense tensor shares no memory among its elements
        checks.writable("adv", adv)
    if momentum is not None and call.momentum is not momentum:
        checks.writable("momentum", momentum)
    if adv.numel():
        choose(backend, images).update(call.adv, call.momentum, call)
    _give_back(adv, call.adv)
    if momentum is not None:
        _give_back(momentum, call.momentum)


def _refuse_graphs(adv: Tensor, momentum: Tensor | None) -> None:
    for name, tensor in (("adv", adv), ("momentum", momentum)):
        inside = tensor is not None and tensor.requires_grad and not tensor.is_leaf
        if inside and torch.is_grad_enabled():
            raise ValueError(f"{name}: part of a graph, which would miss the update; detach it")


def _give_back(tensor: Tensor, result: Tensor | None) -> None:
    """Let the caller's tensor hold a result that was computed in it or in a dense copy of it."""
    if result is not None and result is not tensor:
        with torch.no_grad():
            tensor.copy_(result)
    elif not tensor.is_inference():
        increment_version(tensor)  # a kernel wrote behind autograd's back


def _fake_update_(adv: Tensor, images: Tensor, *rest: Any) -> None:
    _check_update(adv, images, *rest[:7])


update = register("update", _UPDATE, _update, _fake_update)
update_ = register("update_", _UPDATE_, _update_, _fake_update_)
