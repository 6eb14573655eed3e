"""The CUDA kernels on a card: the cases that the emulator has, and what no emulator can show.

The tests of test_cuda_kernels.py, and of its neighbours for attention, hand NumPy arrays to the kernels, and
`emulated()` says who runs them. Here the card does, on copies between guard zones. What they call two orders of the
threads is then two runs, which have to give the same bits.
"""

import contextlib
import ctypes
import functools
import importlib
import types

import numpy as np
import pytest

import minigrad as mg
from minigrad import kernels
from minigrad.kernels.cuda import cublaslt, launch
from minigrad.kernels.cuda.products import rounding_to_tf32
from tests.cuda import (
    kernel_cases,
    test_cuda_attention,
    test_cuda_batched_attention,
    test_cuda_kernels,
    test_cuda_training,
)
from tests.fakes.emulator import needs_compiler

pytestmark = pytest.mark.cuda
GUARD, GUARD_BYTE = 256, 0xFF  # NaN in every format


# The emulator's tests


@contextlib.contextmanager
def on_card(order=0):
    """As `emulated()`: inside this context launches of kernels with NumPy arrays run on the card."""
    launch.emulate, before = run_on_card, launch.emulate
    try:
        yield
    finally:
        launch.emulate = before


@functools.cache
def compiled(text):
    return importlib.import_module("cupy").RawModule(code=text, options=("-std=c++17",))


def run_on_card(kernel, grid, threads, arguments, shared_bytes):
    cupy = importlib.import_module("cupy")
    copies, given = [], []
    for argument in arguments:
        if isinstance(argument, np.ndarray) and not argument.dtype.names:
            low, high = np.lib.array_utils.byte_bounds(argument)
            memory = np.full(high - low + 2 * GUARD, GUARD_BYTE, np.uint8)
            memory[GUARD:-GUARD] = np.frombuffer((ctypes.c_char * (high - low)).from_address(low), np.uint8)
            copies.append((argument, argument.ctypes.data - low, cupy.asarray(memory)))
            given.append(np.uintp(copies[-1][2].data.ptr + GUARD + copies[-1][1]))
        else:
            given.append(argument)
    function = compiled(kernel.text).get_function(kernel.name)
    if shared_bytes > 48 * 1024:
        function.max_dynamic_shared_size_bytes = shared_bytes
    function(grid, (threads,), given, shared_mem=shared_bytes)
    for array, start, on_gpu in copies:
        memory = on_gpu.get()
        copy = np.ndarray(array.shape, array.dtype, memory, GUARD + start, array.strides)
        if array.flags.writeable:
            array[...] = copy
        outside = np.concatenate([memory[:GUARD], memory[-GUARD:]])
        assert (outside == GUARD_BYTE).all(), f"{kernel.name} wrote outside of an array {array.shape}"


def for_card(test):
    """A test that wants the emulator, as one that does not: here no C++ compiler is needed."""
    copy = types.FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    copy.__dict__.update(test.__dict__)
    copy.__doc__ = test.__doc__
    copy.pytestmark = [mark for mark in test.pytestmark if mark != needs_compiler.mark]
    return copy


MODULES = {"": test_cuda_kernels, "flash_": test_cuda_attention, "batched_": test_cuda_batched_attention}
NOT_HERE = {"standin", "cuda_emulator"}  # tests that name them look into how these work
for _what, _module in MODULES.items():
    for _name, _test in vars(_module).items():
        if needs_compiler.mark in getattr(_test, "pytestmark", []) and not NOT_HERE & set(_test.__code__.co_names):
            globals()[f"test_{_what}{_name.removeprefix('test_')}"] = for_card(_test)


@pytest.fixture(autouse=True)
def _on_card(monkeypatch):
    for module in MODULES.values():
        monkeypatch.setattr(module, "emulated", on_card)
    with kernels.using("cpu", "cuda"):
        yield


# Arrays of CuPy, as in training

SIZES = {
    "odd": kernel_cases.Shape(B=3, T=37, C=384, nh=6, V=65, n_layer=1, bias=True),
    "part of GPT-2": kernel_cases.Shape(B=1, T=256, C=768, nh=12, V=50304, n_layer=1, bias=True),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", kernel_cases.cases(kernel_cases.TRIAL, "bfloat16"))
def test_a_kernel_gives_what_its_reference_gives(name, dtype, sizes):
    cases = kernel_cases.cases(SIZES[sizes], dtype)
    if name not in cases:
        pytest.skip(f"there is no such kernel for {dtype}")
    case = cases[name]
    if case.comparable:
        assert case.is_right()
        return
    for ours, theirs in zip(case.results(False), case.results(False), strict=True):  # it draws a mask of its own
        assert (ours.view("uint16") == theirs.view("uint16")).all() if ours.itemsize == 2 else (ours == theirs).all()


LAYOUTS = {
    "contiguous": lambda x: x.copy(),
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "part": lambda x: wider(x)[..., 1:-2],
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
}


def wider(x):
    return np.concatenate([x[..., :1], x, x[..., :2]], axis=-1)


def sent(x):
    """The array on the card, lying there as it lies here."""
    base = x
    while base.base is not None:
        base = base.base
    cupy = importlib.import_module("cupy")
    memory = cupy.asarray(base.reshape(-1) if base.flags.c_contiguous else base.ravel("K"))
    start = (x.ctypes.data - base.ctypes.data) // x.itemsize
    return cupy.lib.stride_tricks.as_strided(memory[start:], x.shape, x.strides)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("layouts", [("contiguous", "transposed"), ("part", "contiguous"), ("every other", "part")])
@pytest.mark.parametrize("outer", [(), (3,)])
def test_products_of_matrices_however_they_lie(dtype, layouts, outer):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((*outer, *sides)) for sides in ((33, 20), (20, 17)))
    a, b = (LAYOUTS[how](x.astype(mg.backend.as_dtype(dtype))) for how, x in zip(layouts, (a, b), strict=True))
    bias = None if outer else np.arange(17).astype(a.dtype)
    wanted = a.astype(float) @ b.astype(float) + (0 if bias is None else bias.astype(float))
    y = cublaslt.product(sent(a), sent(b), None if bias is None else sent(bias)).get()
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    np.testing.assert_allclose(y.astype(float), wanted, rtol=tolerance, atol=tolerance * abs(wanted).max())


def test_tf32_is_used_only_when_asked_for():
    """It rounds 1 + 2^-12 to 1."""
    if launch.compute_capability() < 80:
        pytest.skip("the card has no TF32")
    x = mg.Tensor(np.full((64, 64), 1 + 2**-12, np.float32), device="cuda")
    exact = (x @ x).numpy()
    with rounding_to_tf32():
        rounded = (x @ x).numpy()
    assert exact[0, 0] == pytest.approx(64 * (1 + 2**-12) ** 2, rel=1e-6)
    assert rounded[0, 0] == pytest.approx(64, rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_training_with_kernels_is_training_without(dtype, tolerance, bias):
    with kernels.reference():
        wanted = test_cuda_training.losses("float32", "cpu", bias)
    got = test_cuda_training.losses(dtype, "cuda", bias)
    np.testing.assert_allclose(got, wanted, rtol=tolerance)
