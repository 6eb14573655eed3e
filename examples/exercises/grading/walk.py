"""The check of exercise 11: walks over tapes whose nodes notice when they are visited, and with what."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .verdict import Mistake, mistakes_in

FILE = "ex11_walk.py"
LONG, VERY_LONG = 3_000, 1_000_000
READS = 20  # of a node's inputs, and comparisons for each node; two or three reads are enough


class Stop(BaseException):
    """Ends a walk that has made a mistake. The student's code cannot catch it with `except Exception`."""


class Node:
    """A node of a tape. It computes the sum of slope * input over its inputs."""

    __slots__ = ("tape", "name", "uses_left", "parts", "read", "slopes", "grad", "ran")

    def __init__(self, tape: Tape, name: str, inputs: Sequence[Node], slopes: Sequence[float]) -> None:
        self.tape, self.name, self.read, self.slopes = tape, name, tuple(inputs), slopes
        self.grad: Any = None
        self.reset()
        tape.nodes.append(self)

    def reset(self) -> None:
        """Forget what a walk has done."""
        self.ran, self.uses_left = False, 0
        self.parts: list[Any] = []  # the gradients that its uses have sent

    @property
    def inputs(self) -> tuple[Node, ...]:
        self.tape.reads_left -= 1
        if self.tape.reads_left < 0:
            raise Stop(
                "every path to a node is followed, and their number doubles with each diamond; follow each node once"
            )
        return self.read

    def __eq__(self, other: object) -> bool:
        self.tape.comparisons_left -= 1
        if self.tape.comparisons_left < 0:
            raise Stop("nodes are searched for in a list, which compares all of them; use a set or a dictionary")
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return self.name

    def backward(self, g: Any) -> list[Any]:
        if not self.read:
            raise Stop(f"backward of {self} is called, but it is a leaf: add its gradient to its grad")
        if self.ran:
            raise Stop(f"{self} is visited twice; visit it once, when its whole gradient has arrived")
        if self.uses_left:
            raise Stop(
                f"{self} is visited before all its uses: {self.tape.user_of(self)} also uses it, and has not sent "
                f"its gradient yet"
            )
        self.ran = True
        complain(f"{self}.backward is called with", g, self.parts)
        results = []
        for x, slope in zip(self.read, self.slopes, strict=True):
            results.append(g if slope == 1 else lent(slope * g))
            x.uses_left -= 1
            x.parts.append(results[-1])
        self.tape.lent += results if len(self.tape.nodes) < LONG else []
        return results


