"""Exercise 2 of 11: multiplication, element by element."""

from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.ops.shape import sum_to  # noqa: F401 - for your backward; the engine's version of yours


class Multiply(mg.Function):
    """y = a b, element by element, broadcast by NumPy's rules.

    Shapes: a and b have any shapes that broadcast, or one of them is a Python number; y and g have the broadcast shape.

    Derive the backward.
      1. Let a and b have the same shape. If a_i grows by a small h, how much does y_i = a_i b_i grow? So what is
         dy_i/da_i? And dy_i/db_i? Which of the two numbers does each derivative need, its own or the other?
      2. Multiply both by g_i.
      3. An input that was broadcast occurs in many elements of y, as in exercise 1. Which comes first, the product or
         sum_to? (Is the other factor the same in all elements that are summed?)
      4. In x * x both inputs are the same tensor. The engine adds the gradients that you return for a and for b. Is
         the sum 2 x g?
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        ctx.shapes = np.shape(a), np.shape(b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        a_shape, b_shape = ctx.shapes
        # return dL/da, dL/db
        raise NotImplementedError("not written yet")
