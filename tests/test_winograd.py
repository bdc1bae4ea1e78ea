"""Winograd's products against a convolution in double, for every instruction set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsgsm_fast import _native_cpu
from sdsgsm_fast.backends import native
from sdsgsm_fast.traced import winograd

CASES = [  # batch, channels, outputs, height, width, padding
    (1, 1, 1, 3, 3, (0, 0)), (2, 5, 7, 9, 8, (1, 1)), (3, 33, 70, 8, 11, (0, 0)),
    (1, 64, 64, 4, 4, (2, 1)), (2, 40, 129, 7, 5, (0, 1)), (5, 15, 31, 6, 3, (1, 0)),
    (1, 600, 65, 5, 6, (1, 1)), (7, 17, 96, 13, 4, (0, 0)), (2, 3, 16, 1, 1, (1, 1)),
]  # fmt: skip


@pytest.fixture(params=_native_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native_cpu.isa()
    _native_cpu.use_isa(request.param)
    yield request.param
    _native_cpu.use_isa(before)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def case(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
    batch, channels, outputs, height, width, padding = CASES[number]
    x = last(torch.randn(batch, channels, height, width))
    weight = torch.randn(outputs, channels, 3, 3) / math.sqrt(9 * channels)
    shape = (batch, outputs, height + 2 * padding[0] - 2, width + 2 * padding[1] - 2)
    return x, weight, torch.randn(outputs), last(torch.randn(shape)), padding


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_agrees_with_a_convolution(
    isa: str, number: int, relu: bool, biased: bool, added: bool
) -> None:
    x, weight, bias, other, padding = case(number)
    expected = F.conv2d(
        x.double(), weight.double(), bias.double() if biased else None, padding=padding
    )
    expected = expected + other.double() if added else expected
    expected = expected.relu() if relu else expected
    found = winograd.convolve(
        x, winograd.pack(weight), len(weight), bias if biased else None,
        other if added else None, padding, relu,
    )  # fmt: skip
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("number", range(len(CASES)))
def test_nothing_is_written_around_the_result(isa: str, number: int) -> None:
    x, weight, bias, other, padding = case(number)
    canary = 12345.0
    batch, outputs, height, width = other.shape
    whole = torch.full((other.numel() + 128,), canary)
    out = whole[64:-64].view(batch, height, width, outputs).permute(0, 3, 1, 2)
    native.winograd(out, x, winograd.pack(weight), bias, other, padding, True)
    expected = F.relu(F.conv2d(x, weight, bias, padding=padding) + other)
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.all(whole[:64] == canary)
    assert torch.all(whole[-64:] == canary)


def test_an_image_does_not_depend_on_its_batch_nor_on_the_threads(isa: str) -> None:
    x, weight = last(torch.randn(40, 48, 10, 9)), torch.randn(80, 48, 3, 3)
    packed, bias = winograd.pack(weight), torch.randn(80)
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


def test_not_a_number_stays_one_and_no_images_give_none(isa: str) -> None:
    x, weight, bias, _, padding = case(1)
    x[0, 2, 4, 4] = torch.nan
    found = winograd.convolve(x, winograd.pack(weight), 7, bias, None, padding, True)
    assert found[0, :, 3:6, 3:6].isnan().all()
    assert found[1].isfinite().all()
    assert winograd.convolve(x[:0], winograd.pack(weight), 7, bias, None, padding, True).shape == (
        0, 7, 9, 8,
    )  # fmt: skip


def test_any_layout_is_taken() -> None:
    x, weight, bias, other, padding = case(2)
    expected = winograd.convolve(x, winograd.pack(weight), 70, bias, other, padding, True)
    found = winograd.convolve(
        x.contiguous(), winograd.pack(weight), 70, bias, other.contiguous(), padding, True
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("outputs", [1, 64, 65, 130])
def test_weights_are_transformed(isa: str, outputs: int) -> None:
    weight = torch.randn(outputs, 5, 3, 3)
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]).double()
    expected = torch.einsum("ai,kcij,bj->kcab", g, weight.double(), g).flatten(2)
    packed = winograd.pack(weight.contiguous(memory_format=torch.channels_last))
    found = packed.permute(0, 3, 2, 1).flatten(0, 1)
    assert torch.equal(found[:outputs], expected.float())
    assert torch.all(found[outputs:] == 0)


def test_sizes_that_suit() -> None:
    assert winograd.suits(2, 2)
    assert winograd.suits(5, 5)
    assert not winograd.suits(3, 3)
    assert not winograd.suits(1, 64)
