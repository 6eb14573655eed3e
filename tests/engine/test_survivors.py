"""Single changes of the engine's code that no other test noticed; tests/mutation finds them. Each has a test here."""

import time

import numpy as np
import pytest

import minigrad as mg
from minigrad import autograd, nn
from minigrad import functional as F
from minigrad.distributed import DataParallel, can_share
from minigrad.kernels import cpu, using
from minigrad.kernels.cpu import blas, normalization, pieces, products
from minigrad.ops.reduce import finite_max
from minigrad.ops.shape import sum_to
from tests.checks import forward_and_backward
from tests.fakes import cupy as fake_cupy
from tests.fakes import mkl
from tests.needs import needs_fork
from tests.shapes import normal


def leaf(value, dtype="float64"):
    return mg.Tensor(np.array(value, dtype), requires_grad=True)


def assert_kernel_equals_reference(kernel, fn, *inputs, rtol=1e-4, atol=1e-5):
    """The function runs on this kernel, and gives the values and gradients of the operation."""
    y = fn(*[mg.Tensor(x, requires_grad=True) for x in inputs])
    assert y.origin[0].implementation is kernel
    (values, gradients) = forward_and_backward(fn, inputs)
    with using():
        expected_values, expected_gradients = forward_and_backward(fn, inputs)
    for ours, expected in zip(values + gradients, expected_values + expected_gradients, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=atol)


# Defaults


def test_the_defaults_of_layers_and_functions():
    assert nn.Dropout().p == 0.5
    assert nn.LayerNorm(3).eps == nn.RMSNorm(3).eps == 1e-5
    x = normal((2, 3))
    tiny = 1e-3 * x  # whose mean square is of the size of eps
    np.testing.assert_array_equal(F.rms_norm(tiny).data, F.rms_norm(tiny, None, 1e-5).data)
    np.testing.assert_allclose(F.rms_norm(tiny).data, tiny / np.sqrt((tiny**2).mean(-1, keepdims=True) + 1e-5))
    np.testing.assert_array_equal(F.layer_norm(tiny).data, F.layer_norm(tiny, None, None, 1e-5).data)
    assert (F.dropout(np.ones(1000), 0.5).data == 0).any()  # without more words, it drops
    np.testing.assert_array_equal(F.softmax(x).data, F.softmax(x, axis=1).data)
    np.testing.assert_array_equal(F.gelu(x).data, F.gelu(x, "tanh").data)
    np.testing.assert_array_equal(F.var(x, 1).data, x.var(1, ddof=1))


def test_the_scale_of_initial_weights():
    """To a percent: with 250,000 numbers the standard deviation is known to a sixth of that."""
    assert nn.Embedding(500, 500).weight.data.std() == pytest.approx(1, rel=5e-3)
    weight = nn.Linear(400, 600).weight.data
    assert np.abs(weight).max() == pytest.approx(1 / 20, rel=1e-3)
    assert weight.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=5e-3)
    bias = nn.Linear(400, 3000).bias.data
    assert bias.max() == pytest.approx(1 / 20, rel=1e-2)
    assert bias.min() == pytest.approx(-1 / 20, rel=1e-2)


# Ties, and rows that are empty or -inf


@pytest.mark.parametrize("f", [F.maximum, F.minimum])
def test_a_tie_is_shared_and_nothing_else_is(f):
    a, b = leaf([1.0, 2.0, 3.0]), leaf([2.0, 2.0, 2.0])
    f(a, b).backward(np.array([4.0, 4.0, 4.0]))
    first_wins = f is F.minimum
    np.testing.assert_array_equal(a.grad, [4, 2, 0] if first_wins else [0, 2, 4])
    np.testing.assert_array_equal(b.grad, [0, 2, 4] if first_wins else [4, 2, 0])


def test_the_maximum_of_a_row_of_minus_infinity_counts_as_0():
    x = np.array([[-np.inf, -np.inf], [1.0, -np.inf], [np.inf, 0.0]])
    np.testing.assert_array_equal(finite_max(x, -1), [[0], [1], [np.inf]])


