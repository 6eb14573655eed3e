"""Layer norm where a row is too long for the registers of a warp: the threads of a block share it."""

from __future__ import annotations

import re
import shutil
import subprocess

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by name)
import numpy as np
import pytest

from minigrad.kernels import cuda
from minigrad.kernels.cuda import launch
from minigrad.ops import normalization
from tests.cuda.test_cuda_kernels import assert_same, numbers, run
from tests.fakes.emulator import needs_compiler

NVCC = shutil.which("nvcc")


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (3, 1024)),
        ("float32", (1, 1025)),
        ("float16", (37, 1032)),
        ("float32", (9, 4095)),
        ("bfloat16", (8, 4096)),
    ],
)
def test_long_rows(dtype, shape):
    arguments = numbers(dtype, *shape), numbers(dtype, shape[-1]), numbers(dtype, shape[-1]), 1e-5
    assert_same(cuda.LayerNorm, normalization.LayerNorm, dtype, numbers(dtype, *shape), *arguments, sums=shape[0])


@pytest.mark.skipif(NVCC is None, reason="no nvcc to compile the kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [1023, 1024, 1032, 1600, 4095, 4096])
def test_all_that_a_thread_keeps_is_in_registers(channels, dtype, tmp_path, monkeypatch):
    """An array that does not fit, or whose indices the compiler does not know, would be a stack frame in memory."""
    launched = {}
    monkeypatch.setattr(launch, "emulate", lambda kernel, *_: launched.update({kernel.name: kernel}))
    x = np.ones((1, channels), dtype)
    run(cuda.LayerNorm, x, x, x[0], x[0], 1e-5)
    code = tmp_path / "kernel.cu"
    code.write_text(launched["layer_norm_backward"].text)
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (75, 90)]
    command = [NVCC, "-std=c++17", "-fatbin", *targets, "-Xptxas", "-v", "-o", tmp_path / "kernel.fatbin", code]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert set(re.findall(r"(\d+) bytes (?:spill|stack frame)", built.stderr)) == {"0"}
