"""Habits from PyTorch and NumPy: they work with their gradients, or one line says what to write."""

import contextlib
import functools
import importlib
import re

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import hints, nn, numpy_calls, optim
from tests.fakes import cupy as fake_cupy


def leaf(values):
    return mg.Tensor(np.array(values, float), requires_grad=True)


@contextlib.contextmanager
def one_line(error, *parts):
    """Expect an error whose message has one line, and these parts."""
    with pytest.raises(error) as caught:
        yield
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# PyTorch's names

LINEAR = nn.Linear(2, 3)
OWNERS = [
    (mg, "module 'minigrad'", hints.MINIGRAD),
    (nn, "module 'minigrad.nn'", hints.NN),
    (optim, "module 'minigrad.optim'", hints.OPTIM),
    (F, "module 'minigrad.functional'", hints.FUNCTIONAL),
    (mg.Tensor([1.0]), "Tensor", hints.TENSOR),
    (LINEAR, "Linear", hints.MODULE),
]
HINTS = [
    pytest.param(owner, said, name, hint, id=f"{said}.{name}")
    for owner, said, table in OWNERS
    for name, hint in table.items()
]


@pytest.mark.parametrize(("owner", "said", "name", "hint"), HINTS)
def test_a_name_of_pytorch_gets_a_hint(owner, said, name, hint):
    with one_line(AttributeError, f"{said} has no attribute {name!r}: {hint}"):
        getattr(owner, name)
    assert not hasattr(owner, name)


@pytest.mark.parametrize(("owner", "said", "name", "hint"), HINTS)
def test_what_a_hint_names_exists(owner, said, name, hint):
    for letters, module in {"mg": mg, "F": F, "nn": nn, "optim": optim, "np": np, "x": mg.Tensor([1.0])}.items():
        for names in re.findall(rf"(?<![\w.]){letters}((?:\.\w+)+)", hint):
            functools.reduce(getattr, names[1:].split("."), module)
    for module in re.findall(r"minigrad\.\w+", hint):
        __import__(module)


def test_what_a_hint_computes_is_what_pytorch_computes():
    x, y = leaf([0.5, -2.0, 3.0]), leaf([1.0, 0.0, 1.0])
    values = {"x": x, "y": y, "F": F, "np": np, "mg": mg, "ids": [2, 0], "n": 3}

    def computed(hint):
        return np.asarray(eval(hint.removeprefix("write "), values))

    a, b = x.data, y.data
    p = 1 / (1 + np.exp(-a))
    binary = -(b * np.log(p) + (1 - b) * np.log(1 - p)).mean()
    for table, name, expected in [
        (hints.NN, "MSELoss", ((a - b) ** 2).mean()),
        (hints.NN, "L1Loss", abs(a - b).mean()),
        (hints.NN, "BCEWithLogitsLoss", binary),
        (hints.FUNCTIONAL, "mse_loss", ((a - b) ** 2).mean()),
        (hints.FUNCTIONAL, "l1_loss", abs(a - b).mean()),
        (hints.FUNCTIONAL, "binary_cross_entropy_with_logits", binary),
        (hints.FUNCTIONAL, "std", a.std(ddof=1)),
        (hints.FUNCTIONAL, "norm", np.linalg.norm(a)),
        (hints.FUNCTIONAL, "one_hot", [[0, 0, 1], [1, 0, 0]]),
    ]:
        np.testing.assert_allclose(computed(table[name]), expected, rtol=1e-12)


@pytest.mark.parametrize("owner", [mg, mg.Tensor([1.0])], ids=["module", "tensor"])
def test_names_that_functional_has_are_found_there(owner):
    for name in ("exp", "softmax", "cross_entropy"):
        with one_line(AttributeError, f"has no attribute {name!r}: write F.{name}(…)"):
            getattr(owner, name)


