"""What a model's code can reach, read without running any of it.

A pass may leave things anywhere: on the model, in a global cache, in another library's table. Here
all of that is compared and nothing is written to. Objects are read by the built-in types' own
methods, so that no code of another class runs. The same comparison tells `cache` and `surrogate`
whether a model that was prepared is still the same.
"""

from __future__ import annotations

import dis
import functools
import gc
import itertools
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from contextvars import ContextVar
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .own import ATTRIBUTES

ATOMS = frozenset(map(id, (int, float, complex, bool, str, bytes, type(None))))  # a class may have a hash of its own
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
PLAIN = frozenset(map(id, (*CONTAINERS, OrderedDict)))  # without attributes worth a look
LARGE = 10_000  # entries of a container that is data: its length alone is compared
MOST = 20_000  # objects; a model that reaches more is not followed, nor one with ten times as many items
SMALL = 2**20  # bytes of an array that are compared
DEEP = 4  # levels of containers in which tensors are looked for
TRUSTED = frozenset(("torch", "sdsgsm_fast", "numpy", "builtins", "_pytest"))
"""Packages whose code is not followed; the last one writes itself into functions with asserts."""
WITH_STATE = frozenset(("collections", "weakref", "types", "argparse", "_thread"))
"""Modules of the standard library whose objects are looked into."""
QUIET = frozenset(
    f"__{name}__"
    for name in (
        *("new", "init", "init_subclass", "post_init", "del", "repr", "str", "dir", "sizeof", "class_getitem"),
        *("reduce", "reduce_ex", "getstate", "setstate", "copy", "deepcopy"),
    )
)
"""Methods with such names that a pass does not run; all others may run without being named."""
DYNAMIC = frozenset(("globals", "vars", "eval", "exec"))
"""Functions by which code reaches what it does not name."""

Named = tuple[str, Any]


class State:
    """What a model's code can reach, and what each part of it holds.

    The walk starts at the model. It follows attributes, containers, closures, the globals that a
    function names, also in modules, and the attributes of classes by the names in all that code.

    Parameters
    ----------
    model
        A module or another callable.
    own
        Ids of the model's own containers, where `changed_elsewhere` or `cache_elsewhere` is to be asked.
    hold
        Keep all that is reached alive, so that no id goes to another object meanwhile.

    Attributes
    ----------
    functions : frozenset of int
        Ids of the functions that were reached.
    compiled : bool
        Whether torch.compile has compiled a part of the model.
    opaque
        Whether there is something of which changes cannot be told.
    versions
        Version of each tensor, by its id.

    Raises
    ------
    ValueError
        If the model reaches more than `MOST` objects.
    """

    def __init__(self, model: Any, *, own: Set[int] = frozenset(), hold: bool = False) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            walk = _Walk(model, hold)
        self.functions = frozenset(walk.functions)
        self.compiled, self.opaque, self.versions = walk.compiled, walk.opaque, walk.versions
        self._held = walk.held
        self._contents, self._names, self._alive = walk.contents, walk.names, walk.alive
        self._foreign = walk.contents.keys() - own
        self._caches = [key for key in walk.with_tensors if key not in own]

    def same(self, other: State) -> bool:
        """Whether both hold the same objects in the same places, all of which still exist."""
        if self.opaque or other.opaque:
            return False
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
        ref = self._alive.get(id(tensor))
        return ref is not None and ref() is tensor

    def tensors(self) -> list[Tensor]:
        """All tensors within reach."""
        found = [ref() for key, ref in self._alive.items() if key in self.versions]
        return [tensor for tensor in found if tensor is not None]


