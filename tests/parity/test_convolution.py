"""Convolution and pooling against PyTorch, on all samples of its own operator database that apply."""

import importlib
import warnings

import pytest

from minigrad import functional as F

from .compare import assert_parity, torch

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,  # to import the database takes as long as all the tests beside it
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),  # PyTorch copies where a kernel is even
]

# The names of the arguments after the first, and what PyTorch has beside them, at the value that means without it
ARGUMENTS = {
    "conv2d": ("weight bias stride padding dilation groups", {}),
    "max_pool2d": ("kernel_size stride padding", {"dilation": 1, "ceil_mode": False, "return_indices": False}),
    "avg_pool2d": (
        "kernel_size stride padding ceil_mode count_include_pad divisor_override",
        {"ceil_mode": False, "divisor_override": None},
    ),
}
APPLY = {"conv2d": 30, "max_pool2d": 180, "avg_pool2d": 1}


@pytest.fixture
def database(monkeypatch):
    """PyTorch's operators with their samples. To import them forbids setting PyTorch's flags; that is undone here."""
    pytest.importorskip("expecttest", reason="PyTorch's tests need it: pip install expecttest")
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("torch.testing._internal.common_methods_invocations").op_db


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_samples_of_pytorch_s_operator_database(name, database):
    names, others = ARGUMENTS[name]
    (operation,) = [each for each in database if each.name == f"nn.functional.{name}"]
    apply = 0
    for sample in operation.sample_inputs("cpu", torch.float64, requires_grad=False):
        given = {**dict(zip(names.split(), sample.args, strict=False)), **sample.kwargs}
        if any(given.pop(key, without) != without for key, without in others.items()):
            continue
        arrays = {key: x.numpy() for key, x in given.items() if isinstance(x, torch.Tensor)}
        settings = {key: value for key, value in given.items() if key not in arrays and value is not None}

        def call(function, x, *arrays, keys=tuple(arrays), settings=settings):
            return function(x, **dict(zip(keys, arrays, strict=True)), **settings)

        assert_parity(
            lambda *inputs: call(getattr(F, name), *inputs),  # noqa: B023 (called at once)
            lambda *inputs: call(getattr(torch.nn.functional, name), *inputs),  # noqa: B023
            [sample.input.numpy(), *arrays.values()],
        )
        apply += 1
    assert apply >= APPLY[name]
