"""A fake GPU: the fake CuPy, the emulator of kernels and the fake cuBLASLt together.

Training runs on it as on a card, with all kernels. It is as strict as its three parts; and what kernels and cuBLASLt
are given goes through the fake CuPy's streams, so that a step can be captured as a CUDA graph and replayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.kernels.cuda import launch
from tests.fakes import cupy as fake_cupy
from tests.fakes.cublaslt import FakeCublasLt, fake_cublaslt
from tests.fakes.emulator import emulated


@contextlib.contextmanager
def fake_gpu(monkeypatch: Any) -> Iterator[list[str]]:
    """Inside this context there is a GPU with its kernels in use. What it gives is the list of all launches so far."""
    fake_cupy.install(monkeypatch)
    launches: list[str] = []
    with emulated(), fake_cublaslt(), kernels.using("cpu", "cuda"):
        emulate, multiply = launch.emulate, FakeCublasLt.cublasLtMatmul

        def launched(kernel: Any, *arguments: Any) -> None:
            launches.append(kernel.name)
            fake_cupy.submit(lambda: emulate(kernel, *arguments))

        def multiplied(self: FakeCublasLt, handle: Any, operation: Any, *arguments: Any) -> int:
            as_it_is = dict(self.things[operation.value])  # cuBLASLt reads it now, not when the product is computed

            def work() -> None:
                now, self.things[operation.value] = self.things[operation.value], as_it_is
                with np.errstate(all="ignore"):  # a GPU does not warn
                    multiply(self, handle, operation, *arguments)
                self.things[operation.value] = now

            launches.append("product")
            fake_cupy.submit(work)
            return 0

        monkeypatch.setattr(launch, "emulate", launched)
        monkeypatch.setattr(FakeCublasLt, "cublasLtMatmul", multiplied)
        yield launches
        monkeypatch.undo()
