"""The CUDA kernels without a GPU: their very sources, compiled by g++, a system thread a CUDA thread.

What this shows is that every value is computed once, from the right places, with the right formula;
see cuda_on_cpu/cuda_runtime.h for what it cannot show.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest
import torch
from conformance import Case, check_update, check_window_mean, of_kind
from tiles import SIZES, by_hand, case
from torch import Tensor
from updates import given, settings, ulp

from sdsgsm_fast import ops
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.kernels import native

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")

ROOT = Path(__file__).parents[2]
ONE_PASS, TWO_PASSES = (5, 3, 32, 32), (2, 3, 101, 97)
SHAPES = [(1, 1, 1, 1), (3, 3, 5, 7), (7, 1, 3, 3), ONE_PASS, (2, 3, 52, 52), TWO_PASSES]
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    target = tmp_path_factory.mktemp("emulated") / "_native_cuda.so"
    sources = [*(ROOT / "csrc" / "cuda").glob("*.cu"), ROOT / "csrc" / "bind_cuda.cpp"]
    includes = [
        ROOT / "tests" / "cuda_on_cpu",
        pybind11.get_include(),
        sysconfig.get_path("include"),
    ]
    done = subprocess.run(
        ["g++", "-std=c++17", "-O1", "-g", "-shared", "-fsanitize=alignment", "-fno-sanitize-recover", "-fPIC", "-pthread", "-Wno-psabi",
         *(f"-I{path}" for path in includes), "-x", "c++", *sources, "-o", target],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("_native_cuda", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _use(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have backend "native" take CPU tensors for CUDA's."""
    monkeypatch.setattr(native, "device_kind", lambda tensor: "cuda")
    monkeypatch.setattr(native, "_module", lambda kind: emulated)
    monkeypatch.setattr(native, "_load", lambda kind: (emulated, ""))
    monkeypatch.setattr(native, "why_missing", lambda kind: "")
    monkeypatch.setattr(native, "_where", lambda tensor: (0, 0))
    monkeypatch.setattr(native, "update", native.update_cuda)


def both(t: dict[str, Tensor], **extra: object) -> tuple[tuple[Tensor, Tensor], ...]:
    arguments = {**t, **extra}
    positional = [arguments.pop(name) for name in ("adv", "images", "grad", "domain")]
    return tuple(ops.update(*positional, **arguments, backend=b) for b in ("native", "reference"))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", of_kind("update"), ids=repr)
def test_conformance_update(case: Case, in_place: bool) -> None:
    check_update(case, "native", in_place)


@pytest.mark.parametrize("case", of_kind("window_mean"), ids=repr)
def test_conformance_window_mean(case: Case) -> None:
    check_window_mean(case, "native")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("grad_dtype", FLOATS, ids=str)
