"""Comparing a kernel with the operation that it replaces, computed by NumPy in float64 on the same numbers.

A kernel computes in float32 and rounds its results. So a result may be off by a few roundings of its dtype (`roundings`
of a case: how many numbers on the way to it are rounded), and by what float32 loses on the way: the approximations of
e^x that cards have err by up to (2 + 1.2 |x|) 2^-23, and sums of thousands of numbers by about as much. Errors are
measured beside the largest number of a result.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .... import random
from ....backend import as_dtype
from .. import products
from .cases import Case, Numbers, Subject

ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ROUNDING_TF32 = 2.0**-11  # of the factors of a product
ARITHMETIC = {"float64": 2.0**-44, "float32": 2.0**-16}  # what is lost on the way, by what is computed in
ZONE = 512  # bytes before and after every array that must stay as they are
FILLS = 0xFF, 0xFE  # what every other array and its zones are filled with: NaN, and a number that is too large
SIGMAS = 5  # by how many standard deviations the share of elements that dropout keeps may differ


class Failure(Exception):
    """A kernel does not do what its operation does."""


class Guards:
    """Inside this context every new array of CuPy lies between two zones, and `check` says whether they are intact."""

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")
        self.pool = self.cupy.get_default_memory_pool()
        self.arrays: list[Any] = []  # zone, array, zone

    def malloc(self, size: int) -> Any:
        with self.cupy.cuda.using_allocator(self.pool.malloc):
            whole = self.cupy.full(ZONE + size + ZONE, self.fill(len(self.arrays)), "uint8")
        self.arrays.append(whole)
        return whole.data + ZONE

    def fill(self, i: int) -> int:
        return FILLS[i % 2]  # what a kernel copies from beyond one array to beyond the next shows

    def __enter__(self) -> Guards:
        self.context = self.cupy.cuda.using_allocator(self.malloc)
        self.context.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.__exit__(*exception)

    def check(self) -> None:
        for i, whole in enumerate(self.arrays):
            zones = np.concatenate([whole[:ZONE].get(), whole[-ZONE:].get()])
            if (zones != self.fill(i)).any():
                raise Failure(f"it wrote outside of an array of {whole.size - 2 * ZONE} bytes")


class Call:
    """What the tape would give to a forward and a backward: a context that saves arrays."""

    saved: tuple[Any, ...] = ()
    dropout: Any = None

    def __init__(self, function: Any, needs_input_grad: tuple[bool, ...], retained: bool = True) -> None:
        self.function, self.needs_input_grad, self.retained = function, needs_input_grad, retained

    def save(self, *arrays: Any) -> None:
        self.saved = arrays


def largest_error(subject: Subject, dtype: str, texts: Iterable[tuple[Any, ...]]) -> float:
    """The largest error of a kernel in all cases, for one dtype and for these numbers compiled into it.

    Raises `Failure`, or whatever the kernel raises.
    """
    numbers = Numbers(as_dtype(dtype))
    return max(check_case(subject, case) for text in texts for case in subject.cases(numbers, *text))


def check_case(subject: Subject, case: Case) -> float:
    """The largest error of a case, as a share of the largest number of the result that has it."""
    results = run(subject, case)
    again = run(subject, case, held=False)
    if any(x.tobytes() != y.tobytes() for x, y in zip(results, again, strict=True)):
        raise Failure(f"{case}: two runs gave different bits")
    if case.drops and np.array_equal(results[0] == 0, run(subject, case, draw=1)[0] == 0):
        raise Failure(f"{case}: two draws dropped the same elements")
    with random.replay(random.get_state()):
        expected = reference(subject, case, results[0])
    worst = 0.0
    for i, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        error, allowed = error_of(ours, theirs), allowed_error(case, str(ours.dtype))
        if not error <= allowed:  # NaN is not
            raise Failure(f"{case}: result {i} is off by {error:.1e} of its largest number; allowed are {allowed:.1e}")
        worst = max(worst, error)
    return worst


def run(subject: Subject, case: Case, held: bool = True, draw: int = 0) -> list[np.ndarray]:
    """What the kernel returns, forward and backward, on the GPU at hand.

    held: does somebody hold the inputs until the end? Then they must not change.
    draw: how often GPUs have drawn random numbers before.
    """
    guards, kernel = Guards(), subject.kernel
    seeded = random.replay({**random.get_state(), "seed": 0, "gpu": draw})
    with seeded, guards, products.rounding_to_tf32(case.tf32):
        layouts = itertools.cycle(case.layouts)
        arguments = [place(x, layouts) for x in case.arguments]
        gradients = place(case.g, layouts)
        if not kernel.fits(*arguments):
            raise Failure(f"{case}: it does not take these arrays")
        ctx = Call(subject.operation, tuple(map(is_floating, case.arguments)), retained=held)
        results = several(kernel.forward(ctx, *arguments))
        if not held:
            arguments = []
        results += several(kernel.backward(ctx, *several(gradients)))
        fetched = [x.get() for x in results if x is not None]
        for x, sent in zip(arguments, case.arguments, strict=False):
            if isinstance(sent, np.ndarray) and x.get().tobytes() != sent.tobytes():
                raise Failure(f"{case}: it changed an array that was given to it")
        guards.check()
    return fetched


def reference(subject: Subject, case: Case, ours: np.ndarray) -> list[np.ndarray]:
    """What the operation returns, in float64. It drops the elements that are dropped in `ours`, the kernel's result."""
    arguments = [wide(x) for x in case.arguments]
    ctx = Call(subject.operation, tuple(map(is_floating, case.arguments)))
    results = several(subject.operation.forward(ctx, *arguments[:-1], 0.0 if case.drops else arguments[-1]))
    if case.drops:
        kept, there = ours != 0, results[0] != 0
        dropped, scale = random.dropout_threshold(arguments[-1])
        share, n = 1 - dropped / 65536, there.sum()
        if abs(kept[there].mean() - share) > SIGMAS * np.sqrt(share * (1 - share) / n):
            raise Failure(f"{case}: it kept {kept[there].mean():.3f} of {n} elements; expected {share:.3f}")
        results[0] = results[0] * kept * scale
        ctx.dropout = kept, scale
    results += several(subject.operation.backward(ctx, *several(wide(case.g))))
    return [np.asarray(x) for x in results if x is not None]


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far one result is from the other, as a share of the largest number there. NaN if only one has a NaN."""
    if ours.shape != theirs.shape:
        raise Failure(f"a result has shape {ours.shape}; expected {theirs.shape}")
    finite, ours = np.isfinite(theirs), ours.astype(np.float64)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return float("nan")
    if not finite.any():
        return 0.0
    return float(np.abs(ours - theirs)[finite].max() / (np.abs(theirs[finite]).max() or 1))


def allowed_error(case: Case, dtype: str) -> float:
    if dtype not in ROUNDING:  # integers
        return 0.0
    rounding = ROUNDING_TF32 if case.tf32 else ROUNDING[dtype]
    return case.roundings * rounding + ARITHMETIC["float64" if dtype == "float64" else "float32"]


def place(x: Any, layouts: Any) -> Any:
    """A host array on the GPU, floating ones in the next layout; gradients of several results side by side."""
    xp = importlib.import_module("cupy")
    if isinstance(x, tuple) and x:
        whole, ends = xp.asarray(np.concatenate(x, axis=-1)), itertools.accumulate([part.shape[-1] for part in x])
        return tuple(whole[..., end - part.shape[-1] : end] for part, end in zip(x, ends, strict=True))
    if not isinstance(x, np.ndarray):
        return x
    return LAYOUTS[next(layouts)](x, xp.asarray) if is_floating(x) else xp.asarray(x)


def _unaligned(x: np.ndarray, send: Any) -> Any:
    flat = x.reshape(-1)
    return send(np.concatenate([flat[:1], flat]))[1:].reshape(x.shape)


LAYOUTS = {
    "packed": lambda x, send: send(np.ascontiguousarray(x)),
    "unaligned": _unaligned,  # from where no wide access may start
    "apart": lambda x, send: send(np.repeat(x, 2, axis=-1))[..., ::2],
    "transposed": lambda x, send: send(np.ascontiguousarray(x.swapaxes(-1, -2))).swapaxes(-1, -2),
    "heads": lambda x, send: send(np.ascontiguousarray(x.swapaxes(1, 2))).swapaxes(1, 2),  # (B, T, H, D) in memory
}


def several(x: Any) -> list[Any]:
    return list(x) if isinstance(x, Sequence) else [x]


def is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind in "fV"


def wide(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(wide, x))
    return x.astype(np.float64) if is_floating(x) else x
