"""The command `sdsgsm compare`: its table, files and figures; what is wrong ends in one line."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from sdsgsm_fast import images as sources
from sdsgsm_fast import models
from sdsgsm_fast.cli import compare as runs
from sdsgsm_fast.cli.main import app, main
from sdsgsm_fast.cli.rivals import Rival
from sdsgsm_fast.cli.tables import COMPARE, Row, csv_text
from sdsgsm_fast.data.photonet import MEAN, STD, load_photonet
from sdsgsm_fast.model.classifier import Classifier

FACTORY = """
import torch.nn as nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 3))
    net.mean, net.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return net
"""


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_the_default_subject(tmp_path: Path) -> None:
    chosen = ["BIM", "SD-SGSM", "MinimalSDSGSM, 8 bits"]
    options = [part for name in chosen for part in ("--attack", name)]
    output = run("--limit", 20, "--steps", 5, "--curve", "2", *options, "--out", tmp_path)
    assert "photos on 20 of photos: 320 images, 10 classes: clean accuracy" in output
    assert "normalisation from the model's source: mean (0.5, 0.5, 0.5)" in output
    content = json.loads((tmp_path / "table.json").read_text())
    assert [row["attack"] for row in content["rows"]] == chosen
    assert [row["settings"]["eps"] * 255 for row in content["curves"]] == pytest.approx([2.0] * 3)
    assert content["settings"]["eps"] == pytest.approx(8 / 255)
    assert content["rows"][2]["success_rate"] == content["rows"][2]["success_rate_8bit"]
    assert content["rows"][2]["l2"] < content["rows"][0]["l2"]
    for row in content["rows"]:
        assert row["attack"] in output
        assert f"{row['l2']:.3f}" in output
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0] == "| " + " | ".join(COMPARE) + " |"
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [line["attack"] for line in lines] == chosen
    assert float(lines[0]["l2"]) == content["rows"][0]["l2"]
    for name in ("success-l2.png", "success-ssim.png", "l2-passes.png"):
        with Image.open(tmp_path / name) as figure:
            assert figure.width > 800
            assert len(np.unique(np.asarray(figure.convert("L")))) > 20, "something is drawn"


def test_ones_own_model_and_images(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 3))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    rng = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / "set" / f"class{label}").mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / f"class{label}" / f"{i}.png")
    output = run("--model", f"{tmp_path / 'mine.py'}:make", "--weights", tmp_path / "w.safetensors", "--data",
                 tmp_path / "set", "--attack", "FGSM", "--curve", "", "--limit", 6, "--out", tmp_path / "out")  # fmt: skip
    assert "on 6 of" in output
    assert "12 images, 3 classes" in output
    assert "normalisation from the model's source: mean (0.5, 0.5, 0.5)" in output
    assert not (tmp_path / "out" / "success-l2.png").exists()
    other = run("--model", f"{tmp_path / 'mine.py'}:make", "--data", tmp_path / "set", "--attack", "FGSM", "--curve", "",
                "--mean", "0.1,0.2,0.3", "--std", "0.5", "--out", tmp_path / "out")  # fmt: skip
    assert "normalisation from --mean and --std: mean (0.1, 0.2, 0.3), std (0.5,)" in other


def test_images_are_spread_over_the_classes(tmp_path: Path) -> None:
    """A folder's images come class by class."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", images=rng.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8),
             labels=np.repeat(np.arange(10), 10))  # fmt: skip
    run("--data", tmp_path / "set.npz", "--attack", "FGSM", "--curve", "", "--limit", 10, "--out", tmp_path)
    from sdsgsm_fast.cli.compare_command import _subject

    loaded = models.load("photos")
    subject, _ = _subject("photos", loaded, "", str(tmp_path / "set.npz"), "test", None, 10, "cpu", {})
    assert sorted(subject.labels.tolist()) == list(range(10))


