"""The operators as PyTorch sees them: schemas, checks, and fake kernels for tracing.

`ops` is their public face. Here tensors are checked, whatever calls: the kernels take raw
addresses. None of the operators is differentiable.
"""

from .occlude import occlude
from .paste import paste
from .update import update, update_
from .window_mean import window_mean

__all__ = ["occlude", "paste", "update", "update_", "window_mean"]
