"""Whether a pass leaves something that is not the model's own, told by an ordinary pass.

A pass on tensors without data would leave such tensors in a log, a cache or a table of somebody
else. So before it an ordinary pass on two images of noise is watched. A model that changes anything
but itself, or that keeps tensors where nobody looks, is not run without data.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .leaves import leaves
from .own import OwnState
from .state import State


class EffectError(Exception):
    """A pass of the model changes more than the model; the message names it."""


_guilty: dict[int, tuple[weakref.ref[Any], frozenset[int], str]] = {}
"""Models that were found out, by their ids: the functions of which they consisted, and why."""


def check_effects(model: Any, run: Callable[[], Any]) -> State:
    """Run a model once and look at what it leaves behind.

    Parameters
    ----------
    model
        A module or another callable.
    run
        An ordinary pass through it, with data.

    Returns
    -------
    State
        What the model reaches, after the pass.

    Raises
    ------
    EffectError
        If the pass changed what is not the model's own, or kept tensors elsewhere; if the model
        reaches a container of tensors, which may be a cache; or if it is partly compiled, since
        torch.compile writes down what it sees.
    """
    own = OwnState(model)  # before anybody else holds what it has
    before = State(model, own=own.ids, hold=True)
    known = _guilty.get(id(model))
    if known is not None and known[1] == before.functions:
        raise EffectError(known[2])
    if before.compiled:
        raise EffectError("a part of the model is compiled by torch.compile")
    cache = before.cache_elsewhere()
    if cache is not None:
        raise EffectError(f"{cache} holds tensors and may be a cache")
    kept = _kept_by(own, run)
    after = State(model, own=own.ids)
    changed = after.changed_elsewhere(before)
    if changed is not None:
        raise _found_out(model, after, f"a pass changes {changed}")
    buffers = {id(t) for t in model.buffers()} if isinstance(model, nn.Module) else set()
    if any(after.versions.get(key, n) != n for key, n in before.versions.items() if key not in buffers):
        raise _found_out(model, after, "a pass writes to a tensor that is no buffer")
    if not all(before.holds(tensor) for tensor in kept):
        raise _found_out(model, after, "a pass keeps tensors outside the model")
    return after


def check_again(model: Any, before: State) -> None:
    """Look whether passes without data left anything after all.

    Raises
    ------
    EffectError
        If what is not the model's own has changed since `before`; it stays as it is.
    """
    changed = State(model).changed_elsewhere(before)
    if changed is not None:
        raise _found_out(model, before, f"a pass changes {changed}")


def _found_out(model: Any, state: State, reason: str) -> EffectError:
    """Remember a model that is not to be run without data again, as long as its code stays."""

    def forget(_: Any, key: int = id(model)) -> None:
        _guilty.pop(key, None)

    with suppress(TypeError):  # one without weak references is found out again each time
        _guilty[id(model)] = weakref.ref(model, forget), state.functions, reason
    return EffectError(reason)


def _kept_by(own: OwnState, run: Callable[[], Any]) -> list[Tensor]:
    """Results of a pass that still exist when the model's own state is as it was."""
    watch = _Results()
    try:
        with watch:
            run()
    finally:
        own.restore()
    alive = watch.alive()
    if alive:
        alive.clear()
        gc.collect()  # those of a reference cycle go
        alive = watch.alive()
    return alive


class _Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the results of all operations, without keeping them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refs: list[weakref.ref[Tensor]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from loading torch.compile just to keep it out of here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._refs += [weakref.ref(x) for x in leaves(result) if isinstance(x, Tensor)]
        return result

    def alive(self) -> list[Tensor]:
        """Those that somebody keeps."""
        return [x for ref in self._refs if (x := ref()) is not None]
