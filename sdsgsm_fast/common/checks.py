"""Checks of arguments. Each raises one exception: the argument, what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FLOAT32_MAX = torch.finfo(torch.float32).max
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOLERANCE = 1e-6  # how far images may lie outside their bounds, as a share of the bounds' width

PerChannel = float | Sequence[float] | Tensor | npt.NDArray[np.floating]


def choice(name: str, value: str, options: Sequence[str]) -> None:
    """Require one of `options`."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(options)}, found {value!r}")


def is_size(value: float) -> bool:
    """Whether a number is at least 0 and finite, in float32 too."""
    return 0 <= value <= FLOAT32_MAX


def number(name: str, value: float, expected: str, valid: Callable[[float], bool]) -> None:
    """Require a real number for which `valid` holds."""
    # The exact types first: asking the abstract class costs ten times as much.
    real = type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))
    if not real or not valid(value):
        raise ValueError(f"{name}: expected {expected}, found {value!r}")


def integer(name: str, value: int, least: int) -> None:
    """Require an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, found {value!r}")


def pixel_bounds(value: tuple[float, float]) -> tuple[float, float]:
    """Require two finite numbers lo < hi."""
    try:
        lo, hi = value
        lo, hi = float(lo), float(hi)
    except (TypeError, ValueError):
        lo = hi = math.nan
    if not -math.inf < lo < hi < math.inf:
        raise ValueError(f"bounds: expected finite (lo, hi) with lo < hi, found {value!r}")
    return lo, hi


def kernel_dtype(name: str, dtype: torch.dtype) -> None:
    """Require one of the dtypes that the operators compute with."""
    if dtype not in KERNEL_DTYPES:
        raise TypeError(f"{name}: expected a floating dtype of 16, 32 or 64 bits, found {dtype}")


def writable(name: str, tensor: Tensor) -> None:
    """Require a tensor that is not expanded: its elements must not share memory."""
    shared = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    if shared:
        raise ValueError(f"{name}: an expanded tensor cannot be updated in place")


def per_image(name: str, value: float | Tensor, batch: int) -> None:
    """Require a finite number of at least 0, or a floating tensor (B,) of them."""
    if isinstance(value, Tensor):
        if value.shape != (batch,):
            found = tuple(value.shape)
            raise ValueError(f"{name}: expected a number or shape ({batch},), found shape {found}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, found {value.dtype}")
        if not bool((value.isfinite() & (value >= 0)).all()):
            raise ValueError(f"{name}: expected finite values of at least 0, found {value}")
    else:
        number(name, value, "a finite number of at least 0", is_size)


def tensor(name: str, value: object) -> None:
    """Require a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(value).__name__}")


def image_batch(name: str, images: Tensor) -> None:
    """Require a floating tensor (B, C, H, W)."""
    tensor(name, images)
    shape = images.shape
    if len(shape) != 4:
        raise ValueError(f"{name}: expected shape (B, C, H, W), found {tuple(shape)}")
    if not images.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating dtype, found {images.dtype}; convert with .float(), "
            "and divide by 255 unless bounds are (0, 255)"
        )
    if 0 in shape[1:] and shape[0]:
        raise ValueError(f"{name}: expected at least one value an image, found {tuple(shape)}")


def values_in_bounds(images: Tensor, bounds: tuple[float, float]) -> None:
    """Require finite images within `bounds`, up to float rounding."""
    if not images.numel():
        return
    low, high = (float(v) for v in images.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"images: expected finite values, found NaN or infinity {_where(images)}")
    lo, hi = bounds
    # Bounds that are no values of a 16-bit dtype round to its next one.
    rounding = torch.finfo(images.dtype).eps * max(abs(lo), abs(hi))
    slack = max(TOLERANCE * (hi - lo), rounding)
    if low >= lo - slack and high <= hi + slack:
        return
    hint = "divide by 255 or pass bounds=(0, 255)" if high > 2 else "pass the right bounds"
    if low < lo:
        hint = "give images before normalisation and pass mean and std, or pass the right bounds"
    raise ValueError(
        f"images: values must lie in bounds [{lo:g}, {hi:g}] (tolerance {TOLERANCE:g}), found {low:g}..{high:g}; {hint}"
    )


def _where(values: Tensor) -> str:
    return f"in {named(~values.flatten(1).isfinite().all(1))}"


def named(flags: Tensor) -> str:
    """Name the images of a (B,) bool mask, at most ten of them."""
    return _listed(flags.nonzero().flatten())


