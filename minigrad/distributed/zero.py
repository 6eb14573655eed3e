"""`ZeroRedundancyOptimizer`: each rank keeps the optimizer's state of its own part of the parameters, and updates that.

With `DistributedDataParallel` alone, all ranks take the same step: each has the whole gradient and keeps, for every
parameter, AdamW's two moments, and a master if it is 16-bit. So N ranks keep N copies of the same state. In ZeRO-1
(Rajbhandari et al., 2020), each bucket of parameters is cut into N parts, and rank r owns the r-th:

    gradients of rank 0  [ a0 | b0 | c0 ]                    a = a0 + a1 + a2
    gradients of rank 1  [ a1 | b1 | c1 ]   reduce-scatter   rank 0 gets a, rank 1 gets b, rank 2 gets c
    gradients of rank 2  [ a2 | b2 | c2 ]
    each rank updates its part of the weights, with its part of the state
    weights of all ranks [ A  | B  | C  ]   all-gather       every rank gets all the parts

An all-reduce is a reduce-scatter followed by an all-gather, so as many bytes are sent as without sharding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..autograd import AutogradError
from ..backend import Array, get_array_module
from ..in_place import mark_written
from ..optim import CombinedOptimizer, Optimizer
from ..optim.optimizer import MASTER, clip_gradients, squared_gradient_norm
from ..tensor import Tensor
from .buckets import ALIGNMENT, Bucket, aligned, split_into_buckets
from .communicator import Communicator, Work
from .ddp import DistributedDataParallel


class Piece(NamedTuple):
    """What a rank owns of a parameter: all of it, or a stretch of its elements."""

    parameter: Tensor
    inside: slice  # of the parameter's elements
    at: int  # where it begins in the rank's part of the bucket
    tensor: Tensor  # the piece itself, which the rank's optimizer updates; its memory is the parameter's

    def of(self, array: Array) -> Array:
        """This piece of an array like the parameter."""
        return array.reshape(-1)[self.inside].reshape(self.tensor.shape)

    def in_part(self, part: Array) -> Array:
        """This piece of an array like the rank's part of the bucket."""
        return part[self.at : self.at + self.tensor.size].reshape(self.tensor.shape)