@pytest.mark.parametrize("kinds", [["cpu"], []])
def test_an_ignored_row_of_minus_infinity_costs_nothing(kinds):
    logits = leaf([[-np.inf, -np.inf], [0.0, 0.0]])
    with using(*kinds):
        loss = F.cross_entropy(logits, [-100, 1])
        loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(logits.grad, [[0, 0], [0.5, -0.5]])


@pytest.mark.parametrize("kinds", [["cpu"], []])
def test_label_smoothing_by_its_formula(kinds):
    x, g = leaf(normal((3, 4))), normal((3,), 1)
    log_p = x.data - np.log(np.exp(x.data).sum(axis=-1, keepdims=True))
    targets, e = np.array([0, 2, 3]), 0.3
    q = (1 - e) * np.eye(4)[targets] + e / 4
    with using(*kinds):
        losses = F.cross_entropy(x, targets, reduction="none", label_smoothing=e)
        losses.backward(g)
    np.testing.assert_allclose(losses.data, -(q * log_p).sum(axis=-1))
    np.testing.assert_allclose(x.grad, (np.exp(log_p) - q) * g[:, None])


@pytest.mark.parametrize("kinds", [["cpu"], []])
def test_four_axes_of_attention_without_keys(kinds):
    q, k, v = leaf(normal((1, 2, 3, 4))), leaf(np.ones((1, 2, 0, 4))), leaf(np.ones((1, 2, 0, 4)))
    with using(*kinds):
        y = F.scaled_dot_product_attention(q, k, v)
        y.sum().backward()
    np.testing.assert_array_equal(y.data, np.zeros((1, 2, 3, 4)))
    np.testing.assert_array_equal(q.grad, np.zeros((1, 2, 3, 4)))
    assert k.grad.shape == v.grad.shape == (1, 2, 0, 4)


def test_rms_norm_refuses_a_weight_of_another_length():
    with pytest.raises(ValueError, match=r"RMSNorm: expected x \(…, C\)"):
        F.rms_norm(np.ones((2, 3)), np.ones(1))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (1, 3), (2, 1), (2, 3), (1, 2, 1), (4, 1, 3), (4, 2, 1)])
@pytest.mark.parametrize("to", [(3,), (1, 3), (2, 1), (2, 3), (1, 2, 3), (4, 2, 3), (4, 1, 3), (5, 4, 2, 3)])
def test_sum_to_by_loops(shape, to):
    if len(shape) > len(to) or np.broadcast_shapes(shape, to) != to:
        return
    g = normal(to)
    expected = np.zeros(shape)
    for at in np.ndindex(to):
        own = at[len(to) - len(shape) :]
        expected[tuple(0 if n == 1 else i for i, n in zip(own, shape, strict=True))] += g[at]
    summed = sum_to(g, shape)
    np.testing.assert_allclose(summed, expected, rtol=1e-12)
    assert summed.shape == shape
    assert (summed is g) == (shape == to)


# Kernels


@pytest.mark.parametrize("score", [-120.0, -61.0, 61.0, 120.0])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_scores_beyond_the_range_of_exp(score, causal):
    """All scores of a row are equal, so the weights are, too: e^-120 would be 0 in float32, and e^120 infinite."""
    q = np.full((1, 1, 4, 1), score, np.float32)
    k = np.ones((1, 1, 4, 1), np.float32)
    v = normal((1, 1, 4, 3)).astype(np.float32)
    y = F.scaled_dot_product_attention(leaf(q, "float32"), k, v, causal=causal)
    assert y.origin[0].implementation is cpu.Attention
    means = v.cumsum(axis=2) / np.arange(1, 5)[:, None] if causal else v.mean(axis=2, keepdims=True).repeat(4, axis=2)
    np.testing.assert_allclose(y.data, means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(70_000,), (300, 250), (30, 50, 50), (2, 3, 120, 100)])
def test_row_by_row_in_any_number_of_axes(shape):
    x = normal(shape).astype(np.float32)
    assert_kernel_equals_reference(cpu.RowByRow, F.silu, x)
    weight = normal(shape[-1:], 1).astype(np.float32)
    assert_kernel_equals_reference(cpu.RowByRow, F.rms_norm, x, weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [200, 2000])
