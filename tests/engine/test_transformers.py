"""Models of the transformers package: the loop's scores, and its own tables as they were."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers
from nets import Looking, predicted
from torch import nn

from sdsgsm_fast import BIM, occlusion_scores
from sdsgsm_fast.engine.trace import trace
from sdsgsm_fast.model.classifier import Classifier

SMALL: dict[str, Any] = {
    "ViT": {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 96},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [1, 1],
             "num_heads": [2, 4], "window_size": 4},
    "Dinov2": {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 1,
               "num_attention_heads": 4, "mlp_ratio": 2},
    "ConvNext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
               "layer_type": "basic"},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.35, "min_depth": 8},
}  # fmt: skip


def model(kind: str) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **SMALL[kind])
    net: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
    with torch.no_grad():  # by random weights alone the logits would hardly differ
        for p in net.parameters():
            p.mul_(1.5)
        net.train()(torch.rand(16, 3, 32, 32))  # statistics of batch norms
    return net.eval()


def tables() -> dict[str, list[Any]]:
    """Items of every dictionary at the top of the package's loaded modules, by identity."""
    names = [name for name in sys.modules if name.partition(".")[0] == "transformers"]
    return {
        f"{name}.{key}": [(id(k), id(v)) for k, v in dict.items(value)]
        for name in names
        for key, value in dict(object.__getattribute__(sys.modules[name], "__dict__")).items()
        if issubclass(type(value), dict) and not key.startswith("__")
    }


@pytest.mark.parametrize("kind", SMALL)
def test_scores_are_the_loops_and_the_package_stays_whole(kind: str) -> None:
    net, images = model(kind), torch.rand(2, 3, 32, 32)
    net(images)  # what the package fills by itself
    before = tables()
    assert before["transformers.activations.ACT2FN"]
    found = occlusion_scores(net, images, patch=8, score="logit")
    expected = occlusion_scores(Looking(lambda x: net(x).logits), images, patch=8, score="logit")
    assert float(expected.abs().max()) > 1e-5
    assert float((found - expected).abs().max()) <= 1e-5
    labels = predicted(lambda x: net(x).logits, images)
    assert BIM(net, steps=4)(images, labels).isfinite().all()
    assert tables() == before
    model(kind)  # another one can be built
    with Classifier(net).frozen():
        assert trace(Classifier(net), images).nodes
