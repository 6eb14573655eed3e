"""The tape: how operations are recorded on the way forward and walked on the way back.

Every operation is a class with a `forward` and a `backward`, derived from `Function`. Calling `apply` runs the forward
and, if any input wants a gradient, leaves a `Context` behind: the node of the tape. A node knows its parents, that is,
the nodes that made its inputs, and what its backward needs. It does not know its outputs, so the tape holds no
reference cycle and disappears as soon as the last tensor that needs it does.

    x (leaf) ──► Multiply ──► Sum ──► loss         forward: arrays flow this way
    x.grad   ◄── Multiply ◄── Sum ◄── 1            backward: gradients flow along the parents
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import traceback
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from .backend import Array, as_array, check_same_device, device_of, get_array_module, is_array
from .kernels import implementation


class AutogradError(RuntimeError):
    """The tape was used in a way that has no correct gradient."""


class AnomalyError(AutogradError):
    """A backward pass produced a NaN or an infinity (only raised inside `detect_anomaly`)."""


class Variable:
    """What the tape knows of a tensor. Users meet its subclass `Tensor`, which adds the operators.

    `origin` says where the array came from: (node, number of the node's output), or None for a leaf, that is, a tensor
    that no recorded operation made. Gradients of leaves with `requires_grad` end in their `grad`.
    """

    __slots__ = ("data", "grad", "requires_grad", "origin", "__weakref__")

    data: Array
    grad: Array | None
    requires_grad: bool
    origin: tuple[Context, int] | None

    result_class: ClassVar[type[Variable]]  # what operations return; tensor.py, which stands above, sets it to Tensor

    @classmethod
    def _from_operation(cls, array: Array, origin: tuple[Context, int] | None) -> Any:
        variable = object.__new__(cls.result_class)
        variable.data, variable.grad, variable.requires_grad, variable.origin = array, None, origin is not None, origin
        return variable


def asks_for_gradient(value: Any) -> bool:
    """Is it a tensor that requires gradients, or a list with one in it?"""
    if isinstance(value, (list, tuple)):
        return any(map(asks_for_gradient, value))
    return isinstance(value, Variable) and value.requires_grad


class Scope:
    """A call of a module, and the call that it happens in: nodes remember theirs, so that viz can group them.

    The module is referred to weakly: one that keeps a tensor it made, to look at it later, makes no reference cycle.
    """

    __slots__ = ("module", "kind", "outer")

    def __init__(self, module: Any, outer: Scope | None) -> None:
        self.module, self.kind, self.outer = weakref.ref(module), type(module).__name__, outer


class _Mode(threading.local):
    no_grad = 0  # how many no_grad contexts this thread is inside
    outer: list[int]  # the same outside of each enable_grad context that it is inside
    anomaly = 0  # how many detect_anomaly contexts
    scope: Scope | None = None  # the innermost module whose forward is running

    def __init__(self) -> None:
        self.outer = []


_mode = _Mode()


class _Setting(contextlib.ContextDecorator):
    """A context that can decorate a function, if calling that runs its body."""

    def __call__(self, function: Any) -> Any:
        later = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
        if any(is_of_kind(function) for is_of_kind in later):
            raise TypeError(
                f"{type(self).__name__} cannot decorate {function.__name__}: its body does not run when it is called, "
                f"but later; put `with {type(self).__name__}():` into it, around what computes"
            )
        return super().__call__(function)


class no_grad(_Setting):
    """Inside this context (or a function decorated with it) no operation is recorded."""

    def __enter__(self) -> None:
        _mode.no_grad += 1

    def __exit__(self, *exception: object) -> None:
        _mode.no_grad -= 1


class enable_grad(_Setting):
    """Inside this context (or a function decorated with it) operations are recorded, even if it is inside `no_grad`."""

    def __enter__(self) -> None:
        _mode.outer.append(_mode.no_grad)
        _mode.no_grad = 0

    def __exit__(self, *exception: object) -> None:
        _mode.no_grad = _mode.outer.pop()


class detect_anomaly(_Setting):
    """Inside this context a NaN or infinity born in a backward raises and shows where the forward was called.

    Run both the forward and the backward inside it. It is slow: every gradient is inspected.
    """

    def __enter__(self) -> None:
        _mode.anomaly += 1

    def __exit__(self, *exception: object) -> None:
        _mode.anomaly -= 1


def call_in_scope(module: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`forward(*args, **kwargs)`, with all operations inside marked as the module's."""
    outer = _mode.scope
    _mode.scope = Scope(module, outer)
    try:
        return forward(*args, **kwargs)
    finally:
        _mode.scope = outer


def is_recording() -> bool:
    """False inside `no_grad`."""
    return not _mode.no_grad


# Writes in place. A clock ticks at every write and each written array remembers the time; a node remembers the time at
# which it saved its arrays. An array written after it was saved would give a wrong gradient, so backward refuses it.
# Keys are ids of the arrays that own the memory: an id that is used again only ever belongs to a younger array, which
# is saved later than the stale entry says it was written.
_clock = 0
_written_at: dict[int, int] = {}


def owner_of(array: Array) -> Array:
    """The array whose memory `array` is a view of, which may be itself."""
    while (base := array.base) is not None and is_array(base):
        array = base
    return array


def mark_written(array: Array) -> None:
    """Tell the tape that `array` was changed in place. Every in-place function of minigrad calls this."""
    global _clock
    _clock += 1
    _written_at[id(owner_of(array))] = _clock


class Context:
    """A node of the tape: one call of one operation, and what its backward needs.

    In `forward`, `ctx.save(…)` keeps arrays and `ctx.name = value` keeps anything else; in `backward`, `ctx.saved` and
    `ctx.name` give them back, and `ctx.needs_input_grad[i]` says whether the gradient of argument i will be used.
    Everything kept is dropped once the backward has run. The names of `__slots__` are the node's own: a value that
    `forward` keeps under one of them is lost.
    """

    __slots__ = (
        "function",  # the operation's class
        "implementation",  # whose forward and backward run: the operation's own or those of a kernel
        "needs_input_grad",  # for each argument of forward: will its gradient be used?
        "parents",  # for each argument: where it came from (node, output number), the leaf itself, or None
        "tensor_arguments",  # which of the arguments are tensors
        "outputs",  # shape and dtype of each output
        "xp",  # numpy or cupy
        "scope",  # the call of a module that the operation is part of, or None
        "started",  # when the forward started, which orders the nodes, and
        "forward_seconds",  # how long it took
        "traced",  # what viz.trace measured in the backward; not set elsewhere
        "stack",  # where the forward was called (in anomaly mode)
        "freed",  # has a backward pass been here and dropped what was saved?
        "retained",  # in backward: may there be another one, so that what was saved has to stay?
        "_saved",
        "_saved_at",
        "__dict__",
    )
    function: type[Function]
    implementation: Any
    needs_input_grad: tuple[bool, ...]
    parents: list[tuple[Context, int] | Variable | None]
    tensor_arguments: list[int]
    outputs: list[tuple[tuple[int, ...], Any]]
    xp: Any
    scope: Scope | None
    started: float
    forward_seconds: float
    traced: Any
    stack: list[str] | None

    def __init__(self, function: type[Function], needs_input_grad: tuple[bool, ...]) -> None:
        self.function = function
        self.needs_input_grad = needs_input_grad
        self.stack = None
        self.freed = self.retained = False
        self._saved: tuple[Array, ...] = ()
        self._saved_at = 0

    def save(self, *arrays: Array) -> None:
        """Keep arrays for the backward pass; a later write to one of them in place is detected."""
        self._saved, self._saved_at = arrays, _clock

    @property
    def saved(self) -> tuple[Array, ...]:
        """The arrays given to `save`, checked to be unchanged since."""
        for array in self._saved if _clock > self._saved_at else ():
            if is_array(array) and _written_at.get(id(owner_of(array)), 0) > self._saved_at:
                raise AutogradError(
                    f"{self.function.__name__}: an array of shape {array.shape} that it saved for backward has been "
                    f"written to in place since; call backward before changing it (an optimizer step, for example)"
                )
        return self._saved

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "the tape cannot be copied or pickled, and so no tensor that operations made with gradients in view, nor a "
            "module that keeps one; detach() it first"
        )

    def free(self) -> None:
        self._saved = ()
        self.__dict__.clear()
        self.freed = True


