"""The masked, tanh-smoothed update in Triton: METHOD.md, equations 3 and 5 to 7.

Images of up to `ONE_PASS` values take one pass, the gradient staying in registers between the
reduction and the step. Larger ones take two launches: partial norms of chunks, then the step, whose
programs add the partial norms in a fixed order. Nothing is tuned at call time, so that graphs
capture and every call gives the same bits.

Alignment: an image of C·H·W values may start anywhere, but 16-byte accesses need aligned addresses
and masks that agree within 16 bytes. So an image is covered by its aligned groups of `GROUP` values
and, apart from them, by its at most 2·(GROUP − 1) values before the first and after the last group.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...common.numerics import Setting
from ..calls import NORMALIZE as NORMALIZE_NUMBERS
from ..calls import Update

GROUP = tl.constexpr(8)  # values; 16 bytes of bfloat16, 32 of float32
EDGES = tl.constexpr(16)
ONE_PASS = 8192  # values of an image that one program holds in registers
CHUNK = 4096  # values of a larger image that a program takes at a time
MOST_PARTS = 256  # programs of a larger image; each adds the partial norms of all

NONE = tl.constexpr(0)
MEAN_ABS = tl.constexpr(1)
MAX_ABS = tl.constexpr(2)
RMS = tl.constexpr(3)


@triton.jit
def smooth(x):
    """tanh: an odd polynomial near 0, where the other formula would cancel (constants: Cephes)."""
    magnitude = tl.abs(x)
    square = magnitude * magnitude
    p = -5.70498872745e-3
    p = p * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    near = p * square * magnitude + magnitude
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.minimum(magnitude, 10.0)) + 1.0)
    value = tl.where(magnitude < 0.625, near, far)
    return tl.where(x < 0, -value, value)


@triton.jit
def domain_at(domain_ptr, inside, b, channels, pixels, mask, CHANNELS_LAST: tl.constexpr):
    """Domain values at places `inside` an image."""
    pixel = inside // channels if CHANNELS_LAST else inside % pixels
    return tl.load(domain_ptr + b * pixels + pixel, mask=mask, other=0.0)


@triton.jit
def setting(ptr, value, b):
    """A number, or an image's own."""
    return value if ptr is None else tl.load(ptr + b)


