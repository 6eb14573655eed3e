"""What `DataParallel` and `DistributedDataParallel` have in common: one mean loss, of which each process has a part.

Let process i have n_i of the n rows of a batch, and let L_i be the mean loss over them. The mean over all rows is the
mean of these means, weighted by their numbers of rows, and a derivative is linear:

    L = sum_i (n_i / n) L_i        dL/dw = sum_i (n_i / n) dL_i/dw

So process i computes L_i for its rows and walks its own tape with n_i / n as the first gradient. The sum over the
processes is the whole gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

from ..autograd import Function
from ..nn.module import Module
from ..tensor import Tensor


class ParallelLoss:
    """The base class. A subclass defines `start`, `close`, `__call__` and `walk`."""

    def __init__(self, module: Module, loss: Callable[..., Tensor]) -> None:
        self.module, self.loss = module, loss
        self.params = list(module.parameters())

    def start(self) -> None:
        """Prepare for the next loss, if that has not been done."""

    def close(self) -> None:
        """Let go of what `start` made. The next loss starts again."""

    def walk(self, part: Any, g: Any, retain_graph: bool) -> None:
        """Add the gradient of g times the mean loss to the parameters' `grad`. `part` is what the forward kept."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close if something fails: a process may have sent, or may still send, what nobody reads."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def arrays_of(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arrays of a batch, after a check that they have one number of rows, and of tensors that need no gradient.

        A gradient would not come back from the other processes.
        """
        name = type(self).__name__
        if any(isinstance(x, Tensor) and x.requires_grad for x in batch):
            raise ValueError(f"{name}: expected a batch of arrays, got a tensor that requires gradients")
        arrays = tuple(x.data if isinstance(x, Tensor) else x for x in batch)
        rows = {len(array) for array in arrays}
        if len(rows) != 1 or rows == {0}:
            raise ValueError(f"{name}: expected arrays with one number of rows, at least 1, got {sorted(rows)}")
        return arrays


class SharedLoss(Function):
    """L = sum_i (n_i / n) L_i. `mean` is L, which the processes have computed together.

    Backward. `parallel.walk` adds the gradients to the parameters' `grad` itself, so the leaves get none from here.
    They are arguments so that the call is recorded: the parameters, or any leaf that requires gradients. Hooks of the
    parameters are called during the walk only if the parameters are not among them.
    """

    @staticmethod
    def forward(ctx, mean, parallel, part, *leaves):
        ctx.parallel, ctx.part = parallel, part
        return mean

    @staticmethod
    def backward(ctx, g):
        ctx.parallel.walk(ctx.part, g, ctx.retained)
        return (None,) * len(ctx.needs_input_grad)
