"""What the check has found on a card, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....backend import on
from ....cache import cache_folder
from .. import cublaslt, launch
from . import run
from .cases import units

REPORT = "please report this with what `python -m minigrad.kernels.cuda.proof` prints"


def answer(device: int) -> dict[str, str]:
    """For every kernel and dtype how it failed on this GPU, or "" if it passed. Nothing, if that is not known.

    It is read from the cache folder; if it is not there, the kernels are checked, which takes up to 20 seconds.
    """
    try:
        key, expected = describe(device)
        results = read(key, expected) or find_out(device, key, expected)
    except Exception as problem:  # no card, no library, no memory, …: whatever it is, nothing unproven runs
        words = str(problem) if isinstance(problem, run.Unknown) else f"{type(problem).__name__}: {problem}"
        say(f"the CUDA kernels could not be checked on cuda:{device}, so they stay off for now ({words})")
        return {}
    for unit, failure in results.items():
        if failure:
            say_failed(unit, key["device"], failure)
    return results


def find_out(device: int, key: dict[str, Any], expected: list[str]) -> dict[str, str]:
    """Check the kernels and keep the answer, unless another process is just doing that: then wait for its answer."""
    with locked(key):
        results = read(key, expected)
        if results is None:
            say(f"checking the CUDA kernels on {key['device']}, once for this card: this takes up to 20 seconds")
            results = {unit: result.failure for unit, result in run.prove(device).items()}
            keep(key, results)
    return results


def describe(device: int) -> tuple[dict[str, Any], list[str]]:
    """All that an answer depends on, and the kernels and dtypes that it is about."""
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    sources = hashlib.sha256()
    for path in sorted(launch.FOLDER.rglob("*")):
        if path.suffix in (".cu", ".cuh", ".py"):
            sources.update(path.read_bytes())
    with on(f"cuda:{device}"):
        name = runtime.getDeviceProperties(device)["name"]
        expected = [f"{subject.name} {dtype}" for subject, dtype in units()]
        key = {
            "device": name.decode() if isinstance(name, bytes) else name,
            "compute capability": launch.compute_capability(),
            "driver": [runtime.driverGetVersion(), _driver()],
            "CuPy": cupy.__version__,
            "NVRTC": list(cupy.cuda.nvrtc.getVersion()),
            "cuBLASLt": _cublaslt(),
            "sources": sources.hexdigest(),
        }
    return key, expected


def _cublaslt() -> int | str:
    try:
        return cublaslt.version()
    except Exception as error:  # it is missing; the kernels that need it will say so
        return str(error)


def _driver() -> str:
    """The driver's own version, where the system tells: two drivers may be for the same version of CUDA."""
    with contextlib.suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text("utf-8", errors="replace").partition("\n")[0]
    return ""


# The file


def path_of(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "kernels" / f"{digest[:16]}.json"


def read(key: dict[str, Any], expected: list[str]) -> dict[str, str] | None:
    """The answer that is kept under a key; None if there is none, or none that is whole."""
    try:
        kept = json.loads(path_of(key).read_text("utf-8"))
        results = kept["results"]
        whole = kept["key"] == key and set(results) == set(expected)
        return results if whole and all(isinstance(failure, str) for failure in results.values()) else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):
        return None


def keep(key: dict[str, Any], results: dict[str, str]) -> None:
    """Write the answer, whole or not at all."""
    try:
        path = path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, path.name)
            new.write_text(json.dumps({"key": key, "results": results}, indent=1), "utf-8")
            os.replace(new, path)
    except (OSError, RuntimeError) as error:
        say(
            f"what the check of the CUDA kernels found cannot be kept ({error}), so every run checks them again: set "
            f"MINIGRAD_CACHE to a folder that can be written"
        )


@contextlib.contextmanager
def locked(key: dict[str, Any]) -> Iterator[None]:
    """Inside this context no other process is. Where the system, or the folder, has no locks, several may be."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError, ImportError):
            fcntl = importlib.import_module("fcntl")
            path = path_of(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path.with_suffix(".lock"), "w"))
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file, or the end of the process, unlocks it
        yield


# What users are told


def say(line: str) -> None:
    print(f"minigrad: {line}", file=sys.stderr, flush=True)


def say_failed(unit: str, card: str, failure: str) -> None:
    say(f"the CUDA kernel {unit} failed its check on {card} and stays off ({failure}); {REPORT}")
