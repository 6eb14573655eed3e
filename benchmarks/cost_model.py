"""How long a training step takes on N ranks: a model of compute, latency and bandwidth.

A network needs α seconds for a message (its latency) and 1/β seconds for a byte (β is its bandwidth). A reduce-scatter
of n bytes on P places, or an all-gather, sends (P-1)/P n bytes in P-1 messages along a ring or log2 P along a tree:

    half(n, P) = (P-1)/P n/β + s α                 s = P-1 or ⌈log2 P⌉
    all-reduce = 2 half(n, P)                      a reduce-scatter, then an all-gather

R ranks share a machine of C cores. They add up among themselves first, then machine with machine, each over one network
card. M = ⌈N/R⌉ machines:

    H(n) = crowd · half(n, min(N, R)) in the machine + half(n, M) between machines
    crowd = max(1, min(N, R) / C)                  more ranks than cores take turns

A step with r sequences on each rank, of a model whose gradient of n bytes has k buckets:

    compute(r) = crowd (fixed + r · each)          forward and backward, in which the backward has the share b
    synchronous = compute + crowd · update + exposed(2 k H(n/k)) + 2 · 2 H(0)
    ZeRO-1      = compute + crowd · update / N + exposed(k H(n/k)) + k H(n/k) + 3 · 2 H(0)
    DiLoCo      = compute + crowd · update + (crowd · outer + 2 H(n)) / interval

H(0) is for all-reduces of a few numbers: the loss, which gradients exist, and in ZeRO-1 the norm. The last bucket
starts when the backward pass is over. The others can be hidden behind the backward pass, as far as a core is free:

    exposed(t) = t - free · min(t, b · compute) (k-1)/k            free = C / min(N, R) - 1, at least 0 and at most 1

Weak scaling keeps the sequences r of each rank, strong scaling those B of the whole batch: r = max(1, B / N), and ranks
beyond B have nothing to do. The efficiency is the share of the N ranks' time in which one rank that communicates with
nobody would have done the same work:

    weak = alone(r) / step(N, r)                   strong = alone(B) / (N · step(N, max(1, B / N)))

Left out: ranks that wait for the slowest of them, other traffic in the network, and what DiLoCo's loss costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

METHODS = ("synchronous", "ZeRO-1", "DiLoCo")


class Network(NamedTuple):
    """What joins ranks or machines: seconds for a message, bytes a second, and the way of messages."""

    latency: float
    bandwidth: float
    way: str = "tree"  # or "ring"

    def half(self, nbytes: float, places: int) -> float:
        """Seconds of a reduce-scatter or an all-gather, each half of an all-reduce."""
        messages = places - 1 if self.way == "ring" else math.ceil(math.log2(places))
        return (places - 1) / places * nbytes / self.bandwidth + messages * self.latency


class Work(NamedTuple):
    """What one rank computes in a step, in seconds, while all cores of its machine compute; and what it sends."""

    fixed: float  # of forward and backward, whatever the number of sequences
    each: float  # of forward and backward, for each sequence
    backward: float  # the share of the backward pass
    update: float  # clipping and the optimizer
    outer: float  # DiLoCo's outer step, without what it sends
    nbytes: int  # of the gradients
    buckets: int

    def compute(self, sequences: float) -> float:
        return self.fixed + self.each * sequences

    def alone(self, sequences: float) -> float:
        """Seconds of a step of a rank that communicates with nobody."""
        return self.compute(sequences) + self.update


class Cluster(NamedTuple):
    """Machines with so many cores and ranks each; `inside` joins the ranks of one, `between` the machines."""

    cores: int
    ranks_per_machine: int
    inside: Network
    between: Network

    def on_one(self, ranks: int) -> int:
        return min(ranks, self.ranks_per_machine)

    def crowd(self, ranks: int) -> float:
        return max(1.0, self.on_one(ranks) / self.cores)

    def half(self, nbytes: float, ranks: int) -> float:
        machines = math.ceil(ranks / self.ranks_per_machine)
        inside = self.crowd(ranks) * self.inside.half(nbytes, self.on_one(ranks))
        return inside + self.between.half(nbytes, machines)

    def exposed(self, seconds: float, backward: float, buckets: int, ranks: int) -> float:
        """The part of the communication that the backward pass does not hide."""
        free = min(1.0, max(0.0, self.cores / self.on_one(ranks) - 1))
        return seconds - free * min(seconds, backward) * (buckets - 1) / buckets


def step(method: str, work: Work, cluster: Cluster, ranks: int, sequences: float, interval: int = 1) -> float:
    """Seconds of a step on so many ranks with so many sequences each. `interval`: DiLoCo's steps in a round."""
    crowd = cluster.crowd(ranks)
    compute, update = crowd * work.compute(sequences), crowd * work.update
    if method == "DiLoCo":
        return compute + update + (crowd * work.outer + 2 * cluster.half(work.nbytes, ranks)) / interval
    half = work.buckets * cluster.half(work.nbytes / work.buckets, ranks)
    numbers = 2 * cluster.half(0, ranks)
    hiding = (crowd * work.backward * work.compute(sequences), work.buckets, ranks)
    if method == "ZeRO-1":
        return compute + update / ranks + cluster.exposed(half, *hiding) + half + 3 * numbers
    return compute + update + cluster.exposed(2 * half, *hiding) + 2 * numbers


def weak(method: str, work: Work, cluster: Cluster, ranks: int, sequences: float, interval: int = 1) -> float:
    """The efficiency with so many sequences on each rank."""
    return work.alone(sequences) / step(method, work, cluster, ranks, sequences, interval)


def strong(method: str, work: Work, cluster: Cluster, ranks: int, batch: float, interval: int = 1) -> float:
    """The efficiency with so many sequences in the whole batch."""
    return work.alone(batch) / (ranks * step(method, work, cluster, ranks, max(1.0, batch / ranks), interval))


# Fits to what was measured


def fit_network(nbytes: Sequence[float], seconds: Sequence[float], ranks: int, way: str = "tree") -> Network:
    """The latency and bandwidth that explain all-reduces of these sizes best, by relative error."""
    latency, byte = relative_line(nbytes, seconds)
    unit = Network(1.0, math.inf, way)
    return Network(latency / (2 * unit.half(0, ranks)), 2 * (ranks - 1) / ranks / byte if byte else math.inf, way)


def relative_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The a and b, at least 0, for which a + b x comes closest to y > 0: least squares of the relative errors."""
    columns = np.stack([np.ones(len(x)), np.asarray(x, float)]) / np.asarray(y, float)

    def best(used: list[int]) -> np.ndarray:
        found = np.zeros(2)
        scale = np.linalg.norm(columns[used], axis=1)
        found[used] = np.linalg.lstsq((columns[used] / scale[:, None]).T, np.ones(len(x)))[0] / scale
        return found

    line = best([0, 1])
    if line.min() < 0:  # then one of the two is 0
        line = min(best([0]), best([1]), key=lambda each: float(((each @ columns - 1) ** 2).sum()))
    return float(line[0]), float(line[1])
