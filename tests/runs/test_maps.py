"""Occlusion maps of data sets, and images as PNG files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import convnet
from PIL import Image

from sdsgsm_fast import BIM, occlusion_map, occlusion_scores, runs
from sdsgsm_fast.data.images import ArraySet
from sdsgsm_fast.model.classifier import Classifier

COUNT, SIZE = 11, 4


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return convnet(spread=3.0).eval()


@pytest.fixture(scope="module")
def data(net: Any) -> ArraySet:
    generator = torch.Generator().manual_seed(1)
    pixels = (torch.rand(COUNT, 3, 16, 16, generator=generator) * 255).to(torch.uint8)
    labels = net(pixels.float() / 255).argmax(1)
    labels[3] = (labels[3] + 1) % 4
    return ArraySet("arrays", pixels.numpy(), labels.numpy())


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("target", ["label", "predicted"])
def test_a_set_holds_the_maps(target: str, net: Any, data: ArraySet, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patch": 4, "stride": 2, "score": "logit", "fill": (0.1, 0.2, 0.3)}
    summary = runs.occlude_dataset(net, data, tmp_path, target=target, shard_size=SIZE, keep=("scores",), **settings)
    pixels, labels = data.rows(range(COUNT))
    logits = net(pixels)
    classes = labels if target == "label" else logits.argmax(1)
    expected = occlusion_map(net, pixels, classes, **settings)
    found = runs.load(tmp_path)
    assert isinstance(found, runs.MapSet)
    torch.testing.assert_close(torch.stack([m for m, _ in found]), expected, atol=1e-5, rtol=0)
    assert [label for _, label in found] == labels.tolist()
    torch.testing.assert_close(
        torch.cat([found.read(k)["scores"] for k in range(3)]),
        occlusion_scores(net, pixels, classes, **settings), atol=1e-5, rtol=0,
    )  # fmt: skip
    assert torch.equal(found.columns["predicted"], logits.argmax(1))
    assert torch.equal(found.columns["explained"], classes)
    confidence = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found.columns["confidence"], confidence, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.columns["peak"], expected.amax((1, 2)), atol=1e-5, rtol=0)
    assert summary["right"] == COUNT - 1
    report = runs.verify(tmp_path, classifier=Classifier(net), data=data)
    assert report.sound, report.problems
    assert report.checked[-1] == "maps of Sequential: the first of each of 3 shards"


def test_maps_resume_and_are_refused_as_an_attack(net: Any, data: ArraySet, tmp_path: Path) -> None:
    runs.occlude_dataset(net, data, tmp_path, shard_size=SIZE)
    before = contents(tmp_path)
    (tmp_path / "map-00001.safetensors").unlink()
    runs.occlude_dataset(net, data, tmp_path, shard_size=SIZE)
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="another set: kind: occlusion before, attack now"):
        runs.attack_dataset(BIM(net), data, tmp_path, shard_size=SIZE)
    with pytest.raises(ValueError, match="patch: 4 before, 8 now"):
        runs.occlude_dataset(net, data, tmp_path, patch=8, shard_size=SIZE)
    with pytest.raises(ValueError, match="target: expected"):
        runs.occlude_dataset(net, data, tmp_path / "other", target="all")
    with pytest.raises(ValueError, match="fill: a run takes numbers"):
        runs.occlude_dataset(net, data, tmp_path / "other", fill=torch.zeros(3, 16, 16))


def test_verify_finds_other_maps(net: Any, data: ArraySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdsgsm_fast.runs import occluding

    with monkeypatch.context() as patch:
        patch.setattr(occluding, "occlusion_scores", lambda *given, **known: occlusion_scores(*given, **known) * 1.01)
        runs.occlude_dataset(net, data, tmp_path, shard_size=SIZE)
    problems = runs.verify(tmp_path, classifier=Classifier(net), data=data).problems
    assert problems == [f"map-{k:05d}.safetensors: its first map comes out otherwise now" for k in range(3)]


@pytest.mark.parametrize("channels", [3, 1])
def test_png_files_hold_what_was_judged(channels: int, data: ArraySet, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 256, 4))
    source = ArraySet("arrays", data.images[:, :channels].copy(), data.labels)
    attack = BIM(net, eps=16 / 255, levels=256)
    runs.attack_dataset(attack, source, tmp_path, shard_size=SIZE, limit=6, png=True)
    found = runs.load(tmp_path)
    names = [f"png-{k // SIZE:05d}/{place:08d}.png" for k, place in enumerate(found.columns["index"].tolist())]
    assert len(names) == 6
    for (image, _), name in zip(found, names, strict=True):
        read = torch.from_numpy(np.asarray(Image.open(tmp_path / name)).reshape(16, 16, channels).copy())
        assert torch.equal(read.permute(2, 0, 1).float() / 255, image)
    assert subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path).returncode == 0

    before = contents(tmp_path)
    (tmp_path / names[1]).write_bytes(before[names[1]][:-1])
    (tmp_path / names[5]).unlink()
    assert [p.partition(":")[0] for p in runs.verify(tmp_path).problems] == [names[1], names[5]]
    runs.attack_dataset(attack, source, tmp_path, shard_size=SIZE, limit=6, png=True)
    assert contents(tmp_path) == before


def test_png_files_take_levels_and_channels(net: Any, data: ArraySet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="png: expected an attack with levels=256, found levels=None"):
        runs.attack_dataset(BIM(net), data, tmp_path, png=True)
    two = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(512, 5))
    source = ArraySet("two", data.images[:, :2].copy(), data.labels)
    with pytest.raises(ValueError, match="png: expected images of one channel or three, found 2"):
        runs.attack_dataset(BIM(two, levels=256), source, tmp_path, png=True)
