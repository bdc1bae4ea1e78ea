"""What operations return for tensors without data: as they return for tensors with data."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sdsgsm_fast.engine import shapes
from sdsgsm_fast.engine.leaves import mapped

aten = torch.ops.aten
IMAGES = torch.rand(2, 3, 9, 7)
LAST = IMAGES.to(memory_format=torch.channels_last)
TOKENS = torch.rand(2, 5, 6)
NOT_DENSE = torch.rand(2, 6, 9, 7)[:, ::2]
WEIGHT = torch.rand(4, 3, 3, 2)
GROUPED = torch.rand(6, 1, 3, 3)
NORM = (torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3))
CONVOLVE = aten.convolution.default

CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (CONVOLVE, (IMAGES, WEIGHT, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1), {}),
    (CONVOLVE, (IMAGES, WEIGHT, torch.ones(4), [2, 3], [1, 2], [2, 3], False, [0, 0], 1), {}),
    (CONVOLVE, (LAST, WEIGHT, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1), {}),
    (CONVOLVE, (IMAGES, GROUPED, None, [1, 2], [1, 1], [1, 1], False, [0, 0], 3), {}),
    (CONVOLVE, (IMAGES, torch.rand(3, 4, 3, 2), None, [2, 2], [0, 0], [1, 1], True, [1, 0], 1), {}),
    (CONVOLVE, (TOKENS, torch.rand(4, 5, 3), None, [1], [0], [1], False, [0], 1), {}),
    (aten.max_pool2d_with_indices.default, (IMAGES, [2, 2]), {}),
    (aten.max_pool2d_with_indices.default, (IMAGES, [3], [2], [1]), {}),
    (aten.max_pool2d_with_indices.default, (LAST, [3, 2], [2, 1], [1, 0], [2, 1]), {}),
    (aten.max_pool2d_with_indices.default, (IMAGES, [2, 2], [2, 2], [0, 0], [1, 1], True), {}),
    (aten.avg_pool2d.default, (IMAGES, [2, 2]), {}),
    (aten.avg_pool2d.default, (LAST, [3, 3], [2, 2], [1, 1], False, False), {}),
    (aten.avg_pool2d.default, (IMAGES, [2], [2], [0], True), {}),
    (aten._adaptive_avg_pool2d.default, (IMAGES, [2, 3]), {}),
    (aten._adaptive_avg_pool2d.default, (LAST, [2, 2]), {}),
    (aten.mean.dim, (IMAGES, [2, 3]), {}),
    (aten.mean.dim, (IMAGES, [-1, -2], True), {}),
    (aten.mean.dim, (IMAGES, [1]), {"dtype": torch.float64}),
    (aten.mean.dim, (LAST, [2, 3]), {}),
    (aten.cat.default, ([IMAGES, IMAGES, IMAGES[:, :2]], 1), {}),
    (aten.cat.default, ([LAST, LAST], -3), {}),
    (aten.cat.default, ([TOKENS.mT, TOKENS.mT],), {}),
    (aten.cat.default, ([TOKENS, TOKENS.double()], -1), {}),
    (aten._softmax.default, (TOKENS, -1, False), {}),
    (aten.mm.default, (TOKENS[0], TOKENS[1].T), {}),
    (aten.bmm.default, (TOKENS.mT, TOKENS), {}),
    (aten.addmm.default, (torch.ones(5), TOKENS[0], TOKENS[1].T), {}),
    (aten.native_batch_norm.default, (IMAGES, *NORM, False, 0.1, 1e-5), {}),
    (aten.native_batch_norm.default, (LAST, *NORM, False, 0.1, 1e-5), {}),
    (aten.native_batch_norm.default, (IMAGES, *NORM, True, 0.1, 1e-5), {}),
    (aten.native_layer_norm.default, (TOKENS, [6], torch.ones(6), torch.zeros(6), 1e-5), {}),
    (aten.relu.default, (IMAGES,), {}),
    (aten.relu_.default, (IMAGES,), {}),
    (aten.gelu.default, (TOKENS,), {"approximate": "tanh"}),
    (aten.hardtanh.default, (LAST, 0.0, 6.0), {}),
    (aten.sigmoid.default, (torch.ones(3, 2, dtype=torch.int64),), {}),
    (aten.add.Tensor, (IMAGES, NORM[0][:, None, None]), {"alpha": 2}),
    (aten.add.Tensor, (torch.ones(3, 1), torch.ones(1, 4, dtype=torch.float64)), {}),
    (aten.add.Tensor, (IMAGES.bfloat16(), torch.tensor(1.0)), {}),
    (aten.add.Tensor, (torch.ones(4, dtype=torch.int32), 1.5), {}),
    (aten.add_.Tensor, (IMAGES, NORM[0][:, None, None]), {}),
    (aten.add_.Tensor, (IMAGES, NORM[0][:, None, None].double()), {}),
    (aten.mul.Tensor, (TOKENS.mT, TOKENS.mT), {}),
    (aten.div.Tensor_mode, (TOKENS, TOKENS), {"rounding_mode": "floor"}),
    (aten.sub.Tensor, (NOT_DENSE, IMAGES[:1]), {}),
    (aten.mul.Tensor, (TOKENS[:, :1].expand(2, 5, 6), TOKENS), {}),
    (aten.where.self, (IMAGES > 0.5, IMAGES, torch.zeros(())), {}),
    (aten.lt.Scalar, (IMAGES, 0.5), {}),
    (aten.clamp.default, (TOKENS.mT, 0.0), {}),
    (aten.clone.default, (TOKENS.mT,), {"memory_format": torch.contiguous_format}),
    (aten.clone.default, (TOKENS.mT,), {}),
    (aten._to_copy.default, (IMAGES,), {"dtype": torch.bfloat16}),
    (aten.permute.default, (IMAGES, [0, 2, 3, 1]), {}),
    (aten.sum.dim_IntList, (IMAGES, [1]), {}),
]  # fmt: skip


def without_data(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")


def with_data(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_contiguous() else leaf


def kinds(result: Any) -> list[Any]:
    """Shape, dtype and strides, but for places that hold no more than one value."""
    outputs = result if isinstance(result, tuple) else [result]
    return [
        (out.dtype, [(n, step if n > 1 else None) for n, step in zip(out.shape, out.stride(), strict=True)])
        for out in outputs
        if out.numel()
    ]


@pytest.mark.parametrize(("func", "args", "kwargs"), CASES)
def test_as_with_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    expected = func(*mapped(with_data, args), **kwargs)
    given = mapped(without_data, args)
    found = shapes.returned(func, given, kwargs)
    first = found[0] if isinstance(found, tuple) else found
    assert first.is_meta
    count = sum(n != 0 for n in ([out.numel() for out in found] if isinstance(found, tuple) else [1]))
    assert kinds(found) == kinds(expected)[:count]
    if func._schema.is_mutable:
        assert found is given[0], "in place"


def test_what_does_not_fit_is_refused_as_without_this() -> None:
    a, b = (torch.empty(n, device="meta") for n in (3, 4))
    for func in (aten.add.Tensor, aten.add_.Tensor):
        with pytest.raises(Exception, match=r"(?i)shape|broadcast|size"):
            shapes.returned(func, (a, b), {})


PROGRAM = """
import sys
import torch
from torch import nn
from sdsgsm_fast import SDSGSM, occlusion_map
layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.GELU())
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
images, labels = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)
occlusion_map(net, images, labels, patch=4, method="incremental")
SDSGSM(net, steps=5).run(images, labels)
print(*{"torch._dynamo", "sympy"} & set(sys.modules))
"""


def test_a_first_map_loads_neither_torch_compile_nor_sympy() -> None:
    """They would take one to two seconds of every new process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr
