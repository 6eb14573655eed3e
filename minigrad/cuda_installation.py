"""Can CuPy use the GPU? If not: what is missing, and the command that installs it.

`import cupy` succeeds without a driver, and without NVRTC, CUDA's header files and cuBLAS, which its package does not
contain. A missing one is noticed only when it is used. So `check` uses each of them once, when a process first asks for
a GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from types import ModuleType

OLDEST_DRIVER = 12  # the CUDA version that the driver has to support
WEBSITE = "sudo ubuntu-drivers install (on Ubuntu; for other systems see https://www.nvidia.com/drivers)"


class Missing(Exception):
    """A GPU cannot be used: what is missing, and how to install it."""


def import_cupy() -> ModuleType:
    """CuPy, with a driver and a GPU that it can work with. Raises `Missing`."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise Missing('needs CuPy, which is not installed: pip install "cupy-cuda12x[ctk]" ml_dtypes') from error
        raise Missing(_broken(error)) from error
    _check_driver(cupy)
    return cupy


@functools.cache  # a success is remembered; after an error, the next call checks again
def _check_driver(cupy: ModuleType) -> None:
    runtime = cupy.cuda.runtime
    driver, made_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()  # 12040 is CUDA 12.4; 0 no driver
    if not driver:
        raise Missing(
            f"needs an NVIDIA driver, which is not installed: {WEBSITE}; a container must be started with the GPUs, "
            f"as in docker run --gpus all"
        )
    version = f"{driver // 1000}.{driver % 1000 // 10}"
    if driver // 1000 < OLDEST_DRIVER:
        raise Missing(f"needs an NVIDIA driver for CUDA {OLDEST_DRIVER}, but this one is for CUDA {version}: {WEBSITE}")
    if driver // 1000 < made_for // 1000:
        raise Missing(
            f"needs a CuPy that fits the NVIDIA driver, which is for CUDA {version}; the one installed is for CUDA "
            f"{made_for // 1000}: {_install('cupy-cuda12x')}"
        )
    try:
        runtime.getDeviceCount()
    except Exception as error:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f"; CUDA_VISIBLE_DEVICES is {hidden!r}"
        raise Missing(
            f"needs a GPU, and the NVIDIA driver finds none ({error}{why}): nvidia-smi lists the GPUs"
        ) from error


@functools.cache
def check(cupy: ModuleType, index: int) -> None:
    """Raise `Missing` if there is no GPU of this number, or CuPy cannot compile kernels or multiply matrices on it."""
    runtime = cupy.cuda.runtime
    count, cuda = runtime.getDeviceCount(), runtime.runtimeGetVersion() // 1000
    if index >= count:
        raise Missing(f"is not there: this machine has {count} GPU(s), numbered from 0")
    gpu = cupy.cuda.Device(index)
    if cuda >= 13 and int(gpu.compute_capability) < 75:
        raise Missing(
            f"needs another CuPy: that for CUDA {cuda} needs a GPU of compute capability 7.5 or newer, this one has "
            f"{int(gpu.compute_capability) / 10}: {_install('cupy-cuda12x')}"
        )
    package = f"cupy-cuda{cuda}x"
    part = ""
    try:
        with gpu:
            part = "NVRTC, the compiler of CuPy's kernels"
            cupy.cuda.nvrtc.getVersion()
            part = "CUDA's header files, which CuPy's kernels include"
            cupy.arange(2, dtype="float32") + 1
            part = "cuBLAS, the library for matrix products"
            cupy.cuda.get_cublas_handle()
    except MemoryError:
        raise
    except Exception as error:
        said = _last_line(error)
        if len(_installed()) > 1:
            raise Missing(_broken(error)) from error
        if isinstance(error, ImportError) or type(error).__name__ == "DynamicLibNotFoundError" or "headers" in said:
            raise Missing(f"does not find {part}: {_install(package)}") from error
        if type(error).__name__ == "CompileException":  # header files of another version, for example
            raise Missing(f"cannot compile CuPy's kernels ({said}): {_reinstall(package)}") from error
        raise Missing(f"does not work ({type(error).__name__}: {said})") from error


def _installed() -> list[str]:
    names = {str(found.metadata["Name"]).lower() for found in importlib.metadata.distributions()}
    return sorted(name for name in names if name == "cupy" or name.startswith("cupy-cuda"))


def _install(package: str) -> str:
    """The command that installs this CuPy package with its libraries, in place of any other."""
    return _reinstall(package) if {*_installed()} - {package} else f'pip install "{package}[ctk]"'


def _reinstall(package: str) -> str:
    remove = " ".join(sorted({*_installed(), package}))
    return f'pip uninstall -y {remove} && pip install "{package}[ctk]"'


def _broken(error: Exception) -> str:
    several = _installed()
    if len(several) > 1:
        names = " and ".join(several)
        return f"needs one CuPy, but {names} are installed in the same place: {_reinstall('cupy-cuda12x')}"
    return f"needs a CuPy that can be imported ({_last_line(error)}): {_reinstall((several or ['cupy-cuda12x'])[0])}"


def _last_line(error: Exception) -> str:
    """The last line of a message: CuPy ends its long messages with the original error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =-")]
    return lines[-1] if lines else type(error).__name__
