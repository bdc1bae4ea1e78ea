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
def setting(ptr, value, b):
    """A number, or an image's own."""
    return value if ptr is None else tl.load(ptr + b)


@triton.jit
def inputs(
    grad_ptr, adv_ptr, images_ptr, domain_ptr, at, origin, first, mask, background, b, channels, pixels,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """What the step reads: gradient, adv, image and the share of equation 3.

    The places `at` count from `origin` in the batch, which is place `first` of image b.
    """
    grad = tl.load(grad_ptr + origin + at, mask=mask, other=0.0)
    adv = tl.load(adv_ptr + origin + at, mask=mask, other=0.0)
    image = tl.load(images_ptr + origin + at, mask=mask, other=0.0)
    weight = 1.0
    if domain_ptr is not None:
        inside = first + at
        pixel = inside // channels if CHANNELS_LAST else inside % pixels
        m = tl.load(domain_ptr + b * pixels + pixel, mask=mask, other=0.0)
        weight = background + (1.0 - background) * m
    return grad, adv, image, weight


@triton.jit
def step(
    out_ptr, momentum_ptr, momentum_out_ptr, at, origin, mask, grad, adv, image, weight,
    norm, eps, alpha, gain, decay, lo, hi, sign,
    SIGN: tl.constexpr,
):  # fmt: skip
    """Equations 3, 6 and 7 at places `at` from `origin` of the batch."""
    velocity = grad.to(tl.float32) / norm
    if momentum_ptr is not None:
        velocity += decay * tl.load(momentum_ptr + origin + at, mask=mask, other=0.0)
    if momentum_out_ptr is not None:
        tl.store(momentum_out_ptr + origin + at, velocity, mask=mask)
    if SIGN:
        direction = tl.where(velocity > 0, 1.0, tl.where(velocity < 0, -1.0, 0.0))
    else:
        direction = smooth(gain * velocity)
    image = image.to(tl.float32)
    moved = adv.to(tl.float32) + sign * (alpha * weight) * direction
    moved = tl.maximum(moved, tl.maximum(lo, image - eps * weight))
    moved = tl.minimum(moved, tl.minimum(hi, image + eps * weight))
    tl.store(out_ptr + origin + at, moved.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, at, origin, mask):
    """An inactive image keeps its pixels and its momentum; in place there is nothing to do."""
    tl.store(out_ptr + origin + at, tl.load(adv_ptr + origin + at, mask=mask), mask=mask)
    if momentum_out_ptr is not None:
        if momentum_ptr is not None:
            kept = tl.load(momentum_ptr + origin + at, mask=mask, other=0.0)
        else:
            kept = tl.zeros_like(at).to(tl.float32)
        tl.store(momentum_out_ptr + origin + at, kept, mask=mask)


@triton.jit
def extent(b, size):
    """The origin of image b in the batch, its first aligned place; how far inside; whole groups."""
    start = b * size
    origin = tl.multiple_of(tl.cdiv(start, GROUP) * GROUP, GROUP)
    first = (origin - start).to(tl.int32)
    return origin, first, tl.maximum((size - first) // GROUP, 0)


@triton.jit
def edges(size, first, groups):
    """Places before the first and after the last group, from the origin, and which exist."""
    lane = tl.arange(0, EDGES)
    head, tail = lane - first, groups * GROUP + lane - GROUP
    places = tl.where(lane < GROUP, head, tail)
    mask = tl.where(lane < GROUP, lane < tl.minimum(first, size), first + tail < size)
    return places, mask


@triton.jit
def measure(grad, NORMALIZE: tl.constexpr):
    """Sum of |g| or g², or max |g|, in float64: neither order nor size of the values matters."""
    exact = tl.abs(grad.to(tl.float32)).to(tl.float64)
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
    eps_ptr, alpha_ptr, background_ptr, eps, alpha, background, size, channels, pixels, gain, decay, lo, hi, sign,
    NORMALIZE: tl.constexpr, SIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, EDGED: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """One image in one pass, in a block of HEAD values and one of TAIL, which may be 0.

    All loads but the momentum's are on their way before the norm is known.
    """
    b = tl.program_id(0).to(tl.int64)
    origin, first, groups = extent(b, size)
    edge, edge_mask = edges(size, first, groups)
    head = tl.arange(0, HEAD)
    head_mask = head // GROUP < groups
    if TAIL:
        tail = HEAD + tl.arange(0, TAIL)
        tail_mask = tail // GROUP < groups
    if active_ptr is not None:
        if tl.load(active_ptr + b) == 0:
            keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, head, origin, head_mask)
            if TAIL:
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, tail, origin, tail_mask)
            if EDGED:
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, edge, origin, edge_mask)
            return
    eps, alpha = setting(eps_ptr, eps, b), setting(alpha_ptr, alpha, b)
    background = setting(background_ptr, background, b)
    grad, adv, image, weight = inputs(
        grad_ptr, adv_ptr, images_ptr, domain_ptr, head, origin, first, head_mask, background, b,
        channels, pixels, CHANNELS_LAST,
    )  # fmt: skip
    if TAIL:
        grad_tail, adv_tail, image_tail, weight_tail = inputs(
            grad_ptr, adv_ptr, images_ptr, domain_ptr, tail, origin, first, tail_mask, background,
            b, channels, pixels, CHANNELS_LAST,
        )  # fmt: skip
    if EDGED:
        grad_edge, adv_edge, image_edge, weight_edge = inputs(
            grad_ptr, adv_ptr, images_ptr, domain_ptr, edge, origin, first, edge_mask, background,
            b, channels, pixels, CHANNELS_LAST,
        )  # fmt: skip
    norm = 1.0
    if NORMALIZE != NONE:
        measured = measure(grad, NORMALIZE)
        if TAIL:
            measured = joined(measured, measure(grad_tail, NORMALIZE), NORMALIZE)
        if EDGED:
            measured = joined(measured, measure(grad_edge, NORMALIZE), NORMALIZE)
        norm = norm_of(measured, size, NORMALIZE)
    step(
        out_ptr, momentum_ptr, momentum_out_ptr, head, origin, head_mask, grad, adv, image, weight,
        norm, eps, alpha, gain, decay, lo, hi, sign, SIGN,
    )  # fmt: skip
    if TAIL:
        step(
            out_ptr, momentum_ptr, momentum_out_ptr, tail, origin, tail_mask, grad_tail, adv_tail,
            image_tail, weight_tail, norm, eps, alpha, gain, decay, lo, hi, sign, SIGN,
        )  # fmt: skip
    if EDGED:
        step(
            out_ptr, momentum_ptr, momentum_out_ptr, edge, origin, edge_mask, grad_edge, adv_edge,
            image_edge, weight_edge, norm, eps, alpha, gain, decay, lo, hi, sign, SIGN,
        )  # fmt: skip


