"""Exercise 1 of 11: addition. The GPT adds positions to tokens, and every layer's output to the residual stream."""

from __future__ import annotations

import numpy as np

import minigrad as mg


def sum_to(g, shape):
    """Sum `g` over the axes along which an array of `shape` was broadcast. The result has `shape`.

    Questions 3 and 4 below lead to the answer. If nothing was broadcast, return g unchanged.
    """
    raise NotImplementedError("not written yet")


class Add(mg.Function):
    """y = a + b, broadcast by NumPy's rules.

    Shapes: a and b have any shapes that broadcast, or one of them is a Python number; y and g have the broadcast shape.

    Derive the backward. You are given g = dL/dy. Find dL/da and dL/db.
      1. Let a and b have the same shape. If a_i grows by a small h, how much does y_i grow? So what is dy_i/da_i?
      2. The chain rule says dL/da_i = g_i dy_i/da_i. What is dL/da, as an array? And dL/db?
      3. Now let a be (3, 4) and b (4,), so that y and g are (3, 4). In which elements of y does b_0 occur? L depends on
         b_0 through each of them, and their contributions add up. So what is dL/db_0? And dL/db?
      4. Broadcasting adds new axes in front and stretches axes of size 1. Let b be (2, 1) and g be (3, 2, 4). Over
         which axes of g does the sum run? How does the result keep the shape (2, 1), and not (2,)?
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
