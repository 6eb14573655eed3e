"""Every CUDA kernel by itself: how much it moves or computes, how long it takes, and how far it is from its reference.

`cases(sizes, dtype)` lists the kernels of minigrad/kernels/cuda as a training step calls them. benchmarks/cuda.py times
them on a card; tests/cuda/kernels checks them there.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad import kernels, nn, optim
from minigrad.autograd import Context
from minigrad.backend import as_dtype, get_array_module
from minigrad.kernels import cuda
from minigrad.kernels.cuda.attention import FlashAttention
from minigrad.kernels.cuda.batched_attention import BatchedAttention
from minigrad.kernels.cuda.cublaslt import product
from minigrad.kernels.cuda.products import rounding_to_tf32
from minigrad.kernels.cuda.sums import sum_rows
from minigrad.ops import activation, attention, dropout, embedding, loss, normalization, softmax

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PRECISION = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}  # half a step between numbers near 1
TF32_PRECISION = 2**-11  # of the factors of a product
DRAWN = (1 << 21) + 3  # random numbers, which larger arrays repeat


@dataclass(frozen=True)
class Sizes:
    """A model and its batch, by the letters of the shapes below."""

    B: int = 32  # sequences
    T: int = 1024  # tokens in each
    C: int = 768  # channels
    V: int = 50304  # vocabulary
    n_layer: int = 12


GPT2 = Sizes()
PART = replace(GPT2, B=2, n_layer=1)  # large enough to compare with the reference, which computes in float64
TRIAL = Sizes(B=2, T=17, C=128, V=65, n_layer=1)


class Work(NamedTuple):
    """What to time, and what it returns; the reference returns the same in float64, or is None."""

    run: Callable[[], list[Any]]
    reference: Callable[[], list[Any]] | None


@dataclass(frozen=True)
class Case:
    """A line of the table. `amount` counts `unit`s, "B" or "FLOP", for the sizes that it was made for.

    precision: of one rounding; the errors of sums of rounded numbers stay within a few of these.
    """

    title: str
    unit: str
    amount: float
    make: Callable[[], Work]
    precision: float
    fills: int = 2  # see `Stopwatch`


@functools.cache
def drawn(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2 * n, dtype=np.float32)


def numbers(dtype: str, *shape: int, seed: int = 0) -> Any:
    """Normally distributed numbers on the card, of two million that are drawn once: `seed` says where to begin."""
    start = 1009 * seed % DRAWN
    host = drawn(DRAWN)[start : start + min(DRAWN, int(np.prod(shape)))]
    some = mg.Tensor(host.astype(as_dtype(dtype)), device="cuda").data
    array = get_array_module(some).empty(shape, some.dtype)
    flat, some = (x.reshape(-1).view(f"uint{8 * x.itemsize}") for x in (array, some))  # CuPy copies bits of any dtype
    for start in range(0, flat.size, some.size):
        part = flat[start : start + some.size]
        part[...] = some[: part.size]
    return array


def integers(below: int, *shape: int) -> Any:
    """Token ids on the card, small ones more often, as in real texts."""
    drawn = np.random.default_rng(0).random(shape)
    return mg.Tensor((below * drawn**3).astype(np.int64), device="cuda").data


def wide(value: Any) -> Any:
    """Floating-point arrays as float64; everything else as it is."""
    if not hasattr(value, "dtype") or value.dtype.kind in "biu":
        return value
    return value.astype("float32").astype("float64")  # CuPy has no direct way from bfloat16


def needs_gradients(arguments: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(hasattr(a, "dtype") and a.dtype.kind not in "biu" for a in arguments)


def call(implementation: Any, operation: Any, arguments: Sequence[Any]) -> tuple[Context, Any]:
    """The forward, as the tape calls it, with a backward that may be repeated."""
    mg.manual_seed(5)  # so that dropout drops the same elements
    ctx = Context(operation, needs_gradients(arguments))
    ctx.retained = True
    with rounding_to_tf32():
        return ctx, implementation.forward(ctx, *arguments)


def forward_of(implementation: Any, operation: Any, arguments: Sequence[Any]) -> list[Any]:
    return [call(implementation, operation, arguments)[1]]


def backward_of(implementation: Any, operation: Any, arguments: Sequence[Any], g: Any) -> Callable[[], list[Any]]:
    """A function that runs the backward of a forward that has been run."""
    ctx, _ = call(implementation, operation, arguments)

    def backward() -> list[Any]:
        with rounding_to_tf32():
            gradients = implementation.backward(ctx, g)
        return [x for x in (gradients if isinstance(gradients, tuple) else (gradients,)) if x is not None]

    return backward


def cases(s: Sizes, dtype: str, with_reference: bool = True) -> dict[str, Case]:
    """All kernels by name, for arrays of one dtype, as a training step of these sizes calls them."""
    return {
        case.title: case
        for family in (memory_bound, matrix_products, attentions, updates)
        for case in family(s, dtype, with_reference)
    }


def pair(
    title: str,
    kernel: Any,
    operation: Any,
    inputs: Callable[[], tuple[tuple[Any, ...], Any]],
    unit: str,
    amounts: tuple[float, float],
    precision: float,
    with_reference: bool,
) -> list[Case]:
    """The forward and the backward of a kernel that stands for an operation. `inputs` makes arguments and gradient."""

    def forward() -> Work:
        arguments, _ = inputs()

        def reference() -> list[Any]:
            return forward_of(operation, operation, [wide(a) for a in arguments])

        return Work(lambda: forward_of(kernel, operation, arguments), reference if with_reference else None)

    def backward() -> Work:
        arguments, g = inputs()

        def reference() -> list[Any]:
            return backward_of(operation, operation, [wide(a) for a in arguments], wide(g))()

        return Work(backward_of(kernel, operation, arguments, g), reference if with_reference else None)

    return [
        Case(f"{title}: forward", unit, amounts[0], forward, precision),
        Case(f"{title}: backward", unit, amounts[1], backward, precision),
    ]


def memory_bound(s: Sizes, dtype: str, with_reference: bool) -> list[Case]:
    """Kernels that are as fast as memory lets them: counted are inputs and outputs, each once."""
    N, C, V, size, precision = s.B * s.T, s.C, s.V, BYTES[dtype], PRECISION[dtype]

    def moving(title: str, kernel: Any, operation: Any, inputs: Any, forward: float, backward: float) -> list[Case]:
        amounts = size * forward, size * backward
        return pair(title, kernel, operation, inputs, "B", amounts, precision, with_reference)

    def row_sums() -> Work:
        x = numbers(dtype, N, 3 * C)
        return Work(lambda: [sum_rows(x)], (lambda: [wide(x).sum(axis=0)]) if with_reference else None)

    def normalised() -> Any:
        parameters = numbers(dtype, C, seed=1), numbers(dtype, C, seed=2)
        return (numbers(dtype, s.B, s.T, C), *parameters, 1e-5), numbers(dtype, s.B, s.T, C, seed=3)

    def activated() -> Any:
        return (numbers(dtype, N, 4 * C),), numbers(dtype, N, 4 * C, seed=1)

    def scores() -> Any:
        return (numbers(dtype, N, s.T), -1), numbers(dtype, N, s.T, seed=1)

    def logits() -> Any:
        g = mg.Tensor(np.float32(1), device="cuda").data
        return (numbers(dtype, N, V), integers(V, N), -100, "mean"), g

    def looked_up() -> Any:
        return (integers(V, N), numbers(dtype, V, C)), numbers(dtype, N, C, seed=1)

    def dropped() -> Any:
        return (numbers(dtype, N, C), 0.2), numbers(dtype, N, C, seed=1)

    embedding_backward = moving("embedding", cuda.Embedding, embedding.Embedding, looked_up, 0, N * C + V * C)[1]
    return [
        *moving("layer norm", cuda.LayerNorm, normalization.LayerNorm, normalised, 2 * N * C, 3 * N * C),
        *moving("GELU", cuda.GELU, activation.GELUTanh, activated, 8 * N * C, 12 * N * C),
        *moving("softmax", cuda.Softmax, softmax.Softmax, scores, 2 * N * s.T, 3 * N * s.T),
        *moving("cross-entropy", cuda.CrossEntropy, loss.CrossEntropy, logits, N * V, 2 * N * V),
        *moving("dropout", cuda.Dropout, dropout.Dropout, dropped, 2 * N * C, 2 * N * C),
        embedding_backward,
        Case("sum of rows", "B", size * 3 * N * C, row_sums, precision),
    ]


def matrix_products(s: Sizes, dtype: str, with_reference: bool) -> list[Case]:
    """The products of a linear layer's forward and backward, through cuBLASLt. float32 is rounded to TF32."""
    N, C = s.B * s.T, s.C
    tf32 = dtype == "float32"
    precision = TF32_PRECISION if tf32 else PRECISION[dtype]

    def of_layer(title: str, wide_in: int, wide_out: int, bias: bool) -> list[Case]:
        def one(what: str, make_operands: Callable[[], tuple[Any, Any, Any]]) -> Case:
            def make() -> Work:
                a, b, added = make_operands()

                def reference() -> list[Any]:
                    y = wide(a) @ wide(b)
                    return [y if added is None else y + wide(added)]

                return Work(lambda: [product(a, b, added, tf32=tf32)], reference if with_reference else None)

            return Case(f"{title}: {what}", "FLOP", 2 * N * wide_in * wide_out, make, precision)

        def x() -> Any:
            return numbers(dtype, N, wide_in)

        def weight() -> Any:
            return numbers(dtype, wide_out, wide_in, seed=1)

        def g() -> Any:
            return numbers(dtype, N, wide_out, seed=2)

        return [
            one("y", lambda: (x(), weight().T, numbers(dtype, wide_out, seed=3) if bias else None)),
            one("dx", lambda: (g(), weight(), None)),
            one("dW", lambda: (g().T, x(), None)),
        ]

    return [
        *of_layer("linear, C to 3 C", C, 3 * C, True),
        *of_layer("linear, C to C", C, C, True),
        *of_layer("linear, C to 4 C", C, 4 * C, True),
        *of_layer("linear, 4 C to C", 4 * C, C, True),
        *of_layer("linear, C to V", C, s.V, False),
    ]


