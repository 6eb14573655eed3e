"""A fake cuBLASLt: it reads the descriptors and computes the products, on NumPy arrays, as cuBLAS documents them.

Matrices are column-major, as there, so wrong rows, columns, strides or transposes give wrong results. It refuses an
attribute of a wrong size. Where cuBLASLt may choose how it adds up, this one makes the worst choice that its caller
allows. It has a single algorithm.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from minigrad.kernels.cuda import cublaslt

ALL_REDUCTIONS = 7  # what is allowed unless a preference says otherwise
DTYPES = {0: np.dtype("f4"), 1: np.dtype("f8"), 2: np.dtype("f2"), 14: np.dtype(ml_dtypes.bfloat16)}


class FakeCublasLt:
    """The functions of cuBLASLt that minigrad calls. `calls` counts them."""

    def __init__(self) -> None:
        self.things: dict[int, dict[Any, Any]] = {}
        self.calls: dict[str, int] = {}

    def _new(self, pointer: Any, **values: Any) -> int:
        number = len(self.things) + 1
        self.things[number] = values
        pointer._obj.value = number
        return 0

    def _set(self, thing: Any, attribute: int, value: Any, size: int) -> int:
        assert ctypes.sizeof(value._obj) == size
        self.things[thing.value][attribute] = value._obj.value
        return 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cublasLt"):
            self.calls[name] = self.calls.get(name, 0) + 1
        return object.__getattribute__(self, name)

    def cublasLtGetVersion(self) -> int:
        return 120903

    def cublasLtCreate(self, pointer: Any) -> int:
        return self._new(pointer)

    def cublasLtMatmulDescCreate(self, pointer: Any, compute: int, scale_type: int) -> int:
        return self._new(pointer, compute=compute, scale_type=scale_type)

    def cublasLtMatrixLayoutCreate(self, pointer: Any, dtype: int, rows: Any, columns: Any, stride: Any) -> int:
        return self._new(pointer, dtype=dtype, rows=rows.value, columns=columns.value, stride=stride.value)

    def cublasLtMatmulPreferenceCreate(self, pointer: Any) -> int:
        return self._new(pointer)

    def cublasLtMatmulPreferenceDestroy(self, preference: Any) -> int:
        return 0

    cublasLtMatmulDescSetAttribute = _set
    cublasLtMatrixLayoutSetAttribute = _set
    cublasLtMatmulPreferenceSetAttribute = _set

    def cublasLtMatmulAlgoGetHeuristic(self, handle, operation, a, b, c, d, preference, expected, best, found) -> int:
        self.preferred = self.things[preference.value]
        how = self.things[operation.value]
        bias = how.get(cublaslt.BIAS_POINTER) or 0
        assert bias or how[cublaslt.EPILOGUE] != cublaslt.EPILOGUE_BIAS, "a null bias sets no alignment"
        best._obj.algorithm[:2] = self.preferred.get(cublaslt.REDUCTION_SCHEMES, ALL_REDUCTIONS), bias & -bias
        found._obj.value = 1
        return 0

    def _read(self, layout: Any, pointer: Any) -> np.ndarray:
        """The column-major matrices (batch, rows, columns) at a pointer: a view of that memory."""
        form = self.things[layout.value]
        dtype, batch = DTYPES[form["dtype"]], form.get(cublaslt.BATCH_COUNT, 1)
        distance = form.get(cublaslt.BATCH_STRIDE, 0)
        assert form["stride"] >= form["rows"]
        last = (batch - 1) * distance + (form["columns"] - 1) * form["stride"] + form["rows"]
        memory = (ctypes.c_char * (last * dtype.itemsize)).from_address(pointer.value)
        flat = np.frombuffer(memory, dtype)
        strides = (distance * dtype.itemsize, dtype.itemsize, form["stride"] * dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat, (batch, form["rows"], form["columns"]), strides)

    def cublasLtMatmul(
        self, handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, *rest
    ) -> int:
        how = self.things[operation.value]
        first, second = self._read(a_layout, a), self._read(b_layout, b)
        result = self._read(d_layout, d)
        wide = np.float64 if how["compute"] == cublaslt.COMPUTE["float64"] else np.float32
        first, second = (
            x.swapaxes(1, 2) if how[transposed] else x
            for x, transposed in ((first, cublaslt.TRANSPOSE_A), (second, cublaslt.TRANSPOSE_B))
        )
        reductions, bias_alignment = rest[0]._obj.algorithm[:2]
        partial = result.dtype if reductions & ~cublaslt.REDUCTION_IN_COMPUTE_TYPE else wide
        half = first.shape[2] // 2  # it splits the sums, and keeps partial sums with as few digits as it may
        value = alpha._obj.value * sum(
            np.matmul(first[..., part].astype(wide), second[:, part].astype(wide)).astype(partial).astype(wide)
            for part in (slice(half), slice(half, None))
        )
        if beta._obj.value:
            value += beta._obj.value * self._read(c_layout, c).astype(wide)
        if how[cublaslt.EPILOGUE] == cublaslt.EPILOGUE_BIAS:  # one number for each row of d
            rows, dtype = result.shape[1], result.dtype
            assert how[cublaslt.BIAS_POINTER] % bias_alignment == 0, "the algorithm was chosen for another alignment"
            memory = (ctypes.c_char * (rows * dtype.itemsize)).from_address(how[cublaslt.BIAS_POINTER])
            value += np.frombuffer(memory, dtype).astype(wide)[:, None]
        result[...] = value
        return 0


@contextlib.contextmanager
def fake_cublaslt() -> Iterator[FakeCublasLt]:
    """Inside this context minigrad's products on NumPy arrays go to the fake cuBLASLt."""
    before = cublaslt.library, cublaslt.on_host
    cublaslt.forget()
    cublaslt.library, cublaslt.on_host = FakeCublasLt(), True
    try:
        yield cublaslt.library
    finally:
        cublaslt.library, cublaslt.on_host = before
        cublaslt.forget()