def describe(value: Any) -> str:
    """A value as error messages show it: `(2, 3) float32` for arrays, Python's notation for others."""
    if isinstance(value, Variable):
        value = value.data
    if is_array(value):
        return f"{value.shape} {value.dtype}"
    return repr(value) if len(repr(value)) <= 60 else type(value).__name__


class Function:
    """An operation: `forward` computes on raw arrays, `backward` is its hand-written derivative.

        class Scale(Function):
            @staticmethod
            def forward(ctx, x, factor):        # raw arrays in, a raw array (or a tuple of them) out
                ctx.factor = factor
                return x * factor

            @staticmethod
            def backward(ctx, grad):            # dL/dy in (one for each output), dL/dx out
                return grad * ctx.factor

        y = Scale.apply(x, 3.0)

    `backward` returns one gradient, or None, for each tensor among the arguments, in their order; it may also return
    one for each argument, with None for those that are no tensors. A gradient has the shape and dtype of its tensor.
    Arrays that `backward` receives are borrowed: it must not write to them.
    A class whose backward returns new arrays, which nobody else holds, may say so with `returns_new_arrays = True`:
    they then become the `grad` of a leaf without being copied.
    """

    returns_new_arrays: ClassVar[bool] = False

    @staticmethod
    def forward(ctx: Context, *args: Any) -> Any:
        raise TypeError("a Function must define forward(ctx, …)")

    @staticmethod
    def backward(ctx: Context, *grads: Any) -> Any:
        raise TypeError("a Function must define backward(ctx, grad)")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run `forward` on the arguments, with tensors replaced by their arrays, and record the call on the tape."""
        arrays, tensor_arguments, needs_grad = list(args), [], [False] * len(args)
        recording = not _mode.no_grad
        for i, argument in enumerate(args):
            if isinstance(argument, Variable):
                arrays[i] = argument.data
                tensor_arguments.append(i)
                needs_grad[i] = recording and argument.requires_grad
        wanted = True in needs_grad
        on_gpu = get_array_module(*arrays) is not np
        device = check_same_device(cls.__name__, [a for a in arrays if is_array(a)]) if on_gpu else "cpu"

        ctx = Context(cls, tuple(needs_grad))
        run = ctx.implementation = implementation(cls, device, arrays)
        started = perf_counter()
        try:
            result = run.forward(ctx, *arrays)
        except (IndexError, TypeError, ValueError) as error:
            kind = next(base for base in (TypeError, ValueError, IndexError) if isinstance(error, base))
            raise kind(f"{cls.__name__}: {error}; got {', '.join(map(describe, args))}") from error
        if not wanted and type(result) is np.ndarray:
            return Variable._from_operation(result, None)
        results = result if isinstance(result, tuple) else (result,)
        outputs = [y if type(y) is np.ndarray else as_array(y) for y in results]
        differentiable = [y.dtype.kind in "fV" for y in outputs]  # "V" is bfloat16
        recorded = wanted and True in differentiable
        if recorded:
            ctx.parents = parents = []
            for argument, needs in zip(args, needs_grad, strict=True):
                parents.append((argument.origin or argument) if needs else None)
            ctx.tensor_arguments = tensor_arguments
            ctx.outputs = [(y.shape, y.dtype) for y in outputs]
            ctx.xp = get_array_module(outputs[0]) if on_gpu else np
            ctx.scope, ctx.started, ctx.forward_seconds = _mode.scope, started, perf_counter() - started
            if _mode.anomaly:
                ctx.stack = traceback.format_stack()[:-1]
        if result is not results:
            return Variable._from_operation(outputs[0], (ctx, 0) if recorded else None)
        origins = [(ctx, i) if recorded and has_gradient else None for i, has_gradient in enumerate(differentiable)]
        return tuple(Variable._from_operation(y, origin) for y, origin in zip(outputs, origins, strict=True))


def input_gradients(node: Context, grads: list[Array]) -> list[Array | None]:
    """Run a node's backward. Its gradients, one for each argument, with shape and dtype checked."""
    name = node.function.__name__
    if node.freed:
        raise AutogradError(
            f"{name}: backward ran a second time through a graph whose saved arrays are freed; give retain_graph=True "
            f"to the first call if you need a second"
        )
    if node.xp is not np:
        check_same_device(name, grads)  # which makes their GPU the current one
    result = node.implementation.backward(node, *grads)
    parents = node.parents
    result = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(result) != len(parents) and len(result) == len(node.tensor_arguments):  # one for each tensor
        given, result = result, [None] * len(parents)
        for i, gradient in zip(node.tensor_arguments, given, strict=True):
            result[i] = gradient
    if len(result) != len(parents):
        raise AutogradError(
            f"{name}.backward returned {len(result)} gradients; wanted one for each of its "
            f"{len(node.tensor_arguments)} tensors, or one for each of its {len(node.parents)} arguments"
        )
    for i, parent in enumerate(parents):
        gradient = result[i]
        if parent is None or gradient is None:
            continue
        if type(gradient) is not np.ndarray:  # NumPy turns 0-d results into scalars
            gradient = result[i] = as_array(gradient)
        if isinstance(parent, tuple):
            shape, dtype = parent[0].outputs[parent[1]]
        else:
            shape, dtype = parent.data.shape, parent.data.dtype
        if gradient.shape != shape or gradient.dtype != dtype:
            raise AutogradError(
                f"{name}.backward returned a gradient {describe(gradient)} for argument {i}, which is {shape} {dtype}"
            )
        if _mode.anomaly:
            _check_finite(node, i, gradient)
    return result


