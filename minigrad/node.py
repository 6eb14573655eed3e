"""A node of the tape, and what the tape knows of the tensors that lead to it and from it. autograd.py has the whole."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from time import perf_counter
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import in_place
from .backend import Array, as_array, is_array
from .modes import Scope, mode

if TYPE_CHECKING:
    from .autograd import Function
    from .hooks import HookHandle

ENGINE = os.path.dirname(__file__) + os.sep


class AutogradError(RuntimeError):
    """The tape was used in a way that has no correct gradient."""


class AnomalyError(AutogradError):
    """A backward pass produced a NaN or an infinity (only raised inside `detect_anomaly`)."""


class Variable:
    """What the tape knows of a tensor. Users see its subclass `Tensor`, which adds the operators.

    `origin` is where the array came from: (node, number of the node's output), or None for a leaf, a tensor that no
    recorded operation made. The gradient of a leaf with `requires_grad` is accumulated in its `grad`.
    """

    __slots__ = ("data", "grad", "requires_grad", "origin", "hooks", "__weakref__")

    data: Array
    grad: Array | None
    requires_grad: bool
    origin: tuple[Context, int] | None
    hooks: dict[HookHandle, Callable[[Any], object]]  # of a leaf; hooks.py sets it at the first, and it is unset before

    result_class: ClassVar[type[Variable]]  # what operations return; tensor.py, which imports this file, sets it

    def __getstate__(self) -> Any:
        """Copies have no hooks."""
        state: Any = object.__getstate__(self)  # (the attributes of a subclass or None, the slots)
        state[1].pop("hooks", None)
        return state


def new_variable(result: Any, origin: tuple[Context, int] | None = None) -> Any:
    """A tensor around a result of an operation. Without an origin, it is not connected to the tape."""
    variable = object.__new__(Variable.result_class)
    variable.data = result if type(result) is np.ndarray else as_array(result)
    variable.grad, variable.requires_grad, variable.origin = None, origin is not None, origin
    return variable


class Context:
    """A node of the tape: one call of one operation, and what its backward needs.

    In `forward`, `ctx.save(…)` keeps arrays and `ctx.name = value` keeps anything else. In `backward`, `ctx.saved` and
    `ctx.name` return them, and `ctx.needs_input_grad[i]` says whether the gradient of argument i will be used.
    Everything kept is dropped after the backward has run. The names in `__slots__` are reserved: a value that `forward`
    keeps under one of them is lost.
    """

    __slots__ = (
        "function implementation needs_input_grad parents tensor_arguments outputs xp scope called_at started "
        "forward_seconds traced stack freed retained _saved _saved_at __dict__".split()
    )
    function: type[Function]  # the operation's class
    implementation: Any  # the class whose forward and backward run: the operation or one of its kernels
    needs_input_grad: tuple[bool, ...]  # for each argument of forward: will its gradient be used?
    parents: list[tuple[Context, int] | Variable | None]  # for each argument: (node, output number), the leaf, or None
    tensor_arguments: list[int]  # the positions of the arguments that are tensors
    outputs: list[tuple[tuple[int, ...], Any]]  # the shape and dtype of each output
    xp: Any  # numpy or cupy
    scope: Scope | None  # the call of a module that the operation is part of
    called_at: tuple[CodeType, int] | None  # where the user's program called it: code and instruction
    started: float  # when the forward started; viz orders the nodes by it
    forward_seconds: float  # how long the forward took
    traced: Any  # what viz.trace measured in the backward; not set elsewhere
    stack: list[str] | None  # where the forward was called (with detect_anomaly)
    freed: bool  # has a backward pass dropped what was saved?
    retained: bool  # in backward: must what was saved stay for another backward pass?

    def __init__(self, function: type[Function], needs_input_grad: tuple[bool, ...]) -> None:
        self.function = function
        self.needs_input_grad = needs_input_grad
        self.stack = None
        self.freed = self.retained = False
        self._saved: tuple[Array, ...] = ()
        self._saved_at = 0

    def save(self, *arrays: Array) -> None:
        """Keep arrays for the backward pass. A later write to one of them in place is an error in backward."""
        self._saved, self._saved_at = arrays, in_place.clock

    @property
    def saved(self) -> tuple[Array, ...]:
        """The arrays given to `save`. Raises `AutogradError` if one of them has been written to since."""
        if in_place.clock > self._saved_at:
            written = in_place.first_written_since(self._saved_at, self._saved)
            if written is not None:
                raise AutogradError(
                    f"{self.function.__name__}: an array of shape {written.shape} that it saved for backward has been "
                    f"written to in place since; call backward before changing it (an optimizer step, for example)"
                )
        return self._saved

    def record(self, args: tuple[Any, ...], tensor_arguments: list[int], started: float) -> None:
        """Make this call a node of the tape: note where its arguments came from."""
        self.parents = parents = []
        for argument, needs in zip(args, self.needs_input_grad, strict=True):
            parents.append((argument.origin or argument) if needs else None)
        self.tensor_arguments, self.outputs = tensor_arguments, []
        self.scope, self.started, self.forward_seconds = mode.scope, started, perf_counter() - started
        frame = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename.startswith(ENGINE):
            frame = frame.f_back  # type: ignore[assignment]
        self.called_at = None if frame is None else (frame.f_code, frame.f_lasti)
        if mode.anomaly:
            self.stack = traceback.format_stack()[:-2]

    def output(self, result: Any) -> Any:
        """The tensor of the next output. One that is not floating-point has no gradient."""
        y = result if type(result) is np.ndarray else as_array(result)
        self.outputs.append((y.shape, y.dtype))
        return new_variable(y, (self, len(self.outputs) - 1) if y.dtype.kind in "fV" else None)  # "V" is bfloat16

    def free(self) -> None:
        """Drop what was kept for the backward pass."""
        self._saved = ()
        self.__dict__.clear()
        self.freed = True

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "the tape cannot be copied or pickled, nor can a tensor that a recorded operation made, nor a module that "
            "keeps one; detach() the tensor first"
        )


def describe(value: Any) -> str:
    """A value as error messages show it: `(2, 3) float32` for an array, Python's notation for anything else."""
    if isinstance(value, Variable):
        value = value.data
    if is_array(value):
        return f"{value.shape} {value.dtype}"
    return repr(value) if len(repr(value)) <= 60 else type(value).__name__