def attentions(s: Sizes, dtype: str, with_reference: bool) -> list[Case]:
    """Causal attention from packed q, k, v, by flash attention and product by product.

    Either is counted as the lower triangle of two products forward, and of five backward.
    """

    def of_head(kernel: Any, D: int, p: float) -> list[Case]:
        heads = s.C // D

        def inputs() -> Any:
            packed = numbers(dtype, s.B, s.T, 3, heads, D)
            q, k, v = (packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
            return (q, k, v, True, None, p), numbers(dtype, s.B, s.T, heads, D, seed=1).transpose(0, 2, 1, 3)

        one_product = 2 * s.B * s.T * s.T * s.C / 2
        how = "flash attention" if kernel is FlashAttention else "attention by products"
        title = f"{how}, D = {D}" + (f", dropout {p}" if p else "")
        comparable = with_reference and not p  # the reference draws other masks; test_flash_attention.py compares these
        amounts = 2 * one_product, 5 * one_product
        precision = TF32_PRECISION if dtype == "float32" else PRECISION[dtype]
        return pair(title, kernel, attention.Attention, inputs, "FLOP", amounts, precision, comparable)

    flash = [] if dtype == "float32" else [(64, 0.0), (64, 0.2), (128, 0.0)]  # it is for 16 bits
    return [
        *(case for D, p in flash for case in of_head(FlashAttention, D, p)),
        *(case for p in (0.0, 0.2) for case in of_head(BatchedAttention, 64, p)),
    ]


def updates(s: Sizes, dtype: str, with_reference: bool) -> list[Case]:
    """Clipping and AdamW over all parameters, as the optimizer calls them, with the tables that they send to the card.

    It takes the host milliseconds to make these, which a training step hides behind other work, or in a CUDA graph.
    Clipping reads gradients twice and writes them once. AdamW reads gradient, moments and weight, and writes the last
    three; a 16-bit parameter has its float32 master beside it.
    """
    layer = [(3 * s.C, s.C), (s.C, s.C), (4 * s.C, s.C), (s.C, 4 * s.C), (3 * s.C,), (4 * s.C,), *[(s.C,)] * 6]
    shapes = [(s.V, s.C), (s.T, s.C), *layer * s.n_layer, (s.C,), (s.C,)]
    count, size = sum(int(np.prod(shape)) for shape in shapes), BYTES[dtype]

    def parameters(of: str) -> list[Any]:
        made = [nn.Parameter(mg.Tensor(numbers(dtype, *shape, seed=i))) for i, shape in enumerate(shapes)]
        for i, p in enumerate(made):
            p.grad = numbers(dtype, *p.shape, seed=1000 + i)
            if of == "float64":
                p.data, p.grad = wide(p.data), wide(p.grad)
        return made

    def norm(of: str) -> Callable[[], list[Any]]:
        given = parameters(of)
        limit = 100.0

        def run() -> list[Any]:
            nonlocal limit
            limit *= 0.9  # so that every call has to scale
            return [optim.clip_grad_norm(given, limit), *(p.grad for p in given)]

        return run

    def adamw(of: str) -> Callable[[], list[Any]]:
        given = parameters(of)
        optimizer = optim.AdamW(given, lr=1e-2, weight_decay=0.1)

        def run() -> list[Any]:
            optimizer.step()
            return [p.data for p in given]

        return run

    def make(update: Any) -> Callable[[], Work]:
        def reference() -> list[Any]:
            with kernels.reference():
                return update("float64")()

        return lambda: Work(update(dtype), reference if with_reference else None)

    moved = {"float32": 7 * 4}.get(dtype, 2 * 2 + 6 * 4)
    return [
        Case("clip_grad_norm", "B", 3 * size * count, make(norm), PRECISION[dtype], fills=16),
        Case("AdamW", "B", moved * count, make(adamw), PRECISION[dtype], fills=16),
    ]


def largest_error(work: Work) -> float | None:
    """Of all results: how far one is from the reference, as a share of the largest number there; None without one."""
    if work.reference is None:
        return None
    results, wanted = work.run(), work.reference()
    assert len(results) == len(wanted), f"{len(results)} results, and {len(wanted)} of the reference"
    worst = 0.0
    for ours, theirs in zip(results, wanted, strict=True):
        assert ours.shape == theirs.shape, f"shape {ours.shape}, and {theirs.shape} of the reference"
        xp = get_array_module(theirs)
        error = float(xp.abs(wide(ours) - theirs).max() / xp.maximum(xp.abs(theirs).max(), 1e-30))
        worst = error if np.isnan(error) else max(worst, error)
    return worst


# Rates of the card, and times


def gemm_operands(n: int, dtype: str) -> tuple[Any, Any]:
    return numbers(dtype, n, n), numbers(dtype, n, n, seed=1)


class Events:
    """Times by CUDA events on CuPy's current stream, which waits for that of a CUDA graph."""

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")

    def record(self) -> Any:
        return self.cupy.cuda.get_current_stream().record()

    def wait(self) -> None:
        self.cupy.cuda.Device().synchronize()

    def ms(self, start: Any, end: Any) -> float:
        return float(self.cupy.cuda.get_elapsed_time(start, end))


class Stopwatch:
    """Milliseconds of single calls, with a cold L2 cache, and without the time that the host takes to start them.

    Before each call a buffer is filled that is larger than any cache, so many times that it takes the card longer than
    the host takes to hand over the call: so the card does not wait between the two events.
    """

    def __init__(self, fill_bytes: int = 1 << 30) -> None:
        self.events = Events()
        self.buffer = self.events.cupy.empty(fill_bytes, "uint8")

    def times(self, run: Callable[[], Any], repeats: int, fills: int = 2) -> list[float]:
        for _ in range(2):  # compiled, and memory at hand
            run()
        self.events.wait()
        marks = []
        for _ in range(repeats):
            for _ in range(fills):
                self.buffer.fill(0)
            start = self.events.record()
            run()
            marks.append((start, self.events.record()))
        self.events.wait()
        return [self.events.ms(*mark) for mark in marks]


def rates(watch: Stopwatch, n: int = 8192, copied: int = 1 << 31, repeats: int = 10) -> dict[str, float]:
    """The card's own: bytes a second of a copy, read and written, and FLOP/s of matrix products (n, n), medians."""

    def median_ms(run: Callable[[], Any]) -> float:
        return float(np.median(watch.times(run, repeats)))

    def product_rate(dtype: str, tf32: bool) -> float:
        a, b = gemm_operands(n, dtype)
        return 2 * n**3 / median_ms(lambda: product(a, b, tf32=tf32)) * 1e3

    def copy_rate() -> float:
        source = numbers("float32", copied // 4)
        target = get_array_module(source).empty_like(source)

        def copy() -> None:
            target[...] = source

        return 2 * source.nbytes / median_ms(copy) * 1e3

    return {
        "copy": copy_rate(),
        "bfloat16": product_rate("bfloat16", False),
        "float16": product_rate("float16", False),
        "tf32": product_rate("float32", True),
        "float32": product_rate("float32", False),
    }
