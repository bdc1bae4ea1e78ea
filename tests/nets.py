"""Small classifiers for the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convnet(channels: int = 3, classes: int = 5, *, spread: float = 1.0, train_norm: bool = False) -> nn.Module:
    """A CNN with batch norm whose decisions depend on the whole image, in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(192, classes),
    )
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.2, 0.2)
                layer.running_var.uniform_(0.5, 2)
        # Logits of random images spread around 0: decisions vary, and small steps change them.
        logits = net.eval()(torch.rand(256, channels, 16, 16))
        scale = spread / logits.std(0)
        net[-1].weight.mul_(scale[:, None])
        net[-1].bias.sub_(logits.mean(0)).mul_(scale)
    return net.train(train_norm)


def strided_net(channels: int = 3, classes: int = 4) -> nn.Module:
    """A plain strided CNN without norm, in eval mode."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, stride=2, padding=2),
        nn.LeakyReLU(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(3),
        nn.Flatten(),
        nn.Linear(54, classes),
    ).eval()


class Looking(nn.Module):
    """A model that looks at its data before it computes, and so cannot be traced."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        assert bool(x.isfinite().all())
        return self.net(x)


def linear_net(size: int, classes: int = 3) -> nn.Module:
    """A linear classifier of flattened images with `size` values."""
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).eval()


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The classes that the model predicts."""
    with torch.no_grad():
        return model(images).argmax(1)


class Steady(nn.Module):
    """A model whose bits do not depend on the batch: one image after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(6 * 49, 5))
        with torch.no_grad():
            self.net[-1].weight.mul_(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(image) for image in x.split(1)])


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy's, of each image apart."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0]
