"""Elementwise operations. Two inputs broadcast by NumPy's rules; either may be a Python number.

The gradient of an input that was broadcast is summed back to the shape of that input (`sum_to`).
"""

from __future__ import annotations

from ..autograd import Function
from ..backend import get_array_module, is_array
from .precision import choose, computed_in_single, kept_where
from .shape import sum_to


def shape_of(x):
    return getattr(x, "shape", ())


class Add(Function):
    """y = a + b.    dy/da = 1, dy/db = 1: both inputs receive g."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = shape_of(a), shape_of(b)
        return a + b

    @staticmethod
    def backward(ctx, g):
        a_shape, b_shape = ctx.shapes
        wants_a, wants_b = ctx.needs_input_grad
        return sum_to(g, a_shape) if wants_a else None, sum_to(g, b_shape) if wants_b else None


class Subtract(Function):
    """y = a - b.    dy/da = 1, dy/db = -1."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = shape_of(a), shape_of(b)
        return a - b

    @staticmethod
    def backward(ctx, g):
        a_shape, b_shape = ctx.shapes
        wants_a, wants_b = ctx.needs_input_grad
        return sum_to(g, a_shape) if wants_a else None, sum_to(-g, b_shape) if wants_b else None


class Multiply(Function):
    """y = a b.    dy/da = b, dy/db = a."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        wants_a, wants_b = ctx.needs_input_grad
        return sum_to(g * b, shape_of(a)) if wants_a else None, sum_to(g * a, shape_of(b)) if wants_b else None


class Divide(Function):
    """y = a / b.    dy/da = 1/b, dy/db = -a/b^2 = -y/b."""

    @staticmethod
    def forward(ctx, a, b):
        y = a / b
        ctx.save(b, y)
        ctx.shapes = shape_of(a), shape_of(b)
        return y

    @staticmethod
    def backward(ctx, g):
        b, y = ctx.saved
        a_shape, b_shape = ctx.shapes
        wants_a, wants_b = ctx.needs_input_grad
        da = g / b  # also the first factor of db
        return sum_to(da, a_shape) if wants_a else None, sum_to(-da * y, b_shape) if wants_b else None


class Power(Function):
    """y = a^b.

        dy/da = b a^(b-1)      and 0 where b = 0, even at a = 0, where a^(b-1) = 1/0 is not finite
        dy/db = a^b ln(a)      since a^b = exp(b ln a)

    At a = 0 the second is 0 where b >= 0 (0^b stays 0 as b changes), although ln(0) is not finite. For a < 0 it is NaN,
    since a^b is not defined for all values near b. Small integer powers are computed as products, because NumPy's power
    is many times slower.
    """

    @staticmethod
    def forward(ctx, a, b):
        y = small_power(a, b)
        y = y.copy() if y is a and is_array(a) else y
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx, g):
        a, b, y = ctx.saved
        xp = get_array_module(g)
        wants_a, wants_b = ctx.needs_input_grad
        da = db = None
        if wants_a:
            if isinstance(b, (int, float)):
                b_1 = b - 1 if b else 0
            else:
                b_1 = xp.where(b == 0, 0, b - 1)
            slope = b * small_power(a, b_1)
            da = sum_to((g * slope).astype(g.dtype, copy=False), shape_of(a))
        if wants_b:
            is_zero = (xp.asarray(a) == 0) & (b >= 0)
            base = xp.where(is_zero, 1, a).astype(g.dtype, copy=False)  # ln(1) = 0 replaces 0^b ln(0)
            db = sum_to(g * y * xp.log(base), shape_of(b))
        return da, db


def small_power(a, b):
    """a ** b, as a product if b is the number 0, 1, 2 or 3. A float power of an integer array is a float array."""
    if isinstance(b, int) or (isinstance(b, float) and not (is_array(a) and a.dtype.kind in "biu")):
        if b == 0:
            return get_array_module(a).ones_like(a)
        if b == 1:
            return a
        if b == 2:
            return a * a
        if b == 3:
            return a * a * a
    return a**b


class Negative(Function):
    """y = -x.    dy/dx = -1."""

    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    def backward(ctx, g):
        return -g


class Exp(Function):
    """y = e^x.    dy/dx = e^x = y: backward needs only the output."""

    @staticmethod
    def forward(ctx, x):
        y = get_array_module(x).exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return g * y


class Log(Function):
    """y = ln x.    dy/dx = 1/x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return get_array_module(x).log(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return g / x


class Sqrt(Function):
    """y = x^(1/2).    dy/dx = 1/2 x^(-1/2) = 1/(2 y)."""

    @staticmethod
    def forward(ctx, x):
        y = get_array_module(x).sqrt(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return g / (2 * y)


class Absolute(Function):
    """y = |x|.    dy/dx = sign(x), and 0 at the kink x = 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return abs(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return g * get_array_module(x).sign(x)


class Maximum(Function):
    """y = max(a, b), element by element.    g goes to the larger input; where both are equal, each gets half."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return get_array_module(a, b).maximum(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        return winner_takes(ctx, g, a, b, a > b)


class Minimum(Function):
    """y = min(a, b), element by element.    g goes to the smaller input; where both are equal, each gets half."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return get_array_module(a, b).minimum(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        return winner_takes(ctx, g, a, b, a < b)


def winner_takes(ctx, g, a, b, a_wins):
    """The gradients of a and b: a gets g where it wins, half of g at a tie, and b the rest. NaN where a or b is NaN."""
    xp = get_array_module(g)
    a_share = xp.where(a == b, 0.5, a_wins)
    a_share = xp.where((a != a) | (b != b), xp.nan, a_share).astype(g.dtype)
    wants_a, wants_b = ctx.needs_input_grad
    da = sum_to(kept_where(a_share > 0, g) * a_share, shape_of(a)) if wants_a else None
    db = sum_to(kept_where(a_share < 1, g) * (1 - a_share), shape_of(b)) if wants_b else None
    return da, db


class Where(Function):
    """y = a where mask is true, b elsewhere.    Each element of g goes to the input that its element of y came from."""

    @staticmethod
    def forward(ctx, mask, a, b):
        ctx.save(mask)
        ctx.shapes = shape_of(a), shape_of(b)
        return choose(mask, a, b)

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved
        a_shape, b_shape = ctx.shapes
        return None, sum_to(kept_where(mask, g), a_shape), sum_to(kept_where(~mask, g), b_shape)


@computed_in_single
class Clip(Function):
    """y = x, limited to the range from `low` to `high` (None: no bound).    dy/dx = 1 within the bounds, 0 outside."""

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save(x)
        ctx.bounds = low, high
        return get_array_module(x).clip(x, low, high)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        low, high = ctx.bounds
        inside = get_array_module(x).ones(x.shape, bool)
        if low is not None:
            inside &= x >= low
        if high is not None:
            inside &= x <= high
        return kept_where(inside, g)