@pytest.mark.parametrize("wants", ["x", "weight", "bias"])
def test_linear_with_all_but_one_constant(rows, wants):
    """Both with few rows, in one product, and with many, divided among threads."""
    arrays = {"x": normal((rows, 300)), "weight": normal((100, 300), 1), "bias": normal((100,), 2)}
    tensors = {name: mg.Tensor(array, requires_grad=name == wants) for name, array in arrays.items()}
    y = F.linear(**tensors)
    assert y.origin[0].implementation is cpu.Linear
    g = normal(y.shape, 3)
    y.backward(g)
    expected = {"x": g @ arrays["weight"], "weight": g.T @ arrays["x"], "bias": g.sum(axis=0)}[wants]
    np.testing.assert_allclose(tensors[wants].grad, expected, rtol=1e-9, atol=1e-9)
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wants]


@pytest.mark.parametrize("shape", [(3, 4), (300, 300)])
def test_dropping_everything_leaves_zeros(shape):
    x = leaf(normal(shape))
    y = nn.Dropout(1.0)(x)
    y.backward(np.ones(shape))
    np.testing.assert_array_equal(y.data, np.zeros(shape))
    np.testing.assert_array_equal(x.grad, np.zeros(shape))


@pytest.mark.parametrize("kinds", [["cpu"], []])
def test_dropping_all_attention_leaves_zeros(kinds):
    q = leaf(normal((1, 2, 3, 4)))
    with using(*kinds):
        y = F.scaled_dot_product_attention(q, q, q, dropout_p=1.0)
        y.sum().backward()
    np.testing.assert_array_equal(y.data, np.zeros((1, 2, 3, 4)))
    np.testing.assert_array_equal(q.grad, np.zeros((1, 2, 3, 4)))


@pytest.mark.parametrize("size", [1000, 100_000])
def test_dropout_refuses_integers_of_any_size(size):
    with pytest.raises(TypeError, match="Dropout: .* int64"):
        F.dropout(np.full(size, 3), 0.25)


IN_PIECES = {
    "gelu": F.gelu,
    "exact gelu": lambda x: F.gelu(x, "none"),
    "silu": F.silu,
    "layer_norm": F.layer_norm,
    "rms_norm": F.rms_norm,
    "linear": lambda x: F.linear(x, x[:100]),
    "matmul": lambda x: x @ x.T,
    "cross_entropy": lambda x: F.cross_entropy(x, np.arange(300)),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.reshape(2, 3, 50, 300)] * 3),
}


