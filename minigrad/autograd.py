"""The tape: operations are recorded in the forward pass and walked in the backward pass.

Every operation is a class with a `forward` and a `backward`, derived from `Function`. `Function.apply` runs the forward
and, if any input needs a gradient, records a `Context`: a node of the tape. A node knows its parents, which are the
nodes that made its inputs, and what its backward needs. It does not know its outputs, so the tape holds no reference
cycle and disappears as soon as the last tensor that needs it does.

    x (leaf) ──► Multiply ──► Sum ──► loss         forward: arrays flow this way
    x.grad   ◄── Multiply ◄── Sum ◄── 1            backward: gradients flow along the parents

Beside this file: node.py is a node and what it keeps, modes.py decides whether a call is recorded, in_place.py notices
saved arrays that were written to, accumulate.py adds up gradients that meet, and hooks.py calls functions when the
gradient of a leaf is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .accumulate import Accumulator
from .backend import Array, as_array, check_same_device, device_of, get_array_module, is_array
from .hooks import complete, waiting_leaves
from .kernels import implementation
from .modes import mode
from .node import AnomalyError, AutogradError, Context, Variable, describe, new_variable


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

    `backward` returns one gradient, or None, for each tensor among the arguments, in their order. It may also return
    one for each argument, with None for those that are not tensors. A gradient has the shape and dtype of its tensor.
    If no tensor has a gradient, return (None,): None alone is an error, since that is what a missing `return` gives.
    The arrays that `backward` receives are borrowed: it must not write to them.
    If `backward` always returns new arrays, which nobody else holds, the class may set `returns_new_arrays = True`.
    They then become the `grad` of a leaf without being copied.
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
        recording = not mode.no_grad
        for i, argument in enumerate(args):
            if isinstance(argument, Variable):
                arrays[i] = argument.data
                tensor_arguments.append(i)
                needs_grad[i] = recording and argument.requires_grad
        ctx = Context(cls, tuple(needs_grad))
        ctx.xp, device = get_array_module(*arrays), "cpu"
        if ctx.xp is not np:
            device = check_same_device(cls.__name__, [array for array in arrays if is_array(array)])
        run = ctx.implementation = implementation(cls, device, arrays)
        started = perf_counter()
        try:
            result = run.forward(ctx, *arrays)
        except (IndexError, TypeError, ValueError) as error:
            raise _with_arguments(cls, error, args) from error
        as_variable: Callable[..., Any] = new_variable
        if True in needs_grad:
            ctx.record(args, tensor_arguments, started)
            as_variable = ctx.output
        try:
            return tuple(map(as_variable, result)) if isinstance(result, tuple) else as_variable(result)
        except TypeError as error:
            expected = "expected an array, or a tuple of arrays; is a return missing?"
            raise TypeError(f"{cls.__name__}.forward returned {describe(result)}; {expected}") from error


def _with_arguments(function: type[Function], error: Exception, args: tuple[Any, ...]) -> Exception:
    """An error of a forward again, with the name of the operation and what it was given."""
    kind = next(base for base in (TypeError, ValueError, IndexError) if isinstance(error, base))
    return kind(f"{function.__name__}: {error}; got {', '.join(map(describe, args))}")


def input_gradients(node: Context, grads: list[Array]) -> list[Array | None]:
    """Run a node's backward. Returns one gradient, or None, for each argument, with shape and dtype checked."""
    name = node.function.__name__
    if node.freed:
        raise AutogradError(
            f"{name}: backward ran a second time through a graph whose saved arrays are freed; give retain_graph=True "
            f"to the first call if you need a second"
        )
    if node.xp is not np:
        check_same_device(name, grads)  # which makes their GPU the current one
    result = _one_for_each_argument(node, node.implementation.backward(node, *grads))
    for i, parent in enumerate(node.parents):
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
        if mode.anomaly:
            _check_finite(node, i, gradient)
    return result


