"""The functions that networks are made of; each fused one equals its composition from simple operations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg
from minigrad import functional as F
from minigrad import kernels, nn
from minigrad.ops.activation import erf
from tests.checks import assert_equal_functions, forward_and_backward
from tests.shapes import broadcastable, layouts, nonzero, normal, seeds, shapes

# The compositions: nothing fused, nothing clever


def composed_softmax(x, axis=-1):
    e = F.exp(x)
    return e / e.sum(axis, keepdims=True)


def composed_cross_entropy(logits, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    counted = targets != ignore_index
    log_p = F.log(composed_softmax(logits))[counted]
    losses = -(1 - label_smoothing) * log_p[np.arange(counted.sum()), targets[counted]]
    losses = losses - label_smoothing * log_p.mean(-1)
    return losses.sum() / counted.sum() if reduction == "mean" else losses.sum()


def composed_layer_norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / F.sqrt(x.var(-1, keepdims=True, correction=0) + eps) * weight + bias


def composed_rms_norm(x, weight, eps=1e-5):
    return x / F.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def composed_gelu(x):
    return 0.5 * x * (1 + F.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def composed_attention(q, k, v, mask=None):
    """`mask` leaves every query at least one key."""
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = F.where(mask, scores, -np.inf)
    return composed_softmax(scores) @ v


# Activations

ACTIVATIONS = {
    "tanh": (F.tanh, lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x))),
    "sigmoid": (F.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "relu": (F.relu, lambda x: np.where(x > 0, x, 0)),
    "silu": (F.silu, lambda x: x / (1 + np.exp(-x))),
    "softplus": (F.softplus, lambda x: np.logaddexp(0, x)),
    "gelu": (F.gelu, lambda x: x / (1 + np.exp(-math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)))),
    "gelu none": (
        lambda x: F.gelu(x, approximate="none"),
        np.vectorize(lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)), otypes="d"),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(shape=shapes(), layout=layouts, seed=seeds)
def test_gradient_of_activations(name, shape, layout, seed):
    mg.gradcheck(lambda base: ACTIVATIONS[name][0](layout.view(base)).T, nonzero(layout.base_shape(shape), seed))


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(shape=shapes(), layout=layouts, seed=seeds)
def test_values_of_activations(name, shape, layout, seed):
    function, formula = ACTIVATIONS[name]
    x = 2 * layout.view(normal(layout.base_shape(shape), seed))
    np.testing.assert_allclose(function(mg.Tensor(x)).data, formula(x), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_are_finite_far_from_zero(name, dtype):
    """And silent: a warning of overflow would fail this test."""
    function, _ = ACTIVATIONS[name]
    (y,), (dx,) = forward_and_backward(function, [np.array([-1e4, -1000, -100, 100, 1000, 1e4], dtype)])
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


@given(shape=shapes(), layout=layouts, seed=seeds)
def test_squared_relu(shape, layout, seed):
    def through_the_layout(function):
        return lambda base: function(layout.view(base))

    x = nonzero(layout.base_shape(shape), seed)
    assert_equal_functions(through_the_layout(F.squared_relu), through_the_layout(lambda x: F.relu(x) ** 2), x)
    mg.gradcheck(through_the_layout(F.squared_relu), x)


def test_squared_relu_around_zero():
    x = mg.Tensor([-2.0, -0.0, 0.0, 1e-3, 3.0], requires_grad=True)
    y = nn.SquaredReLU()(x)
    y.sum().backward()
    np.testing.assert_allclose(y.data, [0, 0, 0, 1e-6, 9], rtol=1e-6)
    np.testing.assert_allclose(x.grad, [0, 0, 0, 2e-3, 6], rtol=1e-6)


def test_an_infinite_gradient_of_squared_relu_shows_where_the_slope_is_zero():
    x = mg.Tensor([-2.0, 0.0, 3.0], requires_grad=True)
    with np.errstate(invalid="ignore"):
        F.squared_relu(x).backward(np.full(3, np.inf))
    np.testing.assert_array_equal(x.grad, [np.nan, np.nan, np.inf])


def test_the_gradient_of_relu_at_zero_is_zero():
    x = mg.Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    F.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0, 1])


def test_softplus_at_the_ends_of_the_range():
    """x itself far to the right, e^x far to the left: neither overflows, and the small values keep their digits."""
    x = np.array([-np.inf, -700, -40, 0, 40, 1e300, np.inf])
    _, (dx,) = forward_and_backward(lambda t: F.softplus(t).sum(), [x])
    np.testing.assert_allclose(F.softplus(x).data, [0, np.exp(-700), np.exp(-40), np.log(2), 40, 1e300, np.inf], 1e-15)
    np.testing.assert_allclose(dx / dx[-1], [0, np.exp(-700), np.exp(-40), 0.5, 1, 1, 1], 1e-15)


def test_gelu_equals_its_composition():
    assert_equal_functions(F.gelu, composed_gelu, 2 * normal((3, 4)))


def test_gelu_is_the_tanh_form_unless_told_otherwise_and_the_forms_differ():
    x = mg.Tensor(np.linspace(-4, 4, 801))
    tanh_form, exact = F.gelu(x).data, F.gelu(x, approximate="none").data
    np.testing.assert_array_equal(tanh_form, F.gelu(x, approximate="tanh").data)
    assert 1e-4 < np.abs(tanh_form - exact).max() < 1e-3


def test_erf_is_right_to_the_last_digits():
    x = np.concatenate([np.linspace(-7, 7, 20_001), [0.0, -0.0, np.inf, -np.inf, 1e-300, 1e300]])
    expected = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(erf(x), expected, rtol=4e-16, atol=2e-16)
    x = np.linspace(-7, 7, 20_001).astype(np.float32)
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x], rtol=3e-7)
    assert np.isnan(erf(np.array([np.nan])))


# Softmax


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
@given(data=st.data(), shape=shapes(min_dims=1, min_side=1), layout=layouts, seed=seeds)
def test_softmax_gradients_along_any_axis(function, data, shape, layout, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    mg.gradcheck(lambda base: function(layout.view(base), axis).T, normal(layout.base_shape(shape), seed))


@given(data=st.data(), shape=shapes(min_dims=1, min_side=1), seed=seeds)
def test_softmax_equals_its_composition(data, shape, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = normal(shape, seed)
    assert_equal_functions(lambda x: F.softmax(x, axis), lambda x: composed_softmax(x, axis), x)
    assert_equal_functions(lambda x: F.log_softmax(x, axis), lambda x: F.log(composed_softmax(x, axis)), x)


def test_softmax_does_not_care_about_a_constant_however_large():
    x = normal((2, 5))
    for shift in (-1e5, 1e5):
        np.testing.assert_allclose(F.softmax(mg.Tensor(x + shift)).data, F.softmax(mg.Tensor(x)).data, rtol=1e-9)
        np.testing.assert_allclose(
            F.log_softmax(mg.Tensor(x + shift)).data, F.log_softmax(mg.Tensor(x)).data, rtol=1e-9
        )


def test_log_softmax_stays_finite_where_softmax_underflows():
    y = F.log_softmax(mg.Tensor([0.0, -1000.0]))
    np.testing.assert_array_equal(y.data, [0, -1000])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_of_minus_infinity_has_a_softmax_of_zeros_and_no_gradient(dtype):
    x = np.array([[-np.inf, -np.inf, -np.inf], [-np.inf, 1, 1]], dtype)
    (y,), (dx,) = forward_and_backward(F.softmax, [x])
    np.testing.assert_array_equal(y, [[0, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_array_equal(dx[0], [0, 0, 0])
    assert np.isfinite(dx).all()
    assert dx[1, 0] == 0


@pytest.mark.parametrize("switch", [kernels.reference, lambda: kernels.replacing({})], ids=["reference", "kernels"])
def test_infinite_logits_show_as_nan(switch):
    """As in PyTorch: an overflow that made one logit infinite must not look like certainty."""
    x = np.array([[np.inf, 1.0], [0.0, 1.0]])
    with switch(), np.errstate(invalid="ignore"):
        for y in (F.softmax(x), F.log_softmax(x), F.cross_entropy(x, np.array([1, 1]), reduction="none")):
            assert np.isnan(y.numpy()[0]).all()
            assert np.isfinite(y.numpy()[1]).all()


def test_log_softmax_of_a_row_of_minus_infinity_has_a_finite_gradient():
    x = np.array([[-np.inf, -np.inf], [-np.inf, 1]])
    x = mg.Tensor(x, requires_grad=True)
    y = F.log_softmax(x)
    y.backward([[3.0, 5.0], [0.0, 7.0]])
    np.testing.assert_array_equal(y.data, [[-np.inf, -np.inf], [-np.inf, 0]])
    np.testing.assert_array_equal(x.grad, [[3, 5], [0, 0]])


@pytest.mark.parametrize("switch", [kernels.reference, lambda: kernels.using("cpu")], ids=["reference", "kernels"])
def test_cross_entropy_of_a_row_of_minus_infinity_is_infinite_with_a_finite_gradient(switch):
    x = mg.Tensor(np.array([[-np.inf, -np.inf], [0, 0]]), requires_grad=True)
    with switch():
        losses = F.cross_entropy(x, [0, 1], reduction="none")
    losses.sum().backward()
    np.testing.assert_allclose(losses.data, [np.inf, np.log(2)])
    np.testing.assert_allclose(x.grad, [[-1, 0], [0.5, -0.5]])


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
@pytest.mark.parametrize("shape", [(2, 0), (5, 0, 0), (0, 3), (0,)])
def test_softmax_over_nothing_is_nothing(function, shape):
    for axis in range(-1, len(shape) - 1):
        (y,), (dx,) = forward_and_backward(lambda x, axis=axis: function(x, axis), [np.zeros(shape)])
        assert y.shape == dx.shape == shape


def test_logsumexp_over_nothing_is_minus_infinity():
    for axis, shape in ((1, (2,)), ((0, 1), ()), (None, ()), (0, (0,))):
        (y,), (dx,) = forward_and_backward(lambda x, axis=axis: F.logsumexp(x, axis), [np.zeros((2, 0))])
        np.testing.assert_array_equal(y, np.full(shape, -np.inf))
        assert dx.shape == (2, 0)


# Normalization


@given(leading=shapes(max_dims=2), c=st.integers(2, 4), layout=layouts, seed=seeds)
def test_layer_norm_gradients(leading, c, layout, seed):
    x = 2 * normal(layout.base_shape((*leading, c)), seed)
    weight, bias = normal((c,), seed + 1), normal((c,), seed + 2)
    mg.gradcheck(lambda x, weight, bias: F.layer_norm(layout.view(x), weight, bias, eps=0.1).T, [x, weight, bias])


@given(leading=shapes(max_dims=2), c=st.integers(1, 4), layout=layouts, seed=seeds)
def test_rms_norm_gradients(leading, c, layout, seed):
    x, weight = normal(layout.base_shape((*leading, c)), seed), normal((c,), seed + 1)
    mg.gradcheck(lambda x, weight: F.rms_norm(layout.view(x), weight, eps=0.1).T, [x, weight])


@given(leading=shapes(max_dims=2), c=st.integers(2, 5), seed=seeds)
def test_norms_equal_their_compositions(leading, c, seed):
    x, weight, bias = normal((*leading, c), seed), normal((c,), seed + 1), normal((c,), seed + 2)
    assert_equal_functions(F.layer_norm, composed_layer_norm, x, weight, bias)
    assert_equal_functions(F.rms_norm, composed_rms_norm, x, weight)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.layer_norm(x),
        lambda x, w: F.layer_norm(x, w),
        lambda x, w: F.layer_norm(x, None, w),
        lambda x, w: F.rms_norm(x),
    ],
    ids=["neither", "weight", "bias", "rms_norm"],
)
def test_norms_without_weight_or_bias(function):
    mg.gradcheck(function, [normal((2, 3, 4)), normal((4,), 1)])


def test_layer_norm_gives_rows_of_mean_zero_and_variance_one():
    y = F.layer_norm(mg.Tensor(5 + 3 * normal((4, 100)))).data
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-5)


def test_layer_norm_of_a_constant_row_is_finite():
    (y,), (dx,) = forward_and_backward(F.layer_norm, [np.full((2, 3), 7.0)])
    np.testing.assert_array_equal(y, np.zeros((2, 3)))
    assert np.isfinite(dx).all()


ON_BOTH = pytest.mark.parametrize("switch", [kernels.reference(), kernels.using("cpu")], ids=["reference", "kernel"])


@ON_BOTH
@pytest.mark.parametrize("value", [0.1, 100 / 3, 1e4 / 3, -1e6 / 7, 1e8 / 3])
def test_layer_norm_of_a_constant_row_of_float32_is_zero(switch, value):
    """The mean is rounded, and the difference between the row and its mean must not be taken for a deviation."""
    for channels in (128, 384, 768):
        with switch:
            y = F.layer_norm(mg.Tensor(np.full((64, channels), value, np.float32)))
        np.testing.assert_array_equal(y.data, 0)


@ON_BOTH
@pytest.mark.parametrize("mean", [0, 10, 100, 1000, -1e4])
def test_layer_norm_loses_no_digits_to_a_large_mean(switch, mean):
    x, weight, bias = (
        (mean + normal((64, 768))).astype("f"),
        normal((768,), 1).astype("f"),
        normal((768,), 2).astype("f"),
    )
    exact = forward_and_backward(composed_layer_norm, [array.astype(np.float64) for array in (x, weight, bias)])
    with switch:
        ours = forward_and_backward(F.layer_norm, [x, weight, bias])
    for values, expected in zip(sum(ours, []), sum(exact, []), strict=True):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


# Dropout


def seeded(fn):
    """`fn` with the same mask at every call."""

    def call(*inputs):
        mg.manual_seed(7)
        return fn(*inputs)

    return call


@given(shape=shapes(), p=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), layout=layouts, seed=seeds)
def test_dropout_gradients(shape, p, layout, seed):
    x = normal(layout.base_shape(shape), seed)
    mg.gradcheck(seeded(lambda base: F.dropout(layout.view(base), p).T), x)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_a_share_p_and_keeps_the_mean(p):
    n = 100_000
    (y,), (dx,) = forward_and_backward(lambda x: F.dropout(x, p), [np.ones(n)])
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs((y == 0).mean() - p) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - p)], rtol=1e-4)
    np.testing.assert_array_equal(dx == 0, y == 0)


def test_dropout_of_nothing_is_the_tensor_itself():
    x = mg.Tensor(normal((3,)))
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 0.5, training=False) is x


def test_dropout_of_everything_is_zero_with_zero_gradient():
    (y,), (dx,) = forward_and_backward(lambda x: F.dropout(x, 1.0), [normal((3, 4))])
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(dx, 0)


def test_every_call_of_dropout_draws_another_mask():
    x = mg.Tensor(np.ones(100))
    assert (F.dropout(x, 0.5).data != F.dropout(x, 0.5).data).any()


# Cross-entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@given(
    leading=shapes(max_dims=2, min_side=1),
    v=st.integers(1, 4),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    data=st.data(),
    layout=layouts,
    seed=seeds,
)
def test_cross_entropy_gradients(reduction, leading, v, label_smoothing, data, layout, seed):
    targets = data.draw(hnp.arrays(np.int64, leading, elements=st.integers(0, v - 1)))
    base = normal(layout.base_shape((*leading, v)), seed)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    mg.gradcheck(lambda base: F.cross_entropy(layout.view(base), targets, **options), base)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_its_composition(reduction, ignore_index, label_smoothing):
    targets = np.array([[0, 3, 1], [2, ignore_index, ignore_index]])
    assert_equal_functions(
        lambda x: F.cross_entropy(x, targets, ignore_index, reduction, label_smoothing),
        lambda x: composed_cross_entropy(x, targets, ignore_index, reduction, label_smoothing),
        normal((2, 3, 4)),
    )


def test_label_smoothing_is_least_where_the_probabilities_are_the_smoothed_target():
    """A share of 0.2 for all five classes: 0.8 + 0.04 for the target, 0.04 for each of the others."""
    expected = np.array([[0.04, 0.84, 0.04, 0.04, 0.04]])
    logits = mg.Tensor(np.log(expected), requires_grad=True)
    loss = F.cross_entropy(logits, np.array([1]), label_smoothing=0.2)
    loss.backward()
    assert math.isclose(loss.item(), -np.sum(expected * np.log(expected)))
    np.testing.assert_allclose(logits.grad, 0, atol=1e-15)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, math.nan])
def test_label_smoothing_is_a_share(label_smoothing):
    with pytest.raises(ValueError, match=f"cross_entropy: expected label_smoothing from 0 to 1, got {label_smoothing}"):
        F.cross_entropy(normal((1, 2)), [0], label_smoothing=label_smoothing)


def test_cross_entropy_without_reduction_has_the_shape_of_the_targets_and_zeros_where_ignored():
    logits, targets = normal((2, 3, 4)), np.array([[0, 3, -100], [2, 1, -100]])
    losses = F.cross_entropy(mg.Tensor(logits), targets, reduction="none").data
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [[-log_p[0, 0, 0], -log_p[0, 1, 3], 0], [-log_p[1, 0, 2], -log_p[1, 1, 1], 0]]
    np.testing.assert_allclose(losses, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
def test_ignored_rows_get_no_gradient_whatever_is_in_them(label_smoothing):
    """Even logits that are -inf throughout, which have no softmax."""
    logits = mg.Tensor([[1.0, 2.0], [-np.inf, -np.inf]], requires_grad=True)
    loss = F.cross_entropy(logits, np.array([0, -100]), label_smoothing=label_smoothing)
    loss.backward()
    other = label_smoothing / 2  # of the classes 0 and 1, the loss of class 1 being less by 1
    assert math.isclose(loss.item(), math.log(1 + math.e) - other, rel_tol=1e-6)
    np.testing.assert_array_equal(logits.grad[1], [0, 0])
    assert np.isfinite(logits.grad).all()


def test_where_all_targets_are_ignored_the_mean_is_nan_the_sum_zero_and_no_gradient_flows():
    for reduction in ("mean", "sum"):
        logits = mg.Tensor(normal((2, 3)), requires_grad=True)
        loss = F.cross_entropy(logits, np.full(2, -100), reduction=reduction)
        loss.backward()
        assert np.isnan(loss.item()) if reduction == "mean" else loss.item() == 0
        np.testing.assert_array_equal(logits.grad, 0)


def test_cross_entropy_neither_overflows_nor_underflows():
    logits = mg.Tensor([[1000.0, 0.0], [-1000.0, 0.0]], requires_grad=True)
    loss = F.cross_entropy(logits, np.array([1, 0]), reduction="none")
    loss.sum().backward()
    np.testing.assert_array_equal(loss.data, [1000, 1000])
    np.testing.assert_array_equal(logits.grad, [[1, -1], [-1, 1]])


def test_a_target_that_is_masked_out_costs_infinity_and_a_masked_class_nothing():
    logits = mg.Tensor([[0.0, -np.inf], [0.0, -np.inf]], requires_grad=True)
    loss = F.cross_entropy(logits, np.array([0, 1]), reduction="none")
    loss.backward(np.ones(2))
    np.testing.assert_array_equal(loss.data, [0, np.inf])
    np.testing.assert_array_equal(logits.grad, [[0, 0], [1, -1]])


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes():
    assert math.isclose(F.cross_entropy(mg.Tensor(np.zeros((4, 65))), np.arange(4)).item(), math.log(65))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_targets_of_any_integer_dtype(dtype):
    """-100, the default of ignore_index, does not exist in uint8."""
    loss = F.cross_entropy(mg.Tensor(np.zeros((2, 3))), np.array([0, 2], dtype))
    assert math.isclose(loss.item(), math.log(3))


# Attention

attention = F.scaled_dot_product_attention
sides = st.integers(1, 3)


def causal_mask(t, u):
    return np.array([[j <= i + u - t for j in range(u)] for i in range(t)])


@given(
    leading=broadcastable(3, max_dims=2), t=sides, u=sides, d=sides, causal=st.booleans(), layout=layouts, seed=seeds
)
def test_attention_gradients(leading, t, u, d, causal, layout, seed):
    """With more queries than keys, the first queries may look nowhere when it is causal."""
    own = [(t, d), (u, d), (u, d)]
    qkv = [normal(layout.base_shape((*leading[i], *own[i])), seed + i) for i in range(3)]
    mg.gradcheck(lambda *bases: attention(*map(layout.view, bases), causal=causal).T, qkv)


@given(leading=broadcastable(3, max_dims=2), t=sides, u=sides, d=sides, seed=seeds)
def test_attention_equals_its_composition(leading, t, u, d, seed):
    own = [(t, d), (u, d), (u, d)]
    qkv = [normal((*leading[i], *own[i]), seed + i) for i in range(3)]
    assert_equal_functions(attention, composed_attention, *qkv)
    mask = normal((t, u), seed + 3) > 0
    mask[:, 0] = True
    assert_equal_functions(
        lambda q, k, v: attention(q, k, v, mask=mask), lambda q, k, v: composed_attention(q, k, v, mask), *qkv
    )
    if t <= u:  # every query sees at least the first key
        assert_equal_functions(
            lambda q, k, v: attention(q, k, v, causal=True, mask=mask),
            lambda q, k, v: composed_attention(q, k, v, mask & causal_mask(t, u)),
            *qkv,
        )


def test_causal_is_a_mask_that_hides_the_future():
    qkv = [normal((2, 4, 3), i) for i in range(3)]
    mask = np.tril(np.ones((4, 4), bool))
    assert_equal_functions(
        lambda q, k, v: attention(q, k, v, causal=True), lambda q, k, v: attention(q, k, v, mask=mask), *qkv
    )


def test_causal_with_a_cache_lets_the_last_query_see_every_key():
    """The last two of five queries, against all five keys, see what they saw among all five."""
    q, k, v = (normal((5, 3), i) for i in range(3))
    every = attention(q, k, v, causal=True).data
    last_two = attention(q[3:], k, v, causal=True).data
    last = attention(q[4:], k, v, causal=True).data
    np.testing.assert_allclose(last_two, every[3:], rtol=1e-12)
    np.testing.assert_allclose(last, every[4:], rtol=1e-12)


def test_a_later_key_or_value_changes_no_earlier_output():
    q, k, v = (normal((4, 3), i) for i in range(3))
    before = attention(q, k, v, causal=True).data
    k[3] += 1
    v[3] += 1
    after = attention(q, k, v, causal=True).data
    np.testing.assert_array_equal(after[:3], before[:3])
    assert (after[3] != before[3]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_query_that_may_look_nowhere_gives_zeros_and_finite_gradients(dtype):
    q, k, v = (normal((2, 3, 4), i).astype(dtype) for i in range(3))
    mask = np.array([[False, False, False], [True, False, True], [True, True, True]])
    (y,), (dq, dk, dv) = forward_and_backward(lambda q, k, v: attention(q, k, v, mask=mask), [q, k, v])
    np.testing.assert_array_equal(y[:, 0], 0)
    np.testing.assert_array_equal(dq[:, 0], 0)
    assert all(np.isfinite(a).all() for a in (y, dq, dk, dv))


def test_every_query_masked():
    qkv = [normal((3, 4), i) for i in range(3)]
    (y,), grads = forward_and_backward(lambda q, k, v: attention(q, k, v, mask=np.zeros((3, 3), bool)), qkv)
    for array in (y, *grads):
        np.testing.assert_array_equal(array, 0)


def test_a_mask_may_differ_between_the_heads_and_examples():
    q, k, v = (normal((2, 3, 4, 5), i) for i in range(3))
    mask = normal((2, 1, 4, 4), 9) > -0.5
    y = attention(q, k, v, mask=mask).data
    for b in range(2):
        for h in range(3):
            np.testing.assert_allclose(y[b, h], attention(q[b, h], k[b, h], v[b, h], mask=mask[b, 0]).data, atol=1e-12)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_attention_dropout_gradients(p):
    mg.gradcheck(
        seeded(lambda q, k, v: attention(q, k, v, causal=True, dropout_p=p)), [normal((2, 3, 4), i) for i in range(3)]
    )


def test_attention_dropout_keeps_the_expectation():
    """Values of one: without dropout every output is 1, with it 1 on average."""
    q, k = normal((500, 4)), normal((200, 4), 1)
    y = attention(q, k, np.ones((200, 1)), dropout_p=0.2).data
    assert y.std() > 0.01
    assert abs(y.mean() - 1) < 0.01


def test_values_may_have_another_width_than_queries():
    mg.gradcheck(attention, [normal((3, 4)), normal((5, 4), 1), normal((5, 2), 2)])


# Used more than once


@pytest.mark.parametrize("times", range(1, 9))
@pytest.mark.parametrize(
    "function",
    [
        F.gelu,
        F.softmax,
        F.layer_norm,
        lambda x: F.linear(x, x),
        lambda x: F.cross_entropy(x, [0, 1, 0]),
        lambda x: x + x,
    ],
    ids=["gelu", "softmax", "layer_norm", "linear", "cross_entropy", "add"],
)
def test_gradient_when_a_result_is_used_n_times(function, times):
    def fn(x):
        y = function(x)
        return sum((i + 1) * y**2 for i in range(times))

    mg.gradcheck(fn, normal((3, 3)))
