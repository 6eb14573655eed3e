"""The operations of a GPT, each as a call of minigrad beside the same call of PyTorch, and how much work it is.

ops.py times them; tests/cuda/kernels/cases.py checks them on a GPU. Work is counted in floating-point operations for
matrix products (a causal triangle as half of the square), and else in the bytes of inputs and outputs, each once: what
a perfect implementation would have to move.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

DROPOUT = 0.2
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WITHOUT_KERNEL = "-x of four numbers", "add", "conv2d, 3 × 3"  # for CUDA
DRAWN = (1 << 21) + 3  # random numbers on a card, which larger arrays repeat
UPDATES = ["clip_grad_norm", "AdamW step"]  # over the parameters of a whole model; they have no backward


class Shape(NamedTuple):
    """A model and its batch, by the letters of the shapes below."""

    B: int  # sequences
    T: int  # tokens in each
    C: int  # channels
    nh: int  # heads
    V: int  # vocabulary
    n_layer: int
    bias: bool
    images: int = 32  # for convolution, which no GPT has


class Input(NamedTuple):
    """An array to make: an activation, the heads of an activation, a parameter, or integers below `high`."""

    kind: str
    size: tuple[int, ...]
    high: int = 0


class Operation(NamedTuple):
    """ours(F, *inputs) and theirs(TF, *inputs) compute the same; `forward` and `backward` count the work in `unit`."""

    inputs: list[Input]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    unit: str  # "FLOP" or "B"
    forward: float
    backward: float


def linear(s: Shape, wide_in: int, wide_out: int, bias: bool) -> Operation:
    parameters = [Input("parameter", (wide_out, wide_in)), Input("parameter", (wide_out,))][: 1 + bias]
    flops = 2 * s.B * s.T * wide_in * wide_out

    inputs, call = [Input("activation", (s.B, s.T, wide_in)), *parameters], lambda F, *inputs: F.linear(*inputs)
    return Operation(inputs, call, call, "FLOP", flops, 2 * flops)  # backward: for the input and for the weight


def conv2d(images: int, channels: int, side: int) -> Operation:
    """3 × 3 kernels on images that keep their size, with as many outputs as channels."""
    inputs = [
        Input("activation", (images, channels, side, side)),
        Input("parameter", (channels, channels, 3, 3)),
        Input("parameter", (channels,)),
    ]
    flops, call = 2 * images * 9 * channels**2 * side**2, lambda F, *inputs: F.conv2d(*inputs, padding=1)
    return Operation(inputs, call, call, "FLOP", flops, 2 * flops)


def attention(s: Shape, heads: int, p: float, backward_products: int) -> Operation:
    """Forward there are two products of (T, hs) and (hs, T) for each head, half of them masked."""
    one = 2 * s.B * s.T * s.T * s.C / 2
    ours = lambda F, *qkv: F.scaled_dot_product_attention(*qkv, causal=True, dropout_p=p)  # noqa: E731
    theirs = lambda TF, *qkv: TF.scaled_dot_product_attention(*qkv, is_causal=True, dropout_p=p)  # noqa: E731
    heads_of = Input("heads", (s.B, heads, s.T, s.C // heads))
    return Operation([heads_of] * 3, ours, theirs, "FLOP", 2 * one, backward_products * one)


def operations(s: Shape, number: int = 4, products: int = 4) -> dict[str, Operation]:
    """All operations that have a backward, by name; `number` is the size of one in bytes.

    products: of attention's backward. Flash attention has five, since it computes the scores again.
    """
    B, T, C, V, N = s.B, s.T, s.C, s.V, s.B * s.T
    x, wide, ids = Input("activation", (B, T, C)), Input("activation", (B, T, 4 * C)), Input("ids", (B, T), V)

    def moving(inputs: list[Input], forward: float, backward: float, ours: Any, theirs: Any = None) -> Operation:
        """An operation that is counted by the numbers it reads and writes."""
        return Operation(inputs, ours, theirs or ours, "B", number * forward, number * backward)

    layer_norm = lambda F, *inputs: F.layer_norm(*inputs)  # noqa: E731
    torch_layer_norm = lambda TF, x, *parameters: TF.layer_norm(x, (C,), *parameters)  # noqa: E731
    cross_entropy = lambda F, *inputs: F.cross_entropy(*inputs)  # noqa: E731
    torch_cross_entropy = lambda TF, logits, ids: TF.cross_entropy(logits.flatten(0, 1), ids.flatten())  # noqa: E731
    table = Input("parameter", (V, C))
    logits, norm_inputs = Input("activation", (B, T, V)), [x, *[Input("parameter", (C,))] * (1 + s.bias)]
    return {
        "-x of four numbers": moving([Input("activation", (4,))], 0, 0, lambda F, x: -x),
        "linear, C to 3 C": linear(s, C, 3 * C, s.bias),
        "linear, C to C": linear(s, C, C, s.bias),
        "linear, C to 4 C": linear(s, C, 4 * C, s.bias),
        "linear, 4 C to C": linear(s, 4 * C, C, s.bias),
        "linear, C to V": linear(s, C, V, False),
        "attention, causal": attention(s, s.nh, 0.0, products),
        f"attention, causal, dropout {DROPOUT}": attention(s, s.nh, DROPOUT, products),
        "conv2d, 3 × 3": conv2d(s.images, 64, 28),
        "layer_norm": moving(norm_inputs, 2 * N * C, 3 * N * C, layer_norm, torch_layer_norm),
        "gelu": moving([wide], 8 * N * C, 12 * N * C, lambda F, x: F.gelu(x, approximate="tanh")),
        f"dropout {DROPOUT}": moving([x], 2 * N * C, 2 * N * C, lambda F, x: F.dropout(x, DROPOUT)),
        "add": moving([x, x], 3 * N * C, 0, lambda F, a, b: a + b),
        "embedding": moving([ids, table], 2 * N * C, N * C + V * C, lambda F, ids, table: F.embedding(ids, table)),
        "cross_entropy": moving([logits, ids], N * V, 2 * N * V, cross_entropy, torch_cross_entropy),
    }


def parameter_shapes(s: Shape) -> list[tuple[int, ...]]:
    """Of all that the model learns: embeddings, the matrices of the blocks, biases, layer norms."""
    C, norms = s.C, [(s.C,)] * (1 + s.bias)
    biases: list[tuple[int, ...]] = [(3 * C,), (C,), (4 * C,), (C,)] if s.bias else []
    block = [(3 * C, C), (C, C), (4 * C, C), (C, 4 * C), *biases, *norms, *norms]
    return [(s.V, C), (s.T, C), *block * s.n_layer, *norms]


def on_card_too(s: Shape, dtype: str) -> dict[str, Operation]:
    """Those that have a CUDA kernel, for arrays of one dtype."""
    number, scores = BYTES[dtype], Input("activation", (s.B, s.nh, s.T, s.T))
    known = {name: op for name, op in operations(s, number, 5).items() if name not in WITHOUT_KERNEL}
    amount, torch_softmax = number * s.B * s.nh * s.T * s.T, lambda TF, x: TF.softmax(x, dim=-1)
    known["softmax"] = Operation([scores], lambda F, x: F.softmax(x), torch_softmax, "B", 2 * amount, 3 * amount)
    if dtype != "float32" and s.C % 128 == 0:
        known["attention, causal, heads of 128"] = attention(s, s.C // 128, 0.0, 5)
    return known


def update_bytes(name: str, s: Shape, dtype: str = "float32") -> float:
    """Clipping reads and writes gradients; AdamW reads weights, gradients and two moments, and writes three of them.

    Beside a 16-bit weight AdamW has a float32 one: 28 bytes in all, too.
    """
    count = sum(map(math.prod, parameter_shapes(s)))
    return float(count * (2 * BYTES[dtype] if name == "clip_grad_norm" else 28))


def update(name: str, clip: Callable[[float], Any], step: Callable[[], Any]) -> Callable[[], Any]:
    """A function that clips, to a limit a little below the norm, so that every call has to scale; or that steps."""
    if name == "AdamW step":
        return step
    norm = float(clip(math.inf))

    def scale() -> Any:
        nonlocal norm
        norm *= 0.999
        return clip(norm)

    return scale


@functools.cache
def below() -> Any:
    """An operation that stands for the network below: it takes a gradient and drops it. A leaf would accumulate it."""
    import minigrad as mg

    class Below(mg.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[None]:
            return (None,)

    return Below


def random_input(x: Input, make: Callable[[tuple[int, ...]], Any], send: Callable[[np.ndarray], Any]) -> Any:
    """make(shape) gives numbers, send(array) token ids; heads are views of q in the product that makes q, k and v."""
    if x.kind == "ids":
        return send(np.random.default_rng(0).integers(x.high, size=x.size))
    if x.kind != "heads":
        return make(x.size)
    B, nh, T, hs = x.size
    return make((B, T, 3, nh, hs))[:, :, 0].swapaxes(1, 2)


def upstream(shape: tuple[int, ...], make: Callable[[tuple[int, ...]], Any], of_heads: bool = True) -> Any:
    """A gradient as it arrives from above; that of attention's heads is a view of (B, T, C)."""
    if len(shape) != 4 or not of_heads:
        return make(shape)
    B, nh, T, hs = shape
    return make((B, T, nh, hs)).swapaxes(1, 2)


def numbers(dtype: str, *shape: int, seed: int = 0) -> Any:
    """Normally distributed numbers on the card; at most two million are drawn, and repeated."""
    import minigrad as mg
    from minigrad.backend import as_dtype

    drawn = np.random.default_rng(seed).standard_normal(min(DRAWN, math.prod(shape)), dtype=np.float32)
    some = mg.Tensor(drawn.astype(as_dtype(dtype)), device="cuda").data
    array = mg.get_array_module(some).empty(shape, some.dtype)
    flat, some = (x.reshape(-1).view(f"uint{8 * x.itemsize}") for x in (array, some))  # CuPy copies bits of any dtype
    for start in range(0, flat.size, some.size):
        part = flat[start : start + some.size]
        part[...] = some[: part.size]
    return array
