"""Classifiers of many structures, for the tests of incremental occlusion."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Layers and a function of them and the images; a linear head on the mean of the map."""

    def __init__(
        self, forward: Callable[[nn.ModuleDict, Tensor], Tensor], layers: dict[str, nn.Module],
        width: int, classes: int = 5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers, self.body = nn.ModuleDict(layers), forward
        self.head = nn.Linear(width, classes)
        self.spread()

    @torch.no_grad()
    def spread(self) -> None:
        """Scale the head so that zeroing out a quarter of an image changes its logits by 0.2."""
        images = torch.rand(8, 3, 24, 24)
        zeroed = images.clone()
        zeroed[:, :, :12, :12] = 0
        training = self.training
        off = (self.eval()(images) - self(zeroed)).abs().mean()
        self.head.weight.mul_(0.2 / off)
        self.train(training)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.layers, x).mean((2, 3)))


def conv(i: int, o: int, k: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    options.setdefault("padding", "same" if options.get("stride", 1) == 1 else 1)
    return nn.Conv2d(i, o, k, **options)  # type: ignore[arg-type]


def norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width)
    with torch.no_grad():
        for value in (layer.weight, layer.running_var):
            value.uniform_(0.5, 2)
        for value in (layer.bias, layer.running_mean):
            value.uniform_(-0.3, 0.3)
    return layer


def plain() -> nn.Module:
    return Net(
        lambda m, x: F.max_pool2d(F.relu(m["c"](F.relu(m["n"](m["a"](x))))), 2),
        {"a": conv(3, 8, bias=False), "n": norm(8), "c": conv(8, 9)}, 9,
    )  # fmt: skip


def residual() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["relu"](m["n1"](m["stem"](x)))
        y = m["n3"](m["b"](m["relu"](m["n2"](m["a"](x)))))
        y += m["n4"](m["short"](x))
        x = m["relu"](y)
        return m["relu"](x + m["c"](x))

    return Net(body, {
        "stem": conv(3, 8, bias=False), "n1": norm(8), "a": conv(8, 12, stride=2, bias=False),
        "n2": norm(12), "b": conv(12, 12, bias=False), "n3": norm(12),
        "short": conv(8, 12, 1, stride=2, padding=0, bias=False), "n4": norm(12),
        "c": conv(12, 12), "relu": nn.ReLU(inplace=True),
    }, 12)  # fmt: skip


def dense_connected() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["stem"](x)
        for i in range(3):
            x = torch.cat([x, m[f"c{i}"](F.relu(m[f"n{i}"](x)))], 1)
        return F.avg_pool2d(F.relu(m["last"](x)), 2)

    layers: dict[str, nn.Module] = {"stem": conv(3, 6), "last": norm(18)}
    for i in range(3):
        layers |= {f"n{i}": norm(6 + 4 * i), f"c{i}": conv(6 + 4 * i, 4)}
    return Net(body, layers, 18)


def inception() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.relu(m["stem"](x))
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        branches = [m["one"](x), m["b"](m["a"](x)), m["d"](m["c"](x)), m["p"](pooled)]
        x = F.relu(torch.cat(branches, dim=1))
        return torch.cat([F.max_pool2d(x, 3, 2), m["down"](x)], 1)

    return Net(body, {
        "stem": conv(3, 8), "one": conv(8, 4, 1), "a": conv(8, 4, 1), "b": conv(4, 6, 5),
        "c": conv(8, 4, (1, 7)), "d": conv(4, 4, (7, 1)), "p": conv(8, 3, 1),
        "down": nn.Conv2d(17, 5, 3, 2),
    }, 22)  # fmt: skip


def depthwise() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.hardswish(m["stem"](x))
        y = F.relu6(m["n"](m["wide"](x)))
        return x + m["point"](F.silu(m["depth"](y)))

    return Net(body, {
        "stem": conv(3, 8, stride=2), "wide": conv(8, 24, 1), "n": norm(24),
        "depth": conv(24, 24, 5, groups=24), "point": conv(24, 8, 1),
    }, 8)  # fmt: skip