def test_other_names_get_no_hint():
    for owner, said, _ in OWNERS:
        for name in ("nonsense", "__wrapped__", "_private_"):
            with pytest.raises(AttributeError) as caught:
                getattr(owner, name)
            assert str(caught.value) == f"{said} has no attribute {name!r}"
            assert caught.value.name == name


def test_methods_that_write_in_place_say_what_does_it_here():
    with one_line(AttributeError, "Tensor has no attribute 'add_': inside mg.no_grad(), operators such as x += …"):
        leaf([1.0]).add_(1)


def test_the_module_tensor_is_still_a_module():
    from minigrad.tensor import Tensor

    assert Tensor is mg.Tensor


def test_names_of_pytorch_that_mean_the_same_work():
    x = leaf([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert x.view(3, -1).shape == (3, 2)
    assert x.permute(1, 0).shape == (3, 2)
    x.permute(1, 0).view(6).sum().backward()
    assert x.grad.tolist() == [[1, 1, 1], [1, 1, 1]]
    model = nn.Sequential(nn.Linear(1, 1))
    for zero in (model.zero_grad, optim.SGD(model.parameters(), lr=0.1).zero_grad):
        model(np.ones((1, 1), np.float32)).sum().backward()
        zero(set_to_none=True)
        assert [p.grad for p in model.parameters()] == [None, None]
        with one_line(ValueError, "zero_grad: gradients are always set to None; expected set_to_none=True"):
            zero(set_to_none=False)


def test_a_leaf_of_zeros_shows_the_gradient_of_an_intermediate_tensor():
    """What the hint for retain_grad says."""
    x, zeros = leaf([1.0, 2.0]), leaf([0.0, 0.0])
    h = x * 3 + zeros
    (h * h).sum().backward()
    assert zeros.grad.tolist() == [6, 12]


def test_size_is_a_number_that_says_so_when_it_is_called():
    x = leaf([[1.0, 2.0]])
    assert (x.size, repr(x.size), x.size // 2) == (2, "2", 1)
    for call in (lambda: x.size(), lambda: x.size(0)):
        with one_line(
            TypeError, "size is a property, the number of elements; for x.size() write x.shape, for x.size(0) "
        ):
            call()


# PyTorch's keyword arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.sum(dim=1), "sum: dim= is called axis= here"),
        (lambda x: x.mean(1, keepdim=True), "mean: keepdim= is called keepdims= here"),
        (lambda x: x.max(dim=0, keepdim=True), "max: dim= is called axis= here"),
        (lambda x: x.min(dim=0), "min: dim= is called axis= here"),
        (lambda x: x.var(unbiased=False), "var: unbiased= is called correction= here"),
        (lambda x: F.logsumexp(x, dim=0), "logsumexp: dim= is called axis= here"),
        (lambda x: F.softmax(x, dim=-1), "softmax: dim= is called axis= here"),
        (lambda x: F.log_softmax(x, dim=-1), "log_softmax: dim= is called axis= here"),
        (lambda x: F.concatenate([x, x], dim=1), "concatenate: dim= is called axis= here"),
        (lambda x: F.stack([x, x], dim=1), "stack: dim= is called axis= here"),
        (lambda x: F.split(x, 1, dim=1), "split: dim= is called axis= here"),
        (lambda x: F.cross_entropy(x, target=[0, 1]), "cross_entropy: target= is called targets= here"),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
            "scaled_dot_product_attention: is_causal= is called causal= here",
        ),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=None),
            "scaled_dot_product_attention: attn_mask= is called mask= here",
        ),
    ],
)
def test_keywords_of_pytorch_get_a_hint(call, message):
    with pytest.raises(TypeError) as caught:
        call(leaf([[1.0, 2.0], [3.0, 4.0]]))
    assert str(caught.value) == message


def test_other_type_errors_stay_what_they_are():
    with pytest.raises(TypeError, match="unexpected keyword argument 'axes'"):
        leaf([1.0]).sum(axes=0)
    with pytest.raises(TypeError, match="expected one tensor, got a list of tensors"):
        F.sum([leaf(1.0)], axis=0)


# Arguments


