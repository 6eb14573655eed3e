"""Functions that the tape calls when a leaf's gradient is complete: `Tensor.register_post_accumulate_grad_hook`.

A leaf that is used several times gets several gradients in one backward pass, and its `grad` is complete only after the
last. So a pass first counts the uses of each leaf that has a hook, and counts down as the gradients arrive. If there are
no hooks at all, nothing is counted.
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

# The hooks of each leaf, by the leaf's id. They are not part of the tensor, so a copy of a tensor has no hooks.
_hooks: dict[int, dict[HookHandle, Hook]] = {}


class HookHandle:
    """What registering a hook returns: `remove()` it, or use it in a `with` block, at whose end it is removed."""

    def __init__(self, leaf: Variable, hook: Hook) -> None:
        self.key = id(leaf)
        if self.key not in _hooks:
            _hooks[self.key] = {}
            weakref.finalize(leaf, _hooks.pop, self.key, None).atexit = False
        _hooks[self.key][self] = hook

    def remove(self) -> None:
        """Do not call the hook again. A second `remove` changes nothing."""
        hooks = _hooks.get(self.key, {})
        hooks.pop(self, None)
        if not hooks:
            _hooks.pop(self.key, None)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class Passes(threading.local):
    """The backward passes that run in this thread. Each was called by an operation's backward in the one before it."""

    def __init__(self) -> None:
        self.running: list[Waiting] = []


passes = Passes()


def waiting_leaves(nodes: Iterable[Context]) -> contextlib.AbstractContextManager[Waiting | None]:
    """For the length of a backward pass over these nodes: `Waiting`, or None if there are no hooks at all."""
    return Waiting(nodes) if _hooks else contextlib.nullcontext()


def complete(leaf: Variable, outer: list[Waiting] | None = None) -> None:
    """A pass has sent a leaf its last gradient: call its hooks, unless one of the `outer` passes has more for it."""
    for waiting in reversed(passes.running if outer is None else outer):
        if waiting.uses[leaf]:
            waiting.changed.add(leaf)
            return
    for hook in [*_hooks.get(id(leaf), {}).values()]:
        hook(leaf)


class Waiting:
    """The leaves with hooks that one backward pass reaches, and from how many uses each still waits for a gradient.

    An operation may go backward through a tape of its own, as `nn.checkpoint` does. If such an inner pass completes a
    leaf that an outer pass still waits for, the hooks are called by the outer pass.
    """

    def __init__(self, nodes: Iterable[Context]) -> None:
        leaves = (leaf for node in nodes for leaf in node.parents if not isinstance(leaf, tuple))
        self.uses = Counter(leaf for leaf in leaves if id(leaf) in _hooks)
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
