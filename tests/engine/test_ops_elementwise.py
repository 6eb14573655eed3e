"""Elementwise operations: gradients under broadcasting and in every layout, values, kinks and edges."""

import functools

import numpy as np
import pytest
from hypothesis import given

import minigrad as mg
from minigrad import functional as F
from tests.shapes import broadcastable, layouts, nonzero, normal, positive, seeds, shapes

UNARY = {
    "negative": (F.negative, lambda x: -1 * x, normal),
    "exp": (F.exp, np.exp, normal),
    "log": (F.log, np.log, positive),
    "sqrt": (F.sqrt, lambda x: x**0.5, positive),
    "abs": (F.abs, np.abs, nonzero),
    "clip": (lambda x: F.clip(x, -0.7, 0.8), lambda x: np.minimum(np.maximum(x, -0.7), 0.8), normal),
    "clip low": (lambda x: F.clip(x, low=0.1), lambda x: np.where(x < 0.1, 0.1, x), normal),
    "clip high": (lambda x: F.clip(x, high=0.1), lambda x: np.where(x > 0.1, 0.1, x), normal),
    "x**0": (lambda x: x**0, np.ones_like, nonzero),
    "x**1": (lambda x: x**1, lambda x: x, nonzero),
    "x**2": (lambda x: x**2, lambda x: x * x, nonzero),
    "x**3": (lambda x: x**3, lambda x: x * x * x, nonzero),
    "x**4": (lambda x: x**4, lambda x: x * x * x * x, nonzero),
    "x**-1": (lambda x: x**-1, lambda x: 1 / x, nonzero),
    "x**0.5": (lambda x: x**0.5, np.sqrt, positive),
    "2.5**x": (lambda x: 2.5**x, lambda x: np.exp(x * np.log(2.5)), normal),
    "2 - x": (lambda x: 2 - x, lambda x: 2 + -x, normal),
    "2 / x": (lambda x: 2 / x, lambda x: 2 * x**-1.0, positive),
    "x * -3": (lambda x: x * -3, lambda x: -x - x - x, normal),
    "maximum(x, 0.1)": (lambda x: F.maximum(x, 0.1), lambda x: np.where(x > 0.1, x, 0.1), normal),
    "minimum(0.1, x)": (lambda x: F.minimum(0.1, x), lambda x: np.where(x < 0.1, x, 0.1), normal),
}
BINARY = {
    "add": (F.add, lambda a, b: a - -b, normal, normal),
    "subtract": (F.subtract, lambda a, b: a + -b, normal, normal),
    "multiply": (F.multiply, lambda a, b: a / (1 / b), normal, nonzero),
    "divide": (F.divide, lambda a, b: a * b**-1.0, normal, nonzero),
    "power": (F.power, lambda a, b: np.exp(b * np.log(a)), positive, normal),
    "maximum": (F.maximum, lambda a, b: np.where(a > b, a, b), normal, normal),
    "minimum": (F.minimum, lambda a, b: np.where(a < b, a, b), normal, normal),
}


@pytest.mark.parametrize("name", UNARY)
@given(shape=shapes(), layout=layouts, seed=seeds)
def test_gradient_of_functions_of_one_argument(name, shape, layout, seed):
    """`.T` at the end lets a gradient that is not contiguous arrive."""
    function, _, draw = UNARY[name]
    mg.gradcheck(lambda base: function(layout.view(base)).T, draw(layout.base_shape(shape), seed))


@pytest.mark.parametrize("name", UNARY)
@given(shape=shapes(), layout=layouts, seed=seeds)
def test_values_of_functions_of_one_argument(name, shape, layout, seed):
    function, formula, draw = UNARY[name]
    x = layout.view(draw(layout.base_shape(shape), seed))
    y = function(mg.Tensor(x))
    assert y.shape == shape
    np.testing.assert_allclose(y.data, formula(x), rtol=1e-12)


@pytest.mark.parametrize("name", BINARY)
@given(shapes=broadcastable(2, min_side=0), a_layout=layouts, b_layout=layouts, seed=seeds)
def test_gradients_where_either_argument_is_broadcast(name, shapes, a_layout, b_layout, seed):
    function, _, draw_a, draw_b = BINARY[name]
    a, b = draw_a(a_layout.base_shape(shapes[0]), seed), draw_b(b_layout.base_shape(shapes[1]), seed + 1)
    mg.gradcheck(lambda a, b: function(a_layout.view(a), b_layout.view(b)).T, [a, b])


