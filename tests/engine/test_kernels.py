"""Every CPU kernel against the operation that it replaces: values, gradients, dtypes, over awkward shapes and threads.

The sizes at which kernels begin to cut their work are made tiny here, so that small arrays are cut into several pieces.
"""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad import kernels
from minigrad.kernels import cpu
from minigrad.kernels.cpu import attention, blas, normalization, pieces, products, threads
from minigrad.kernels.split import Split
from tests.checks import forward_and_backward
from tests.fakes import mkl
from tests.shapes import layouts, normal, seeds


@pytest.fixture(autouse=True, params=[1, 2, 3], ids="{} threads".format)
def tiny_pieces(request, monkeypatch):
    """Pieces of a few elements, tiles of three queries, and 1, 2 or 3 threads."""
    before = mg.get_num_threads()
    monkeypatch.setattr(pieces, "ALONE", 6)
    monkeypatch.setattr(pieces, "TOGETHER", 12)
    monkeypatch.setattr(pieces, "LEAST", 12)
    monkeypatch.setattr(products, "LEAST", 8)
    monkeypatch.setattr(products, "SMALL", -1)
    monkeypatch.setattr(products, "FEW", 1)
    monkeypatch.setattr(products, "SHARED", 0)  # or OpenBLAS's threads, and not the pool's, would share products,
    monkeypatch.setattr(products, "library", lambda: "numpy")  # or MKL's
    monkeypatch.setattr(normalization, "SMALL", 0)
    monkeypatch.setattr(attention, "LEAST", 8)
    monkeypatch.setattr(attention, "TILE", 3)
    monkeypatch.setattr(attention, "GROUP", 24)
    mg.set_num_threads(request.param)
    with kernels.using("cpu"):
        yield
    mg.set_num_threads(before)


def assert_equals_reference(fn, *inputs, kernel=None):
    """The function gives the reference's values and gradients in float64 and float32, in the inputs' dtype."""
    for dtype, rtol, atol in (("float64", 1e-9, 1e-11), ("float32", 2e-4, 2e-5)):
        arrays = [x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]
        with kernels.reference():
            wanted_values, wanted_gradients = forward_and_backward(fn, arrays)
        values, gradients = forward_and_backward(fn, arrays)
        for ours, expected in zip(values + gradients, wanted_values + wanted_gradients, strict=True):
            if expected is not None:
                assert ours.dtype == expected.dtype
                assert ours.shape == expected.shape
                np.testing.assert_allclose(ours, expected, rtol=rtol, atol=atol)
    if kernel is not None:
        assert kernel in kernels_used(fn, arrays)


def kernels_used(fn, arrays):
    """The implementations that ran on the way to the result."""
    y = fn(*[mg.Tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays])
    used, waiting = [], [y.origin[0]]
    while waiting:
        node = waiting.pop()
        used.append(node.implementation)
        waiting += [parent[0] for parent in node.parents if isinstance(parent, tuple)]
    return used


leading = st.lists(st.integers(1, 4), max_size=2).map(tuple)


@given(leading=leading, inputs=st.integers(1, 9), outputs=st.integers(1, 9), bias=st.booleans(), seed=seeds)
def test_linear(leading, inputs, outputs, bias, seed):
    x, weight, b = normal((*leading, inputs), seed), normal((outputs, inputs), seed + 1), normal((outputs,), seed + 2)
    if bias:
        assert_equals_reference(F.linear, x, weight, b, kernel=cpu.Linear)
    else:
        assert_equals_reference(F.linear, x, weight, kernel=cpu.Linear)


@given(leading=leading, m=st.integers(1, 7), k=st.integers(1, 7), n=st.integers(1, 7), seed=seeds)
def test_matmul(leading, m, k, n, seed):
    a, b = normal((*leading, m, k), seed), normal((*leading, k, n), seed + 1)
    assert_equals_reference(F.matmul, a, b, kernel=cpu.MatMul)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_products_with_zero_rows_and_with_one(rows):
    assert_equals_reference(F.linear, normal((rows, 4)), normal((3, 4), 1), normal((3,), 2))
    assert_equals_reference(F.matmul, normal((rows, 4)), normal((4, 3), 1))


