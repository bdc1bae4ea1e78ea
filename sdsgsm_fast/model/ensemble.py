"""Several models as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .classifier import Model, logits_of


class Ensemble(nn.Module):
    """The mean of several models' logits, to find examples that transfer (Liu et al., ICLR 2017).

    It is attacked and occluded like any model, and its members are left as they were like any
    model. Members of unlike normalisation carry theirs as a first layer.

    Parameters
    ----------
    models
        At least one `nn.Module` or other callable, each from (B, C, H, W) to logits (B, K) or to
        an object with `.logits`, with the same K.

    Raises
    ------
    ValueError, TypeError
        If there are no models, or one is not callable; from a call, if logits differ in shape.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models = tuple(models)
        if not self.models:
            raise ValueError("models: expected at least one, found none")
        for place, model in enumerate(self.models):
            if not callable(model):
                raise TypeError(f"models: expected callables, found {type(model).__name__} in place {place}")
        # Bound methods too: their modules are held in eval mode with the others.
        owners = [getattr(model, "__self__", model) for model in self.models]
        self.members = nn.ModuleList(o for o in owners if isinstance(o, nn.Module))

    def forward(self, inputs: Tensor) -> Tensor:
        """Mean logits (B, K) of normalised inputs (B, C, H, W)."""
        # Each gets inputs of its own, since a model may overwrite them.
        each = [logits_of(model(inputs.clone())) for model in self.models]
        shapes = {tuple(logits.shape) for logits in each}
        if len(shapes) > 1:
            raise ValueError(f"models: expected logits of one shape, found {', '.join(map(str, sorted(shapes)))}")
        total = each[0]
        for logits in each[1:]:
            total = total + logits
        return total / len(each)