@pytest.mark.parametrize("name", BINARY)
@given(shapes=broadcastable(2), seed=seeds)
def test_values_where_either_argument_is_broadcast(name, shapes, seed):
    function, formula, draw_a, draw_b = BINARY[name]
    a, b = draw_a(shapes[0], seed), draw_b(shapes[1], seed + 1)
    y = function(mg.Tensor(a), mg.Tensor(b))
    assert y.shape == np.broadcast_shapes(*shapes)
    np.testing.assert_allclose(y.data, formula(a, b), rtol=1e-12)


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "power"])
def test_gradient_of_a_tensor_combined_with_itself(name):
    function = BINARY[name][0]
    mg.gradcheck(lambda x: function(x, x), positive((3,)))


@given(shapes=broadcastable(3), seed=seeds)
def test_where_gradients_when_mask_and_both_branches_are_broadcast(shapes, seed):
    mask = normal(shapes[0], seed) > 0
    mg.gradcheck(lambda a, b: F.where(mask, a, b).T, [normal(shapes[1], seed + 1), normal(shapes[2], seed + 2)])


@given(shapes=broadcastable(3), seed=seeds)
def test_where_takes_each_place_from_one_branch(shapes, seed):
    mask, a, b = normal(shapes[0], seed) > 0, normal(shapes[1], seed + 1), normal(shapes[2], seed + 2)
    mask_, a_, b_ = np.broadcast_arrays(mask, a, b)
    y = F.where(mask, mg.Tensor(a), mg.Tensor(b))
    np.testing.assert_array_equal(y.data[mask_], a_[mask_])
    np.testing.assert_array_equal(y.data[~mask_], b_[~mask_])


def test_where_keeps_an_infinite_gradient_of_one_branch_out_of_the_other():
    """0 times infinity would be NaN, so the mask selects instead of multiplying."""
    a, b = mg.Tensor([1.0, 2.0], requires_grad=True), mg.Tensor([3.0, 4.0], requires_grad=True)
    F.where(np.array([True, False]), a, b).backward(np.array([np.inf, 1.0]))
    np.testing.assert_array_equal(a.grad, [np.inf, 0])
    np.testing.assert_array_equal(b.grad, [0, 1])


@pytest.mark.parametrize("function", [F.maximum, F.minimum])
def test_at_a_tie_each_argument_gets_half(function):
    a, b = mg.Tensor([1.0, 2.0, 3.0], requires_grad=True), mg.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    function(a, b).backward(np.array([1.0, 4.0, -6.0]))
    np.testing.assert_array_equal(a.grad, [0.5, 2, -3])
    np.testing.assert_array_equal(b.grad, [0.5, 2, -3])


@pytest.mark.parametrize("function", [F.maximum, F.minimum])
def test_a_tensor_against_itself_gets_the_whole_gradient(function):
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    function(x, x).backward(np.array([5.0, 7.0]))
    np.testing.assert_array_equal(x.grad, [5, 7])


def test_a_tie_with_a_number_gets_half():
    x = mg.Tensor([0.0, 1.0], requires_grad=True)
    F.maximum(x, 0).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.5, 1])


def test_the_gradient_of_abs_at_zero_is_zero():
    x = mg.Tensor([-2.0, 0.0, 3.0], requires_grad=True)
    abs(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [-1, 0, 1])


def test_clip_passes_the_gradient_at_its_bounds_and_none_outside():
    x = mg.Tensor([-2.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    F.clip(x, -1, 1).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 1, 1, 1, 0])


@pytest.mark.parametrize("exponent", [0, 0.0, mg.Tensor(0.0), mg.Tensor([0.0])], ids=["int", "float", "0-d", "1-d"])
def test_zero_to_the_power_of_zero_has_value_one_and_gradient_zero(exponent):
    x = mg.Tensor([0.0], requires_grad=True)
    y = x**exponent
    y.backward()
    assert y.item() == 1
    assert x.grad == [0]