@pytest.mark.parametrize("name", IN_PIECES)
def test_large_float16_arrays_give_what_float32_gives_rounded(name):
    scale = 3 if "gelu" in name else 300 if "norm" in name else 0.25  # the square of 300 is too large for float16
    x = (scale * normal((300, 300))).astype(np.float16)
    half, single = leaf(x, "float16"), leaf(x, "float32")
    y, expected = IN_PIECES[name](half), IN_PIECES[name](single)
    g = normal(y.shape, 1).astype(np.float16)
    y.backward(g.astype(y.dtype))
    expected.backward(g.astype(np.float32))
    assert half.grad.dtype == np.float16
    np.testing.assert_allclose(y.data, expected.data, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(half.grad, single.grad, rtol=2e-3, atol=2e-3 * np.abs(single.grad).max())


CASES_FOR_THE_REFERENCE = {
    "linear of one axis too many": (F.linear, (3, 4), (2, 5, 4)),
    "linear of unequal lengths": (F.linear, (3, 4), (5, 3)),
    "linear with a bias of another length": (F.linear, (3, 4), (5, 4), (1,)),
    "linear of a number": (F.linear, (), (5, 4)),
    "matmul of stacks that broadcast": (F.matmul, (2, 3, 4), (1, 4, 5)),
    "matmul of a stack and a matrix": (F.matmul, (2, 3, 4), (4, 5)),
    "matmul of vectors": (F.matmul, (4,), (4,)),
    "matmul of a vector and a matrix": (F.matmul, (4,), (4, 5)),
    "matmul of a matrix and a vector": (F.matmul, (3, 4), (4,)),
    "matmul of numbers": (F.matmul, (), ()),
    "matmul of unequal lengths": (F.matmul, (3, 4), (3, 4)),
    "attention of three axes": (F.scaled_dot_product_attention, (2, 3, 4), (2, 3, 4), (2, 3, 4)),
    "attention with fewer axes of values": (F.scaled_dot_product_attention, (1, 1, 3, 4), (1, 1, 3, 4), (3, 4)),
    "attention with heads of keys that broadcast": (
        F.scaled_dot_product_attention,
        *((2, 3, 5, 4), (2, 1, 5, 4), (2, 3, 5, 4)),
    ),
    "attention with heads of values that broadcast": (
        F.scaled_dot_product_attention,
        *((2, 3, 5, 4), (2, 3, 5, 4), (2, 1, 5, 4)),
    ),
    "attention of unequal lengths": (F.scaled_dot_product_attention, (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)),
    "attention with too few values": (F.scaled_dot_product_attention, (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 2, 4)),
    "attention of more queries than keys": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, causal=True),
        *((1, 2, 5, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
    ),
    "attention without queries": (F.scaled_dot_product_attention, (1, 2, 0, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
    "attention with a mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask=np.tri(3, dtype=bool)[::-1]),
        *[(1, 2, 3, 4)] * 3,
    ),
    "cross-entropy of two axes of targets": (lambda x: F.cross_entropy(x, np.zeros((3, 1), int)), (3, 4)),
    "cross-entropy of a number": (lambda x: F.cross_entropy(x, np.zeros((), int)), ()),
    "cross-entropy of a class too many": (lambda x: F.cross_entropy(x, np.array([0, 4, 1])), (3, 4)),
    "cross-entropy of a class too many in three axes": (
        lambda x: F.cross_entropy(x, np.array([[0, 1, 2, 3, 0]] * 2)),
        *[(2, 5, 3)],
    ),
    "cross-entropy of a negative class": (lambda x: F.cross_entropy(x, np.array([0, -1, 1])), (3, 4)),
    "cross-entropy of classes that are no integers": (lambda x: F.cross_entropy(x, np.ones(3)), (3, 4)),
    "cross-entropy of no rows": (lambda x: F.cross_entropy(x, np.zeros(0, int)), (0, 4)),
    "layer norm with a weight of another length": (F.layer_norm, (3, 4), (1,), (4,)),
    "layer norm with a bias of another length": (F.layer_norm, (3, 4), (4,), (1,)),
    "layer norm of a number": (F.layer_norm, ()),
    "convolution of one image": (lambda x, w: F.conv2d(x, w, None), (2, 5, 6), (3, 2, 2, 2)),
    "convolution of videos": (lambda x, w: F.conv2d(x, w, None), (2, 3, 2, 5, 6), (3, 2, 2, 2)),
    "pooling of one image": (lambda x: F.max_pool2d(x, 2), (5, 6)),
}


def outcome(fn, arrays):
    """The value and the gradients of the function, or the error that it raises."""
    try:
        values, gradients = forward_and_backward(fn, arrays)
    except Exception as error:
        return type(error), str(error)
    return values, gradients


@pytest.fixture
def kernels_for_all_sizes(monkeypatch):
    monkeypatch.setattr(pieces, "ALONE", 4)
    monkeypatch.setattr(products, "SMALL", -1)
    monkeypatch.setattr(normalization, "SMALL", 0)


@pytest.mark.usefixtures("kernels_for_all_sizes")
@pytest.mark.parametrize("name", CASES_FOR_THE_REFERENCE)
def test_what_a_kernel_cannot_compute_goes_to_the_reference(name):
    fn, *shapes = CASES_FOR_THE_REFERENCE[name]
    arrays = [np.asarray(normal(shape, i)) for i, shape in enumerate(shapes)]
    with using():
        expected = outcome(fn, arrays)
    found = outcome(fn, arrays)
    if isinstance(expected[0], type):
        assert found == expected
        return
    for ours, theirs in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("kernels_for_all_sizes")
@pytest.mark.parametrize("fn", [F.linear, F.matmul, F.scaled_dot_product_attention])
@pytest.mark.parametrize("single", [0, 1, 2])
def test_kernels_leave_mixed_precision_to_the_reference(fn, single):
    shapes = [(1, 2, 4, 4)] * 3 if fn is F.scaled_dot_product_attention else [(4, 4), (4, 4), (4,)]
    arrays = [normal(shape, i) for i, shape in enumerate(shapes)][: 2 if fn is F.matmul else 3]
    if single < len(arrays):
        arrays[single] = arrays[single].astype(np.float32)
    with using():
        expected = outcome(fn, arrays)
    found = outcome(fn, arrays)
    assert str(found) == str(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", IN_PIECES)
def test_large_arrays_give_the_same_without_a_graph(name, dtype):
    x = normal((300, 300)).astype(dtype)
    expected = IN_PIECES[name](leaf(x, dtype))
    assert expected.origin is not None
    with mg.no_grad():
        y = IN_PIECES[name](leaf(x, dtype))
    np.testing.assert_array_equal(y.data, expected.data)
    np.testing.assert_array_equal(IN_PIECES[name](mg.Tensor(x)).data, expected.data)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_element_of_every_job_is_visited_once(threads, monkeypatch):
    """In pieces or in whole, of any size, and also where an array is not contiguous and so cannot be flattened."""
    before = mg.get_num_threads()
    monkeypatch.setattr(pieces, "ALONE", 6)
    monkeypatch.setattr(pieces, "LEAST", 5)
    monkeypatch.setattr(pieces, "LEAST_WHOLE", 5)
    mg.set_num_threads(threads)
    try:
        for run in (pieces.in_pieces, pieces.in_whole):
            run([])
            for sizes in ([1], [6], [7], [40], [1, 2, 30, 5, 6, 7], [1, 1, 1], [2, 30], [30, 2], [0, 3]):
                arrays = [np.zeros(n) for n in sizes]
                apart = [np.zeros((3, 8)).T, np.zeros(40)[::2]]
                run([(lambda a, b: np.add(a, b, out=a), [a, np.ones_like(a)]) for a in [*arrays, *apart]])
                for array in (*arrays, *apart):
                    np.testing.assert_array_equal(array, 1)
        numbered = [np.arange(10.0 * i, 10 * i + n) for i, n in enumerate([3, 20, 1])]
        found = pieces.in_pieces([(lambda a: a.copy(), [a]) for a in numbered])
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(numbered))
        assert pieces.squared_norm(numbered) == sum((a**2).sum() for a in numbered)
        cut = list("abcdefg")
        seen = []
        pieces.for_each(cut, threads, lambda number, piece: seen.append((number, piece)))
        assert sorted(seen) == list(enumerate(cut))
    finally:
        mg.set_num_threads(before)


def copy_to(array, x):
    array[...] = x
    return array


@pytest.mark.parametrize(
    ("layout", "by_mkl"),
    [
        (lambda x: x, True),
        (lambda x: x.T.copy().T, True),
        (lambda x: x[2:18, 1:18], True),
        (lambda x: x.T.copy().T[2:18, 1:18], True),
        (lambda x: x[::2], True),
        (lambda x: x[:, ::2], False),
        (lambda x: x.T.copy().T[:, ::2], True),
        (lambda x: x.T.copy().T[::2], False),
        (lambda x: x[::-1], False),
        (lambda x: x[:, ::-1], False),
        (lambda x: np.broadcast_to(x[0], x.shape), False),
        (lambda x: np.broadcast_to(x[:, :1], x.shape), False),
        (lambda x: np.lib.stride_tricks.as_strided(x, (18, 18), (4 * 7, 4)), False),  # rows that overlap
        (lambda x: np.lib.stride_tricks.as_strided(x, (18, 18), (4, 4 * 7)), False),
        (lambda x: copy_to(np.ndarray(x.shape, x.dtype, bytearray(36 * 146), strides=(146, 4)), x), False),
        (lambda x: copy_to(np.ndarray(x.shape, x.dtype, bytearray(36 * 146), strides=(4, 146)), x), False),
    ],
)
def test_which_layouts_mkl_multiplies(layout, by_mkl, monkeypatch):
    fake = mkl.FakeMKL()
    monkeypatch.setattr(blas, "mkl_products", {np.dtype(np.float32): fake.cblas_sgemm})
    x = layout(normal((36, 36)).astype(np.float32))
    for a, b in ((x, normal((x.shape[1], 20)).astype(np.float32)), (normal((20, x.shape[0])).astype(np.float32), x)):
        expected = a.copy() @ b.copy()
        fake.products = 0
        out = np.full(expected.shape, np.nan, np.float32)
        blas.product(a, b, out)()
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
        assert fake.products == by_mkl
        wide = np.full((2 * out.shape[0], 2 * out.shape[1]), np.nan, np.float32)
        for place, to_mkl in ((wide[::2, : out.shape[1]], by_mkl), (wide[: out.shape[0], ::2], False)):
            fake.products = 0
            blas.product(a, b, place)()
            np.testing.assert_allclose(place, expected, rtol=1e-4, atol=1e-4)
            assert fake.products == to_mkl
        by_columns = np.full(expected.T.shape, np.nan, np.float32).T
        fake.products = 0
        blas.product(a, b, by_columns)()
        np.testing.assert_allclose(by_columns, expected, rtol=1e-4, atol=1e-4)
        assert fake.products == 0


# Several processes


@needs_fork
def test_this_process_can_be_copied():
    assert can_share()


@needs_fork
def test_a_gradient_that_only_another_process_has_is_an_array_of_its_own():
    """The first rows do not use the parameter, so its gradient comes from the shared memory of another process."""
    module = nn.Module()
    module.first, module.second = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))

    def loss(x):
        return (module.first if x[0, 0] < 0 else module.second).sum() * float(x.mean())

    with DataParallel(module, loss, 2) as parallel:
        parallel(np.array([[-1.0], [2.0]])).backward()
        kept = module.second.grad
        module.zero_grad()
        parallel(np.array([[-1.0], [8.0]])).backward()
        np.testing.assert_array_equal(kept, [1, 1])
        np.testing.assert_array_equal(module.second.grad, [4, 4])


