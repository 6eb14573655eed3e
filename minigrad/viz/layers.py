"""Where the boxes of a graph go: in layers from the leaves down to the result, with few crossings (Sugiyama, 1981).

An edge that skips layers bends at a point of no width in each of them, so no edge runs behind a box.
"""

from __future__ import annotations

import itertools

GAP, LAYER, SWEEPS = 22, 102, 12  # between neighbors, between layers; passes up and down

Point = tuple[float, float]


def arrange(widths: list[int], edges: list[tuple[int, int]]) -> tuple[Point, list[Point], list[list[Point]]]:
    """Place boxes of the given widths. Returns the size of the whole, the middle of each box, the bends of each edge.

    Edges are pairs (start, end) of boxes, with start < end unless start is a leaf: a box without edges to it.
    """
    n = len(widths)
    widths, rank = list(widths), _ranks(n, edges)
    chains: list[list[int]] = []  # the points of each edge, with its boxes
    for start, end in edges:
        points = range(len(widths), len(widths) + rank[end] - rank[start] - 1)
        widths += [0] * len(points)
        rank += range(rank[start] + 1, rank[end])
        chains.append([start, *points, end])
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for chain in chains:
        for upper, lower in itertools.pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    layers = _ordered(_layers(rank, above), above, below)
    x = _positions(layers, widths, above, below)
    left = min(x[i] - widths[i] / 2 for layer in layers for i in layer)
    right = max(x[i] + widths[i] / 2 for layer in layers for i in layer)
    at = [(round(x[i] - left + GAP, 1), round((rank[i] + 0.5) * LAYER, 1)) for i in range(len(widths))]
    bends = [[at[i] for i in chain[1:-1]] for chain in chains]
    return (round(right - left) + 2 * GAP, len(layers) * LAYER), at[:n], bends


def _ranks(n: int, edges: list[tuple[int, int]]) -> list[int]:
    """The layer of each box: below all boxes that lead to it; leaves just above their first use."""
    before: list[list[int]] = [[] for _ in range(n)]
    for start, end in edges:
        before[end].append(start)
    rank = [0] * n
    for i in range(n):  # the boxes that lead to a box have smaller numbers
        if before[i]:
            rank[i] = 1 + max(rank[j] for j in before[i])
    for leaf in (i for i in range(n) if not before[i]):
        rank[leaf] = min((rank[end] for start, end in edges if start == leaf), default=1) - 1
    return rank


def _layers(rank: list[int], above: list[list[int]]) -> list[list[int]]:
    """The boxes and points of each layer, in the order in which a walk from the result finds them."""
    layers: list[list[int]] = [[] for _ in range(max(rank) + 1)]
    waiting, seen = [i for i in range(len(rank)) if rank[i] == len(layers) - 1], set()
    while waiting:
        i = waiting.pop()
        if i not in seen:
            seen.add(i)
            layers[rank[i]].append(i)
            waiting += reversed(above[i])
    return layers


def _ordered(layers: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """Sort each layer by the mean place of its neighbors, down and up; the order with the fewest crossings wins."""
    best, fewest = layers, _crossings(layers, above)
    for sweep in range(SWEEPS):
        neighbors = below if sweep % 2 else above
        layers = layers[::-1] if sweep % 2 else list(layers)
        for k in range(1, len(layers)):
            fixed = layers[k - 1]
            place = {i: n for n, i in enumerate(fixed)}
            own = {i: n * len(fixed) / len(layers[k]) for n, i in enumerate(layers[k])}
            mean = {i: _mean([place[j] for j in neighbors[i]], own[i]) for i in layers[k]}
            layers[k] = sorted(layers[k], key=mean.__getitem__)
        layers = layers[::-1] if sweep % 2 else layers
        if (crossings := _crossings(layers, above)) < fewest:
            best, fewest = layers, crossings
    return best


def _crossings(layers: list[list[int]], above: list[list[int]]) -> int:
    total = 0
    for upper, lower in itertools.pairwise(layers):
        place = {i: n for n, i in enumerate(upper)}
        ends = [n for i in lower for n in sorted(place[j] for j in above[i])]
        total += sum(a > b for a, b in itertools.combinations(ends, 2))
    return total


def _positions(
    layers: list[list[int]], widths: list[int], above: list[list[int]], below: list[list[int]]
) -> list[float]:
    """x of every box: near the mean of its neighbors, in the order of its layer, without overlap.

    Leaves give way to the others, so that chains of operations are straight.
    """
    x = [0.0] * len(widths)
    for sweep in range(SWEEPS):
        near, far = (below, above) if sweep % 2 else (above, below)
        for layer in reversed(layers) if sweep % 2 else layers:
            inner = [[j for j in near[i] if above[j]] or near[i] or far[i] for i in layer]
            wanted = [_mean([x[j] for j in neighbors], x[i]) for i, neighbors in zip(layer, inner, strict=True)]
            weights = [1.0 if above[i] else 0.05 for i in layer]
            for i, place in zip(layer, _apart(wanted, weights, [widths[i] for i in layer]), strict=True):
                x[i] = place
    return x


def _apart(wanted: list[float], weights: list[float], widths: list[int]) -> list[float]:
    """The places nearest to `wanted` (weighted least squares) at which boxes of these widths do not overlap.

    With the room that the boxes to the left need taken off, places must only not decrease: neighbors that would are
    pooled at their mean.
    """
    room = [0.0, *itertools.accumulate((a + b) / 2 + GAP for a, b in itertools.pairwise(widths))]
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for place, weight, offset in zip(wanted, weights, room, strict=True):
        mean, count = place - offset, 1
        while pools and pools[-1][0] > mean:
            other, heavy, several = pools.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + several
        pools.append((mean, weight, count))
    level = [mean for mean, _, count in pools for _ in range(count)]
    return [place + offset for place, offset in zip(level, room, strict=True)]


def _mean(numbers: list[float], otherwise: float = 0.0) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise
