"""Muon, an optimizer for matrices, and a way to use several optimizers as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..backend import Array, get_array_module
from ..tensor import Tensor
from .optimizer import Optimizer, clip_grad_norm


def orthogonalize(x: Array, steps: int = 5) -> Array:
    """Matrices (…, M, N) with the singular vectors of x, and singular values near 1 (Jordan et al., 2024).

    With the singular value decomposition X = U S V^T, the orthogonal matrix nearest to X is U V^T. An odd polynomial
    of X acts on its singular values alone:

        (a I + b X X^T + c (X X^T)^2) X = U (a S + b S^3 + c S^5) V^T

    and so s -> a s + b s^3 + c s^5, repeated, drives them all towards 1 by nothing but matrix products: the quintic
    Newton-Schulz iteration. The values must start between 0 and 1, so X is divided by its Frobenius norm, which is
    at least its largest singular value. Jordan's a, b, c make the slope at 0 as steep as possible, at a price: the
    values do not settle at 1. After five steps those that began above 0.002 lie between 0.68 and 1.21, near enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    xp = get_array_module(x)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # transpose, so that X X^T is the smaller of the two squares
        x = x.swapaxes(-1, -2)
    x = x / xp.maximum(xp.sqrt((x * x).sum(axis=(-2, -1), keepdims=True)), 1e-7)
    identity = xp.eye(x.shape[-2], dtype=x.dtype)
    for _ in range(steps):
        square = x @ x.swapaxes(-1, -2)
        polynomial = square @ square.swapaxes(-1, -2)  # symmetric: for X X^T BLAS does half of the work
        polynomial *= c
        polynomial += b * square
        polynomial += a * identity
        x = polynomial @ x
    return x.swapaxes(-1, -2) if tall else x


class Muon(Optimizer):
    """Momentum, orthogonalized by Newton-Schulz (Jordan et al., 2024), for the matrices inside a network.

        v = momentum v + grad
        u = grad + momentum v                  with Nesterov's momentum, else v
        w = w - lr weight_decay w
        w = w - lr sqrt(max(1, M / N)) orthogonalize(u)              w is (M, N)

    A few directions dominate most gradients. In an orthogonal matrix all directions have the same weight, so the rare
    ones learn too. The factor lets a tall matrix change its output as much as a square one does. The length of the
    gradient makes no difference: `lr` alone sets the size of a step, about 0.02 for a Transformer.

    Every parameter must be a matrix. Embeddings, the output layer, biases and norms are better left to AdamW, with
    `CombinedOptimizer`. `ns_steps`: the number of Newton-Schulz iterations. `split`: the number of matrices that a
    parameter stacks on top of each other, as GPT-2's c_attn stacks q, k and v; each is orthogonalized separately.
    """

    slots = ("momentum",)

    def __init__(
        self,
        params_or_groups: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        split: int = 1,
    ) -> None:
        settings = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "split": split}
        super().__init__(params_or_groups, lr=lr, weight_decay=weight_decay, **settings)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or not p.size or p.shape[0] % group["split"]:
                    raise ValueError(
                        f"Muon: expected matrices, their rows divisible by split {group['split']}; got shape {p.shape}"
                    )

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict[str, Any], t: int) -> None:
        v = state["momentum"]
        v *= group["momentum"]
        v += g
        u = g + group["momentum"] * v if group["nesterov"] else v
        u = u.reshape(group["split"], -1, w.shape[1])  # (split, M, N)
        change = orthogonalize(u, group["ns_steps"])
        w *= 1 - group["lr"] * group["weight_decay"]
        w -= group["lr"] * math.sqrt(max(1, u.shape[1] / u.shape[2])) * change.reshape(w.shape)


class CombinedOptimizer:
    """Several optimizers used as one, each with parameters of its own.

    `param_groups` and `params` are those of all of them. The state of the first is saved under the names "0.…", and so
    on.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        self.param_groups: list[dict[str, Any]] = [group for one in optimizers for group in one.param_groups]
        self.params: list[Tensor] = [p for one in optimizers for p in one.params]
        if len(set(self.params)) != len(self.params):
            raise ValueError("CombinedOptimizer: a parameter appears twice")

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for one in self.optimizers:
            one.zero_grad()

    def clip_grad_norm(self, max_norm: float, loss_scale: float = 1.0) -> Any:
        """`clip_grad_norm` of all parameters: their gradients have one norm."""
        return clip_grad_norm(self.params, max_norm, loss_scale)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for one in self.optimizers:
            one.step()

    def start_masters(self, exact: Mapping[Tensor, Array]) -> None:
        """Start the masters of 16-bit parameters; see `Optimizer.start_masters`."""
        for one in self.optimizers:
            one.start_masters(exact)

    def masters(self) -> dict[Tensor, Array]:
        """The float32 masters of 16-bit parameters, by parameter."""
        return {p: master for one in self.optimizers for p, master in one.masters().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all optimizers, to be saved."""
        states = [one.state_dict() for one in self.optimizers]
        return {f"{i}.{name}": value for i, state in enumerate(states) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; ValueError, and nothing changed, if it is of other optimizers."""
        parts: list[dict[str, Any]] = [{} for _ in self.optimizers]
        for name, value in state.items():
            number, _, rest = name.partition(".")
            if not number.isdigit() or int(number) >= len(parts):
                raise ValueError(f"CombinedOptimizer.load_state_dict: {name} is of none of its {len(parts)} optimizers")
            parts[int(number)][rest] = value
        before = [one.state_dict() for one in self.optimizers]
        try:
            for one, part in zip(self.optimizers, parts, strict=True):
                one.load_state_dict(part)
        except ValueError:
            for one, part in zip(self.optimizers, before, strict=True):
                one.load_state_dict(part)
            raise
