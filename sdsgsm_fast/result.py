"""What an attack returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import metrics
from .model.classifier import Classifier

JUDGED_AT_ONCE = 256  # images of a pass


def fooled(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """Whether the predicted class is wrong, or is the target, (B,) bool."""
    predicted = logits.argmax(1)
    return predicted != labels if target is None else predicted == target


@dataclass(frozen=True)
class Judge:
    """The model's verdict, in its own precision, on versions of a batch's images."""

    classifier: Classifier
    labels: Tensor
    target: Tensor | None

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Whether `images` (n, C, H, W), the rows (n,) of the batch, fool the model: (n,) bool."""
        if not len(images):
            return torch.zeros(0, dtype=torch.bool, device=images.device)
        target = None if self.target is None else self.target[rows]
        with self.classifier.frozen():
            logits = torch.cat([self.classifier.logits(part) for part in torch.split(images, JUDGED_AT_ONCE)])
            return fooled(logits, self.labels[rows], target)


@dataclass(frozen=True)
class Passes:
    """Passes through the model that each image took, (B,) int64.

    An image costs a forward pass for each look at it and a backward pass for each gradient that was
    used for it; those of its domain are included.
    """

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, repr=False)
class AttackResult:
    """What an attack did to a batch of B images.

    Attributes
    ----------
    adv : Tensor
        (B, C, H, W) adversarial images in the dtype of the images; the clean image where skipped.
    success : Tensor
        (B,) bool: the model, in its own precision, is fooled by `adv` and was not before.
    skipped : Tensor
        (B,) bool: the model misclassified the clean image, which was therefore left alone.
    predicted : Tensor
        (B,) int64: the class that the model gives the clean image.
    updates : Tensor
        (B,) int64: steps taken, over all restarts.
    domain : Tensor
        (B, H, W) the domain m.
    scores : Tensor or None
        (B, rows, cols) occlusion scores S, where the domain came from `Occlusion`; of the skipped
        images too.
    rescored : Tensor or None
        (B,) int64 windows whose score was taken again in the model's own precision, where they
        were searched in bfloat16; 0 for an image that was not, since others had shown that it would
        not pay.
    passes : Passes
        Forward and backward passes of each image.
    index : Tensor
        (B,) int64: the images' places in their data set or stream.
    images : Tensor
        (B, C, H, W) the clean images: the caller's own tensor, not a copy.
    bounds : tuple of float
        (lo, hi) of the pixel values.
    judge : Judge
        Asks the model about other versions of the images.
    """

    adv: Tensor
    success: Tensor
    skipped: Tensor
    predicted: Tensor
    updates: Tensor
    domain: Tensor
    scores: Tensor | None
    rescored: Tensor | None
    passes: Passes
    index: Tensor
    images: Tensor
    bounds: tuple[float, float]
    judge: Judge

    def __repr__(self) -> str:
        """Say in a line what came out."""
        attacked = int((~self.skipped).sum())
        return (
            f"AttackResult({len(self.skipped)} images: {attacked} attacked, "
            f"{int(self.success.sum())} fooled, {len(self.skipped) - attacked} skipped as "
            f"misclassified before; adv {tuple(self.adv.shape)} {self.adv.dtype})"
        )

    def metrics(self) -> metrics.Metrics:
        """Success rates, distances and costs; a forward pass judges the images in 8 bits."""
        tried = (~self.skipped).nonzero().flatten()
        adv, images = self.adv[tried], self.images[tried]
        rounded = metrics.to_8bit(adv, self.bounds)
        return metrics.Metrics(
            images=len(self.skipped),
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
            success_rate_8bit=metrics.mean(self.judge(rounded, tried)),
            l2_8bit=metrics.mean(metrics.l2(rounded, images)),
            linf_8bit=metrics.mean(metrics.linf(rounded, images)),
            psnr_8bit=metrics.mean_psnr(rounded, images, self.bounds),
            ssim_8bit=metrics.mean_ssim(rounded, images, self.bounds),
            updates=metrics.mean(self.updates[tried]),
            forwards=metrics.mean(self.passes.forward[tried]),
            backwards=metrics.mean(self.passes.backward[tried]),
        )
