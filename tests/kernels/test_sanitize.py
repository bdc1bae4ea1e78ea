"""The CPU kernels under AddressSanitizer and UBSan, fed with the conformance cases and awkward ones."""

from __future__ import annotations

import itertools
import math
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance import gain_of, of_kind
from convolutions import CASES as CONVOLUTIONS
from convolutions import FORMS
from convolutions import case as convolution_case
from tiles import DTYPES, SIZES, by_hand
from tiles import case as paste_case
from torch import Tensor
from updates import given, settings

from sdsgsm_fast import _native_cpu, ops
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.engine import winograd
from sdsgsm_fast.kernels import native
from sdsgsm_fast.kernels.calls import NORMALIZE
from sdsgsm_fast.kernels.native import _DTYPES, _grid

ROOT = Path(__file__).parents[2]
ISAS = {"baseline": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
UPDATE, OCCLUDE, WINDOW_MEAN, PASTE, WINOGRAD = range(5)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sanitize") / "driver"
    sources = [ROOT / "tests" / "sanitize.cpp", *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    done = subprocess.run(
        ["g++", "-std=c++17", "-O0", "-g1", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all",
         "-Wno-psabi", *sources, "-o", target],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def run(driver: Path, request: bytes) -> bytes:
    done = subprocess.run([driver], input=request, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert not done.stderr, done.stderr.decode()[-3000:]
    return done.stdout


def ints(*values: int) -> bytes:
    return struct.pack(f"{len(values)}q", *values)


def array(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return ints(-1)
    flat = tensor.contiguous().flatten()
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return ints(len(raw)) + raw


def read(raw: bytes, like: Tensor) -> tuple[Tensor, bytes]:
    n = like.numel() * like.element_size()
    value = torch.frombuffer(bytearray(raw[:n]), dtype=like.dtype) if n else like.flatten()
    return value.view(like.shape), raw[n:]


def update_request(isa: str, t: dict[str, Any], options: dict[str, Any], *, in_place: bool) -> bytes:
    adv = t["adv"]
    batch, channels, height, width = adv.shape
    compute = torch.float64 if adv.dtype == torch.float64 else torch.float32
    per_image = [t[k].to(compute) for k in ("eps", "alpha", "background")]
    domain = None if t["domain"] is None else t["domain"].to(compute)
    arrays = (adv, t["images"], t["grad"], domain, t["momentum"], t["active"], *per_image)
    lo, hi = options["bounds"]
    return (
        ints(UPDATE, ISAS[isa])
        + b"".join(array(value) for value in arrays)
        + ints(in_place, t["momentum"] is not None, batch, channels, height * width, 0)
        + ints(_DTYPES[adv.dtype], _DTYPES[t["grad"].dtype], NORMALIZE[options["normalize"]], 2)
        + struct.pack("5d", options["gain"], options["decay"], lo, hi, options["sign"])
    )


@pytest.mark.parametrize("isa", _native_cpu.isas())
def test_conformance_update(driver: Path, isa: str) -> None:
    for case in of_kind("update"):
        c = case.config
        options = {"gain": gain_of(c), "bounds": (c["lo"], c["hi"]), "sign": c["sign"],
                   "decay": c["decay"], "normalize": c["normalize"]}  # fmt: skip
        for in_place in (False, True):
            raw = run(driver, update_request(isa, case.inputs, options, in_place=in_place))
            adv, rest = read(raw, case.expected["adv"])
            momentum, rest = read(rest, case.expected["momentum"])
            assert not rest
            assert torch.allclose(adv, case.expected["adv"], atol=case.atol, rtol=0)
            scale = float(case.expected["momentum"].abs().max())
            allowed = case.momentum_rtol * scale
            assert torch.allclose(momentum, case.expected["momentum"], atol=allowed, rtol=0)


@pytest.mark.parametrize("isa", _native_cpu.isas())
def test_update_of_awkward_sizes(driver: Path, isa: str) -> None:
    """Sizes around the vectors, blocks and chunks; dtypes; huge, tiny and zero gradients."""
    shapes = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 16, 32), (2, 1, 19, 27), (1, 3, 75, 83)]
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    for i, shape in enumerate(shapes):
        for j, dtype in enumerate(dtypes):
            for grad_dtype in dtypes:
                t: dict[str, Any] = dict(given(shape, dtype, grad_dtype))
                t["grad"][0] *= (1.0, 0.0, 1e-30, 6e4)[(i + j) % 4]
                t["grad"].clamp_(-6e4, 6e4)
                t["active"] = None if j == 0 else t["active"]
                t["domain"] = None if i == 1 else t["domain"]
                options = {**settings(i + j), "bounds": (0.0, 1.0)}
                raw = run(driver, update_request(isa, t, options, in_place=j % 2 == 1))
                adv, rest = read(raw, t["adv"])
                v, rest = read(rest, t["momentum"])
                assert not rest
                expected, expected_v = ops.update(
                    t["adv"], t["images"], t["grad"], t["domain"], backend="reference",
                    **{k: t[k] for k in ("momentum", "active", "eps", "alpha", "background")},
                    **options,
                )  # fmt: skip
                near = torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-6
                assert torch.allclose(adv.double(), expected.double(), atol=near, rtol=0)
                assert torch.allclose(v, expected_v, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("isa", _native_cpu.isas())
@pytest.mark.parametrize("last", [False, True])
def test_occlude(driver: Path, isa: str, last: bool) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for out in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            images = torch.rand(2, 3, 11, 13, dtype=torch.float64).to(dtype)
            windows = Windows.over(11, 13, (4, 5), (3, 2))
            fill, mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.7, 0.8, 0.9)
            numbers = [torch.tensor(v, dtype=torch.float64) for v in (fill, mean, std)]
            raw = run(
                driver,
                ints(OCCLUDE, ISAS[isa])
                + b"".join(array(v) for v in (images, *numbers))
                + ints(2, 3, 2, 7, *_grid(windows), last, _DTYPES[dtype], _DTYPES[out], 2),
            )
            expected = ops.occlude(
                images, 2, 7, patch=(4, 5), stride=(3, 2), fill=fill, mean=mean, std=std,
                dtype=out, backend="reference",
            )  # fmt: skip
            laid = expected.permute(0, 2, 3, 1).contiguous() if last else expected
            found, _ = read(raw, laid)
            near = 8 * torch.finfo(out).eps if out.itemsize == 2 else 4e-6
            assert torch.allclose(found.double(), laid.double(), atol=near, rtol=near)


@pytest.mark.parametrize("isa", _native_cpu.isas())
def test_conformance_window_mean(driver: Path, isa: str) -> None:
    for case in of_kind("window_mean"):
        c, scores = case.config, case.inputs["scores"]
        windows = Windows.over(c["height"], c["width"], tuple(c["patch"]), tuple(c["stride"]))
        raw = run(
            driver,
            ints(WINDOW_MEAN, ISAS[isa]) + array(scores) + ints(len(scores), *_grid(windows), _DTYPES[scores.dtype], 2),
        )
        found, _ = read(raw, case.expected["map"])
        assert torch.allclose(found, case.expected["map"], atol=case.atol, rtol=0)


def test_the_driver_reports_an_overflow(driver: Path) -> None:
    """What watches must be awake: a gradient one value short is read past its end."""
    t: dict[str, Any] = dict(given((1, 1, 4, 5), torch.float32, torch.float32))
    t["grad"] = t["grad"].flatten()[:-1]
    options = {**settings(0), "bounds": (0.0, 1.0), "gain": math.inf}
    request = update_request("baseline", t, options, in_place=False)
    done = subprocess.run([driver], input=request, capture_output=True)
    assert done.returncode != 0
    assert b"heap-buffer-overflow" in done.stderr


def tiles_request(c: dict[str, Any], size: Any) -> bytes:
    """The tiles of `test_paste.case`."""
    channels, map_size, crop_size, tile_size = size
    maps = (None if c[k] is None else c[k].permute(0, 2, 3, 1).contiguous() for k in ("clean", "crops"))
    tables = (c[k] for k in ("image", "row", "col", "rows", "cols"))
    one = c["crops"] is not None and len(c["crops"]) == 1 < len(c["image"])
    return (
        b"".join(array(value) for value in (*maps, *tables))
        + ints(len(c["image"]), channels, *map_size, *crop_size, *tile_size)
        + ints(one, _DTYPES[c["clean"].dtype])
    )


@pytest.mark.parametrize("isa", _native_cpu.isas())
@pytest.mark.parametrize("crops", ["each", "one", "none"])
def test_paste(driver: Path, isa: str, crops: str) -> None:
    for size in SIZES:
        for dtype in DTYPES:
            c = paste_case(size, dtype, crops=crops)
            request = ints(PASTE, ISAS[isa]) + tiles_request(c, size) + ints(2) + struct.pack("d", -math.inf)
            expected = by_hand(c, -math.inf).permute(0, 2, 3, 1).contiguous()
            found, rest = read(run(driver, request), expected)
            assert not rest
            assert torch.equal(found, expected)


@pytest.mark.parametrize("isa", [*_native_cpu.isas(), *(["avx512_bf16"] if native.winograd_in_bfloat16() else [])])
def test_winograd(driver: Path, isa: str) -> None:
    dtype = torch.bfloat16 if isa == "avx512_bf16" else torch.float32
    cases = itertools.product(range(len(CONVOLUTIONS)), FORMS, (True, False))
    for number, (tile, stride), adds in cases:
        x, weight, bias, other, padding = convolution_case(number, stride)
        if not adds:  # an image of zeros is left out
            x[-1] = 0
        maps = [t.permute(0, 2, 3, 1).contiguous().to(dtype) for t in (x, other)]
        packed = winograd.pack(weight, tile, dtype, stride)
        sizes = (len(x), x.shape[1], len(weight), *x.shape[2:], *other.shape[2:], *padding)
        added = (bias, maps[1]) if adds else (None, None)
        request = (
            ints(WINOGRAD, ISAS[isa])
            + b"".join(array(t) for t in (maps[0], packed, *added))
            + ints(*sizes, winograd.points(tile, stride), 1, 0)
        )
        found, rest = read(run(driver, request), maps[1])
        assert not rest
        expected = F.relu(F.conv2d(x, weight, padding=padding, stride=stride) + adds * (bias[:, None, None] + other))
        atol = 1e-5 if dtype == torch.float32 else 0.2
        assert torch.allclose(found.permute(0, 3, 1, 2).float(), expected, atol=atol)


@pytest.mark.parametrize("isa", [*_native_cpu.isas(), *(["avx512_bf16"] if native.winograd_in_bfloat16() else [])])
@pytest.mark.parametrize("crops", ["each", "one"])
def test_winograd_on_tiles(driver: Path, isa: str, crops: str) -> None:
    dtype = torch.bfloat16 if isa == "avx512_bf16" else torch.float32
    for (tile, stride), channels in itertools.product(FORMS, (16, 33)):
        size: Any = (channels, (12, 8), (5, 8), (12, 9))
        rows, cols = ((n - 3) // stride + 1 for n in (12, 9))
        inside: Any = (70, (rows + 2, cols + 2), (2, 3), (rows, cols))
        x, other = paste_case(size, dtype, crops=crops), paste_case(inside, dtype, crops=crops)
        for along in (other["rows"], other["cols"]):
            along[:, 0].clamp_(0, 2)
        weight = torch.randn(70, channels, 3, 3) / channels
        packed = winograd.pack(weight, tile, dtype, stride)
        count = len(x["image"])
        request = (
            ints(WINOGRAD, ISAS[isa])
            + b"".join(array(t) for t in (None, packed, None, None))
            + ints(count, channels, 70, 12, 9, rows, cols, 0, 0, winograd.points(tile, stride), 1)
            + ints(1)
            + tiles_request(x, size)
            + tiles_request(other, inside)
        )
        plain = F.conv2d(by_hand(x, 0.0).float(), weight, stride=stride)
        expected = F.relu(plain + by_hand(other, 0.0))
        like = expected.permute(0, 2, 3, 1).to(dtype)
        found, rest = read(run(driver, request), like)
        assert not rest
        atol = 1e-5 if dtype == torch.float32 else 0.2
        assert torch.allclose(found.permute(0, 3, 1, 2).float(), expected, atol=atol)
