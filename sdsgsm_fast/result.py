"""What an attack returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import metrics


@dataclass(frozen=True)
class Passes:
    """Passes through the model that each image took part in, (B,) int64 on the CPU."""

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to a batch of B images.

    Attributes
    ----------
    adv : Tensor
        (B, C, H, W) adversarial images in the dtype of the images; the clean image where skipped.
    success : Tensor
        (B,) bool: the model was fooled (and had not been wrong before).
    skipped : Tensor
        (B,) bool: the model misclassified the clean image, which was therefore left alone.
    updates : Tensor
        (B,) int64: steps taken, over all restarts.
    domain : Tensor
        (B, H, W) the domain m.
    scores : Tensor or None
        (B, rows, cols) occlusion scores S, where the domain came from `Occlusion`.
    passes : Passes
        Forward and backward passes of each image, those of the domain included.
    images : Tensor
        (B, C, H, W) the clean images, as given.
    bounds : tuple of float
        (lo, hi) of the pixel values.
    fools : callable
        ``fools(images) -> (B,) bool``, the model's verdict on other versions of the adversarial
        images; used by `metrics` for the 8-bit figures.
    """

    adv: Tensor
    success: Tensor
    skipped: Tensor
    updates: Tensor
    domain: Tensor
    scores: Tensor | None
    passes: Passes
    images: Tensor
    bounds: tuple[float, float]
    fools: Callable[[Tensor], Tensor]

    def metrics(self) -> metrics.Metrics:
        """Success rates, distances and costs; one forward pass judges the 8-bit images."""
        tried = ~self.skipped
        adv, images = self.adv[tried], self.images[tried]
        rounded = metrics.to_8bit(adv, self.bounds)
        fooled_8bit = self.fools(metrics.to_8bit(self.adv, self.bounds))[tried]
        on_cpu = tried.cpu()
        return metrics.Metrics(
            images=len(tried),
            skipped=int(self.skipped.sum()),
            attacked=len(adv),
            success_rate=metrics.mean(self.success[tried]),
            error_rate=metrics.mean(self.success | self.skipped),
            l0=metrics.mean(metrics.l0(adv, images)),
            l1=metrics.mean(metrics.l1(adv, images)),
            l2=metrics.mean(metrics.l2(adv, images)),
            linf=metrics.mean(metrics.linf(adv, images)),
            psnr=metrics.mean_psnr(adv, images, self.bounds),
            ssim=metrics.mean_ssim(adv, images, self.bounds),
            success_rate_8bit=metrics.mean(fooled_8bit),
            l2_8bit=metrics.mean(metrics.l2(rounded, images)),
            linf_8bit=metrics.mean(metrics.linf(rounded, images)),
            psnr_8bit=metrics.mean_psnr(rounded, images, self.bounds),
            ssim_8bit=metrics.mean_ssim(rounded, images, self.bounds),
            updates=metrics.mean(self.updates[tried]),
            forwards=metrics.mean(self.passes.forward[on_cpu]),
            backwards=metrics.mean(self.passes.backward[on_cpu]),
        )