class ShardedBucket(Bucket):
    """A bucket that is cut into one part for each rank, which receives the sum of that part alone.

    The parameters' values lie in an array with the same layout. If the optimizer updates each element independently,
    the cuts may go through parameters. Otherwise, as for Muon, each part holds whole parameters: the largest first,
    each goes to the rank that has the fewest elements so far (`loads`). The shorter parts are padded.
    """

    def __init__(
        self, params: Sequence[Tensor], communicator: Communicator, elementwise: bool, loads: list[int]
    ) -> None:
        self.communicator, self.elementwise, self.loads = communicator, elementwise, loads
        super().__init__(params)
        self.part_length = self.length // communicator.size
        self.weights: Array = get_array_module(params[0].data).zeros(self.length, params[0].dtype)
        self.own = slice(communicator.rank * self.part_length, (communicator.rank + 1) * self.part_length)
        self.places = {p: self.view(self.weights, p) for p in self.params}
        self.take_in()
        self.pieces = [*self.pieces_of(communicator.rank)]

    def lay_out(self) -> dict[Tensor, int]:
        size = self.communicator.size
        if self.elementwise:
            offsets = super().lay_out()
            self.length = -(-self.length // (size * ALIGNMENT)) * size * ALIGNMENT
            return offsets
        parts: list[list[Tensor]] = [[] for _ in range(size)]
        lengths = [0] * size
        offset_in_part = {}
        for p in sorted(self.params, key=lambda p: -p.size):
            rank = self.loads.index(min(self.loads))
            offset_in_part[p] = lengths[rank]
            parts[rank].append(p)
            lengths[rank] += aligned(p.size)
            self.loads[rank] += p.size
        self.length = size * max(lengths)
        return {p: rank * max(lengths) + offset_in_part[p] for rank, members in enumerate(parts) for p in members}

    def pieces_of(self, rank: int) -> Iterable[Piece]:
        start, stop = rank * self.part_length, (rank + 1) * self.part_length
        for p, offset in self.offsets.items():
            first, last = max(offset, start), min(offset + p.size, stop)
            if first < last:
                values = self.weights[first:last]
                tensor = Tensor(values if self.elementwise else values.reshape(p.shape), requires_grad=True)
                yield Piece(p, slice(first - offset, last - offset), first - start, tensor)

    def take_in(self) -> None:
        """Move parameters that have another array into the bucket's. Their `data` is a part of it from here on."""
        for p, place in self.places.items():
            if p.data is not place:
                place[...], p.data = p.data, place

    def start(self, communicator: Communicator) -> None:
        self.part: Array = get_array_module(self.array).empty(self.part_length, self.dtype)
        self.work = communicator.start_reduce_scatter(self.array, self.part)

    def finish(self, exists: dict[Tensor, bool]) -> None:
        """After the reduction: add this rank's part to the gradients of its pieces. The parameters have none."""
        for piece in self.pieces:
            if exists[piece.parameter]:
                gradient, earlier = piece.in_part(self.part), piece.tensor.grad
                piece.tensor.grad = gradient if earlier is None else earlier + gradient
        for p in self.params:
            p.grad = None
        del self.part
        self.close()

    def put_together(self, values: Mapping[Tensor, Array]) -> Array:
        """An array like the bucket's, from the pieces of all ranks. `values` has this rank's, by parameter."""
        array = get_array_module(self.weights).zeros(self.length, self.dtype)
        for piece in self.pieces:
            if piece.parameter in values:
                piece.in_part(array[self.own])[...] = values[piece.parameter]
        self.communicator.all_gather(array[self.own], array)
        return array

    def start_all_gather(self) -> Work:
        """Start to exchange the parts of the weights."""
        mark_written(self.weights)
        return self.communicator.start_all_gather(self.weights[self.own], self.weights)


class Shard(NamedTuple):
    """A rank's share of one optimizer."""

    whole: Optimizer  # has the parameters and their settings; its state is empty
    part: Optimizer  # of the same class, has this rank's pieces and their state
    pieces: list[Piece]  # in the order of `part.params`
    buckets: list[ShardedBucket]


class ZeroRedundancyOptimizer:
    """An optimizer whose state is spread over the ranks of a `DistributedDataParallel`: ZeRO-1.

        parallel = DistributedDataParallel(model, loss, communicator())
        optimizer = ZeroRedundancyOptimizer(optim.AdamW(model.parameters(), lr=3e-4), parallel)
        parallel(ids, targets).backward()           # reduce-scatter: `p.grad` stays None
        optimizer.clip_grad_norm(1.0)
        optimizer.step()                            # updates this rank's part, then all-gather

    The weights are those that the optimizer computes without it. AdamW and SGD update each element independently, so
    every rank has 1/size of each bucket. Muon needs whole matrices, so each rank has some of them. No two ranks differ
    by more than the largest matrix.

    Settings are read and changed in `param_groups`, as usual. `state_dict` is whole, and the same as that of the
    optimizer without sharding, so a run can be continued on any number of ranks. `state_dict`, `masters`,
    `clip_grad_norm` and `step` must be called on all ranks. With one rank, this is the optimizer itself.

    The parameters move into one array for each bucket. Raises ValueError unless the optimizer has exactly the
    parameters of the module that require gradients. AutogradError in `step` if a parameter has a `grad`: it came from
    outside the parallel loss, or was accumulated in `no_sync` and never added up over the ranks.
    """

    def __init__(self, optimizer: Optimizer | CombinedOptimizer, parallel: DistributedDataParallel) -> None:
        self.optimizer, self.parallel, self.communicator = optimizer, parallel, parallel.communicator
        self.param_groups, self.params = optimizer.param_groups, optimizer.params
        self.buckets: list[ShardedBucket] = []
        self.shards: list[Shard] = []
        trained, given = {p for p in parallel.params if p.requires_grad}, {*self.params}
        if given != trained:
            raise ValueError(
                f"ZeroRedundancyOptimizer: expected an optimizer of the {len(trained)} parameters of the module that "
                f"require gradients; it has {len(trained & given)} of them, and {len(given - trained)} others"
            )
        if self.communicator.size > 1:
            self.cut(optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else [optimizer])

    def cut(self, optimizers: Sequence[Optimizer]) -> None:
        """Put the parameters of each optimizer into buckets, and make an optimizer of this rank's pieces."""
        size = self.communicator.size
        number: dict[Tensor, int] = {p: i for i, p in enumerate(self.parallel.params)}
        for whole in optimizers:
            ordered, loads = sorted(whole.params, key=number.__getitem__), [0] * size
            most = self.parallel.bucket_bytes
            if not whole.elementwise:  # enough of them that every rank gets some
                most = max(most, size * max(p.data.nbytes for p in ordered))
            lists = split_into_buckets(ordered, most)
            buckets = [ShardedBucket(members, self.communicator, whole.elementwise, loads) for members in lists]
            self.buckets += buckets
            self.shards.append(shard_of(whole, buckets))
        self.buckets.sort(key=lambda bucket: -min(number[p] for p in bucket.params))  # as the backward completes them
        self.hand_over()
        self.parallel.use_buckets(self.buckets)

    def hand_over(self) -> None:
        """Cut the state of the whole optimizers: this rank keeps that of its pieces."""
        for whole, part, pieces, _ in self.shards:
            number = {p: i for i, p in enumerate(whole.params)}
            numbers = [number[piece.parameter] for piece in pieces]
            part.steps = [whole.steps[i] for i in numbers]
            part.state = [
                {slot: piece.of(array).copy() for slot, array in whole.state[i].items()}
                for piece, i in zip(pieces, numbers, strict=True)
            ]
            forget(whole)

    def collect(self, only: str = "") -> None:
        """Give the whole optimizers their state, from the pieces of all ranks; of the slots, all or `only` this one."""
        for shard in self.shards:
            whole, number = shard.whole, {p: i for i, p in enumerate(shard.whole.params)}
            state = {
                piece.parameter: {slot: array for slot, array in kept.items() if only in ("", slot)}
                for piece, kept in zip(shard.pieces, shard.part.state, strict=True)
            }
            own = [[number[p], t, [*kept]] for (p, kept), t in zip(state.items(), shard.part.steps, strict=True)]
            slots: dict[Tensor, list[str]] = {p: [] for p in whole.params}
            for i, t, names in (each for rank in self.communicator.share(own) for each in rank):
                whole.steps[i], slots[whole.params[i]] = t, names
            for bucket in shard.buckets:
                for slot in sorted({name for p in bucket.params for name in slots[p]}):
                    array = bucket.put_together({p: kept[slot] for p, kept in state.items() if slot in kept})
                    for p in bucket.params:
                        if slot in slots[p]:
                            whole.state[number[p]][slot] = bucket.view(array, p).copy()

    # What optimizers do

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        self.optimizer.zero_grad()
        for shard in self.shards:
            shard.part.zero_grad()

    def clip_grad_norm(self, max_norm: float, loss_scale: float = 1.0) -> Any:
        """`optim.clip_grad_norm` of all gradients: the squares of all ranks' pieces are added up."""
        if not self.shards:
            return self.optimizer.clip_grad_norm(max_norm, loss_scale)
        own = [piece.tensor for shard in self.shards for piece in shard.pieces]
        squares = get_array_module(self.buckets[0].weights).zeros(1, "float64")
        squares += squared_gradient_norm(own)
        self.communicator.all_reduce(squares)
        return clip_gradients(own, squares[0], max_norm, loss_scale)

    def step(self) -> None:
        """Update every parameter that has a gradient: its owner does, and all ranks receive the result."""
        if not self.shards:
            self.optimizer.step()
            return
        if any(p.grad is not None for p in self.params):
            raise AutogradError(
                "ZeroRedundancyOptimizer.step: a parameter has a gradient that was not added up over the ranks; it "
                "came from outside the parallel loss, or from a backward in no_sync that no other followed"
            )
        for bucket in self.buckets:
            bucket.take_in()
        for whole, part, *_ in self.shards:
            for group, ours in zip(whole.param_groups, part.param_groups, strict=True):
                ours.update({name: value for name, value in group.items() if name != "params"})
            part.step()
        works = [(bucket.start_all_gather(), bucket.weights.nbytes) for bucket in self.buckets]
        for work, nbytes in works:
            self.parallel.communication.wait(work, nbytes)

    def start_masters(self, exact: Mapping[Tensor, Array]) -> None:
        """Start the masters of 16-bit parameters; see `Optimizer.start_masters`."""
        if not self.shards:
            self.optimizer.start_masters(exact)
        for _, part, pieces, _ in self.shards:
            part.start_masters({x.tensor: x.of(exact[x.parameter]) for x in pieces if x.parameter in exact})

    def masters(self) -> dict[Tensor, Array]:
        """The float32 masters of 16-bit parameters, by parameter, whole on every rank."""
        self.collect(MASTER)
        masters = self.optimizer.masters()
        forget(*(shard.whole for shard in self.shards))
        return masters

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state, on every rank, to be saved by one of them."""
        self.collect()
        state = self.optimizer.state_dict()
        forget(*(shard.whole for shard in self.shards))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict`, here or of the optimizer without sharding, returned."""
        self.optimizer.load_state_dict(state)
        self.hand_over()

    def state_bytes(self) -> int:
        """The memory of the state that this rank keeps."""
        optimizers = [shard.part for shard in self.shards] or getattr(self.optimizer, "optimizers", [self.optimizer])
        return sum(array.nbytes for one in optimizers for kept in one.state for array in kept.values())


def shard_of(whole: Optimizer, buckets: list[ShardedBucket]) -> Shard:
    """An optimizer like `whole`, of this rank's pieces of its parameters."""
    pieces = [piece for bucket in buckets for piece in bucket.pieces]
    part, ordered = copy.copy(whole), []
    part.param_groups = []
    for group in whole.param_groups:
        members = set(group["params"])
        inside = [piece for piece in pieces if piece.parameter in members]
        part.param_groups.append({**group, "params": [piece.tensor for piece in inside]})
        ordered += inside
    part.params = [piece.tensor for piece in ordered]
    return Shard(whole, part, ordered, buckets)


def forget(*optimizers: Optimizer) -> None:
    """Let go of the state of these optimizers."""
    for one in optimizers:
        one.steps, one.state = [0] * len(one.params), [{} for _ in one.params]
