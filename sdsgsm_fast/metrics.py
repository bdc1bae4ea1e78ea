"""Distances and quality of adversarial images: METHOD.md, section 5."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

Bounds = tuple[float, float]

SSIM_WINDOW = 7  # scikit-image's default, uniform


def l0(adv: Tensor, images: Tensor) -> Tensor:
    """Number of changed values (each channel counts), (B,)."""
    return (adv != images).flatten(1).sum(1)


def l1(adv: Tensor, images: Tensor) -> Tensor:
    """ℓ1 norm of adv − images, (B,) float64."""
    return _difference(adv, images).abs().sum(1)


def l2(adv: Tensor, images: Tensor) -> Tensor:
    """ℓ2 norm of adv − images, (B,) float64."""
    return _difference(adv, images).square().sum(1).sqrt()


def linf(adv: Tensor, images: Tensor) -> Tensor:
    """ℓ∞ norm of adv − images, (B,) float64."""
    return _difference(adv, images).abs().amax(1)


def _difference(adv: Tensor, images: Tensor) -> Tensor:
    return (adv.double() - images.double()).flatten(1)


def psnr(adv: Tensor, images: Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,) float64; infinite for equal images."""
    mse = _difference(adv, images).square().mean(1)
    return 10 * ((bounds[1] - bounds[0]) ** 2 / mse).log10()


def ssim(adv: Tensor, images: Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Structural similarity (Wang et al. 2004), (B,) float64.

    Equal to scikit-image's `structural_similarity` with ``data_range = hi − lo``, ``channel_axis``
    set and its defaults: uniform 7×7 windows, sample covariance, mean over channels.

    Raises
    ------
    ValueError
        If the images are smaller than 7×7.
    """
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"images: SSIM needs at least 7×7 pixels, found {tuple(images.shape)}")
    x, y = images.double(), adv.double()
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mx, my = _window_mean(x), _window_mean(y)
    vx = unbiased * (_window_mean(x * x) - mx * mx)
    vy = unbiased * (_window_mean(y * y) - my * my)
    cov = unbiased * (_window_mean(x * y) - mx * my)
    c1, c2 = ((k * (bounds[1] - bounds[0])) ** 2 for k in (0.01, 0.03))
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * cov + c2) / (vx + vy + c2)
    return (luminance * structure).mean((1, 2, 3))


def _window_mean(values: Tensor) -> Tensor:
    """Mean of each 7×7 window: rows first, then columns, a third of avg_pool2d's time on a CPU."""
    rows = values.unfold(2, SSIM_WINDOW, 1).sum(-1)
    return rows.unfold(3, SSIM_WINDOW, 1).sum(-1) / SSIM_WINDOW**2


def to_8bit(images: Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Round images to the 256 values that a saved 8-bit file can hold, in their own bounds."""
    lo, hi = bounds
    levels = ((images.double() - lo) / (hi - lo) * 255).round().clamp(0, 255)
    return (levels / 255 * (hi - lo) + lo).to(images.dtype)


@dataclass(frozen=True)
class Metrics:
    """Figures of an attack on a batch; distances are means over the attacked images.

    Attributes
    ----------
    images, skipped, attacked
        Numbers of images: all, misclassified before the attack, and the rest.
    success_rate
        Fooled images over attacked ones; NaN if none was attacked.
    error_rate
        Fooled or misclassified images over all.
    l0, l1, l2, linf, psnr, ssim
        Mean distances of adv − images; PSNR over changed images only, in dB; SSIM is NaN for
        images smaller than 7×7.
    success_rate_8bit, l2_8bit, linf_8bit, psnr_8bit, ssim_8bit
        The same after rounding the adversarial images to 8-bit pixels.
    updates, forwards, backwards
        Means over the attacked images: steps taken, passes through the model.
    """

    images: int
    skipped: int
    attacked: int
    success_rate: float
    error_rate: float
    l0: float
    l1: float
    l2: float
    linf: float
    psnr: float
    ssim: float
    success_rate_8bit: float
    l2_8bit: float
    linf_8bit: float
    psnr_8bit: float
    ssim_8bit: float
    updates: float
    forwards: float
    backwards: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name, ready for JSON."""
        return asdict(self)


def mean(values: Tensor) -> float:
    """Mean in float64; NaN of nothing."""
    return float(values.double().mean()) if values.numel() else math.nan


def mean_psnr(adv: Tensor, images: Tensor, bounds: Bounds) -> float:
    """Mean PSNR of the changed images, in dB; NaN if none changed."""
    values = psnr(adv, images, bounds)
    return mean(values[values.isfinite()])


def mean_ssim(adv: Tensor, images: Tensor, bounds: Bounds) -> float:
    """Mean SSIM; NaN of nothing and for images smaller than 7×7."""
    if min(images.shape[2:]) < SSIM_WINDOW or not len(images):
        return math.nan
    # In slices: the float64 intermediates are twelve times the size of the images.
    starts = range(0, len(images), 256)
    return mean(torch.cat([ssim(adv[i : i + 256], images[i : i + 256], bounds) for i in starts]))