def test_arguments_in_pytorchs_manner_get_a_hint(tmp_path):
    x, model = leaf([[1.0, 2.0]]), nn.Sequential(nn.Linear(2, 2))
    with one_line(
        TypeError, "layer_norm: expected a weight of shape (C,) or None, got (2,); there is no normalized_shape"
    ):
        F.layer_norm(x, (2,))
    with one_line(
        TypeError, "rms_norm: expected a weight of shape (C,) or None, got (2,); there is no normalized_shape"
    ):
        F.rms_norm(x, x.shape[-1:])
    assert F.rms_norm(x.astype(np.float32), (1.0, 1.0)).shape == (1, 2)  # a weight, given as a tuple
    for make in (optim.SGD, optim.AdamW, optim.Muon):
        name = make.__name__
        message = f"{name}: expected parameters, got the module Sequential; write {name}(model.parameters(), …)"
        with one_line(TypeError, message):
            make(model, lr=0.1)
    with one_line(TypeError, "SGD: expected leaf tensors that require gradients, got tuple"):
        optim.SGD(model.named_parameters(), lr=0.1)
    with one_line(
        TypeError, "save: expected a dict of tensors by name, got Sequential; write save(model.state_dict(), "
    ):
        mg.save(model, tmp_path / "model.safetensors")
    with one_line(TypeError, "save: expected a dict of tensors by name, got Tensor"):
        mg.save(x, tmp_path / "model.safetensors")
    with one_line(ValueError, "expected every axis once, in the new order; swapaxes(a, b) exchanges two axes"):
        leaf(np.ones((2, 3, 4))).transpose(-2, -1)