@given(layout=layouts, seed=seeds)
def test_products_of_arrays_that_are_not_contiguous(layout, seed):
    x, weight = normal(layout.base_shape((5, 4)), seed), normal(layout.base_shape((6, 4)), seed + 1)
    assert_equals_reference(lambda x, w: F.linear(layout.view(x), layout.view(w)), x, weight, kernel=cpu.Linear)
    assert_equals_reference(lambda x, w: layout.view(x) @ layout.view(w).T, x, weight, kernel=cpu.MatMul)


@pytest.fixture(params=["numpy", "mkl"])
def library(request, monkeypatch):
    """Products by NumPy, and by MKL, or where it is not in use by a fake of it."""
    if request.param == "numpy":
        monkeypatch.setattr(blas, "mkl_products", {})
        return
    if blas.library() != "mkl":
        fake = mkl.FakeMKL()
        functions = {np.dtype("float32"): fake.cblas_sgemm, np.dtype("float64"): fake.cblas_dgemm}
        monkeypatch.setattr(blas, "mkl_products", functions)
    monkeypatch.setattr(blas, "ROWS", 1)


@pytest.fixture
def shared_by_the_library(library, monkeypatch):
    """Products of any size are shared by threads of the library that computes them."""
    monkeypatch.setattr(products, "SHARED", 1_000_000)


@pytest.mark.usefixtures("shared_by_the_library")
@given(rows=st.integers(0, 20), inputs=st.integers(1, 9), outputs=st.integers(1, 20), bias=st.booleans(), seed=seeds)
def test_linear_on_the_librarys_own_threads(rows, inputs, outputs, bias, seed):
    arrays = [normal((rows, inputs), seed), normal((outputs, inputs), seed + 1), normal((outputs,), seed + 2)]
    assert_equals_reference(F.linear, *arrays[: 3 if bias else 2], kernel=cpu.Linear if rows else None)


