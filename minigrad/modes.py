"""What a thread is inside of: `no_grad`, `enable_grad`, `detect_anomaly`, and the module whose forward is running."""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any


class Scope:
    """One call of a module, and the call that it is part of. Nodes of the tape remember theirs, for viz to group them.

    The reference to the module is weak, so a module that keeps a tensor it made creates no reference cycle.
    """

    __slots__ = ("module", "kind", "outer")

    def __init__(self, module: Any, outer: Scope | None) -> None:
        self.module, self.kind, self.outer = weakref.ref(module), type(module).__name__, outer


class Mode(threading.local):
    """The modes of the current thread."""

    no_grad = 0  # how many no_grad contexts the thread is inside
    outer: list[int]  # for each enable_grad context, how many no_grad contexts there are around it
    anomaly = 0  # how many detect_anomaly contexts the thread is inside
    scope: Scope | None = None  # the innermost module whose forward is running

    def __init__(self) -> None:
        self.outer = []


mode = Mode()


def is_recording() -> bool:
    """False inside `no_grad`."""
    return not mode.no_grad


def call_in_scope(module: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return `forward(*args, **kwargs)`. The operations inside are recorded as part of this call of the module."""
    outer = mode.scope
    mode.scope = Scope(module, outer)
    try:
        return forward(*args, **kwargs)
    finally:
        mode.scope = outer


class _Setting(contextlib.ContextDecorator):
    """A context manager that also decorates functions, but only those whose body runs when they are called."""

    def __call__(self, function: Any) -> Any:
        runs_later = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
        if any(is_of_kind(function) for is_of_kind in runs_later):
            raise TypeError(
                f"{type(self).__name__} cannot decorate {function.__name__}: its body does not run when it is called, "
                f"but later; put `with {type(self).__name__}():` inside it, around the computation"
            )
        return super().__call__(function)


class no_grad(_Setting):
    """Inside this context, or a function decorated with it, no operation is recorded."""

    def __enter__(self) -> None:
        mode.no_grad += 1

    def __exit__(self, *exception: object) -> None:
        mode.no_grad -= 1


class enable_grad(_Setting):
    """Inside this context, or a function decorated with it, operations are recorded, even if `no_grad` is around it."""

    def __enter__(self) -> None:
        mode.outer.append(mode.no_grad)
        mode.no_grad = 0

    def __exit__(self, *exception: object) -> None:
        mode.no_grad = mode.outer.pop()


class detect_anomaly(_Setting):
    """Inside this context, a backward that returns a NaN or an infinity raises an error that shows the forward's call.

    Run both the forward and the backward inside it. It is slow, because every gradient is inspected.
    """

    def __enter__(self) -> None:
        mode.anomaly += 1

    def __exit__(self, *exception: object) -> None:
        mode.anomaly -= 1
