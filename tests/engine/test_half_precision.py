"""float16: nothing overflows or stands still in between where the result itself fits into 65504 and 11 bits."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import kernels
from minigrad.gradcheck.cases import cases
from minigrad.ops.precision import computed_in_single
from tests.checks import forward_and_backward

rng = np.random.default_rng(0)
LARGE = (1000 * rng.standard_normal((4, 64))).astype(np.float16)  # its squares are beyond float16
MANY = rng.uniform(0.5, 1.5, (5000, 3)).astype(np.float16)  # sums of 5000 ones stand still at 2048

CALLS = {
    "gelu": (F.gelu, [np.array([-60000, -300, -256, -3, 0.5, 3, 257, 60000], np.float16)]),
    "gelu none": (lambda x: F.gelu(x, "none"), [LARGE]),
    "layer_norm": (F.layer_norm, [LARGE, np.ones(64, np.float16), np.ones(64, np.float16)]),
    "rms_norm": (F.rms_norm, [LARGE, np.ones(64, np.float16)]),
    "var": (lambda x: F.var(x / 10, axis=1), [LARGE]),
    "mean": (lambda x: F.mean(x, axis=0), [MANY]),
    "mean of large numbers": (F.mean, [abs(LARGE)]),
    "sum": (lambda x: F.sum(x, axis=0), [MANY]),
    "softmax": (lambda x: F.softmax(x, axis=0), [MANY]),
    "log_softmax": (lambda x: F.log_softmax(x, axis=0), [MANY]),
    "logsumexp": (lambda x: F.logsumexp(x, axis=0), [MANY]),
    "a broadcast bias": (F.add, [np.zeros((5000, 3), np.float16), np.ones(3, np.float16)]),
    "linear's bias": (F.linear, [np.ones((5000, 2), np.float16), np.ones((3, 2), np.float16), np.ones(3, np.float16)]),
    "embedding": (lambda w: F.embedding(np.arange(5000) % 2, w), [np.ones((2, 3), np.float16)]),
    "scale and shift of a norm": (F.layer_norm, [MANY, np.ones(3, np.float16), np.ones(3, np.float16)]),
}


@pytest.mark.parametrize("switch", [kernels.reference, lambda: kernels.replacing({})], ids=["reference", "kernels"])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_float64_rounded(name, switch):
    """To a few units of the last of 11 bits, measured by the largest element."""
    fn, inputs = CALLS[name]
    with switch():
        found = forward_and_backward(fn, inputs)
        expected = forward_and_backward(fn, [x.astype(np.float64) for x in inputs])
    for ours, exact in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours, exact, rtol=4e-3, atol=2e-3 * max(np.abs(exact).max(), 1e-3))


def test_an_operation_may_compute_in_single():
    seen = []

    @computed_in_single
    class Square(mg.Function):
        @staticmethod
        def forward(ctx, x, ids, factor):
            seen.append((x.dtype, ids.dtype))
            ctx.save(x)
            return x * x * factor

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved
            seen.append((x.dtype, g.dtype))
            return g * x, None, None  # the factor is 1/2

    ids = np.arange(2)
    for dtype, inside in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        seen.clear()
        x = mg.Tensor(np.array([300, 2], dtype), requires_grad=True)
        y = Square.apply(x, ids, 0.5)
        y.sum().backward()
        assert (y.dtype, x.grad.dtype) == (dtype, dtype)
        assert seen == [(np.dtype(inside), ids.dtype), (np.dtype(inside), np.dtype(inside))]
        np.testing.assert_array_equal(y.numpy(), np.array([45000, 2], dtype))
        np.testing.assert_array_equal(x.grad, np.array([300, 2], dtype))


def test_every_operation_works_in_bfloat16():
    """Results and gradients keep the dtype, but for the loss. NumPy knows bfloat16 through the package ml_dtypes."""
    pytest.importorskip("ml_dtypes")
    for case in cases():
        if case.operation == "Astype":
            continue  # is about other dtypes
        arrays = [np.asarray(x) for x in case.inputs]
        tensors = [mg.Tensor(x, requires_grad=True, dtype="bfloat16" if x.dtype.kind == "f" else None) for x in arrays]
        result = case.fn(*tensors)
        outputs = result if isinstance(result, tuple) else (result,)
        for y in outputs:
            assert y.dtype == ("float32" if case.operation == "CrossEntropy" else "bfloat16"), case
            y.backward(np.ones(y.shape, y.dtype), retain_graph=True)
        assert all(x.grad.dtype == "bfloat16" for x in tensors), case


def test_the_loss_of_half_precision_logits_is_single():
    """A loss near 2 would lie on a grid of 1/512, too coarse to see one step's progress."""
    logits = mg.Tensor(np.linspace(-1, 1, 40).reshape(8, 5).astype(np.float16), requires_grad=True)
    targets = np.arange(8) % 5
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    assert loss.dtype == np.float32
    assert logits.grad.dtype == np.float16
    wide = mg.Tensor(logits.data.astype(np.float64), requires_grad=True)
    expected = F.cross_entropy(wide, targets)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(logits.grad, wide.grad, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_linear_rounds_once_after_adding_its_bias(dtype):
    x, weight, bias = (mg.Tensor(a, dtype=dtype) for a in ([[1.0, 1.0]], [[256.0, 0.25]], [-256.0]))
    assert F.linear(x, weight, bias).item() == 0.25  # 256.25 has too many digits for either dtype