def _listed(places: Tensor) -> str:
    indices = places.tolist()
    more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
    return f"images {indices[:10]}{more}"


def finite_gradient(grad: Tensor, rows: Tensor | None = None, wanted: Tensor | None = None) -> None:
    """Require finite gradients (B, C, H, W), of those that are `wanted`, (B,) bool.

    `rows` are the images' places in their batch.
    """
    if bool(is_finite(grad)):
        return
    broken = ~torch.linalg.vector_norm(grad, torch.inf, dim=(1, 2, 3)).isfinite().cpu()
    broken = broken if wanted is None else broken & wanted.cpu()
    if bool(broken.any()):
        places = torch.arange(len(grad)) if rows is None else rows.cpu()
        raise ValueError(f"model: the gradient is not finite for {_listed(places[broken])}")


def is_finite(grad: Tensor) -> Tensor:
    """Whether all of a gradient is surely finite, a tensor without dimensions; cheaper than a look at each."""
    return grad.sum().isfinite()


def class_indices(name: str, labels: Tensor, images: Tensor, *, anywhere: bool = False) -> None:
    """Require an integer tensor (B,), unless `anywhere` on the images' device."""
    tensor(name, labels)
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name}: expected an integer dtype, found {labels.dtype}")
    if labels.shape != (len(images),):
        found = tuple(labels.shape)
        raise ValueError(f"{name}: expected shape ({len(images)},) as images, found {found}")
    if not anywhere:
        same_device(name, labels, images)


def image_index(index: Tensor, images: Tensor) -> None:
    """Require an integer tensor (B,) of values at least 0."""
    class_indices("index", index, images, anywhere=True)
    if index.numel() and int(index.min()) < 0:
        raise ValueError(f"index: expected values of at least 0, found {int(index.min())}")


def classes_in_range(name: str, labels: Tensor, classes: int) -> None:
    """Require 0 ≤ label < classes."""
    if not labels.numel():
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: expected 0..{classes - 1}, as the model has {classes} classes, found {low}..{high}")


def usable(name: str, device: torch.device | str) -> None:
    """Require a device that is there."""
    try:
        torch.empty(1, device=device).fill_(0)
    except Exception as error:  # of several kinds, by what is missing
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: cannot use {device!r} here: {reason}") from error


def same_device(name: str, tensor: Tensor, images: Tensor) -> None:
    """Require the images' device."""
    if tensor.device != images.device:
        raise ValueError(f"{name}: expected device {images.device} as images, found {tensor.device}")


def same_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Require a shape."""
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, found {tuple(tensor.shape)}")


def same_as_images(name: str, tensor: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Require a shape and a device, those of the images or derived from them."""
    if tensor.shape != shape or tensor.device != device:
        same_shape(name, tensor, shape)
        raise ValueError(f"{name}: expected device {device} as images, found {tensor.device}")


def domain_tensor(domain: Tensor, images: Tensor) -> None:
    """Require a floating domain (B, H, W) with values in [0, 1]."""
    if not isinstance(domain, Tensor):
        raise TypeError(f"domain: expected a tensor, found {type(domain).__name__}")
    if not domain.is_floating_point():
        raise TypeError(f"domain: expected a floating dtype, found {domain.dtype}; use .float()")
    same_device("domain", domain, images)
    same_shape("domain", domain, (len(images), *images.shape[2:]))
    if domain.numel() and not bool(((domain >= 0) & (domain <= 1)).all()):
        raise ValueError("domain: expected values in [0, 1]")


def per_channel(name: str, value: PerChannel, channels: int) -> tuple[float, ...]:
    """Return one finite value a channel from a number, a sequence, a tensor or an array."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = torch.as_tensor(value).detach().flatten().tolist()
    try:
        values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    except (TypeError, ValueError) as error:
        kind = "expected numbers, one or one a channel"
        raise TypeError(f"{name}: {kind}, found {value!r}") from error
    if len(values) not in (1, channels):
        raise ValueError(f"{name}: expected one value or one for each of {channels} channels, found {len(values)}")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{name}: expected finite values, found {values}")
    return tuple(values) * (channels if len(values) == 1 else 1)


def scale(std: PerChannel, channels: int) -> tuple[float, ...]:
    """Return `per_channel` of a standard deviation, which must be positive."""
    values = per_channel("std", std, channels)
    if not all(v > 0 for v in values):
        raise ValueError(f"std: expected positive values, found {list(values)}")
    return values
