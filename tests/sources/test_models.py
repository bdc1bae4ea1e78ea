"""Classifiers from factories, exported files and zoos; whatever is wrong ends in one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from nets import convnet
from safetensors.torch import save_file
from torch import Tensor, nn

from sdsgsm_fast import BIM, models, occlusion_map

FACTORY = """
import torch.nn as nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Dropout(0.5))

def broken():
    raise RuntimeError("no\\nsuch thing")

def number():
    return 3

VALUE = 3
"""


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8)


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "zoo_of_mine.py"
    path.write_text(FACTORY)
    return path


def weights(path: Path, prefix: str = "", **change: Any) -> dict[str, Tensor]:
    state = {"1.weight": torch.randn(4, 192), "1.bias": torch.randn(4), **change}
    state = {k: v for k, v in state.items() if v is not None}
    metadata = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.5, 0.5, 0.5]", "classes": json.dumps(list("abcd"))}
    save_file({prefix + k: v for k, v in state.items()}, path, metadata)
    return state


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_factory_in_a_file_and_its_weights(prefix: str, factory: Path, tmp_path: Path, images: Tensor) -> None:
    state = weights(tmp_path / "w.safetensors", prefix)
    loaded = models.load(f"{factory}:make", weights=tmp_path / "w.safetensors")
    assert not loaded.model.training
    assert not loaded.model[2].training
    expected = images.flatten(1) @ state["1.weight"].T + state["1.bias"]
    assert torch.allclose(loaded.model(images), expected, atol=1e-6)
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert loaded.std == (0.5, 0.5, 0.5)
    assert loaded.classes == tuple("abcd")
    assert BIM(loaded.model, mean=loaded.mean, std=loaded.std)(images, expected.argmax(1)).shape == images.shape


def test_a_factory_of_a_package(monkeypatch: pytest.MonkeyPatch, factory: Path) -> None:
    monkeypatch.chdir(factory.parent)
    before = list(sys.path)
    assert isinstance(models.load("zoo_of_mine:make").model, nn.Sequential)
    assert isinstance(models.load("torch.nn:Identity").model, nn.Identity)
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{factory}:nothing", "has no function 'nothing'"),
        ("{factory}:VALUE", "has no function 'VALUE'"),
        ("{factory}:broken", "the factory failed: no$"),
        ("{factory}:number", "expected the factory to return an nn.Module, found int"),
        ("{tmp}/none.py:make", "no such file"),
        ("{tmp}/bad.py:make", "cannot import .*bad.py: expected ':'"),
        ("no_such_package.models:make", "cannot import no_such_package.models: No module named 'no_such_package'"),
        ("{tmp}/none.pt", "no such file; a model is 'photos'"),
        ("a" * 5000, "no such file; a model is"),
        ("{tmp}/eocd.pt", "neither a TorchScript nor"),
        ("resnet50", "no such file; a model is 'photos'"),
        ("{tmp}/garbage.pt", "neither a TorchScript nor a torch.export file"),
        ("{tmp}/weights.pt", "weights alone, pickled, which are not read"),
        ("{tmp}/broken.pt2", "cannot be loaded|weights alone|neither"),
        ("hf:{tmp}", "expected a folder with config.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(spec: str, message: str, factory: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def make()\n    pass\n")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 0, 0)
    (tmp_path / "eocd.pt").write_bytes(b"x" * 10 + end)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "broken.pt2").write_bytes((tmp_path / "weights.pt").read_bytes()[:-30])
    with pytest.raises(ValueError, match=message) as error:
        models.load(spec.format(factory=factory, tmp=tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.bias": None}, "w.safetensors: does not fit .*:make: it lacks 1.bias"),
        ({"2.scale": torch.ones(1)}, "it has besides 2.scale"),
        ({"a\nb": torch.ones(1)}, "it has besides a.b"),
        ({"1.bias": torch.ones(5)}, "does not fit .*: size mismatch for 1.bias"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(change: dict[str, Any], message: str, factory: Path, tmp_path: Path) -> None:
    weights(tmp_path / "w.safetensors", **change)
    with pytest.raises(ValueError, match=message) as error:
        models.load(f"{factory}:make", weights=tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mean": "5", "std": "[1]"}, None),
        ({"mean": '["a"]'}, "w.safetensors: mean and std: expected numbers"),
        ({"mean": "[NaN]"}, "w.safetensors: mean and std: expected finite values"),
        ({"mean": "[[1]]"}, "w.safetensors: mean and std: expected numbers"),
        ({"classes": "5"}, "w.safetensors: expected 'classes' to be names"),
        ({"std": "{"}, "w.safetensors: not a readable .safetensors file"),
        ({"mean": "[" + "9" * 400 + "]"}, "w.safetensors: "),
    ],
)
def test_what_weights_say_of_themselves(
    metadata: dict[str, str], message: str | None, factory: Path, tmp_path: Path
) -> None:
    save_file({"1.weight": torch.randn(4, 192), "1.bias": torch.randn(4)}, tmp_path / "w.safetensors", metadata)
    if message is None:
        assert models.load(f"{factory}:make", weights=tmp_path / "w.safetensors").mean == (5.0,)
        return
    with pytest.raises(ValueError, match=message) as error:
        models.load(f"{factory}:make", weights=tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


def test_a_factorys_own_normalisation(tmp_path: Path) -> None:
    code = "import torch.nn as nn\ndef make():\n    net = nn.Identity()\n    net.mean, net.std = 0.5, 0.25\n    return net\n"
    (tmp_path / "grey.py").write_text(code)
    loaded = models.load(f"{tmp_path / 'grey.py'}:make")
    assert (loaded.mean, loaded.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "no such file"),
        ("w.safetensors", b"garbage", "not a readable .safetensors file"),
        ("w.pt", b"", "expected a .safetensors file; pickled weights may execute code"),
    ],
)
def test_weights_that_cannot_be_read(
    name: str, content: bytes | None, message: str, factory: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        models.load(f"{factory}:make", weights=tmp_path / name)


def test_weights_go_with_factories_only(tmp_path: Path) -> None:
    for spec in ("photos", "hf:folder", "model.pt"):
        with pytest.raises(ValueError, match=r"weights: .* has its own"):
            models.load(spec, weights=tmp_path / "w.safetensors")


def test_torchscript(tmp_path: Path) -> None:
    net, images = convnet(), torch.rand(4, 3, 16, 16)
    torch.jit.script(net).save(tmp_path / "net.pt")
    loaded = models.load(str(tmp_path / "net.pt"))
    labels = net(images).argmax(1)
    assert torch.allclose(loaded.model(images), net(images), atol=1e-6)
    assert torch.allclose(BIM(loaded.model)(images, labels), BIM(net)(images, labels), atol=1e-5)
    assert torch.allclose(occlusion_map(loaded.model, images), occlusion_map(net, images), atol=1e-5)


def test_exported_programs(tmp_path: Path) -> None:
    net, images = convnet(), torch.rand(4, 3, 16, 16)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(net, (images,), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    loaded = models.load(str(tmp_path / "net.pt2"))
    labels = net(images).argmax(1)
    result = BIM(loaded.model).run(images[:3], labels[:3])
    assert torch.allclose(result.adv, BIM(net)(images[:3], labels[:3]), atol=1e-5)
    assert torch.allclose(occlusion_map(loaded.model, images), occlusion_map(net, images), atol=1e-5)


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ValueError, match=r"not read|neither"):
            models.load(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def small(*_: Any, **__: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


@pytest.fixture
def zoos(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Timm and torchvision as far as they are used; of torchvision there is no build for CPUs on PyPI."""
    calls: dict[str, Any] = {}

    def create_model(name: str, pretrained: bool) -> nn.Module:
        calls["timm"] = name, pretrained
        if name != "small":
            raise RuntimeError(f"Unknown model ({name})")
        net = small()
        net.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 8, 8)}
        return net

    def get_model(name: str, weights: Any) -> nn.Module:
        calls["torchvision"] = name, weights
        return small()

    def get_model_weights(name: str) -> Any:
        if name != "small":
            raise ValueError(f"Unknown model {name}")
        return SimpleNamespace(DEFAULT=best)

    transforms = SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_size=[8])
    best = SimpleNamespace(transforms=lambda: transforms, meta={"categories": list("abcd")})
    for name, content in (
        ("timm", {"create_model": create_model}),
        ("torchvision", {}),
        ("torchvision.models", {"get_model": get_model, "get_model_weights": get_model_weights}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("zoo", ["timm", "torchvision"])
def test_zoos(zoo: str, zoos: dict[str, Any], tmp_path: Path, images: Tensor) -> None:
    loaded = models.load(f"{zoo}:small")
    assert zoos[zoo][0] == "small"
    assert zoos[zoo][1], "pretrained"
    assert (loaded.mean, loaded.std, loaded.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 8)
    assert loaded.classes == (tuple("abcd") if zoo == "torchvision" else None)
    net = small()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    loaded = models.load(f"{zoo}:small", weights=tmp_path / "w.safetensors")
    assert not zoos[zoo][1], "nothing is downloaded"
    assert torch.equal(loaded.model(images), net(images))
    assert loaded.classes is None, "those of other weights"
    with pytest.raises(ValueError, match=f"{zoo}:other: Unknown model"):
        models.load(f"{zoo}:other")


def test_hugging_face(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
                       patch_size=4, id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0})  # fmt: skip
    net = ViTForImageClassification(config).eval()
    net.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], size={"height": 16, "width": 16}
                      ).save_pretrained(tmp_path)  # fmt: skip
    loaded = models.load(f"hf:{tmp_path}")
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(loaded.model(x).logits, net(x).logits, atol=1e-6)
    assert loaded.classes == ("cat", "dog", "owl")
    assert (loaded.mean, loaded.std, loaded.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 16)
    result = BIM(loaded.model, mean=loaded.mean, std=loaded.std, eps=0.1).run(x, net(x).logits.argmax(1))
    assert len(result.adv) == 2


def test_the_embedded_classifier() -> None:
    loaded = models.load("photos")
    assert loaded.classes is not None
    assert len(loaded.classes) == 10
    assert loaded.mean == (0.5, 0.5, 0.5)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ModuleNotFoundError(\"No module named 'timm'\", name='timm')")
    code = "from sdsgsm_fast import models\nmodels.load('timm:resnet18')"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "timm:resnet18 needs the package 'timm': pip install 'sdsgsm-fast[models]'" in done.stderr
