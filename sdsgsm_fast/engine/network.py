"""A traced model as steps that run on whole maps and, where that is proven, on tiles of them.

A tile holds all inputs of a rectangle of outputs, border included, so that an operation on it
needs no padding. What is not known to compute an output from a rectangle of inputs runs on whole
maps only, and so does everything that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reach import Reach
from .trace import Node, PerImage

Axes = tuple[Reach, Reach]
"""Reach of an operation on rows and columns."""

POINT: Axes = (Reach(), Reach())
Shape = tuple[int, int, int]


@dataclass
class Step:
    """One operation, or several in one.

    Attributes
    ----------
    name
        The ATen operation's, for messages.
    inputs
        The steps whose results it reads.
    run
        ``run(count, *inputs)``: the result for whole inputs of `count` images.
    tile
        ``tile(*tiles)``: the result for tiles; None where only whole maps will do.
    reaches
        Reach into each input, where there is a `tile`.
    pad
        Value beyond the border of the first input.
    shape
        (C, H, W) of an image's map; None for other results.
    work
        Floating-point operations an image; fewer where they take less time than their number.
    elements
        Values of the result an image.
    constant
        The result of a step that reads no image, (1, C, H, W).
    """

    name: str
    inputs: tuple[int, ...]
    run: Callable[..., Any]
    tile: Callable[..., Tensor] | None = None
    reaches: tuple[Axes, ...] = ()
    pad: float = 0.0
    shape: Shape | None = None
    work: float = 0.0
    elements: int = 0
    constant: Tensor | None = None


@dataclass(frozen=True)
class Network:
    """Steps in their order.

    Attributes
    ----------
    steps
        Step 0 is the input.
    output
        The step whose result is the logits.
    dtype
        Dtype of the maps.
    """

    steps: list[Step]
    output: int
    dtype: torch.dtype

    @property
    def work(self) -> float:
        """Floating-point operations an image."""
        return sum(step.work for step in self.steps)

    def run(self, inputs: Tensor, wanted: set[int]) -> dict[int, Any]:
        """Results of the `wanted` steps for whole images (B, C, H, W)."""
        with torch.inference_mode(), torch.autocast(inputs.device.type, enabled=False):
            return self.evaluate(inputs, wanted)

    def evaluate(self, inputs: Tensor, wanted: set[int]) -> dict[int, Any]:
        """The same, differentiable where that is asked for, under whatever autocast is on."""
        dying = self.dying(wanted)
        found: dict[int, Any] = {0: channels_last(inputs.to(self.dtype))}
        for k, step in enumerate(self.steps[: max(wanted) + 1]):
            if k:
                found[k] = step.run(len(inputs), *(found[i] for i in step.inputs))
            for i in dying[k]:
                del found[i]
        return found

    def dying(self, kept: set[int]) -> list[list[int]]:
        """For each step the results that nobody reads after it, but for those to be kept."""
        last = {i: k for k, step in enumerate(self.steps) for i in step.inputs}
        dead: list[list[int]] = [[] for _ in self.steps]
        for i in range(len(self.steps)):
            if i not in kept:
                dead[last.get(i, i)].append(i)
        return dead


def channels_last(x: Tensor) -> Tensor:
    """Lay a map out with its channels together."""
    return x.contiguous(memory_format=torch.channels_last)


def elements_of(node: Node, output: int | None = None) -> int:
    """Values an image of one output of a node, or of all."""
    shapes = node.shapes if output is None else node.shapes[output : output + 1]
    return sum(math.prod(n.count if isinstance(n, PerImage) else n for n in shape) for shape in shapes)


def map_shape(node: Node, output: int = 0) -> Shape | None:
    """(C, H, W) where an output is a floating map of each image, (B, C, H, W)."""
    if output >= len(node.shapes) or not node.dtypes[output].is_floating_point:
        return None
    shape = node.shapes[output]
    if len(shape) != 4 or shape[0] != PerImage(1):
        return None
    channels, height, width = shape[1:]
    if isinstance(channels, PerImage) or isinstance(height, PerImage):
        return None
    return None if isinstance(width, PerImage) else (channels, height, width)
