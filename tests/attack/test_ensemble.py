"""Ensembles: the mean of logits, attacked and occluded like any model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import zoo
from torch import Tensor, nn

from sdsgsm_fast import BIM, SDSGSM, Ensemble, occlusion_scores


def members() -> list[nn.Module]:
    torch.manual_seed(0)
    return [zoo.plain().eval(), zoo.plain().eval()]


def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    images = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model(images).argmax(1)


def test_the_mean_of_logits() -> None:
    first, second = members()
    images, _ = batch(first)
    found = Ensemble([first, lambda x: SimpleNamespace(logits=second(x))])(images)
    torch.testing.assert_close(found, (first(images) + second(images)) / 2)


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize("kind", [BIM, SDSGSM])
def test_attacks_follow_the_mean(kind: type, precision: str) -> None:
    first, second = members()
    model = Ensemble([first, second])
    images, labels = batch(model)

    def mean(x: Tensor) -> Tensor:
        return (first(x) + second(x)) / 2

    settings = {"eps": 0.1, "steps": 6, "precision": precision}
    found = kind(model, **settings).run(images, labels)
    expected = kind(mean, **settings).run(images, labels)
    assert found.updates.sum() > 0
    assert torch.equal(found.success, expected.success)
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-5, rtol=0)


def test_a_search_traces_all_members_and_notices_their_training() -> None:
    model = Ensemble(members())
    images, labels = batch(model)
    attack = BIM(model, eps=0.1, steps=6)
    before = attack(images, labels)
    assert attack.search._surrogates
    with torch.no_grad():
        model.members[1].head.weight.mul_(-3)
    fresh = BIM(copy.deepcopy(model), eps=0.1, steps=6)(images, labels)
    assert torch.equal(attack(images, labels), fresh)
    assert not torch.equal(before, fresh)


def test_occlusion_is_incremental() -> None:
    model = Ensemble(members())
    images, labels = batch(model)
    found, expected = (
        occlusion_scores(model, images, labels, patch=4, method=method) for method in ("incremental", "dense")
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_members_do_not_see_what_another_overwrites() -> None:
    first, second = members()
    model = Ensemble([lambda x: second(x.mul_(0)), first])
    images, _ = batch(first)
    kept = images.clone()
    torch.testing.assert_close(model(images), (first(images) + second(images * 0)) / 2)
    assert torch.equal(images, kept)


def test_members_are_left_as_they_were() -> None:
    first, second = members()
    first.train()
    weight = second.head.weight
    weight.grad = torch.ones_like(weight)
    model = Ensemble([first, second.forward])
    images, labels = batch(Ensemble([second]))
    BIM(model, steps=5)(images, labels)
    assert first.training
    assert not second.training
    assert weight.requires_grad
    assert torch.all(weight.grad == 1)


def test_errors_say_what_is_wrong() -> None:
    first, _ = members()
    with pytest.raises(ValueError, match="expected at least one"):
        Ensemble([])
    with pytest.raises(TypeError, match="found int in place 1"):
        Ensemble([first, 3])  # type: ignore[list-item]
    images, _ = batch(first)
    with pytest.raises(ValueError, match=r"\(6, 4\), \(6, 5\)"):
        Ensemble([first, lambda x: first(x)[:, :4]])(images)
    with pytest.raises(TypeError, match="found str"):
        Ensemble([lambda x: "cat"])(images)
