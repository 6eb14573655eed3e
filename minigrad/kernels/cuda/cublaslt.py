"""Matrix products through cuBLASLt, called by ctypes.

CuPy's own products go through cuBLAS, which computes float16 batches in float32, fails on bfloat16 batches and cannot
be captured in a CUDA graph. cuBLASLt takes the stream and its workspace as arguments, so it can be captured.

cuBLASLt is column-major: its (m, n) matrix lies column by column. A row-major (M, N) array is to it an (N, M) matrix,
its transpose. y = a b is therefore computed as y^T = b^T a^T: b is passed first, and nothing is copied.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
from typing import Any, NamedTuple

import numpy as np

from ...backend import address, get_array_module
from .launch import packed

# Numbers from cublasLt.h and library_types.h
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
COMPUTE = {"float32": 68, "float64": 70, "float16": 68, "bfloat16": 68}  # half precision is summed in float32
COMPUTE_TF32 = 77
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # attributes of the operation
BATCH_COUNT, BATCH_STRIDE = 5, 6  # attributes of a matrix
WORKSPACE_BYTES, REDUCTION_SCHEMES, ALIGNMENT_A = 1, 3, 5  # attributes of a preference; B, C and D follow A
EPILOGUE_NONE, EPILOGUE_BIAS = 1, 4
REDUCTION_IN_COMPUTE_TYPE = 2  # a bit of REDUCTION_SCHEMES; other bits allow sums of partial sums in the output's type
WIDEST_ALIGNMENT = 256

library: Any = None  # cuBLASLt, once it is in use
on_host = False  # tests put a library of their own above, which works on NumPy arrays


class CublasError(RuntimeError):
    """cuBLASLt refused a product."""


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: how cuBLASLt would compute a product."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class Matrix(NamedTuple):
    """How an array (…, R, C) lies in memory.

    `rows` and `columns` are those of the column-major matrix that cuBLASLt sees, `stride` is the distance between its
    columns; `transposed` says whether it is the array itself or, as for a row-major one, its transpose.
    """

    rows: int
    columns: int
    stride: int
    transposed: bool
    batch_stride: int


class Product(NamedTuple):
    """All that decides how a product is computed. Products that agree in it share one plan."""

    a: Matrix
    b: Matrix
    y: Matrix
    batch: int
    dtype: str
    tf32: bool
    bias: int  # its alignment, or 0 without one
    alignments: tuple[int, ...]  # of b, a and y


def forget() -> None:
    """Forget all plans, handles and workspaces: the next product makes them anew, with the library of then."""
    for made in (_plan, _handle, _workspace):
        made.cache_clear()


def matrix_of(x: Any) -> Matrix | None:
    """How x (…, R, C) can be given to cuBLASLt without a copy; None if it cannot."""
    size = x.dtype.itemsize
    *outer, row_stride, column_stride = (stride // size for stride in x.strides)
    rows, columns = x.shape[-2:]
    batch_stride = _uniform(x.shape[:-2], outer)
    if batch_stride is None or min(row_stride, column_stride) < 0:
        return None
    if column_stride == 1 or columns == 1:
        stride = row_stride if rows > 1 else columns
        return Matrix(columns, rows, stride, True, batch_stride) if stride >= columns else None
    if row_stride == 1 or rows == 1:
        return Matrix(rows, columns, column_stride, False, batch_stride) if column_stride >= rows else None
    return None


def _uniform(shape: tuple[int, ...], strides: list[int]) -> int | None:
    """The distance between consecutive matrices of a stack, if it is the same throughout, else None."""
    axes = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    for (_, outer), (n, inner) in zip(axes, axes[1:], strict=False):
        if outer != n * inner:
            return None
    return axes[-1][1] if axes else 0


def product(a: Any, b: Any, bias: Any = None, tf32: bool = False) -> Any:
    """y = a @ b + bias: a (…, M, K), b (…, K, N), equal leading axes, bias (N,) or None -> y (…, M, N).

    Sums are computed in float32, or float64. An array whose layout cuBLASLt cannot read is copied first.
    """
    xp = get_array_module(a)
    shape = (*a.shape[:-1], b.shape[-1])
    y = xp.empty(shape, a.dtype)
    if not y.size or not a.shape[-1]:
        y[...] = 0 if bias is None else bias
        return y
    a, b = (x if matrix_of(x) else xp.ascontiguousarray(x) for x in (a, b))
    bias = packed(bias)
    places = [address(x) for x in (b, a, y)]  # b comes first
    bias_place = address(bias)
    matrices: Any = [matrix_of(x) for x in (a, b, y)]
    what = Product(
        a=matrices[0],
        b=matrices[1],
        y=matrices[2],
        batch=math.prod(shape[:-2]),
        dtype=str(a.dtype),
        tf32=tf32,
        bias=math.gcd(bias_place, WIDEST_ALIGNMENT) if bias_place else 0,
        alignments=tuple(math.gcd(place, WIDEST_ALIGNMENT) for place in places),
    )
    _plan(what, _device()).run(places, bias_place)
    return y


class Plan:
    """What cuBLASLt needs for products of one kind: descriptors, an algorithm, and a workspace."""

    def __init__(self, what: Product, device: int) -> None:
        lt = _library()
        self.operation = ctypes.c_void_p()
        compute = COMPUTE_TF32 if what.tf32 and what.dtype == "float32" else COMPUTE[what.dtype]
        scale_type, number = (1, ctypes.c_double) if what.dtype == "float64" else (0, ctypes.c_float)
        _check(lt.cublasLtMatmulDescCreate(ctypes.byref(self.operation), compute, scale_type), what)
        # a row-major array is a transposed matrix to cuBLASLt, and the product is asked for transposed: the two cancel
        self._set(lt.cublasLtMatmulDescSetAttribute, self.operation, TRANSPOSE_A, ctypes.c_int32(not what.b.transposed))
        self._set(lt.cublasLtMatmulDescSetAttribute, self.operation, TRANSPOSE_B, ctypes.c_int32(not what.a.transposed))
        epilogue = EPILOGUE_BIAS if what.bias else EPILOGUE_NONE
        self._set(lt.cublasLtMatmulDescSetAttribute, self.operation, EPILOGUE, ctypes.c_int32(epilogue))
        self._set_bias(what.bias)  # an address that is aligned as the bias is; `run` sets the true one
        self.layouts = [self._layout(matrix, what) for matrix in (what.b, what.a, what.y)]
        self.alpha, self.beta = number(1), number(0)
        self.handle = _handle(device)
        self.algorithm = self._choose(what, device)
        self.workspace = _workspace(device)

    def _set(self, function: Any, target: Any, attribute: int, value: Any) -> None:
        _check(function(target, attribute, ctypes.byref(value), ctypes.sizeof(value)), attribute)

    def _set_bias(self, place: int) -> None:
        """Tell cuBLASLt where the bias lies. The heuristic assumes the alignment of this address."""
        if place:
            set_attribute = _library().cublasLtMatmulDescSetAttribute
            self._set(set_attribute, self.operation, BIAS_POINTER, ctypes.c_void_p(place))

    def _layout(self, matrix: Matrix, what: Product) -> Any:
        lt, layout = _library(), ctypes.c_void_p()
        sizes = ctypes.c_uint64(matrix.rows), ctypes.c_uint64(matrix.columns), ctypes.c_int64(matrix.stride)
        _check(lt.cublasLtMatrixLayoutCreate(ctypes.byref(layout), TYPES[what.dtype], *sizes), matrix)
        if what.batch > 1:
            set_attribute = lt.cublasLtMatrixLayoutSetAttribute
            self._set(set_attribute, layout, BATCH_COUNT, ctypes.c_int32(what.batch))
            self._set(set_attribute, layout, BATCH_STRIDE, ctypes.c_int64(matrix.batch_stride))
        return layout

    def _choose(self, what: Product, device: int) -> Algorithm:
        """The algorithm that cuBLASLt expects to be fastest for matrices of these sizes and alignments.

        Some algorithms split the sums between blocks and add up the partial sums. By default these may be kept in the
        output's type, 16 bits for half precision; only those that keep them in the compute type are allowed here.
        """
        lt, preference = _library(), ctypes.c_void_p()
        _check(lt.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), what)
        set_attribute = lt.cublasLtMatmulPreferenceSetAttribute
        self._set(set_attribute, preference, WORKSPACE_BYTES, ctypes.c_uint64(_workspace_bytes(device)))
        self._set(set_attribute, preference, REDUCTION_SCHEMES, ctypes.c_uint32(REDUCTION_IN_COMPUTE_TYPE))
        for i, alignment in enumerate((*what.alignments, what.alignments[-1])):  # b, a, y as it was, and y
            self._set(set_attribute, preference, ALIGNMENT_A + i, ctypes.c_uint32(alignment))
        first, second, result = self.layouts
        best, found = Algorithm(), ctypes.c_int()
        arguments = (self.handle, self.operation, first, second, result, result, preference, 1)
        status = lt.cublasLtMatmulAlgoGetHeuristic(*arguments, ctypes.byref(best), ctypes.byref(found))
        lt.cublasLtMatmulPreferenceDestroy(preference)
        _check(status, what)
        if not found.value:
            raise CublasError(f"cuBLASLt knows no way to compute {what}")
        return best

    def run(self, places: list[int], bias: int) -> None:
        lt = _library()
        first, second, result = map(ctypes.c_void_p, places)
        self._set_bias(bias)
        a, b, y = self.layouts
        status = lt.cublasLtMatmul(
            *(self.handle, self.operation, ctypes.byref(self.alpha)),
            *(first, a, second, b, ctypes.byref(self.beta), result, y, result, y, ctypes.byref(self.algorithm)),
            *(ctypes.c_void_p(address(self.workspace)), ctypes.c_size_t(self.workspace.nbytes)),
            ctypes.c_void_p(_stream()),
        )
        _check(status, "a product")


def _check(status: int, what: Any) -> None:
    if status:
        raise CublasError(f"cuBLASLt answered with status {status} for {what}")


@functools.lru_cache(maxsize=4096)
def _plan(what: Product, device: int) -> Plan:
    return Plan(what, device)


def _library() -> Any:
    global library
    if library is None:
        found = importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt")
        library = ctypes.CDLL(found.abs_path)
    return library


def version() -> int:
    """120903 for cuBLASLt 12.9.3. Raises what `cuda.pathfinder` raises where it is missing."""
    return int(_library().cublasLtGetVersion())


@functools.cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(_library().cublasLtCreate(ctypes.byref(handle)), "its start")
    return handle


def _cupy() -> Any:
    return importlib.import_module("cupy")


def _device() -> int:
    return 0 if on_host else int(_cupy().cuda.Device().id)


def _stream() -> int:
    return 0 if on_host else int(_cupy().cuda.get_current_stream().ptr)


def _workspace_bytes(device: int) -> int:
    """As much as NVIDIA advises: 32 MiB from Hopper on, 4 MiB before."""
    return (32 if not on_host and int(_cupy().cuda.Device(device).compute_capability) >= 90 else 4) * 2**20


@functools.cache
def _workspace(device: int) -> Any:
    """Scratch memory for all products on a device, which run one after the other in one stream."""
    n = _workspace_bytes(device)
    return np.empty(n, np.uint8) if on_host else _cupy().empty(n, "uint8")
