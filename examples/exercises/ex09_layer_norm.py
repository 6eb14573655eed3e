"""Exercise 9 of 11: layer normalization, which comes before every attention and every MLP of the GPT."""

from __future__ import annotations

import minigrad as mg
from minigrad.ops.shape import sum_to  # noqa: F401 - for your backward


def row_mean(x):
    return x.mean(axis=-1, keepdims=True)


class LayerNorm(mg.Function):
    """Every row of x is shifted to mean 0 and scaled to variance 1, then scaled and shifted by learned parameters:

        mu = mean(x)    var = mean((x - mu)^2)    r = 1/sqrt(var + eps)    x_hat = (x - mu) r    y = gamma x_hat + beta

    Shapes: x, y and g (…, C); gamma and beta (C,), or None for 1 and 0. Means run over the last axis.

    Derive the backward.
      1. beta and gamma are the same for all rows, as the bias in exercise 5: what are dL/dbeta and dL/dgamma?
      2. What is g_hat = dL/dx_hat?
      3. Within a row of n = C elements, x_j affects x_hat_i = (x_i - mu) r in three ways. Take them one at a time, and
         treat the rest as constant:
           directly: what is dx_hat_i/dx_j for i = j? What does this contribute to dL/dx_j?
           through mu: dmu/dx_j = 1/n. What is dx_hat_i/dmu? Sum g_hat_i dx_hat_i/dmu over i and multiply by 1/n: this
           is a mean of something.
           through var: dvar/dx_j = 2 (x_j - mu)/n (why does mu contribute nothing here?) and dr/dvar = -r^3/2. What is
           dx_hat_i/dr? Sum over i again. Write (x - mu) as x_hat / r to find a second mean of something.
      4. dL/dx is the sum of the three. All contain the factor r.
      5. Shifting a row of x does not change y, and neither does scaling it around its mean (except for eps). So the sum
         of dL/dx over a row is 0, and so is the sum of dL/dx times x_hat (except for eps). Does your formula agree?
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
        # return dL/dx, dL/dgamma, dL/dbeta, None; where gamma or beta is None, its gradient is ignored
        raise NotImplementedError("not written yet")
