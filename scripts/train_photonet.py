"""Train the embedded classifier on photograph crops: a few minutes on two CPU cores.

    python scripts/train_photonet.py            # writes sdsgsm_fast/data/photonet.safetensors

Crops vary in scale (32 to 64 pixels resized to 32), brightness, contrast, mirroring and channel
order, so that the network has to look at structure rather than at colour.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sdsgsm_fast.data.photonet import MEAN, STD, WEIGHTS, PhotoNet
from sdsgsm_fast.data.photos import photo_crops


def augment(images: Tensor) -> Tensor:
    """Vary brightness, contrast, mirroring and channel order, image by image."""
    count = len(images)
    order = torch.rand(count, 3).argsort(1)
    images = images[torch.arange(count)[:, None], order]
    images = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images.flip(3), images)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.6, 1.4)
    brightness = torch.empty(count, 1, 1, 1).uniform_(-0.2, 0.2)
    return ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def normalise(images: Tensor) -> Tensor:
    """Apply the network's normalisation."""
    mean, std = (images.new_tensor(value)[:, None, None] for value in (MEAN, STD))
    return (images - mean) / std


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of `images` that `net` classifies as `labels`."""
    net.eval()
    hits = sum(
        int((net(normalise(x)).argmax(1) == y).sum()) for x, y in zip(images.split(256), labels.split(256), strict=True)
    )
    return hits / len(labels)


def train(
    make: Callable[[], nn.Module],
    *,
    epochs: int,
    per_class: int,
    batch: int,
    seed: int,
    lr: float = 0.1,
    device: str = "cpu",
) -> nn.Module:
    """Train a network from a fixed seed and report its accuracy after every epoch.

    `lr` is the largest learning rate.
    """
    torch.manual_seed(seed)
    images, labels = photo_crops("train", per_class, seed=seed)
    test = [part.to(device) for part in photo_crops("test", 100, seed=seed)]
    net = make().to(device)
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for epoch in range(epochs):
        start = time.perf_counter()
        net.train()
        for chosen in torch.randperm(len(images)).split(batch):
            if len(chosen) < batch:
                continue
            x, y = augment(images[chosen]).to(device), labels[chosen].to(device)
            loss = F.cross_entropy(net(normalise(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds, right = time.perf_counter() - start, accuracy(net, *test)
        print(f"epoch {epoch + 1}/{epochs}: test accuracy {right:.3f}, {seconds:.0f} s", flush=True)
    return net.cpu().eval()


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--per-class", type=int, default=1200, help="training crops a photograph")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(WEIGHTS))
    args = parser.parse_args()
    net = train(
        PhotoNet,
        epochs=args.epochs,
        per_class=args.per_class,
        batch=args.batch,
        seed=args.seed,
    )
    save_file(net.state_dict(), args.out)
    print(f"wrote {args.out}: {sum(p.numel() for p in net.parameters())} parameters")


if __name__ == "__main__":
    main()
