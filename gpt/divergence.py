"""A training that has diverged: the error, and the search for the first layer and operation that were not finite."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import minigrad as mg
from minigrad import nn
from minigrad.autograd import backward, input_gradients
from minigrad.modes import Scope, mode

from .errors import GPTError

NOT_FOUND = "no gradient by itself is infinite"


class DivergedError(GPTError):
    """The loss, the norm of the gradients or a weight is no longer a finite number."""


def describe_divergence(loss: float, norm: float = 0.0) -> str:
    """What is wrong with a loss or with the norm of the gradients; an empty text if both are finite."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return "" if math.isfinite(norm) else f"the norm of the gradients is {norm}"


def nonfinite_weight(model: nn.Module) -> str:
    """The name of the first parameter with a NaN or an infinity; an empty text if there is none."""
    for name, p in model.named_parameters():
        if not _is_finite(p.data) or not _is_finite(-p.data):
            return name
    return ""


def first_nonfinite(model: nn.Module, loss: Callable[..., mg.Tensor], batches: Iterable[Iterable[Any]]) -> str:
    """Where the first NaN or infinity arises if the loss of these batches and its gradients are computed again.

    That is a parameter, or an operation's forward or backward and the layer that called it. -inf does not count in a
    forward: masks are made of it. The gradients of the model are dropped.
    """
    name = nonfinite_weight(model)
    if name:
        return f"the weights {name} have a NaN or an infinity"
    layers = {module: name for name, module in model.named_modules()}

    def where(which: str, operation: type, scope: Scope | None) -> str:
        module = scope.module() if scope else None
        layer = (module and layers.get(module)) or "the model"
        return f"the first NaN or infinity is in the {which} of {operation.__name__} in {layer}"

    def check_forward(operation: type, result: Any) -> None:
        if not all(_is_finite(y.data) for y in (result if isinstance(result, tuple) else (result,))):
            raise _FoundError(where("forward", operation, mode.scope))

    def check_backward(node: Any, grads: list[Any]) -> list[Any]:
        results = input_gradients(node, grads)
        if not all(g is None or (_is_finite(g) and _is_finite(-g)) for g in results):
            raise _FoundError(where("backward", node.function, node.scope))
        return results

    try:
        with _checked_forwards(check_forward), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, about what is searched for
            for batch in batches:
                backward(loss(*batch), run=check_backward)
        sizes = [(float(abs(p.grad).max()), name) for name, p in model.named_parameters() if p.grad is not None]
        return f"{NOT_FOUND}; the largest is {{:.3g}}, of {{}}".format(*max(sizes))
    except _FoundError as found:
        return str(found)
    except MemoryError:
        return "there was not enough memory to find out where"
    finally:
        model.zero_grad()


class _FoundError(Exception):
    """Ends the search."""


@contextlib.contextmanager
def _checked_forwards(check: Callable[[type, Any], None]) -> Iterator[None]:
    """Inside this context, every operation's result is given to `check`."""
    original = vars(mg.Function)["apply"]

    def apply(cls: type, *args: Any) -> Any:
        result = original.__func__(cls, *args)
        check(cls, result)
        return result

    mg.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        mg.Function.apply = original  # type: ignore[method-assign]


def _is_finite(x: Any) -> bool:
    """Whether no element is a NaN or +inf."""
    if x.dtype.kind == "V":  # bfloat16
        x = mg.Tensor(x, dtype="float32").data
    return bool((x < math.inf).all())
