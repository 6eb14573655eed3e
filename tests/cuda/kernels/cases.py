"""Every operation that has a CUDA kernel, as a training step calls it, and how far it is from its reference.

`cases(shape, dtype)` lists them. test_benchmarks_cuda.py runs them on the emulator, kernels/test_on_card.py on a
card.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from benchmarks import operations
from benchmarks.operations import Operation, Shape, numbers, parameter_shapes, random_input, upstream
from minigrad import functional as F
from minigrad import kernels, nn, optim
from minigrad.backend import get_array_module
from minigrad.kernels.cuda.products import rounding_to_tf32

PRECISION = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}  # half a step between numbers near 1
TF32_PRECISION = 2**-11  # of the factors of a product
ALLOWED_ERRORS = 8  # roundings
TRIAL = Shape(B=2, T=17, C=128, nh=2, V=65, n_layer=1, bias=True)


class Case(NamedTuple):
    """results(reference) gives what is computed by the kernel, or by its reference in float64.

    precision: of one rounding; the errors of sums of rounded numbers stay within a few of these. comparable: the
    reference computes the same, and does not draw another mask.
    """

    results: Callable[[bool], list[Any]]
    precision: float
    comparable: bool = True

    def largest_error(self) -> float:
        """How far a result is from the reference, as a share of the largest number there."""
        errors = []
        for ours, theirs in zip(self.results(False), self.results(True), strict=True):
            assert ours.shape == theirs.shape, f"shape {ours.shape}, and {theirs.shape} of the reference"
            xp = get_array_module(theirs)
            errors.append(float(xp.abs(wide(ours) - theirs).max() / xp.maximum(xp.abs(theirs).max(), 1e-30)))
        return float(np.max(errors))  # NaN if one is

    def is_right(self) -> bool:
        return self.largest_error() <= ALLOWED_ERRORS * self.precision + 1e-5


def wide(x: Any) -> Any:
    """Floating-point arrays as float64; everything else as it is."""
    return x if x.dtype.kind in "biu" else x.astype("float32").astype("float64")  # CuPy converts bfloat16 no further


def cases(s: Shape, dtype: str) -> dict[str, Case]:
    """By name, for arrays of one dtype."""
    return {
        **{name: of_operation(op, name, dtype) for name, op in operations.on_card_too(s, dtype).items()},
        **{name: of_update(name, s, dtype) for name in operations.UPDATES},
    }


def of_operation(op: Operation, name: str, dtype: str) -> Case:
    """Its value and its gradients."""

    def results(reference: bool) -> list[Any]:
        seeds = itertools.count()

        def make(shape: tuple[int, ...]) -> Any:
            return numbers(dtype, *shape, seed=next(seeds))

        arrays = [random_input(x, make, lambda ids: mg.Tensor(ids, device="cuda").data) for x in op.inputs]
        arrays = [wide(x) for x in arrays] if reference else arrays
        inputs = [x if x.dtype.kind == "i" else mg.Tensor(x, requires_grad=True) for x in arrays]
        mg.manual_seed(5)  # so that dropout drops the same elements
        with kernels.reference() if reference else kernels.using("cpu", "cuda"), rounding_to_tf32():
            y = op.ours(F, *inputs)
            g = upstream(y.shape, lambda shape: numbers(dtype, *shape, seed=99))
            y.backward(wide(g) if reference else g)
        return [y.data, *(x.grad for x in inputs if isinstance(x, mg.Tensor))]

    precision = TF32_PRECISION if dtype == "float32" and op.unit == "FLOP" else PRECISION[dtype]
    return Case(results, precision, not (name.startswith("attention") and "dropout" in name))


def of_update(name: str, s: Shape, dtype: str) -> Case:
    """Clipping or AdamW over all parameters of a model."""

    def results(reference: bool) -> list[Any]:
        parameters = []
        for i, shape in enumerate(parameter_shapes(s)):
            weight, gradient = numbers(dtype, *shape, seed=i), numbers(dtype, *shape, seed=1000 + i)
            parameters.append(nn.Parameter(mg.Tensor(wide(weight) if reference else weight)))
            parameters[-1].grad = wide(gradient) if reference else gradient
        with kernels.reference() if reference else kernels.using("cpu", "cuda"):
            if name == "clip_grad_norm":
                return [optim.clip_grad_norm(parameters, 90.0), *(p.grad for p in parameters)]
            optim.AdamW(parameters, lr=1e-2, weight_decay=0.1).step()
        return [p.data for p in parameters]

    return Case(results, PRECISION[dtype])
