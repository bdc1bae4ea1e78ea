"""The Triton kernels: against the reference in the interpreter, and compiled without a GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from updates import DTYPES, SHAPES, given, run, settings, ulp

from sdsgsm_fast import ops
from sdsgsm_fast.common.windows import Windows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [dtype for dtype in DTYPES if dtype != torch.float64]

# Images of one pass and of two, whole in groups of 8 values and not.
LARGER = [(2, 3, 55, 50), (2, 3, 56, 64), (3, 1, 91, 91), (1, 8, 32, 33)]


def on_device(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(DEVICE) for name, value in t.items()}


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("grad_dtype", KINDS, ids=str)
@pytest.mark.parametrize("shape", [*(s for s in SHAPES if s != (1, 3, 299, 299)), *LARGER], ids=str)
def test_update_agrees(shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    t = on_device(given(shape, dtype, grad_dtype))
    for i in ((shape[3] + 5 * KINDS.index(dtype) + KINDS.index(grad_dtype)) % 24, 3):
        adv, momentum = run(t, "triton", **settings(i))
        expected, expected_momentum = run(t, "reference", **settings(i))
        tolerance = 2e-6 if dtype == torch.float32 else 2 * ulp(dtype)
        assert adv.dtype == dtype
        assert float((adv.double() - expected.double()).abs().max()) <= tolerance
        scale = float(expected_momentum.abs().max())
        assert float((momentum - expected_momentum).abs().max()) <= 2e-5 * scale


def test_update_of_a_large_odd_image() -> None:
    t = on_device(given((1, 3, 299, 299), torch.float32, torch.bfloat16))
    t["active"][:] = True
    adv, _ = run(t, "triton", decay=0.9)
    expected, _ = run(t, "reference", decay=0.9)
    assert float((adv - expected).abs().max()) <= 2e-6


@pytest.mark.parametrize("shape", [(3, 3, 13, 11), (2, 3, 55, 50)], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("normalize", ops.NORMALIZE)
def test_channels_last_in_place_and_inactive(shape: tuple[int, ...], in_place: bool, normalize: str) -> None:
    """Canaries around every buffer that the kernels write to: the interpreter has no guards."""
    t = given(shape, torch.float32, torch.float32)
    t["active"] = torch.tensor([True, False, True][: shape[0]])
    laid = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in t.items()}
    count, canary = t["adv"].numel(), 12345.0
    backing = {k: torch.full((count + 64,), canary, device=DEVICE) for k in ("adv", "momentum")}
    for k, whole in backing.items():
        flat = whole[32 : 32 + count].view(laid[k].permute(0, 2, 3, 1).shape)
        laid[k] = flat.copy_(laid[k].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected, expected_momentum = run(t, "reference", decay=0.9, normalize=normalize)
    arguments = on_device(laid)
    positional = [arguments.pop(k) for k in ("adv", "images", "grad", "domain")]
    function = ops.update_ if in_place else ops.update
    adv, momentum = function(*positional, **arguments, decay=0.9, normalize=normalize, backend="triton")
    assert torch.allclose(adv.cpu(), expected, atol=2e-6, rtol=0)
    assert torch.allclose(momentum.cpu(), expected_momentum, atol=2e-5, rtol=2e-5)
    for whole in backing.values():
        assert torch.all(whole[:32] == canary)
        assert torch.all(whole[32 + count :] == canary)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("out", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_occlude_agrees(dtype: torch.dtype, out: torch.dtype, channels_last: bool) -> None:
    images = torch.rand(3, 4, 11, 13).to(DEVICE, dtype)
    common = {
        "patch": (5, 3), "stride": (2, 3), "dtype": out, "channels_last": channels_last,
        "fill": [0.0, 0.1, 0.2, 0.3], "mean": 0.45, "std": [0.2, 0.3, 0.25, 0.5],
    }  # fmt: skip
    total = len(Windows.over(11, 13, (5, 3), (2, 3)))
    for first, count in ((0, total), (7, 1), (total - 2, 2)):
        found = ops.occlude(images, first, count, backend="triton", **common)
        expected = ops.occlude(images, first, count, backend="reference", **common)
        assert found.dtype == out
        assert found.stride() == expected.stride()
        assert float((found.double() - expected.double()).abs().max()) <= 2 * ulp(
            torch.float32 if out == torch.float64 else out
        ) * float(expected.abs().max())


@pytest.mark.parametrize("shape", [(2, 3, 20, 24), (1, 2, 33, 35)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_programs_write_runs_of_copies(
    shape: tuple[int, ...], channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several programs an image, each of several copies, the last run shorter."""
    from sdsgsm_fast.kernels.triton import occlude_kernel

    monkeypatch.setattr(occlude_kernel, "ENOUGH", 2)
    images = torch.rand(shape, device=DEVICE)
    options = {"patch": 6, "stride": 5, "mean": 0.4, "std": 0.3, "channels_last": channels_last}
    count = len(Windows.over(*shape[2:], (6, 6), (5, 5))) - 1
    found, expected = (ops.occlude(images, 1, count, backend=b, **options) for b in ("triton", "reference"))
    assert torch.allclose(found, expected, atol=2e-6, rtol=1e-6)


def test_window_mean_has_the_bits_of_the_reference() -> None:
    for height, width, patch, stride in [(33, 31, (8, 5), (7, 2)), (9, 9, 3, 1), (40, 28, 4, 4)]:
        windows = Windows.over(height, width, patch, stride)
        scores = torch.randn(3, windows.rows, windows.cols, device=DEVICE)
        found, expected = (
            ops.window_mean(scores, height, width, patch=patch, stride=stride, backend=backend)
            for backend in ("triton", "reference")
        )
        assert torch.equal(found, expected)


# Most instructions of a kernel whose shapes are multiples of 16: what was counted, and a seventh more.
MOST_INSTRUCTIONS = {"update_image": 1000, "norm_part": 250, "update_part": 1230, "paste": 460, "occlude": 870}


def test_compiled_kernels_spill_nothing_and_load_16_bytes() -> None:
    """For sm_80, sm_90 and sm_100, on sizes that are multiples of 16 and on odd ones."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_aot.py"))],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["arch"] for row in rows} == {80, 90, 100}
    assert {row["size"] % 16 == 0 for row in rows if row["kernel"] == "update_image"} == {
        True,
        False,
    }
    for row in rows:
        assert row["spills"] == row["stack"] == 0, row
        assert row["registers"] <= 168, row
        if row["size"] % 16 == 0:
            assert row["instructions"] <= MOST_INSTRUCTIONS.get(row["kernel"], math.inf), row
        if row["kernel"] == "update_image" and row["size"] % 16 == 0:
            assert row["loads_16_ahead"] == row["loads_16"] >= 10, row  # none waits for the norm
        if row["kernel"] == "occlude":
            assert row["stores_16"] >= 2, row
        if row["kernel"] in ("update_image", "update_part"):
            # Gradient, adv and image in 16-byte pieces; the domain too where a plane is aligned.
            assert row["loads_16"] >= 3, row
            assert row["stores_16"] >= 1, row
        if row["kernel"] == "norm_part":
            assert row["loads_16"] >= 1, row
        if row["kernel"] == "paste" and row["size"] % 16 == 0:
            assert row["loads_16"] >= 2, row  # map and crop
            assert row["stores_16"] >= 1, row
