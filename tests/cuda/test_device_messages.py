"""What is missing when a GPU is asked for, and the one command that adds it; and running out of memory.

Fakes of CuPy fail here as CuPy 14.2 does: with exceptions of the same names and texts.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from gpt.errors import OutOfMemoryError, memory_advice, run_program
from gpt.evaluate import evaluate
from minigrad.memory import describe_out_of_memory, memory_use
from tests.fakes import cupy as fake_cupy
from tests.gpt.runs import new_trainer


class CUDARuntimeError(RuntimeError):
    pass


class DynamicLibNotFoundError(RuntimeError):
    pass


class CompileException(Exception):
    pass


NO_HEADERS = (
    "Failed to find CUDA headers. Please install CUDA toolkit headers (e.g., pip install cupy-cuda12x[ctk]) or specify "
    "CUDA_PATH environment variable."
)
NOT_FOUND = 'Failure finding "{0}": No such file: {0}, No such file: {0}\n'
NO_GPU = CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


def install(monkeypatch, *names):
    """The names of all packages that are installed."""
    found = [types.SimpleNamespace(metadata={"Name": name}) for name in ("numpy", *names)]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)


def raising(error):
    def call(*_, **__):
        raise error

    return call


@pytest.fixture
def cupy(monkeypatch):
    """A CuPy for CUDA 12 that works, to be broken by the test; its package is the only one installed."""
    fake_cupy.install(monkeypatch)
    made = types.ModuleType("cupy")
    made.__dict__.update({name: value for name, value in vars(fake_cupy.cupy).items() if not name.startswith("__")})
    made.cuda = types.SimpleNamespace(**vars(fake_cupy.cupy.cuda))
    for part in ("runtime", "nvrtc"):
        setattr(made.cuda, part, types.SimpleNamespace(**vars(getattr(made.cuda, part))))
    monkeypatch.setitem(sys.modules, "cupy", made)
    install(monkeypatch, "cupy-cuda12x")
    return made


def message(device="cuda"):
    with pytest.raises(mg.DeviceError) as raised:
        mg.Tensor([1.0], device=device)
    text = str(raised.value)
    assert text.startswith(f'device "{device}" ')
    assert "\n" not in text
    return text


def test_a_whole_installation_works(cupy):
    assert mg.Tensor([1.0], device="cuda").device == "cuda:0"


def test_it_is_examined_once(cupy, monkeypatch):
    calls = []
    monkeypatch.setattr(cupy.cuda, "get_cublas_handle", lambda: calls.append(1))
    for _ in range(3):
        mg.Tensor([1.0], device="cuda")
    mg.Tensor([1.0], device="cuda:1")
    assert len(calls) == 2  # once for each GPU


def test_no_driver(cupy):
    cupy.cuda.runtime.driverGetVersion = lambda: 0
    cupy.cuda.runtime.getDeviceCount = raising(CUDARuntimeError("cudaErrorInsufficientDriver: …"))
    assert "needs an NVIDIA driver, which is not installed: sudo ubuntu-drivers install" in message()


def test_an_old_driver(cupy):
    cupy.cuda.runtime.driverGetVersion = lambda: 11040
    assert "needs an NVIDIA driver for CUDA 12, but this one is for CUDA 11.4: sudo ubuntu-drivers install" in message()


def test_a_driver_older_than_cupy(cupy, monkeypatch):
    install(monkeypatch, "cupy-cuda13x")
    cupy.cuda.runtime.runtimeGetVersion = lambda: 13000
    cupy.cuda.runtime.driverGetVersion = lambda: 12080
    text = message()
    assert "the NVIDIA driver, which is for CUDA 12.8; the one installed is for CUDA 13" in text
    assert text.endswith(': pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install "cupy-cuda12x[ctk]"')


def test_a_driver_newer_than_cupy_will_do(cupy):
    cupy.cuda.runtime.driverGetVersion = lambda: 13010
    assert mg.Tensor([1.0], device="cuda").device == "cuda:0"


def test_a_card_older_than_cupy(cupy, monkeypatch):
    install(monkeypatch, "cupy-cuda13x")
    cupy.cuda.runtime.runtimeGetVersion = cupy.cuda.runtime.driverGetVersion = lambda: 13000
    cupy.cuda.Device = type("Device", (fake_cupy.Device,), {"compute_capability": "61"})
    text = message()
    assert "needs a GPU of compute capability 7.5 or newer, this one has 6.1" in text
    assert text.endswith('pip install "cupy-cuda12x[ctk]"')


@pytest.mark.parametrize("hidden", [None, ""])
def test_no_gpu(cupy, monkeypatch, hidden):
    if hidden is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    cupy.cuda.runtime.getDeviceCount = raising(NO_GPU)
    text = message()
    assert "needs a GPU, and the NVIDIA driver finds none (cudaErrorNoDevice" in text
    assert ("CUDA_VISIBLE_DEVICES is ''" in text) == (hidden is not None)
    assert "nvidia-smi" in text


def test_no_nvrtc(cupy):
    cupy.cuda.nvrtc.getVersion = raising(DynamicLibNotFoundError(NOT_FOUND.format("libnvrtc.so.12")))
    assert message().endswith('does not find NVRTC, the compiler of CuPy\'s kernels: pip install "cupy-cuda12x[ctk]"')


def test_no_headers(cupy):
    cupy.arange = raising(RuntimeError(NO_HEADERS))
    assert message().endswith(
        "does not find CUDA's header files, which CuPy's kernels include: pip install \"cupy-cuda12x[ctk]\""
    )


def test_no_cublas(cupy):
    cupy.cuda.get_cublas_handle = raising(ImportError(NOT_FOUND.format("libcublasLt.so.13 or libcublasLt.so.12")))
    assert message().endswith('does not find cuBLAS, the library for matrix products: pip install "cupy-cuda12x[ctk]"')


def test_what_is_missing_is_of_the_installed_cuda(cupy, monkeypatch):
    install(monkeypatch, "cupy-cuda13x")
    cupy.cuda.runtime.runtimeGetVersion = cupy.cuda.runtime.driverGetVersion = lambda: 13000
    cupy.cuda.get_cublas_handle = raising(ImportError(NOT_FOUND.format("libcublasLt.so.13")))
    assert message().endswith('pip install "cupy-cuda13x[ctk]"')


def test_headers_of_another_version(cupy):
    cupy.arange = raising(CompileException("cuda_fp16.h(10): error: expected a declaration\n\n1 error detected.\n"))
    text = message()
    assert "cannot compile CuPy's kernels (1 error detected.)" in text
    assert text.endswith('pip uninstall -y cupy-cuda12x && pip install "cupy-cuda12x[ctk]"')


def test_any_other_failure_is_shown(cupy):
    cupy.arange = raising(CUDARuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy"))
    assert "does not work (CUDARuntimeError: cudaErrorDevicesUnavailable" in message()


def test_a_gpu_that_is_full_is_out_of_memory(cupy):
    cupy.arange = raising(fake_cupy.OutOfMemoryError(512, 0))
    with pytest.raises(MemoryError):
        mg.Tensor([1.0], device="cuda")


def broken_cupy(monkeypatch, error):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    real = importlib.import_module

    def import_module(name, *args):
        if name == "cupy":
            raise error
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", import_module)


BROKEN = f"""
{"=" * 64}
Failed to import CuPy.