def _check_finite(node: Context, i: int, gradient: Array) -> None:
    if not bool(get_array_module(gradient).isfinite(gradient).all()):
        where = "".join(node.stack or ["  (unknown: the forward ran outside detect_anomaly)\n"])
        raise AnomalyError(
            f"{node.function.__name__}.backward returned a NaN or an infinity for argument {i}. "
            f"The forward was called here:\n{where}"
        )


def count_uses(root: Context) -> dict[Context, int]:
    """For every node reachable from `root`: how many edges lead to it, that is, how many gradients it will be sent."""
    uses = {root: 0}
    stack = [root]
    while stack:
        for parent in stack.pop().parents:
            if isinstance(parent, tuple):
                maker = parent[0]
                if maker in uses:
                    uses[maker] += 1
                else:
                    uses[maker] = 1
                    stack.append(maker)
    return uses


def backward(
    root: Variable,
    grad: Any = None,
    retain_graph: bool = False,
    run: Callable[[Context, list[Array]], list[Array | None]] = input_gradients,
) -> None:
    """Walk the tape from `root`, whose gradient is `grad` (1 for a scalar), and add dL/dx to the `grad` of each leaf x.

    A node is ready when every node that used its outputs has run, so it runs once, with its whole gradient. Where
    several gradients meet, the first to arrive is borrowed, the second makes a new array, and later ones are added to
    that array in place: no array that somebody else holds is ever written to.
    `run` runs one node's backward; viz puts a stopwatch around it.
    """
    grad = _starting_gradient(root, grad)
    if root.origin is None:
        _add_to_leaf(root, grad)
        return
    uses = count_uses(root.origin[0])
    arrived: dict[tuple[Context, int], Array] = {root.origin: grad}
    owned: set[tuple[Context, int]] = set()
    ready = [root.origin[0]]
    while ready:
        node = ready.pop()
        grads = [arrived.pop((node, i), None) for i in range(len(node.outputs))]
        if all(g is None for g in grads):  # no gradient reached this node; its parents may still wait for it
            gradients: list[Array | None] = [None] * len(node.parents)
        else:
            node.retained = retain_graph
            gradients = run(node, [_zeros(node, i) if g is None else g for i, g in enumerate(grads)])
            if not retain_graph:
                node.free()
        for parent, gradient in zip(node.parents, gradients, strict=True):
            if isinstance(parent, Variable):
                if gradient is not None:
                    _add_to_leaf(parent, gradient, node.implementation.returns_new_arrays)
            elif parent is not None:
                if gradient is not None:
                    if parent not in arrived:
                        arrived[parent] = gradient
                    elif parent not in owned:
                        arrived[parent] = as_array(arrived[parent] + gradient)
                        owned.add(parent)
                    else:
                        arrived[parent] += gradient
                uses[parent[0]] -= 1
                if not uses[parent[0]]:
                    ready.append(parent[0])


def _starting_gradient(root: Variable, grad: Any) -> Array:
    """dL/d(root) as an array like the root's."""
    shape, dtype = root.data.shape, root.data.dtype
    if grad is None:
        if root.data.size != 1:
            raise AutogradError(f"backward: only a scalar can do without grad; this is {shape}")
        return get_array_module(root.data).ones_like(root.data)
    grad = as_array(grad.data if isinstance(grad, Variable) else grad, dtype, device_of(root.data))
    if grad.shape != shape:
        raise ValueError(f"backward: grad has shape {grad.shape}; wanted {shape}, the shape of the tensor")
    return grad


def _zeros(node: Context, i: int) -> Array:
    """The gradient of an output that the loss does not depend on."""
    shape, dtype = node.outputs[i]
    return node.xp.zeros(shape, dtype)


_adding = threading.Lock()  # backward passes of several threads may meet in a leaf


def _add_to_leaf(leaf: Variable, gradient: Array, new: bool = False) -> None:
    """A leaf's gradient is always an array of its own, never a view of one that the tape or the user holds."""
    with _adding:
        if leaf.grad is None:
            leaf.grad = gradient if new and gradient.base is None else gradient.copy()
        else:
            leaf.grad += gradient
            mark_written(leaf.grad)
