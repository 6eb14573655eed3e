"""What holds for every function: dtypes are kept, inputs are left alone, any layout in memory will do."""

import inspect

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from tests.checks import forward_and_backward
from tests.engine.calls import CALLS, Call
from tests.shapes import LAYOUTS

PROMISED = """
    exp log sqrt abs tanh sigmoid relu gelu silu maximum minimum where clip
    sum mean max min var logsumexp reshape transpose broadcast_to concatenate stack split
    matmul linear softmax log_softmax masked_fill layer_norm rms_norm embedding dropout cross_entropy
    scaled_dot_product_attention
""".split()

every_call = pytest.mark.parametrize("name", CALLS)


def cast(call: Call, dtype) -> list[np.ndarray]:
    return [x.astype(dtype) if x.dtype.kind == "f" else x for x in call.inputs]


def test_every_function_has_a_call():
    """A function added to functional.py without a line in calls.py fails here."""
    public = {
        name
        for name, value in inspect.getmembers(F, inspect.isfunction)
        if value.__module__ == F.__name__ and not name.startswith("_")
    }
    assert public == {name.split()[0] for name in CALLS}
    assert set(PROMISED) <= public


@every_call
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_dtype_of_the_gradient(name, dtype):
    call = CALLS[name]
    values, grads = forward_and_backward(call.fn, cast(call, dtype))
    loss_of_half = name.startswith("cross_entropy") and dtype == np.float16  # 11 bits are too few to see it fall
    assert {y.dtype for y in values} == {np.dtype(np.float32 if loss_of_half else dtype)}
    assert {g.dtype for g in grads} == {np.dtype(dtype)}


@every_call
def test_float32_agrees_with_float64(name):
    """Nothing is computed at less than the precision of the inputs."""
    call = CALLS[name]
    results = []
    for dtype in (np.float32, np.float64):
        mg.manual_seed(0)
        values, grads = forward_and_backward(call.fn, cast(call, dtype))
        results.append(values + grads)
    for single, double in zip(*results, strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-5)


@every_call
def test_inputs_are_not_modified_and_may_be_read_only(name):
    call = CALLS[name]
    inputs = [x.copy() for x in call.inputs]
    for x in inputs:
        x.setflags(write=False)
    _, grads = forward_and_backward(call.fn, inputs)
    for x, before in zip(inputs, call.inputs, strict=True):
        np.testing.assert_array_equal(x, before)
    assert all(g is not None for g in grads)


@every_call
def test_backward_does_not_write_to_the_gradient_it_is_given(name):
    call = CALLS[name]
    tensors = [mg.Tensor(x, requires_grad=x.dtype.kind == "f") for x in call.inputs]
    result = call.fn(*tensors)
    y = result[0] if isinstance(result, tuple) else result
    upstream = np.linspace(-1, 1, y.size).reshape(y.shape)
    upstream.setflags(write=False)
    y.backward(upstream)  # a write would raise
    assert all(x.grad.flags.writeable and x.grad.base is None for x in tensors if x.requires_grad)


@every_call
@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=repr)
def test_layout_in_memory_makes_no_difference(name, layout):
    call = CALLS[name]
    bases = [np.zeros(layout.base_shape(x.shape), x.dtype) for x in call.inputs]
    views = [layout.view(base) for base in bases]
    for view, x in zip(views, call.inputs, strict=True):
        view[...] = x
    results = []
    for inputs in (call.inputs, views):
        mg.manual_seed(0)
        values, grads = forward_and_backward(call.fn, inputs)
        results.append(values + grads)
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("astype", "to")])  # these return x itself
def test_plain_arrays_will_do_and_take_no_gradient(name):
    call = CALLS[name]
    result = call.fn(*call.inputs)
    for y in result if isinstance(result, tuple) else (result,):
        assert isinstance(y, mg.Tensor)
        assert not y.requires_grad


@every_call
def test_nothing_is_recorded_inside_no_grad(name):
    call = CALLS[name]
    tensors = [mg.Tensor(x, requires_grad=x.dtype.kind == "f") for x in call.inputs]
    with mg.no_grad():
        result = call.fn(*tensors)
    for y in result if isinstance(result, tuple) else (result,):
        assert y.origin is None


CONSTANTS = {
    "Python float": 1.5,
    "Python int": 2,
    "np.float64 scalar": np.float64(1.5),
    "np.sqrt(2.0)": np.sqrt(2.0),
    "0-d float64 array": np.array(1.5),
    "0-d float64 tensor": mg.Tensor(np.array(1.5)),
    "sqrt of an integer": F.sqrt(64),
    "np.int64 scalar": np.int64(2),
    "integer array": np.array([1, 2, 3]),
    "integer tensor": mg.Tensor([1, 2, 3]),
    "boolean array": np.array([True, True, True]),
}
PAIRS = [F.add, F.subtract, F.multiply, F.divide, F.power, F.maximum, F.minimum]


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("function", [*PAIRS, lambda x, y: F.where(np.array([True, False, True]), x, y)])
def test_constants_adopt_the_dtype_of_the_tensor(function, dtype, constant):
    x = np.array([0.5, 1.0, 2.0], dtype)
    for fn in (lambda x: function(x, constant), lambda x: function(constant, x)):
        (y,), (dx,) = forward_and_backward(fn, [x])
        assert y.dtype == dx.dtype == dtype


def test_mixed_dtypes_give_each_tensor_a_gradient_of_its_own_dtype():
    """float32 and float64 meet in float64; a 0-d tensor adopts the dtype of the tensor with axes."""
    for b_shape, y_dtype in (((3,), np.float64), ((), np.float32)):
        a = mg.Tensor(np.ones(3, np.float32), requires_grad=True)
        b = mg.Tensor(np.full(b_shape, 2.0), requires_grad=True)
        y = a * b
        assert y.dtype == y_dtype
        y.sum().backward()
        assert a.grad.dtype == np.float32
        assert b.grad.dtype == np.float64
        np.testing.assert_array_equal(a.grad, [2, 2, 2])
        np.testing.assert_array_equal(b.grad, np.broadcast_to(1, 3) if b_shape else 3)


@pytest.mark.parametrize("number", [np.float64(0.5), np.array(0.5)], ids=["np.float64 scalar", "0-d float64 array"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, number: F.clip(x, number, None),
        lambda x, number: F.clip(x, None, number),
        lambda x, number: F.masked_fill(x, np.array([True, False, False, True]), number),
        lambda x, number: F.layer_norm(x, eps=number),
        lambda x, number: F.rms_norm(x, eps=number),
        lambda x, number: F.dropout(x, number),
        lambda x, number: F.var(x, correction=number),
    ],
    ids=["clip low", "clip high", "masked_fill", "layer_norm eps", "rms_norm eps", "dropout p", "var correction"],
)
def test_settings_given_as_float64_do_not_promote(function, number):
    (y,), (dx,) = forward_and_backward(lambda x: function(x, number), [np.linspace(-1, 1, 4, dtype=np.float32)])
    assert y.dtype == dx.dtype == np.float32