def test_a_sweep(tmp_path: Path) -> None:
    output = run("--limit", 10, "--steps", 4, "--sweep", "gain=0.5,inf", "--sweep", "relax=0.5,none", "--sweep",
                 "coverage=1", "--sweep", "alpha=2", "--out", tmp_path)  # fmt: skip
    content = json.loads((tmp_path / "table.json").read_text())
    names = ["gain=0.5", "gain=inf", "relax=0.5", "relax=none", "coverage=1", "alpha=2"]
    assert [row["attack"] for row in content["rows"]] == names
    assert all(name in output for name in names)
    assert content["rows"][1]["settings"]["gain"] is None, "JSON has no infinity"
    assert content["rows"][5]["settings"]["alpha"] == pytest.approx(2 / 255)
    assert not list(tmp_path.glob("*.png"))
    assert content["rows"][0]["l2"] < content["rows"][1]["l2"]


def test_sweeps_are_those_of_the_attack_itself() -> None:
    images, labels = sources.load("photos").rows(range(8))
    subject = runs.Subject(load_photonet(), MEAN, STD, images, labels, {})
    (row,) = runs.sweep(subject, "SD-SGSM", [("coverage", [0.5])], eps=8 / 255, steps=3, told=lambda _: None)
    from sdsgsm_fast import SDSGSM, Occlusion

    settings: dict[str, Any] = {"mean": MEAN, "std": STD, "steps": 3, "domain": Occlusion(coverage=0.5)}
    expected = SDSGSM(load_photonet(), **settings).run(images, labels).metrics()
    assert row.metrics.l2 == pytest.approx(expected.l2, rel=1e-4)


def halving(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """An attack of another library: one step of the sign's, by a pass forward and back."""
    assert (model(images).argmax(1) == labels).all(), "only images that the model gets right"
    x = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(x), labels, reduction="sum")
    (g,) = torch.autograd.grad(loss, x)
    return images + 0.1 * g.sign()


def test_rivals_are_judged_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rivals = {"halving": Rival("halving", "json", halving), "gone": Rival("gone", "no_such_package", halving)}
    monkeypatch.setattr(runs, "RIVALS", rivals)
    output = run(
        "--limit", 30, "--attack", "FGSM", "--curve", "", "--rival", "all", "--rival-limit", 12, "--out", tmp_path
    )
    assert "gone: left out, no_such_package: No module named 'no_such_package'" in output
    row = json.loads((tmp_path / "table.json").read_text())["rows"][1]
    assert row["attack"] == "halving"
    assert row["images"] == 12
    assert (row["forwards"], row["backwards"]) == (2, 1)
    assert row["settings"] == {"library": "json"}
    assert 0.3 < row["success_rate"] <= 1
    assert row["linf"] == pytest.approx(0.1, abs=1e-6)


