"""Threads that attack one model object with attacks of their own: each finds what it finds alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from nets import convnet, predicted
from torch import Tensor

from sdsgsm_fast import SDSGSM, occlusion_map

THREADS = 8


def work(model: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    adv = SDSGSM(model, eps=8 / 255, steps=6)(images, labels)
    return adv, occlusion_map(model, images, labels, patch=4)


def in_threads(model: Any, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    begin = threading.Barrier(THREADS)

    def run(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        begin.wait()
        return work(model, *part)

    parts = list(zip(images.chunk(THREADS), labels.chunk(THREADS), strict=True))
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, parts))


def test_eight_threads_find_what_one_finds() -> None:
    net = convnet(spread=3.0)
    images = torch.rand(4 * THREADS, 3, 16, 16)
    labels = predicted(net.eval(), images)
    net.train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    expected = [work(net, x, y) for x, y in zip(images.chunk(THREADS), labels.chunk(THREADS), strict=True)]
    for found, wanted in zip(in_threads(net, images, labels), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
