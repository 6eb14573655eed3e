"""Kernels make operations fast; they never define what an operation means.

An operation in `minigrad/ops` is complete by itself. A kernel is a class with the same two functions, `forward(ctx, …)`
and `backward(ctx, …)`, that computes the same result in less time. A third function, `fits(…)`, says whether it can
handle the given arguments. The operation names its kernel in one line above its class:

    @accelerated(cpu=cpu.Linear, cuda=cuda.Linear)
    class Linear(Function): …

A kernel for a GPU runs once it has passed its check on that GPU; cuda/proof says how. MINIGRAD_KERNELS=cuda, or
`with kernels.using("cpu", "cuda"):`, runs all of them unchecked. `with kernels.reference():` and
MINIGRAD_KERNELS=reference leave all kernels out. `with kernels.replacing({…}):` lets classes of your own run in place
of operations.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_C = TypeVar("_C", bound=type)

_setting = os.environ.get("MINIGRAD_KERNELS", "")
if _setting not in ("", "reference", "cuda"):
    raise ValueError(f"MINIGRAD_KERNELS is {_setting!r}; expected reference, cuda, or nothing")
_contexts: list[using] = []  # the contexts that are active now, the innermost last
_KINDS = {"": frozenset({"cpu"}), "cuda": frozenset({"cpu", "cuda"}), "reference": frozenset()}
_outside: frozenset[str] = _KINDS[_setting]  # what runs outside of all contexts
_in_use: frozenset[str] = _outside
_operations: dict[Any, Any] = {}  # by kernel: the operation that it computes
_replacing: list[Mapping[Any, Any]] = []  # what each `replacing` in use replaces, the innermost last
_replacements: Mapping[Any, Any] = {}  # by all of them; never changed, only exchanged for another


class using(contextlib.ContextDecorator):
    """Inside this context, only the kernels for these kinds of device run, in all threads.

        with kernels.using("cpu", "cuda"): …

    Contexts nest, and the innermost decides. The kernels of GPUs run here whether or not they have been checked.
    """

    def __init__(self, *kinds: str) -> None:
        unknown = set(kinds) - {"cpu", "cuda"}
        if unknown:
            raise ValueError(f"kernels.using: expected kinds of device, 'cpu' and 'cuda', got {sorted(unknown)}")
        self.kinds = frozenset(kinds)

    def __enter__(self) -> None:
        _contexts.append(self)
        self.renew()

    def __exit__(self, *exception: object) -> None:
        innermost = max(i for i, context in enumerate(_contexts) if context is self)
        del _contexts[innermost]
        self.renew()

    @staticmethod
    def renew() -> None:
        global _in_use
        _in_use = _contexts[-1].kinds if _contexts else _outside


class reference(using):
    """Inside this context, every operation runs as it is written in `minigrad/ops`, in all threads."""

    def __init__(self) -> None:
        super().__init__()


class replacing(contextlib.ContextDecorator):
    """Inside this context, other classes run instead of operations, in all threads, wherever the operations are called.

        with kernels.replacing({LayerNorm: MyLayerNorm}):
            loss = model(ids, targets)[1]       # every layer norm is MyLayerNorm's, forward and backward

    A replacement is a class derived from `Function` whose forward takes the operation's arguments, under the same
    names; TypeError otherwise. The operation's own kernels are not used. Contexts nest, and the innermost wins.
    A call that was recorded inside keeps its replacement: its backward may run outside.
    """

    def __init__(self, replacements: Mapping[Any, Any]) -> None:
        for operation, replacement in replacements.items():
            if not hasattr(replacement, "apply"):  # every class derived from Function has it
                raise TypeError(f"{operation.__name__}: expected a class derived from Function, got {replacement!r}")
            expected, given = (list(inspect.signature(c.forward).parameters) for c in (operation, replacement))
            if expected != given:
                raise TypeError(
                    f"{replacement.__name__}.forward: expected the arguments of {operation.__name__}, "
                    f"({', '.join(expected)}), got ({', '.join(given)})"
                )
        self.replacements = dict(replacements)

    def __enter__(self) -> None:
        _replacing.append(self.replacements)
        self.renew()

    def __exit__(self, *exception: object) -> None:
        innermost = max(i for i, replacements in enumerate(_replacing) if replacements is self.replacements)
        del _replacing[innermost]
        self.renew()

    @staticmethod
    def renew() -> None:
        global _replacements
        _replacements = {operation: own for each in _replacing for operation, own in each.items()}


def in_use(device: str = "cpu", dtype: Any = None, *names: str) -> bool:
    """Do kernels run on this device ("cpu", "cuda:0", …)?

    With a dtype: do all of them run for arrays of this dtype? With names too: do these, "LayerNorm", "AdamW", …?
    The first question about a GPU checks the kernels there, unless they run unchecked or are left out.
    """
    kind = _kind(device)
    return kind in _in_use or (_checks(kind) and _proof().passed(device, dtype, *names))


def accelerated(**kernels: Any) -> Callable[[_C], _C]:
    """Give an operation kernels for each device kind named: one, or several of which the first that fits runs.

    Classes derived from the operation do not inherit them.
    """
    by_kind = {kind: given if isinstance(given, tuple) else (given,) for kind, given in kernels.items()}

    def name_kernels(operation: _C) -> _C:
        operation.kernels = by_kind  # type: ignore[attr-defined]
        _operations.update((kernel, operation) for kernel in by_kind.get("cuda", ()))
        return operation

    return name_kernels


def operation_of(kernel: Any) -> Any:
    """The operation that a kernel for GPUs computes."""
    return _operations[kernel]


def implementation(operation: Any, device: str, arguments: Any) -> Any:
    """The class whose forward and backward should run: what replaces it, its first kernel that fits, or itself.

    A kernel for a GPU has to have passed its check there too, if they are checked.
    """
    if operation in _replacements:
        return _replacements[operation]
    kind, kernels = _kind(device), operation.__dict__.get("kernels")
    unchecked = kind in _in_use
    if kernels is None or not (unchecked or _checks(kind)):
        return operation
    for kernel in kernels.get(kind, ()):
        if kernel.fits(*arguments) and (unchecked or _proof().allows(kernel, device, arguments)):
            return kernel
    return operation


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


def _checks(kind: str) -> bool:
    """Are kernels for this kind of device checked now, and run if they have passed?"""
    return kind == "cuda" and not _setting and not _contexts


@functools.cache
def _proof() -> Any:
    """Imported when a GPU is first used: to import minigrad, nothing of it is needed."""
    return importlib.import_module(".cuda.proof", __name__)
