"""The operators: usable eagerly and under ``torch.compile(fullgraph=True)``.

They are registered with PyTorch as ``torch.ops.sdsgsm_fast``; none is differentiable.

Backends: "reference" (plain PyTorch), "native" (csrc: CPU, and CUDA where nvcc was found), "triton"
(CUDA, or CPU under Triton's interpreter; no float64), and "auto": the kernels of the tensor's
device where they are there and take it, on CUDA Triton's first; else the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..common import checks
from ..common.numerics import Setting, compute_dtype
from ..common.windows import Pair, as_pair
from . import operators
from .backends import NAMES

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
    arguments = _arguments(
        adv, images, grad, domain, momentum, active, eps, alpha, background, gain, decay, bounds,
        sign, normalize, backend,
    )  # fmt: skip
    out, kept = operators.update(*arguments)
    return out, None if momentum is None and not decay > 0 else kept


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

    They must overlap neither each other nor another argument, and be no part of a graph.
    """
    if momentum is None and decay > 0:
        momentum = torch.zeros_like(adv, dtype=compute_dtype(images))
    arguments = _arguments(
        adv, images, grad, domain, momentum, active, eps, alpha, background, gain, decay, bounds,
        sign, normalize, backend,
    )  # fmt: skip
    operators.update_(*arguments)
    return adv, momentum


def _arguments(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    momentum: Tensor | None,
    active: Tensor | None,
    eps: Setting,
    alpha: Setting,
    background: Setting,
    gain: float,
    decay: float,
    bounds: tuple[float, float],
    sign: float,
    normalize: str,
    backend: str,
) -> tuple[Any, ...]:
    """Arguments of `update` as its schema has them, numbers checked.

    This runs at every step, so functions are called only for what is not a plain float.
    """
    if not (isinstance(adv, Tensor) and isinstance(images, Tensor) and isinstance(grad, Tensor)):
        for name, value in (("adv", adv), ("images", images), ("grad", grad)):
            checks.tensor(name, value)
    each_eps, eps = _setting("eps", eps)
    each_alpha, alpha = _setting("alpha", alpha)
    each_background, background = _setting("background", background)
    if background > 1:
        raise ValueError(f"background: expected a number from 0 to 1, found {background!r}")
    if not (type(gain) is float and gain > 0):
        checks.number("gain", gain, "a number above 0, or infinity", lambda v: v > 0)
    if not (type(decay) is float and 0 <= decay <= checks.FLOAT32_MAX):
        checks.number("decay", decay, "a finite number of at least 0", checks.is_size)
    if sign not in (1, -1):
        checks.number("sign", sign, "1 or -1", lambda v: v in (1, -1))
    if normalize not in NORMALIZE or backend not in NAMES:
        checks.choice("normalize", normalize, NORMALIZE)
        checks.choice("backend", backend, NAMES)
    lo, hi = checks.pixel_bounds(bounds)
    return (
        adv, images, grad, domain, momentum, active, each_eps, each_alpha, each_background,
        (eps, alpha, background, gain, decay, lo, hi, sign), normalize, backend,
    )  # fmt: skip


def _setting(name: str, value: Setting) -> tuple[Tensor | None, float]:
    """Split a setting; a tensor's values go unchecked, since that would cost a device's wait."""
    if type(value) is float and 0 <= value <= checks.FLOAT32_MAX:
        return None, value
    if isinstance(value, Tensor):
        return value, 0.0
    checks.number(name, value, "a finite number of at least 0", checks.is_size)
    return None, float(value)


def _float64(value: checks.PerChannel) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


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
    checks.integer("first", first, 0)
    checks.integer("count", count, 0)
    checks.choice("backend", backend, NAMES)
    p = as_pair("patch", patch)
    s = p if stride is None else as_pair("stride", stride)
    fills = _float64(fill)
    centre = _float64(0.0 if mean is None else mean)
    scale = _float64(1.0 if std is None else std)
    kind = images.dtype if dtype is None else dtype
    copies: Tensor = operators.occlude(images, first, count, p, s, fills, centre, scale, kind, channels_last, backend)
    return copies


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
    checks.tensor("scores", scores)
    checks.choice("backend", backend, NAMES)
    p = as_pair("patch", patch)
    s = p if stride is None else as_pair("stride", stride)
    means: Tensor = operators.window_mean(scores, height, width, p, s, backend)
    return means


def paste(
    clean: Tensor,
    crops: Tensor | None,
    image: Tensor,
    row: Tensor,
    col: Tensor,
    rows: Tensor,
    cols: Tensor,
    *,
    height: int,
    width: int,
    pad: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Tiles of clean maps with crops pasted in: one step of incremental occlusion.

    Parameters
    ----------
    clean
        (B, C, H, W) floating, the maps without occlusion.
    crops
        (n, C, h, w), or (1, C, h, w) for one of all tiles, of the dtype of `clean`; None to paste
        nothing.
    image, row, col
        (n,) int32: the clean map of each tile, and its entries of `rows` and `cols`. Their values
        are trusted.
    rows, cols
        (n_rows, 3) and (n_cols, 3) int32: a tile begins at the first number, which may lie beyond
        the border; the second to the third, excluded, are what the crop covers, from its own
        beginning on. All three count from the map's beginning.
    height, width
        Size of the tiles.
    pad
        Value beyond the border.
    backend
        "auto", "reference", "native" or "triton".

    Returns
    -------
    Tensor
        (n, C, height, width), channels_last.

    Raises
    ------
    ValueError, TypeError
        If an argument has a wrong shape, dtype or device.
    RuntimeError
        If `backend` is missing from this installation.
    """
    checks.tensor("clean", clean)
    checks.choice("backend", backend, NAMES)
    tiles: Tensor = operators.paste(clean, crops, image, row, col, rows, cols, height, width, float(pad), backend)
    return tiles
