"""Adding up the gradients that meet at one place."""

from __future__ import annotations

import threading
from typing import Any

from .backend import Array, as_array
from .in_place import mark_written

_adding = threading.Lock()  # the backward passes of several threads may meet at one leaf


class Accumulator:
    """The gradients on their way through one backward pass.

    Where several gradients meet, the first to arrive is borrowed, the second makes a new array, and later ones are
    added to that array in place. So no array that somebody else holds is ever written to: `Add.backward` returns one
    array for both of its inputs, for example.
    The `grad` of a leaf is always an array of its own, never a view or an array that the tape or the user holds.

    A place is a leaf, or an output of a node: (node, number of the output).
    """

    def __init__(self) -> None:
        self.arrived: dict[Any, Array] = {}
        self.owned: set[Any] = set()  # the outputs whose array was made here

    def add_to_output(self, output: tuple[Any, int], gradient: Array) -> None:
        arrived = self.arrived
        if output not in arrived:
            arrived[output] = gradient
        elif output not in self.owned:
            arrived[output] = as_array(arrived[output] + gradient)
            self.owned.add(output)
        else:
            arrived[output] += gradient

    @staticmethod
    def add_to_leaf(leaf: Any, gradient: Array, is_new: bool = False) -> None:
        """Add to `leaf.grad`. With `is_new`, nobody else holds the gradient's array, so the leaf takes it uncopied."""
        with _adding:
            if leaf.grad is None:
                leaf.grad = gradient if is_new and gradient.base is None else gradient.copy()
            else:
                leaf.grad += gradient
                mark_written(leaf.grad)