@pytest.mark.parametrize("exponent", [1, 2, 3, 2.5])
def test_powers_of_zero_have_finite_gradients(exponent):
    x = mg.Tensor([0.0], requires_grad=True)
    (x**exponent).backward()
    assert x.grad == [1 if exponent == 1 else 0]


def test_the_gradient_of_zero_to_the_b_is_zero_for_positive_b():
    b = mg.Tensor([1.0, 2.0], requires_grad=True)
    (mg.Tensor([0.0, 0.0]) ** b).sum().backward()
    np.testing.assert_array_equal(b.grad, [0, 0])


def test_whole_powers_of_negative_numbers_have_gradients():
    x = mg.Tensor([-2.0], requires_grad=True)
    (x**3 + x**2 + x**-1).backward()
    np.testing.assert_allclose(x.grad, [3 * 4 + 2 * -2 - 1 / 4])


@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (lambda x, y: x + y, np.add),
        (lambda x, y: x - y, np.subtract),
        (lambda x, y: x * y, np.multiply),
        (lambda x, y: x / y, np.divide),
        (lambda x, y: x**y, np.power),
    ],
    ids=["+", "-", "*", "/", "**"],
)
def test_operators_take_tensors_arrays_and_numbers_on_either_side(ours, numpys):
    x, y = positive((2, 3)), positive((3,), 1)
    for left, right in [(mg.Tensor(x), mg.Tensor(y)), (mg.Tensor(x), y), (x, mg.Tensor(y))]:
        result = ours(left, right)
        assert isinstance(result, mg.Tensor)
        np.testing.assert_array_equal(result.data, numpys(x, y))
    np.testing.assert_allclose(ours(mg.Tensor(x), 2).data, numpys(x, 2), rtol=1e-15)
    np.testing.assert_allclose(ours(2, mg.Tensor(x)).data, numpys(2, x), rtol=1e-15)
    np.testing.assert_allclose(ours(mg.Tensor(x), [1.0, 2.0, 3.0]).data, numpys(x, [1.0, 2.0, 3.0]), rtol=1e-15)


def test_comparisons_are_plain_boolean_arrays():
    x, y = mg.Tensor([1.0, 2.0, 3.0]), mg.Tensor([3.0, 2.0, 1.0])
    for compared, expected in [
        (x < y, [True, False, False]),
        (x <= y, [True, True, False]),
        (x > 1, [False, True, True]),
        (x >= 2, [False, True, True]),
        (x == y, [False, True, False]),
        (x != np.array([1, 0, 3]), [False, True, False]),
    ]:
        assert type(compared) is np.ndarray
        np.testing.assert_array_equal(compared, expected)


def test_float32_with_float64_arrays_is_float64_and_each_gradient_has_its_own_dtype():
    a = mg.Tensor(np.ones(2, np.float32), requires_grad=True)
    b = mg.Tensor(np.ones(2, np.float64), requires_grad=True)
    y = a * b
    y.sum().backward()
    assert (y.dtype, a.grad.dtype, b.grad.dtype) == (np.float64, np.float32, np.float64)


@pytest.mark.parametrize("narrow", [np.uint8, np.int8, np.uint16, np.int32])
def test_integers_of_two_widths_meet_in_one_that_holds_both(narrow):
    wide, one = mg.Tensor([300, -300]), mg.Tensor(np.ones(2, narrow))
    for y in (wide + one, one + wide):
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y.data, [301, -299])
    assert (wide + mg.Tensor(np.ones((), narrow))).dtype == np.int64
    assert (one + mg.Tensor(1)).dtype == narrow


@pytest.mark.parametrize(("x", "y"), [(0, 0.5), (0.5, 0), (0.0, 0.5), (True, 0.5)])
def test_where_of_two_numbers_is_float32_if_either_is_a_float(x, y):
    chosen = F.where([True, False], x, y)
    assert chosen.dtype == np.float32
    np.testing.assert_array_equal(chosen.data, [x, y])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64])
@pytest.mark.parametrize(
    "function",
    [
        *(F.sigmoid, F.silu, F.softplus, F.gelu, functools.partial(F.gelu, approximate="none")),
        *(F.softmax, F.log_softmax, F.logsumexp, F.rms_norm),
    ],
    ids=lambda value: getattr(value, "__name__", "exact gelu"),
)
def test_integers_of_any_width_are_computed_with_as_floats(function, dtype):
    x = np.array([0, 1, 12, 120], dtype)
    np.testing.assert_array_equal(function(x).data, function(x.astype(np.float64)).data)


