"""Calling a kernel or an operation as the tape does, on NumPy arrays."""

import ml_dtypes
import numpy as np

from minigrad.kernels import cuda

DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PRECISION = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}  # of a result that is rounded once
RNG = np.random.default_rng(0)


class Call:
    """What the tape gives to forward and backward."""

    def __init__(self, *needs_input_grad):
        self.needs_input_grad = needs_input_grad
        self.retained = False

    def save(self, *arrays):
        self.saved = arrays


def run(implementation, upstream, *arguments):
    """The value, and the gradients, of one call."""
    call = Call(*(isinstance(a, np.ndarray) and a.dtype.kind in "fV" for a in arguments))
    y = implementation.forward(call, *arguments)
    gradients = implementation.backward(call, upstream)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [np.asarray(y), *(g for g in gradients if g is not None)]


def numbers(dtype, *shape):
    return RNG.standard_normal(shape).astype(DTYPES[dtype])


def assert_same(machine, kernel, operation, dtype, upstream, *arguments, sums=1):
    """The kernel agrees with the operation, which computes in float64 on the same, rounded, numbers.

    `sums`: of so many numbers the gradients of parameters are sums, which float32 adds up one by one.
    """
    assert kernel.fits(*arguments)
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind in "fV" else a for a in arguments]
    expected = run(operation, upstream.astype(np.float64), *wide)
    tolerance = 2 * PRECISION[dtype] + 2e-6 * np.sqrt(sums)
    got = []
    for order in (0, 1):
        with machine(order):
            got.append(run(kernel, upstream, *(a.copy() if isinstance(a, np.ndarray) else a for a in arguments)))
    for ours, again, theirs in zip(*got, expected, strict=True):
        np.testing.assert_array_equal(ours, again)
        assert str(ours.dtype) == dtype or (kernel is cuda.CrossEntropy and ours is got[0][0])
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-6)
        np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=tolerance, atol=tolerance * scale)
