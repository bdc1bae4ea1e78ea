"""All public names, which the package itself hands out once one is asked for."""

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
