"""The operators: arguments checked once, then given to a backend.

Backends: "reference" (plain PyTorch), "native" (csrc, CPU), "triton" (CUDA, or CPU under Triton's
interpreter; no float64), and "auto": the kernels of the tensor's device where they are there and
take it, else the reference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import checks
from .backends import NAMES, choose
from .backends.calls import Occlude, Update
from .numerics import Setting, compute_dtype
from .windows import Pair, Windows

BACKENDS = NAMES
NORMALIZE = ("mean_abs", "max_abs", "rms", "none")


def update(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    *,
    eps: Setting,
    alpha: Setting,
    background: Setting,
    active: Tensor | None = None,
    momentum: Tensor | None = None,
    gain: float = 1.0,
    decay: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    sign: float = 1.0,
    normalize: str = "mean_abs",
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """One masked, tanh-smoothed step: METHOD.md, equations 3 and 5 to 7.

    Parameters
    ----------
    adv, images, grad
        (B, C, H, W) floating: the current iterate x_t, the clean images x, and ∇L(x_t). `adv` and
        `images` share a dtype, `grad` may have another. Gradients are expected to be finite.
    domain
        (B, H, W) floating m in [0, 1], or None for m ≡ 1.
    eps, alpha, background
        ε, α and β_t: a number, or a floating tensor (B,), whose values are taken as they are.
    active
        (B,) bool; the images to update, None for all. Others keep their pixels and momentum.
    momentum
        (B, C, H, W) v of equation 6, float64 for float64 images and else float32; None for 0.
    gain
        κ > 0; ``math.inf`` steps with the sign.
    decay
        μ ≥ 0.
    bounds
        (lo, hi) of the pixel values.
    sign
        +1 ascends the loss, −1 descends it.
    normalize
        N of equation 5: "mean_abs", "max_abs", "rms" or "none".
    backend
        "auto", "reference", "native" or "triton".

    Returns
    -------
    adv : Tensor
        x_{t+1}, (B, C, H, W) in the dtype of `images`.
    momentum : Tensor or None
        The new v; None where `momentum` is None and `decay` is 0, since then nothing needs it.
        Neither result shares memory with an argument.

    Raises
    ------
    ValueError, TypeError
        If an argument has a wrong shape, dtype, device or value.
    RuntimeError
        If `backend` is missing from this installation.
    """
    return _update(
        adv, images, grad, domain,
        eps=eps, alpha=alpha, background=background, active=active, momentum=momentum, gain=gain,
        decay=decay, bounds=bounds, sign=sign, normalize=normalize, backend=backend, in_place=False,
    )  # fmt: skip


def update_(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    *,
    eps: Setting,
    alpha: Setting,
    background: Setting,
    active: Tensor | None = None,
    momentum: Tensor | None = None,
    gain: float = 1.0,
    decay: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    sign: float = 1.0,
    normalize: str = "mean_abs",
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """`update` in place: overwrites `adv` and, where given, `momentum`, and returns them.

    They must overlap neither each other nor another argument.
    """
    return _update(
        adv, images, grad, domain,
        eps=eps, alpha=alpha, background=background, active=active, momentum=momentum, gain=gain,
        decay=decay, bounds=bounds, sign=sign, normalize=normalize, backend=backend, in_place=True,
    )  # fmt: skip


@torch.no_grad()
def _update(
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
    gain: float,
    decay: float,
    bounds: tuple[float, float],
    sign: float,
    normalize: str,
    backend: str,
    in_place: bool,
) -> tuple[Tensor, Tensor | None]:
    _check_update(adv, images, grad, domain, active, momentum)
    if in_place:
        checks.writable("adv", adv)
        checks.writable("momentum", momentum)
    checks.number("gain", gain, "a number above 0, or infinity", lambda v: v > 0)
    checks.number("decay", decay, "a finite number of at least 0", checks.is_size)
    checks.number("sign", sign, "1 or -1", lambda v: v in (1, -1))
    checks.choice("normalize", normalize, NORMALIZE)
    limits, dtype = checks.pixel_bounds(bounds), compute_dtype(images)
    chosen = choose(backend, images)
    settings = {"eps": eps, "alpha": alpha, "background": background}
    settings = {name: _setting(name, value, images) for name, value in settings.items()}

    # Kernels take dense tensors of one layout; those that are not are copied.
    layout = _layout(adv)
    old, x, g = (_dense(t, layout) for t in (adv, images, grad))
    old_momentum = None if momentum is None else _dense(momentum, layout)
    out = old if in_place else torch.empty_like(old)
    kept = old_momentum if in_place else None
    if kept is None and (momentum is not None or decay > 0):
        kept = torch.empty_like(old, dtype=dtype)
    if images.numel():
        call = Update(
            adv=old, images=x, grad=g,
            domain=None if domain is None else domain.to(dtype).contiguous(),
            momentum=old_momentum,
            active=None if active is None else active.contiguous(),
            **settings,
            gain=math.inf if gain > torch.finfo(dtype).max else float(gain), decay=float(decay),
            bounds=limits, sign=float(sign), normalize=normalize,
        )  # fmt: skip
        chosen.update(out, kept, call)
    if not in_place:
        return out, kept
    return _given_back(adv, out), kept if momentum is None else _given_back(momentum, kept)


def _given_back(tensor: Tensor, result: Tensor | None) -> Tensor:
    """Let the caller's tensor hold a result that was computed in it or in a dense copy of it."""
    if result is not None and result is not tensor:
        return tensor.copy_(result)
    if not tensor.is_inference():
        increment_version(tensor)  # a kernel wrote behind autograd's back
    return tensor


