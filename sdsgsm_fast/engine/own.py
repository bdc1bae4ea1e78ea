"""A model's own state, put back after a pass; nothing else is ever written to."""

from __future__ import annotations

import sys
from collections import deque
from types import MethodType
from typing import Any

from torch import nn

OWNED = frozenset(map(id, (dict, list, set, deque)))
"""Ids of the exact types of the containers that may belong to a model; a subclass never does."""
ATTRIBUTES: Any = nn.Module.__dict__["__dict__"].__get__
"""The dictionary of a module's attributes, whatever its class makes of `__dict__`."""
LARGE = 10_000  # entries of a container that is data rather than state


class OwnState:
    """What belongs to a model alone, to put it back after a pass.

    Parameters
    ----------
    model
        A module, a method of one, or another callable, of which nothing is the model's own.

    Attributes
    ----------
    ids
        Of the containers.
    """

    def __init__(self, model: Any) -> None:
        holders = own_containers(model)
        self.ids = {id(holder) for holder in holders}
        self._before = [(holder, holder.copy()) for holder in holders]

    def restore(self) -> None:
        """Put back what has changed, and only that."""
        for holder, before in self._before:
            if _ids(holder) == _ids(before):
                continue
            if isinstance(holder, dict):
                _restore_dict(holder, before)
            elif isinstance(holder, list):
                holder[:] = before
            else:
                holder.clear()
                (holder.update if isinstance(holder, set) else holder.extend)(before)


def own_containers(model: Any) -> list[Any]:
    """Find what belongs to a model alone.

    These are the dictionaries of its modules' attributes, and the dicts, lists, sets and deques
    among the values, unless anything else refers to one.
    """
    attributes: set[int] = set()
    tuples: set[int] = set()
    places: dict[int, int] = {}  # how often the model refers to each
    found: list[Any] = []
    waiting: list[Any] = [model.__self__ if type(model) is MethodType else model]
    if not issubclass(type(waiting[0]), nn.Module):
        return []
    while waiting:
        value = waiting.pop()
        if issubclass(type(value), nn.Module):
            value = ATTRIBUTES(value)
            if id(value) in attributes:
                continue
            attributes.add(id(value))
        elif type(value) is tuple:
            if id(value) not in tuples:  # it refers once to what it holds, however often it is met
                tuples.add(id(value))
                waiting += value
            continue
        elif id(type(value)) not in OWNED:
            continue
        places[id(value)] = places.get(id(value), 0) + 1
        if places[id(value)] == 1 and len(value) <= LARGE:
            found.append(value)
            waiting += value.values() if type(value) is dict else value
    del value
    besides = _references([[]], 0)
    alone = [_references(found, k) == besides + places[id(found[k])] for k in range(len(found))]
    return [x for x, own in zip(found, alone, strict=True) if own or id(x) in attributes]


def _references(held: list[Any], k: int) -> int:
    return sys.getrefcount(held[k])


def _restore_dict(holder: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Put items back one by one: another thread that reads never finds the dictionary empty."""
    for key in [key for key in holder if key not in before]:
        del holder[key]
    for key, value in before.items():
        if key not in holder or holder[key] is not value:
            holder[key] = value
    if list(holder) != list(before):
        for key, value in before.items():
            del holder[key]
            holder[key] = value


def _ids(holder: Any) -> list[int]:
    """Which objects a container holds."""
    if isinstance(holder, dict):
        return [id(part) for item in holder.items() for part in item]
    ids = [id(value) for value in holder]
    return sorted(ids) if isinstance(holder, set) else ids
