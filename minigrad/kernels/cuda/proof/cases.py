"""What the kernels are checked with: small arrays that meet every part of a kernel.

Rows are 1 and 37, which is no multiple of the rows of a block. Channels are 33, 384, 768 and 4,095, which differ in how
many neighbours a thread can read at once. There are other numbers of keys than of queries, and no multiple of 8; some
queries see no key.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ....random import counter, dropout_threshold
from ... import operation_of
from ...split import Split
from .. import (
    GELU,
    BatchedAttention,
    CrossEntropy,
    Dropout,
    Embedding,
    FlashAttention,
    LayerNorm,
    Linear,
    MatMul,
    Softmax,
    optimizer,
    philox,
)
from ..launch import compute_capability

ROWS = 1, 37
MANY_ROWS = 1200  # more than the blocks of a kernel that goes through rows have at a time
CHANNELS = 33, 384, 768, 4095
FLOATS = "float32", "float16", "bfloat16"
WIDTHS = 34, 36  # of which a thread reads 2 and 4 at once; of CHANNELS it reads 1, 4 and 8


class Case(NamedTuple):
    """A call of a kernel: its arguments, and the gradient for its backward (a tuple for each of several results).

    roundings: how many numbers on the way to a result are rounded, its own rounding included.
    layouts: how floating arrays lie in memory, in turn; see LAYOUTS in check.py.
    drops: does it drop elements with the probability that is the last argument?
    """

    arguments: tuple[Any, ...]
    g: Any
    roundings: int = 2
    layouts: tuple[str, ...] = ("packed",)
    tf32: bool = False
    drops: bool = False

    def __str__(self) -> str:
        given = ", ".join(str(x.shape) if isinstance(x, np.ndarray) else str(x) for x in self.arguments)
        return f"({given}) {' and '.join(self.layouts)}{', tf32' if self.tf32 else ''}"


class Numbers:
    """Random numbers, the same every time, rounded to a dtype: `numbers(3, 4)` has shape (3, 4)."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.rng = dtype, np.random.default_rng(0)

    def __call__(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def below(self, n: int, *shape: int) -> np.ndarray:
        return self.rng.integers(0, n, shape)


class Subject(NamedTuple):
    """A kernel to check.

    cases: makes the cases, from `Numbers` and numbers that are compiled into the kernel.
    texts: those numbers that it is checked with before it is used.
    text_of: those that a call needs.
    types: the dtypes that it is made for.
    capability: the compute capability that it needs, 80 for 8.0.
    """

    kernel: Any
    operation: Any
    cases: Callable[..., Iterator[Case]]
    texts: tuple[tuple[Any, ...], ...] = ((),)
    text_of: Callable[..., tuple[Any, ...]] = lambda *arguments: ()
    types: tuple[str, ...] = FLOATS
    capability: int = 0

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def dtypes(self) -> list[str]:
        """For which dtypes it runs on the GPU at hand."""
        bfloat16 = compute_capability() >= 80 and importlib.util.find_spec("ml_dtypes") is not None
        there = compute_capability() >= self.capability
        return [dtype for dtype in self.types if there and (dtype != "bfloat16" or bfloat16)]


def layer_norm(numbers: Numbers, channels: int) -> Iterator[Case]:
    def one(rows: int, **more: Any) -> Case:
        x, gamma, beta, g = (
            numbers(*shape) for shape in ((rows, channels), (channels,), (channels,), (rows, channels))
        )
        return Case((x, gamma, beta, 1e-5), g, **more)

    yield from (one(rows) for rows in ROWS)
    yield from (one(37, layouts=(layout,)) for layout in ("unaligned", "apart"))
    yield Case((numbers(37, channels), None, None, 1e-5), numbers(37, channels))
    if channels == min(CHANNELS):
        yield one(MANY_ROWS)


def gelu(numbers: Numbers) -> Iterator[Case]:
    for rows, columns in itertools.product(ROWS, (*CHANNELS, *WIDTHS)):
        yield Case((numbers(rows, columns),), numbers(rows, columns))
    x = numbers(3, 96)
    x[0, :8] = 0, -9, 9, -60, 60, -250, 250, -3e4
    for layout in ("unaligned", "apart", "transposed"):
        yield Case((x,), numbers(3, 96), layouts=(layout,))


def softmax(numbers: Numbers) -> Iterator[Case]:
    for rows, columns in itertools.product(ROWS, CHANNELS):
        yield Case((numbers(rows, columns), -1), numbers(rows, columns))
    x = numbers(2, 37, 33)
    x[0, 3] = -np.inf  # a row that sees nothing
    for layout in ("packed", "unaligned", "apart", "transposed"):
        yield Case((x, -1), numbers(2, 37, 33), layouts=(layout,))


def cross_entropy(numbers: Numbers) -> Iterator[Case]:
    def one(rows: int, vocabulary: int, reduction: str, **more: Any) -> Case:
        targets = numbers.below(vocabulary, rows)
        targets[rows // 2 : rows // 2 + rows // 9] = -100  # none for one row, four for 37
        g = np.float32(np.abs(numbers(rows)) if reduction == "none" else 1.5)
        return Case((numbers(rows, vocabulary), targets, -100, reduction), np.asarray(g), **more)

    for rows, vocabulary in itertools.product(ROWS, (*CHANNELS, *WIDTHS)):
        yield one(rows, vocabulary, "mean")
    yield one(MANY_ROWS, 33, "mean")
    for reduction, layout in itertools.product(("sum", "none"), ("packed", "unaligned", "apart")):
        yield one(37, 384, reduction, layouts=(layout, "packed"))


def embedding(numbers: Numbers, channels: int) -> Iterator[Case]:
    for places, layout in ((1, "packed"), (37, "packed"), (600, "packed"), (37, "unaligned"), (37, "apart")):
        ids = numbers.below(65, places) // 2  # most of them several times, and half of the rows never
        yield Case((ids, numbers(65, channels)), numbers(places, channels), layouts=(layout,))


def dropout(numbers: Numbers) -> Iterator[Case]:
    for layout in ("packed", "unaligned", "apart"):
        for shape in ((1, 33), (37, 384)):
            yield Case((numbers(*shape), 0.0), numbers(*shape), layouts=(layout,))
            yield Case((numbers(*shape), 0.2), numbers(*shape), layouts=(layout,), drops=True)


def linear(numbers: Numbers) -> Iterator[Case]:
    sizes = (33, 34), (384, 36), (768, 384), (4095, 33), (33, 4095)
    layouts = ("packed",), ("unaligned",), ("transposed", "packed"), ("packed", "transposed"), ("apart",)
    for rows, (inputs, outputs) in itertools.product(ROWS, sizes):
        yield Case((numbers(rows, inputs), numbers(outputs, inputs), numbers(outputs)), numbers(rows, outputs))
    for lie in layouts:
        yield Case((numbers(37, 33), numbers(34, 33), None), numbers(37, 34), layouts=lie)
    yield Case((numbers(MANY_ROWS, 33), numbers(34, 33), numbers(34)), numbers(MANY_ROWS, 34))
    x, weight, bias, g = numbers(2, 5, 64), numbers(24, 64), numbers(24), numbers(2, 5, 24)
    yield Case((x, weight, bias), g)
    if numbers.dtype == np.float32 and compute_capability() >= 80:
        yield Case((x, weight, bias), g, roundings=4, tf32=True)


def matmul(numbers: Numbers) -> Iterator[Case]:
    ways = "packed", "unaligned", "transposed", "apart"
    for outer, layouts in itertools.product(((), (3,)), itertools.product(ways, ways)):
        a, b, g = (numbers(*outer, *sides) for sides in ((37, 33), (33, 20), (37, 20)))
        yield Case((a, b), g, layouts=layouts)
    yield Case((numbers(2, 3, 1, 64), numbers(2, 3, 64, 40)), numbers(2, 3, 1, 40))
    if numbers.dtype == np.float32 and compute_capability() >= 80:
        yield Case((numbers(3, 37, 64), numbers(3, 64, 40)), numbers(3, 37, 40), roundings=4, tf32=True)


def attention(
    numbers: Numbers,
    outer: tuple[int, ...],
    T: int,
    U: int,
    D: int,
    E: int | None = None,
    causal: bool = False,
    mask: Any = None,
    p: float = 0.0,
    layouts: tuple[str, ...] = ("packed",),
) -> Case:
    """Attention of T queries and U keys with heads of D, and of E (or D) for the values."""
    E = D if E is None else E
    q, k, v, g = (numbers(*outer, *sides) for sides in ((T, D), (U, D), (U, E), (T, E)))
    if p:  # the values are the identity, so that the result is the weights, some of them dropped
        v[...] = np.eye(U, E)
    return Case((q, k, v, causal, mask, p), g, roundings=4, layouts=layouts, drops=p > 0)


def flash_attention(numbers: Numbers, head_size: int, causal: bool, drops: bool) -> Iterator[Case]:
    outer, D = (1, 2), head_size
    if drops:
        yield attention(numbers, outer, 70, D, D, causal=causal, p=0.2)
        return
    yield attention(numbers, outer, 37, 37, D, causal=causal, layouts=("heads",))
    yield attention(numbers, outer, 21, 75, D, causal=causal)
    yield attention(numbers, outer, 150, 75, D, causal=causal, layouts=("heads",))  # if causal, 75 queries see nothing
    yield attention(numbers, (2, 1), 9, 9, D, causal=causal, layouts=("unaligned", "apart"))


def batched_attention(numbers: Numbers) -> Iterator[Case]:
    mask = numbers.below(2, 37, 75) > 0
    mask[5] = False  # a row that sees nothing
    for outer, D in ((), 48), ((3,), 64), ((2, 2), 128):
        yield attention(numbers, outer, 37, 75, D, causal=True)
        yield attention(numbers, outer, 75, 37, D, causal=True)
        yield attention(numbers, outer, 37, 75, D, mask=mask)
    yield attention(numbers, (2, 2), 1, 37, 64, layouts=("heads",))
    yield attention(numbers, (2, 2), 37, 300, 33, causal=True, mask=numbers.below(2, 2, 1, 1, 300) > 0)
    yield attention(numbers, (3,), 37, 75, 64, E=20, layouts=("unaligned", "apart"))
    yield attention(numbers, (2,), 5, 4095, 64, causal=True)
    yield attention(numbers, (2, 2), 70, 64, 64, causal=True, p=0.2)


def split(numbers: Numbers) -> Iterator[Case]:
    yield Case((numbers(2, 5, 96), [32, 24, 40], 2), tuple(numbers(2, 5, n) for n in (32, 24, 40)))


# Kernels that no operation names, in the form of those that one does


class RandomWords:
    """The words of a draw; arguments: how many, the seed and the number of the draw."""

    @staticmethod
    def fits(*arguments: Any) -> bool:
        return True

    @staticmethod
    def forward(ctx: Any, n: int, seed: int, draw: int) -> Any:
        return philox.launch_random_words(n, seed, draw)

    @staticmethod
    def backward(ctx: Any) -> Any:
        return ()


class RandomWordsFormula(RandomWords):
    @staticmethod
    def forward(ctx: Any, n: int, seed: int, draw: int) -> Any:
        return counter.draw_words(n, seed, draw, "cpu")


def random_words(numbers: Numbers) -> Iterator[Case]:
    for n in (1, 3, 1024, 4099):  # the last blocks of four are not full
        yield Case((n, 0xA409382212345678, 2**32 - 1), ())


# The optimizer's kernels change arrays in place. Here they are given copies, which are returned.


class AdamW:
    """A step of AdamW; arguments: w, g, m, v and the master, or None, of each parameter."""

    @staticmethod
    def fits(*arrays: Any) -> bool:
        return True

    @staticmethod
    def forward(ctx: Any, *arrays: Any) -> Any:
        rows = groups([x if x is None else x.copy() for x in arrays], 5)
        optimizer.adamw(rows, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, t=3)
        return tuple(x for w, _, *kept in rows for x in (w, *kept))

    @staticmethod
    def backward(ctx: Any) -> Any:
        return ()


class AdamWFormula(AdamW):
    """The same as optim/optimizer.py has it, in NumPy."""

    @staticmethod
    def forward(ctx: Any, *arrays: Any) -> Any:
        results: list[Any] = []
        for w, g, m, v, master in groups(list(arrays), 5):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            new = w if master is None else master
            new = new - 1e-2 * (0.1 * new + m / (1 - 0.9**3) / (np.sqrt(v / (1 - 0.99**3)) + 1e-8))
            results += [new, m, v, master if master is None else new]
        return tuple(results)


class ClipGradNorm:
    """Clipping to a global norm of 1, with a loss scale of 4; arguments: w and g of each parameter."""

    @staticmethod
    def fits(*arrays: Any) -> bool:
        return True

    @staticmethod
    def forward(ctx: Any, *arrays: Any) -> Any:
        gradients = [g.copy() for g in arrays[1::2]]
        return (optimizer.clip_grad_norm(arrays[::2], gradients, max_norm=1.0, loss_scale=4.0), *gradients)

    @staticmethod
    def backward(ctx: Any) -> Any:
        return ()


class ClipGradNormFormula(ClipGradNorm):
    """The same as optim/optimizer.py has it, in NumPy."""

    @staticmethod
    def forward(ctx: Any, *arrays: Any) -> Any:
        norm = math.sqrt(sum((g**2).sum() for g in arrays[1::2])) / 4
        return (np.array(norm), *(g * min(1 / (norm + 1e-6), 1) / 4 for g in arrays[1::2]))


def groups(arrays: list[Any], n: int) -> list[list[Any]]:
    return [arrays[i : i + n] for i in range(0, len(arrays), n)]


PARAMETERS = (1,), (37, 33), (3, 4095)  # in blocks of 4096 elements


def adamw(numbers: Numbers) -> Iterator[Case]:
    half = numbers.dtype != np.float32
    for wide in (False, True)[: 1 + half]:  # 16-bit parameters may have float32 gradients
        arrays: list[Any] = []
        for shape in PARAMETERS:
            w, g, m, v = (numbers(*shape) for _ in range(4))
            m, v = 0.1 * m.astype(np.float32), v.astype(np.float32) ** 2
            master = w.astype(np.float32) * np.float32(1 + 2.0**-12) if half else None
            arrays += [w, g.astype(np.float32) if wide else g, m, v, master]
        yield Case(tuple(arrays), ())


def clip_grad_norm(numbers: Numbers) -> Iterator[Case]:
    for factor in (1, 1e-3):  # the gradients are too large, or small enough
        pairs = [(numbers(*shape), (factor * numbers(*shape).astype(np.float32))) for shape in PARAMETERS]
        yield Case(tuple(x for w, g in pairs for x in (w, g.astype(numbers.dtype))), ())
        yield Case(tuple(x for pair in pairs for x in pair), ())


def _of(kernel: Any, cases: Callable[..., Iterator[Case]], *texts: Any, **more: Any) -> tuple[Any, Subject]:
    return kernel, Subject(kernel, operation_of(kernel), cases, texts or ((),), **more)


SUBJECTS: dict[Any, Subject] = dict(
    [
        _of(LayerNorm, layer_norm, *((C,) for C in CHANNELS), text_of=lambda x, *_: x.shape[-1:]),
        _of(GELU, gelu),
        _of(Softmax, softmax),
        _of(CrossEntropy, cross_entropy),
        _of(Embedding, embedding, *((C,) for C in CHANNELS), text_of=lambda ids, weight: weight.shape[-1:]),
        _of(Dropout, dropout),
        _of(Linear, linear),
        _of(MatMul, matmul, types=(*FLOATS, "float64")),
        _of(
            FlashAttention,
            flash_attention,
            *((48, False, False), (64, True, False), (64, True, True), (128, True, False)),
            text_of=lambda q, k, v, causal, mask, p: (q.shape[-1], bool(causal), dropout_threshold(p)[0] > 0),
            types=("float16", "bfloat16"),
            capability=80,
        ),
        _of(BatchedAttention, batched_attention),
        _of(Split, split, types=(*FLOATS, "float64")),
        (RandomWords, Subject(RandomWords, RandomWordsFormula, random_words, types=("uint32",))),
        (AdamW, Subject(AdamW, AdamWFormula, adamw)),
        (ClipGradNorm, Subject(ClipGradNorm, ClipGradNormFormula, clip_grad_norm)),
    ]
)


def units() -> list[tuple[Subject, str]]:
    """Every kernel with every dtype that it runs for on the GPU at hand."""
    return [(subject, dtype) for subject in SUBJECTS.values() for dtype in subject.dtypes()]
