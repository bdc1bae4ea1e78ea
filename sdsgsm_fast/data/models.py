"""Classifiers from what people have: factories with weights, exported files, model zoos."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common import checks
from ..common.lines import first_line, one_line
from ..common.optional import require
from . import photonet, photos

PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and what its source knows of it.

    Attributes
    ----------
    name
        Where it comes from.
    model
        In eval mode, on the CPU: normalised images to logits.
    classes
        Names of the classes, or None.
    mean, std
        The normalisation that the model expects, for images in [0, 1]; None where the source does
        not tell. Attacks take them as `mean` and `std`.
    size
        Side of the images it was trained on, or None.
    """

    name: str
    model: nn.Module
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None


def load(spec: str, *, weights: str | Path | None = None) -> LoadedModel:
    """Load a classifier.

    Parameters
    ----------
    spec
        "photos": the embedded classifier. "package.module:factory" or "file.py:factory": what the
        factory returns when called without arguments; it is your code and is executed. Its
        attributes `mean` and `std`, where they are numbers, are the normalisation. A file of
        TorchScript (.pt, .pth, .ts) or of `torch.export` (.pt2). "timm:NAME", "torchvision:NAME",
        or "hf:DIRECTORY", a transformers image classifier in a local folder.
    weights
        A .safetensors file to load into what a factory, timm or torchvision gives. Without it timm
        and torchvision give their own pretrained weights. Its metadata may hold "mean", "std" and
        "classes" as JSON.

    Raises
    ------
    ValueError
        If there is no such model, or a file is damaged or does not fit: one line.
    ModuleNotFoundError
        If a package that it needs is missing.
    """
    kind, _, rest = spec.partition(":")
    if spec == "photos":
        _no_weights(spec, weights)
        net = photonet.load_photonet()
        return LoadedModel(spec, net, photos.CLASS_NAMES, photonet.MEAN, photonet.STD, 32)
    if kind == "hf":
        _no_weights(spec, weights)
        return _in_eval(_hugging_face(spec, Path(rest)))
    zoos = {"timm": _timm, "torchvision": _torchvision}
    if kind in zoos and rest:
        loaded = zoos[kind](spec, rest, weights is None)
    elif ":" in spec and rest.isidentifier():
        made = _made(spec, kind, rest)
        try:
            mean, std = (_numbers(getattr(made, name, None)) for name in ("mean", "std"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{spec}: {first_line(error)}") from error
        loaded = LoadedModel(spec, made, None, mean, std)
    else:
        _no_weights(spec, weights)
        return _in_eval(LoadedModel(spec, _exported(spec)))
    if weights is not None:
        loaded = _with_weights(loaded, Path(weights))
    return _in_eval(loaded)


def _in_eval(loaded: LoadedModel) -> LoadedModel:
    """Put it into eval mode; an exported program has none."""
    for module in loaded.model.modules():
        if getattr(module, "training", False):
            module.training = False
    return loaded


def _no_weights(spec: str, weights: object) -> None:
    if weights is not None:
        raise ValueError(f"weights: {spec} has its own; they go with a factory, timm or torchvision")


# Factories


def _made(spec: str, where: str, name: str) -> nn.Module:
    """What a factory returns."""
    module = _module(spec, where)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"{spec}: {where} has no function {name!r}")
    try:
        made = factory()
    except Exception as error:
        raise ValueError(f"{spec}: the factory failed: {first_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{spec}: expected the factory to return an nn.Module, found {type(made).__name__}")
    return made


def _module(spec: str, where: str) -> Any:
    """Import a module by its name, or a file by its path."""
    if where.endswith(".py") and not _is_file(Path(where)):
        raise ValueError(f"{spec}: no such file: {where}")
    try:
        return _file_module(Path(where)) if where.endswith(".py") else _named_module(where)
    except Exception as error:  # it is the user's code that runs here
        raise ValueError(f"{spec}: cannot import {where}: {first_line(error)}") from error


def _named_module(name: str) -> Any:
    """As with python -m: what lies in the current folder can be named."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _file_module(path: Path) -> Any:
    """Run a file as a module; another module of its name keeps that name."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module, before = importlib.util.module_from_spec(found), sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look there while it runs
    try:
        found.loader.exec_module(module)
    finally:
        if before is not None:
            sys.modules[path.stem] = before
    return module


def _with_weights(loaded: LoadedModel, path: Path) -> LoadedModel:
    """Load a safetensors file; what it says of normalisation and classes goes before."""
    module = require("safetensors", extra="cli", purpose="reading weights")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a .safetensors file; pickled weights may execute code and are not read")
    try:
        with module.safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        known = {key: json.loads(metadata[key]) for key in ("mean", "std", "classes") if key in metadata}
    except Exception as error:
        raise ValueError(f"{path}: not a readable .safetensors file: {first_line(error)}") from error
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    try:
        missing, extra = loaded.model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit {loaded.name}: {first_line(error, last=True)}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    for word, keys in (("lacks", missing), ("has besides", extra)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            listed = one_line(", ".join(keys[:3]))
            raise ValueError(f"{path}: does not fit {loaded.name}: it {word} {listed}{more}")
    try:
        values = {key: _numbers(known[key]) for key in ("mean", "std") if key in known}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {first_line(error)}") from error
    classes = loaded.classes
    if "classes" in known:
        if not isinstance(known["classes"], list) or not all(isinstance(c, str) for c in known["classes"]):
            raise ValueError(f"{path}: expected 'classes' to be names")
        classes = tuple(known["classes"])
    return LoadedModel(
        loaded.name, loaded.model, classes, values.get("mean", loaded.mean), values.get("std", loaded.std), loaded.size
    )


# Files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _exported(spec: str) -> nn.Module:
    """TorchScript, or a program of torch.export."""
    path = Path(spec)
    if not _is_file(path):
        raise ValueError(
            f"{one_line(spec)}: no such file; a model is 'photos', package.module:factory, file.py:factory, a "
            "TorchScript or torch.export file, timm:NAME, torchvision:NAME or hf:DIRECTORY"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        message = "neither a TorchScript nor a torch.export file; weights go with a factory"
        raise ValueError(f"{spec}: {message}") from error
    script = any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names)
    try:
        if script:
            loaded: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return loaded
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
    except Exception as error:
        raise ValueError(f"{spec}: cannot be loaded: {first_line(error)}") from error
    raise ValueError(f"{spec}: weights alone, pickled, which are not read; give a factory and a .safetensors file")


# Zoos


def _package(spec: str, name: str) -> Any:
    """A package that may be missing, or broken."""
    try:
        return require(name, extra="models", purpose=spec)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # torchvision of another torch, for instance
        raise ValueError(f"{spec}: {name} cannot be imported: {first_line(error)}") from error


def _zoo(spec: str, make: Callable[[], Any]) -> Any:
    """What a zoo gives, or its error in a line."""
    try:
        return make()
    except Exception as error:
        raise ValueError(f"{spec}: {first_line(error)}") from error


def _timm(spec: str, name: str, pretrained: bool) -> LoadedModel:
    timm = _package(spec, "timm")
    model = _zoo(spec, lambda: timm.create_model(name, pretrained=pretrained))
    config = getattr(model, "pretrained_cfg", {}) or {}
    side = (config.get("input_size") or (None, None))[-1]
    return LoadedModel(spec, model, None, _numbers(config.get("mean")), _numbers(config.get("std")), side)


def _torchvision(spec: str, name: str, pretrained: bool) -> LoadedModel:
    zoo = _package(spec, "torchvision.models")
    enum = _zoo(spec, lambda: zoo.get_model_weights(name))
    best = enum.DEFAULT
    model = _zoo(spec, lambda: zoo.get_model(name, weights=best if pretrained else None))
    transforms = best.transforms()
    classes = tuple(best.meta["categories"]) if pretrained and "categories" in best.meta else None
    side = (list(getattr(transforms, "crop_size", ())) or [None])[0]
    return LoadedModel(spec, model, classes, _numbers(transforms.mean), _numbers(transforms.std), side)


def _hugging_face(spec: str, folder: Path) -> LoadedModel:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{spec}: expected a folder with config.json and model.safetensors")
    transformers = _package(spec, "transformers")
    model = _zoo(
        spec,
        lambda: transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
        ),
    )
    names = model.config.id2label
    classes = tuple(str(names[i]) for i in sorted(names))
    mean = std = side = None
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        try:
            config = json.loads(processor.read_text(encoding="utf-8"))
            mean, std = _numbers(config.get("image_mean")), _numbers(config.get("image_std"))
            given = config.get("size")
            side = given.get("height", given.get("shortest_edge")) if isinstance(given, dict) else given
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{processor}: not readable: {first_line(error)}") from error
    return LoadedModel(spec, model, classes, mean, std, side)


def _numbers(values: Any) -> tuple[float, ...] | None:
    """Finite numbers, one or one a channel, or None."""
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = [values]
    if not isinstance(values, (tuple, list)) or not values:
        return None
    return checks.per_channel("mean and std", values, len(values))
