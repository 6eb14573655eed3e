"""Exercise 9 of 10: layer normalization, before every part of the GPT."""

from __future__ import annotations

import minigrad as mg
from minigrad.ops.shape import sum_to  # noqa: F401 - for your backward


def row_mean(x):
    return x.mean(axis=-1, keepdims=True)


class LayerNorm(mg.Function):
    """Every row of x is shifted to mean 0 and scaled to variance 1, then scaled and shifted as the network has learned:

        mu = mean(x)    var = mean((x - mu)^2)    r = 1/sqrt(var + eps)    x_hat = (x - mu) r    y = gamma x_hat + beta

    Shapes: x, y and g (…, C); gamma and beta (C,), or None for 1 and 0. Means run over the last axis.

    Derive the backward.
      1. beta and gamma are the same for all rows, as the bias in exercise 5: what are dL/dbeta and dL/dgamma?
      2. What is g_hat = dL/dx_hat?
      3. Within a row, n = C, x_j reaches x_hat_i = (x_i - mu) r by three ways. Take them one at a time, as if the rest
         were constant:
           directly: what is dx_hat_i/dx_j for i = j? What does this way bring to dL/dx_j?
           through mu: dmu/dx_j = 1/n. What is dx_hat_i/dmu? Add up g_hat_i dx_hat_i/dmu over i, times 1/n: that is a
           mean of something.
           through var: dvar/dx_j = 2 (x_j - mu)/n (why does mu bring nothing here?) and dr/dvar = -r^3/2. What is
           dx_hat_i/dr? Add up over i again. Write (x - mu) as x_hat / r, and there is a second mean of something.
      4. dL/dx is the sum of the three. All contain the factor r.
      5. Shifting a row of x leaves y as it is, and so does scaling it around its mean (but for eps). So over a row the
         sum of dL/dx is 0, and so is the sum of dL/dx times x_hat (but for eps). Does your formula agree?
    """

    @staticmethod
    def forward(ctx, x, gamma, beta, eps):
        xp = mg.get_array_module(x)
        C = x.shape[-1]
        gamma = xp.ones(C, x.dtype) if gamma is None else gamma
        beta = xp.zeros(C, x.dtype) if beta is None else beta
        mu = row_mean(x)  # (…, 1)
        var = row_mean((x - mu) * (x - mu))  # (…, 1)
        r = 1 / xp.sqrt(var + eps)  # (…, 1)
        x_hat = (x - mu) * r  # (…, C)
        ctx.save(x_hat, r, gamma)
        return gamma * x_hat + beta

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved
        # return dL/dx, dL/dgamma, dL/dbeta, None; those of a gamma or beta that is None are not looked at
        raise NotImplementedError("not written yet")
