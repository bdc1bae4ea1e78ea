"""What a run does with each slice of the data: the part in which kinds of run differ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..model.classifier import Classifier
from .kinds import Kind


class Job(ABC):
    """What is made of images.

    Attributes
    ----------
    kind
        Of the set that comes out.
    classifier
        The model.
    keep
        Names of what is stored besides, if it can be.
    """

    kind: ClassVar[Kind]

    def __init__(self, classifier: Classifier, keep: tuple[str, ...]) -> None:
        self.classifier, self.keep = classifier, keep

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the result depends on besides model and data, as JSON has it.

        Raises
        ------
        ValueError
            If one of them cannot be written down.
        """

    @abstractmethod
    def tensors(self, images: Tensor, labels: Tensor, places: list[int]) -> dict[str, Tensor]:
        """The tensors of a shard, (n, …) each.

        Parameters
        ----------
        images, labels
            (n, C, H, W) and (n,), on the model's device.
        places
            In the data.
        """


def plain(name: str, value: Any) -> Any:
    """A setting as JSON has it.

    Raises
    ------
    ValueError
        If it is a tensor or a function.
    """
    if isinstance(value, Tensor) or (callable(value) and not is_dataclass(value)):
        raise ValueError(f"{name}: a run takes numbers and the package's own objects, found {type(value).__name__}")
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{k: plain(f"{name}.{k}", v) for k, v in asdict(value).items()}}
    if isinstance(value, (list, tuple)):
        return [plain(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ready to be written."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
