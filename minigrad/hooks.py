"""Functions that the tape calls when a leaf's gradient is complete: `Tensor.register_post_accumulate_grad_hook`.

A leaf that is used several times gets several gradients in one backward pass, and its `grad` is complete only after the
last. So a pass first counts the uses of each leaf that has a hook, and counts down as the gradients arrive. If there
are no hooks at all, nothing is counted.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .node import Context, Variable

Hook = Callable[[Any], object]

# The leaves that have hooks, by their ids. The hooks themselves are in `leaf.hooks`, so they go when the leaf goes.
_hooked: dict[int, weakref.ref[Variable]] = {}


class HookHandle:
    """What registering a hook returns: `remove()` it, or use it in a `with` block, at whose end it is removed."""

    def __init__(self, leaf: Variable, hook: Hook) -> None:
        key = id(leaf)
        if key not in _hooked:
            leaf.hooks = {}
            _hooked[key] = weakref.ref(leaf, lambda _: _hooked.pop(key, None))
        self.leaf = _hooked[key]
        leaf.hooks[self] = hook

    def remove(self) -> None:
        """Do not call the hook again. A second `remove` changes nothing."""
        leaf = self.leaf()
        if leaf is not None and leaf.hooks.pop(self, None) is not None and not leaf.hooks:
            del _hooked[id(leaf)]

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def forget_hooks() -> None:
    """Call no hook any more. For a copy of a process, such as a worker of `DataParallel`."""
    _hooked.clear()


class Passes(threading.local):
    """The backward passes that run in this thread. Each was called by an operation's backward in the one before it."""

    def __init__(self) -> None:
        self.running: list[Waiting] = []


passes = Passes()


def any_hooks() -> bool:
    """Has any leaf a hook?"""
    return bool(_hooked)


def waiting_leaves(nodes: Iterable[Context]) -> contextlib.AbstractContextManager[Waiting | None]:
    """For the length of a backward pass over these nodes: `Waiting`, or None if there are no hooks at all."""
    return Waiting(nodes) if any_hooks() else contextlib.nullcontext()


def complete(leaf: Variable, outer: list[Waiting] | None = None) -> None:
    """A pass has sent a leaf its last gradient: call its hooks, unless one of the `outer` passes has more for it."""
    for waiting in reversed(passes.running if outer is None else outer):
        if waiting.uses[leaf]:
            waiting.changed.add(leaf)
            return
    if id(leaf) in _hooked:
        for hook in [*leaf.hooks.values()]:
            hook(leaf)


class Waiting:
    """The leaves with hooks that one backward pass reaches, and from how many uses each still waits for a gradient.

    An operation may go backward through a tape of its own, as `nn.checkpoint` does. If such an inner pass completes a
    leaf that an outer pass still waits for, the hooks are called by the outer pass.
    """

    def __init__(self, nodes: Iterable[Context]) -> None:
        leaves = (leaf for node in nodes for leaf in node.parents if not isinstance(leaf, tuple))
        self.uses = Counter(leaf for leaf in leaves if id(leaf) in _hooked)
        self.changed: set[Variable] = set()  # the leaves whose `grad` this pass, or one inside it, has added to

    def __enter__(self) -> Waiting:
        passes.running.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        passes.running.pop()

    def arrived(self, leaf: Variable, has_gradient: bool) -> None:
        """One use of a leaf has sent its gradient, or has none to send. After the last, call the hooks."""
        if leaf not in self.uses:
            return
        if has_gradient:
            self.changed.add(leaf)
        self.uses[leaf] -= 1
        if self.uses[leaf] or leaf not in self.changed:
            return
        complete(leaf, passes.running[:-1])