@triton.jit
def step(
    adv_ptr, out_ptr, images_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, offsets, start, mask,
    grad, norm, eps, alpha, background, b, channels, pixels, gain, decay, lo, hi, sign,
    SIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Equations 3, 6 and 7 at `offsets` of the batch; `start` is where image b begins."""
    velocity = grad / norm
    if momentum_ptr is not None:
        velocity += decay * tl.load(momentum_ptr + offsets, mask=mask, other=0.0)
    if momentum_out_ptr is not None:
        tl.store(momentum_out_ptr + offsets, velocity, mask=mask)
    if SIGN:
        direction = tl.where(velocity > 0, 1.0, tl.where(velocity < 0, -1.0, 0.0))
    else:
        direction = smooth(gain * velocity)
    weight = 1.0
    if domain_ptr is not None:
        m = domain_at(domain_ptr, offsets - start, b, channels, pixels, mask, CHANNELS_LAST)
        weight = background + (1.0 - background) * m
    adv = tl.load(adv_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    image = tl.load(images_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    moved = adv + sign * (alpha * weight) * direction
    moved = tl.maximum(moved, tl.maximum(lo, image - eps * weight))
    moved = tl.minimum(moved, tl.minimum(hi, image + eps * weight))
    tl.store(out_ptr + offsets, moved.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, offsets, mask):
    """An inactive image keeps its pixels and its momentum; in place there is nothing to do."""
    tl.store(out_ptr + offsets, tl.load(adv_ptr + offsets, mask=mask), mask=mask)
    if momentum_out_ptr is not None:
        if momentum_ptr is not None:
            kept = tl.load(momentum_ptr + offsets, mask=mask, other=0.0)
        else:
            kept = tl.zeros_like(offsets).to(tl.float32)
        tl.store(momentum_out_ptr + offsets, kept, mask=mask)


@triton.jit
def extent(b, size):
    """Where image b begins and ends, its first aligned place, and its number of whole groups."""
    start = b * size
    first = tl.multiple_of(tl.cdiv(start, GROUP) * GROUP, GROUP)
    groups = tl.maximum((start + size) // GROUP - first // GROUP, 0)
    return start, start + size, first, groups


@triton.jit
def edges(start, end, first, groups):
    """Places before the first and after the last group of an image, and which of them exist."""
    lane = tl.arange(0, EDGES)
    head = start + lane
    tail = first + groups * GROUP + lane - GROUP
    places = tl.where(lane < GROUP, head, tail)
    mask = tl.where(lane < GROUP, head < tl.minimum(first, end), tail < end)
    return places, mask


@triton.jit
def measure(grad, NORMALIZE: tl.constexpr):
    """Sum of |g| or g², or max |g|, in float64: neither order nor size of the values matters."""
    exact = tl.abs(grad).to(tl.float64)
    if NORMALIZE == MAX_ABS:
        return tl.max(exact)
    if NORMALIZE == RMS:
        exact = exact * exact
    return tl.sum(exact)


@triton.jit
def joined(one, other, NORMALIZE: tl.constexpr):
    """Measure of two parts of an image together."""
    if NORMALIZE == MAX_ABS:
        return tl.maximum(one, other)
    return one + other


@triton.jit
def norm_of(measured, size, NORMALIZE: tl.constexpr):
    """N of equation 5, at least 1e-20, from the measure of a whole image."""
    norm = measured
    if NORMALIZE == MEAN_ABS:
        norm = measured / size
    if NORMALIZE == RMS:
        norm = tl.sqrt(measured / size)
    return tl.maximum(norm.to(tl.float32), 1e-20)


@triton.jit
def update_image(
    adv_ptr, out_ptr, images_ptr, grad_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, active_ptr,
    eps_ptr, alpha_ptr, background_ptr, eps, alpha, background, size, channels, pixels,
    gain, decay, lo, hi, sign,
    NORMALIZE: tl.constexpr, SIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, EDGED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One image in one pass."""
    b = tl.program_id(0).to(tl.int64)
    start, end, first, groups = extent(b, size)
    lane = tl.arange(0, BLOCK)
    body, mask = first + lane, lane // GROUP < groups
    places, exist = edges(start, end, first, groups)
    if active_ptr is not None:
        if tl.load(active_ptr + b) == 0:
            keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, body, mask)
            if EDGED:
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, places, exist)
            return
    eps, alpha = setting(eps_ptr, eps, b), setting(alpha_ptr, alpha, b)
    background = setting(background_ptr, background, b)
    grad = tl.load(grad_ptr + body, mask=mask, other=0.0).to(tl.float32)
    edge = tl.zeros((EDGES,), tl.float32)
    if EDGED:
        edge = tl.load(grad_ptr + places, mask=exist, other=0.0).to(tl.float32)
    norm = 1.0
    if NORMALIZE != NONE:
        measured = joined(measure(grad, NORMALIZE), measure(edge, NORMALIZE), NORMALIZE)
        norm = norm_of(measured, size, NORMALIZE)
    step(
        adv_ptr, out_ptr, images_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, body, start, mask,
        grad, norm, eps, alpha, background, b, channels, pixels, gain, decay, lo, hi, sign,
        SIGN, CHANNELS_LAST,
    )  # fmt: skip
    if EDGED:
        step(
            adv_ptr, out_ptr, images_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, places, start,
            exist, edge, norm, eps, alpha, background, b, channels, pixels, gain, decay, lo, hi,
            sign, SIGN, CHANNELS_LAST,
        )  # fmt: skip


