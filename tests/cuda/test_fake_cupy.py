"""Operations, models and training on the fake CuPy, and the fake itself."""

from __future__ import annotations

import inspect
import operator
import re
import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad import kernels
from tests.cuda.on_gpu import OnGPU, no_waiting, trainer_on_gpu
from tests.fakes import cupy as fake_cupy


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    fake_cupy.install(monkeypatch)
    with kernels.reference():
        yield fake_cupy.cupy


class TestOnFakeCuPy(OnGPU):
    """The same NumPy functions run on either side, so that little is rounded differently: sums in another order."""

    tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 2e-3}

    def ask_for_too_much(self):
        raise fake_cupy.OutOfMemoryError(2**51, 5 * 2**30)


def test_the_loss_is_read_only_when_it_is_logged(tmp_path, monkeypatch):
    """Two numbers, the loss and the gradient's norm, for each line of the log, and nothing in between."""
    trainer = trainer_on_gpu(tmp_path, max_iters=40)
    monkeypatch.setattr(trainer, "estimate_is_due", lambda: False)  # so that it neither evaluates nor saves
    before = fake_cupy.synchronizations
    trainer.train()
    assert len(trainer.rows) == 5  # the first step and every tenth
    assert fake_cupy.synchronizations - before == 2 * 5


def test_an_evaluation_reads_its_losses_when_all_are_computed(tmp_path, monkeypatch):
    trainer = trainer_on_gpu(tmp_path, eval_iters=3)
    read = []
    loss = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda *args: (read.append(fake_cupy.synchronizations), loss(*args))[1])
    trainer.estimate_losses()
    assert read[0] == read[2]
    assert read[3] == read[5]
    assert fake_cupy.synchronizations - read[0] == 6


# What the fake refuses


@pytest.mark.parametrize("convert", [
    np.asarray, np.array, lambda x: np.linalg.norm(x), lambda x: np.testing.assert_array_equal(x, 1),
    lambda x: np.ones(3) + x, lambda x: x + np.ones(3), lambda x: np.ones(3) @ x, operator.index, list.__len__,
    lambda x: [0, 1][x], lambda x: range(x), hash,
])  # fmt: skip
def test_no_array_turns_into_numpys_by_itself(cupy, convert):
    with pytest.raises((TypeError, DeprecationWarning)):  # NumPy warns of the `copy` that CuPy's __array__ lacks
        convert(cupy.ones(3))


def test_numpys_functions_find_their_way_to_cupys(cupy):
    x = cupy.ones((2, 3))
    assert isinstance(np.exp(x), cupy.ndarray)
    assert isinstance(np.sum(x), cupy.ndarray)
    assert isinstance(np.float32(2) * x, cupy.ndarray)
    assert np.shape(x) == (2, 3)


@pytest.mark.parametrize("wait", [
    float, int, bool, repr, lambda x: x.get(), lambda x: x.item(), lambda x: fake_cupy.cupy.asnumpy(x),
    lambda x: x.reshape(1)[x.reshape(1) > 0], lambda x: x.reshape(1).__setitem__(x.reshape(1) > 0, 2),
    lambda x: x.reshape(1).nonzero(), lambda x: fake_cupy.cupy.flatnonzero(x),
])  # fmt: skip
def test_waiting_is_counted_and_can_be_forbidden(cupy, wait):
    x = cupy.ones(())
    wait(x)
    assert fake_cupy.synchronizations == 1
    with no_waiting(), pytest.raises(fake_cupy.DeviceSynchronized):
        wait(x)


def test_results_without_axes_are_arrays(cupy):
    x = cupy.arange(3, dtype="float32")
    for y in (x.sum(), x[1], x[1] * 2, cupy.vdot(x, x), cupy.where(x.sum() > 0, x.sum(), 0)):
        assert isinstance(y, cupy.ndarray)
        assert (y.shape, y.dtype) == ((), np.float32)


