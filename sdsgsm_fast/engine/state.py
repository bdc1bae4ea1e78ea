"""What a model's code can reach, read without running any of it.

A pass may leave things anywhere: on the model, in a global cache, in another library's table. Here
all of that is compared and nothing is written to. Objects are read by the built-in types' own
methods, so that no code of another class runs. The same comparison tells `cache` and `surrogate`
whether a model that was prepared is still the same.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor, nn

from .own import own_containers

ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
PLAIN = frozenset((*CONTAINERS, OrderedDict))  # without attributes worth a look
LARGE = 10_000  # entries of a container that is data: its length alone is compared
MOST = 20_000  # objects; a model that reaches more is not followed
TRUSTED = frozenset(("torch", "sdsgsm_fast", "numpy", "builtins", "_pytest"))
"""Packages whose code is not followed; the last one writes itself into functions with asserts."""
WITH_STATE = frozenset(("collections", "weakref", "types"))
"""Modules of the standard library whose objects are looked into."""
ENTRIES = ("forward", "__call__", "__getattr__", "__getitem__", "__iter__", "__torch_function__")
"""Methods that run without being named."""

Named = tuple[str, Any]


class State:
    """What a model's code can reach, and what each part of it holds.

    The walk starts at the model. It follows attributes, containers, closures, the globals that a
    function names, also in modules, and the attributes of classes by the names in all that code.

    Parameters
    ----------
    model
        A module or another callable.

    Attributes
    ----------
    functions : frozenset of int
        Ids of the functions that were reached.
    compiled : bool
        Whether torch.compile has compiled a part of the model.

    Raises
    ------
    ValueError
        If the model reaches more than `MOST` objects.
    """

    def __init__(self, model: Any) -> None:
        own = {id(holder) for holder in own_containers(model)}
        with torch._C.DisableTorchFunctionSubclass():
            walk = _Walk(model)
        self.functions = frozenset(walk.functions)
        self.compiled = walk.compiled
        self._contents, self._names, self._alive = walk.contents, walk.names, walk.alive
        self._foreign = walk.contents.keys() - own
        self._caches = [key for key in walk.with_tensors if key not in own]

    def same(self, other: State) -> bool:
        """Whether both hold the same objects in the same places, all of which still exist."""
        refs = (*self._alive.values(), *other._alive.values())
        return self._contents == other._contents and all(ref() is not None for ref in refs)

    def changed_elsewhere(self, before: State) -> str | None:
        """Name something that has changed since and is not the model's own; None for nothing."""
        for key in before._foreign:
            contents = before._contents[key]
            if self._contents.get(key, contents) != contents:
                return before._names[key]
        return None

    def cache_elsewhere(self) -> str | None:
        """Name a container of tensors that is not the model's own; None if there is none."""
        return self._names[self._caches[0]] if self._caches else None

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is within reach."""
        return id(tensor) in self._alive


class _Walk:
    """Finds everything within reach of a model, for a `State`."""

    def __init__(self, model: Any) -> None:
        self.contents: dict[int, tuple[Any, ...]] = {}  # by the id of what holds it
        self.names: dict[int, str] = {}
        self.alive: dict[int, weakref.ref[Any]] = {}
        self.with_tensors: list[int] = []  # containers
        self.functions: set[int] = set()
        self.compiled = False
        self._words = set(ENTRIES)  # that occur in the code
        self._spaces: dict[int, tuple[str, Any]] = {}  # classes, of which the names in the code are read
        self._weights: set[int] = set()  # the modules' dictionaries of tensors
        self._slots: dict[type, list[Any]] = {}
        self._kinds: dict[type, Callable[[str, Any], None] | None] = {}
        self._waiting: list[Named] = [(type(model).__name__, model)]
        searched = (-1, -1)
        while self._waiting:
            self._follow()
            if searched != (searched := (len(self._words), len(self._spaces))):
                self._search()

    def _follow(self) -> None:
        """Look into what waits, and into what that holds."""
        while self._waiting:
            name, value = self._waiting.pop()
            if id(value) in self.contents:
                continue
            kind = type(value)
            if kind not in self._kinds:
                self._kinds[kind] = self._reader_for(kind)
            look = self._kinds[kind]
            if look is not None:
                look(name, value)
            if len(self.contents) > MOST:
                raise ValueError(f"the model reaches more than {MOST} objects")

    def _search(self) -> None:
        """Read what classes have under the words of the code."""
        for name, space in list(self._spaces.values()):
            found = {k: v for k, v in vars(space).items() if k in self._words}
            self._note(space, name, list(found.values()))
            self._waiting += [(f"{name}.{k}", v) for k, v in found.items()]

    def _reader_for(self, kind: type) -> Callable[[str, Any], None] | None:
        """How to look into objects of a class; None for those that are compared as a whole."""
        if issubclass(kind, CONTAINERS):
            return self._container
        if issubclass(kind, nn.Module):
            self._waiting += [(_text(base, "__qualname__"), base) for base in kind.__mro__]
            return self._module
        if issubclass(kind, type):
            return self._class
        if kind in PARTS:
            return lambda name, value: self._hold(value, name, list(PARTS[kind](value)))
        if kind is FunctionType:
            return self._function
        if kind is functools._lru_cache_wrapper:
            return self._lru_cache
        return self._object if _looked_into(kind) and not issubclass(kind, Tensor) else None

    def _note(self, holder: Any, name: str, items: list[Any]) -> None:
        """Write down what an object holds.

        Numbers and texts are compared by value, tensors by version and place, all else by id. An id
        may go to another object once the first is gone: weak references tell.
        """
        kinds = [type(item) for item in items]
        values = [item if kind in ATOMS else self._token(kind, item) for kind, item in zip(kinds, items, strict=True)]
        self.contents[id(holder)] = (id(type(holder)), *map(id, kinds), *values)
        self.names[id(holder)] = name

    def _token(self, kind: type, value: Any) -> Any:
        key = id(value)
        if kind not in CONTAINERS and key not in self.alive:
            with suppress(TypeError):  # others are looked into, or live as long as their holder
                self.alive[key] = weakref.ref(value)
        if not issubclass(kind, Tensor):
            return key
        if value.is_inference():
            return object()  # its changes cannot be told
        return key, value._version, value.data_ptr() if value.layout == torch.strided else None

    def _hold(self, holder: Any, name: str, items: list[Any]) -> None:
        """Write down what an object holds, and go on from there."""
        self._note(holder, name, items)
        self._waiting += [(name, item) for item in items if type(item) not in ATOMS]

    def _container(self, name: str, value: Any) -> None:
        given = type(value)
        kind = next(k for k in CONTAINERS if issubclass(given, k))
        count = kind.__len__(value)
        if count > LARGE or (not count and given in PLAIN):
            self._note(value, name, [count])
            return
        if kind is dict:
            items = [part for item in dict.items(value) for part in item]
        else:
            items = list(kind.__iter__(value))
            items = sorted(items, key=id) if kind in (set, frozenset) else items
        mutable = kind not in (tuple, frozenset) and id(value) not in self._weights
        if mutable and any(issubclass(type(item), Tensor) for item in items):
            self.with_tensors.append(id(value))
        self._hold(value, name, items if given in PLAIN else items + self._attributes(value))

    def _module(self, name: str, module: nn.Module) -> None:
        attributes: dict[str, Any] = object.__getattribute__(module, "__dict__")
        self._weights.update(id(attributes.get(k)) for k in ("_parameters", "_buffers"))
        children = attributes.get("_modules")
        wraps = isinstance(children, dict) and "_orig_mod" in children
        self.compiled |= wraps or attributes.get("_compiled_call_impl") is not None
        name = type(module).__name__
        self._note(module, name, [])
        self._hold(attributes, name, [*attributes, *attributes.values()])

    def _object(self, name: str, value: Any) -> None:
        self._hold(value, name, self._attributes(value))

    def _attributes(self, value: Any) -> list[Any]:
        """The dictionary of an object's attributes, if it has one, and what its slots hold."""
        kind = type(value)
        if kind not in self._slots:
            self._waiting += [(_text(base, "__qualname__"), base) for base in kind.__mro__]
            wanted = (GetSetDescriptorType, MemberDescriptorType)
            self._slots[kind] = [
                entry
                for base in kind.__mro__
                for key, entry in vars(base).items()
                if type(entry) in wanted and (key == "__dict__" or _looked_into(base))
            ]
        found = []
        for entry in self._slots[kind]:
            with suppress(AttributeError):  # a slot that holds nothing
                found.append(entry.__get__(value))
        return found

    def _class(self, name: str, kind: Any) -> None:
        if _followed(_text(kind, "__module__")):
            self._spaces[id(kind)] = (_text(kind, "__qualname__"), kind)

    def _function(self, name: str, function: FunctionType) -> None:
        """Go into the closure and the defaults of a function, and what its code names."""
        name, space = function.__qualname__, function.__globals__
        named = set(_words(function.__code__)) if _followed(str(space.get("__name__"))) else set()
        self._words |= named
        self.functions.add(id(function))
        marks = function.__dict__
        wrapped = "_torchdynamo_orig_callable" in marks  # to be compiled, or never to be
        self.compiled |= wrapped and "_torchdynamo_disable" not in marks
        found: dict[str, Any] = {k: space[k] for k in sorted(named & space.keys())}
        found |= _in_modules(found, named)
        cells = function.__closure__ or ()
        for label, cell in zip(function.__code__.co_freevars, cells, strict=True):
            with suppress(ValueError):  # a name that has no value yet
                found[label] = cell.cell_contents
        extra = [function.__dict__, function.__defaults__, function.__kwdefaults__]
        self._note(function, name, [function.__code__, *extra, *found, *found.values()])
        self._waiting += [*found.items(), *((name, x) for x in extra if x)]

    def _lru_cache(self, name: str, function: Any) -> None:
        """How often it missed, and whether it has tensors; hits change nothing."""
        name, info = f"the cache of {name}", function.cache_info()
        self._hold(function, name, [info.misses, info.currsize, function.__wrapped__])
        if any(issubclass(type(value), Tensor) for value in _cached(function)):
            self.with_tensors.append(id(function))


