"""Attacks of other libraries that minimise something else or chain attacks, as their users call them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.lines import first_line
from ..model.classifier import Classifier
from ..result import AttackResult, Judge, Passes

Run = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""Model, images, labels and ε to adversarial images; each has steps of its own."""

AT_ONCE = 64  # images of a call


class Counted(nn.Module):
    """A model for images in [0, 1] that counts what passes through it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        module = classifier.module
        # Libraries ask its parameters for the device.
        self.held = module if module is not None else nn.Identity()
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._count)  # type: ignore[no-untyped-call]
        return self.classifier.forward(self.classifier.inputs(x))

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@dataclass(frozen=True)
class Rival:
    """An attack of another library.

    Attributes
    ----------
    name, library
        What it is, and the package that it is taken from.
    attack
        Calls it.
    """

    name: str
    library: str
    attack: Run

    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        try:
            importlib.import_module(self.library)
        except Exception as error:  # a package that is there may lack what it needs
            return f"{self.library}: {first_line(error)}"
        return None

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, eps: float) -> AttackResult:
        """Attack the images that the model gets right; success is judged as everywhere here.

        A backward pass for each class, as DeepFool takes, counts as one for each class. Passes are
        means: a library's are not told apart by image.
        """
        judge, adv, size = Judge(classifier, labels, None), images.clone(), classifier.batch_size or AT_ONCE
        with classifier.frozen():
            predicted = torch.cat([classifier.logits(x).argmax(1) for x in torch.split(images, size)])
        skipped = predicted != labels
        counted, rows = Counted(classifier), (~skipped).nonzero().flatten()
        with classifier.frozen(), torch.enable_grad():
            counted.eval()  # held, so that the model's own modes come back
            for part in torch.split(rows, size):
                found = self.attack(counted, images[part], labels[part], eps).detach()
                adv[part] = found.clamp(0, 1).to(adv.dtype)
        success = torch.zeros_like(skipped)
        success[rows] = judge(adv[rows], rows)
        each = max(1, len(rows))
        count = torch.zeros_like(labels)
        passes = Passes(count + round(counted.forwards / each), count + round(counted.backwards / each))
        return AttackResult(
            adv=adv, success=success, skipped=skipped, predicted=predicted, updates=count,
            domain=images.new_ones(images[:, 0].shape), scores=None, rescored=None, passes=passes,
            index=torch.arange(len(images)), images=images, bounds=(0.0, 1.0), judge=judge,
        )  # fmt: skip


def _foolbox(name: str, **settings: Any) -> Run:
    """A minimum-norm attack of foolbox, without a limit."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        foolbox = importlib.import_module("foolbox")
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        attack = getattr(foolbox.attacks, name)(**settings)
        _, adv, _ = attack(wrapped, images, labels, epsilons=None)
        found: Tensor = adv
        return found

    return run


def _adv_lib(name: str, **settings: Any) -> Run:
    """A minimum-norm attack of adv-lib, without a limit."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        attacks = importlib.import_module("adv_lib.attacks")
        found: Tensor = getattr(attacks, name)(model, images, labels, **settings)
        return found

    return run


def _torchattacks(name: str, **settings: Any) -> Run:
    """An attack of torchattacks within ε, or within the `eps` of its settings."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        library = importlib.import_module("torchattacks")
        classes = model(images[:1]).shape[1]
        attack = getattr(library, name)(model, **{"eps": eps, "n_classes": classes, **settings})
        found: Tensor = attack(images, labels)
        return found

    return run


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("DeepFool", "foolbox", _foolbox("L2DeepFoolAttack", steps=50)),
        Rival("C&W", "foolbox", _foolbox("L2CarliniWagnerAttack", binary_search_steps=5, steps=200)),
        Rival("DDN-100", "adv_lib.attacks", _adv_lib("ddn", steps=100, levels=None)),
        Rival("DDN-100, 8 bits", "adv_lib.attacks", _adv_lib("ddn", steps=100, levels=256)),
        Rival("FAB", "torchattacks", _torchattacks("FAB", norm="L2", eps=1e3, steps=20, n_restarts=1)),
        Rival("AutoAttack", "torchattacks", _torchattacks("AutoAttack", norm="Linf", seed=0)),
    )
}
"""By the names that users give."""
