"""Exercise 6 of 11: the embedding, which turns the GPT's tokens into vectors."""

from __future__ import annotations

import numpy as np  # noqa: F401 - for your backward

import minigrad as mg
from minigrad.ops.embedding import check_ids


class Embedding(mg.Function):
    """y = W[ids]: for every id, the row of the table W with that number.

    Shapes: ids (…) integers, W (V, C), y and g (…, C).

    Derive the backward. Ids are integers and have no gradient. Find dL/dW.
      1. Row v of W is copied to every place where ids == v. With which factor? So what is dL/dW_v, in terms of the rows
         of g? What is it for a v that is not among the ids?
      2. Start with dW, an array of zeros like W. Let ids be [2, 0, 2]. What is in row 2 after dW[ids] = g? And after
         dW[ids] += g, for which NumPy reads the three rows, adds g, and writes them back? Which rows of g are lost?
      3. np.add.at(dW, ids, g) adds one row after the other. (A loop would too, but slowly: there are many tokens.)
    """

    @staticmethod
    def forward(ctx, ids, weight):
        check_ids("ids", ids, weight.shape[0])
        ctx.save(ids)
        ctx.shape = weight.shape
        return weight[ids]

    @staticmethod
    def backward(ctx, g):
        (ids,) = ctx.saved
        # return None, dL/dW, which has the shape ctx.shape and the dtype of g
        raise NotImplementedError("not written yet")