def test_indices(cupy):
    x = cupy.arange(3)
    assert x[[1, 3, -1]].get().tolist() == [1, 0, 2]
    with pytest.raises(IndexError):
        x[3]
    x[1:].fill(7)
    assert x.get().tolist() == [0, 7, 7]
    assert x[1:].base is x
    with pytest.raises(ValueError, match="non-scalar"):
        x[:] = np.arange(3)


def test_unknown_keywords_and_dtypes_are_refused(cupy):
    x = cupy.ones(3)
    for call in (lambda: cupy.sum(x, where=x > 0), lambda: x.max(initial=0), lambda: cupy.add(x, x, where=x > 0)):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="float128"):
        x.astype(np.longdouble)


def test_half_precision_is_summed_in_single(cupy):
    assert cupy.ones(5000, "float16").sum().item() == 5000


# Several GPUs


def test_operations_stay_on_the_gpu_of_their_inputs(cupy):
    one = mg.Tensor([1.0, 2.0], requires_grad=True, device="cuda:1")
    zero = mg.Tensor([1.0, 2.0], requires_grad=True, device="cuda:0")
    for x, device in ((one, "cuda:1"), (zero, "cuda:0"), (one, "cuda:1")):
        y = mg.functional.softmax(x * 2 + 1)
        assert y.device == device
        assert mg.functional.dropout(y, 0.5).device == device
        y.backward([1.0, 0.0])
        assert mg.Tensor(x.grad).device == device
    with pytest.raises(mg.DeviceError, match="cuda:0 and cuda:1"):
        one + zero
    (one.to("cuda:0") * zero).sum().backward()
    assert mg.Tensor(one.grad).device == "cuda:1"


def test_a_gpu_that_is_not_there():
    with pytest.raises(
        mg.DeviceError, match=r'device "cuda:2" is not there: this machine has 2 GPU\(s\), numbered from 0'
    ):
        mg.Tensor([1.0], device="cuda:2")


# The fake beside CuPy


mg.cuda_is_available()  # imports CuPy if it can be imported, and never raises
installed = sys.modules.get("cupy")


@pytest.fixture
def real():
    if installed is None:
        pytest.skip("CuPy is not installed")
    return installed


def parameters(text: str) -> list[str]:
    """["self", "axis1", "out=None"] of "(self, Py_ssize_t axis1, out=None) -> _ndarray_base", as CuPy documents it."""
    inside = re.search(r"\((.*)\)", text)[1]
    return [part.strip().split()[-1] for part in inside.split(",")]


def test_the_fake_has_nothing_that_cupy_lacks(real):
    """Names, parameters and defaults. CuPy's elementwise functions have no signature to compare."""
    if not real.__version__.startswith("14."):
        pytest.skip(f"the fake follows CuPy 14, this is {real.__version__}")
    for name in vars(fake_cupy.cupy):
        assert name.startswith("__") or hasattr(real, name), name
    for name in [*fake_cupy.FUNCTIONS, "asarray", "array", "asnumpy", "where", "copyto", "nonzero", "flatnonzero"]:
        ours, theirs = (
            [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
            for module in (fake_cupy.cupy, real)
        )
        assert ours == theirs, name
    for name in vars(fake_cupy.ndarray):
        assert name.startswith("_") or hasattr(real.ndarray, name), name
    for name, ours in fake_cupy.METHODS.items():
        assert parameters(ours) == parameters(getattr(real.ndarray, name).__doc__.splitlines()[0]), name
    for name in fake_cupy.UFUNCS:
        assert isinstance(getattr(real, name), real.ufunc), name


def test_the_errors_of_the_fake_are_cupys(real):
    theirs = real.cuda.memory.OutOfMemoryError(2**20, 2**10)
    ours = fake_cupy.OutOfMemoryError(2**20, 2**10)
    assert (str(ours), ours._size) == (str(theirs), theirs._size)
