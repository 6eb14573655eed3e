"""Attention product by product gives what the operation gives.

The kernels run in the emulator and on a card, the products in the fake cuBLASLt.
"""

import ctypes
import math
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad import kernels, random
from minigrad.autograd import Context
from minigrad.kernels.cuda import attention, cublaslt, launch, philox, products
from minigrad.kernels.cuda.batched_attention import SCORES, BatchedAttention
from minigrad.ops.attention import Attention as Reference
from minigrad.random import counter
from tests.cuda.draws import drawn_as_on_a_gpu
from tests.fakes import cupy as fake_cupy
from tests.fakes import emulator
from tests.fakes.cublaslt import fake_cublaslt
from tests.fakes.emulator import emulated, needs_compiler, noting_launches
from tests.shapes import seeds

DTYPES = {"float32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def random_inputs(dtype, queries, keys, head_size, value_size=None, outer=(), seed=0):
    """q, k, v and an upstream gradient g, rounded to the dtype."""
    rng = np.random.default_rng(seed)
    value_size = value_size or head_size
    sizes = [(queries, head_size), (keys, head_size), (keys, value_size), (queries, value_size)]
    return [rng.standard_normal((*outer, *size)).astype(DTYPES[dtype]) for size in sizes]


def run(implementation, q, k, v, g, causal=False, mask=None, dropout_p=0.0, expected=(True, True, True)):
    """y, dq, dk, dv, and the context that was in between."""
    mg.manual_seed(2**63 + 11)
    ctx = Context(Reference, (*expected, False, False, False))
    with drawn_as_on_a_gpu():
        y = implementation.forward(ctx, q, k, v, causal, mask, dropout_p)
    return [y, *implementation.backward(ctx, g)[:3]], ctx


def run_batched(machine, *arguments, order=0, **more):
    assert BatchedAttention.fits(*arguments[:3], more.get("causal"), more.get("mask"), more.get("dropout_p"))
    with machine(order), fake_cublaslt():
        return run(BatchedAttention, *arguments, **more)


def assert_right(machine, q, k, v, g, **more):
    """Both orders of the threads give the same bits, and the operation's results in float64 but for rounding.

    Rounded to the dtype are p, w, dw and ds, and the results: each errs by at most u, half of its last place. What that
    does to a product c = a b with a rounded is at most u |a| |b|.
    """
    (got, ctx), (again, _) = (run_batched(machine, q, k, v, g, order=order, **more) for order in (0, 1))
    draws = random.get_state()["gpu"]
    wide = [x.astype(np.float64) for x in (q, k, v, g)]
    expected, reference = run(Reference, *wide, **more)
    assert random.get_state()["gpu"] == draws  # a state that is saved here means the same with and without kernels

    dtype = str(q.dtype)
    u, least = {"float32": (2.0**-24, 0), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0)}[dtype]
    exact = 2e-6  # what sums and exponentials in float32 err, of their terms
    q, k, v, g = wide
    p, kept = reference.saved[3], 1.0 if reference.dropout is None else reference.dropout[0] * reference.dropout[1]
    dw = abs(g) @ abs(v).swapaxes(-1, -2)
    w_error = (2 * u + exact) * p * kept + 2 * least
    dp_error, dp = ((u + exact) * dw + least) * kept, dw * kept
    terms = p * dp + p * (p * dp).sum(-1, keepdims=True)
    ds_error = (3 * u + exact) * terms + p * (dp_error + (p * dp_error).sum(-1, keepdims=True)) + 2 * least * (1 + dp)
    scale = 1 / math.sqrt(q.shape[-1])
    errors = [
        w_error @ abs(v),
        (ds_error @ abs(k)) * scale + least * abs(k).sum(-2, keepdims=True),
        (ds_error.swapaxes(-1, -2) @ abs(q)) * scale + least * abs(q).sum(-2, keepdims=True),
        w_error.swapaxes(-1, -2) @ abs(g),
    ]
    for name, ours, same, theirs, error in zip(("y", "dq", "dk", "dv"), got, again, expected, errors, strict=True):
        assert (ours.shape, str(ours.dtype)) == (theirs.shape, dtype)
        assert ours.tobytes() == same.tobytes(), f"{name} depends on the order of the threads"
        off = abs(ours.astype(np.float64) - theirs) - 1.05 * error - u * abs(theirs) - least - 1e-6
        assert off.max() <= 0, f"{name}: {off.max():.2g} more than rounding explains, at {np.argmax(off)}"
    return got, ctx


