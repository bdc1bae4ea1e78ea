"""Slots and streams: who shares a step with whom changes nothing, and no slot stays empty."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zoo
from nets import Steady, convnet, predicted
from states import Counting, same, state
from torch import Tensor, nn

from sdsgsm_fast import (
    BIM,
    MIFGSM,
    PGD,
    SDSGSM,
    Attack,
    AttackResult,
    Ensemble,
    Gradient,
    SmoothingOnly,
)
from sdsgsm_fast.engine.surrogate import Surrogate

SETTINGS: dict[str, dict[str, Any]] = {
    "occlusion": {},
    "smoothing": {"domain": None},
    "gradient": {"domain": Gradient(), "relax": 0.3},
    "momentum": {"domain": None, "decay": 0.9, "gain": math.inf, "relax": None},
    "random": {"domain": None, "random_start": True, "seed": 3},
    "restarts": {"domain": None, "random_start": True, "restarts": 3, "seed": 4, "steps": 4,
                 "decay": 0.5, "eps": 3 / 255},
    "restarts in the domain": {"random_start": True, "restarts": 2, "seed": 4, "steps": 3},
    "all steps": {"domain": None, "early_stop": False, "steps": 5},
    "margin": {"loss": "margin", "normalize": "rms"},
    "reference": {"domain": None, "backend": "reference"},
}  # fmt: skip


@pytest.fixture
def net() -> nn.Module:
    return Steady().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(23, 3, 16, 16)


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    classes = predicted(net, images)
    classes[[3, 7]] = (classes[[3, 7]] + 1) % 5
    return classes


def by_place(results: list[AttackResult]) -> dict[str, Tensor]:
    """Results of a stream, sorted by the images' places."""
    order = torch.cat([r.index for r in results]).argsort()
    found = {
        k: torch.cat([getattr(r, k) for r in results])[order]
        for k in ("adv", "success", "skipped", "updates", "domain")
    }
    for k in ("forward", "backward"):
        found[k] = torch.cat([getattr(r.passes, k) for r in results])[order]
    return found


def agree(found: dict[str, Tensor], result: AttackResult) -> None:
    expected = by_place([result])
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("name", "slots"),
    [*((name, 5) for name in SETTINGS), ("occlusion", 1), ("restarts", 1), ("momentum", 64)],
)
def test_slots_change_no_bit(name: str, slots: int, net: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings = {"steps": 8, "eps": 6 / 255} | SETTINGS[name]
    alone = [
        Attack(net, **settings).run(images[i : i + 1], labels[i : i + 1], index=torch.tensor([i])) for i in range(23)
    ]
    run = Attack(net, batch_size=slots, **settings).run(images, labels)
    agree(by_place(alone), run)
    assert len(set(run.updates[~run.skipped].tolist())) > 1 or name == "all steps"
    order = torch.randperm(23)
    mixed = Attack(net, batch_size=slots, **settings).run(images[order], labels[order], index=order)
    agree(by_place([mixed]), run)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, [4, 0, 9, 10]) for name in SETTINGS),
        *(("occlusion", sizes) for sizes in ([23], [1] * 23, [20, 3])),
        ("restarts", [1] * 23),
    ],
)
def test_a_stream_gives_what_run_gives(
    name: str, sizes: list[int], net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    settings = {"steps": 8, "eps": 6 / 255, "batch_size": 5} | SETTINGS[name]
    attack = Attack(net, **settings)
    batches = zip(images.split(sizes), labels.split(sizes), strict=True)
    results = list(attack.stream(batches))
    assert sorted(len(r.adv) for r in results) == sorted(sizes)
    agree(by_place(results), attack.run(images, labels))
    for r in results:
        assert torch.equal(r.images, images[r.index])
        assert r.metrics().images == len(r.adv)


def test_targets_and_several_sizes_in_one_stream(net: nn.Module) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(16), net)
    batches: list[tuple[Tensor, ...]] = []
    for size, dtype in ((16, torch.float32), (20, torch.float32), (16, torch.float64)):
        x = torch.rand(6, 3, size, size).to(dtype)
        y = predicted(model, x.float())
        batches += [(x, y), (x, y, (y + 1) % 5)]
    model.double()
    attack = SmoothingOnly(model, eps=0.1, batch_size=4, steps=5)
    results = sorted(attack.stream(batches), key=lambda r: int(r.index[0]))
    for batch, result in zip(batches, results, strict=True):
        x, y, *target = batch
        expected = attack.run(x, y, target=target[0] if target else None)
        assert torch.equal(result.adv, expected.adv)
        assert result.adv.dtype == x.dtype
        assert torch.equal(result.success, expected.success)