def _dense(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.resolve_neg().contiguous(memory_format=layout)


def _layout(adv: Tensor) -> torch.memory_format:
    """Return the layout in which all tensors of an update are given to the kernel."""
    if not adv.is_contiguous() and adv.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _setting(name: str, value: Setting, images: Tensor) -> Setting:
    """Check a number fully and a tensor by its shape, since values would cost a device's wait."""
    if not isinstance(value, Tensor):
        checks.per_image(name, value, len(images))
        return float(value)
    checks.same_shape(name, value, (len(images),))
    checks.same_device(name, value, images)
    checks.kernel_dtype(name, value.dtype)
    return value.to(compute_dtype(images)).contiguous()


def _check_update(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    active: Tensor | None,
    momentum: Tensor | None,
) -> None:
    checks.image_batch("images", images)
    checks.kernel_dtype("images", images.dtype)
    checks.kernel_dtype("grad", grad.dtype)
    if adv.dtype != images.dtype:
        raise TypeError(f"adv: expected {images.dtype} as images, found {adv.dtype}")
    for name, tensor in (("adv", adv), ("grad", grad), ("momentum", momentum)):
        if tensor is not None:
            checks.same_shape(name, tensor, images.shape)
            checks.same_device(name, tensor, images)
    if momentum is not None and momentum.dtype != compute_dtype(images):
        raise TypeError(f"momentum: expected {compute_dtype(images)}, found {momentum.dtype}")
    if domain is not None:
        checks.same_shape("domain", domain, (len(images), *images.shape[2:]))
        checks.same_device("domain", domain, images)
    if active is not None:
        if active.dtype != torch.bool:
            raise TypeError(f"active: expected torch.bool, found {active.dtype}")
        checks.same_shape("active", active, (len(images),))
        checks.same_device("active", active, images)


@torch.no_grad()
def occlude(
    images: Tensor,
    first: int,
    count: int,
    *,
    patch: Pair,
    stride: Pair | None = None,
    fill: checks.PerChannel = 0.0,
    mean: checks.PerChannel | None = None,
    std: checks.PerChannel | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Zeroed-out copies of images, ready for the model: METHOD.md, section 1.

    Parameters
    ----------
    images
        (B, C, H, W) floating.
    first, count
        Windows first … first+count−1 are zeroed out, one in each copy.
    patch, stride
        Size and distance of the windows in pixels, an int or (rows, columns); `stride` defaults to
        `patch`.
    fill
        Value of the zeroed-out pixels in the images' own space; one, or one a channel.
    mean, std
        The model's normalisation (x − mean)/std, applied after the zero-out; one value, or one a
        channel; None for none.
    dtype
        Dtype of the result; None for the images' own.
    channels_last
        Lay the result out as channels_last.
    backend
        "auto", "reference", "native" or "triton".

    Returns
    -------
    Tensor
        (B·count, C, H, W): the windows of image 0, then those of image 1, …

    Raises
    ------
    ValueError, TypeError
        If an argument has a wrong shape, dtype or value, or the windows do not exist.
    RuntimeError
        If `backend` is missing from this installation.
    """
    checks.image_batch("images", images)
    batch, channels, height, width = images.shape
    windows = Windows.over(height, width, patch, stride)
    checks.integer("first", first, 0)
    checks.integer("count", count, 0)
    if first + count > len(windows):
        raise ValueError(f"count: expected first + count ≤ {len(windows)}, found {first + count}")
    dtype = images.dtype if dtype is None else dtype
    checks.kernel_dtype("images", images.dtype)
    checks.kernel_dtype("dtype", dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    fills = checks.per_channel("fill", fill, channels)
    centre = checks.per_channel("mean", 0.0 if mean is None else mean, channels)
    scale = checks.scale(1.0 if std is None else std, channels)
    shape = (batch * count, channels, height, width)
    out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)
    if out.numel():
        dense = _dense(images, torch.contiguous_format)
        call = Occlude(dense, windows, first, count, fill=fills, mean=centre, std=scale)
        choose(backend, images).occlude(out, call)
    return out


@torch.no_grad()
def window_mean(
    scores: Tensor,
    height: int,
    width: int,
    *,
    patch: Pair,
    stride: Pair | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mean score of the windows that cover each pixel: METHOD.md, equation 2.

    Parameters
    ----------
    scores
        (B, rows, cols) or (B, rows·cols) floating, one score a window.
    height, width
        Size of the images in pixels.
    patch, stride
        Size and distance of the windows, an int or (rows, columns); `stride` defaults to `patch`.
    backend
        "auto", "reference", "native" or "triton".

    Returns
    -------
    Tensor
        (B, H, W) in the dtype of `scores`.

    Raises
    ------
    ValueError, TypeError
        If the number of scores is not that of the windows, or they are not floating.
    RuntimeError
        If `backend` is missing from this installation.
    """
    windows = Windows.over(height, width, patch, stride)
    checks.kernel_dtype("scores", scores.dtype)
    if scores.shape[1:] not in ((windows.rows, windows.cols), (len(windows),)):
        raise ValueError(
            f"scores: expected shape (B, {windows.rows}, {windows.cols}), "
            f"found {tuple(scores.shape)}"
        )
    given = scores.flatten(1).to(compute_dtype(scores)).contiguous()
    out = given.new_empty((len(scores), height, width))
    if out.numel():
        choose(backend, scores).window_mean(out, given, windows)
    return out.to(scores.dtype)
