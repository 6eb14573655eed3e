"""Operations that move elements without computing on them. Their backward moves the gradient the opposite way.

Axes are counted from 0 here; `minigrad.functional` converts negative axes.
"""

from __future__ import annotations

import itertools

from ..autograd import Function
from ..backend import device_of, get_array_module, to_device
from ..kernels import accelerated
from ..kernels.split import Split as SplitKernel
from .precision import add_up


def sum_to(g, shape):
    """Sum `g` over the axes along which an array of `shape` was broadcast: the adjoint of broadcasting.

    An element that broadcasting copied n times receives n gradients, and they add up. Returns `g` itself if no axis
    was broadcast.
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1)
    return add_up(g, axes, keepdims=True).reshape(shape)


class BroadcastTo(Function):
    """y = x, repeated along new axes and axes of size 1 until it has the given shape.

    Backward. Each element of x is copied to many places of y, so its gradient is the sum of g over those places.
    """

    @staticmethod
    def forward(ctx, x, shape):
        ctx.shape = x.shape
        return get_array_module(x).broadcast_to(x, shape)

    @staticmethod
    def backward(ctx, g):
        return sum_to(g, ctx.shape)


class Reshape(Function):
    """The same elements, in the same order (row by row), in another shape. Backward: back to the shape of x."""

    @staticmethod
    def forward(ctx, x, shape):
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx, g):
        return g.reshape(ctx.shape)


class Transpose(Function):
    """Axes in a new order: axis i of y is axis axes[i] of x. Backward: the inverse permutation."""

    @staticmethod
    def forward(ctx, x, axes):
        ctx.axes = axes
        return x.transpose(axes)

    @staticmethod
    def backward(ctx, g):
        inverse = sorted(range(len(ctx.axes)), key=ctx.axes.__getitem__)
        return g.transpose(inverse)


class Concatenate(Function):
    """Arrays joined end to end along `axis`. Backward: each array gets its own section of g."""

    @staticmethod
    def forward(ctx, axis, *arrays):
        ctx.axis = axis
        ctx.sizes = [x.shape[axis] for x in arrays]
        return get_array_module(*arrays).concatenate(arrays, axis=axis)

    @staticmethod
    def backward(ctx, g):
        return None, *sections(g, ctx.sizes, ctx.axis)


@accelerated(cpu=SplitKernel, cuda=SplitKernel)
class Split(Function):
    """x split along `axis` into sections of the given sizes. Backward: the gradients are joined end to end again."""

    @staticmethod
    def forward(ctx, x, sizes, axis):
        ctx.axis = axis
        return tuple(sections(x, sizes, axis))

    @staticmethod
    def backward(ctx, *gs):
        return get_array_module(*gs).concatenate(gs, axis=ctx.axis)


def sections(x, sizes, axis):
    """Views of consecutive sections of x along `axis`."""
    if any(size < 0 for size in sizes):
        raise ValueError(f"expected sizes of at least 0, not {list(sizes)}")
    if sum(sizes) != x.shape[axis]:
        raise ValueError(f"expected sizes that add up to {x.shape[axis]}, the size of axis {axis}, not {list(sizes)}")
    before = (slice(None),) * axis
    ends = itertools.accumulate(sizes, initial=0)
    return [x[before + (slice(start, end),)] for start, end in itertools.pairwise(ends)]


class Astype(Function):
    """The same values in another floating dtype. Backward: the gradient in the dtype of x."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = x.dtype
        return x.astype(dtype)

    @staticmethod
    def backward(ctx, g):
        return g.astype(ctx.dtype)


class ToDevice(Function):
    """The same values on another device. Backward: the gradient on the device of x."""

    @staticmethod
    def forward(ctx, x, device):
        ctx.device = device_of(x)
        return to_device(x, device)

    @staticmethod
    def backward(ctx, g):
        return to_device(g, ctx.device)
