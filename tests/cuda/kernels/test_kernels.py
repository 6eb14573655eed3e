"""The CUDA kernels give what the operations that they replace give.

The emulator runs them on the CPU, in two orders of the threads, since a race shows as a difference between the two; and
a card, where there is one. test_nvcc.py compiles them for cards from Turing to Hopper.
"""

import numpy as np
import pytest

import minigrad as mg
from minigrad import optim, random
from minigrad.kernels import cuda
from minigrad.kernels.cuda import optimizer as fused
from minigrad.kernels.cuda.sums import sum_rows
from minigrad.ops import activation, embedding, loss, normalization, softmax
from tests.cuda.kernels.calls import DTYPES, PRECISION, RNG, Call, assert_same, numbers, run


@pytest.mark.parametrize(
    ("dtype", "shape", "affine"),
    [
        ("float32", (9, 48), True),
        ("float16", (2, 3, 200), True),
        ("bfloat16", (1, 1), True),
        ("bfloat16", (5, 7, 129), False),
        ("bfloat16", (3, 1600), True),  # from here on the threads of a block share a row
        ("float32", (1, 1025), True),
        ("float16", (37, 1032), True),
        ("float32", (9, 4095), True),
        ("bfloat16", (8, 4096), True),
    ],
)
def test_layer_norm(machine, dtype, shape, affine):
    gamma, beta = (numbers(dtype, shape[-1]) if affine else None for _ in range(2))
    arguments = numbers(dtype, *shape), gamma, beta, 1e-5
    assert_same(machine, cuda.LayerNorm, normalization.LayerNorm, dtype, numbers(dtype, *shape), *arguments, sums=35)


@pytest.mark.parametrize("channels", [768, 2048])
def test_layer_norm_of_rows_with_a_large_mean(machine, channels):
    x = numbers("float32", 6, channels)
    x[:2] += [[100], [1e4]]
    x[2:] = [[0.1], [1e4 / 3], [-1e6 / 7], [1e8 / 3]]
    gamma, beta = numbers("float32", channels), numbers("float32", channels)
    assert_same(
        machine, cuda.LayerNorm, normalization.LayerNorm, "float32", numbers("float32", *x.shape), x, gamma, beta, 1e-5
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu(machine, dtype):
    x = numbers(dtype, 7, 111)
    x[0, :6] = [0, -9, 9, -60, 60, -250]
    x[1, 0] = {"float16": -60000}.get(dtype, -1e9)
    assert_same(machine, cuda.GELU, activation.GELUTanh, dtype, numbers(dtype, *x.shape), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (6, 33), (2, 3, 1000)])