class _Walk:
    """Finds everything within reach of a model, for a `State`."""

    def __init__(self, model: Any, hold: bool) -> None:
        self.contents: dict[int, tuple[Any, ...]] = {}  # by the id of what holds it
        self.names: dict[int, str] = {}
        self.alive: dict[int, weakref.ref[Any]] = {}
        self.with_tensors: list[int] = []  # containers
        self.functions: set[int] = set()
        self.compiled = self.opaque = False
        self.versions: dict[int, int] = {}
        self.held: list[Any] = []
        self._hold_all, self._size = hold, 0
        self._words = {"forward"}  # that occur in the code
        self._spaces: dict[int, tuple[str, Any]] = {}  # classes and modules, of which the names in the code are read
        self._read: dict[int, int] = {}  # how many of them
        self._tensorful: dict[tuple[int, int], bool] = {}  # whether a container holds tensors, by id and depth
        self._weights: set[int] = set()  # the modules' dictionaries of tensors
        self._slots: dict[int, list[Any]] = {}  # by the id of a class
        self._readers: dict[int, Callable[[str, Any], None] | None] = {}
        hooks = {k: v for k, v in vars(torch.nn.modules.module).items() if k.startswith("_global_")}
        self._waiting: list[Named] = [(_text(type(model), "__qualname__"), model), *hooks.items()]
        searched = (-1, -1)
        while self._waiting:
            self._follow()
            if searched != (searched := (len(self._words), len(self._spaces))):
                self._search()
        self._readers.clear()  # of its own methods, which would keep it until the next collection

    def _follow(self) -> None:
        """Look into what waits, and into what that holds."""
        while self._waiting:
            name, value = self._waiting.pop()
            if id(value) in self.contents:
                continue
            kind = type(value)
            if id(kind) not in self._readers:
                self._readers[id(kind)] = self._reader_for(kind)
            read = self._readers[id(kind)]
            if read is not None:
                read(name, value)
            if len(self.contents) > MOST or self._size > 10 * MOST:
                raise ValueError(f"the model reaches more than {MOST} objects")

    def _search(self) -> None:
        """Read what classes and modules have under the words of the code."""
        for name, space in list(self._spaces.values()):
            names = _namespace(space)
            words = self._words & names.keys()
            if self._read.get(id(space)) == len(words):
                continue
            self._read[id(space)] = len(words)
            if issubclass(type(space), type):
                words |= {k for k, v in names.items() if _runs_unnamed(k, v)}
            found = {k: names[k] for k in sorted(words)}
            if any(issubclass(type(v), Tensor) for v in found.values()):
                self.with_tensors.append(id(space))
            self._note(space, name, list(found.values()))
            self._waiting += [(f"{name}.{k}", v) for k, v in found.items()]

    def _reader_for(self, kind: type) -> Callable[[str, Any], None] | None:
        """How to look into objects of a class; None for those that are compared as a whole."""
        if issubclass(kind, CONTAINERS):
            return self._container
        if issubclass(kind, nn.Module):
            return self._module
        if issubclass(kind, Tensor):
            return self._tensor
        if issubclass(kind, type):
            return self._class
        if issubclass(kind, ModuleType):
            return self._python_module
        if id(kind) in PARTS:
            return lambda name, value: self._hold(value, name, list(PARTS[id(kind)](value)))
        if kind is FunctionType:
            return self._function
        if kind is functools._lru_cache_wrapper:
            return self._lru_cache
        return self._object if _looked_into(kind) else None

    def _note(self, holder: Any, name: str, items: list[Any]) -> None:
        """Write down what an object holds.

        Numbers and texts are compared by value, tensors by version and place, all else by id. An id
        may go to another object once the first is gone: weak references tell.
        """
        kinds = [type(item) for item in items]
        values = [
            item if id(kind) in ATOMS else self._token(kind, item) for kind, item in zip(kinds, items, strict=True)
        ]
        self._size += len(items)
        if self._hold_all:
            self.held.append(items)
        self.contents[id(holder)] = (id(type(holder)), *map(id, kinds), *values)
        self.names[id(holder)] = name

    def _token(self, kind: type, value: Any) -> Any:
        key = id(value)
        if not issubclass(kind, CONTAINERS) and key not in self.alive:
            try:
                self.alive[key] = weakref.ref(value)
            except TypeError:
                self.held.append(value)  # so that no other takes its id
        if issubclass(kind, Tensor):
            return self._tensor_token(value)
        if issubclass(kind, (np.ndarray, bytearray)):
            if kind not in (np.ndarray, bytearray) or memoryview(value).nbytes > SMALL or not _is_plain(value):
                self.opaque = True
                return key
            return key, bytes(value)
        return key

    def _tensor_token(self, value: Tensor) -> Any:
        """Which tensor it is, how often it was written to, and where its values are."""
        if Tensor.is_inference(value):
            self.opaque = True
            return id(value)
        self.versions[id(value)] = version = VERSION(value)
        try:
            place = Tensor.data_ptr(value) if LAYOUT(value) == torch.strided else None
        except RuntimeError:  # a subclass without a place
            place = None
        return id(value), version, place

    def _hold(self, holder: Any, name: str, items: list[Any]) -> None:
        """Write down what an object holds, and go on from there."""
        self._note(holder, name, items)
        self._waiting += [(name, item) for item in items if id(type(item)) not in ATOMS]

    def _container(self, name: str, value: Any) -> None:
        given = type(value)
        plain = id(given) in PLAIN
        if plain and not value:  # most of a module's
            self.contents[id(value)], self.names[id(value)] = (id(given),), name
            return
        kind = next(k for k in CONTAINERS if issubclass(given, k))
        count = kind.__len__(value)
        if count > LARGE:
            self.opaque = True
            self._note(value, name, [count])
            return
        if kind is dict:
            items = [part for item in dict.items(value) for part in item]
        else:
            items = list(kind.__iter__(value))
            items = sorted(items, key=id) if kind in (set, frozenset) else items
        mutable = kind not in (tuple, frozenset) and id(value) not in self._weights
        if mutable and self._has_tensor(items):
            self.with_tensors.append(id(value))
        self._hold(value, name, items if plain else items + self._attributes(value))

    def _module(self, name: str, module: nn.Module) -> None:
        attributes: dict[str, Any] = ATTRIBUTES(module)
        self.opaque |= issubclass(type(module), torch.jit.ScriptModule)  # its state is not in Python
        self._weights.update(id(attributes.get(k)) for k in ("_parameters", "_buffers"))
        children = attributes.get("_modules")
        wraps = isinstance(children, dict) and "_orig_mod" in children
        self.compiled |= wraps or attributes.get("_compiled_call_impl") is not None
        name = _text(type(module), "__name__")
        self._hold(module, name, [value for value in self._attributes(module) if value is not attributes])
        self._hold(attributes, name, [*attributes, *attributes.values()])

    def _tensor(self, name: str, tensor: Tensor) -> None:
        """Go into what somebody has put on a tensor."""
        attributes = TENSOR_ATTRIBUTES(tensor)
        if attributes:
            self._hold(tensor, name, [attributes])

    def _python_module(self, name: str, module: ModuleType) -> None:
        label = str(_namespace(module).get("__name__", ""))
        if _followed(label):
            self._spaces[id(module)] = (label, module)

    def _object(self, name: str, value: Any) -> None:
        self._hold(value, name, self._attributes(value))

    def _attributes(self, value: Any) -> list[Any]:
        """The dictionary of an object's attributes, if it has one, and what its slots hold."""
        kind = type(value)
        if id(kind) not in self._slots:
            self._waiting += [(_text(base, "__qualname__"), base) for base in MRO(kind)]
            self._slots[id(kind)] = [
                entry
                for base in MRO(kind)
                for key, entry in _namespace(base).items()
                if (type(entry) is GetSetDescriptorType and key == "__dict__")
                or (type(entry) is MemberDescriptorType and _looked_into(base))
            ]
        found = []
        for entry in self._slots[id(kind)]:
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
        self.opaque |= not DYNAMIC.isdisjoint(function.__code__.co_names) and bool(named)
        self.functions.add(id(function))
        marks = function.__dict__
        wrapped = "_torchdynamo_orig_callable" in marks  # to be compiled, or never to be
        self.compiled |= wrapped and "_torchdynamo_disable" not in marks
        found: dict[str, Any] = {k: space[k] for k in sorted(named & space.keys())}
        found |= {k: sys.modules[k] for k in sorted(named - space.keys()) if k in sys.modules}  # imported inside
        tensors = {k for k, value in found.items() if issubclass(type(value), Tensor)}
        if tensors and _stores(function.__code__, tensors):
            self.with_tensors.append(id(function))
        found |= _in_modules(found, named)
        cells = function.__closure__ or ()
        for label, cell in zip(function.__code__.co_freevars, cells, strict=True):
            with suppress(ValueError):  # a name that has no value yet
                found[label] = cell.cell_contents
        extra = [function.__dict__, function.__defaults__, function.__kwdefaults__]
        self._note(function, name, [function.__code__, *extra, *found, *found.values()])
        self._waiting += [*found.items(), *((name, x) for x in extra if x)]

    def _has_tensor(self, items: Iterable[Any], depth: int = DEEP) -> bool:
        """Whether there is a tensor among some objects, or in containers among them."""
        return any(self._is_tensor(type(item), item, depth) for item in items if id(type(item)) not in ATOMS)

    def _is_tensor(self, kind: type, value: Any, depth: int) -> bool:
        if not depth or not issubclass(kind, CONTAINERS):
            return issubclass(kind, Tensor)
        key = id(value), depth
        if key not in self._tensorful:
            inner = dict.values(value) if issubclass(kind, dict) else _items(value)
            self._tensorful[key] = self._has_tensor(inner, depth - 1)
        return self._tensorful[key]

    def _lru_cache(self, name: str, function: Any) -> None:
        """How often it missed, and whether it has tensors; hits change nothing."""
        name, info = f"the cache of {name}", function.cache_info()
        self._hold(function, name, [info.misses, info.currsize, function.__wrapped__])
        if self._has_tensor(_cached(function)):
            self.with_tensors.append(id(function))


