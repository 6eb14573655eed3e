"""Exercise 5 of 11: the linear layer. Nearly all of the GPT's arithmetic happens here."""

from __future__ import annotations

import minigrad as mg


class Linear(mg.Function):
    """y = x W^T + b, for every row of x: y_o = sum over i of x_i W_oi, plus b_o.

    Shapes: x (…, I), W (O, I), b (O,) or None, y and g (…, O). In the GPT x is (B, T, I): B T rows.

    Derive the backward. Number the rows x_n from 1 to N, so that x is (N, I), and y and g are (N, O).
      1. In which elements of y does x_ni occur, and with which factor? Write dL/dx_ni as a sum, and the sum as a matrix
         product of g and W with the shape (N, I). Does it need a transpose?
      2. Every row uses W_oi once: y_no contains x_ni W_oi for all n. Write dL/dW_oi as a sum over n, and the sum as a
         matrix product of g and x with the shape (O, I).
      3. b_o is added to every row. What is dL/db_o? (You did this in exercise 1.)
      4. x.reshape(-1, I) turns all leading axes into rows. Reshape g in the same way. Only dx must get the shape of x
         again.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save(x, weight)
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved
        # return dL/dx, dL/dW, dL/db; without a bias the last one is ignored
        raise NotImplementedError("not written yet")