def test_astype_converts_the_gradient_back():
    x = mg.Tensor(np.ones(2, np.float32), requires_grad=True)
    y = x.astype("float64")
    (y * np.array([1.5, 2.5])).sum().backward()
    assert y.dtype == np.float64
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [1.5, 2.5])
    assert x.astype(np.float32) is x


@pytest.mark.parametrize(
    "cut",
    [
        F.relu,
        lambda x: F.clip(x, 0.0),
        lambda x: F.maximum(x, 0.0),
        lambda x: -F.minimum(-x, 0.0),
        lambda x: F.where(x.data > 0, x, 0.0),
        lambda x: F.masked_fill(x, x.data < 0, 0.0),
    ],
    ids=["relu", "clip", "maximum", "minimum", "where", "masked_fill"],
)
def test_nothing_reaches_what_was_cut_off_not_even_an_infinite_gradient(cut):
    """The slope of the root is infinite at 0. Times 0 that would be NaN."""
    x = mg.Tensor([-1.0, 4.0], requires_grad=True)
    with np.errstate(divide="ignore"):
        F.sqrt(cut(x)).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.25])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, 4.0])
def test_integers_to_the_power_of_a_float_are_floats(exponent):
    y = mg.Tensor([3, 2**40]) ** exponent
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y.data, [3.0**exponent, 2.0 ** (40 * exponent)])


def test_the_first_power_is_a_new_array():
    x = mg.Tensor([1.0, 2.0])
    y = x**1
    y[0] = 5.0
    np.testing.assert_array_equal(x.numpy(), [1, 2])


def test_power_at_zero_and_of_two_numbers():
    base, exponent = mg.Tensor(np.zeros(3), requires_grad=True), mg.Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    with np.errstate(divide="ignore"):
        (base**exponent).sum().backward()
    assert exponent.grad.tolist() == [-np.inf, 0, 0]  # 0^b falls from infinity to 0 at b = 0, and stays there
    assert F.power(2, 1).item() == 2


WITH_A_NAN = {
    "max": lambda x: F.max(x, 0),
    "min": lambda x: F.min(x, 0),
    "max of everything": F.max,
    "maximum": lambda x: F.maximum(x, 0.5),
    "maximum, right": lambda x: F.maximum(0.5, x),
    "minimum": lambda x: F.minimum(x, np.full(3, 0.5)),
    "relu": F.relu,
    "squared_relu": F.squared_relu,
    "abs": F.abs,
}


@pytest.mark.parametrize("name", WITH_A_NAN)
def test_a_nan_does_not_disappear_in_backward(name):
    x = mg.Tensor([1.0, np.nan, -2.0], requires_grad=True)
    y = WITH_A_NAN[name](x).sum()
    assert np.isnan(y.item())
    y.backward()
    assert np.isnan(x.grad[1])
    with mg.detect_anomaly(), pytest.raises(mg.AnomalyError, match="returned a NaN or an infinity for argument"):
        WITH_A_NAN[name](x).sum().backward()


@pytest.mark.parametrize("function", [F.maximum, F.minimum])
def test_a_nan_beside_a_number_shows_in_both_gradients_and_nowhere_else(function):
    a, b = mg.Tensor([np.nan, 1.0, 3.0], requires_grad=True), mg.Tensor([0.0, np.nan, 3.0], requires_grad=True)
    function(a, b).sum().backward()
    np.testing.assert_array_equal(a.grad, [np.nan, np.nan, 0.5])
    np.testing.assert_array_equal(b.grad, [np.nan, np.nan, 0.5])


@pytest.mark.parametrize("function", [F.max, F.min])
def test_a_nan_stays_in_its_row(function):
    x = mg.Tensor([[1.0, np.nan], [2.0, 2.0]], requires_grad=True)
    function(x, axis=1).sum().backward()
    np.testing.assert_array_equal(x.grad, [[np.nan, np.nan], [0.5, 0.5]])


def test_powers_of_numbers_that_are_no_tensors():
    for a, b in ((2.0, 3.0), (2, 3), (4, 0.5)):
        assert F.power(a, b).item() == a**b
