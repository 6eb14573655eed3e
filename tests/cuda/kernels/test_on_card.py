"""What no emulator can show of the CUDA kernels: they run on a card here, on arrays of CuPy, as in training."""

import importlib

import numpy as np
import pytest

import minigrad as mg
from minigrad import kernels
from minigrad.kernels.cuda import cublaslt, launch
from minigrad.kernels.cuda.products import rounding_to_tf32
from tests.cuda.kernels import cases as kernel_cases
from tests.gpt.runs import losses_without_a_trainer

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _kernels_in_use():
    with kernels.using("cpu", "cuda"):
        yield


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
    expected = a.astype(float) @ b.astype(float) + (0 if bias is None else bias.astype(float))
    y = cublaslt.product(sent(a), sent(b), None if bias is None else sent(bias)).get()
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    np.testing.assert_allclose(y.astype(float), expected, rtol=tolerance, atol=tolerance * abs(expected).max())


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
        expected = losses_without_a_trainer("float32", "cpu", bias)
    got = losses_without_a_trainer(dtype, "cuda", bias)
    np.testing.assert_allclose(got, expected, rtol=tolerance)
