"""Winograd's products against a convolution in double, for every instruction set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import CASES, FORMS, case, last
from tiles import case as paste_case
from torch import Tensor

from sdsgsm_fast import _native_cpu, ops
from sdsgsm_fast.engine import winograd
from sdsgsm_fast.engine.convolution import Convolution
from sdsgsm_fast.engine.layer import Layer, written
from sdsgsm_fast.kernels import native
from sdsgsm_fast.kernels.calls import Paste


@pytest.fixture(params=_native_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native_cpu.isa()
    _native_cpu.use_isa(request.param)
    yield request.param
    _native_cpu.use_isa(before)


# Every instruction set, and those products of bfloat16 that the last one may have.
KINDS = [(name, torch.float32) for name in _native_cpu.isas()]
if native.winograd_in_bfloat16():
    KINDS.append((_native_cpu.isa(), torch.bfloat16))


@pytest.fixture(params=KINDS, ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before, (name, kind) = _native_cpu.isa(), request.param
    _native_cpu.use_isa(name)
    yield kind
    _native_cpu.use_isa(before)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_defaults_of_torch_do_not_matter(tile: int, stride: int) -> None:
    weight = torch.randn(70, 33, 3, 3)
    expected = winograd.pack(weight, tile, stride=stride)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            found = winograd.pack(weight, tile, stride=stride)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_agrees_with_a_convolution(
    isa: str, number: int, tile: int, stride: int, relu: bool, biased: bool, added: bool
) -> None:
    x, weight, bias, other, padding = case(number, stride)
    expected = F.conv2d(
        x.double(), weight.double(), bias.double() if biased else None, padding=padding,
        stride=stride,
    )  # fmt: skip
    expected = expected + other.double() if added else expected
    expected = expected.relu() if relu else expected
    found = winograd.convolve(
        x, winograd.pack(weight, tile, stride=stride), len(weight), bias if biased else None,
        other if added else None, padding, relu,
    )  # fmt: skip
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < (1e-5 if tile == 2 else 2e-5)


def refused_in_bfloat16() -> bool:
    """Whether products of bfloat16 are not there; then asking for them is an error."""
    if native.winograd_in_bfloat16():
        return False
    with pytest.raises(ValueError, match="no Winograd products"):
        winograd.pack(torch.ones(1, 1, 3, 3), 2, torch.bfloat16)
    return True


def test_bfloat16_is_refused_where_it_is_missing(isa: str) -> None:
    assert refused_in_bfloat16() or isa == _native_cpu.isas()[-1]


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("channels", [40, 129])
def test_tiles_of_every_size_agree(channels: int, tile: int, stride: int, dtype: torch.dtype) -> None:
    """Maps with all that a division by the tile can leave, on both axes."""
    weight = torch.randn(70, channels, 3, 3) / math.sqrt(9 * channels)
    packed, bias = winograd.pack(weight, tile, dtype, stride), torch.randn(70)
    weight = weight if dtype == torch.float32 else weight.to(dtype).float()
    near = 2e-5 if dtype == torch.float32 else 0.15
    for rows in range(1, 2 * tile + 2):
        for cols in range(1, 2 * tile + 2):
            x = last(torch.randn(3, channels, stride * rows + 2, stride * cols + 2)).to(dtype)
            expected = F.conv2d(x.double(), weight.double(), bias.double(), stride=stride)
            expected = expected[..., :rows, :cols]
            x = x[..., : stride * (rows - 1) + 3, : stride * (cols - 1) + 3]
            found = torch.full_like(last(expected), torch.nan, dtype=dtype)
            native.winograd(found, last(x), packed, bias, None, (0, 0), False)
            assert float((found - expected).abs().max()) < near


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("added", [False, True])
def test_bfloat16_is_exact_where_nothing_is_rounded(number: int, added: bool) -> None:
    if refused_in_bfloat16():
        return
    x, weight, bias, other, padding = case(number)
    x = torch.randint_like(x, -1, 2)
    weight = 4.0 * torch.randint_like(weight, -1, 2) * (torch.rand_like(weight) < 0.05)
    bias, other = (4.0 * torch.randint_like(t, -3, 4) for t in (bias, other))
    expected = F.conv2d(x, weight, bias, padding=padding)
    expected = (expected + other).relu() if added else expected
    found = winograd.convolve(
        x.bfloat16(), winograd.pack(weight, 2, torch.bfloat16), len(weight), bias,
        other.bfloat16() if added else None, padding, added,
    )  # fmt: skip
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_bfloat16_is_as_near_as_its_rounding(number: int, tile: int, stride: int) -> None:
    if refused_in_bfloat16():
        return
    x, weight, bias, other, padding = case(number, stride)
    x, weight, other = x.bfloat16(), weight.bfloat16().float(), other.bfloat16()
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding, stride=stride) + other
    packed = winograd.pack(weight, tile, torch.bfloat16, stride)
    found = winograd.convolve(x, packed, len(weight), bias, other, padding, False)
    assert float((found - exact).norm()) < (0.006 if tile == 2 else 0.015) * float(exact.norm())


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_nothing_is_written_around_the_result(number: int, tile: int, stride: int, dtype: torch.dtype) -> None:
    x, weight, bias, other, padding = case(number, stride)
    canary = 12352.0
    batch, outputs, height, width = other.shape
    whole = torch.full((other.numel() + 128,), canary, dtype=dtype)
    out = whole[64:-64].view(batch, height, width, outputs).permute(0, 3, 1, 2)
    packed = winograd.pack(weight, tile, dtype, stride)
    native.winograd(out, x.to(dtype), packed, bias, other.to(dtype), padding, True)
    expected = F.relu(F.conv2d(x, weight, bias, padding=padding, stride=stride) + other)
    assert torch.allclose(out.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.2)
    assert torch.all(whole[:64] == canary)
    assert torch.all(whole[-64:] == canary)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("zeros", [[0], [4], [1, 2], [0, 1, 2, 3, 4]])
def test_images_of_zeros_are_left_out(tile: int, stride: int, zeros: list[int], dtype: torch.dtype) -> None:
    """Their results are zeros, over what was there; the others' are what they were."""
    x, weight, bias, other, padding = case(0, stride)
    x, other = x.to(dtype), other.to(dtype)
    x = last(x[:1].repeat(5, 1, 1, 1) * torch.arange(1.0, 6.0)[:, None, None, None])
    x, packed, out = (
        x.to(dtype),
        winograd.pack(weight, tile, dtype, stride),
        other[:1].repeat(5, 1, 1, 1),
    )
    given = torch.where(torch.isin(torch.arange(5), torch.tensor(zeros))[:, None, None, None], 0, x)
    whole, found = (torch.full_like(last(out), torch.nan) for _ in range(2))
    native.winograd(whole, x, packed, None, None, padding, False)
    native.winograd(found, last(given), packed, None, None, padding, False)
    whole[zeros] = 0
    assert torch.equal(found, whole)
    biased = winograd.convolve(last(given), packed, len(weight), bias, None, padding, False)
    expected = F.conv2d(given.float(), weight, bias, padding=padding, stride=stride)
    assert torch.allclose(biased.float(), expected, atol=1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_an_image_does_not_depend_on_its_batch_nor_on_the_threads(tile: int, stride: int, dtype: torch.dtype) -> None:
    x, weight = last(torch.randn(40, 47, 10, 9)).to(dtype), torch.randn(80, 47, 3, 3)
    packed, bias = winograd.pack(weight, tile, dtype, stride), torch.randn(80)
    together = winograd.convolve(x, packed, 80, bias, None, (1, 1), False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(winograd.convolve(x, packed, 80, bias, None, (1, 1), False), together)
    finally:
        torch.set_num_threads(threads)
    for k in (0, 17, 39):
        alone = winograd.convolve(x[k : k + 1], packed, 80, bias, None, (1, 1), False)
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_not_a_number_stays_one_and_no_images_give_none(tile: int, stride: int, dtype: torch.dtype) -> None:
    x, weight, bias, _, padding = case(1, stride)
    x[0, 2, 4, 4] = torch.nan
    x, packed = x.to(dtype), winograd.pack(weight, tile, dtype, stride)
    found = winograd.convolve(x, packed, 7, bias, None, padding, True)
    reached = slice(3, 6) if stride == 1 else slice(2, 3)
    assert found[0, :, reached, reached].isnan().all()
    assert found[1].isfinite().all()
    none = winograd.convolve(x[:0], packed, 7, bias, None, padding, True)
    assert none.shape == (0, *found.shape[1:])


@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_any_layout_is_taken(tile: int, stride: int) -> None:
    x, weight, bias, other, padding = case(2, stride)
    expected = winograd.convolve(x, winograd.pack(weight, tile, stride=stride), 70, bias, other, padding, True)
    found = winograd.convolve(
        x.contiguous(),
        winograd.pack(weight, tile, stride=stride),
        70,
        bias,
        other.contiguous(),
        padding,
        True,
    )
    assert torch.equal(found, expected)


def tiles_of(size: Any, dtype: torch.dtype, crops: str) -> Paste:
    return Paste(**paste_case(size, dtype, crops=crops), pad=0.0)


@pytest.mark.parametrize(("tile", "stride"), FORMS)
@pytest.mark.parametrize("crops", ["each", "one", "none"])
@pytest.mark.parametrize("added", [None, "whole", "tiles"])
def test_tiles_are_read_as_if_they_were_written(
    tile: int, stride: int, crops: str, added: str | None, dtype: torch.dtype
) -> None:
    """To the bit, also beyond the border and where a crop covers nothing or everything."""
    for channels, *sizes in (
        (40, (9, 11), (4, 4), (6, 7)), (64, (12, 8), (5, 8), (12, 9)), (33, (8, 9), (2, 3), (4, 5)),
        (3, (6, 6), (6, 6), (10, 9)), (32, (20, 20), (7, 9), (13, 14)),
    ):  # fmt: skip
        x = tiles_of((channels, *sizes), dtype, crops)
        packed = winograd.pack(torch.randn(70, channels, 3, 3), tile, dtype, stride)
        bias = torch.randn(70)
        plain = winograd.convolve(written(x, "auto"), packed, 70, bias, None, (0, 0), False)
        inside = tuple(n + 3 for n in plain.shape[2:])  # no tile of it leaves the map
        others = tiles_of((70, inside, (2, 3), plain.shape[2:]), dtype, crops)
        for along in (others.rows, others.cols):
            along[:, 0].clamp_(0, 3)
        other = None if added is None else written(others, "auto")
        given = others if added == "tiles" else other
        expected = winograd.convolve(written(x, "auto"), packed, 70, bias, other, (0, 0), True)
        assert torch.equal(winograd.convolve(x, packed, 70, bias, given, (0, 0), True), expected)
        found = winograd.convolve(written(x, "auto"), packed, 70, bias, given, (0, 0), True)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("change", ["", "pad", "dtype", "small"])
def test_a_layer_writes_tiles_out_where_it_must(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size: Any = (40, (9, 11), (4, 4), (3, 3) if change == "small" else (6, 7))
    x = tiles_of(size, torch.float32, "each")
    if change == "pad":
        x = replace(x, pad=-1.0)
    if change == "dtype":
        x = replace(x, clean=x.clean.double(), crops=None)
    weight = torch.randn(50, 40, 3, 3)
    convolution = Convolution(weight, None, (1, 1), (0, 0), (1, 1), 1)
    expected = F.conv2d(written(x, "auto").float(), weight)
    calls = []
    run = ops.paste
    monkeypatch.setattr(ops, "paste", lambda *a, **k: (calls.append(1), run(*a, **k))[1])
    found = Layer(convolution, "auto")(x)
    assert len(calls) == (change != "")
    assert float((found - expected).abs().max()) < 1e-3


def interpolation(points: list[float], taps: int) -> Tensor:
    """G of Toom and Cook for the points and ∞: p^j over the product of p's distances."""
    rows = [[p**j / math.prod(p - q for q in points if q != p) for j in range(taps)] for p in points]
    return torch.tensor([*rows, [0] * (taps - 1) + [1]]).double()


def matrix(tile: int, stride: int) -> Tensor:
    """G of a tile, (points, 3)."""
    if stride == 1:
        # The small tile's first row has the usual sign, which its inputs have too.
        g = interpolation([0.0, 1.0, -1.0] if tile == 2 else [0.0, 0.75, -0.75, 1.5, -1.5], 3)
        g[0] = g[0].abs()
        return g
    g = torch.zeros(9, 3).double()
    g[::2, ::2] = interpolation([0.5, -0.5, 1.25, -1.25], 2)
    g[1::2, 1] = 1
    return g


@pytest.mark.parametrize("outputs", [1, 64, 65, 130])
@pytest.mark.parametrize(("tile", "stride"), FORMS)
def test_weights_are_transformed(isa: str, outputs: int, tile: int, stride: int) -> None:
    weight, g = torch.randn(outputs, 5, 3, 3), matrix(tile, stride)
    expected = torch.einsum("ai,kcij,bj->kcab", g, weight.double(), g).flatten(2)
    last_ = weight.contiguous(memory_format=torch.channels_last)
    found = winograd.pack(last_, tile, stride=stride).permute(0, 3, 2, 1).flatten(0, 1)
    assert torch.allclose(found[:outputs].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.all(found[outputs:] == 0)


@pytest.mark.parametrize(("tile", "stride", "most"), [(2, 1, 2), (4, 1, 5), (4, 2, 3)])
def test_rounding_errors_are_those_of_a_convolution(tile: int, stride: int, most: float) -> None:
    x = last(torch.randn(4, 256, 16, 16).relu())
    weight = torch.randn(256, 256, 3, 3) / math.sqrt(9 * 128)
    exact = F.conv2d(x.double(), weight.double(), padding=1, stride=stride)

    def error(found: Tensor) -> float:
        return float((found - exact).pow(2).mean().sqrt())

    direct = error(F.conv2d(x, weight, padding=1, stride=stride))
    packed = winograd.pack(weight, tile, stride=stride)
    assert error(winograd.convolve(x, packed, 256, None, None, (1, 1), False)) < most * direct


def test_tiles_at_the_end_of_a_map_are_small() -> None:
    for tile, stride in FORMS:
        whole = winograd.points(tile, stride) ** 2
        assert winograd.products(tile, tile, tile, stride) == whole
        assert winograd.products(tile, 3 * tile, tile, stride) == 3 * whole
        assert winograd.products(tile, 1, 1, stride) == 9, "as many as a direct one has"
    assert winograd.products(4, 7, 6) == (6 + 5) * (6 + 4)
    assert winograd.products(4, 7, 6, stride=2) == (9 + 7) * (9 + 5)


def test_tiles_that_suit() -> None:
    sizes = {(2, 2): 2, (4, 4): 4, (7, 7): 4, (14, 14): 4, (3, 3): 4, (5, 5): 4, (10, 10): 4}
    assert {size: winograd.tile_for(*size) for size in sizes} == sizes
    assert winograd.tile_for(1, 64) is None
    assert winograd.tile_for(1, 1) is None
    assert winograd.share(1, 1) == 1
    assert winograd.share(32, 32) < winograd.share(7, 7) < 1
    assert winograd.tile_for(8, 8, stride=2) == 4
    assert winograd.tile_for(7, 7, stride=2) == 4
    assert winograd.tile_for(2, 2, stride=2) is None
    assert winograd.share(32, 32) < winograd.share(32, 32, 2) < 1
