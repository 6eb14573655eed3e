"""Single changes of the engine's code that no other test noticed; tests/mutation finds them. Each has a test here."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import autograd, nn
from minigrad import functional as F
from minigrad.distributed import DataParallel, can_share
from minigrad.kernels import cpu, using
from minigrad.ops.reduce import finite_max
from tests.checks import forward_and_backward
from tests.fakes import cupy as fake_cupy
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
