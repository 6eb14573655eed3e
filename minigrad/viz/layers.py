"""Where the boxes of a graph go: in layers from the leaves down to the result, with few crossings (Sugiyama, 1981).

An edge that skips layers bends at a point of no width in each of them, so no edge runs behind a box. The edges of one
box share these points: its trunk.
"""

from __future__ import annotations

import itertools

GAP, LAYER, SWEEPS = 22, 102, 12  # between neighbors, between layers; passes up and down

Point = tuple[float, float]


def arrange(widths: list[int], edges: list[tuple[int, int]]) -> tuple[Point, list[Point], list[list[Point]]]:
    """Place boxes of the given widths. Returns the size of the whole, and for each box its middle and its trunk.

    Edges are pairs (start, end) of boxes, with start < end unless start is a leaf: a box without edges to it. An edge
    bends at the points of its start's trunk that lie above its end.
    """
    n = len(widths)
    widths, rank = list(widths), _ranks(n, edges)
    trunks: list[list[int]] = [[i] for i in range(n)]  # each box, and the points below it
    links: set[tuple[int, int]] = set()
    for start, end in edges:
        trunk = trunks[start]
        while rank[trunk[-1]] < rank[end] - 1:
            rank.append(rank[trunk[-1]] + 1)
            trunk.append(len(widths))
            widths.append(0)
        points = trunk[: rank[end] - rank[start]]
        links.update(itertools.pairwise([*points, end]))
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for upper, lower in sorted(links):
        above[lower].append(upper)
        below[upper].append(lower)
    layers = _ordered(_layers(rank, above), above, below)
    x = _positions(layers, widths, above, below)
    left, right = min(x[i] - widths[i] / 2 for i in range(n)), max(x[i] + widths[i] / 2 for i in range(n))
    left, right = min(left, *x), max(right, *x)
    at = [(round(x[i] - left + GAP, 1), (rank[i] + 0.5) * LAYER) for i in range(len(widths))]
    size = round(right - left) + 2 * GAP, len(layers) * LAYER
    return size, at[:n], [[at[i] for i in trunk[1:]] for trunk in trunks]


def _ranks(n: int, edges: list[tuple[int, int]]) -> list[int]:
    """The layer of each box: below all that lead to it, and no further above its first use than it has to be."""
    before: list[list[int]] = [[] for _ in range(n)]
    after: list[list[int]] = [[] for _ in range(n)]
    for start, end in edges:
        before[end].append(start)
        after[start].append(end)
    rank = [0] * n
    for i in range(n):  # the boxes that lead to a box have smaller numbers
        if before[i]:
            rank[i] = 1 + max(rank[j] for j in before[i])
    inner = [sum(bool(before[j]) for j in before[i]) for i in range(n)]
    for i in sorted(range(n), key=lambda i: (not before[i], -i)):  # the last first, leaves at the end
        if after[i] and inner[i] <= 1:
            rank[i] = min(rank[j] for j in after[i]) - 1
    top = min(rank)
    return [layer - top for layer in rank]


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
