"""The operators as PyTorch sees them: schemas, kernels, and fake kernels for tracing.

`ops` is their public face. Here tensors are checked, whatever calls: the kernels take raw
addresses. None of the operators is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..common import checks
from ..common.numerics import compute_dtype
from ..common.windows import Windows
from .backends import choose
from .calls import Occlude, Paste, Update

_LIBRARY = torch.library.Library("sdsgsm_fast", "FRAGMENT")

# Each of ε, α and β is a tensor (B,), or None and a number for all images. `numbers` are eps,
# alpha, background, gain, decay, lo, hi and sign: a list passes the dispatcher faster than they do.
_SETTINGS = "Tensor? each_eps, Tensor? each_alpha, Tensor? each_background, float[] numbers, str normalize, str backend"
_SCHEMAS = {
    "update": "(Tensor adv, Tensor images, Tensor grad, Tensor? domain, Tensor? momentum, "
    f"Tensor? active, {_SETTINGS}) -> (Tensor, Tensor)",
    "update_": "(Tensor(a!) adv, Tensor images, Tensor grad, Tensor? domain, "
    f"Tensor(b!)? momentum, Tensor? active, {_SETTINGS}) -> ()",
    "occlude": "(Tensor images, int first, int count, int[] patch, int[] stride, Tensor fill, "
    "Tensor mean, Tensor std, ScalarType dtype, bool channels_last, str backend) -> Tensor",
    "window_mean": "(Tensor scores, int height, int width, int[] patch, int[] stride, str backend) -> Tensor",
    "paste": "(Tensor clean, Tensor? crops, Tensor image, Tensor row, Tensor col, Tensor rows, "
    "Tensor cols, int height, int width, float pad, str backend) -> Tensor",
}


def _register(name: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator and return it."""
    _LIBRARY.define(name + _SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    # Results are constants to autograd, also of arguments that require gradients.
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"sdsgsm_fast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.sdsgsm_fast, name).default


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


def _grid(height: int, width: int, patch: Sequence[int], stride: Sequence[int]) -> Windows:
    return Windows.over(height, width, (patch[0], patch[1]), (stride[0], stride[1]))


def _occlude_shape(images: Tensor, windows: Windows, first: int, count: int) -> tuple[int, ...]:
    checks.image_batch("images", images)
    checks.kernel_dtype("images", images.dtype)
    if first < 0 or count < 0 or first + count > len(windows):
        raise ValueError(f"count: expected first + count ≤ {len(windows)}, found {first + count}")
    return (len(images) * count, *images.shape[1:])


def _empty(images: Tensor, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)


def _occlude(
    images: Tensor,
    first: int,
    count: int,
    patch: Sequence[int],
    stride: Sequence[int],
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
) -> Tensor:
    """Kernel of `occlude`."""
    windows = _grid(images.shape[2], images.shape[3], patch, stride)
    shape = _occlude_shape(images, windows, first, count)
    checks.kernel_dtype("dtype", dtype)
    out = _empty(images, shape, dtype, channels_last)
    channels = shape[1]
    call = Occlude(
        images.contiguous(), windows, first, count,
        fill=checks.per_channel("fill", fill, channels),
        mean=checks.per_channel("mean", mean, channels),
        std=checks.scale(std, channels),
    )  # fmt: skip
    if out.numel():
        choose(backend, images).occlude(out, call)
    return out


def _fake_occlude(
    images: Tensor, first: int, count: int, patch: Sequence[int], stride: Sequence[int],
    fill: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype, channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    windows = _grid(images.shape[2], images.shape[3], patch, stride)
    return _empty(images, _occlude_shape(images, windows, first, count), dtype, channels_last)


def _windows_of(scores: Tensor, height: int, width: int, patch: Sequence[int], stride: Sequence[int]) -> Windows:
    windows = _grid(height, width, patch, stride)
    checks.kernel_dtype("scores", scores.dtype)
    if tuple(scores.shape[1:]) not in ((windows.rows, windows.cols), (len(windows),)):
        raise ValueError(f"scores: expected shape (B, {windows.rows}, {windows.cols}), found {tuple(scores.shape)}")
    return windows


def _window_mean(
    scores: Tensor,
    height: int,
    width: int,
    patch: Sequence[int],
    stride: Sequence[int],
    backend: str,
) -> Tensor:
    """Kernel of `window_mean`."""
    windows = _windows_of(scores, height, width, patch, stride)
    given = scores.flatten(1).to(compute_dtype(scores)).contiguous()
    out = given.new_empty((len(scores), height, width))
    if out.numel():
        choose(backend, scores).window_mean(out, given, windows)
    return out.to(scores.dtype)


def _fake_window_mean(
    scores: Tensor, height: int, width: int, patch: Sequence[int], stride: Sequence[int],
    backend: str,
) -> Tensor:  # fmt: skip
    _windows_of(scores, height, width, patch, stride)
    return scores.new_empty((len(scores), height, width))


def _check_paste(
    clean: Tensor, crops: Tensor | None, image: Tensor, row: Tensor, col: Tensor, rows: Tensor,
    cols: Tensor, height: int, width: int,
) -> tuple[int, ...]:  # fmt: skip
    """Shape of the tiles. The indices' values are not checked: they would cost a device's wait."""
    checks.image_batch("clean", clean)
    checks.kernel_dtype("clean", clean.dtype)
    count = len(image)
    if crops is not None:
        checks.image_batch("crops", crops)
        if len(crops) not in (1, count) or crops.shape[1] != clean.shape[1]:
            raise ValueError(
                f"crops: expected shape (1 or {count}, {clean.shape[1]}, h, w), found {tuple(crops.shape)}"
            )
        if crops.dtype != clean.dtype or crops.device != clean.device:
            raise ValueError(
                f"crops: expected {clean.dtype} on {clean.device} as clean, found {crops.dtype} on {crops.device}"
            )
    for name, tensor, shape in (
        ("image", image, (count,)), ("row", row, (count,)), ("col", col, (count,)),
        ("rows", rows, (len(rows), 3)), ("cols", cols, (len(cols), 3)),
    ):  # fmt: skip
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: expected int32 of shape {shape}, found {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if tensor.device != clean.device:
            raise ValueError(f"{name}: expected device {clean.device}, found {tensor.device}")
    if height < 1 or width < 1:
        raise ValueError(f"height, width: expected at least 1, found {height}, {width}")
    return (count, clean.shape[1], height, width)


def _paste(
    clean: Tensor, crops: Tensor | None, image: Tensor, row: Tensor, col: Tensor, rows: Tensor,
    cols: Tensor, height: int, width: int, pad: float, backend: str,
) -> Tensor:  # fmt: skip
    """Kernel of `paste`."""
    shape = _check_paste(clean, crops, image, row, col, rows, cols, height, width)
    out = _empty(clean, shape, clean.dtype, last=True)
    if out.numel():
        call = Paste(clean, crops, image, row, col, rows, cols, height, width, pad)
        choose(backend, clean).paste(out, call.dense())
    return out


def _fake_paste(
    clean: Tensor, crops: Tensor | None, image: Tensor, row: Tensor, col: Tensor, rows: Tensor,
    cols: Tensor, height: int, width: int, pad: float, backend: str,
) -> Tensor:  # fmt: skip
    shape = _check_paste(clean, crops, image, row, col, rows, cols, height, width)
    return _empty(clean, shape, clean.dtype, last=True)


update = _register("update", _update, _fake_update)
update_ = _register("update_", _update_, _fake_update_)
occlude = _register("occlude", _occlude, _fake_occlude)
window_mean = _register("window_mean", _window_mean, _fake_window_mean)
paste = _register("paste", _paste, _fake_paste)
