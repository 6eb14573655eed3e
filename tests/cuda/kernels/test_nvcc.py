"""nvcc, where it is installed, compiles all kernels for cards from Turing to Hopper without spilling registers."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minigrad.kernels import cuda
from minigrad.kernels.cuda import attention, launch
from tests.cuda.kernels.calls import DTYPES, run

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc to compile the kernels")

ARCHITECTURES = (75, 80, 86, 89, 90)
SOURCES = {
    "adamw.cu": {},
    "cross_entropy.cu": {"WIDTH": 8},
    "dropout.cu": {},
    "embedding.cu": {"CHANNELS": 768, "WIDTH": 8},
    "gelu.cu": {"WIDTH": 8},
    "layer_norm.cu": {"CHANNELS": 768, "WIDTH": 8, "ROW_THREADS": 32},
    "random_words.cu": {},
    "softmax.cu": {},
    "sum_rows.cu": {"WIDTH": 8},
}
KEPT = Path(__file__).with_name("__pycache__")  # what nvcc said of a text that it has compiled


@functools.cache
def version():
    return subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout


def compile_for(folder, text, *architectures):
    """What the assembler says of each kernel: (name, architecture, its report). A text that compiled before is not
    compiled again.
    """
    digest = hashlib.sha256(f"{version()}{architectures}{text}".encode()).hexdigest()[:16]
    kept = KEPT / f"nvcc-{digest}.txt"
    if not kept.exists():
        code = folder / "kernel.cu"
        code.write_text(text, "utf-8")
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        command = [NVCC, "-std=c++17", "-fatbin", "-Xptxas=-v", *targets, "-o", folder / "out.fatbin", code]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[:3000]
        KEPT.mkdir(exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")  # complete when it gets its name
        part.write_text(built.stderr, "utf-8")
        part.replace(kept)
    said = kept.read_text("utf-8")
    assert "warning" not in said, said
    return re.findall(r"'(\w+)' for 'sm_(\d+)'.*?\n.*?\n(.*spill.*)\n", said)


def assert_all_in_registers(found):
    assert found
    for name, architecture, report in found:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, (
            f"{name} on sm_{architecture}"
        )


@pytest.mark.parametrize("file", SOURCES)
@pytest.mark.parametrize(
    "architectures", [pytest.param((90,), id="Hopper"), pytest.param(ARCHITECTURES, id="all", marks=pytest.mark.slow)]
)
def test_every_kernel_for_bfloat16(file, architectures, tmp_path):
    constants = {launch.SCALARS["bfloat16"]: 1, **SOURCES[file]}
    assert_all_in_registers(compile_for(tmp_path, launch.source(file, constants), *architectures))


def test_the_weights_of_attention_for_float32(tmp_path):
    """Where scores and weights are one type and share an array."""
    found = compile_for(tmp_path, launch.source("softmax.cu", {launch.SCALARS["float32"]: 1}), *ARCHITECTURES)
    assert len(found) == 4 * len(ARCHITECTURES)
    assert_all_in_registers(found)


def test_every_source_is_compiled_here():
    files = {path.name for path in launch.FOLDER.glob("*.cu")}
    assert files == {*SOURCES, "flash_attention.cu"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "channels", [1600, *(pytest.param(n, marks=pytest.mark.slow) for n in (1023, 1024, 1032, 4095, 4096))]
)
def test_long_rows_of_layer_norm(channels, dtype, tmp_path, monkeypatch):
    """An array that does not fit, or whose indices the compiler does not know, would be a stack frame in memory."""
    launched = {}
    monkeypatch.setattr(launch, "emulate", lambda kernel, *_: launched.update({kernel.name: kernel}))
    x = np.ones((1, channels), DTYPES[dtype])
    run(cuda.LayerNorm, x, x, x[0], x[0], 1e-5)
    assert_all_in_registers(compile_for(tmp_path, launched["layer_norm_backward"].text, 75, 90))


# Flash attention


def compile_flash(folder, dtype, head_size, causal, dropout, *architectures):
    constants = {launch.SCALARS[dtype]: 1, **attention.constants(head_size, causal, dropout)}
    found = compile_for(folder, launch.source("flash_attention.cu", constants), *architectures)
    assert len(found) == 4 * len(architectures)
    for kernel, architecture, report in found:
        assert "0 bytes spill stores, 0 bytes spill loads" in report, (kernel, architecture)


@pytest.mark.slow
def test_flash_attention_spills_no_registers(tmp_path):
    compile_flash(tmp_path, "bfloat16", 64, True, True, 80, 90)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_size", [32, 64, 80, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_flash_attention_with_all_constants(tmp_path, dtype, head_size, causal, dropout):
    compile_flash(tmp_path, dtype, head_size, causal, dropout, 80, 86, 89, 90)


def test_flash_attention_refuses_older_architectures_in_words(tmp_path):
    with pytest.raises(AssertionError, match=r"needs a card of compute capability 8\.0"):
        compile_flash(tmp_path, "float16", 64, True, False, 75)
