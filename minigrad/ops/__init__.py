"""The differentiable operations. Each shows its formula, the derivation of its backward, and the code, side by side.

Everything here works on raw NumPy or CuPy arrays. Users call the functions in `minigrad.functional`.
Letters: x is the input, y the output; g is dL/dy, the gradient that arrives; dx is dL/dx, the gradient to return.
"""