def dilated() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return F.elu(m["c"](F.leaky_relu(m["b"](F.gelu(m["a"](x))))))

    return Net(body, {
        "a": conv(3, 8, dilation=2), "b": conv(8, 8, dilation=(3, 1), groups=2),
        "c": nn.Conv2d(8, 8, 3, stride=2, dilation=2, padding=3),
    }, 8)  # fmt: skip


def ceil_mode() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.max_pool2d(m["a"](x), 3, 2, ceil_mode=True)
        x = F.avg_pool2d(m["b"](x), 3, 2, 1, ceil_mode=True)
        return F.max_pool2d(x, 2, 1, dilation=2, padding=1)

    return Net(body, {"a": conv(3, 8), "b": conv(8, 8)}, 8)


def prelu() -> nn.Module:
    return Net(
        lambda m, x: m["p2"](m["b"](m["p1"](m["a"](x)))),
        {"a": conv(3, 8), "p1": nn.PReLU(8), "b": conv(8, 8), "p2": nn.PReLU()}, 8,
    )  # fmt: skip


def strided_stem() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m["n"](m["a"](x))), 3, 2, 1)
        return F.relu(m["c"](x) + x)

    a = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    return Net(body, {"a": a, "n": norm(8), "c": conv(8, 8)}, 8)


def frozen_norm() -> nn.Module:
    """Constants of several shapes: a frozen norm, a map for the positions, a row."""

    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        scale, shift = m["s"].weight.view(1, -1, 1, 1), m["s"].bias.view(-1, 1, 1)
        x = F.relu(m["a"](x) * scale + shift) * 0.5 - 0.1
        rows = torch.linspace(-1, 1, x.shape[2], device=x.device)[:, None].expand(x.shape[2], x.shape[3])
        x = m["b"](x + rows) + torch.linspace(0, 1, x.shape[3], device=x.device)
        return 1 - x / (1 + x.abs())

    return Net(body, {"a": conv(3, 8), "s": nn.GroupNorm(2, 8), "b": conv(8, 8)}, 8)


def padded() -> nn.Module:
    """Borders of other kinds: constant, negative, a shortcut of every second pixel (option A)."""

    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["a"](F.pad(x, (2, 1, 0, 3), value=0.5))
        x = F.pad(x, (-1, 0, 1, -1))
        y = F.pad(x[:, :, ::2, 1::2], (0, 0, 0, 0, 2, 3), value=0.1)
        return F.relu(m["b"](y)) + y

    return Net(body, {"a": nn.Conv2d(3, 7, 4), "b": conv(12, 12)}, 12)


def split() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        one, two, three = m["a"](x).split([3, 4, 5], dim=1)
        left, right = m["b"](two).chunk(2, 1)
        x = torch.cat([torch.sigmoid(one), left.softmax(1), torch.maximum(left, right)], 1)
        return torch.cat([x, three[:, 1:-1].clamp(-0.1, 0.2)], 1)

    return Net(body, {"a": conv(3, 12), "b": conv(4, 8)}, 14)


