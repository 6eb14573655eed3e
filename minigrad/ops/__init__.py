"""The differentiable operations: for each one its formula, the derivation of its backward, and the code, side by side.

Everything here works on raw arrays of NumPy or CuPy. What users call is in `minigrad.functional`.
Letters: x, y are input and output; g is dL/dy, the gradient that arrives; dx is dL/dx, the gradient to return.
"""
