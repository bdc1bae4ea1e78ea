"""The embedded data and classifier are what the README says of them."""

from __future__ import annotations

import pytest
import torch

from sdsgsm_fast.cli.demo import load_scene
from sdsgsm_fast.data.photonet import WEIGHTS, load_photonet
from sdsgsm_fast.data.photos import CLASS_NAMES, PHOTOS, _photographs, _territory, photo_crops


def test_crops_are_balanced_8bit_and_reproducible() -> None:
    images, labels = photo_crops("test", 3, seed=4)
    assert images.shape == (30, 3, 32, 32)
    assert torch.bincount(labels).tolist() == [3] * len(PHOTOS)
    levels = images.double() * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert images.min() >= 0
    assert images.max() <= 1
    again, _ = photo_crops("test", 3, seed=4)
    assert torch.equal(images, again)
    other, _ = photo_crops("test", 3, seed=5)
    assert not torch.equal(images, other)


def test_training_and_test_crops_share_no_pixel() -> None:
    """Every square crop of each photograph is test, train or neither; the pixels never overlap."""
    for photo in _photographs():
        height, width = photo.shape[1:]
        seen = {split: torch.zeros(height, width, dtype=torch.bool) for split in ("train", "test")}
        for side in (32, 48, 64):
            for top in range(0, height - side + 1, 5):
                for left in range(0, width - side + 1, 5):
                    split = _territory(top, left, side, height, width)
                    if split:
                        seen[split][top : top + side, left : left + side] = True
        assert seen["test"].any()
        assert seen["train"].any()
        assert not (seen["test"] & seen["train"]).any()


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', found 'val'"):
        photo_crops("val", 1)
    with pytest.raises(ValueError, match="per_class: must be at least 0, found -1"):
        photo_crops("test", -1)
    images, labels = photo_crops("train", 0)
    assert images.shape == (0, 3, 32, 32)
    assert len(labels) == 0


def test_photonet_is_small_and_right() -> None:
    net = load_photonet()
    assert not net.training
    assert sum(p.numel() for p in net.parameters()) <= 250_000
    assert WEIGHTS.stat().st_size <= 1_000_000
    scene = load_scene(50)
    assert scene.accuracy() >= 0.9
    assert len(CLASS_NAMES) == len(PHOTOS) == scene.probabilities(scene.images).shape[1]