@pytest.mark.parametrize(
    ("dtype", "outer", "queries", "keys", "head_size", "causal", "dropout_p"),
    [
        ("float32", (2, 3), 12, 12, 16, True, 0.0),
        ("float32", (1, 2), 3, 600, 64, True, 0.25),  # more keys than a block of threads has at a time
        ("float16", (2, 2), 9, 16, 20, True, 0.0),
        ("float16", (2, 2), 7, 13, 8, False, 0.5),
        ("bfloat16", (2, 2), 16, 9, 64, True, 0.25),
        ("bfloat16", (3, 2), 1, 40, 64, True, 0.0),  # a token of a cached sequence
        ("bfloat16", (1, 1), 2, 2100, 16, True, 0.25),  # more than the largest block
        ("float16", (1, 1), 2, 1, 200, False, 0.0),
    ],
)
def test_values_and_gradients(machine, dtype, outer, queries, keys, head_size, causal, dropout_p):
    inputs = random_inputs(dtype, queries, keys, head_size, outer=outer, seed=queries)
    assert_right(machine, *inputs, causal=causal, dropout_p=dropout_p)


@st.composite
def masks(draw, shape):
    """None, or a mask that broadcasts to the scores: with fewer axes, or with some of size 1."""
    if draw(st.booleans()):
        return None
    axes = [n if draw(st.booleans()) else 1 for n in shape][draw(st.integers(0, len(shape))) :]
    rng = np.random.default_rng(draw(seeds))
    return rng.random(tuple(axes)) < draw(st.sampled_from([0.0, 0.3, 0.9]))


@settings(max_examples=40)
@given(data=st.data())
def test_any_shape_mask_and_dropout(machine, data):
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    outer = data.draw(st.sampled_from([(), (2,), (1, 2), (2, 2)]))
    queries, keys = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 2, 5, 8, 11, 16]))
    head_size, value_size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    inputs = random_inputs(dtype, queries, keys, head_size, value_size, outer, data.draw(seeds))
    assert_right(
        machine,
        *inputs,
        causal=data.draw(st.booleans()),
        mask=data.draw(masks((*outer, queries, keys))),
        dropout_p=data.draw(st.sampled_from([0.0, 0.0, 0.3, 1e-9, 1.0])),
    )


@pytest.mark.parametrize("axes", ["B", "H", "T", "U", "BHTU", ""])
def test_a_mask_may_differ_along_any_axes(machine, axes):
    shape = [n if axis in axes else 1 for axis, n in zip("BHTU", (2, 3, 5, 6), strict=True)]
    mask = np.random.default_rng(0).random(shape) < 0.6
    inputs = random_inputs("float32", 5, 6, 4, outer=(2, 3))
    assert_right(machine, *inputs, mask=mask)
    assert_right(machine, *inputs, mask=np.asfortranarray(mask), causal=True)  # lies the other way around


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_that_see_nothing_give_zeros_and_get_none(machine, dtype):
    """Three of these lie before the first key, and the mask blinds the last one of the second sequence."""
    inputs = random_inputs(dtype, 8, 5, 16, outer=(2, 2))
    mask = np.ones((2, 1, 8, 1), bool)
    mask[1, :, 7] = False
    (y, dq, dk, dv), _ = assert_right(machine, *inputs, causal=True, mask=mask)
    assert not y[:, :, :3].any()
    assert not dq[:, :, :3].any()
    assert not y[1, :, 7].any()
    assert y[:, :, 3:7].any(axis=-1).all()
    q, k, v, g = inputs
    g = g.copy()
    g[:, :, :3], g[1, :, 7] = 100, 100  # what reaches them goes nowhere
    (_, _, same_dk, same_dv), _ = run_batched(machine, q, k, v, g, causal=True, mask=mask)
    np.testing.assert_array_equal(dk, same_dk)
    np.testing.assert_array_equal(dv, same_dv)


