"""`DiLoCo`: ranks that train alone for many steps and then average what they have learned, for a slow network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Array, get_array_module
from ..in_place import mark_written
from ..optim.optimizer import MASTER
from ..tensor import Tensor
from .communicator import Communicator


class DiLoCo:
    """Distributed low-communication training (Douillard et al., 2023, "DiLoCo").

    Every rank i starts from the same weights w and takes `interval` steps of its own optimizer, the inner one, on its
    own share of the data, which lead it to w_i. Then an outer step moves the weights that all ranks go on from:

        d = mean_i (w - w_i)                   the average change, seen as a gradient
        v = momentum v + d
        w = w - lr (d + momentum v)            Nesterov's momentum

    Only d is sent: as many bytes as one gradient, once in `interval` steps. With lr = 1 and momentum = 0 the new w is
    the mean of the w_i (local SGD, or federated averaging). The paper's lr is 0.7, its momentum 0.9, and its inner
    optimizer AdamW.

        optimizer = AdamW(model.parameters(), lr=1e-3)
        outer = DiLoCo(optimizer, communicator, interval=50)
        for n in range(1, steps + 1):
            loss(own_rows).backward()
            optimizer.step()
            optimizer.zero_grad()
            outer.after_step(n)

    optimizer: the inner one. Its parameters must be equal on all ranks when this object is made. With 16-bit parameters
    the outer step updates the float32 masters. Each rank keeps its own inner state, such as AdamW's moments;
    `average_inner_state` makes it the same on all ranks, so that one of them can save it for any number of ranks.
    """

    def __init__(
        self, optimizer: Any, communicator: Communicator, interval: int, lr: float = 0.7, momentum: float = 0.9
    ) -> None:
        if interval < 1:
            raise ValueError(f"DiLoCo: expected an interval of at least 1 step, got {interval}")
        self.optimizer, self.communicator = optimizer, communicator
        self.interval, self.lr, self.momentum = interval, lr, momentum
        self.start = [w.copy() for w in self.weights()]  # w, from which all ranks set out
        self.velocity = [get_array_module(w).zeros_like(w) for w in self.start]  # v

    def weights(self) -> list[Array]:
        """The arrays that are trained: the float32 masters of 16-bit parameters, and the other parameters' own."""
        masters: Mapping[Tensor, Array] = self.optimizer.masters()
        return [masters.get(p, p.data) for p in self.optimizer.params]

    def after_step(self, n: int) -> bool:
        """Take the outer step if the n-th inner step, counted from 1, ends a round. Returns whether it did."""
        if n % self.interval:
            return False
        self.step()
        return True

    def step(self) -> None:
        """The outer step. All ranks must call it after the same inner step."""
        weights = self.weights()
        changes = [start - w for start, w in zip(self.start, weights, strict=True)]
        average(changes, self.communicator)
        for p, w, start, v, d in zip(self.optimizer.params, weights, self.start, self.velocity, changes, strict=True):
            v *= self.momentum
            v += d
            start -= self.lr * (d + self.momentum * v)
            w[...] = start
            if w is not p.data:
                p.data[...] = w
            mark_written(p.data)

    def average_inner_state(self) -> None:
        """Replace the inner optimizer's arrays by their mean over the ranks. To be called right after an outer step."""
        if self.communicator.size == 1:
            return
        state = dict(self.optimizer.state_dict())
        means = {name: x.data.copy() for name, x in state.items() if is_inner(name)}
        average(list(means.values()), self.communicator)
        state |= {name: Tensor(mean) for name, mean in means.items()}
        for name in (name for name in state if name.endswith("steps")):  # ranks may have skipped some
            counts = self.communicator.share(state[name].numpy().tolist())
            state[name] = Tensor([max(column) for column in zip(*counts, strict=True)])
        self.optimizer.load_state_dict(state)

    def state_dict(self) -> dict[str, Tensor]:
        """The outer momentum v of each parameter, to be saved right after an outer step. It is equal on all ranks."""
        return {f"{i}.velocity": Tensor(v.copy()) for i, v in enumerate(self.velocity)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the weights that the parameters have now and from what `state_dict` returned.

        An empty state is that of a run without DiLoCo: v starts at 0. Raises ValueError if the state does not fit.
        """
        shapes = {f"{i}.velocity": v.shape for i, v in enumerate(self.velocity)}
        if state and shapes != {name: x.shape for name, x in state.items()}:
            raise ValueError("DiLoCo.load_state_dict: expected the velocity of each parameter, in its shape")
        for start, w in zip(self.start, self.weights(), strict=True):
            start[...] = w
        for name, v in zip(shapes, self.velocity, strict=True):
            v[...] = Tensor(state[name], device=Tensor(v).device).data if state else 0


def is_inner(name: str) -> bool:
    """Is this the name of an optimizer's own state? The number of steps is not, nor is a master, which is a weight."""
    return not name.endswith(("steps", f".{MASTER}"))


def average(arrays: Sequence[Array], communicator: Communicator) -> None:
    """Replace each array by its mean over the ranks. Those of one dtype travel together, as one flat array."""
    for dtype in sorted({x.dtype for x in arrays}, key=str):
        members = [x for x in arrays if x.dtype == dtype]
        flat = get_array_module(*members).concatenate([x.ravel() for x in members])
        communicator.all_reduce(flat, "mean")
        place = 0
        for x in members:
            x[...] = flat[place : place + x.size].reshape(x.shape)
            place += x.size