If you installed CuPy via wheels, make sure that the package matches with the version of CUDA installed.

Original error:
  ImportError: libcuda.so.1: cannot open shared object file
{"=" * 64}
"""


def test_a_broken_cupy(monkeypatch):
    broken_cupy(monkeypatch, ImportError(BROKEN))
    install(monkeypatch, "cupy-cuda13x")
    text = message()
    assert "a CuPy that can be imported (ImportError: libcuda.so.1: cannot open shared object file)" in text
    assert text.endswith('pip uninstall -y cupy-cuda13x && pip install "cupy-cuda13x[ctk]"')


def test_a_cupy_without_what_it_depends_on(monkeypatch):
    broken_cupy(monkeypatch, ModuleNotFoundError("No module named 'cuda.pathfinder'", name="cuda.pathfinder"))
    install(monkeypatch, "cupy-cuda12x")
    assert "a CuPy that can be imported (No module named 'cuda.pathfinder')" in message()


def test_two_cupys(cupy, monkeypatch):
    install(monkeypatch, "cupy-cuda13x", "CuPy-cuda12x")
    expected = (
        "needs one CuPy, but cupy-cuda12x and cupy-cuda13x are installed in the same place: "
        'pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install "cupy-cuda12x[ctk]"'
    )
    cupy.arange = raising(AttributeError("whatever an old file does not know"))
    assert message().endswith(expected)
    broken_cupy(monkeypatch, ImportError(BROKEN))
    assert message().endswith(expected)


@pytest.mark.parametrize("error", [ImportError(BROKEN), OSError("libcuda"), RuntimeError("anything"), UserWarning("x")])
def test_whether_there_is_a_gpu_can_always_be_asked(monkeypatch, error):
    broken_cupy(monkeypatch, error)
    assert mg.cuda_is_available() is False


def test_the_errors_here_have_cupys_names():
    mg.cuda_is_available()  # imports CuPy if it can be imported, and never raises
    real = sys.modules.get("cupy")
    if real is None:
        pytest.skip("CuPy is not installed")
    pathfinder = importlib.import_module("cuda.pathfinder")
    assert pathfinder.DynamicLibNotFoundError.__name__ == DynamicLibNotFoundError.__name__
    assert issubclass(pathfinder.DynamicLibNotFoundError, RuntimeError)
    assert real.cuda.compiler.CompileException.__name__ == CompileException.__name__
    assert issubclass(real.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert real.cuda.runtime.runtimeGetVersion() // 1000 in (12, 13)
    if real.cuda.runtime.driverGetVersion():
        pytest.skip("there is a driver")
    assert "needs an NVIDIA driver, which is not installed" in message()


# Out of memory


def test_out_of_memory_on_the_gpu(cupy):
    text = describe_out_of_memory(fake_cupy.OutOfMemoryError(3 * 2**30, 5 * 2**30))
    assert text == (
        "out of memory on the GPU: 3.00 GiB more were requested; 5.00 GiB are held by this process; 3.00 GiB are free"
    )


def test_out_of_memory_on_the_cpu():
    with pytest.raises(MemoryError) as raised:
        np.ones(2**48, np.float32)
    text = describe_out_of_memory(raised.value)
    assert text.startswith("out of memory on the CPU: Unable to allocate 1.00 PiB for an array with shape")
    held, free = memory_use()
    assert ("held by this process" in text, "are free" in text) == (held is not None, free is not None)


def full(*_, **__):
    raise fake_cupy.OutOfMemoryError(2**20, 2**30)


def test_training_says_which_options_take_less(cupy, tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path)
    monkeypatch.setattr(trainer, "step", full)
    with pytest.raises(OutOfMemoryError) as raised:
        trainer.train()
    for words in (
        "1.00 MiB more were requested",
        "5.00 GiB",
        "--batch-size",
        "--grad-accum",
        "--checkpoint",
        "--block",
    ):
        assert words in str(raised.value)


def test_generating_and_evaluating_say_what_takes_less(cupy, monkeypatch):
    model = GPT(GPTConfig(block_size=4, vocab_size=5, n_layer=1, n_head=1, n_embd=4))
    monkeypatch.setattr(model, "hidden_states", full)
    with pytest.raises(OutOfMemoryError, match="fewer prompts"):
        model.generate([[1, 2]], 3)
    with pytest.raises(OutOfMemoryError, match="--batch-size"):
        evaluate(model, np.arange(5), 5)


def test_a_program_ends_with_one_line(cupy, capsys):
    for main in (full, lambda: np.ones(2**48), memory_advice("buy more")(full)):
        with pytest.raises(SystemExit) as ended:
            run_program(main)
        assert str(ended.value).startswith("error: out of memory on the ")
        assert "\n" not in str(ended.value)


def test_advice_is_given_once():
    with pytest.raises(OutOfMemoryError) as raised, memory_advice("outer"), memory_advice("inner"):
        raise MemoryError
    assert str(raised.value).endswith("inner")