def test_rivals_take_as_many_images_at_once_as_the_model() -> None:
    sizes: list[int] = []

    def attack(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        sizes.append(len(images))
        return images

    images, labels = sources.load("photos").rows(range(12))
    Rival("none", "json", attack).run(
        Classifier(load_photonet(), mean=MEAN, std=STD, batch_size=3), images, labels, 0.1
    )
    assert max(sizes) == 3


def test_rivals_see_every_class() -> None:
    assert runs.spread(100, 4) == [0, 25, 50, 75]
    assert runs.spread(3, 10) == [0, 1, 2]
    images, labels = torch.rand(40, 3, 8, 8), torch.arange(10).repeat_interleave(4)
    assert runs.Subject(nn.Identity(), None, None, images, labels, {}).spread(10).labels.tolist() == list(range(10))


def test_a_rival_leaves_the_model_alone() -> None:
    net = load_photonet().train()
    images, labels = sources.load("photos").rows(range(8))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    result = Rival("halving", "json", halving).run(Classifier(net, mean=MEAN, std=STD), images, labels, 8 / 255)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(result.adv[result.skipped], images[result.skipped])


@pytest.mark.parametrize("name", ["DDN-100", "FAB", "AutoAttack", "DeepFool", "C&W"])
def test_rivals_are_called_as_their_libraries_want(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the libraries, since two of them need torchvision, which has no build for CPUs."""
    seen: dict[str, Any] = {}

    def ddn(model: Any, inputs: Tensor, labels: Tensor, *, steps: int, levels: Any) -> Tensor:
        seen.update(steps=steps, levels=levels)
        return inputs

    class Attack:
        def __init__(self, model: Any = None, **settings: Any) -> None:
            seen.update(settings)

        def __call__(self, *given: Any, **more: Any) -> Any:
            return given[0] if len(given) == 2 else (None, given[1], None)

    packages = {
        "adv_lib": {}, "adv_lib.attacks": {"ddn": ddn}, "torchattacks": {"FAB": Attack, "AutoAttack": Attack},
        "foolbox": {"PyTorchModel": lambda model, **_: model,
                    "attacks": type("A", (), {"L2DeepFoolAttack": Attack, "L2CarliniWagnerAttack": Attack})},
    }  # fmt: skip
    for package, content in packages.items():
        module = ModuleType(package)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, package, module)
    images, labels = sources.load("photos").rows(range(4))
    rival = runs.RIVALS[name]
    assert rival.missing() is None
    result = rival.run(Classifier(load_photonet(), mean=MEAN, std=STD), images, labels, 8 / 255)
    assert not result.success.any()
    assert seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "PGD-3"], "'PGD-3' is not one of FGSM, BIM"),
        (["--rival", "BIM"], "'BIM' is not one of DeepFool"),
        (["--base", "X"], "'X' is not one of"),
        (["--curve", "a"], "expected numbers with commas"),
        (["--curve", "0"], "expected values above 0"),
        (["--mean", "0.5"], "expected --mean and --std together"),
        (["--mean", "x", "--std", "1"], "expected numbers with commas"),
        (["--limit", "0"], "greater than or equal to 1"),
        (["--speed", "9"], "No such option"),
        (["--device", "tpu"], "'tpu' is not cpu, cuda or cuda:N"),
        (["--backend", "fast"], "'fast' is not one of"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["sdsgsm", "compare", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("sdsgsm: ")
    assert message in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "nothing: no such file; a model is 'photos'"),
        (["--model", "timm:x", "--weights", "w.pt"], "w.pt: no such file|timm"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--data", "garbage.tar"], "garbage.tar: not a readable tar archive"),
        (["--data", "grey.npz"], "mean: expected one value or one for each of 1 channels"),
        (["--data", "many.npz"], "labels: expected 0..9, as the model has 10 classes, found 0..99"),
        (["--data", "empty.npz"], "empty.npz: holds no images"),
        (["--split", "val"], "split: expected one of test, train"),
        (["--sweep", "steps=3"], "--sweep: expected NAME=VALUE"),
        (["--sweep", "gain=x"], "--sweep: gain: expected numbers, found 'x'"),
        (["--sweep", "gain=-1"], "gain: expected a number above 0"),
        (["--precision", "float8"], "precision: expected one of"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.tar").write_bytes(b"garbage")
    zeros = np.zeros((4, 3, 32, 32), np.uint8)
    np.savez("grey.npz", images=zeros[:, :1], labels=np.zeros(4, int))
    np.savez("many.npz", images=zeros, labels=np.array([0, 1, 2, 99]))
    np.savez("empty.npz", images=zeros[:0], labels=np.zeros(0, int))
    monkeypatch.setattr(sys, "argv", ["sdsgsm", "compare", "--attack", "FGSM", "--limit", "4", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_csv_has_a_column_for_every_setting() -> None:
    images, labels = sources.load("photos").rows(range(4))
    subject = runs.Subject(load_photonet(), MEAN, STD, images, labels, {})
    row = runs.run_own(subject, "FGSM", eps=0.03, steps=1)
    text = csv_text([row, Row("other", row.metrics, 1.0, {"library": "x, y"})])
    lines = list(csv.DictReader(text.splitlines()))
    assert lines[0]["eps"] == "0.03"
    assert lines[1]["library"] == "x, y"
