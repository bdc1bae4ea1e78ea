"""SD-SGSM adversarial examples and occlusion maps for image classifiers, fast.

from sdsgsm_fast import SDSGSM, occlusion_map

adv = SDSGSM(model, eps=8/255)(images, labels)
heat = occlusion_map(model, images, labels, patch=4)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import gradients, runs
    from .attack import Attack
    from .data import images, models
    from .domains import Gradient, Occlusion, decision_domain
    from .kernels import ops
    from .metrics import Metrics
    from .model.ensemble import Ensemble
    from .occlusion.maps import occlusion_map, occlusion_scores
    from .presets import (
        ABFGSM,
        BIM,
        DIFGSM,
        FGSM,
        MIFGSM,
        NIFGSM,
        PGD,
        SDSGSM,
        SINIFGSM,
        TIFGSM,
        Jitter,
        MinimalSDSGSM,
        SmoothingOnly,
        SpatialOnly,
    )
    from .result import AttackResult, Passes

_NAMES = {
    "attack": "Attack",
    "domains": "Gradient Occlusion decision_domain",
    "metrics": "Metrics",
    "model.ensemble": "Ensemble",
    "occlusion.maps": "occlusion_map occlusion_scores",
    "presets": "ABFGSM BIM DIFGSM FGSM MIFGSM NIFGSM PGD SDSGSM SINIFGSM TIFGSM Jitter MinimalSDSGSM "
    "SmoothingOnly SpatialOnly",
    "result": "AttackResult Passes",
}
"""Public names by the module that has them; it is loaded with the first, so that a command's help needs no torch."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = {
    "gradients": "gradients",
    "images": "data.images",
    "models": "data.models",
    "ops": "kernels.ops",
    "runs": "runs",
}
"""Public modules, by their public names."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module(".common.version", __name__).package_version()
    if name in _MODULES:
        value = import_module(f".{_MODULES[name]}", __name__)
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


__all__ = [
    "ABFGSM",
    "BIM",
    "DIFGSM",
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SDSGSM",
    "SINIFGSM",
    "TIFGSM",
    "Attack",
    "AttackResult",
    "Ensemble",
    "Gradient",
    "Jitter",
    "Metrics",
    "MinimalSDSGSM",
    "Occlusion",
    "Passes",
    "SmoothingOnly",
    "SpatialOnly",
    "decision_domain",
    "gradients",
    "images",
    "models",
    "occlusion_map",
    "occlusion_scores",
    "ops",
    "runs",
]