class Tape:
    """Nodes, the last of which is the root."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.nodes: list[Node] = []

    def leaf(self, name: str = "x") -> Node:
        return Node(self, name, (), ())

    def node(self, name: str, *inputs: Node, slopes: Sequence[float] = ()) -> Node:
        """A new node. Its slopes are all different, so that no gradient is taken for another."""
        n = len(self.nodes)
        return Node(self, name, inputs, slopes or [1 + 0.1 * (n + i * 0.7) for i in range(len(inputs))])

    @property
    def root(self) -> Node:
        return self.nodes[-1]

    def begin(self) -> None:
        """Get ready for a walk."""
        for node in self.nodes:
            node.reset()
        for node in self.nodes:
            for x in node.read:
                x.uses_left += 1
        self.reads_left = self.comparisons_left = READS * sum(1 + len(node.read) for node in self.nodes)
        self.lent: list[Any] = []  # arrays that the student's code may not write to

    def user_of(self, node: Node) -> Node:
        """A node that uses `node` and has not been visited."""
        return next(each for each in self.nodes if not each.ran and any(x is node for x in each.read))


def lent(array: Any) -> Any:
    array.flags.writeable = False
    return array


def complain(what: str, given: Any, parts: list[Any], before: Any = None) -> None:
    """Raise `Stop` unless `given` is the sum of the gradients that have arrived, and of what was there before."""
    if before is None and len(parts) == 1 and given is parts[0]:
        return  # nearly always, in a chain
    right = sum(parts) + (0 if before is None else before)
    if isinstance(given, np.ndarray) and given.shape == right.shape and np.allclose(given, right, rtol=1e-9):
        return
    if not isinstance(given, np.ndarray) or given.shape != right.shape:
        raise Stop(f"{what} {given!r:.60}; expected an array of shape {right.shape}")
    if before is not None and np.allclose(given, sum(parts)):
        raise Stop(f"{what} the new gradient alone; add it to the one that is there already")
    if len(parts) > 1 and np.allclose(given, parts[-1]):
        raise Stop(f"{what} only the last of {len(parts)} gradients; add them, do not overwrite")
    if len(parts) > 1 and np.allclose(given, parts[0]):
        raise Stop(f"{what} only the first of {len(parts)} gradients; add the others to it")
    if len(parts) > 1 and np.allclose(given, right / len(parts)):
        raise Stop(f"{what} the mean of {len(parts)} gradients; it should be the sum")
    if not given.any():
        raise Stop(f"{what} zeros")
    raise Stop(f"{what} {given}; expected {right}, the sum of the {len(parts)} gradients that arrived")


# The tapes, from simple to tricky


def alone() -> Tape:
    tape = Tape("a root that is a leaf")
    tape.leaf()
    return tape


def chain(length: int, slopes: Sequence[float] = ()) -> Tape:
    tape = Tape(f"a chain of {length:,} nodes")
    node = tape.leaf()
    for i in range(1, length):
        node = tape.node(f"n{i}", node, slopes=slopes)
    return tape


def fan_out(uses: int) -> Tape:
    """An inner node and a leaf that are used `uses` times."""
    tape = Tape(f"a node that is used {uses} time{'s' * (uses > 1)}")
    x = tape.leaf()
    a = tape.node("a", x)
    tape.node("root", *(tape.node(f"b{i}", a, x) for i in range(uses)))
    return tape


def reused_leaf() -> Tape:
    tape = Tape("a leaf that is used twice by one node and once by another")
    x = tape.leaf()
    tape.node("root", x, tape.node("a", x, x))
    return tape


def diamond(long_arm_first: bool) -> Tape:
    tape = Tape("a diamond with a short and a long arm")
    a = tape.node("a", tape.leaf())
    b = tape.node("b", a)
    arm = tape.node("d", tape.node("c", b))
    tape.node("root", *((arm, b, a) if long_arm_first else (a, b, arm)))
    return tape


def diamonds(count: int) -> Tape:
    tape = Tape(f"{count} diamonds in a row")
    node = tape.leaf()
    for i in range(count):
        node = tape.node(f"top{i}", tape.node(f"left{i}", node), tape.node(f"right{i}", node), slopes=(0.5, 0.6))
    return tape


def shared_gradient() -> Tape:
    tape = Tape("a node that returns one array for both of its inputs")
    x, y = tape.leaf("x"), tape.leaf("y")
    a, b = tape.node("a", x), tape.node("b", y)
    tape.node("root", tape.node("c", a), tape.node("sum", a, b, slopes=(1, 1)), b)
    return tape


TAPES: list[Callable[[], Tape]] = [
    alone,
    lambda: chain(3),
    reused_leaf,
    *(lambda uses=uses: fan_out(uses) for uses in range(1, 9)),
    lambda: diamond(False),
    lambda: diamond(True),
    shared_gradient,
    lambda: diamonds(40),
    lambda: chain(LONG, slopes=(1,)),
    lambda: chain(VERY_LONG, slopes=(1,)),
]


# The checks


def check_walk(own: ModuleType) -> None:
    """Raise `Mistake` or `NotWritten` unless order and backward are right on every tape."""
    with without_garbage_collection():
        for make in TAPES:
            tape = make()
            run(tape, "order", lambda tape=tape: check_order(tape, own.order(tape.root)))
            run(tape, "backward", lambda tape=tape: check_backward(tape, own.backward))
            if len(tape.nodes) < LONG:
                run(tape, "backward for a second time", lambda tape=tape: check_backward(tape, own.backward))


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """A context in which cycles are not searched for, which a million new nodes would cause again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run(tape: Tape, what: str, check: Callable[[], None]) -> None:
    """Run a check that calls the student's code. Whatever stops it becomes a `Mistake`."""
    tape.begin()
    limit = sys.getrecursionlimit()
    try:
        with mistakes_in(FILE):
            check()
    except Stop as stop:
        raise Mistake(f"{tape.what}: {what}: {stop}") from stop
    except Mistake as mistake:
        if isinstance(mistake.__cause__, RecursionError):
            raise Mistake(recursion(tape, what)) from mistake
        if "read-only" in str(mistake):
            raise Mistake(
                f"{tape.what}: {str(mistake).split(': ValueError')[0]}: adds in place to a gradient that is borrowed: "
                f"another node may hold the same array; make a new one, with a + b"
            ) from mistake
        raise Mistake(f"{tape.what}: {what}: {mistake}") from mistake
    finally:
        changed = sys.getrecursionlimit() != limit
        sys.setrecursionlimit(limit)
    if changed:
        raise Mistake(recursion(tape, what))


def recursion(tape: Tape, what: str) -> str:
    return f"{tape.what}: {what} calls itself, which Python allows only about a thousand times; use a loop"


def check_order(tape: Tape, found: Any) -> None:
    if not isinstance(found, (list, tuple)):
        raise Stop(f"it returns {found!r:.40}; expected a list of nodes")
    if list(map(id, found)) == list(map(id, reversed(tape.nodes))):
        return  # inputs are made before what is computed from them, so the reverse is right
    place = {id(node): i for i, node in enumerate(found)}
    for node in tape.nodes:
        if id(node) not in place:
            raise Stop(f"{node} is missing")
    if len(found) > len(place):
        twice = next(node for i, node in enumerate(found) if place[id(node)] != i)
        raise Stop(f"{twice} is listed more than once")
    if len(place) > len(tape.nodes):
        raise Stop("there is something in the list that root was not computed from")
    early = [(x, node) for node in tape.nodes for x in node.read if place[id(x)] < place[id(node)]]
    if early and len(early) == sum(len(node.read) for node in tape.nodes):
        raise Stop("the order is reversed; root comes first")
    if early:
        x, user = early[0]
        raise Stop(f"{x} comes before {user}, which uses it; a node comes after all its uses")


def check_backward(tape: Tape, backward: Any) -> None:
    g = lent(np.array([1.0, -2.0]))
    tape.root.parts.append(g)
    tape.lent.append(g)
    leaves = [node for node in tape.nodes if not node.read]
    before = {id(leaf): None if leaf.grad is None else leaf.grad.copy() for leaf in leaves}
    result = backward(tape.root, g)
    for node in tape.nodes:
        if node.read and not node.ran:
            raise Stop(f"{node} is not visited{'' if result is None else '; backward returns nothing, it sets x.grad'}")
    for leaf in leaves:
        if leaf.grad is None:
            raise Stop(f"{leaf}.grad is still None")
        complain(f"{leaf}.grad is", leaf.grad, leaf.parts, before[id(leaf)])
        others = [*tape.lent, *(other.grad for other in leaves if other is not leaf)]
        if any(np.shares_memory(leaf.grad, other) for other in others):
            raise Stop(f"{leaf}.grad is an array that others hold too; make a copy")