def test_softmax(machine, dtype, shape):
    x = numbers(dtype, *shape)
    x[0, ..., : shape[-1]] = -np.inf  # a row that may look nowhere
    assert_same(machine, cuda.Softmax, softmax.Softmax, dtype, numbers(dtype, *shape), x, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("vocabulary", [1, 65, 2048])
def test_cross_entropy(machine, dtype, reduction, vocabulary):
    x = numbers(dtype, 2, 5, vocabulary) * DTYPES[dtype].type(4)
    targets = RNG.integers(0, vocabulary, x.shape[:-1])
    targets[0, 2] = -100
    x[1, 1, : vocabulary // 2] = -np.inf
    x[1, 1, targets[1, 1]] = 1
    upstream = np.abs(RNG.standard_normal((2, 5) if reduction == "none" else ())).astype(np.float32)
    assert_same(machine, cuda.CrossEntropy, loss.CrossEntropy, dtype, upstream, x, targets, -100, reduction)


def test_cross_entropy_of_impossible_and_of_no_targets(machine):
    x, targets = np.full((2, 3), -np.inf, np.float32), np.array([1, 2])
    with machine():
        value, gradient = run(cuda.CrossEntropy, np.float32(1), x, targets, -100, "sum")
    assert value == np.inf
    assert not np.isnan(gradient).any()
    with machine():
        value, gradient = run(cuda.CrossEntropy, np.float32(1), x, np.full(2, -100), -100, "mean")
    assert np.isnan(value)
    assert not gradient.any()


def test_the_gradient_of_logits_that_nobody_else_holds_is_written_over_them(machine):
    x, targets = numbers("float32", 4, 9), np.array([1, 2, 3, 4])
    for holders, retained in [([], False), ([x], False), ([x[1:]], False), ([], True)]:
        call = Call(True)
        call.retained = retained
        logits = x if holders else x.copy()
        place = logits.ctypes.data
        with machine():
            cuda.CrossEntropy.forward(call, logits, targets, -100, "mean")
            before = logits.copy()
            if not holders:
                del logits
            gradient = cuda.CrossEntropy.backward(call, np.float32(1))[0]
        assert (gradient.ctypes.data == place) == (not holders and not retained)
        if holders:
            np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_among_the_logits_is_never_lost(machine, dtype):
    x = numbers(dtype, 3, 4096)
    x[0, 8:16] = np.nan  # all that a thread reads at once, where the maximum does not show it
    x[1] = np.nan
    with machine():
        losses, gradient = run(cuda.CrossEntropy, np.float32(1), x, np.array([0, 5, 7]), -100, "none")
    assert list(np.isnan(losses)) == [True, True, False]
    assert list(np.isnan(gradient).all(axis=1)) == [True, True, False]


def test_the_loss_of_a_target_that_is_no_column_is_nan(machine):
    x = numbers("float32", 4, 9)
    with machine():
        losses, _ = run(cuda.CrossEntropy, np.float32(1), x, np.array([-1, 9, 8, -100]), -100, "none")
    assert list(np.isnan(losses)) == [True, True, False, False]


def further(x):
    """The same array, from an address at which no wide access may start."""
    memory = np.empty(x.size + 1, x.dtype)
    memory[1:] = x.reshape(-1)
    return memory[1:].reshape(x.shape)


def spread(x):
    """The same array, with gaps between its elements."""
    return np.repeat(x, 2, axis=-1)[..., ::2]


@pytest.mark.parametrize("lie", [further, spread])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (cuda.GELU, ((4, 16),)),
        (cuda.Dropout, ((4, 16), 0.5)),
        (cuda.Softmax, ((4, 16), -1)),
        (cuda.LayerNorm, ((4, 16), (16,), (16,), 1e-5)),
        (cuda.CrossEntropy, ((4, 16), np.array([0, 15, 3, 4]), -100, "none")),
        (cuda.Embedding, (np.array([5, 2, 5]), (6, 16))),
    ],
)
def test_arrays_may_lie_anywhere(machine, kernel, arguments, dtype, lie):
    values = [numbers(dtype, *a) if isinstance(a, tuple) else a for a in arguments]
    elsewhere = [lie(a) if isinstance(a, np.ndarray) else a for a in values]
    results = []
    for given, place in ((values, np.array), (elsewhere, lie)):
        assert kernel.fits(*given)
        RNG.bit_generator.state = np.random.PCG64(1).state  # the same gradient twice
        mg.manual_seed(3)
        with machine():
            shape = (4,) if kernel is cuda.CrossEntropy else (3, 16) if kernel is cuda.Embedding else (4, 16)
            results.append(run(kernel, place(numbers(dtype, *shape)), *given))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "vocabulary", "channels", "places"),
    [("float32", 65, 48, 1500), ("float16", 9, 33, 700), ("bfloat16", 300, 384, 40), ("bfloat16", 1, 1, 1)],
)
def test_embedding(machine, dtype, vocabulary, channels, places):
    ids = RNG.integers(0, vocabulary, (2, places)) % max(1, vocabulary - 3)  # repeated ids, and rows never asked for
    weight, upstream = numbers(dtype, vocabulary, channels), numbers(dtype, 2, places, channels)
    assert_same(machine, cuda.Embedding, embedding.Embedding, dtype, upstream, ids, weight, sums=2 * places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (70, 129), (1000, 8), (3, 640), (0, 4), (5, 0)])
