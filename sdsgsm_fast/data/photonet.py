"""PhotoNet: the small classifier of photograph crops that ships with the package."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ..common.optional import require

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
WEIGHTS = Path(__file__).with_name("photonet.safetensors")


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norm, added to a (projected) shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = (
            nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class PhotoNet(nn.Module):
    """Residual CNN over normalised 32×32 crops: logits of the ten photographs.

    `scripts/train_photonet.py` trained it. Its inputs are normalised with `MEAN` and `STD`, so an
    attack on it takes images in [0, 1] and ``mean=MEAN, std=STD``.
    """

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            Residual(width, width, 1),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, classes)."""
        hidden: Tensor = self.stages(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


def load_photonet() -> PhotoNet:
    """Return the trained PhotoNet in eval mode, on the CPU.

    Raises
    ------
    ModuleNotFoundError
        If safetensors, which reads the weights, is not installed.
    """
    safetensors = require("safetensors.torch", extra="cli", purpose="the embedded classifier")
    net = PhotoNet()
    net.load_state_dict(safetensors.load_file(WEIGHTS))
    return net.eval()
