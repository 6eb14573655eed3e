"""Parameters, and steps with random gradients, for the tests of optimizers."""

import numpy as np

from minigrad import nn


def parameters(*shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def train(optimizer, steps, seed=0):
    """Steps with gradients drawn from a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for p in optimizer.params:
            p.grad = rng.standard_normal(p.shape).astype(p.dtype)
        optimizer.step()