def _one_for_each_argument(node: Context, result: Any) -> list[Any]:
    """What a backward returned, as one gradient or None for each argument of the forward."""
    if result is None:
        raise AutogradError(
            f"{node.function.__name__}.backward returned None; expected a gradient for each of its "
            f"{len(node.tensor_arguments)} tensors, in a tuple with None for those that have none; is a return missing?"
        )
    result = list(result) if isinstance(result, (tuple, list)) else [result]
    parents, tensor_arguments = node.parents, node.tensor_arguments
    if len(result) == len(parents):
        return result
    if len(result) != len(tensor_arguments):
        raise AutogradError(
            f"{node.function.__name__}.backward returned {len(result)} gradients; expected one for each of its "
            f"{len(tensor_arguments)} tensors, or one for each of its {len(parents)} arguments"
        )
    gradients: list[Any] = [None] * len(parents)
    for i, gradient in zip(tensor_arguments, result, strict=True):
        gradients[i] = gradient
    return gradients


def _check_finite(node: Context, i: int, gradient: Array) -> None:
    if not bool(get_array_module(gradient).isfinite(gradient).all()):
        where = "".join(node.stack or ["  (unknown: the forward ran outside detect_anomaly)\n"])
        raise AnomalyError(
            f"{node.function.__name__}.backward returned a NaN or an infinity for argument {i}. "
            f"The forward was called here:\n{where}"
        )


RunNode: TypeAlias = Callable[[Context, list[Array]], list[Array | None]]


def backward(root: Variable, grad: Any = None, retain_graph: bool = False, run: RunNode = input_gradients) -> None:
    """Walk the tape from `root`, whose gradient is `grad` (1 for a scalar), and add dL/dx to the `grad` of each leaf x.

    A node is ready when every node that used its outputs has run, so it runs once, with its whole gradient.
    `run` runs one node's backward; viz gives one that also measures.
    """
    grad = _starting_gradient(root, grad)
    if root.origin is None:
        Accumulator.add_to_leaf(root, grad)
        complete(root)
        return
    gradients = Accumulator()
    gradients.add_to_output(root.origin, grad)
    uses = count_uses(root.origin[0])
    ready = [root.origin[0]]
    with waiting_leaves(uses) as waiting:
        while ready:
            node = ready.pop()
            arrived = _output_gradients(node, gradients)
            if arrived is None:  # no gradient reached this node, but its parents may wait for it
                results: list[Array | None] = [None] * len(node.parents)
            else:
                node.retained = retain_graph
                results = run(node, arrived)
                if not retain_graph:
                    node.free()
            for parent, gradient in zip(node.parents, results, strict=True):
                if isinstance(parent, tuple):
                    if gradient is not None:
                        gradients.add_to_output(parent, gradient)
                    uses[parent[0]] -= 1
                    if not uses[parent[0]]:
                        ready.append(parent[0])
                elif parent is not None:
                    if gradient is not None:
                        is_new = node.implementation.returns_new_arrays and _is_once(gradient, results, arrived)
                        gradients.add_to_leaf(parent, gradient, is_new)
                    if waiting is not None:
                        waiting.arrived(parent, gradient is not None)


def _is_once(gradient: Array, results: list[Array | None], arrived: list[Array] | None) -> bool:
    """Did a backward return this array for one argument alone, and not receive it? Else two tensors would share it."""
    return sum(other is gradient for other in (*results, *(arrived or ()))) == 1


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


def _starting_gradient(root: Variable, grad: Any) -> Array:
    """dL/d(root), as an array of the root's shape, dtype and device."""
    shape, dtype = root.data.shape, root.data.dtype
    if grad is None:
        if root.data.size != 1:
            raise AutogradError(f"backward: grad can be left out only for a scalar; this tensor has shape {shape}")
        return get_array_module(root.data).ones_like(root.data)
    grad = as_array(grad.data if isinstance(grad, Variable) else grad, dtype, device_of(root.data))
    if grad.shape != shape:
        raise ValueError(f"backward: expected a grad of shape {shape}, the shape of the tensor, got {grad.shape}")
    return grad


def _output_gradients(node: Context, gradients: Accumulator) -> list[Array] | None:
    """The gradients that arrived at a node's outputs, zeros where the loss does not depend on one; None if none did."""
    arrived, missing = [], []
    for i in range(len(node.outputs)):
        gradient = gradients.arrived.pop((node, i), None)
        arrived.append(gradient)
        if gradient is None:
            missing.append(i)
    if len(missing) == len(arrived):
        return None
    for i in missing:
        arrived[i] = node.xp.zeros(*node.outputs[i])
    return arrived
