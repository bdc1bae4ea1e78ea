"""Networks of the benchmarks: random weights, calibrated so that activations keep their scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """The basic block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        out: Tensor = self.relu(y)
        return out


def _stages() -> list[nn.Module]:
    widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    return [b for i, o, s in widths for b in (Residual(i, o, s), Residual(o, o, 1))]


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """ResNet-18 for 32×32 images (11 M parameters)."""
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return _calibrated(nn.Sequential(*stem, *_stages(), *head), 32)


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18 for 224×224 images."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return _calibrated(nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *_stages(), *head), 224)


class Bottleneck(nn.Module):
    """The block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        layers: list[nn.Module] = []
        for i, o, k, s in sizes:
            layers += [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, 4·width, H/stride, W/stride)."""
        return F.relu(self.body(x) + self.downsample(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50 for 224×224 images (26 M parameters)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    channels = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(depth):
            layers.append(Bottleneck(channels, width, stride if k == 0 else 1))
            channels = 4 * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return _calibrated(nn.Sequential(*layers, *head), 224)


def vgg16(classes: int = 1000) -> nn.Module:
    """VGG-16 for 224×224 images (138 M parameters)."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(True)]
    layers += [nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout()]
    return _calibrated(nn.Sequential(*layers, nn.Linear(4096, classes)), 224)


class Attention(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, tokens, width) to the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, tokens, width))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViT(nn.Module):
    """A small vision transformer for 32×32 images, patches of 4×4."""

    def __init__(self, width: int = 192, depth: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*(Attention(width, 3) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, 32, 32) to logits (B, classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def vit(classes: int = 10) -> nn.Module:
    """`ViT` in eval mode."""
    torch.manual_seed(0)
    return ViT(classes=classes).eval()


@torch.no_grad()
def _calibrated(net: nn.Module, size: int) -> nn.Module:
    """He-initialised weights, batch norms with the statistics of random images, eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.05, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    images = torch.rand(4 if size > 64 else 64, 3, size, size, generator=generator)
    net((images - 0.45) / 0.25)
    return net.eval()


class PaddedShortcut(nn.Module):
    """Every second pixel, then half of the new channels as zeros before and half after (option A)."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + extra, ⌈H/2⌉, ⌈W/2⌉)."""
        half = self.extra // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))


class CifarBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = PaddedShortcut(outputs - inputs) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2: 6n + 2 layers for CIFAR-10. `mean` and `std` are what its weights expect."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, depth: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for k, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = CifarBlock(inputs, outputs, 1 if k == 1 else 2)
            rest = [CifarBlock(outputs, outputs, 1) for _ in range(count - 1)]
            setattr(self, f"layer{k}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, 32, 32) to logits (B, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10, untrained."""
    return CifarResNet(20)


def resnet56() -> nn.Module:
    """ResNet-56 for CIFAR-10, untrained."""
    return CifarResNet(56)