@triton.jit
def norm_part(
    grad_ptr, measured_ptr, size, blocks, parts,
    NORMALIZE: tl.constexpr, EDGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Measure of one part of one image: all parts of image 0, then those of image 1."""
    part, b = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    origin, first, groups = extent(b, size)
    lane = tl.arange(0, BLOCK)
    edge = tl.zeros((EDGES,), tl.float32)
    if EDGED:
        places, exist = edges(size, first, groups)
        edge = tl.load(grad_ptr + origin + places, mask=exist & (part == 0), other=0.0)
    measured = measure(edge, NORMALIZE)
    for i in range(blocks):
        at = (part * blocks + i) * BLOCK + lane
        grad = tl.load(grad_ptr + origin + at, mask=at // GROUP < groups, other=0.0)
        measured = joined(measured, measure(grad, NORMALIZE), NORMALIZE)
    tl.store(measured_ptr + tl.program_id(0), measured)


@triton.jit
def update_part(
    adv_ptr, out_ptr, images_ptr, grad_ptr, domain_ptr, momentum_ptr, momentum_out_ptr, active_ptr,
    eps_ptr, alpha_ptr, background_ptr, measured_ptr, eps, alpha, background,
    size, channels, pixels, blocks, parts, gain, decay, lo, hi, sign,
    NORMALIZE: tl.constexpr, SIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, EDGED: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of one image, in the reverse order of `norm_part`: what it read last is in L2."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    part, b = program % parts, (program // parts).to(tl.int64)
    origin, first, groups = extent(b, size)
    lane = tl.arange(0, BLOCK)
    places, exist = edges(size, first, groups)
    exist = exist & (part == 0)
    if active_ptr is not None:
        if tl.load(active_ptr + b) == 0:
            for i in range(blocks):
                at = (part * blocks + i) * BLOCK + lane
                mask = at // GROUP < groups
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, at, origin, mask)
            if EDGED:
                keep(adv_ptr, out_ptr, momentum_ptr, momentum_out_ptr, places, origin, exist)
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
        at = (part * blocks + i) * BLOCK + lane
        mask = at // GROUP < groups
        grad, adv, image, weight = inputs(
            grad_ptr, adv_ptr, images_ptr, domain_ptr, at, origin, first, mask, background, b,
            channels, pixels, CHANNELS_LAST,
        )  # fmt: skip
        step(
            out_ptr, momentum_ptr, momentum_out_ptr, at, origin, mask, grad, adv, image, weight,
            norm, eps, alpha, gain, decay, lo, hi, sign, SIGN,
        )  # fmt: skip
    if EDGED:
        grad, adv, image, weight = inputs(
            grad_ptr, adv_ptr, images_ptr, domain_ptr, places, origin, first, exist, background, b,
            channels, pixels, CHANNELS_LAST,
        )  # fmt: skip
        step(
            out_ptr, momentum_ptr, momentum_out_ptr, places, origin, exist, grad, adv, image,
            weight, norm, eps, alpha, gain, decay, lo, hi, sign, SIGN,
        )  # fmt: skip


def _split(value: Setting) -> tuple[Tensor | None, float]:
    """A setting as a tensor (B,) or None, and a number."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)


def warps(values: int) -> int:
    """Warps of a program: about 12 values a thread, at most 16 warps; a power of two."""
    return max(1, min(16, int(triton.next_power_of_2(values // 512))))


def blocks_of(size: int) -> tuple[int, int]:
    """HEAD and TAIL, powers of two, that hold so many values: 2048 and 1024 hold 3072."""
    head = max(128, triton.next_power_of_2(size + 1) // 2)
    tail = 0 if size <= head else max(128, triton.next_power_of_2(size - head))
    return head, tail


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
        head, tail = blocks_of(size)
        update_image[(batch,)](*tensors, *numbers, *rest, **options, HEAD=head, TAIL=tail, num_warps=warps(head + tail))
        return
    chunks = triton.cdiv(size, CHUNK)
    blocks = triton.cdiv(chunks, MOST_PARTS)
    parts = triton.cdiv(chunks, blocks)
    measured = torch.empty((batch, parts), dtype=torch.float64, device=out.device)
    if u.normalize != "none":
        norm_part[(parts * batch,)](
            u.grad, measured, size, blocks, parts,
            NORMALIZE=options["NORMALIZE"], EDGED=options["EDGED"], BLOCK=CHUNK,
            num_warps=warps(CHUNK),
        )  # fmt: skip
    update_part[(parts * batch,)](
        *tensors, measured, *numbers, blocks, parts, *rest,
        **options, BLOCK=CHUNK, PARTS=triton.next_power_of_2(parts), num_warps=warps(CHUNK),
    )  # fmt: skip