def test_update_agrees(shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    t = given(shape, dtype, grad_dtype)
    i = SHAPES.index(shape) * 4 + FLOATS.index(dtype) + FLOATS.index(grad_dtype)
    (adv, v), (expected, expected_v) = both(t, **settings(i))
    tolerance = 2e-6 if dtype in (torch.float32, torch.float64) else ulp(dtype)
    assert torch.allclose(adv.double(), expected.double(), atol=tolerance, rtol=0)
    assert torch.allclose(v, expected_v, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("shape", [ONE_PASS, TWO_PASSES, (3, 3, 9, 7)], ids=str)
@pytest.mark.parametrize("normalize", ops.NORMALIZE)
def test_norms_and_defaults(shape: tuple[int, ...], normalize: str) -> None:
    t = {k: v for k, v in given(shape, torch.float32, torch.float32).items() if k != "momentum"}
    t["grad"][0] *= 1 / t["grad"][0].abs().max()
    t["grad"][0] *= 1e38  # its sum overflows a float
    t["grad"][-1] *= 1e-30  # its squares vanish in one
    (adv, v), (expected, _) = both({**t, "active": None, "domain": None}, normalize=normalize)
    assert v is None
    assert torch.allclose(adv, expected, atol=2e-6, rtol=0)


def test_an_image_does_not_know_its_place() -> None:
    """Groups are cut by the place in the batch; a norm in float would show it."""
    for trial in range(8):
        torch.manual_seed(trial)
        image = {k: v.expand(8, *v.shape[1:]).clone()
                 for k, v in given((1, 3, 5, 7), torch.float32, torch.float32).items()}  # fmt: skip
        (adv, _), _ = both({**image, "active": None})
        assert torch.equal(adv, adv[:1].expand_as(adv))


@pytest.mark.parametrize("shape", [(2, 3, 81, 83), TWO_PASSES, (2, 3, 223, 221)], ids=str)
@pytest.mark.parametrize("normalize", ops.NORMALIZE)
def test_a_cluster_covers_an_image(
    shape: tuple[int, ...], normalize: str, monkeypatch: pytest.MonkeyPatch, emulated: ModuleType
) -> None:
    """Blocks of a cluster share an image, and each tells the others what it reduced."""
    values = math.prod(shape[1:])
    assert emulated.update_scratch(shape[0], values, 0, 0) > 0
    monkeypatch.setenv("CUDA_ON_CPU_CLUSTERS", "1")
    assert emulated.update_scratch(shape[0], values, 0, 0) == 0
    t = given(shape, torch.float32, torch.bfloat16)
    t["active"][0] = False
    (adv, v), (expected, expected_v) = both(t, normalize=normalize, decay=0.9)
    assert torch.allclose(adv, expected, atol=2e-6, rtol=0)
    assert torch.allclose(v, expected_v, atol=2e-5, rtol=2e-5)
    again, _ = both(t, normalize=normalize, decay=0.9)
    assert torch.equal(again[0], adv)


def program(name: str, folder: Path, *arguments: str) -> str:
    """What a program of `cuda_on_cpu` says."""
    source = ROOT / "tests" / "cuda_on_cpu"
    command = ["g++", "-std=c++17", "-O2", "-pthread", f"-I{source}", source / f"{name}.cpp", "-o", folder / name]
    subprocess.run(command, check=True)
    return subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=True).stdout


def test_tanh_is_within_two_ulp(tmp_path: Path) -> None:
    """Whatever errors the approximations have, up to those that PTX documents; each 37th float."""
    assert float(program("tanh_error", tmp_path, "37")) < 2.0


def test_division_is_exact(tmp_path: Path) -> None:
    assert program("division", tmp_path) == ""


@pytest.mark.parametrize("shape", [(3, 3, 9, 7), (2, 3, 16, 16), TWO_PASSES], ids=str)
def test_channels_last_in_place_with_canaries(shape: tuple[int, ...]) -> None:
    t = given(shape, torch.float32, torch.bfloat16)
    expected, expected_v = both(t, decay=0.9)[1]
    canary, count = 12345.0, math.prod(shape)
    last = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
            for k, v in t.items()}  # fmt: skip
    for first in (32, 33):  # aligned and not
        backing = {k: torch.full((count + 64,), canary) for k in ("adv", "momentum")}
        for k, whole in backing.items():
            b, c, h, w = shape
            view = whole[first : first + count].view(b, h, w, c).permute(0, 3, 1, 2)
            last[k] = view.copy_(t[k])
        arguments = dict(last)
        positional = [arguments.pop(k) for k in ("adv", "images", "grad", "domain")]
        ops.update_(*positional, **arguments, decay=0.9, backend="native")
        assert torch.allclose(last["adv"], expected, atol=2e-6, rtol=0)
        assert torch.allclose(last["momentum"], expected_v, atol=2e-5, rtol=2e-5)
        for whole in backing.values():
            assert torch.all(whole[:first] == canary)
            assert torch.all(whole[first + count :] == canary)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_occlude_agrees(dtype: torch.dtype, out: torch.dtype, last: bool) -> None:
    images = torch.rand(3, 3, 11, 13, dtype=torch.float64).to(dtype)
    options = {"patch": (4, 5), "stride": (3, 2), "fill": (0.1, 0.7, 0.3), "mean": 0.4,
               "std": (0.2, 0.3, 0.4), "dtype": out, "channels_last": last}  # fmt: skip
    found, expected = (ops.occlude(images, 2, 9, **options, backend=b) for b in ("native", "reference"))
    assert found.stride() == expected.stride()
    tolerance = 4 * ulp(out) if out in (torch.float16, torch.bfloat16) else 2e-6
    assert torch.allclose(found.double(), expected.double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 3, 24, 36), (3, 2, 6, 12), (1, 1, 5, 8)], ids=str)
@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_occlude_in_wide_units_has_the_same_bits(shape: tuple[int, ...], out: torch.dtype, last: bool) -> None:
    """Sizes that whole units fill, rows of pixels that end inside of one; several blocks a copy."""
    images = torch.rand(shape)
    fill, std = [0.1, 0.7, 0.3][: shape[1]], [0.2, 0.3, 0.4][: shape[1]]
    options = {"patch": (4, 5), "stride": (3, 2), "fill": fill, "mean": 0.4,
               "std": std, "dtype": out, "channels_last": last}  # fmt: skip
    windows = len(Windows.over(*shape[2:], (4, 5), (3, 2)))
    for first, count in ((0, windows), (1, 1), (windows // 2, windows - windows // 2)):
        found, expected = (ops.occlude(images, first, count, **options, backend=b) for b in ("native", "reference"))
        assert torch.equal(found, expected)


def test_many_copies_are_written_in_runs() -> None:
    """More blocks than a GPU needs: each takes several copies, the last run fewer."""
    images = torch.rand(33, 1, 15, 13)
    options = {"patch": (2, 2), "stride": (1, 1), "mean": 0.4, "std": 0.3}
    found, expected = (ops.occlude(images, 3, 163, **options, backend=b) for b in ("native", "reference"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_window_mean_has_the_same_bits(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 4, 5, dtype=dtype)
    found, expected = (
        ops.window_mean(scores, 11, 13, patch=(4, 5), stride=(3, 2), backend=b) for b in ("native", "reference")
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crops", ["each", "one", "none"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_paste_has_the_same_bits(size: Any, crops: str, dtype: torch.dtype) -> None:
    c = case(size, dtype, crops=crops)
    assert torch.equal(ops.paste(**c, pad=-math.inf, backend="native"), by_hand(c, -math.inf))


@pytest.mark.parametrize("channels", [3, 64])
def test_a_large_tile_takes_several_blocks(channels: int) -> None:
    c = case((channels, (40, 37), (9, 11), (33, 35)), torch.float32, count=3)
    assert torch.equal(ops.paste(**c, pad=0.25, backend="native"), by_hand(c, 0.25))