@pytest.mark.usefixtures("shared_by_the_library")
def test_the_librarys_threads_give_the_same_bits_in_every_run():
    x, weight = normal((150, 200)).astype(np.float32), normal((300, 200), 1).astype(np.float32)

    def run():
        y, gradients = forward_and_backward(F.linear, [x.copy(), weight.copy(), weight[:, 0].copy()])
        return [*y, *gradients]

    first = run()
    for _ in range(5):
        for a, b in zip(first, run(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("shared_by_the_library")
def test_afterwards_libraries_are_held_to_one_thread_again():
    threads.in_parallel(lambda i, parts: None, mg.get_num_threads())
    inside = []

    def fail():
        inside.extend(library.num_threads for library in threads.Pool.libraries)
        raise RuntimeError("a product failed")

    with pytest.raises(RuntimeError, match="a product failed"):
        threads.with_library_threads(fail)
    assert set(inside) == {mg.get_num_threads()}
    assert {library.num_threads for library in threads.Pool.libraries} == {1}


def test_in_each_thread_libraries_are_held_to_one_thread():
    """MKL counts for every thread anew: one that nobody has told takes all cores, beside the others that do."""
    counts = []
    threads.in_parallel(
        lambda i, parts: counts.append({library.num_threads for library in threads.Pool.libraries}),
        mg.get_num_threads(),
    )
    assert counts == [{1}] * mg.get_num_threads()


@pytest.mark.usefixtures("library")
@given(m=st.integers(0, 9), k=st.integers(0, 9), n=st.integers(0, 9), dtype=st.sampled_from(["float32", "float64"]))
def test_the_single_product_takes_any_layout_and_writes_into_any_rows(m, k, n, dtype):
    a, b = normal((m, k)).astype(dtype), normal((k, n), 1).astype(dtype)
    expected = a @ b
    of_every_other_row = np.repeat(a, 2, axis=1)[:, ::2], np.repeat(a.T, 2, axis=1)[:, ::2].T
    for left in (a, np.asfortranarray(a), *of_every_other_row, np.pad(a, ((0, 0), (0, 3)))[:, :k]):
        for right in (b, np.asfortranarray(b), np.pad(b, ((0, 0), (2, 0)))[:, 2:]):
            for out in (np.full((m, n), np.nan, dtype), np.full((m, n + 2), np.nan, dtype)[:, 1 : n + 1]):
                blas.product(left, right, out)()
                np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@given(layout=layouts, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=seeds)
def test_split(layout, sizes, seed):
    x = normal(layout.base_shape((3, sum(sizes))), seed)
    fn = lambda x: F.concatenate(F.split(layout.view(x), sizes, axis=1)[::-1], axis=1)  # noqa: E731
    assert_equals_reference(fn, x, kernel=Split)


def test_split_copies_no_gradients_that_already_lie_end_to_end():
    node = F.split(mg.Tensor(normal((2, 3, 12)), requires_grad=True), 4, axis=2)[0].origin[0]
    whole = normal((2, 3, 12), 1)
    q, k, v = np.split(whole, 3, axis=2)
    one_of_another = (q, k.copy(), v)
    for gradients, copied in (((q, k, v), False), ((k, q, v), True), ((q, q, v), True), (one_of_another, True)):
        dx = Split.backward(node, *gradients)
        np.testing.assert_array_equal(dx, np.concatenate(gradients, axis=2))
        assert np.shares_memory(dx, whole) != copied
    from_a_buffer = np.frombuffer(bytes(8 * 24)).reshape(2, 3, 4)
    np.testing.assert_array_equal(Split.backward(node, from_a_buffer, k, v)[..., 4:], whole[..., 4:])
    rows = whole.reshape(12, 6)[:4].reshape(2, 3, 4), whole.reshape(12, 6)[4:8].reshape(2, 3, 4)
    last = whole.reshape(12, 6)[8:].reshape(2, 3, 4)
    np.testing.assert_array_equal(Split.backward(node, *rows, last), np.concatenate([*rows, last], axis=2))


def test_split_gives_plain_arrays_whatever_the_memory_of_a_gradient_is(tmp_path):
    node = F.split(mg.Tensor(normal((2, 3)), requires_grad=True), 3, axis=1)[0].origin[0]
    mapped = np.memmap(tmp_path / "gradient", np.float64, "w+", shape=(2, 3))
    assert type(Split.backward(node, np.asarray(mapped))) is np.ndarray


def test_queries_keys_and_values_of_one_array_get_its_gradient_without_a_copy():
    def attend(x):
        q, k, v = F.split(x.reshape(2, 5, 6, 3).transpose(0, 2, 1, 3), 2, axis=1)  # (2, 2, 5, 3), as GPT does
        y = F.scaled_dot_product_attention(q, k, v, causal=True)
        return y.transpose(0, 2, 1, 3).reshape(2, 5, 6)

    assert_equals_reference(attend, normal((2, 5, 18)), kernel=Split)
    heads = mg.Tensor(normal((2, 6, 5, 3)), requires_grad=True)
    q, k, v = F.split(heads, 2, axis=1)
    y = F.scaled_dot_product_attention(q, k, v, causal=True)
    dq, dk, dv, *_ = cpu.Attention.backward(y.origin[0], normal(y.shape, 1))
    whole = Split.backward(q.origin[0], dq, dk, dv)
    np.testing.assert_array_equal(whole, np.concatenate([dq, dk, dv], axis=1))
    assert whole.transpose(0, 2, 1, 3).reshape(2, 5, 18).base is dq.base


ROW_BY_ROW = {
    "gelu, exact": lambda x: F.gelu(x, approximate="none"),
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": F.tanh,
    "sigmoid": F.sigmoid,
    "squared_relu": F.squared_relu,
    "rms_norm": F.rms_norm,
}


@given(rows=st.integers(1, 40), columns=st.integers(1, 9), seed=seeds)
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_row_by_row(name, rows, columns, seed):
    fits = rows * columns > 6
    assert_equals_reference(ROW_BY_ROW[name], normal((rows, columns), seed), kernel=cpu.RowByRow if fits else None)


@given(layout=layouts, shape=st.lists(st.integers(1, 9), max_size=3).map(tuple), seed=seeds)
def test_gelu(layout, shape, seed):
    x = normal(layout.base_shape(shape), seed)
    whole = layout.view(x).flags.c_contiguous and layout.view(x).size > 6
    assert_equals_reference(lambda x: F.gelu(layout.view(x)), x, kernel=cpu.GELUTanh if whole else None)


def test_gelu_of_infinities_and_of_what_is_no_number():
    x = np.array([[np.inf, -np.inf, np.nan, 0.0, 40.0, -40.0, 1e20, -1e20]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        assert_equals_reference(F.gelu, x, kernel=cpu.GELUTanh)


@given(
    images=st.integers(2, 7),
    c=st.integers(1, 2),
    groups=st.integers(1, 2),
    layout=layouts,
    bias=st.booleans(),
    seed=seeds,
)
@settings(max_examples=30)
def test_convolution_and_pooling(images, c, groups, layout, bias, seed):
    x, weight = normal(layout.base_shape((images, c * groups, 5, 4)), seed), normal((2 * groups, c, 2, 3), seed + 1)
    parameters = [weight, normal((2 * groups,), seed + 2)] if bias else [weight]
    conv2d = lambda x, *p: F.conv2d(layout.view(x), *p, stride=2, padding=1, groups=groups)  # noqa: E731
    assert_equals_reference(conv2d, x, *parameters, kernel=cpu.ImageByImage)
    assert_equals_reference(lambda x: F.max_pool2d(layout.view(x), 2, 1, 1), x, kernel=cpu.ImageByImage)
    assert_equals_reference(lambda x: F.avg_pool2d(layout.view(x), 3, 2, 1), x, kernel=cpu.ImageByImage)


def test_convolution_of_images_or_with_kernels_that_need_no_gradient():
    x, weight = normal((5, 2, 4, 5)), normal((3, 2, 3, 3), 1)
    assert_equals_reference(lambda x: F.conv2d(x, weight.astype(x.dtype)), x, kernel=cpu.ImageByImage)
    assert_equals_reference(lambda w: F.conv2d(x.astype(w.dtype), w), weight, kernel=cpu.ImageByImage)


def test_gradients_that_all_rows_share_are_added_up():
    @kernels.accelerated(cpu=cpu.RowByRow)
    class Scaled(mg.Function):
        """y = x w, with one w for all rows: what RowByRow does for an operation with parameters."""

        @staticmethod
        def forward(ctx, x, w):
            ctx.save(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved
            return g * w, (g * x).sum(axis=0)

    mg.gradcheck(Scaled.apply, [normal((11, 3)), normal((3,), 1)])


@given(leading=leading, rows=st.integers(1, 20), columns=st.integers(1, 9), seed=seeds)
@pytest.mark.parametrize("parameters", ["none", "weight", "weight and bias"])
def test_layer_norm(parameters, leading, rows, columns, seed):
    x = normal((*leading, rows, columns), seed)
    weight, bias = normal((columns,), seed + 1), normal((columns,), seed + 2)
    given_parameters = {"none": [], "weight": [weight], "weight and bias": [weight, bias]}[parameters]
    fn = lambda x, *p: F.layer_norm(x, *p, eps=0.1)  # noqa: E731 (with one column or equal ones, eps decides)
    assert_equals_reference(fn, x, *given_parameters, kernel=cpu.LayerNorm)


@given(rows=st.integers(1, 30), classes=st.integers(1, 9), label_smoothing=st.sampled_from([0.0, 0.1, 1.0]), seed=seeds)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction, rows, classes, label_smoothing, seed):
    logits = 3 * normal((rows, classes), seed)
    targets = np.random.default_rng(seed).integers(0, classes, rows)
    targets[np.random.default_rng(seed).random(rows) < 0.2] = -100
    if reduction == "mean" and (targets == -100).all():
        targets[0] = 0
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    fn = lambda x: F.cross_entropy(x, targets, **options)  # noqa: E731
    assert_equals_reference(fn, logits, kernel=cpu.CrossEntropy)


def test_cross_entropy_of_no_target_and_of_a_masked_row():
    nothing = np.full(3, -100)
    assert np.isnan(F.cross_entropy(mg.Tensor(normal((3, 4))), nothing).data)
    masked = normal((3, 4))
    masked[1, 1:] = -np.inf
    assert_equals_reference(lambda x: F.cross_entropy(x, np.array([0, 0, 3])), masked)


@given(
    b=st.integers(1, 3),
    h=st.integers(1, 3),
    t=st.integers(1, 8),
    more=st.integers(0, 4),
    d=st.integers(1, 4),
    causal=st.booleans(),
    seed=seeds,
)
def test_attention(b, h, t, more, d, causal, seed):
    q, k, v = (
        normal((b, h, t, d), seed),
        normal((b, h, t + more, d), seed + 1),
        normal((b, h, t + more, d + 1), seed + 2),
    )
    fn = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, causal=causal)  # noqa: E731
    assert_equals_reference(fn, q, k, v, kernel=None if causal and t == 1 else cpu.Attention)


@given(b=st.integers(1, 5), h=st.integers(1, 5), t=st.integers(1, 9), parts=st.integers(1, 4))
def test_each_head_of_each_sequence_is_in_one_group(b, h, t, parts):
    q, times = np.empty((b, h, t, 1)), np.zeros((b, h))
    for group in attention.groups(q, q, parts):
        times[group] += 1
    np.testing.assert_array_equal(times, 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_attention_with_scores_that_would_overflow(causal, scale):
    q, k, v = scale * normal((2, 2, 7, 3)), scale * normal((2, 2, 7, 3), 1), normal((2, 2, 7, 3), 2)
    fn = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, causal=causal)  # noqa: E731
    with kernels.reference():
        expected, _ = forward_and_backward(fn, [q, k, v])
    values, gradients = forward_and_backward(fn, [q, k, v])
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-9, atol=1e-12)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_nan_or_an_infinity_stays_in_the_rows_that_see_it():
    q, k, v = np.ones((1, 1, 7, 3)), normal((1, 1, 7, 3), 1), normal((1, 1, 7, 3), 2)
    for bad in (np.nan, np.inf, -np.inf):
        k[0, 0, 5] = bad  # seen by the queries 5 and 6
        with np.errstate(invalid="ignore"):
            y = F.scaled_dot_product_attention(*map(mg.Tensor, (q, k, v)), causal=True).data
            with kernels.reference():
                expected = F.scaled_dot_product_attention(*map(mg.Tensor, (q, k, v)), causal=True).data
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        assert np.isfinite(y[0, 0, :5]).all()
        assert np.isfinite(y[0, 0, 5:]).all() == (bad == -np.inf)  # a score of -inf weighs nothing


@given(seed=st.integers(0, 1000), causal=st.booleans())
def test_attention_with_dropout_is_attention_with_the_weights_it_kept(seed, causal):
    """The values v = identity show the weights themselves, and so which were dropped; the rest follows by hand."""
    p, q, k = 0.5, normal((2, 2, 6, 3), seed), normal((2, 2, 6, 3), seed + 1)
    identity = np.broadcast_to(np.eye(6), (2, 2, 6, 6)).copy()

    def attend(q, k, v):
        mg.manual_seed(seed)
        return F.scaled_dot_product_attention(q, k, v, causal=causal, dropout_p=p)

    def by_hand(q, k, v):
        scores = (q / np.sqrt(3)) @ k.swapaxes(2, 3)
        if causal:
            scores = F.masked_fill(scores, np.triu(np.ones((6, 6), bool), 1), -np.inf)
        return (F.softmax(scores) * (kept / (1 - p))) @ v

    kept = attend(*map(mg.Tensor, (q, k, identity))).data != 0
    v = normal((2, 2, 6, 4), seed + 2)
    (y,), gradients = forward_and_backward(attend, [q, k, v])
    (expected,), wanted_gradients = forward_and_backward(by_hand, [q, k, v])
    for ours, theirs in zip([y, *gradients], [expected, *wanted_gradients], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_attention_drops_the_fraction_it_is_asked_to():
    q = np.zeros((4, 4, 30, 2))
    identity = np.broadcast_to(np.eye(30), (4, 4, 30, 30)).copy()
    y = F.scaled_dot_product_attention(*map(mg.Tensor, (q, q, identity)), dropout_p=0.2).data
    assert abs((y == 0).mean() - 0.2) < 0.02  # 14,400 weights: five standard deviations
    np.testing.assert_allclose(y[y != 0], 1 / 30 / 0.8, rtol=1e-4)


@given(rows=st.integers(1, 20), columns=st.integers(1, 9), seed=st.integers(0, 1000))
def test_dropout_keeps_the_same_elements_forward_and_backward(rows, columns, seed):
    x = np.ones((rows, columns))

    def drop(x):
        mg.manual_seed(seed)
        return F.dropout(x, 0.25)

    (y,), _ = forward_and_backward(drop, [x])
    assert set(np.unique(y)) <= {0, 1 / 0.75}
    (_,), (dx,) = forward_and_backward(drop, [x], seed=2)
    upstream = np.random.default_rng(2).standard_normal(x.shape)
    np.testing.assert_allclose(dx, upstream * y, rtol=1e-12)


def test_dropout_drops_the_fraction_it_is_asked_to_in_every_piece():
    y = F.dropout(mg.Tensor(np.ones((400, 100))), 0.25).data
    assert abs((y == 0).mean() - 0.25) < 0.01  # 40,000 elements: five standard deviations
    assert len({row.tobytes() for row in y}) == 400  # no piece repeats another


@pytest.mark.parametrize("name", ["AdamW", "SGD", "clip_grad_norm"])
def test_optimizers_in_pieces_and_in_whole(name):
    def trained():
        weights = [
            mg.Tensor(normal(shape, i), requires_grad=True) for i, shape in enumerate([(7, 5), (3,), (1,), (40,)])
        ]
        optimizer = {
            "AdamW": lambda: mg.optim.AdamW(weights, lr=0.1),
            "SGD": lambda: mg.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
            "clip_grad_norm": lambda: mg.optim.SGD(weights, lr=0.1),
        }[name]()
        norms = []
        for step in range(3):
            for i, w in enumerate(weights):
                w.grad = normal(w.shape, 10 * step + i)
            norms.append(mg.optim.clip_grad_norm(weights, 1.0) if name == "clip_grad_norm" else 0.0)
            optimizer.step()
        return [w.data for w in weights], norms

    arrays, norms = trained()
    with kernels.reference():
        expected, wanted_norms = trained()
    for ours, theirs in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(norms, wanted_norms, rtol=1e-12)


# The choice of the implementation


def test_reference_leaves_kernels_out():
    x, w = normal((4, 3)), normal((2, 3), 1)
    assert cpu.Linear in kernels_used(F.linear, [x, w])
    with kernels.reference():
        assert cpu.Linear not in kernels_used(F.linear, [x, w])
    assert cpu.Linear in kernels_used(F.linear, [x, w])


def test_an_operation_derived_from_one_with_a_kernel_runs_its_own_code():
    from minigrad.ops.matmul import Linear

    class Doubled(Linear):
        @staticmethod
        def forward(ctx, x, weight, bias):
            return 2 * Linear.forward(ctx, x, weight, bias)

    x, w = normal((2, 3)), normal((4, 3), 1)
    np.testing.assert_allclose(Doubled.apply(mg.Tensor(x), mg.Tensor(w), None).data, 2 * x @ w.T)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_that_a_kernel_does_not_know_go_to_the_reference(dtype):
    x, w = normal((4, 3)).astype(dtype), normal((2, 3), 1).astype(dtype)
    assert F.linear(mg.Tensor(x), mg.Tensor(w)).dtype == dtype
    assert F.layer_norm(mg.Tensor(x)).dtype == dtype


# Threads


def test_results_are_the_same_bit_for_bit_in_every_run():
    def run():
        mg.manual_seed(0)
        qkv = [normal((4, 2, 9, 3), i).astype(np.float32) for i in range(3)]
        attended = forward_and_backward(lambda *x: F.scaled_dot_product_attention(*x, causal=True, dropout_p=0.1), qkv)
        normed = forward_and_backward(F.layer_norm, [normal((50, 7)).astype(np.float32), normal((7,), 1).astype("f")])
        return [*attended[0], *attended[1], *normed[0], *normed[1]]

    first = run()
    for _ in range(5):
        for a, b in zip(first, run(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_error_in_any_part_is_raised_and_the_pool_goes_on():
    def fail(i, parts):
        if i == parts - 1:
            raise RuntimeError("part failed")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="part failed"):
            threads.in_parallel(fail, mg.get_num_threads())
    done = []
    threads.in_parallel(lambda i, parts: done.append(i), mg.get_num_threads())
    assert sorted(done) == list(range(mg.get_num_threads()))


def test_parts_that_use_the_pool_themselves_and_users_threads_at_the_same_time():
    inner = []

    def outer(i, parts):
        threads.in_parallel(lambda j, _: inner.append((i, j)), 2)

    parts = mg.get_num_threads()
    threads.in_parallel(outer, parts)
    assert sorted(inner) == [(i, j) for i in range(parts) for j in range(2)]

    x, w = normal((40, 8)), normal((9, 8), 1)
    results = [None] * 4

    def call(i):
        results[i] = [F.linear(mg.Tensor(x), mg.Tensor(w)).data for _ in range(20)]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for result in results:
        for y in result:
            np.testing.assert_allclose(y, x @ w.T, rtol=1e-12)


def test_a_backward_may_have_fewer_threads_than_its_forward():
    x = mg.Tensor(normal((40, 30)), requires_grad=True)
    mg.set_num_threads(4)
    y = F.silu(x)
    for n in (2, 1):
        mg.set_num_threads(n)
        y.sum().backward(retain_graph=True)


BEFORE_AND_AFTER_A_PRODUCT = """
import numpy as np, minigrad as mg
from minigrad import functional as F
def results():
    rng = np.random.default_rng(0)
    q, k, v = (mg.Tensor(rng.standard_normal((1, 1, 700, 64)).astype("float32"), requires_grad=True) for _ in range(3))
    x = mg.Tensor(rng.standard_normal((1, 200_000)), requires_grad=True)
    y = F.scaled_dot_product_attention(q, k, v, causal=True).sum() + F.layer_norm(x).sum() + F.cross_entropy(x, [7])
    y.backward()
    return [y.data.tobytes()] + [tensor.grad.tobytes() for tensor in (q, k, v, x)]
mg.set_num_threads({threads})
first = results()
mg.Tensor(np.ones((300, 300), "float32")) @ mg.Tensor(np.ones((300, 300), "float32"))
assert results() == first
"""


def test_results_are_the_same_bit_for_bit_whatever_ran_before():
    """Matrix libraries are held to one thread before the first operation that uses them, not after it."""
    code = BEFORE_AND_AFTER_A_PRODUCT.format(threads=mg.get_num_threads())
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_numpy_is_told_about_errors_holds_in_all_threads():
    kinds = []
    with np.errstate(over="ignore"):
        threads.in_parallel(lambda i, parts: kinds.append(np.geterr()["over"]), mg.get_num_threads())
    assert kinds == ["ignore"] * mg.get_num_threads()
