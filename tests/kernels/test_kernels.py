"""Native kernels against the reference on random inputs of awkward shapes, dtypes and layouts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from updates import DTYPES, SHAPES, given, run, settings, ulp

from sdsgsm_fast import _native_cpu, ops
from sdsgsm_fast.common.windows import Windows


@pytest.fixture(params=_native_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    best = _native_cpu.isa()
    _native_cpu.use_isa(request.param)
    yield request.param
    _native_cpu.use_isa(best)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_update_agrees(shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype, isa: str) -> None:
    t = given(shape, dtype, grad_dtype)
    for i in range(0, 24, 5):
        adv, momentum = run(t, "native", **settings(i))
        expected, expected_momentum = run(t, "reference", **settings(i))
        tolerance = 2e-6 if dtype == torch.float32 else 2 * ulp(dtype)
        assert adv.dtype == dtype
        assert float((adv.double() - expected.double()).abs().max()) <= tolerance
        scale = float(expected_momentum.abs().max())
        precise = 1e-12 if dtype == torch.float64 and grad_dtype == torch.float64 else 2e-5
        assert float((momentum - expected_momentum).abs().max()) <= precise * scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_is_the_float32_result_rounded(dtype: torch.dtype, backend: str) -> None:
    t = given((4, 3, 16, 15), dtype, dtype)
    wide = {k: v.float() if v.is_floating_point() else v for k, v in t.items()}
    for i in range(6):
        found, _ = run(t, backend, **settings(i))
        expected, _ = run(wide, "reference", **settings(i))
        assert float((found.double() - expected.double()).abs().max()) <= 2 * ulp(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_half_value_converts_as_in_torch(dtype: torch.dtype, isa: str) -> None:
    """α = 0 stores what was loaded: all 2^16 bit patterns of the 16-bit types survive."""
    if dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    else:
        values = torch.randn(4096, dtype=dtype) * 1e3
    values = values[values.isfinite()]
    images = values.view(1, 1, 1, -1)
    bounds = (-1e39, 1e39) if dtype == torch.float64 else (-3.3e38, 3.3e38)
    adv, _ = ops.update(
        images, images, torch.ones_like(images), None,
        eps=1.0, alpha=0.0, background=1.0, bounds=bounds, backend="native",
    )  # fmt: skip
    held = values.double().abs() <= bounds[1]
    assert torch.equal(adv.flatten()[held], values[held])


@pytest.mark.parametrize("layout", ["channels_last", "slice", "transposed", "expanded", "mixed"])
@pytest.mark.parametrize("in_place", [False, True])
def test_layouts(layout: str, in_place: bool, isa: str) -> None:
    t = given((3, 3, 13, 11), torch.float32, torch.float32)
    names = ("adv", "images", "grad", "momentum")
    laid = {k: v.clone() for k, v in t.items()}
    for name in names:
        if layout == "channels_last" or (layout == "mixed" and name in ("adv", "grad")):
            laid[name] = t[name].contiguous(memory_format=torch.channels_last)
        elif layout == "slice":
            laid[name] = torch.zeros(6, 5, 15, 12)[::2, 1:4, 1:14, :11].copy_(t[name])
        elif layout == "transposed":
            laid[name] = t[name].transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        for k in ("grad", "images"):
            laid[k] = t[k][:1].expand(3, -1, -1, -1)
            t[k] = laid[k].contiguous()
        laid["domain"] = t["domain"][:1].expand(3, -1, -1)
        t["domain"] = laid["domain"].contiguous()
    expected, expected_momentum = run(t, "reference", decay=0.9)
    positional = [laid[k] for k in ("adv", "images", "grad", "domain")]
    rest = {k: laid[k] for k in ("momentum", "active", "eps", "alpha", "background")}
    function = ops.update_ if in_place else ops.update
    adv, momentum = function(*positional, **rest, decay=0.9, backend="native")
    assert momentum is not None
    assert torch.allclose(adv, expected, atol=2e-6, rtol=0)
    assert torch.allclose(momentum, expected_momentum, atol=2e-5, rtol=2e-5)
    if in_place:
        assert adv is laid["adv"]
        assert momentum is laid["momentum"]
    else:
        assert torch.equal(laid["adv"], t["adv"])


def test_update_in_place_writes_nothing_else(isa: str) -> None:
    """Canaries around every buffer that the kernel may write to."""
    shape = (3, 3, 9, 7)
    t = given(shape, torch.float32, torch.float32)
    canary, count = 12345.0, math.prod(shape)
    backing = {k: torch.full((count + 64,), canary) for k in ("adv", "momentum")}
    for k, whole in backing.items():
        t[k] = whole[32 : 32 + count].view(shape).copy_(t[k])
    expected, _ = run(t, "reference", decay=0.9)
    arguments = dict(t)
    positional = [arguments.pop(k) for k in ("adv", "images", "grad", "domain")]
    ops.update_(*positional, **arguments, decay=0.9, backend="native")
    assert torch.allclose(t["adv"], expected, atol=2e-6, rtol=0)
    for whole in backing.values():
        assert torch.all(whole[:32] == canary)
        assert torch.all(whole[32 + count :] == canary)


def test_update_is_deterministic_and_knows_no_neighbours(isa: str, backend: str) -> None:
    t = given((6, 3, 33, 31), torch.float32, torch.float32)
    threads = torch.get_num_threads()
    together, _ = run(t, backend)
    try:
        torch.set_num_threads(1)
        again, _ = run(t, backend)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, again)
    for b in range(6):
        alone, _ = run({k: v[b : b + 1] for k, v in t.items()}, backend)
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("normalize", ops.NORMALIZE)
def test_threads_share_an_image_without_changing_it(normalize: str, isa: str) -> None:
    """Fewer images than threads: chunks of one image go to different threads."""
    t = given((1, 3, 211, 223), torch.float32, torch.float32)
    expected, _ = run(t, "reference", normalize=normalize)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            results.append(run(t, "native", normalize=normalize)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.allclose(results[0], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 600])
def test_domain_of_channels_last_images(channels: int, isa: str) -> None:
    """Blocks begin inside a pixel when the channels do not divide their size."""
    t = given((2, channels, 29, 31), torch.float32, torch.float32)
    expected, _ = run(t, "reference")
    last = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
            for k, v in t.items()}  # fmt: skip
    found, _ = run(last, "native")
    assert torch.allclose(found, expected, atol=2e-6, rtol=0)


def test_defaults_of_update(backend: str) -> None:
    """No domain means m ≡ 1, no active mask means all, no momentum at decay 0 stays none."""
    t = given((2, 3, 6, 5), torch.float32, torch.float32)
    ones, all_active = torch.ones_like(t["domain"]), torch.ones(2, dtype=torch.bool)
    common = {"eps": 0.1, "alpha": 0.02, "background": 0.3, "backend": backend}
    bare, none = ops.update(t["adv"], t["images"], t["grad"], None, **common)
    spelt, momentum = ops.update(
        t["adv"], t["images"], t["grad"], ones,
        active=all_active, momentum=torch.zeros_like(t["adv"]), **common,
    )  # fmt: skip
    assert none is None
    assert torch.equal(bare, spelt)
    _, first = ops.update(t["adv"], t["images"], t["grad"], None, decay=1.0, **common)
    assert torch.equal(first, momentum)


def test_subnormal_halves_survive_flushing(isa: str) -> None:
    """Gradients below 6e-5 are subnormal in float16, but ordinary numbers."""
    t = given((2, 3, 8, 8), torch.float32, torch.float32)
    t["grad"] = (torch.randn(2, 3, 8, 8) * 1e-5).half()
    expected, _ = run(t, "reference")
    try:
        torch.set_flush_denormal(True)  # where the processor can
        found, _ = run(t, "native")
    finally:
        torch.set_flush_denormal(False)
    assert torch.allclose(found, expected, atol=2e-6, rtol=0)


def test_tiny_gradients_do_not_vanish(backend: str) -> None:
    """Float32 squares of 1e-30 underflow; the norm must not."""
    grad = torch.full((1, 1, 4, 4), 1e-19)
    x = torch.full_like(grad, 0.5)
    for normalize in ("mean_abs", "max_abs", "rms"):
        adv, _ = ops.update(
            x, x, grad, None,
            eps=0.1, alpha=0.1, background=1.0, normalize=normalize, backend=backend,
        )  # fmt: skip
        assert torch.allclose(adv - x, torch.full_like(x, 0.1 * math.tanh(1.0)), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_occlude_agrees(dtype: torch.dtype, out: torch.dtype, channels_last: bool, isa: str) -> None:
    for shape, patch, stride in [
        ((2, 3, 32, 32), 4, 4),
        ((1, 1, 1, 1), 1, 1),
        ((3, 4, 11, 13), (5, 3), (2, 3)),
        ((2, 3, 33, 31), 8, 7),
    ]:
        images = torch.rand(shape).to(dtype)
        channels = shape[1]
        common = {
            "patch": patch, "stride": stride, "dtype": out, "channels_last": channels_last,
            "fill": [0.1 * c for c in range(channels)],
            "mean": [0.5 - 0.1 * c for c in range(channels)],
            "std": [0.25 + 0.1 * c for c in range(channels)],
        }  # fmt: skip
        windows = Windows.over(shape[2], shape[3], patch, stride)
        for first, count in {(0, len(windows)), (len(windows) // 2, 1), (len(windows) - 1, 1)}:
            found = ops.occlude(images, first, count, backend="native", **common)
            expected = ops.occlude(images, first, count, backend="reference", **common)
            assert found.dtype == out
            assert found.shape == (shape[0] * count, *shape[1:])
            assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            assert torch.equal(found, expected)


def test_occlude_zeroes_just_the_window(backend: str) -> None:
    images = torch.rand(2, 3, 10, 9) + 0.1
    copies = ops.occlude(images, 0, 9, patch=4, stride=3, backend=backend).view(2, 9, 3, 10, 9)
    for k in range(9):
        rows, cols = slice(k // 3 * 3, k // 3 * 3 + 4), slice(k % 3 * 3, k % 3 * 3 + 4)
        expected = images.clone()
        expected[:, :, rows, cols] = 0
        assert torch.equal(copies[:, k], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_window_mean_has_the_same_bits_everywhere(dtype: torch.dtype, isa: str) -> None:
    """Ties in the ranking must be ties on every backend."""
    for height, width, patch, stride in [(33, 31, (8, 5), (7, 2)), (9, 9, 3, 1), (7, 5, (7, 5), 1)]:
        windows = Windows.over(height, width, patch, stride)
        scores = torch.randn(3, windows.rows, windows.cols).to(dtype)
        found, expected = (
            ops.window_mean(scores, height, width, patch=patch, stride=stride, backend=backend)
            for backend in ("native", "reference")
        )
        assert found.dtype == dtype
        assert torch.equal(found, expected)


def test_empty_batches(backend: str) -> None:
    x, none = torch.empty(0, 3, 8, 8), torch.empty(0)
    adv, _ = ops.update(x, x, x, torch.empty(0, 8, 8), eps=none, alpha=none, background=none, backend=backend)
    assert adv.shape == x.shape
    assert ops.occlude(x, 0, 4, patch=4, backend=backend).shape == x.shape
    assert ops.occlude(torch.rand(2, 3, 8, 8), 0, 0, patch=4, backend=backend).shape == x.shape
    means = ops.window_mean(torch.empty(0, 2, 2), 8, 8, patch=4, backend=backend)
    assert means.shape == (0, 8, 8)


def test_backends_are_chosen_and_named() -> None:
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="backend: expected one of auto, reference, native, triton"):
        ops.occlude(x, 0, 1, patch=4, backend="cuda")
    with pytest.raises(ValueError, match=r"'triton' does not take torch\.float64 on cpu; pass 'auto'"):
        ops.occlude(x.double(), 0, 1, patch=4, backend="triton")
    with pytest.raises(ValueError, match="isa: mmx is not available"):
        _native_cpu.use_isa("mmx")
