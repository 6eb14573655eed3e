"""How an operation gets fast, never what it means.

An operation in `minigrad/ops` is right by itself. A kernel is a class with the same two functions, `forward(ctx, …)`
and `backward(ctx, …)`, that gives the same result in less time, and a third, `fits(…)`, that says for which arguments
it is made. The operation names its kernel in one line above its class:

    @accelerated(cpu=cpu.Linear)
    class Linear(Function): …

`with kernels.reference():` and MINIGRAD_KERNELS=reference leave all kernels out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

_C = TypeVar("_C", bound=type)

_switched_off = os.environ.get("MINIGRAD_KERNELS", "") == "reference"


class reference(contextlib.ContextDecorator):
    """Inside this context every operation runs as it is written in `minigrad/ops`, in all threads."""

    def __enter__(self) -> None:
        global _switched_off
        self.before, _switched_off = _switched_off, True

    def __exit__(self, *exception: object) -> None:
        global _switched_off
        _switched_off = self.before


def in_use() -> bool:
    """False where kernels are left out."""
    return not _switched_off


def accelerated(**kernels: Any) -> Callable[[_C], _C]:
    """Give an operation a kernel for each device kind named. Classes derived from the operation do not inherit it."""

    def name_kernels(operation: _C) -> _C:
        operation.kernels = kernels  # type: ignore[attr-defined]
        return operation

    return name_kernels


def implementation(operation: Any, device: str, arguments: Any) -> Any:
    """The class whose forward and backward should run: the operation's kernel if it has one that fits, or itself."""
    kernels = operation.__dict__.get("kernels")
    if kernels is None or _switched_off:
        return operation
    kernel = kernels.get(device)
    return kernel if kernel is not None and kernel.fits(*arguments) else operation
