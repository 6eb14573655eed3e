"""Buckets: gradients travel in flat arrays of some megabytes, while the backward pass still computes others.

A collective has a cost for each call (its latency) and a cost for each byte. One call for each parameter pays the first
too often; one call for all of them can start only when the backward pass is over. So the parameters are put into
buckets, in reverse order, which is about the order in which a backward pass completes their gradients:

    parameters   wte   wpe   h.0 …   h.1 …   h.2 …   ln_f
    buckets      [     2     ][     1     ][     0     ]

    computing    forward │ gradients of bucket 0 │    of bucket 1    │    of bucket 2    │  wait  │ step
    sending                                      │  bucket 0  │      │  bucket 1  │      │bucket 2│

All ranks must start the same collectives in the same order, but a rank can complete gradients in an order of its own,
or have none for a parameter. So a bucket starts only after those before it, and the end of the pass starts the rest,
with zeros for the gradients that this rank does not have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from ..autograd import AutogradError
from ..backend import Array, get_array_module
from ..tensor import Tensor
from .communicator import Communicator, Work

BUCKET_BYTES = {"cpu": 1 << 20, "cuda": 25 << 20}  # a network between GPUs needs longer messages; 25 MB as in PyTorch
ALIGNMENT = 32  # elements; a kernel may read several at once, from an address that is a multiple of so many


@dataclass
class Communication:
    """What has been sent so far, and how long it took. `hidden` is the share of the time that nobody waited for."""

    collectives: int = 0
    bytes: int = 0  # of the arrays given to collectives
    seconds: float = 0.0  # that the communicator was busy
    waited: float = 0.0  # seconds of them in which the computation waited

    @property
    def hidden(self) -> float:
        return max(0.0, 1 - self.waited / self.seconds) if self.seconds else 0.0

    def wait(self, work: Work, nbytes: int) -> None:
        """Wait for a collective, and count it."""
        start = perf_counter()
        work.wait()
        self.waited += perf_counter() - start
        self.seconds += work.seconds
        self.collectives += 1
        self.bytes += nbytes


def aligned(size: int) -> int:
    """The number of elements that `size` elements occupy in a bucket."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def split_into_buckets(params: Iterable[Tensor], most_bytes: int) -> list[list[Tensor]]:
    """The parameters in reverse order, cut into lists of one dtype whose gradients have `most_bytes` or are alone."""
    buckets: list[list[Tensor]] = []
    latest: dict[Any, list[Tensor]] = {}  # the list of each dtype to which more can be added
    for p in reversed([*params]):
        members = latest.get(p.dtype)
        if members is None or sum(other.data.nbytes for other in members) + p.data.nbytes > most_bytes:
            members = latest[p.dtype] = []
            buckets.append(members)
        members.append(p)
    return buckets


class Bucket:
    """Parameters whose gradients are added up over the ranks in one flat array, by one all-reduce.

    Gradients of 16-bit parameters are added up, and stay, in float32.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self.dtype = "float32" if params[0].dtype.itemsize == 2 else params[0].dtype
        self.length = 0  # of the array
        self.offsets = self.lay_out()

    def lay_out(self) -> dict[Tensor, int]:
        """Where each gradient begins in the array. Sets the length of the array."""
        offsets = {}
        for p in self.params:
            offsets[p] = self.length
            self.length += aligned(p.size)
        return offsets

    def view(self, array: Array, p: Tensor) -> Array:
        """The place of p in an array like the bucket's, in the shape of p."""
        return array[self.offsets[p] : self.offsets[p] + p.size].reshape(p.shape)

    def open(self) -> None:
        """Before a backward pass: make the array and expect all gradients."""
        self.array: Array = get_array_module(self.params[0].data).zeros(self.length, self.dtype)
        self.views = {p: self.view(self.array, p) for p in self.params}
        self.missing = set(self.params)
        self.work: Work | None = None

    def put(self, p: Tensor) -> None:
        """Move the gradient of p into the array: from here on, `p.grad` is a part of the array."""
        if self.work is not None:
            raise AutogradError(
                f"a parameter of shape {p.shape} got another gradient after its gradients were sent to the other "
                f"ranks; is it used inside a function given to checkpoint? Give checkpoint a module instead"
            )
        if p.grad is not self.views[p]:
            self.views[p][...], p.grad = p.grad, self.views[p]
        self.missing.discard(p)

    def start(self, communicator: Communicator) -> None:
        self.work = communicator.start_all_reduce(self.array)

    def finish(self, exists: dict[Tensor, bool]) -> None:
        """After the reduction: give the parameters their gradients, those for which one `exists` on any rank."""
        for p in self.params:
            p.grad = self.views[p] if exists[p] else None
        self.close()

    def close(self) -> None:
        """Let go of the array. It lives on as the parameters' gradients."""
        del self.array, self.views
        self.work = None


@dataclass
class Reduction:
    """Adds up the gradients of a backward pass over the ranks.

        with reduction.overlapping():
            loss.backward()

    Each parameter has a hook, which moves its gradient into its bucket when it is complete.
    """

    buckets: Sequence[Bucket]
    communicator: Communicator
    communication: Communication = field(default_factory=Communication)

    def __post_init__(self) -> None:
        self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.params}
        self.started = 0  # how many buckets

    @contextlib.contextmanager
    def overlapping(self) -> Iterator[None]:
        """Reduce what the backward pass inside this context adds to the parameters' `grad`, and what was there."""
        self.started = 0
        for bucket in self.buckets:
            bucket.open()
        with contextlib.ExitStack() as hooks:
            for p in self.bucket_of:
                hooks.enter_context(p.register_post_accumulate_grad_hook(self.completed))
            yield
        self.finish()

    def completed(self, p: Tensor) -> None:
        """The hook of each parameter."""
        self.bucket_of[p].put(p)
        while self.started < len(self.buckets) and not self.buckets[self.started].missing:
            self.start_next()

    def start_next(self) -> None:
        self.buckets[self.started].start(self.communicator)
        self.started += 1

    def finish(self) -> None:
        """Start the buckets that wait for gradients which this rank does not have, and wait for all."""
        while self.started < len(self.buckets):
            bucket = self.buckets[self.started]
            for p in [*bucket.missing]:
                if p.grad is not None:  # from an earlier pass
                    bucket.put(p)
            self.start_next()
        exists = self.exchange_which_exist()
        for bucket in self.buckets:
            assert bucket.work is not None
            self.communication.wait(bucket.work, bucket.array.nbytes)
            bucket.finish(exists)

    def exchange_which_exist(self) -> dict[Tensor, bool]:
        """For each parameter: has any rank a gradient?

        All ranks add up which they have. Only a rank that lacks some reads the sums, since it would wait for its GPU.
        """
        params = [*self.bucket_of]
        exists = {p: p not in self.bucket_of[p].missing for p in params}
        xp = get_array_module(params[0].data)
        counts = xp.asarray([float(exists[p]) for p in params], "float32")
        self.communication.wait(self.communicator.start_all_reduce(counts), counts.nbytes)
        if all(exists.values()):
            return exists
        return dict(zip(params, (counts > 0).tolist(), strict=True))