PARTS: dict[type, Any] = {
    MethodType: lambda m: (m.__self__, m.__func__),
    functools.partial: lambda p: (p.func, p.args, p.keywords),
    staticmethod: lambda s: (s.__func__,),
    classmethod: lambda c: (c.__func__,),
    property: lambda p: (p.fget, p.fset),
    itertools.count: lambda c: (repr(c),),
}
"""What some built-in objects refer to."""


def _text(kind: Any, name: str) -> str:
    """An attribute of a class that is a text, whatever its metaclass says."""
    return str(type.__getattribute__(kind, name))


@functools.lru_cache(4096)
def _followed(module: str) -> bool:
    """Whether code of that module is followed."""
    package = module.partition(".")[0]
    return package not in TRUSTED and package not in sys.stdlib_module_names


def _looked_into(kind: type) -> bool:
    """Whether objects of a class are looked into."""
    module = _text(kind, "__module__")
    return module in WITH_STATE or _followed(module)


def _in_modules(found: dict[str, Any], named: set[str]) -> dict[str, Any]:
    """What a function names in the modules that it names, as in ``module.name``."""
    inside = {}
    modules = list(found.values())
    while modules:
        module = modules.pop()
        if not issubclass(type(module), ModuleType):
            continue
        space: dict[str, Any] = ModuleType.__getattribute__(module, "__dict__")
        label = str(space.get("__name__", ""))
        for name in sorted(named & space.keys()) if _followed(label) else ():
            if f"{label}.{name}" not in inside:
                inside[f"{label}.{name}"] = space[name]
                modules.append(space[name])
    return inside


def _words(code: CodeType) -> Iterator[str]:
    """Names in a function's code and in the functions in it; attributes may be named by texts."""
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _words(constant)
        elif type(constant) is str and constant.isidentifier():
            yield constant


def _cached(function: Any) -> Iterator[Any]:
    """The results that an lru_cache keeps, as far as the garbage collector knows them."""
    for held in gc.get_referents(function):
        if type(held) is dict:
            for entry in held.values():
                yield from (entry, *gc.get_referents(entry))
