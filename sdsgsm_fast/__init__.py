"""SD-SGSM adversarial examples and occlusion maps for image classifiers, fast.

from sdsgsm_fast import SDSGSM, occlusion_map

adv = SDSGSM(model, eps=8/255)(images, labels)
heat = occlusion_map(model, images, labels, patch=4)
"""

from . import gradients
from .attack import Attack
from .common.machine import package_version
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

__version__ = package_version()

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
]
