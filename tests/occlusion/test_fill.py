"""What zeroed-out pixels become: values, images, the image's mean, the image blurred."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from captum.attr import Occlusion as Captum
from nets import convnet, predicted
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from sdsgsm_fast import SDSGSM, Occlusion, occlusion_map, occlusion_scores
from sdsgsm_fast.occlusion.fill import BLUR, constants

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 18, 22)


def by_hand(net: nn.Module, images: Tensor, filling: Tensor, patch: int, stride: int) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def probability(x: Tensor) -> Tensor:
        return net((x - mean) / std).softmax(1)

    with torch.no_grad():
        before = probability(images)
        classes = before.argmax(1)
        out = []
        for top in range(0, 18 - patch + stride, stride):
            for left in range(0, 22 - patch + stride, stride):
                x = images.clone()
                window = (..., slice(top, top + patch), slice(left, left + patch))
                x[window] = filling[window]
                out.append((before - probability(x)).gather(1, classes[:, None])[:, 0])
    return torch.stack(out, 1)


@pytest.mark.parametrize("method", ["auto", "dense", "incremental"])
@pytest.mark.parametrize("kind", ["image", "batch", "mean", "blur", "channels"])
@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_fills_by_hand(name: str, kind: str, method: str, images: Tensor) -> None:
    net = (convnet() if name == "convnet" else zoo.residual()).eval()
    fills: dict[str, Any] = {
        "image": torch.rand(3, 18, 22), "batch": torch.rand(3, 3, 18, 22), "mean": "mean", "blur": "blur",
        "channels": (0.1, 0.2, 0.3),
    }  # fmt: skip
    fill = fills[kind]
    filling = constants(fill, images)
    if not isinstance(filling, Tensor):
        filling = torch.tensor(filling)[None, :, None, None].expand_as(images)
    for patch, stride in ((5, 3), (4, 4)):
        expected = by_hand(net, images, filling, patch, stride)
        for backend in ("native", "reference"):
            found = occlusion_scores(net, images, patch=patch, stride=stride, fill=fill, mean=MEAN, std=STD,
                                     method=method, backend=backend)  # fmt: skip
            assert torch.allclose(found.flatten(1), expected, atol=2e-6)
    assert expected.abs().max() > 1e-3


def test_an_image_as_fill_is_captums_baseline(images: Tensor) -> None:
    net = convnet()
    classes = predicted(net, images)
    baseline = torch.rand(1, 3, 18, 22)
    expected = Captum(net).attribute(images, (3, 6, 6), (3, 3, 3), baselines=baseline, target=classes)
    found = occlusion_map(net, images, classes, patch=6, stride=3, score="logit", fill=baseline)
    assert torch.allclose(found, expected[:, 0], atol=3e-5)


def test_mean_and_blur(images: Tensor) -> None:
    mean = constants("mean", images)
    assert torch.allclose(mean, images.mean((2, 3), keepdim=True).expand_as(images))
    sigma = BLUR * 22
    expected = gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, 3, 3))
    assert np.allclose(constants("blur", images), expected, atol=1e-5)
    flat = torch.full((1, 3, 8, 8), 0.3)
    for fill in ("mean", "blur"):
        assert torch.allclose(constants(fill, flat), flat, atol=1e-6)
        assert occlusion_map(convnet(), flat, fill=fill).abs().max() < 1e-5, "nothing is hidden"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_domains_take_every_fill(precision: str, images: Tensor) -> None:
    net = convnet()
    labels = predicted(net, images)
    for fill in ("mean", "blur", torch.rand(3, 18, 22), torch.rand(3, 3, 18, 22)):
        result = SDSGSM(net, domain=Occlusion(fill=fill), precision=precision).run(images, labels)
        assert result.scores is not None
        expected = occlusion_scores(net, images, labels, fill=fill)
        assert torch.allclose(result.scores, expected, atol=1e-5 if precision == "float32" else 0.05)


def test_an_image_of_the_batch_each_has_its_own(images: Tensor) -> None:
    net = convnet()
    filling = torch.rand(3, 3, 18, 22)
    whole = occlusion_scores(net, images, fill=filling)
    for i in range(3):
        alone = occlusion_scores(net, images[i : i + 1], fill=filling[i])
        assert torch.allclose(alone, whole[i : i + 1], atol=1e-6)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        ("median", "fill: expected one of mean, blur, found 'median'"),
        (torch.rand(3, 5, 5), r"fill: expected a value, one a channel, or shape \(3, 18, 22\)"),
        (torch.rand(2, 3, 18, 22), "fill: expected a value"),
        (torch.full((3, 18, 22), torch.nan), "fill: expected finite values"),
        (torch.zeros(3, 18, 22, dtype=torch.int64), "fill: expected a floating dtype"),
        ((0.1, 0.2), "fill: expected one value or one for each of 3 channels"),
    ],
)  # fmt: skip
def test_bad_fills(fill: Any, message: str, images: Tensor) -> None:
    for call in (
        lambda: occlusion_map(convnet(), images, fill=fill),
        lambda: SDSGSM(convnet(), domain=Occlusion(fill=fill))(images, torch.zeros(3, dtype=torch.int64)),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_a_stream_takes_no_fill_of_one_batch() -> None:
    with pytest.raises(ValueError, match="fill: a stream takes one fill for all"):
        SDSGSM(convnet(), domain=Occlusion(fill=torch.rand(2, 3, 8, 8))).stream([])


def test_blur_is_of_the_image_not_of_the_batch(images: Tensor) -> None:
    together = constants("blur", images)
    assert torch.allclose(together[1:2], constants("blur", images[1:2]), atol=1e-7)
    assert F.mse_loss(together, images) > 1e-3
