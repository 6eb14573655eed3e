"""One matrix product: NumPy's, or Intel MKL's where MKL is installed (pip install "minigrad[mkl]") and faster.

Most of a training step is matrix multiplication. NumPy's wheels contain OpenBLAS. On many Intel processors it reaches
two thirds of MKL's speed in float32; on AMD's Zen 4 it is the faster one. MINIGRAD_BLAS=mkl or numpy overrides the
choice.

threads.py decides how many threads a library uses.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS = 16  # with fewer, two MKL products at a time took as long as one after the other; OpenBLAS's do not
KEPT = 500  # np.matmul holds the interpreter lock for results of at most this many elements, np.dot never does
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112  # from cblas.h
_INTEL_THREADS, _GNU_THREADS = 0, 3  # from mkl_service.h: intel-openmp, which comes with `mkl`, and libgomp
_WHOLE_OF_32_BITS = 0  # 32-bit sizes, whatever MKL_INTERFACE_LAYER says
_WAIT = "10"  # milliseconds that MKL's threads keep a core after a product, in case another follows; default 200


def _has_global(name: str) -> bool:
    """True if every library of the process can find a C function of this name."""
    return os.name == "posix" and hasattr(ctypes.CDLL(None), name)


def has_amd_processor() -> bool:
    """Is the processor AMD's, as Linux or Windows names it?"""
    try:
        with open("/proc/cpuinfo") as file:
            name = file.read(1000)  # of the first core
    except OSError:
        name = os.environ.get("PROCESSOR_IDENTIFIER", "")
    return "AuthenticAMD" in name


def load_mkl() -> dict[np.dtype[Any], Any]:
    """MKL's product for float32 and float64, or nothing if NumPy's is wanted, or faster, or MKL is not installed."""
    wanted = os.environ.get("MINIGRAD_BLAS")
    if wanted and wanted not in ("mkl", "numpy"):
        raise ValueError(f"MINIGRAD_BLAS is {wanted!r}; expected mkl or numpy")
    if wanted == "numpy" or (not wanted and has_amd_processor()):
        return {}
    try:
        files = importlib.metadata.files("mkl") or []
        library = next(str(f.locate()) for f in files if f.name.startswith(("libmkl_rt.so", "mkl_rt.")))
        mkl = ctypes.CDLL(os.path.realpath(library))
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError) as error:
        if wanted:
            raise ImportError('MINIGRAD_BLAS is mkl, which is not installed: pip install "minigrad[mkl]"') from error
        return {}
    os.environ.setdefault("KMP_BLOCKTIME", _WAIT)  # read when the threads start
    mkl.MKL_Set_Interface_Layer(_WHOLE_OF_32_BITS)
    mkl.MKL_Set_Threading_Layer(_layer)
    mkl.MKL_Get_Max_Threads()  # loads the layer, which finds its functions now, before another library loads libgomp
    mkl.MKL_Set_Num_Threads(1)  # for every thread that does not set its own number
    whole, address = ctypes.c_int, ctypes.c_void_p
    found = {}
    for name, scalar in (("float32", ctypes.c_float), ("float64", ctypes.c_double)):
        function = mkl.cblas_sgemm if name == "float32" else mkl.cblas_dgemm
        function.argtypes = [whole] * 6 + [scalar, address, whole, address, whole, scalar, address, whole]
        function.restype = None
        found[np.dtype(name)] = function
    return found


# If libgomp's functions are visible to all libraries, as with PyTorch, the Intel layer would call some of them and
# compute wrong sums.
_layer = _GNU_THREADS if _has_global("GOMP_parallel") else _INTEL_THREADS
mkl_products = load_mkl()  # by dtype; empty where NumPy multiplies


def library() -> str:
    """Which library multiplies matrices: "mkl" or "numpy"."""
    return "mkl" if mkl_products else "numpy"


def survives_fork() -> bool:
    """Can the matrix library's threads start again in a forked child? libgomp's cannot."""
    return not mkl_products or _layer != _GNU_THREADS


def _layout(a: Any) -> tuple[int, int]:
    """The order of a matrix in memory, by rows or by columns, and their distance in elements, 0 if it has neither."""
    (rows, columns), (down, right), size = a.shape, a.strides, a.itemsize
    if right == size and down >= columns * size and down % size == 0:
        return _PLAIN, down // size
    if down == size and right >= rows * size and right % size == 0:
        return _TRANSPOSED, right // size
    return _PLAIN, 0


def product(a: Any, b: Any, out: Any) -> Callable[[], Any]:
    """A call that computes out = a @ b for matrices a (M, K), b (K, N) and out (M, N) of one dtype.

    The arrays must outlive the call.
    """
    function = mkl_products.get(a.dtype)
    if function is not None and min(out.shape) >= ROWS and a.size:
        (a_order, a_step), (b_order, b_step), (out_order, out_step) = _layout(a), _layout(b), _layout(out)
        if a_step and b_step and out_step and out_order == _PLAIN:
            sizes = out.shape[0], out.shape[1], a.shape[1]
            factors = a.ctypes.data, a_step, b.ctypes.data, b_step
            orders = _ROW_MAJOR, a_order, b_order
            return functools.partial(function, *orders, *sizes, 1.0, *factors, 0.0, out.ctypes.data, out_step)
    if out.size <= KEPT and out.flags.c_contiguous:
        return functools.partial(np.dot, a, b, out)
    return functools.partial(np.matmul, a, b, out)
