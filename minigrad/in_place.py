"""Writes in place are noticed: an array that was written to after it was saved would give a wrong gradient.

A clock ticks at every write, and each written array remembers the time. A node of the tape remembers the time at which
it saved its arrays, and its backward refuses any array written to since.
"""

from __future__ import annotations

from .backend import Array, is_array

clock = 0  # how many writes there have been

# When each array was last written to. The keys are ids of the arrays that own the memory. An id that is used again
# belongs to a younger array, which is saved after the time that the old entry records, so the entry does no harm.
_written_at: dict[int, int] = {}


def owner_of(array: Array) -> Array:
    """The array whose memory `array` is a view of. An array that is no view owns its own."""
    while (base := array.base) is not None and is_array(base):
        array = base
    return array


def mark_written(array: Array) -> None:
    """Tell the tape that `array` was changed in place. Every in-place function of minigrad calls this."""
    global clock
    clock += 1
    _written_at[id(owner_of(array))] = clock


def first_written_since(time: int, arrays: tuple[Array, ...]) -> Array | None:
    """The first of the arrays that was written to after `time`, or None. Anything that is no array is ignored."""
    if clock > time:
        for array in arrays:
            if is_array(array) and _written_at.get(id(owner_of(array)), 0) > time:
                return array
    return None
