"""Reductions: sum, mean, var, max, min, logsumexp over any axes, with ties and infinities."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad import kernels
from tests.shapes import distinct, layouts, normal, seeds, shape_and_axis


def plain_logsumexp(x, axis, keepdims):
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


def plain_var(x, axis, keepdims):
    """The mean of squares less the square of the mean: another formula than the one in reduce.py."""
    mean_of_squares, mean = (x * x).mean(axis=axis, keepdims=keepdims), x.mean(axis=axis, keepdims=keepdims)
    return mean_of_squares - mean**2


REDUCTIONS = {
    "sum": (F.sum, lambda x, axis, keepdims: np.add.reduce(x, axis=axis, keepdims=keepdims), normal),
    "mean": (F.mean, lambda x, axis, keepdims: np.average(x, axis=axis, keepdims=keepdims), normal),
    "var": (lambda x, axis, keepdims: F.var(x, axis, keepdims, correction=0), plain_var, normal),
    "max": (F.max, lambda x, axis, keepdims: np.maximum.reduce(x, axis=axis, keepdims=keepdims), distinct),
    "min": (F.min, lambda x, axis, keepdims: np.minimum.reduce(x, axis=axis, keepdims=keepdims), distinct),
    "logsumexp": (F.logsumexp, plain_logsumexp, normal),
}
every_reduction = pytest.mark.parametrize("name", REDUCTIONS)


@every_reduction
@given(shape_and_axis=shape_and_axis(), keepdims=st.booleans(), layout=layouts, seed=seeds)
def test_gradient_over_any_axes(name, shape_and_axis, keepdims, layout, seed):
    reduction, _, draw = REDUCTIONS[name]
    shape, axis = shape_and_axis
    x = draw(layout.base_shape(shape), seed)
    mg.gradcheck(lambda base: reduction(layout.view(base), axis, keepdims).T, x)


@every_reduction
@given(shape_and_axis=shape_and_axis(), keepdims=st.booleans(), layout=layouts, seed=seeds)
def test_values_over_any_axes(name, shape_and_axis, keepdims, layout, seed):
    reduction, formula, draw = REDUCTIONS[name]
    shape, axis = shape_and_axis
    x = layout.view(draw(layout.base_shape(shape), seed))
    expected = formula(x, axis, keepdims)
    y = reduction(mg.Tensor(x), axis, keepdims)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.data, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("correction", [0, 1, 2, 0.5])
def test_var_divides_by_n_minus_correction(correction):
    x = normal((3, 5))
    y = F.var(mg.Tensor(x), axis=1, correction=correction)
    np.testing.assert_allclose(y.data, ((x - x.mean(1, keepdims=True)) ** 2).sum(1) / (5 - correction))
    mg.gradcheck(lambda x: F.var(x, 1, correction=correction), x)


def test_var_is_the_unbiased_one_unless_told_otherwise():
    assert F.var(mg.Tensor([1.0, 3.0])).item() == 2
    assert mg.Tensor([1.0, 3.0]).var(correction=0).item() == 1


def test_var_is_exact_far_from_zero():
    """The mean of squares less the square of the mean would have lost every digit here."""
    assert F.var(mg.Tensor([1e9 + 1, 1e9 + 3], dtype=np.float64)).item() == 2


@pytest.mark.parametrize("reduction", [F.max, F.min])
@pytest.mark.parametrize("axis", [None, 1])
def test_elements_that_tie_share_the_gradient_equally(reduction, axis):
    x = mg.Tensor(np.full((2, 4), 3.0), requires_grad=True)
    y = reduction(x, axis)
    y.backward(np.full(y.shape, 8.0))
    np.testing.assert_array_equal(x.grad, np.full((2, 4), 1.0 if axis is None else 2.0))


def test_only_the_elements_that_tie_for_the_maximum_get_a_gradient():
    x = mg.Tensor([[1.0, 5.0, 5.0], [7.0, 2.0, 3.0]], requires_grad=True)
    x.max(axis=1).sum().backward()
    np.testing.assert_array_equal(x.grad, [[0, 0.5, 0.5], [1, 0, 0]])


def test_sum_and_mean_of_nothing():
    x = mg.Tensor(np.zeros((2, 0)), requires_grad=True)
    y = x.sum(axis=1)
    y.sum().backward()
    np.testing.assert_array_equal(y.data, [0, 0])
    assert x.grad.shape == (2, 0)


@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_logsumexp_does_not_overflow(shift):
    x = mg.Tensor([shift, shift], requires_grad=True, dtype=np.float64)
    y = F.logsumexp(x)
    y.backward()
    assert math.isclose(y.item(), shift + math.log(2))
    np.testing.assert_allclose(x.grad, [0.5, 0.5])


def test_logsumexp_of_a_row_of_minus_infinity_is_minus_infinity_with_no_gradient():
    x = mg.Tensor([[-np.inf, -np.inf], [0.0, -np.inf]], requires_grad=True)
    y = F.logsumexp(x, axis=1)
    y.sum().backward()
    np.testing.assert_array_equal(y.data, [-np.inf, 0])
    np.testing.assert_array_equal(x.grad, [[0, 0], [1, 0]])


@pytest.mark.parametrize("name", ["sum", "mean", "var", "max", "min"])
def test_methods_and_functions_are_the_same(name):
    x = mg.Tensor(normal((2, 3)))
    np.testing.assert_array_equal(getattr(x, name)(1, keepdims=True).data, getattr(F, name)(x, 1, keepdims=True).data)


def test_logsumexp_of_whole_numbers_is_not_rounded():
    assert F.logsumexp(np.array([1, 2, 3])).item() == pytest.approx(np.log(np.exp([1, 2, 3]).sum()))


def test_nothing_reaches_what_is_not_the_largest_not_even_an_infinite_gradient():
    x = mg.Tensor([0.0, -1.0], requires_grad=True)
    with np.errstate(divide="ignore"):
        F.sqrt(x.max()).backward()
    np.testing.assert_array_equal(x.grad, [np.inf, 0])


def test_logsumexp_with_infinity_is_infinity():
    with np.errstate(invalid="ignore"):
        assert F.logsumexp([np.inf, 0.0]).item() == np.inf


@pytest.mark.parametrize("reduction", ["sum", "mean", "var"])
@pytest.mark.parametrize(("shape", "axis"), [((1_000_000, 2), 0), ((500_000, 2, 2), (0, 1)), ((2, 1_000_000), 1)])
def test_many_float32_rows_are_added_up_without_losing_digits(reduction, shape, axis):
    x = np.full(shape, 0.1, np.float32)
    x[::2] = 0.3
    ours = getattr(mg.Tensor(x), reduction)(axis)
    exact = getattr(mg.Tensor(x.astype(np.float64)), reduction)(axis)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours.data, exact.data, rtol=1e-5)


def test_the_gradient_of_what_was_broadcast_to_many_rows_loses_no_digits():
    bias = mg.Tensor(np.zeros(2, np.float32), requires_grad=True)
    (mg.Tensor(np.zeros((1_000_000, 2), np.float32)) + bias).backward(np.full((1_000_000, 2), 0.1, np.float32))
    np.testing.assert_allclose(bias.grad, 1e5, rtol=1e-5)


SUMS_OVER_ROWS = {
    "sum": lambda x: F.sum(x, 0),
    "sum over two axes": lambda x: F.sum(x.reshape(-1, 4, 64), (0, 1)),
    "sum over a middle axis": lambda x: F.sum(x.reshape(4, -1, 64), 1),
    "sum of everything, transposed": lambda x: F.sum(x.T),
    "mean": lambda x: F.mean(x, 0),
    "var": lambda x: F.var(x, 0),
    "logsumexp": lambda x: F.logsumexp(x, 0),
}
VALUES = {"equal": lambda shape: np.full(shape, 0.1), "uniform": np.random.default_rng(0).random}


@pytest.mark.parametrize("name", SUMS_OVER_ROWS)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("rows", [300, 768, 4096])
def test_float32_sums_over_rows_are_as_exact_as_sums_within_rows(name, values, rows):
    x = VALUES[values]((rows, 64)).astype(np.float32)
    exact = SUMS_OVER_ROWS[name](mg.Tensor(x.astype(np.float64))).data
    ours = SUMS_OVER_ROWS[name](mg.Tensor(x)).data
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, rtol=5e-7)


SHARED_BY_ALL_ROWS = {
    "bias": lambda x, p: x + p,
    "bias of a linear layer": lambda x, p: F.linear(x, mg.Tensor(np.eye(64, dtype=x.dtype)), p),
    "weight of rms_norm": F.rms_norm,
    "weight of layer_norm": F.layer_norm,
}


@pytest.mark.parametrize("name", SHARED_BY_ALL_ROWS)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("rows", [300, 768, 4096])
@pytest.mark.parametrize("switch", [kernels.reference(), kernels.using("cpu")], ids=["reference", "kernels"])
def test_float32_gradients_of_what_all_rows_share_lose_no_digits(name, values, rows, switch):
    x, g = 1 + VALUES["uniform"]((rows, 64)), VALUES[values]((rows, 64))
    with switch:
        single, double = [], []
        for dtype, found in ((np.float32, single), (np.float64, double)):
            p = mg.Tensor(np.ones(64, dtype), requires_grad=True)
            SHARED_BY_ALL_ROWS[name](mg.Tensor(x.astype(np.float32).astype(dtype)), p).backward(g.astype(np.float32))
            found.append(p.grad)
    np.testing.assert_allclose(single[0], double[0], rtol=0, atol=1e-6 * np.abs(double[0]).max())


def test_var_of_equal_float32_numbers_is_zero():
    """Their mean is rounded, and the difference between them and their mean must not be taken for a deviation."""
    for value in (0.1, 1e4 / 3, 1e8 / 3):
        x = mg.Tensor(np.full((768, 5), value, np.float32))
        np.testing.assert_array_equal(F.var(x, 0).data, 0)
        np.testing.assert_array_equal(F.var(x.T, 1).data, 0)
        assert F.var(x).item() == 0


def test_a_sum_over_no_axes_is_an_array_of_its_own():
    x = mg.Tensor(np.ones((40, 2)))
    assert not np.shares_memory(F.sum(x, ()).data, x.data)


@pytest.mark.parametrize("correction", [1, 2, 0.5])
def test_var_of_no_more_elements_than_the_correction_is_refused(correction):
    n = int(np.floor(correction))
    with pytest.raises(ValueError, match=f"expected more than {correction} elements along axis .1,., for correction"):
        F.var(mg.Tensor(np.ones((2, n))), 1, correction=correction)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16"])
def test_integers_are_added_up_as_integers_also_those_of_16_bits(dtype):
    x = np.full((100, 3), 100, dtype)
    for axis in (None, 0, 1):
        y = F.sum(mg.Tensor(x), axis)
        assert y.dtype == x.sum(axis=axis).dtype
        np.testing.assert_array_equal(y.data, x.sum(axis=axis))
