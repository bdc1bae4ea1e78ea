"""Data-set runs: what is in a set, that it is the same however often it was stopped, and what verify finds."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import convnet
from torch.utils.data import DataLoader

from sdsgsm_fast import BIM, DIFGSM, PGD, SDSGSM, MinimalSDSGSM, Occlusion, images, runs
from sdsgsm_fast.common import files as durable
from sdsgsm_fast.data.images import ArraySet
from sdsgsm_fast.model.classifier import Classifier
from sdsgsm_fast.runs import attacking, files, run

COUNT, SIZE = 23, 5


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return convnet(spread=3.0).eval()


@pytest.fixture(scope="module")
def data(net: Any) -> ArraySet:
    generator = torch.Generator().manual_seed(1)
    pixels = (torch.rand(COUNT, 3, 16, 16, generator=generator) * 255).to(torch.uint8)
    labels = net(pixels.float() / 255).argmax(1)
    labels[3] = (labels[3] + 1) % 4  # one that is skipped
    return ArraySet("arrays", pixels.numpy(), labels.numpy(), classes=("a", "b", "c", "d"))


def other_net() -> Any:
    torch.manual_seed(99)
    return convnet(spread=3.0).eval()


def attacked(net: Any, data: ArraySet, out: Path, **settings: Any) -> dict[str, Any]:
    attack = SDSGSM(net, **{"eps": 8 / 255, "steps": 6, **settings})
    return runs.attack_dataset(attack, data, out, shard_size=SIZE)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def test_a_set_holds_what_the_attack_gives(net: Any, data: ArraySet, tmp_path: Path) -> None:
    summary = attacked(net, data, tmp_path)
    pixels, labels = data.rows(range(COUNT))
    expected = SDSGSM(net, eps=8 / 255, steps=6).run(pixels, labels)
    found = runs.load(tmp_path)
    assert len(found) == COUNT
    adv = torch.stack([image for image, _ in found])
    torch.testing.assert_close(adv, expected.adv, atol=1e-5, rtol=0)
    assert [label for _, label in found] == labels.tolist()
    for name in ("success", "skipped", "updates"):
        assert torch.equal(found.columns[name], getattr(expected, name)), name
    assert torch.equal(found.columns["reached"], net(adv).argmax(1))
    assert torch.equal(found.columns["index"], torch.arange(COUNT))
    figures = expected.metrics()
    assert summary["attacked"] == COUNT - 1 == figures.attacked
    for name, value in (("success_rate", figures.success_rate), ("l2", figures.l2), ("ssim", figures.ssim),
                        ("updates", figures.updates), ("forward", figures.forwards)):  # fmt: skip
        assert summary[name] == pytest.approx(value, rel=1e-3), name
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    batches = list(DataLoader(found, batch_size=8, num_workers=2))
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), adv)
    assert sorted(contents(tmp_path)) == sorted(
        ["SHA256SUMS", "manifest.json", "summary.csv", "summary.json", *(f"adv-{i:05d}.safetensors" for i in range(5))]
    )
    assert subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path).returncode == 0


def test_images_in_8_bits_are_stored_as_bytes_and_judged_on_them(net: Any, data: ArraySet, tmp_path: Path) -> None:
    attack = MinimalSDSGSM(net, eps=16 / 255, levels=256)
    runs.attack_dataset(attack, data, tmp_path, shard_size=SIZE, keep=("domain",))
    found = runs.load(tmp_path)
    shard = found.read(0)
    assert shard["images"].dtype == torch.float32
    assert shard["domain"].shape == (SIZE, 16, 16)
    expected = attack.run(*data.rows(range(SIZE)))
    assert torch.equal(shard["images"], expected.adv)
    report = runs.verify(tmp_path, classifier=Classifier(net), data=data)
    assert report.sound, report.problems


def test_a_stopped_run_goes_on_and_ends_the_same(
    net: Any, data: ArraySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked(net, data, tmp_path / "whole")
    made = run._make

    def interrupted(*given: Any) -> Any:
        if given[4].number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return made(*given)

    monkeypatch.setattr(run, "_make", interrupted)
    with pytest.raises(runs.RunStopped):
        attacked(net, data, tmp_path / "stopped")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(list((tmp_path / "stopped").glob("adv-*.safetensors"))) == 3, "the shard under way is finished"
    assert not runs.verify(tmp_path / "stopped").sound
    again: list[int] = []
    monkeypatch.setattr(run, "_make", lambda *given: (again.append(given[4].number), made(*given))[1])
    attacked(net, data, tmp_path / "stopped")
    assert again == [3, 4]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone", "half written"])
def test_damaged_shards_are_made_again(harm: str, net: Any, data: ArraySet, tmp_path: Path) -> None:
    attacked(net, data, tmp_path)
    before = contents(tmp_path)
    path = tmp_path / "adv-00001.safetensors"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    elif harm == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(bytes(content))
    elif harm == "gone":
        path.unlink()
    else:
        path.rename(tmp_path / f".{path.name}.123.tmp")
    assert not runs.verify(tmp_path).sound
    attacked(net, data, tmp_path)
    assert contents(tmp_path) == before
    assert runs.verify(tmp_path).sound


def test_another_set_is_refused_with_what_differs(net: Any, data: ArraySet, tmp_path: Path) -> None:
    attacked(net, data, tmp_path)
    before = contents(tmp_path)
    other = other_net()
    fewer = ArraySet("arrays", data.images[::-1].copy(), data.labels[::-1].copy())
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: attacked(net, data, tmp_path, eps=0.02), r"another set: .*eps: 0\.031\d* before, 0\.02 now"),
        (lambda: attacked(net, data, tmp_path, domain=Occlusion(patch=8)), "domain: .*'patch': 4.* before"),
        (lambda: attacked(other, data, tmp_path), "model: Sequential before, Sequential now, with another content"),
        (lambda: attacked(net, fewer, tmp_path), "data: arrays before, arrays now, with another content"),
        (lambda: runs.attack_dataset(SDSGSM(net, eps=8 / 255, steps=6), data, tmp_path, shard_size=4),
         "shard size: 5 before, 4 now"),
        (lambda: runs.attack_dataset(SDSGSM(net, eps=8 / 255, steps=6), data, tmp_path, shard_size=SIZE, limit=7),
         "images: 23 before, 7 now"),
    ]  # fmt: skip
    for start, message in cases:
        with pytest.raises(ValueError, match=message):
            start()
    assert contents(tmp_path) == before


def test_folders_that_are_no_set_are_left_alone(net: Any, data: ArraySet, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected an empty folder or one with manifest\.json, found notes\.txt"):
        attacked(net, data, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"format": 1, "kind": "att')
    with pytest.raises(ValueError, match=r"manifest\.json: damaged"):
        attacked(net, data, broken)
    with pytest.raises(ValueError, match="damaged"):
        runs.load(broken)


def test_two_runs_do_not_write_into_one_folder(net: Any, data: ArraySet, tmp_path: Path) -> None:
    with files.locked(tmp_path), pytest.raises(ValueError, match="another run is writing here"):
        attacked(net, data, tmp_path)
    attacked(net, data, tmp_path)


def test_settings_that_cannot_be_written_down(net: Any, data: ArraySet, tmp_path: Path) -> None:
    for attack, message in (
        (SDSGSM(net, eps=torch.full((COUNT,), 0.03)), "eps: a run takes numbers"),
        (SDSGSM(net, domain=lambda *given: None), "domain: a run takes numbers"),
        (SDSGSM(net, bounds=(-1.0, 1.0)), r"bounds: images of a data set lie in \[0, 1\]"),
        (PGD(net), "seed: a run that draws random numbers needs one"),
        (DIFGSM(net), "seed: a run that draws"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.attack_dataset(attack, data, tmp_path)
    assert attacking.settings_of(BIM(net))["gain"] == "inf"
    assert attacking.settings_of(DIFGSM(net, seed=3))["gradient"] == [{"kind": "Diversity", "p": 0.5, "rate": 0.9}]


def test_random_starts_are_drawn_for_places_in_the_data(net: Any, data: ArraySet, tmp_path: Path) -> None:
    attack = PGD(net, eps=8 / 255, steps=4, seed=5)
    for size in (4, 9):
        runs.attack_dataset(attack, data, tmp_path / str(size), shard_size=size)
    a, b = (torch.stack([x for x, _ in runs.load(tmp_path / str(size))]) for size in (4, 9))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_limit_takes_images_of_the_whole_data_set(net: Any, data: ArraySet, tmp_path: Path) -> None:
    attack = BIM(net, steps=2)
    runs.attack_dataset(attack, data, tmp_path, shard_size=3, limit=7)
    found = runs.load(tmp_path)
    assert found.columns["index"].tolist() == [0, 3, 6, 9, 13, 16, 19]
    assert found.columns["labels"].tolist() == data.labels[[0, 3, 6, 9, 13, 16, 19]].tolist()
    assert runs.verify(tmp_path, classifier=Classifier(net), data=data).sound


def test_verify_finds_every_byte(net: Any, data: ArraySet, tmp_path: Path) -> None:
    """A thousand changes of one byte anywhere in the set."""
    small = ArraySet("arrays", data.images[:4], data.labels[:4])
    runs.attack_dataset(BIM(net, steps=2), small, tmp_path, shard_size=2)
    assert runs.verify(tmp_path).sound
    draw = random.Random(0)
    paths = [p for p in tmp_path.iterdir() if p.name != ".lock"]
    sizes = [p.stat().st_size for p in paths]
    for _ in range(1000):
        path = draw.choices(paths, sizes)[0] if draw.random() < 0.5 else draw.choice(paths)
        whole = path.read_bytes()
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ draw.randrange(1, 256)]) + whole[at + 1 :])
        assert not runs.verify(tmp_path).sound, (path.name, at)
        path.write_bytes(whole)
    assert runs.verify(tmp_path).sound


def test_verify_judges_again(net: Any, data: ArraySet, tmp_path: Path) -> None:
    attacked(net, data, tmp_path)
    report = runs.verify(tmp_path, classifier=Classifier(net), data=data)
    assert report.sound
    assert len(report.checked) == 4
    other = Classifier(other_net())
    assert "model: not the one" in runs.verify(tmp_path, classifier=other).problems[0]
    changed = ArraySet("arrays", data.images, (data.labels + 1) % 4)
    assert "data: not the images" in runs.verify(tmp_path, data=changed).problems[0]
    assert "holds no manifest" in runs.verify(tmp_path / "nowhere").problems[0]


def test_a_full_disk_and_a_folder_without_permission(
    net: Any, data: ArraySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked(net, data, tmp_path / "whole")
    write, written = durable.os.fsync, []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) == 9:
            raise OSError(28, "No space left on device")
        write(handle)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            attacked(net, data, tmp_path / "full")
    assert not list((tmp_path / "full").glob(".*.tmp")), "nothing half-written stays"
    attacked(net, data, tmp_path / "full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_digests_tell_models_and_data_apart(net: Any, data: ArraySet, tmp_path: Path) -> None:
    digest = run.digests.model_digest
    assert digest(net) == digest(net)
    other = other_net()
    other.load_state_dict(net.state_dict())
    assert digest(other) == digest(net)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert digest(other) != digest(net)
    assert len(digest(lambda x: x)) == 64
    folder = tmp_path / "folder" / "a"
    folder.mkdir(parents=True)
    from PIL import Image

    for i in range(2):
        Image.fromarray(np.full((8, 8, 3), 40 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    first = run.digests.data_digest(images.load(tmp_path / "folder"))
    (tmp_path / "folder").rename(tmp_path / "moved")
    assert run.digests.data_digest(images.load(tmp_path / "moved")) == first
    (tmp_path / "moved" / "a" / "1.png").rename(tmp_path / "moved" / "a" / "2.png")
    assert run.digests.data_digest(images.load(tmp_path / "moved")) != first


def test_means_that_are_none(net: Any, tmp_path: Path) -> None:
    """Images smaller than SSIM's window, all of them skipped."""
    pixels = torch.rand(3, 3, 4, 4)

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] - torch.tensor([0.0, 10.0])

    tiny = ArraySet("tiny", (pixels * 255).to(torch.uint8).numpy(), np.ones(3, dtype=np.int64))
    summary = runs.attack_dataset(BIM(model, steps=2), tiny, tmp_path)
    assert summary["attacked"] == 0
    assert summary["l2"] is summary["ssim"] is summary["success_rate"] is None
    assert not math.isnan(summary["images"])
    assert runs.verify(tmp_path, classifier=Classifier(model), data=tiny).sound