@needs_fork
def test_gradients_of_other_processes_are_written_in_place_and_the_tape_notices():
    module = nn.Module()
    module.p = nn.Parameter(np.ones(2))
    with DataParallel(module, lambda x: (module.p * float(x.mean())).sum(), 2) as parallel:
        parallel(np.ones((2, 1))).backward()
        x = leaf([1.0, 2.0])
        y = (mg.Tensor(module.p.grad) * x).sum()
        grad = module.p.grad
        grads = [worker.gradients[0] for worker in parallel.workers]
        assert len(grads) == 1
        for worker in parallel.workers:
            worker.add_gradients([0])
        assert module.p.grad is grad
        with pytest.raises(mg.AutogradError, match="written"):
            y.backward()


@needs_fork
def test_one_process_alone_may_use_a_gpu(monkeypatch):
    fake_cupy.install(monkeypatch)
    model = nn.Linear(2, 1).to("cuda")
    assert DataParallel(model, lambda x: model(x).sum(), 1).processes == 1
    with pytest.raises(ValueError, match="expected parameters on the CPU, got cuda"):
        DataParallel(model, lambda x: model(x).sum(), 2)


# The tape


def test_a_walk_frees_the_graph_unless_it_is_told_to_keep_it():
    x = leaf(2.0)
    y = x * x
    autograd.backward(y)
    with pytest.raises(mg.AutogradError, match="second time"):
        autograd.backward(y)


def test_a_node_knows_how_long_its_forward_took():
    began = time.perf_counter()
    y = leaf([1.0, 2.0]) * 2
    node = y.origin[0]
    assert began < node.started < time.perf_counter()
    assert 0 < node.forward_seconds < time.perf_counter() - node.started
