"""Plays a package of somebody else: registries, caches, logs and counters that models reach."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import types
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn


class LazyRegistry(dict):  # type: ignore[type-arg]
    """Makes an activation when it is asked for one; its items are not what its methods return."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(key)()

    def _forbidden(self, *_: Any) -> Any:
        raise AssertionError("nobody may call this")

    __iter__ = __eq__ = __len__ = keys = values = items = copy = clear = update = _forbidden
    __hash__ = None  # type: ignore[assignment]


class Guarded:
    """An object that may be asked for what it has by name alone."""

    def __init__(self) -> None:
        self.calls = 0
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        raise AssertionError("nobody may compare this")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise AssertionError("nobody may ask this")


class Slotted:
    __slots__ = ("calls", "last")

    def __init__(self) -> None:
        self.calls, self.last = 0, None


class Base:
    seen: dict[Any, Any] = {}  # noqa: RUF012 (a cache of the class)
    calls = 0


ACTIVATIONS = LazyRegistry(relu=nn.ReLU, gelu=nn.GELU)
DEFAULTS: defaultdict[str, list[int]] = defaultdict(list, widths=[1, 2])
USER = UserDict({"scale": 1.0})
WEAK: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
ORDERED = OrderedDict(a=1, b=2)
COUNTS: Counter[str] = Counter()
LOG: list[Any] = []
RECENT: deque[Any] = deque(maxlen=4)
SHAPES: set[Any] = set()
CACHE: dict[Any, Tensor] = {}
GUARDED = Guarded()
SLOTTED = Slotted()
SPACE = types.SimpleNamespace(last=None)
STEPS = itertools.count()
QUEUE: queue.SimpleQueue[Any] = queue.SimpleQueue()
CALLS = 0


@functools.lru_cache
def grid(width: int, batch: int, device: torch.device) -> Tensor:
    return torch.linspace(0, 0.01, width, device=device).expand(batch, 1, 1, width)


@functools.lru_cache
def scale(kind: str) -> float:
    return 1.0 if kind == "relu" else 0.5


HELD = nn.Identity()
WEAK["held"] = HELD
