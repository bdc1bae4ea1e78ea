"""SD-SGSM adversarial examples and occlusion maps for image classifiers, fast.

from sdsgsm_fast import SDSGSM, occlusion_map

adv = SDSGSM(model, eps=8/255)(images, labels)
heat = occlusion_map(model, images, labels, patch=4)
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403 (its own list says what)


def __getattr__(name: str) -> Any:
    """A public name; all are loaded with the first, so that a command's help needs no torch."""
    if name == "__version__":
        return import_module(".common.version", __name__).package_version()
    if find_spec(f"{__name__}.{name}") is not None:  # a module of the package, which may be what asks
        return import_module(f".{name}", __name__)
    public = import_module(".public", __name__)
    if name == "__all__" or name in public.__all__:
        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