def test_sum_of_rows(machine, dtype, shape):
    x = numbers(dtype, *shape)
    expected = x.astype(np.float64).sum(axis=0)
    with machine():
        total = sum_rows(x)
    assert total.dtype == x.dtype
    np.testing.assert_allclose(total.astype(np.float64), expected, rtol=2 * PRECISION[dtype], atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_dropout_drops_what_the_reference_drops(machine, dtype, p):
    x = numbers(dtype, 7, 301)
    mg.manual_seed(5)
    bits = random.Counter("cpu").words(-(-x.size // 2)).view(np.uint16)[: x.size].reshape(x.shape)
    dropped, scale = random.dropout_threshold(p)
    expected = np.where(bits >= dropped, x.astype(np.float32) * np.float32(scale), 0).astype(x.dtype)
    mg.manual_seed(5)
    with machine():
        y, dx = run(cuda.Dropout, x, x, p)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, expected)  # the same elements, from the number of the draw alone


SHAPES = [(3, 5), (1,), (130, 40), (2, 2, 2)]


def parameters_and_gradients(dtype, gradient_dtype, seed):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in SHAPES]
    return weights, [rng.standard_normal(shape).astype(DTYPES[gradient_dtype]) for shape in SHAPES]


@pytest.mark.parametrize(
    ("dtype", "gradients"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
@pytest.mark.parametrize("max_norm", [0.5, 1e9, np.inf])
def test_clipping(machine, dtype, gradients, max_norm):
    weights, grads = parameters_and_gradients(dtype, gradients, 1)
    expected = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))
    factor = min(max_norm / expected, 1)
    before = [g.astype(np.float64) for g in grads]
    with machine():
        norm = fused.clip_grad_norm(weights, grads, max_norm)
    assert norm.dtype == np.float32
    np.testing.assert_allclose(norm, expected, rtol=1e-5)
    for g, was in zip(grads, before, strict=True):
        np.testing.assert_allclose(g.astype(np.float64), was * factor, rtol=2 * PRECISION[gradients] + 1e-5)


def test_clipping_hides_no_nan(machine):
    weights, grads = parameters_and_gradients("float32", "float32", 1)
    grads[0][1, 2] = np.nan
    with machine():
        norm = fused.clip_grad_norm(weights, grads, 1.0)
    assert np.isnan(norm)
    assert all(np.isnan(g).all() for g in grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw(machine, dtype):
    """Five steps against the optimizer itself; a 16-bit parameter is its master, rounded."""
    weights, _ = parameters_and_gradients(dtype, dtype, 0)
    masters = [w.astype(np.float32) for w in weights]
    reference = [mg.Tensor(w.astype(np.float64), requires_grad=True) for w in weights]
    adamw = optim.AdamW(reference, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in masters]
    for t in range(1, 6):
        _, grads = parameters_and_gradients(dtype, dtype if t % 2 else "float32", t)
        for p, g in zip(reference, grads, strict=True):
            p.grad = g.astype(np.float64)
        adamw.step()
        kept = masters if dtype != "float32" else [None] * len(weights)
        rows = [(w, g, m, v, k) for w, g, (m, v), k in zip(weights, grads, moments, kept, strict=True)]
        with machine():
            fused.adamw(rows, 1e-2, (0.9, 0.99), 1e-8, 0.1, t)
    for p, w, master in zip(reference, weights, masters, strict=True):
        learned = w if dtype == "float32" else master
        np.testing.assert_allclose(learned, p.data, rtol=1e-5, atol=1e-6)
        if dtype != "float32":
            np.testing.assert_array_equal(w, master.astype(w.dtype))


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (cuda.LayerNorm, (np.ones((2, 3)), None, None, 1e-5)),  # float64 has no kernels
        (cuda.LayerNorm, (np.ones((2, 3), np.float32), np.ones(3), None, 1e-5)),
        (cuda.LayerNorm, (np.ones((0, 3), np.float32), None, None, 1e-5)),
        (cuda.LayerNorm, (np.ones((2, 5000), np.float32), None, None, 1e-5)),
        (cuda.Softmax, (np.ones((2, 3), np.float32), 0)),
        (cuda.Softmax, (np.ones((), np.float32), -1)),
        (cuda.GELU, (np.ones(3),)),
        (cuda.GELU, (np.ones((), np.float32),)),
        (cuda.CrossEntropy, (np.ones((2, 3), np.float32), np.array([0, 1]), -100, "mean", 0.1)),
        (cuda.CrossEntropy, (np.ones((2, 3), np.float32), np.array([0, 1, 2]), -100, "mean")),
        (cuda.Embedding, (np.zeros(0, int), np.ones((2, 3), np.float32))),
        (cuda.Dropout, (np.ones(3), 0.1)),
        (cuda.Dropout, (np.ones((), np.float32), 0.1)),
    ],
)
def test_what_a_kernel_cannot_do_is_left_to_the_reference(kernel, arguments):
    assert not kernel.fits(*arguments)
