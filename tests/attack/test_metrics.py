"""Distances and SSIM against scikit-image and hand-made numbers."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sdsgsm_fast import metrics


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (2, 1, 7, 7), (2, 3, 33, 31)])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
def test_ssim_and_psnr_equal_scikit_image(shape: tuple[int, ...], bounds: tuple[float, float]) -> None:
    span = bounds[1] - bounds[0]
    images = torch.rand(shape) * span + bounds[0]
    adv = (images + 0.05 * span * torch.randn(shape)).clamp(*bounds)
    ssim, psnr = metrics.ssim(adv, images, bounds), metrics.psnr(adv, images, bounds)
    for i in range(shape[0]):
        a, x = (t[i].double().numpy() for t in (adv, images))
        assert float(ssim[i]) == pytest.approx(structural_similarity(x, a, data_range=span, channel_axis=0), abs=1e-9)
        assert float(psnr[i]) == pytest.approx(peak_signal_noise_ratio(x, a, data_range=span), abs=1e-9)


def test_norms() -> None:
    images = torch.zeros(2, 1, 2, 2)
    adv = torch.tensor([[[[3.0, 0], [0, -4.0]]], [[[0, 0], [0, 0]]]])
    assert metrics.l0(adv, images).tolist() == [2, 0]
    assert metrics.l1(adv, images).tolist() == [7, 0]
    assert metrics.l2(adv, images).tolist() == [5, 0]
    assert metrics.linf(adv, images).tolist() == [4, 0]
    assert math.isinf(metrics.psnr(adv, images)[1])


def test_8bit_rounding_is_what_a_file_holds() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    images = (pixels.float() / 255).view(1, 1, 16, 16)
    assert torch.equal(metrics.to_8bit(images), images)
    assert torch.equal(metrics.to_8bit(images + 0.4 / 255), images)
    signed = metrics.to_8bit(images * 2 - 1 + 0.3 / 255, (-1.0, 1.0))
    assert torch.allclose(signed, images * 2 - 1, atol=1e-6)
    levels = metrics.to_8bit(torch.rand(1000)).double() * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_small_images_have_no_ssim() -> None:
    small = torch.rand(2, 3, 6, 9)
    with pytest.raises(ValueError, match="SSIM needs at least 7×7 pixels"):
        metrics.ssim(small, small)
    assert math.isnan(metrics.mean_ssim(small, small, (0.0, 1.0)))
