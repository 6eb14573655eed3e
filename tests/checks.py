"""What many tests do: run a function forward and backward, and compare two functions in values and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import minigrad as mg


def forward_and_backward(
    fn: Callable[..., Any], inputs: Sequence[np.ndarray], seed: int = 1
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """The values of `fn`, and the gradients of its floating inputs for a random upstream gradient."""
    tensors = [mg.Tensor(x, requires_grad=True) if np.asarray(x).dtype.kind == "f" else x for x in inputs]
    result = fn(*tensors)
    outputs = list(result) if isinstance(result, tuple) else [result]
    rng = np.random.default_rng(seed)
    for i, y in enumerate(outputs):
        upstream = rng.standard_normal(y.shape).astype(y.dtype)
        y.backward(upstream, retain_graph=i < len(outputs) - 1)
    return [y.data for y in outputs], [x.grad for x in tensors if isinstance(x, mg.Tensor)]


def assert_equal_functions(
    f: Callable[..., Any], g: Callable[..., Any], *inputs: np.ndarray, rtol: float = 1e-9
) -> None:
    """Two functions agree in their values and in the gradients of all inputs."""
    (f_values, f_grads), (g_values, g_grads) = forward_and_backward(f, inputs), forward_and_backward(g, inputs)
    for ours, theirs in zip(f_values + f_grads, g_values + g_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-12)


def operations_of(tensor: Any) -> list[str]:
    """The names of all operations on the tape that made a tensor."""
    names, seen = [], set()
    waiting = [tensor.origin[0]] if tensor.origin else []
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            names.append(node.function.__name__)
            waiting += [parent[0] for parent in node.parents if isinstance(parent, tuple)]
    return names