PARTS: dict[int, Any] = {
    id(MethodType): lambda m: (m.__self__, m.__func__),
    id(BuiltinFunctionType): lambda b: (b.__self__,),
    id(functools.partial): lambda p: (p.func, p.args, p.keywords),
    id(staticmethod): lambda s: (s.__func__,),
    id(classmethod): lambda c: (c.__func__,),
    id(property): lambda p: (p.fget, p.fset),
    id(itertools.count): lambda c: (repr(c),),
    id(weakref.ref): lambda r: (r(),),
    id(ContextVar): lambda v: (v.get(None),),
}
"""What objects of some built-in classes refer to, by the class's id."""

VERSION: Any = Tensor._version.__get__  # type: ignore[attr-defined]
LAYOUT: Any = Tensor.layout.__get__  # type: ignore[attr-defined]
TENSOR_ATTRIBUTES: Any = torch._C.TensorBase.__dict__.get("__dict__", Tensor.__dict__["__dict__"]).__get__
MRO: Any = type.__dict__["__mro__"].__get__
CLASS_NAMESPACE: Any = type.__dict__["__dict__"].__get__


def _namespace(space: Any) -> Any:
    """Names and values of a class or a module, whatever their own classes make of `__dict__`."""
    if issubclass(type(space), type):
        return CLASS_NAMESPACE(space)
    return ModuleType.__getattribute__(space, "__dict__")


def _runs_unnamed(name: str, value: Any) -> bool:
    return type(value) is FunctionType and name[:2] == name[-2:] == "__" and name not in QUIET


def _is_plain(value: Any) -> bool:
    return type(value) is bytearray or value.dtype.hasobject is False


def _items(value: Any) -> Iterator[Any]:
    kind = next(k for k in CONTAINERS if issubclass(type(value), k))
    found: Iterator[Any] = kind.__iter__(value)
    return found


def _stores(code: CodeType, names: set[str]) -> bool:
    """Whether code gives one of some global names another value."""
    inner = (constant for constant in code.co_consts if type(constant) is CodeType)
    stored = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
    return bool(stored & names) or any(_stores(part, names) for part in inner)


def _text(kind: Any, name: str) -> str:
    """An attribute of a class that is a text, whatever its metaclass says."""
    if name == "__module__":
        found = CLASS_NAMESPACE(kind).get(name, "builtins")
        return found if type(found) is str else ""
    return str(type.__dict__[name].__get__(kind))


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
