"""Exercise 3 of 11: GELU, the activation function between the two layers of the GPT's MLP."""

from __future__ import annotations

import math

import minigrad as mg

c = math.sqrt(2 / math.pi)
a = 0.044715


class GELUTanh(mg.Function):
    """GELU in GPT-2's form (Hendrycks and Gimpel, 2016), element by element:

        u = c (x + a x^3)    t = tanh(u)    y = x/2 (1 + t)

    Shapes: x, u, t, y and g all have the same shape.

    Derive the backward.
      1. x occurs twice in y: as the factor x/2, and inside t. Write dy/dx with the product rule; keep dt/dx for now.
      2. dt/dx = dt/du du/dx. The derivative of tanh can be written with its result: what is dt/du in terms of t alone?
      3. What is du/dx?
      4. Combine the results and multiply by g. If you expand du/dx, there are three terms in all.
    """

    @staticmethod
    def forward(ctx, x):
        t = mg.get_array_module(x).tanh(c * (x + a * x * x * x))
        ctx.save(x, t)
        return 0.5 * x * (1 + t)

    @staticmethod
    def backward(ctx, g):
        x, t = ctx.saved
        # return dL/dx
        raise NotImplementedError("not written yet")
