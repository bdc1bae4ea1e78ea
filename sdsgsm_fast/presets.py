"""SD-SGSM and the known attacks as settings of one loop: METHOD.md, section 4."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from .attack import Attack, Settings
from .gradients import AdaBelief, Diversity, Kernel, LookAhead, Scales
from .model.classifier import Model

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SIGN: Settings = {"domain": None, "relax": None, "gain": math.inf}


class SDSGSM(Attack):
    """SD-SGSM (Xu et al., Entropy 2026, 28(2):193) as METHOD.md defines it: `Attack`'s defaults.

    Decision-dependent domain, spatially adaptive allocation, tanh-smoothed step. Not the authors'
    code: where their abstract is silent the choices are this project's.
    """


class Preset(Attack):
    """An attack with other defaults; it takes every setting of `Attack`, a domain included."""

    defaults: ClassVar[Settings] = {}

    def __init__(self, model: Model, **settings: Unpack[Settings]) -> None:
        merged: Settings = {**self.defaults, **settings}
        super().__init__(model, **merged)


class SpatialOnly(Preset):
    """Ablation: SD-SGSM's domain with the sign in place of the tanh."""

    defaults: ClassVar[Settings] = {"gain": math.inf}


class SmoothingOnly(Preset):
    """Ablation: SD-SGSM's tanh without a domain (m ≡ 1)."""

    defaults: ClassVar[Settings] = {"domain": None, "relax": None}


class FGSM(Preset):
    """Fast gradient sign method (Goodfellow et al. 2015): one step of ε."""

    defaults: ClassVar[Settings] = {**_SIGN, "steps": 1}

    def __init__(self, model: Model, **settings: Unpack[Settings]) -> None:
        if settings.get("alpha") is None:
            settings["alpha"] = settings.get("eps", 8 / 255)
        super().__init__(model, **settings)


class BIM(Preset):
    """Basic iterative method, also called I-FGSM (Kurakin et al. 2017)."""

    defaults: ClassVar[Settings] = _SIGN


class PGD(Preset):
    """Projected gradient descent (Madry et al. 2018): BIM from a random start."""

    defaults: ClassVar[Settings] = {**_SIGN, "random_start": True}


class MIFGSM(Preset):
    """Momentum iterative FGSM (Dong et al. 2018): decay 1, gradients divided by their mean |g|."""

    defaults: ClassVar[Settings] = {**_SIGN, "decay": 1.0}


class NIFGSM(Preset):
    """Nesterov iterative FGSM (Lin et al. 2020): MI-FGSM, its gradients taken a step ahead."""

    defaults: ClassVar[Settings] = {**_SIGN, "decay": 1.0, "gradient": (LookAhead(),)}


class SINIFGSM(Preset):
    """Scale-invariant NI-FGSM (Lin et al. 2020): mean gradients over five darker copies."""

    defaults: ClassVar[Settings] = {**_SIGN, "decay": 1.0, "gradient": (LookAhead(), Scales(5))}


class DIFGSM(Preset):
    """Diverse inputs FGSM (Xie et al. 2019): gradients through a random resize and padding.

    ``decay=1.0`` makes it M-DI-FGSM.
    """

    defaults: ClassVar[Settings] = {**_SIGN, "gradient": (Diversity(),)}


class TIFGSM(Preset):
    """Translation-invariant FGSM (Dong et al. 2019): gradients smoothed by a Gaussian.

    ``gradient=[Kernel(), Diversity()]`` makes it TI-DI-FGSM. torchattacks' class of that name does
    so always, with one draw for the whole batch.
    """

    defaults: ClassVar[Settings] = {**_SIGN, "gradient": (Kernel(),)}


class Jitter(Preset):
    """Jitter (Schwinn et al. 2023): a scaled, noisy loss from a random start."""

    defaults: ClassVar[Settings] = {**_SIGN, "loss": "jitter", "random_start": True}


class ABFGSM(Preset):
    """AB-FGSM (Wang et al. 2022): AdaBelief's averages in place of momentum."""

    defaults: ClassVar[Settings] = {**_SIGN, "moments": AdaBelief()}


class MinimalSDSGSM(Preset):
    """SD-SGSM for the least distortion: METHOD.md, section 3b.

    Small steps that grow, and then probes along the decision's boundary. ``levels=256`` finds the
    least in 8 bits. Its settings are those of the sweep in docs/experiments.md.
    """

    defaults: ClassVar[Settings] = {
        "domain": None, "relax": None, "growth": 1.3, "refine": 14,
    }  # fmt: skip

    def __init__(self, model: Model, **settings: Unpack[Settings]) -> None:
        if settings.get("alpha") is None:
            settings["alpha"] = settings.get("eps", 8 / 255) / 32
        super().__init__(model, **settings)