def test_slots_are_full_until_the_stream_ends(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Nor is more than one batch asked for ahead of its time."""
    sizes: list[int] = []
    asked = 0

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                sizes.append(len(x))
            return net(x)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal asked
        for _ in range(20):
            asked += 1
            yield images, labels

    attack = BIM(Watching(), eps=6 / 255, batch_size=16, steps=8)
    done = 0
    for result in attack.stream(batches()):
        done += len(result.adv)
        assert asked * 23 - done <= 23 + 23 + 16 + 23, "few images are under way"
    assert done == 20 * 23
    in_slots = [n for n in sizes if n <= 16]
    assert sum(n == 16 for n in in_slots[:-20]) >= 0.8 * len(in_slots[:-20])


def test_a_stream_holds_no_batch_longer_than_it_must(net: nn.Module) -> None:
    """Images, gradients and results of what was handed out are free."""
    held: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(12):
            x = torch.rand(8, 3, 16, 16)
            held.append(weakref.ref(x))
            yield x, predicted(net, x)

    most = 0
    for result in SmoothingOnly(net, steps=3, batch_size=8).stream(batches()):
        del result
        gc.collect()
        most = max(most, sum(r() is not None for r in held))
    assert most <= 5


def test_the_model_belongs_to_its_owner_between_results() -> None:
    model = Counting()
    model.limit = 10**9
    before = state(model)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            assert same(state(model), {**before, "random": torch.get_rng_state()})
            yield torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)

    seen = [torch.rand(1)]
    for _ in SmoothingOnly(model, steps=3, batch_size=2).stream(batches()):
        after = state(model)
        assert same({**after, "random": 0}, {**before, "random": 0})
        seen.append(torch.rand(1))
    assert len({float(x) for x in seen}) == 4, "random numbers go on"


def test_an_error_in_the_middle_leaves_the_model_alone() -> None:
    model = Counting()
    model.limit = 6
    before = state(model)
    x = torch.rand(4, 3, 16, 16)
    attack = SmoothingOnly(model, steps=9, batch_size=4, early_stop=False, precision="float32")
    stream = attack.stream([(x, torch.zeros(4, dtype=torch.int64))] * 3)
    with pytest.raises(RuntimeError, match="the model broke"):
        list(stream)
    after = state(model)
    assert same({**after, "random": 0}, {**before, "random": 0})


def test_memory_is_halved_until_it_suffices(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Tight(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("too many")
            return net(x)

    settings: dict[str, Any] = {"steps": 6, "eps": 6 / 255}
    for attack in (BIM, PGD, MIFGSM):
        given = settings if attack is not PGD else settings | {"seed": 1}
        agree(
            by_place([attack(Tight(), **given).run(images, labels)]),
            attack(net, **given).run(images, labels),
        )

    class Hopeless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("too many")

    with pytest.raises(torch.OutOfMemoryError):
        BIM(Hopeless(), **settings)(images, labels)


@pytest.mark.parametrize("sizes", [(32, 40), (40, 32), (24, 16)], ids=str)
def test_each_size_of_images_has_its_own_search(sizes: tuple[int, int]) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()  # fmt: skip
    batches = [(x := torch.rand(12, 3, n, n), predicted(net, x)) for n in sizes]
    attack = BIM(net, batch_size=8, steps=6)
    other = torch.rand(4, 3, 28, 28)
    results = []
    for result in attack.stream(batches):
        attack.run(other, predicted(net, other))  # nor does a run in between matter
        results.append(result)
    for batch, result in zip(batches, sorted(results, key=lambda r: int(r.index[0])), strict=True):
        assert torch.equal(result.adv, attack.run(*batch).adv)
        assert torch.equal(result.success, predicted(net, result.adv) != batch[1])


def test_a_model_trained_between_results_is_searched_as_it_is() -> None:
    net = convnet()
    images = torch.rand(40, 3, 16, 16)
    labels = predicted(net, images)
    batches = list(zip(images.split([4, 36]), labels.split([4, 36]), strict=True))
    attack = BIM(net, batch_size=4, steps=5, early_stop=False)
    stream = attack.stream(batches)
    next(stream)
    before = attack.classifier.surrogate
    with torch.no_grad():
        net[4].weight.copy_(net[4].weight.flip(0))
    rest = next(stream)
    assert attack.classifier.surrogate is not before
    late = rest.index >= 12  # these entered a slot after that
    assert torch.equal(rest.success[late], predicted(net, rest.adv[late]) != labels[4:][late])


def test_a_single_image_without_memory_is_an_error() -> None:
    class Hopeless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("none")

    with pytest.raises(torch.OutOfMemoryError):
        BIM(Hopeless())(torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))


def test_a_buffer_that_is_filled_again_is_no_harm(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        buffer = torch.empty(5, 3, 16, 16)
        for x, y in zip(images[:20].split(5), labels[:20].split(5), strict=True):
            buffer.copy_(x)
            yield buffer, y

    attack = BIM(net, steps=5, batch_size=3)
    agree(by_place(list(attack.stream(batches()))), attack.run(images[:20], labels[:20]))


def test_what_a_stream_does_not_take(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="eps: a stream takes one setting"):
        SDSGSM(net, eps=torch.full((23,), 0.1)).stream([(images, labels)])
    with pytest.raises(ValueError, match="domain: a stream takes one setting"):
        SDSGSM(net, domain=torch.ones(23, 16, 16)).stream([(images, labels)])
    with pytest.raises(TypeError, match="batches: expected"):
        list(SDSGSM(net).stream([images]))
    with pytest.raises(ValueError, match="batch_size"):
        SDSGSM(net, batch_size=0)
    with pytest.raises(TypeError, match="batches: expected"):
        list(SDSGSM(net).stream([None]))
    assert list(SDSGSM(net).stream([])) == []


def test_a_stream_tells_its_progress(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    calls: list[tuple[int, int]] = []
    attack = BIM(net, batch_size=8, progress=lambda _, done, total: calls.append((done, total)))
    list(attack.stream([(images, labels)] * 3))
    assert calls[-1] == (69, 69)
    assert calls == sorted(calls)
    assert all(done <= total for done, total in calls)


@pytest.mark.parametrize("hidden", [False, True])
def test_weights_that_change_unseen_between_results_count(hidden: bool) -> None:
    """Through `.data`, or of a network that no module knows: images under way meet the new model."""
    torch.manual_seed(3)  # images that fall after 3 to 20 updates
    net, other = zoo.residual().eval(), zoo.plain().eval()
    model = Ensemble([other, lambda x: 50 * net(x)]) if hidden else net
    images = torch.rand(16, 3, 16, 16)
    labels = predicted(model, images)
    attack = BIM(model, eps=16 / 255, alpha=0.5 / 255, batch_size=16)
    found = []
    for result in attack.stream(zip(images.split(1), labels.split(1), strict=True)):
        found.append(result)
        if len(found) == 1:
            with torch.no_grad():
                for p in net.parameters():
                    if p.ndim == 4:  # the search keeps convolutions as copies, folded
                        p.data.neg_()
    assert len(found) == 16
    under_way = [result for result in found if int(result.updates) > int(found[0].updates)]
    assert len(under_way) > 8
    for result in under_way:
        fooled = predicted(model, result.adv) != labels[result.index]
        assert torch.equal(result.success, fooled)


@pytest.mark.parametrize("early_stop", [False, True])
def test_the_model_meets_images_in_their_own_layout(early_stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a traced search are channels_last; whom the model judges is not."""
    monkeypatch.setattr(Surrogate, "uncertainty", property(lambda _: torch.inf))
    torch.manual_seed(3)  # images that fall after 3 to 20 updates
    net = zoo.residual().eval()
    net.layouts = []  # the model's own, so that it can be traced
    images = torch.rand(16, 3, 16, 16)
    labels = predicted(net, images)
    net.register_forward_pre_hook(lambda m, given: m.layouts.append(given[0].is_contiguous()))
    attack = BIM(net, eps=16 / 255, alpha=0.5 / 255, batch_size=12, early_stop=early_stop)
    for _ in range(2):  # the first one traces
        net.layouts = []
        result = attack.run(images, labels)
    assert attack.search.surrogate_for(images) is not None
    assert result.success.any()
    assert len(net.layouts) > 2
    assert all(net.layouts)
    assert result.adv.is_contiguous()


@pytest.mark.parametrize("last", ["the end", "images of another size"])
def test_a_loader_that_changes_the_model_is_noticed(last: str) -> None:
    """Whoever is asked for the next batch has the model in hand, also when there is none."""
    torch.manual_seed(3)  # images that fall after 3 to 20 updates
    net, images = zoo.residual().eval(), torch.rand(16, 3, 16, 16)
    labels = predicted(net, images)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield images, labels
        with torch.no_grad():
            for p in net.parameters():
                if p.ndim == 4:
                    p.neg_()
        if last != "the end":
            yield images[:1, :, :14], labels[:1]

    attack = BIM(net, eps=16 / 255, alpha=0.5 / 255, batch_size=20)
    result = next(r for r in attack.stream(batches()) if len(r.index) == 16)
    fooled = predicted(net, result.adv) != labels
    assert torch.equal(result.success | result.skipped, fooled | result.skipped)


@pytest.mark.parametrize("device", ["cuda:99", "nowhere", "meta:x"])
def test_a_device_that_is_not_there_is_refused_at_once(device: str) -> None:
    with pytest.raises(ValueError, match="device: cannot use '" + device):
        SDSGSM(convnet()).stream([], device=device)
    assert list(SDSGSM(convnet()).stream([], device="cpu")) == []
