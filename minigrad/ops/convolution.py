"""Convolution and pooling: a window of kh × kw places slides over an image.

The output in row p and column q sees through place ij of its window the pixel in row u and column v,

    u = s p + d i - t        v = s q + d j - l

with stride s, dilation d, and t rows and l columns of padding before the image. Stride, dilation and padding are pairs:
each axis has its own. Along an axis of n pixels, with k places and `padding` pixels of padding on both sides together,
there are floor((n + padding - d (k - 1) - 1) / s) + 1 outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..autograd import Function
from ..backend import get_array_module, kind_of
from ..kernels import accelerated, cpu
from .precision import add_up, computed_in_single, kept_where


class Windows(NamedTuple):
    """Where the windows of all outputs lie on an image."""

    image: tuple[int, int]  # pixels: rows, columns
    output: tuple[int, int]  # outputs: rows, columns
    kernel: tuple[int, int]  # places of a window: rows, columns
    stride: tuple[int, int]
    before: tuple[int, int]  # padding above and on the left
    dilation: tuple[int, int] = (1, 1)

    def places(self) -> Iterator[tuple[tuple[int, int], Any, Any]]:
        """For each place (i, j): itself, the outputs that see a pixel through it, and those pixels.

        Outputs and pixels are indices of the last two axes: y[outputs] sees x[pixels]. Both are slices, so that they
        give views; padding is never among the pixels.
        """
        for i, j in itertools.product(*map(range, self.kernel)):
            rows, columns = (self.seen(axis, place) for axis, place in enumerate((i, j)))
            yield (i, j), (..., rows[0], columns[0]), (..., rows[1], columns[1])

    def seen(self, axis: int, place: int) -> tuple[slice, slice]:
        """Along one axis: the outputs p for which s p + offset lies on the image, and these pixels."""
        s, offset = self.stride[axis], self.dilation[axis] * place - self.before[axis]
        first = max(0, -(offset // s))  # -(a // b) is a / b with the other sign, rounded up
        n = max(0, min(self.output[axis] - 1, (self.image[axis] - 1 - offset) // s) + 1 - first)
        start = s * first + offset
        return slice(first, first + n), slice(start, start + s * n, s)


def output_size(image, kernel, stride, padding, dilation=(1, 1)):
    """The number of outputs along both axes; `padding` counts both sides."""
    sizes = zip(image, kernel, stride, padding, dilation, strict=True)
    size = tuple((n + p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
    if min(size) < 1 or min(image) < 1:
        raise ValueError("expected an image that, with its padding, is at least as large as the dilated kernel")
    return size


def check_floating(x):
    if kind_of(x.dtype) in "biu":
        raise TypeError(f"expected floating-point images, not {x.dtype}")


def matrices(x, windows, groups):
    """The matrix X of every image and group, (N, G, K, PQ): see `Conv2d`."""
    *leading, c = x.shape[:-2]
    rows = c // groups * math.prod(windows.kernel)
    return im2col(x, windows).reshape(math.prod(leading), groups, rows, math.prod(windows.output))


def im2col(x, windows):
    """Images (…, H, W) to columns (…, kh, kw, P, Q): the pixel that each output sees through each place, or 0."""
    columns = get_array_module(x).zeros((*x.shape[:-2], *windows.kernel, *windows.output), x.dtype)
    for (i, j), outputs, pixels in windows.places():
        columns[..., i, j, :, :][outputs] = x[pixels]
    return columns


def col2im(columns, windows):
    """Columns (…, kh, kw, P, Q) to images (…, H, W): each pixel is the sum of all columns' elements that `im2col` would
    have copied it to. This is the adjoint of im2col."""
    x = get_array_module(columns).zeros((*columns.shape[:-4], *windows.image), columns.dtype)
    for (i, j), outputs, pixels in windows.places():
        x[pixels] += columns[..., i, j, :, :][outputs]
    return x


@accelerated(cpu=cpu.ImageByImage)
@computed_in_single
class Conv2d(Function):
    """Convolution (LeCun et al., 1989): every output is the sum of a window's pixels, weighted by a kernel.

        y_o,p,q = sum_c,i,j w_oc,i,j x_c,u,v + b_o        with u and v as above; pixels of the padding are 0

    As in all libraries the kernel is not flipped: strictly speaking this is a cross-correlation.
    Shapes: x (…, C, H, W), w (O, C / G, kh, kw), b (O,) or None, y (…, O, P, Q). With G groups, channels and outputs
    are cut into G parts, and each part of the outputs sees only its part of the channels. `padding` has two numbers for
    each axis, before and after the image.

    As a matrix product. `im2col` copies what the window of output pq sees into column pq of a matrix X. Its rows are
    the K = C kh kw places c,i,j of the window. With the kernels as the rows of W (O, K),
        y = W X + b
    for each image, and for each group with its own part of W and X.

    Backward, with g (O, PQ) for dL/dy of an image. A product, so as in `MatMul`:
        dL/db_o = sum over images of sum_p,q g_o,p,q        b_o is added to every output
        dL/dW   = sum over images of g X^T                  all images share W
        dL/dX   = W^T g
    X holds copies of the pixels of x: pixel uv is in every column pq whose window has a place ij with u = s p + d i - t
    and v = s q + d j - l. Its gradient is the sum over its copies. `col2im` adds them up.
    """

    @staticmethod
    def output_shape(x, weight, bias, stride, padding, dilation, groups):
        check_floating(x)
        o, c, *kernel = weight.shape if weight.ndim == 4 else (0, 0)
        if x.ndim < 3 or not kernel or min(weight.shape) < 1 or (bias is not None and bias.shape != (o,)):
            raise ValueError("expected x (…, C, H, W), weight (O, C / groups, kh, kw) and bias (O,) or None")
        if x.shape[-3] != c * groups or o % groups:
            raise ValueError(
                f"expected x with C = {c * groups} channels for C / groups = {c}, and O divisible by groups"
            )
        size = output_size(x.shape[-2:], kernel, stride, tuple(map(sum, padding)), dilation)
        return *x.shape[:-3], o, *size

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups):
        shape = Conv2d.output_shape(x, weight, bias, stride, padding, dilation, groups)
        before = tuple(pair[0] for pair in padding)
        ctx.windows = Windows(x.shape[-2:], shape[-2:], weight.shape[2:], stride, before, dilation)
        ctx.groups = groups
        ctx.save(x, weight)
        W = weight.reshape(groups, len(weight) // groups, -1)  # (G, O/G, K)
        y = (W @ matrices(x, ctx.windows, groups)).reshape(shape)
        if bias is not None:
            y += bias[:, None, None]
        return y

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved
        wants_x, wants_weight, wants_bias, *settings = ctx.needs_input_grad
        W = weight.reshape(ctx.groups, len(weight) // ctx.groups, -1)  # (G, O/G, K)
        images = math.prod(x.shape[:-3])
        g = g.reshape(images, *W.shape[:2], math.prod(ctx.windows.output))  # (N, G, O/G, PQ)
        dx = dweight = None
        if wants_x:
            dX = W.swapaxes(-1, -2) @ g  # (N, G, K, PQ)
            columns = dX.reshape(*x.shape[:-2], *ctx.windows.kernel, *ctx.windows.output)
            dx = col2im(columns, ctx.windows)
        if wants_weight:
            X = matrices(x, ctx.windows, ctx.groups)
            dW = (X @ g.swapaxes(-1, -2)).swapaxes(-1, -2)  # g X^T, in the order that BLAS multiplies faster
            dweight = add_up(dW, axis=(0,)).reshape(weight.shape)  # dW (N, G, O/G, K)
        dbias = add_up(g, axis=(0, 3)).reshape(-1) if wants_bias else None
        return dx, dweight, dbias, *(None for _ in settings)


def pooled_shape(x, kernel, stride, padding):
    """The shape of the result of pooling images (…, H, W), whose padding is the same on both sides."""
    check_floating(x)
    if x.ndim < 2:
        raise ValueError("expected x (…, H, W)")
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError("expected a padding of at most half of the kernel, so that every window sees a pixel")
    return *x.shape[:-2], *output_size(x.shape[-2:], kernel, stride, [2 * p for p in padding])


@accelerated(cpu=cpu.ImageByImage)
@computed_in_single
class MaxPool2d(Function):
    """y_pq = max_ij x_uv: the largest pixel that a window sees; padding is never the largest.

    Shapes: x (…, H, W), y (…, P, Q). Padding is at most half of the kernel, so every window sees a pixel.

    Backward. y_pq is one of the pixels: it has slope 1, and the others 0. So g_pq goes to the pixel that was the
    largest, and a pixel that several windows chose receives the sum. If several pixels of a window are the largest, the
    first in the order of the places ij is chosen, as in PyTorch; of NaNs, which are larger than all numbers, the last.
    """

    @staticmethod
    def output_shape(x, kernel, stride, padding):
        return pooled_shape(x, kernel, stride, padding)

    @staticmethod
    def forward(ctx, x, kernel, stride, padding):
        xp = get_array_module(x)
        shape = pooled_shape(x, kernel, stride, padding)
        ctx.windows = Windows(x.shape[-2:], shape[-2:], kernel, stride, padding)
        ctx.shape = x.shape
        y = xp.zeros(shape, x.dtype)
        chosen = xp.full(shape, -1, "int32")  # the number of the place of the largest pixel so far; -1 before the first
        for n, (_, outputs, pixels) in enumerate(ctx.windows.places()):
            seen, largest, at = x[pixels], y[outputs], chosen[outputs]
            better = (seen > largest) | (seen != seen) | (at < 0)
            y[outputs] = xp.where(better, seen, largest)
            chosen[outputs] = xp.where(better, n, at)
        ctx.save(chosen)
        return y

    @staticmethod
    def backward(ctx, g):
        (chosen,) = ctx.saved
        dx = get_array_module(g).zeros(ctx.shape, g.dtype)
        for n, (_, outputs, pixels) in enumerate(ctx.windows.places()):
            dx[pixels] += kept_where(chosen[outputs] == n, g[outputs])
        return dx, None, None, None


@accelerated(cpu=cpu.ImageByImage)
@computed_in_single
class AvgPool2d(Function):
    """y_pq = sum_ij x_uv / n_pq: the mean of what a window sees.

    n_pq is kh kw, which counts padding as zeros, or without `count_padding` the number of pixels in the window.
    Shapes: x (…, H, W), y (…, P, Q).

    Backward. x_uv is in every y_pq whose window covers it, with the factor 1 / n_pq, so
        dx_uv = sum over windows of g_pq / n_pq        over those that cover uv
    """

    @staticmethod
    def output_shape(x, kernel, stride, padding, count_padding):
        return pooled_shape(x, kernel, stride, padding)

    @staticmethod
    def forward(ctx, x, kernel, stride, padding, count_padding):
        xp = get_array_module(x)
        shape = pooled_shape(x, kernel, stride, padding)
        ctx.windows = Windows(x.shape[-2:], shape[-2:], kernel, stride, padding)
        ctx.shape = x.shape
        y = xp.zeros(shape, x.dtype)
        n = xp.full(shape[-2:], math.prod(kernel) if count_padding else 0, x.dtype)  # (P, Q)
        for _, outputs, pixels in ctx.windows.places():
            y[outputs] += x[pixels]
            n[outputs] += 0 if count_padding else 1
        ctx.save(n)
        y /= n
        return y

    @staticmethod
    def backward(ctx, g):
        (n,) = ctx.saved
        share = g / n
        dx = get_array_module(g).zeros(ctx.shape, g.dtype)
        for _, outputs, pixels in ctx.windows.places():
            dx[pixels] += share[outputs]
        return dx, None, None, None, None