def test_a_missing_return_is_named():
    class NoResult(mg.Function):
        @staticmethod
        def forward(ctx, x):
            x * 2

    class NoGradient(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            g * 2

    class NoOutput(nn.Module):
        def forward(self, x):
            x * 2

    x = leaf([1.0, 2.0])
    for argument in (x, x.detach()):
        with one_line(TypeError, "NoResult.forward returned None; expected an array", "is a return missing?"):
            NoResult.apply(argument)
    with one_line(mg.AutogradError, "NoGradient.backward returned None; expected a gradient for each of its 1 tensors"):
        NoGradient.apply(x).sum().backward()
    with one_line(TypeError, "cannot make an array of numbers from NoneType", "is a return missing?"):
        F.relu(NoOutput()(x))


def test_an_array_is_shared_and_a_write_to_it_is_not_noticed():
    """As docs/pytorch.md says."""
    a = np.array([1.0, 2.0])
    x = mg.Tensor(a, requires_grad=True)
    y = (x * x).sum()
    a[0] = 5
    y.backward()
    assert x.data is a
    assert x.grad.tolist() == [10, 4]


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_a_0d_tensor_can_be_reduced_over_its_only_axis(axis, keepdims):
    """As in NumPy and PyTorch, although it has none."""
    for reduce in (F.sum, F.mean, F.max, F.min, F.logsumexp, functools.partial(F.var, correction=0)):
        x = leaf(3.0)
        y = reduce(x, axis=axis, keepdims=keepdims)
        y.backward()
        is_var = isinstance(reduce, functools.partial)
        assert (y.shape, y.item(), x.grad.item()) == ((), 0 if is_var else 3, 0 if is_var else 1)
    with pytest.raises(ValueError, match=r"sum: axis 1 is out of range for shape \(\)"):
        leaf(3.0).sum(axis=1)


# NumPy's functions

X = np.array([[0.5, 2.0], [3.0, 0.25]])
MASK = X > 1
DIFFERENTIABLE = {
    "add": lambda x: np.add(x, 1.5),
    "array +": lambda x: X + x,
    "array -": lambda x: X - x,
    "array *": lambda x: X * x,
    "array /": lambda x: X / x,
    "array **": lambda x: X**x,
    "array @": lambda x: X @ x,
    "scalar *": lambda x: np.float64(2) * x,
    "divide": lambda x: np.divide(1.5, x),
    "true_divide": lambda x: np.true_divide(x, X),
    "power": lambda x: np.power(x, 3),
    "matmul": lambda x: np.matmul(x, x),
    "negative": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "square": np.square,
    "maximum": lambda x: np.maximum(x, 1.0),
    "minimum": lambda x: np.minimum(1.0, x),
    "concatenate": lambda x: np.concatenate([x, 2 * x], axis=1),
    "concatenate with arrays": lambda x: np.concatenate((X, x)),
    "stack": lambda x: np.stack([x, X]),
    "where": lambda x: np.where(MASK, x, X),
    "clip": lambda x: np.clip(x, 0.4, 2.5),
    "sum": np.sum,
    "sum over an axis": lambda x: np.sum(x, axis=0, keepdims=True),
    "mean": lambda x: np.mean(x, axis=1),
    "max": lambda x: np.max(x, axis=1),
    "min": np.min,
    "amax": np.amax,
    "amin": np.amin,
    "var": np.var,
    "var with ddof": lambda x: np.var(x, axis=0, ddof=1),
    "reshape": lambda x: np.reshape(x, (4, 1)),
    "transpose": np.transpose,
    "transpose by axes": lambda x: np.transpose(x, (1, 0)),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "broadcast_to": lambda x: np.broadcast_to(x, (3, 2, 2)),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_numpys_functions_keep_the_gradient(name):
    call = DIFFERENTIABLE[name]
    y = call(leaf(X))
    assert isinstance(y, mg.Tensor)
    assert y.requires_grad
    np.testing.assert_allclose(y.data, call(X), rtol=1e-12)
    assert mg.gradcheck(call, [X])


def test_every_function_that_is_handed_over_is_tried_above():
    sources = " ".join(f"{name} np.{name}" for name in DIFFERENTIABLE)
    operators = {np.subtract, np.multiply}
    compared = {np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal}
    for function in {*numpy_calls.UFUNCS, *numpy_calls.FUNCTIONS} - operators - compared:
        name = {"absolute": "abs"}.get(function.__name__, function.__name__)
        assert f"np.{name}" in sources, name


LOST = {
    "np.sin": lambda x: np.sin(x),
    "np.std": lambda x: np.std(x),
    "np.vstack": lambda x: np.vstack([x, x]),
    "np.hstack": lambda x: np.hstack([x, X]),
    "np.split": lambda x: np.split(x, 2),
    "np.ravel": lambda x: np.ravel(x),
    "np.squeeze": lambda x: np.squeeze(x),
    "np.expand_dims": lambda x: np.expand_dims(x, 0),
    "np.dot": lambda x: np.dot(x, X),
    "np.inner": lambda x: np.inner(x, X),
    "np.outer": lambda x: np.outer(x, X),
    "np.einsum": lambda x: np.einsum("ij,jk->ik", x, X),
    "np.tile": lambda x: np.tile(x, 2),
    "np.repeat": lambda x: np.repeat(x, 2),
    "np.prod": lambda x: np.prod(x),
    "np.copy": lambda x: np.copy(x),
    "np.cumsum": lambda x: np.cumsum(x),
    "np.reciprocal": lambda x: np.reciprocal(x),
    "np.float_power": lambda x: np.float_power(x, 2),
    "np.logaddexp": lambda x: np.logaddexp(x, X),
    "np.linalg.norm": lambda x: np.linalg.norm(x),
    "np.add": lambda x: np.add.reduce(x),
    "np.multiply": lambda x: np.multiply(x, 2, dtype=np.float32),
    "np.exp": lambda x: np.exp(x, out=X.copy()),
}


@pytest.mark.parametrize("name", LOST)
def test_a_gradient_is_not_lost_in_silence(name):
    call = LOST[name]
    hint = numpy_calls.HINTS.get(name.rpartition(".")[2], "")
    with one_line(TypeError, f"{name}: a tensor requires gradients, which the result would not have; use ", hint):
        call(leaf(X))
    expected = call(X)
    for x in (leaf(X).detach(), mg.Tensor(X)):
        np.testing.assert_array_equal(call(x), expected)
    with mg.no_grad():
        np.testing.assert_array_equal(call(leaf(X)), expected)


def test_every_hint_for_numpy_is_tried_above():
    assert {name for name in numpy_calls.HINTS if not any(each.endswith(f".{name}") for each in LOST)} == set()


def test_writing_into_an_array_is_not_recorded():
    a, x = X.copy(), leaf(X)
    with one_line(TypeError, "np.add: a tensor requires gradients", "use a = a + x in place of a += x"):
        a += x
    with one_line(TypeError, "np.add: a tensor requires gradients"):
        np.add.at(a, ([0], [1]), x[0, 0])
    np.testing.assert_array_equal(a, X)
    a += x.detach()
    np.testing.assert_array_equal(a, 2 * X)
    with one_line(
        TypeError, "np.sum: ", "unexpected keyword argument 'out'; for tensors that require gradients it takes "
    ):
        np.sum(x, out=np.zeros(()))
    with one_line(TypeError, "np.cumsum: a tensor requires gradients"):
        np.cumsum(x, out=np.zeros(4))
    with one_line(TypeError, "np.copyto: a tensor requires gradients"):
        np.copyto(a, x)


def test_what_has_no_gradient_is_computed_by_numpy():
    x = leaf(X)
    assert np.argmax(x) == 2
    assert (np.shape(x), np.ndim(x), np.size(x)) == ((2, 2), 2, 4)
    assert np.isfinite(x).all()
    assert np.allclose(x, X)
    assert np.array_equal(x, X)
    assert [each.tolist() for each in np.where(x)] == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert np.zeros_like(x).tolist() == [[0, 0], [0, 0]]
    assert np.asarray(x) is x.data
    np.testing.assert_array_equal(np.array([x, x]), [X, X])


@pytest.mark.parametrize("left", [X, X[0], np.float64(0.5), 0.5], ids=["matrix", "row", "NumPy number", "number"])
def test_comparisons_with_an_array_on_the_left_are_numpys(left):
    x = mg.Tensor(X * 0.5, requires_grad=True)
    for compared, expected in [
        (left == x, left == x.data),
        (left != x, left != x.data),
        (left < x, left < x.data),
        (left <= x, left <= x.data),
        (left > x, left > x.data),
        (left >= x, left >= x.data),
    ]:
        assert type(compared) is np.ndarray
        np.testing.assert_array_equal(compared, expected)


def test_numpy_computes_with_tensors_that_require_no_gradients():
    """As it always did; elementwise functions that the engine has give tensors, as operators do."""
    x = mg.Tensor(X)
    assert type(np.asarray(x)) is np.ndarray
    assert np.mean(x) == X.mean()
    assert type(np.concatenate([x, x])) is np.ndarray
    assert type(np.exp(x)) is mg.Tensor
    assert type(X + x) is mg.Tensor
    assert type(np.sin(x)) is np.ndarray


def test_a_cupy_array_leaves_operators_to_the_tensor_and_numpys_functions_stay_on_the_gpu(monkeypatch):
    """CuPy asks the instance for `__array_ufunc__`, where NumPy asks the class."""
    fake_cupy.install(monkeypatch)
    x = mg.Tensor(X, requires_grad=True, device="cuda")
    for y in (importlib.import_module("cupy").asarray(X) - x, np.exp(x), np.concatenate([x, x]), np.float64(2) * x):
        assert isinstance(y, mg.Tensor)
        assert (y.device, y.requires_grad) == ("cuda:0", True)
    with one_line(TypeError, "np.sin: a tensor requires gradients"):
        np.sin(x)
    with one_line(mg.DeviceError, "its arrays are on cpu and cuda:0"):
        X + x
    np.testing.assert_array_equal(np.cumsum(x.detach()), np.cumsum(X))
