"""`DistributedDataParallel`: the mean loss over a batch, and its gradients, by all ranks of a communicator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import random
from ..backend import get_array_module
from ..in_place import mark_written
from ..kernels.cpu import threads
from ..modes import is_recording
from ..nn.module import Module
from ..tensor import Tensor
from .buckets import BUCKET_BYTES, Bucket, Communication, Reduction, split_into_buckets
from .communicator import Communicator
from .shared_loss import ParallelLoss, SharedLoss


class DistributedDataParallel(ParallelLoss):
    """The mean loss over the rows of a batch, and its gradients, by all ranks of a communicator.

        parallel = DistributedDataParallel(model, lambda ids, targets: model(ids, targets)[1], communicator())
        with parallel:
            loss = parallel(ids, targets)   # the whole batch, on every rank
            loss.backward()                 # accumulates the gradients of the mean in `grad`, on every rank
            optimizer.step()                # so every rank takes the same step

    Every rank is given the whole batch, takes its own rows, computes their loss L_i and walks its own tape;
    shared_loss.py has the formula. While the walk goes on, buckets of gradients are added up over the ranks
    (buckets.py). Li et al., 2020, describe PyTorch's class of this name.

    module: at the start, every rank takes over the parameters of rank 0. loss: a function of arrays (n, …) that returns
    a scalar tensor, the mean over the rows of something that depends on each row alone. weights: if the mean is over
    something else, a function of the same arrays that counts it; for example, how many targets are not ignored:

        weights=lambda ids, targets: (targets != -100).sum()

    bucket_bytes: the most that the gradients of one bucket take; by default 1 MB on CPUs and 25 MB on GPUs.

    `communication` counts what was sent, and how long the computation waited for it. Dropout draws from generators that
    differ from rank to rank; the common generators stay equal on all ranks.

    Terms of the loss outside `parallel(…)`, such as a penalty on the weights, must be the same on all ranks. They count
    once. With one rank, calling this is calling the loss.

    Raises ValueError for arrays with different numbers of rows or none, for tensors that require gradients, and for
    parameters that are not on the communicator's device.
    """

    def __init__(
        self,
        module: Module,
        loss: Callable[..., Tensor],
        communicator: Communicator,
        weights: Callable[..., Any] | None = None,
        bucket_bytes: int | None = None,
    ) -> None:
        super().__init__(module, loss)
        self.communicator, self.weights = communicator, weights
        self.bucket_bytes = bucket_bytes or BUCKET_BYTES[communicator.device.partition(":")[0]]
        elsewhere = {p.device for p in self.params} - {communicator.device}
        if communicator.size > 1 and elsewhere:
            raise ValueError(
                f"DistributedDataParallel: expected parameters on {communicator.device}, got "
                f"{', '.join(sorted(elsewhere))}"
            )
        self.communication = Communication()
        self.reduction: Reduction | None = None
        self.given_buckets: Sequence[Bucket] = []  # those of a ZeroRedundancyOptimizer
        self.synchronizing = True  # not inside no_sync
        self.unreduced = False  # does `grad` hold sums of this rank alone, because of no_sync?

    def __call__(self, *batch: Any) -> Tensor:
        """The mean loss of a batch of arrays (n, …) with the same number of rows. Of tensors the arrays are taken."""
        batch = self.arrays_of(batch)
        rank, size, n = self.communicator.rank, self.communicator.size, len(batch[0])
        if size == 1:
            return self.loss(*batch)
        self.start()
        # A rank without rows computes the first row with weight 0: the loss has the right dtype, and as much is drawn.
        rows = threads.stretch(n, rank, min(n, size)) if rank < n else slice(0, 1)
        own = [array[rows] for array in batch]
        weight = self.weight_of(own, batch) if rank < n else 0.0
        with self.closed_on_error():
            with random.derived(rank):
                loss = self.loss(*own)
            value = get_array_module(loss.data).zeros(1, "float64")
            if weight:
                value += loss.data.astype("float64") * weight
            self.communication.wait(self.communicator.start_all_reduce(value), value.nbytes)
        mean = value.astype(loss.dtype).reshape(())
        if not is_recording() or not loss.requires_grad:
            return Tensor(mean)
        part = (loss * weight).backward if weight else None
        return SharedLoss.apply(mean, self, part, Tensor(0.0, requires_grad=True, device=loss.device))

    def weight_of(self, own: Any, batch: Any) -> float:
        """The share of this rank's rows in the mean, n_i / n. If nothing at all counts, by the numbers of rows.

        The loss of nothing may be NaN. So a rank whose share is 0 does not walk its tape.
        """
        n = float(self.weights(*batch)) if self.weights else 0.0
        return float(self.weights(*own)) / n if self.weights and n else len(own[0]) / len(batch[0])

    def start(self) -> None:
        """Take over the parameters of rank 0, and put those that require gradients into buckets."""
        if self.communicator.size == 1:
            return
        if self.reduction is None:
            for p in self.params:
                self.broadcast(p)
        self.make_buckets()

    def make_buckets(self) -> None:
        """Make buckets of the parameters that require gradients, unless those there are have the same."""
        trained = [p for p in self.params if p.requires_grad]
        if self.reduction is None or set(trained) != set(self.reduction.bucket_of):
            lists = split_into_buckets(trained, self.bucket_bytes)
            buckets = self.given_buckets or [Bucket(members) for members in lists]
            self.reduction = Reduction(buckets, self.communicator, self.communication)

    def use_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Reduce gradients in these buckets, which an optimizer has made."""
        self.given_buckets = buckets
        if self.reduction is not None:
            self.reduction = Reduction(buckets, self.communicator, self.communication)

    def broadcast(self, p: Tensor) -> None:
        """Replace the values of p by those of rank 0."""
        values = p.data.reshape(-1).copy()
        self.communicator.broadcast(values)
        p.data[...] = values.reshape(p.shape)
        mark_written(p.data)

    def close(self) -> None:
        self.reduction = None

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside this context, a backward pass only adds this rank's gradients to `grad`, and nothing is sent.

        The next backward pass outside adds up over the ranks what has been accumulated.
        """
        before, self.synchronizing = self.synchronizing, False
        try:
            yield
        finally:
            self.synchronizing = before

    def walk(self, part: Callable[..., None] | None, g: Any, retain_graph: bool) -> None:
        """Walk this rank's tape: `part` is the backward of (n_i / n) L_i, or None if this rank has no share.

        Gradients that were added up in an earlier pass count once in the sum over the ranks: rank 0 alone keeps them.
        """
        self.make_buckets()
        assert self.reduction is not None
        if self.communicator.rank and not self.unreduced:
            for p in self.params:
                p.grad = None
        self.unreduced = not self.synchronizing
        sums = self.reduction.overlapping() if self.synchronizing else contextlib.nullcontext()
        with self.closed_on_error(), sums:
            if part is not None:
                part(g, retain_graph)
