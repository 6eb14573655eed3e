"""Products through cuBLASLt: what minigrad tells it about matrices is right, and is told once.

The fake cuBLASLt computes the products, column-major as cuBLAS documents them. The library itself, where it is
installed, says whether it takes the descriptors: they can be made without a card.
"""

import ctypes

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.kernels.cuda import cublaslt, products
from minigrad.ops import matmul
from tests.cuda.kernels.calls import run
from tests.fakes.cublaslt import fake_cublaslt
from tests.fakes.emulator import COMPILER, emulated

PRECISION = {"float64": 1e-12, "float32": 1e-5, "float16": 2**-11, "bfloat16": 2**-8}
DTYPES = [np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)]


@st.composite
def stacks(draw, rows, columns, outer):
    """Matrices (outer…, rows, columns) as they come: contiguous, transposed, parts of larger ones, axes exchanged."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["contiguous", "transposed", "part", "heads", "every other"]))
    if kind == "transposed":
        return rng.standard_normal((*outer, columns, rows)).swapaxes(-1, -2)
    if kind == "part":
        return rng.standard_normal((*outer, rows + 1, columns + 3))[..., 1:, 2 : 2 + columns]
    if kind == "heads" and outer:  # (…, rows, heads, columns), as attention's q, k and v lie
        return rng.standard_normal((*outer[:-1], rows, outer[-1], columns)).swapaxes(-2, -3)
    if kind == "every other":
        return rng.standard_normal((*outer, rows, 2 * columns))[..., ::2]
    return rng.standard_normal((*outer, rows, columns))


def converted(x, dtype):
    """x in another dtype, lying in memory as it did."""
    base = x
    while base.base is not None:
        base = base.base
    other = base.astype(dtype)
    offset = x.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    strides = tuple(stride // x.itemsize * dtype.itemsize for stride in x.strides)
    start = other.reshape(-1)[offset // x.itemsize :]
    return np.lib.stride_tricks.as_strided(start, x.shape, strides)


@given(data=st.data())
def test_products_of_matrices_however_they_lie(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    m, k, n = (data.draw(st.integers(1, 5)) for _ in range(3))
    outer = data.draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    a, b = (converted(data.draw(stacks(*sides, outer)), dtype) for sides in ((m, k), (k, n)))
    bias = np.arange(2 * n).astype(dtype)[:: data.draw(st.sampled_from([1, 2]))][:n]
    bias = bias if data.draw(st.booleans()) and not outer else None
    with fake_cublaslt():
        y = cublaslt.product(a, b, bias)
    expected = a.astype(float) @ b.astype(float) + (0 if bias is None else bias.astype(float))
    assert y.dtype == dtype
    tolerance = PRECISION[str(dtype)]
    np.testing.assert_allclose(y.astype(float), expected, rtol=tolerance, atol=tolerance)


def test_heads_of_a_batch_are_copied_only_where_they_must_be():
    """cuBLASLt needs one distance between the matrices of a stack. The heads of one sequence have it; two do not."""
    packed = np.zeros((2, 7, 4, 8), np.float32)  # (B, T, nh, hs)
    assert cublaslt.matrix_of(packed[0].swapaxes(0, 1)) is not None  # (nh, T, hs)
    assert cublaslt.matrix_of(packed.swapaxes(1, 2)) is None  # (B, nh, T, hs)
    assert cublaslt.matrix_of(packed) is not None
    assert cublaslt.matrix_of(np.broadcast_to(packed[:1, :1], (2, 7, 4, 8))) is not None  # a distance of 0
    assert cublaslt.matrix_of(packed[..., ::-1]) is None


def test_a_plan_is_made_once_for_products_of_a_kind():
    with fake_cublaslt() as library:
        for scale in (1, 2, 3):
            a = np.full((4, 5), scale, np.float32)
            products_of_a_kind = cublaslt.product(a, np.ones((5, 6), np.float32))
            np.testing.assert_array_equal(products_of_a_kind, 5 * scale)
        made = dict(library.calls)
        assert made["cublasLtMatmul"] == 3
        plans = made["cublasLtMatmulDescCreate"]
        assert plans <= 3  # NumPy's arrays may differ in their alignment, and that belongs to the kind
        assert made["cublasLtMatrixLayoutCreate"] == 3 * plans
        assert library.preferred[cublaslt.WORKSPACE_BYTES] == 4 * 2**20


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_of_16_bits_are_added_up_in_32(dtype):
    """An algorithm that splits sums may keep the parts, here 4097 and -4096, in 16 bits unless it is told not to."""
    a = np.array([[4096, 1, -4096, 0]], dtype)
    with fake_cublaslt() as library:
        y = cublaslt.product(a, np.ones((4, 1), dtype))
        assert library.preferred[cublaslt.REDUCTION_SCHEMES] == cublaslt.REDUCTION_IN_COMPUTE_TYPE
    assert y == 1


def test_an_algorithm_is_chosen_for_the_alignment_of_the_bias():
    """The fake, like cuBLASLt, needs a place of the bias before it chooses, and holds the caller to its alignment."""
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    memory = np.arange(64, dtype=np.float32)
    memory = memory[-memory.ctypes.data % 128 // 4 :]
    with fake_cublaslt():
        for start in (16, 4, 0, 4, 20):  # on 64, 16, 128, 16 and again 16 bytes
            bias = memory[start : start + 4]
            np.testing.assert_array_equal(cublaslt.product(a, b, bias), [3 + bias] * 2)


def test_empty_products():
    with fake_cublaslt() as library:
        bias = np.array([1, 2], np.float32)
        assert cublaslt.product(np.ones((0, 3), np.float32), np.ones((3, 2), np.float32)).shape == (0, 2)
        y = cublaslt.product(np.ones((3, 0), np.float32), np.ones((0, 2), np.float32), bias)
        np.testing.assert_array_equal(y, [[1, 2]] * 3)
        assert "cublasLtMatmul" not in library.calls


def test_a_refusal_is_an_error_that_says_what_was_asked():
    with fake_cublaslt() as library:
        library.cublasLtMatmulAlgoGetHeuristic = lambda *arguments: 15
        with pytest.raises(cublaslt.CublasError, match=r"status 15 .*float32"):
            cublaslt.product(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_linear_and_matmul_agree_with_the_reference(dtype):
    rng = np.random.default_rng(1)

    def numbers(*shape):
        return rng.standard_normal(shape).astype(dtype)

    cases = [
        (products.MatMul, matmul.MatMul, (2, 3, 5), (numbers(2, 3, 4), numbers(2, 4, 5))),
        (products.Linear, matmul.Linear, (2, 3, 6), (numbers(2, 3, 4), numbers(6, 4), None)),
    ]
    if COMPILER:  # the gradient of a bias is a kernel
        cases.append((products.Linear, matmul.Linear, (2, 3, 6), (numbers(2, 3, 4), numbers(6, 4), numbers(6))))
    for kernel, operation, shape, arguments in cases:
        assert kernel.fits(*arguments)
        upstream = numbers(*shape)
        with fake_cublaslt(), emulated():
            got = run(kernel, upstream, *arguments)
        expected = run(operation, upstream, *arguments)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.dtype == dtype
            tolerance = 4 * PRECISION[str(ours.dtype)]  # the reference adds up in float16
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_the_library_itself_takes_the_descriptors():
    """Descriptors and layouts can be made without a card; attributes of a wrong size are refused."""
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="CUDA's libraries are not installed")
    try:
        library = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"cuBLASLt is not installed: {error}")
    check_descriptors(library)


def check_descriptors(library):
    operation, layout, preference = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    for dtype, compute in cublaslt.COMPUTE.items():
        assert library.cublasLtMatmulDescCreate(ctypes.byref(operation), compute, int(dtype == "float64")) == 0
        sizes = ctypes.c_uint64(4), ctypes.c_uint64(5), ctypes.c_int64(6)
        assert library.cublasLtMatrixLayoutCreate(ctypes.byref(layout), cublaslt.TYPES[dtype], *sizes) == 0
    assert library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)) == 0
    attributes = [
        (library.cublasLtMatmulDescSetAttribute, operation, cublaslt.TRANSPOSE_A, ctypes.c_int32(1)),
        (library.cublasLtMatmulDescSetAttribute, operation, cublaslt.TRANSPOSE_B, ctypes.c_int32(1)),
        (library.cublasLtMatmulDescSetAttribute, operation, cublaslt.EPILOGUE, ctypes.c_int32(cublaslt.EPILOGUE_BIAS)),
        (library.cublasLtMatmulDescSetAttribute, operation, cublaslt.BIAS_POINTER, ctypes.c_void_p(256)),
        (library.cublasLtMatrixLayoutSetAttribute, layout, cublaslt.BATCH_COUNT, ctypes.c_int32(2)),
        (library.cublasLtMatrixLayoutSetAttribute, layout, cublaslt.BATCH_STRIDE, ctypes.c_int64(99)),
        (
            library.cublasLtMatmulPreferenceSetAttribute,
            preference,
            cublaslt.WORKSPACE_BYTES,
            ctypes.c_uint64(2**22),
        ),
        (
            library.cublasLtMatmulPreferenceSetAttribute,
            preference,
            cublaslt.REDUCTION_SCHEMES,
            ctypes.c_uint32(cublaslt.REDUCTION_IN_COMPUTE_TYPE),
        ),
        *(
            (library.cublasLtMatmulPreferenceSetAttribute, preference, cublaslt.ALIGNMENT_A + i, ctypes.c_uint32(16))
            for i in range(4)
        ),
    ]
    for function, target, attribute, value in attributes:
        assert function(target, attribute, ctypes.byref(value), ctypes.sizeof(value)) == 0
        assert function(target, attribute, ctypes.byref(value), ctypes.sizeof(value) + 1) != 0