@triton.jit
def norm_part(
    grad_ptr, measured_ptr, size, blocks,
    NORMALIZE: tl.constexpr, EDGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Measure of one part (program 0) of one image (program 1)."""
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, end, first, groups = extent(b, size)
    lane = tl.arange(0, BLOCK)
    edge = tl.zeros((EDGES,), tl.float32)
    if EDGED:
        places, exist = edges(start, end, first, groups)
        edge = tl.load(grad_ptr + places, mask=exist & (part == 0), other=0.0).to(tl.float32)
    measured = measure(edge, NORMALIZE)
    for i in range(blocks):
        at = (part * blocks + i) * BLOCK
        mask = at // GROUP + lane // GROUP < groups
        grad = tl.load(grad_ptr + first + at + lane, mask=mask, other=0.0).to(tl.float32)
        measured = joined(measured, measure(grad, NORMALIZE), NORMALIZE)
    tl.store(measured_ptr + b * tl.num_programs(0) + part, measured)


@triton.jit
def update_part(
    adv_ptr, out_ptr, images_ptr, grad_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, active_ptr,
    eps_ptr, alpha_ptr, background_ptr, measured_ptr, eps, alpha, background,
    size, channels, pixels, blocks, gain, decay, lo, hi, sign,
    NORMALIZE: tl.constexpr, SIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, EDGED: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of one image, in the reverse order of `norm_part`: what it read last is in L2."""
    parts = tl.num_programs(0)
    part = parts - 1 - tl.program_id(0)
    b = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    start, end, first, groups = extent(b, size)
    lane = tl.arange(0, BLOCK)
    places, exist = edges(start, end, first, groups)
    exist = exist & (part == 0)
    if active_ptr is not None:
        if tl.load(active_ptr + b) == 0:
            for i in range(blocks):
                at = (part * blocks + i) * BLOCK
                mask = at // GROUP + lane // GROUP < groups
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, first + at + lane, mask)
            if EDGED:
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, places, exist)
            return
    eps, alpha = setting(eps_ptr, eps, b), setting(alpha_ptr, alpha, b)
    background = setting(background_ptr, background, b)
    norm = 1.0
    if NORMALIZE != NONE:
        index = tl.arange(0, PARTS)
        measured = tl.load(measured_ptr + b * parts + index, mask=index < parts, other=0.0)
        whole = tl.max(measured) if NORMALIZE == MAX_ABS else tl.sum(measured)
        norm = norm_of(whole, size, NORMALIZE)
    for i in range(blocks):
        at = (part * blocks + i) * BLOCK
        mask = at // GROUP + lane // GROUP < groups
        body = first + at + lane
        grad = tl.load(grad_ptr + body, mask=mask, other=0.0).to(tl.float32)
        step(
            adv_ptr, out_ptr, images_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, body, start,
            mask, grad, norm, eps, alpha, background, b, channels, pixels, gain, decay, lo, hi,
            sign, SIGN, CHANNELS_LAST,
        )  # fmt: skip
    if EDGED:
        edge = tl.load(grad_ptr + places, mask=exist, other=0.0).to(tl.float32)
        step(
            adv_ptr, out_ptr, images_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, places, start,
            exist, edge, norm, eps, alpha, background, b, channels, pixels, gain, decay, lo, hi,
            sign, SIGN, CHANNELS_LAST,
        )  # fmt: skip


def _split(value: Setting) -> tuple[Tensor | None, float]:
    """A setting as a tensor (B,) or None, and a number."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)


def warps(block: int) -> int:
    """Warps of a program: 16 values a thread, at most 16 warps."""
    return max(1, min(16, block // 512))


def launch(out: Tensor, momentum_out: Tensor | None, u: Update) -> None:
    """Launch the kernels that fit the shape."""
    batch, channels, height, width = u.adv.shape
    size = channels * height * width
    eps, alpha, background = (_split(value) for value in (u.eps, u.alpha, u.background))
    active = None if u.active is None else u.active.view(torch.uint8)
    tensors = (
        *(u.adv, out, u.images, u.grad, u.domain, u.momentum, momentum_out, active),
        *(eps[0], alpha[0], background[0]),
    )
    numbers = (eps[1], alpha[1], background[1], size, channels, height * width)
    rest = (0.0 if math.isinf(u.gain) else u.gain, u.decay, *u.bounds, u.sign)
    options = {
        "NORMALIZE": NORMALIZE_NUMBERS[u.normalize],
        "SIGN": math.isinf(u.gain),
        "CHANNELS_LAST": not u.adv.is_contiguous(),
        "EDGED": size % GROUP.value != 0,
    }
    if size <= ONE_PASS:
        block = max(128, triton.next_power_of_2(size))
        update_image[(batch,)](*tensors, *numbers, *rest, **options, BLOCK=block, num_warps=warps(block))
        return
    chunks = triton.cdiv(size, CHUNK)
    blocks = triton.cdiv(chunks, MOST_PARTS)
    parts = triton.cdiv(chunks, blocks)
    measured = torch.empty((batch, parts), dtype=torch.float64, device=out.device)
    if u.normalize != "none":
        norm_part[(parts, batch)](
            u.grad, measured, size, blocks,
            NORMALIZE=options["NORMALIZE"], EDGED=options["EDGED"], BLOCK=CHUNK,
            num_warps=warps(CHUNK),
        )  # fmt: skip
    update_part[(parts, batch)](
        *tensors, measured, *numbers, blocks, *rest,
        **options, BLOCK=CHUNK, PARTS=triton.next_power_of_2(parts), num_warps=warps(CHUNK),
    )  # fmt: skip
