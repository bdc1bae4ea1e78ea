"""How many images a GPU attacks at once: by its memory and by what waits, found out once.

A CPU stands in for the GPU, with as much free memory as a test says.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from nets import predicted
from torch import Tensor

from sdsgsm_fast import BIM, MinimalSDSGSM, search
from sdsgsm_fast.common.batches import steady_size
from sdsgsm_fast.loop import Loop
from sdsgsm_fast.model import memory
from sdsgsm_fast.model.classifier import Classifier
from sdsgsm_fast.slots import Slots


class Gpu:
    """Free memory, and how many images of a pass it holds."""

    free = 10**11
    holds = 10**9
    passes: list[int]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()
    found.passes = []
    original = Classifier.logits_and_leaf

    def logits_and_leaf(self: Classifier, images: Tensor, **settings: Any) -> Any:
        if len(images) > found.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found.passes.append(len(images))
        return original(self, images, **settings)

    monkeypatch.setattr(search, "on_gpu", lambda images: True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: found.free)
    monkeypatch.setattr(Classifier, "logits_and_leaf", logits_and_leaf)
    return found


def problem(count: int) -> tuple[Any, Tensor, Tensor]:
    net, images = zoo.residual().eval(), torch.rand(count, 3, 16, 16)
    return net, images, predicted(net, images)


def test_the_estimate_is_what_operations_make_and_the_largest_of_them() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.cat([x, x], 1).mul(2).flatten(1)[:, :4]

    images = torch.rand(1, 3, 8, 8)
    image = images.numel() * images.element_size()
    classifier = Classifier(model)
    classifier._overwrites = False
    assert memory.forward_bytes(classifier, images) == image + 2 * 4 * image  # mul reads 2 and writes 2
    found = memory.gradient_bytes(classifier, images)
    assert 12 * image <= found <= 20 * image
    assert classifier.forwards == 0


def test_memory_says_how_many_and_stays_with_it(gpu: Gpu) -> None:
    net, images, labels = problem(40)
    attack = BIM(net, steps=4, early_stop=False)
    attack.run(images, labels)
    assert attack.search.slots_for(images) == search.CUDA_SLOTS
    assert max(gpu.passes) == 40, "as many as wait"
    gpu.free = 10**7
    tight = BIM(net, steps=4, early_stop=False)
    first = tight.search.slots_for(images)
    assert 1 <= first < 40
    gpu.passes.clear()
    tight.run(images, labels)
    gpu.free = 10**11
    assert tight.search.slots_for(images) == first
    assert max(gpu.passes) <= first


def test_what_was_too_many_is_not_tried_again(gpu: Gpu) -> None:
    net, images, labels = problem(40)
    expected = BIM(net, steps=4, early_stop=False, batch_size=10).run(images, labels)
    gpu.holds = 11
    attack = BIM(net, steps=4, early_stop=False)
    found = attack.run(images, labels)
    assert torch.equal(found.passes.forward, expected.passes.forward)
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert attack.search.slots_for(images) == 10
    gpu.holds = 10
    attack.run(images, labels)
    assert attack.search.slots_for(images) == 10


@pytest.mark.parametrize("kind", [BIM, MinimalSDSGSM])
def test_too_little_memory_for_the_slots_themselves(gpu: Gpu, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images, labels = problem(20)
    expected = kind(net, steps=6).run(images, labels)
    original = Slots._allocate_all

    def short(self: Slots, *given: Any, **settings: Any) -> None:
        original(self, *given, **settings)
        if self.size > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Slots, "_allocate_all", short)
    attack = kind(net, steps=6)
    found = attack.run(images, labels)
    assert torch.equal(found.success, expected.success)
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-5, rtol=0)
    assert attack.search.slots_for(images) == 5


def test_a_stream_takes_what_fits(gpu: Gpu) -> None:
    net, images, labels = problem(30)
    gpu.free = 4 * 10**6
    attack = BIM(net, steps=4)
    batches = zip(images.split(4), labels.split(4), strict=True)
    found = sorted(attack.stream(batches), key=lambda r: int(r.index[0]))
    whole = attack.run(images, labels)
    torch.testing.assert_close(torch.cat([r.adv for r in found]), whole.adv, atol=1e-6, rtol=0)
    assert max(gpu.passes) <= attack.search.slots_for(images)


def test_a_cpu_has_a_number_of_its_own() -> None:
    net, images, _ = problem(3)
    attack = BIM(net, steps=4)
    assert attack.search.slots_for(images) == search.CPU_SLOTS
    loop = Loop(attack._loop_settings, attack.search, 5, 0)
    assert loop.slots.size == 5


def test_what_pytorch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert memory.free_bytes(torch.device("cuda")) == 400


def test_sizes_are_few_and_waste_little() -> None:
    sizes = [steady_size(rows) for rows in range(1, 5000)]
    assert all(rows <= size <= max(8, 1.125 * rows) for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 90
    assert sizes[:20] == [8] * 8 + [*range(9, 17), 18, 18, 20, 20]


def test_passes_on_a_gpu_have_few_sizes(gpu: Gpu) -> None:
    net, images, labels = problem(39)
    expected = BIM(net, steps=4, batch_size=64).run(images, labels)
    gpu.passes.clear()
    found = BIM(net, steps=4).run(images, labels)
    searched = gpu.passes[gpu.passes.index(39) + 1 :]  # after the look at the clean images
    assert len(searched) >= 3
    assert set(searched) <= {steady_size(rows) for rows in range(1, 40)}
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert torch.equal(found.passes.forward, expected.passes.forward)


def test_a_shortage_is_known_by_other_words_too() -> None:
    assert memory.is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.is_shortage(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert memory.is_shortage(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not memory.is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
