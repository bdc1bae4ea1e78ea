"""What a model keeps on its objects: to undo a pass without data, and to tell changes."""

from __future__ import annotations

from collections import deque
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

LEAVES = (type, ModuleType, BuiltinFunctionType, Tensor, torch.dtype, torch.device)
LARGE = 10_000  # entries of a container that is data rather than a cache


class Snapshot:
    """The attributes of a model, of all objects in it and of the functions that it is made of.

    Also the dicts, lists and sets among them, and those that its functions reach as closures and
    globals. What is inside a tensor or an array is not looked at.

    Parameters
    ----------
    model
        A module or another callable.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.before = [(holder, holder.copy()) for holder in holders(model)]

    def restore(self) -> None:
        """Put everything back that has changed."""
        for holder, before in self.before:
            if _contents(holder) != _contents(before):
                _refill(holder, before)

    def unchanged(self) -> bool:
        """Whether all is as it was: the same objects in the same places."""
        now = holders(self.model)
        return len(now) == len(self.before) and all(
            a is b and _contents(a) == _contents(before)
            for a, (b, before) in zip(now, self.before, strict=True)
        )


def holders(model: Any) -> list[Any]:
    """Everything that holds references for a model: dicts (of attributes too), lists and sets."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list, set, deque)):
            if id(value) not in found and len(value) <= LARGE:
                found[id(value)] = value
                waiting.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, tuple):
            waiting.extend(value)
        elif id(value) not in seen and not isinstance(value, LEAVES):
            seen.add(id(value))
            waiting += _inside(value)
    return list(found.values())


def _inside(value: Any) -> list[Any]:
    """What an object refers to."""
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        return _reached(value)
    if not hasattr(value, "__dict__"):
        return []
    methods = [] if _foreign(type(value).__module__) else list(vars(type(value)).values())
    wanted = (FunctionType, dict, list, set, deque)
    return [vars(value), *(m for m in methods if isinstance(m, wanted))]


def _reached(function: FunctionType) -> list[Any]:
    """The closure of a function, and the containers among the globals that it names."""
    if _foreign(function.__module__ or ""):
        return []
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            continue
    names = (function.__globals__.get(name) for name in function.__code__.co_names)
    wanted = (dict, list, set, deque, FunctionType)
    return [*cells, *(value for value in names if isinstance(value, wanted))]


def _foreign(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "builtins", "sdsgsm_fast")


def _contents(holder: Any) -> Any:
    """Which objects a dict, list or set holds."""
    if isinstance(holder, dict):
        return [(id(key), id(value)) for key, value in holder.items()]
    ids = [id(value) for value in holder]
    return sorted(ids) if isinstance(holder, set) else ids


def _refill(holder: Any, before: Any) -> None:
    holder.clear()
    (holder.update if isinstance(holder, (dict, set)) else holder.extend)(before)