def test_scores_that_float16_cannot_hold(machine):
    """They are float32, and the largest is subtracted before any exponential."""
    q, k, v, g = random_inputs("float16", 9, 16, 64)
    q, k = q * np.float16(100), k * np.float16(100)
    assert abs(q.astype(np.float32) @ k.astype(np.float32).T).max() > np.finfo(np.float16).max
    assert_right(machine, q, k, v, g)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # which it is about
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_hidden_may_be_too_large_for_float16(machine, causal):
    """The products are of all queries with all keys. That of g and a value which is not looked at goes nowhere."""
    q, k, v, g = (abs(x) for x in random_inputs("float16", 4, 4, 16))
    v[3], g[3] = 60000, 0  # only the last query sees the last key
    mask = None if causal else np.tri(4, dtype=bool)
    (_, *gradients), _ = run_batched(machine, q, k, v, g, causal=causal, mask=mask)
    v[3] = 1
    for ours, theirs in zip(gradients, run_batched(machine, q, k, v, g, causal=causal, mask=mask)[0][1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_weights_are_the_operations(machine):
    """Also where they are small: a weight errs by no more than its last place, and so does what is dropped."""
    inputs = random_inputs("bfloat16", 16, 24, 8, outer=(1, 2))
    _, ctx = run_batched(machine, *inputs, causal=True, dropout_p=0.3)
    _, reference = run(Reference, *(x.astype(np.float32) for x in inputs), causal=True, dropout_p=0.3)
    np.testing.assert_allclose(ctx.saved[3].astype(np.float32), reference.saved[3], rtol=2**-8)
    assert ctx.saved[3].nbytes == 2 * 2 * 16 * 24  # and all that is kept of this size


def test_heads_of_tokens_are_copied_once_and_stacks_not_at_all(machine):
    B, T, H, D = 2, 5, 3, 8
    packed = np.random.default_rng(0).standard_normal((B, T, 3 * H * D)).astype(np.float32)
    views = [part.reshape(B, T, H, D).transpose(0, 2, 1, 3) for part in np.split(packed, 3, axis=2)]
    g = np.ones((B, T, H, D), np.float32).transpose(0, 2, 1, 3)
    batch, ctx = run_batched(machine, *views, g)
    assert not any(np.shares_memory(x, packed) for x in ctx.saved)  # so that the packed array can be given back
    one, ctx = run_batched(machine, *(x[:1] for x in (*views, g)))
    assert all(np.shares_memory(x, packed) for x in ctx.saved[:3])  # the heads of one sequence are a stack
    for ours, theirs in zip(batch, one, strict=True):
        np.testing.assert_allclose(ours[:1], theirs, rtol=1e-5, atol=1e-6)
    cache = np.zeros((B, H, 20, D), np.float32)[:, :, :7]  # as generation keeps keys and values
    assert cublaslt.matrix_of(cache) is not None


@needs_compiler
def test_the_weights_take_the_place_of_float32_scores():
    """In one array, which the emulator, that hands over copies, has to be asked for by hand."""
    rows, keys = 6, 13
    s = np.random.default_rng(0).standard_normal((rows, keys)).astype(np.float32)
    shifted = np.exp(s - s.max(axis=1, keepdims=True))
    kernel = launch.Kernel("softmax.cu", "attention_weights", s.dtype)
    launcher = emulator.library(kernel.text).launch_attention_weights
    launcher.restype = ctypes.c_char_p
    memory, null, scores = ctypes.c_void_p(s.ctypes.data), ctypes.c_void_p(), np.array([(1, rows, keys, 0, 1)], SCORES)
    by_value = [np.zeros(4, np.int64), philox.draw_dropout(0.0)]
    arguments = [memory, scores.ctypes, null, by_value[0].ctypes, by_value[1].ctypes, null, memory, null]
    places = [a.data if isinstance(a, type(scores.ctypes)) else ctypes.addressof(a) for a in arguments]
    grid, threads = (ctypes.c_uint * 3)(rows, 1, 1), (ctypes.c_uint * 3)(32, 1, 1)
    assert not launcher(grid, threads, 0, 1, (ctypes.c_void_p * 8)(*places))
    np.testing.assert_allclose(s, shifted / shifted.sum(axis=1, keepdims=True), rtol=1e-5)


def test_only_gradients_that_are_wanted_are_computed(machine):
    inputs = random_inputs("float32", 5, 6, 8)
    full, _ = run_batched(machine, *inputs, dropout_p=0.3)
    for i in range(3):
        expected = [j == i for j in range(3)]
        (_, *gradients), _ = run_batched(machine, *inputs, dropout_p=0.3, expected=expected)
        assert [gradient is not None for gradient in gradients] == expected
        np.testing.assert_array_equal(gradients[i], full[1 + i])


def test_backward_can_run_again(machine):
    """As `retain_graph` wants it: nothing that is kept is written to."""
    inputs = random_inputs("float16", 5, 6, 8)
    (_, *first), ctx = run_batched(machine, *inputs, causal=True, dropout_p=0.3)
    with machine(), fake_cublaslt():
        second = BatchedAttention.backward(ctx, inputs[3])[:3]
    for ours, theirs in zip(second, first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_graph_that_counts_its_replays_draws_anew(machine, monkeypatch):
    """With 3 more draws behind it on the card, a call drops what the fourth would have dropped."""
    inputs = random_inputs("float32", 9, 16, 8)
    monkeypatch.setattr(counter, "earlier", np.array([3], np.uint64))
    (y, _, _, dv), _ = run_batched(machine, *inputs, dropout_p=0.3)
    monkeypatch.setattr(counter, "earlier", None)
    monkeypatch.setattr(counter, "next_draw", lambda: (2**63 + 11, 3))
    (later_y, _, _, later_dv), _ = run_batched(machine, *inputs, dropout_p=0.3)
    np.testing.assert_array_equal(y, later_y)
    np.testing.assert_array_equal(dv, later_dv)


@pytest.mark.parametrize(
    ("dtype", "tf32", "capability", "computes"),
    [
        ("float32", False, 80, {"COMPUTE"}),
        ("float32", True, 80, {"TF32"}),
        ("bfloat16", False, 80, {"COMPUTE", "TF32"}),  # tf32 loses nothing of 16 bits
        ("float16", False, 75, {"COMPUTE"}),  # and is not there on older cards
    ],
)
def test_how_products_are_computed(machine, monkeypatch, dtype, tf32, capability, computes):
    monkeypatch.setattr(products, "tf32", tf32)
    monkeypatch.setattr("minigrad.kernels.cuda.batched_attention.compute_capability", lambda: capability)
    numbers = {"COMPUTE": cublaslt.COMPUTE["float32"], "TF32": cublaslt.COMPUTE_TF32}
    with machine(), fake_cublaslt() as library:
        run(BatchedAttention, *random_inputs(dtype, 4, 5, 8))
        used = {thing["compute"] for thing in library.things.values() if "compute" in thing}
    assert used == {numbers[name] for name in computes}


# Which of the two kernels runs


def described(*shape, dtype="float32"):
    """All that `fits` may ask of an array: it holds no numbers."""
    return SimpleNamespace(shape=shape, dtype=np.dtype(dtype), ndim=len(shape), size=math.prod(shape))


@pytest.mark.parametrize(
    ("q", "k", "v", "mask", "expected"),
    [
        (described(2, 3, 5, 7), described(2, 3, 6, 7), described(2, 3, 6, 4), None, True),
        (described(5, 7), described(6, 7), described(6, 4), described(6, dtype=bool), True),
        (described(2, 3, 1, 7), described(2, 3, 6, 7), described(2, 3, 6, 7), described(2, 1, 1, 6, dtype=bool), True),
        (described(2, 3, 5, 7), described(2, 3, 6, 7), described(2, 3, 6, 7), described(2, 6, dtype=bool), False),
        (described(5, 7), described(6, 7), described(6, 7), described(2, 5, 6, dtype=bool), False),  # mask is larger
        (described(2, 6, 5, 7), described(2, 1, 6, 7), described(2, 1, 6, 7), None, False),  # one key for all heads
        (described(2, 5, 7), described(2, 6, 7), described(6, 6), None, False),
        (described(5, 7), described(6, 8), described(6, 8), None, False),
        (described(5, 7), described(6, 7), described(5, 7), None, False),
        (described(5, 7), described(0, 7), described(0, 7), None, False),
        (described(1, 1, 1, 5, 7), described(1, 1, 1, 5, 7), described(1, 1, 1, 5, 7), None, False),
        (described(7), described(7), described(7), None, False),
        (*[described(5, 7, dtype="float64")] * 3, None, False),
        (described(5, 7, dtype="float16"), described(5, 7), described(5, 7), None, False),
    ],
)
def test_fits(q, k, v, mask, expected):
    assert BatchedAttention.fits(q, k, v, True, mask, 0.0) is expected
    assert (implementation(q, k, v, True, mask, 0.0) is not Reference) is expected


def implementation(*arguments):
    """What runs on a GPU of compute capability 8.0."""
    with emulated(), kernels.using("cuda"):
        return kernels.implementation(Reference, "cuda:0", arguments)


def test_flash_attention_runs_where_it_can(machine):
    long, short = (random_inputs("bfloat16", queries, 20, 16, outer=(1, 1)) for queries in (20, 1))
    mask = np.ones((20, 20), bool)
    with machine(), fake_cublaslt():
        for inputs, given_mask, chosen in [
            (long, None, attention.FlashAttention),
            (long, mask, BatchedAttention),
            (short, None, BatchedAttention),
            ([x.astype(np.float32) for x in long], None, BatchedAttention),
        ]:
            assert implementation(*inputs[:3], True, given_mask, 0.0) is chosen
            results, _ = run(chosen, *inputs, causal=True, mask=given_mask)
            assert all(x.dtype == inputs[0].dtype for x in results)


@needs_compiler
def test_on_a_gpu_dropout_drops_what_the_operation_drops(monkeypatch):
    """Through `functional` and the tape, on the fake CuPy, which draws as a GPU does."""
    fake_cupy.install(monkeypatch)
    arrays = random_inputs("float32", 6, 9, 4, outer=(2, 3))
    mask = mg.Tensor(np.random.default_rng(1).random((2, 1, 1, 9)) < 0.8, device="cuda").data

    def compute():
        mg.manual_seed(5)
        q, k, v = (mg.Tensor(x, requires_grad=True, device="cuda") for x in arrays[:3])
        y = F.scaled_dot_product_attention(q, k, v, causal=True, mask=mask, dropout_p=0.4)
        y.backward(mg.Tensor(arrays[3], device="cuda"))
        return [x.get() for x in (y.data, q.grad, k.grad, v.grad)], random.get_state()

    with kernels.reference():
        expected, state = compute()
    before = fake_cupy.synchronizations
    with kernels.using("cpu", "cuda"), emulated(), fake_cublaslt(), noting_launches() as launches:
        got, same_state = compute()
    assert fake_cupy.synchronizations - before == 4  # the four `get`
    assert launches == ["attention_weights", "attention_weights_backward"]
    assert same_state == state
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
