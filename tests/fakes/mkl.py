"""A library with MKL's interface whose matrix products are NumPy's, for machines without MKL."""

from __future__ import annotations

import ctypes
import importlib.metadata
import types
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.kernels.cpu import blas

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # of cblas.h


class FakeMKL:
    """The C functions that kernels/cpu/blas.py calls. `settings`: what it has set, by the name of the function."""

    def __init__(self) -> None:
        self.settings: dict[str, int] = {}
        self.products = 0  # how many there were
        self.cblas_sgemm, self.cblas_dgemm = self.product_of(ctypes.c_float), self.product_of(ctypes.c_double)

    def __getattr__(self, name: str) -> Any:
        if name == "MKL_Get_Max_Threads":
            return lambda: 1
        assert name in ("MKL_Set_Interface_Layer", "MKL_Set_Threading_Layer", "MKL_Set_Num_Threads")
        return lambda value: self.settings.update({name: value})

    def product_of(self, number: Any) -> Any:
        """C = A B as a C function, for matrices of float or double that are given by their addresses and steps."""
        dtype, whole, address = np.dtype(number), ctypes.c_int, ctypes.c_void_p

        def matrix(start: int, rows: int, columns: int, step: int) -> Any:
            assert step >= columns
            memory = (number * ((rows - 1) * step + columns)).from_address(start)
            return np.lib.stride_tricks.as_strided(
                np.frombuffer(memory, dtype), (rows, columns), (step * dtype.itemsize, dtype.itemsize)
            )

        def gemm(order, a_order, b_order, m, n, k, alpha, a, a_step, b, b_step, beta, c, c_step):  # type: ignore
            assert (order, alpha, beta) == (ROW_MAJOR, 1, 0)
            assert {a_order, b_order} <= {PLAIN, TRANSPOSED}
            left = matrix(a, m, k, a_step) if a_order == PLAIN else matrix(a, k, m, a_step).T
            right = matrix(b, k, n, b_step) if b_order == PLAIN else matrix(b, n, k, b_step).T
            matrix(c, m, n, c_step)[...] = left @ right
            self.products += 1

        sizes = [whole] * 6
        return ctypes.CFUNCTYPE(None, *sizes, number, address, whole, address, whole, number, address, whole)(gemm)


def install(monkeypatch: Any) -> FakeMKL:
    """From now on `blas.load_mkl` finds the fake."""
    fake = FakeMKL()
    names = "mkl-2026.0.dist-info/RECORD", "lib/libmkl_core.so.3", "lib/libmkl_rt.so.3"
    files = [
        types.SimpleNamespace(name=Path(name).name, locate=lambda name=name: Path("/fake", name)) for name in names
    ]
    libraries = {"/fake/lib/libmkl_rt.so.3": fake}
    monkeypatch.setattr(importlib.metadata, "files", {"mkl": files}.__getitem__)
    monkeypatch.setattr(blas.os.path, "realpath", str)
    monkeypatch.setattr(blas.ctypes, "CDLL", libraries.__getitem__)
    return fake