def adaptive() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(m["a"](x), (x.shape[2] // 2, x.shape[3]))
        return F.adaptive_max_pool2d(m["b"](x), (x.shape[2] // 2, 3))

    return Net(body, {"a": conv(3, 8), "b": conv(8, 8)}, 8)


def weight_norm() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(conv(8, 8))
    return Net(lambda m, x: F.relu(m["b"](F.relu(m["a"](x)))), {"a": conv(3, 8), "b": layer}, 8)


# Tiles first, then something that takes whole maps.


def squeeze_excite() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.relu(m["b"](F.relu(m["a"](x))))
        scale = torch.sigmoid(m["e"](F.relu(m["s"](F.adaptive_avg_pool2d(x, 1)))))
        return m["c"](x * scale)

    return Net(body, {
        "a": conv(3, 8), "b": conv(8, 8), "s": conv(8, 2, 1), "e": conv(2, 8, 1), "c": conv(8, 8),
    }, 8)  # fmt: skip


def group_norm() -> nn.Module:
    return Net(
        lambda m, x: m["b"](F.relu(m["n"](m["z"](m["a"](x))))),
        {"a": conv(3, 8), "z": conv(8, 8), "n": nn.GroupNorm(2, 8), "b": conv(8, 8)}, 8,
    )  # fmt: skip


def reflected() -> nn.Module:
    b = conv(8, 8, padding_mode="reflect", padding=1)
    return Net(lambda m, x: m["b"](m["z"](m["a"](x))), {"a": conv(3, 8), "z": conv(8, 8), "b": b}, 8)


def transposed() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["up"](m["b"](m["a"](x)))
        return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)

    up = nn.ConvTranspose2d(8, 6, 2, 2)
    return Net(body, {"a": conv(3, 8), "b": conv(8, 8), "up": up}, 6)


def attention() -> nn.Module:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.relu(m["c"](F.relu(m["b"](m["a"](x)))))
        tokens = x.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, m["v"](tokens))
        return mixed.transpose(1, 2).view(x.shape)

    return Net(body, {
        "a": conv(3, 8), "b": conv(8, 8), "c": nn.Conv2d(8, 8, 4, 4), "v": nn.Linear(8, 8),
    }, 8)  # fmt: skip


class Transformer(nn.Module):
    """Patches and a class token through encoder layers; how attention is called varies."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embed, self.head = kind, nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        nn.init.normal_(self.embed.weight, std=0.4)  # one patch matters
        nn.init.normal_(self.head.weight)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 24, activation="gelu", batch_first=True), 2
        )
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16, bias=False)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).flatten(2).transpose(1, 2)
        token = {
            "encoder": lambda: self.token.expand(len(x), -1, -1),
            "by hand": lambda: self.token.repeat(len(x), 1, 1),
            "direct": lambda: torch.zeros(len(x), 1, 16, device=x.device) + self.token,
        }[self.kind]()  # fmt: skip
        y = torch.cat([token, y], 1)
        if self.kind == "encoder":
            return self.head(self.layers(y)[:, 0])
        q, k, v = self.qkv(self.norm(y)).view(*y.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        if self.kind == "direct":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4)
        else:
            mixed = (q @ k.transpose(-2, -1) * 0.4).softmax(-1) @ v
        y = y + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(F.gelu(self.layers.layers[0].linear2(
            F.relu(self.layers.layers[0].linear1(y))
        ), approximate="tanh").mean(1))  # fmt: skip


TRANSFORMERS = ("encoder", "by hand", "direct")


def tokens_last() -> nn.Module:
    """ConvNeXt's habit: a layer norm over channels, moved to the end and back."""

    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["b"](m["a"](x))
        y = m["n"](m["d"](x).permute(0, 2, 3, 1))
        return x + m["l"](F.gelu(y)).permute(0, 3, 1, 2)

    return Net(body, {
        "a": conv(3, 8), "b": conv(8, 8), "d": conv(8, 8, 7, groups=8), "n": nn.LayerNorm(8),
        "l": nn.Linear(8, 8),
    }, 8)  # fmt: skip


class Flat(nn.Module):
    """Branches on shapes, a `flatten` head, functions in place, an output object's `.logits`."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 6)
        self.head = nn.Linear(6 * (size[0] // 2) * (size[1] // 2), 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 2 and x.size(0) > 0:
            x = torch.relu_(self.a(x))
        x = x.mul_(2).add_(0.1)
        x = F.max_pool2d(self.b(x), 2)
        return self.head(x.view(x.size(0), -1))


def wide() -> nn.Module:
    """Channels enough for Winograd's products."""

    def forward(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.relu(m["a"](x))
        x = F.relu(x + m["b"](F.relu(m["n"](m["b"](x)))))
        return F.relu(m["d"](m["c"](x)))

    layers = {"a": conv(3, 40), "b": conv(40, 40, bias=False), "n": norm(40), "c": conv(40, 33),
              "d": conv(33, 96, padding=0)}  # fmt: skip
    return Net(forward, layers, 96)


TILED: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (
        plain, residual, dense_connected, inception, depthwise, dilated, ceil_mode, prelu,
        strided_stem, frozen_norm, padded, split, adaptive, weight_norm, wide,
    )
}  # fmt: skip
MIXED: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (
        squeeze_excite, group_norm, reflected, transposed, attention, tokens_last,
    )
}  # fmt: skip


class RandomNet(nn.Module):
    """A random graph of known operations over maps that shrink."""

    def __init__(self, seed: int, classes: int = 4) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.layers = nn.ModuleList()
        self.program: list[tuple[str, tuple[int, ...], object]] = []
        widths = [3]  # channels of each value; `scales` the divisions of its size so far
        scales = [0]
        for _ in range(self.random.randint(4, 10)):
            self._grow(widths, scales)
        self.last = max(range(len(widths)), key=lambda k: (scales[k], k))
        self.head = nn.Linear(widths[self.last], classes)

    def _grow(self, widths: list[int], scales: list[int]) -> None:
        pick = self.random.choice
        source = self.random.randrange(max(0, len(widths) - 3), len(widths))
        width, scale = widths[source], scales[source]
        alike = [k for k in range(len(widths)) if (widths[k], scales[k]) == (width, scale)]
        near = [k for k in range(len(widths)) if scales[k] == scale]
        kind = pick(["conv", "conv", "conv", "norm", "point", "pool", "add", "cat"])
        if kind == "conv":
            stride = pick([1, 1, 2]) if scale < 2 else 1
            groups = pick([1, 1, width])
            out = width * pick([1, 2]) if groups > 1 else pick([4, 6])
            k, d = pick([(1, 1), (3, 3), (3, 1), (5, 3)]), pick([1, 1, 2])
            pad = tuple((n - 1) * d // 2 for n in k)
            self.layers.append(nn.Conv2d(width, out, k, stride, pad, d, groups, bias=pick([True, False])))
            self._note("layer", (source,), len(self.layers) - 1, out, scale + (stride > 1), widths, scales)
        elif kind == "norm":
            self.layers.append(norm(width))
            self._note("layer", (source,), len(self.layers) - 1, width, scale, widths, scales)
        elif kind == "point":
            f = pick(
                [
                    torch.relu,
                    torch.tanh,
                    F.silu,
                    lambda x: x * 0.7 + 0.1,
                    lambda x: x.clone().clamp_(-1, 1),
                ]
            )
            self._note("call", (source,), f, width, scale, widths, scales)
        elif kind == "pool":
            f = pick([
                lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1),
                lambda x: F.avg_pool2d(x, (3, 5), 1, (1, 2), count_include_pad=False),
            ])  # fmt: skip
            self._note("call", (source,), f, width, scale, widths, scales)
        elif kind == "add":
            self._note("call", (source, pick(alike)), torch.add, width, scale, widths, scales)
        else:
            other = pick(near)
            self._note(
                "call",
                (source, other),
                lambda *x: torch.cat(x, 1),
                width + widths[other],
                scale,
                widths,
                scales,
            )

    def _note(
        self, kind: str, sources: tuple[int, ...], what: object, width: int, scale: int,
        widths: list[int], scales: list[int],
    ) -> None:  # fmt: skip
        self.program.append((kind, sources, what))
        widths.append(width)
        scales.append(scale)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, sources, what in self.program:
            f = self.layers[what] if kind == "layer" else what  # type: ignore[index]
            values.append(f(*(values[k] for k in sources)))  # type: ignore[operator]
        return self.head(values[self.last].mean((2, 3)))
