"""Exercise 1 of 10: addition. The GPT adds positions to tokens, and every layer's result to the residual stream."""

from __future__ import annotations

import numpy as np

import minigrad as mg


def sum_to(g, shape):
    """Sum `g` over the axes along which an array of `shape` was broadcast. The result has `shape`.

    This is where questions 3 and 4 below are answered; if nothing was broadcast, g is returned as it is.
    """
    raise NotImplementedError("not written yet")


class Add(mg.Function):
    """y = a + b, broadcast against each other by NumPy's rules.

    Shapes: a and b any two that broadcast, or a Python number for one of them; y and g the shape that comes out.

    Derive the backward. g = dL/dy arrives, and dL/da and dL/db are wanted.
      1. Let a and b have the same shape. If a_i grows by a small h, what does y_i grow by? So what is dy_i/da_i?
      2. The chain rule says dL/da_i = g_i dy_i/da_i. What is dL/da, as an array? And dL/db?
      3. Now let a be (3, 4) and b (4,), so that y and g are (3, 4). In which elements of y does b_0 occur? L depends on
         b_0 through every one of them, and what comes along different ways adds up. So what is dL/db_0? And dL/db?
      4. Broadcasting puts new axes in front, and it stretches axes of size 1. Over which axes of g does the sum run for
         b of shape (2, 1) and g of shape (3, 2, 4)? What makes the result (2, 1) and not (2,)?
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = np.shape(a), np.shape(b)
        return a + b

    @staticmethod
    def backward(ctx, g):
        a_shape, b_shape = ctx.shapes
        # return dL/da, dL/db
        raise NotImplementedError("not written yet")
