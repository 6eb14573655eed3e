"""`communicator`: which ranks does this process belong to? The launchers say so in environment variables.

    mpirun -n 4 python …            Open MPI, MPICH and their kin: MPI between processes on CPUs
    srun --mpi=pmix -n 4 python …   the same, started by Slurm
    torchrun --nproc-per-node 4 …   NCCL between GPUs, one for each process; PyTorch itself is not imported

With `device="cuda"`, mpirun and srun serve as well: MPI then starts the ranks, and NCCL carries the bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..backend import DeviceError
from .communicator import Communicator, DistributedError
from .control import Control, Hub, Spoke

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # Open MPI's mpirun; MPICH's, and Slurm's PMI-2
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
PORTS = 16  # after MASTER_PORT, of which rank 0 takes the first that is free
LOOPBACK = "127.0.0.1"

_communicator: Communicator | None = None


def launcher() -> tuple[str, int]:
    """The name of the launcher that started this process, and how many it started; ("", 1) without one."""
    if all(name in os.environ for name in TORCHRUN):
        return "torchrun", _number("WORLD_SIZE")
    for name in MPI_SIZES:
        if name in os.environ:
            return "mpirun", _number(name)
    size = _number("SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in os.environ else 1
    if size > 1 and "PMIX_RANK" not in os.environ:
        raise DistributedError(f"srun started {size} processes that cannot find each other: give it --mpi=pmix or pmi2")
    return ("srun", size) if size > 1 else ("", 1)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise DistributedError(f"expected a whole number in {name}, got {os.environ[name]!r}") from None


def communicator(device: str | None = None) -> Communicator:
    """The communicator of this process, made at the first call. Without a launcher, or of one process: alone.

    device: "cpu" (the default) or "cuda"; with a launcher, "cuda" is the GPU whose number is the rank on its machine,
    and the communicator's `device` names it. Later calls may leave it out.

    Raises `DistributedError` if the ranks cannot be connected, or not on this device.
    """
    global _communicator
    if _communicator is None:
        with _said_once():
            _communicator = _connect(device or "cpu")
        atexit.register(_communicator.close)
    elif device is not None and _communicator.size > 1 and _kind(device) != _kind(_communicator.device):
        raise DistributedError(
            f"expected the device {_communicator.device}, on which the ranks communicate, got {device}"
        )
    return _communicator


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Let rank 0 be the first with an error that all ranks have: its end lets the launcher end the others."""
    try:
        yield
    except (DistributedError, DeviceError):
        ranks = [os.environ[name] for name in RANKS if name in os.environ]
        if ranks and ranks[0] != "0":
            time.sleep(3)
        raise


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _connect(device: str) -> Communicator:
    name, size = launcher()
    if size == 1:
        return Communicator(device)
    if device not in ("cpu", "cuda"):
        raise DistributedError(f'{name} gives each rank a GPU of its own: expected the device "cuda", got "{device}"')
    if name == "torchrun":
        if device == "cpu":
            raise DistributedError(
                f"torchrun starts ranks that use GPUs, but the device is cpu: use mpirun -n {size} python …"
            )
        return _over_nccl(join_torchrun, _number("LOCAL_RANK"))
    from . import mpi

    world = mpi.connect(name, size)
    local_rank, one_machine = mpi.place_of(world)
    if device == "cpu":
        return mpi.MPICommunicator(world, join_mpi(world, one_machine), local_rank)
    return _over_nccl(lambda: join_mpi(world, one_machine), local_rank)


def _over_nccl(join: Callable[[], Control], local_rank: int) -> Communicator:
    from . import nccl

    nccl.gpu_of(local_rank)  # raises an error before the ranks wait for each other
    control = join()
    try:
        return nccl.NCCLCommunicator(control, local_rank)
    except Exception as error:
        control.fail(str(error))


def join_mpi(world: Any, one_machine: bool) -> Control:
    """Connect the ranks of MPI to rank 0, whose address MPI tells them."""
    rank, size = world.Get_rank(), world.Get_size()
    if rank:
        addresses, token = world.bcast(None)
        return Spoke(rank, size, addresses, token)
    listener, token = socket.create_server((LOOPBACK if one_machine else "", 0), backlog=size), secrets.token_hex(16)
    hosts = [LOOPBACK] if one_machine else _own_addresses()
    world.bcast(([(host, listener.getsockname()[1]) for host in hosts], token))
    return Hub(size, listener, token)


def join_torchrun() -> Control:
    """Connect the ranks that torchrun started to rank 0, at MASTER_ADDR and one of the ports after MASTER_PORT."""
    rank, size, port = _number("RANK"), _number("WORLD_SIZE"), _number("MASTER_PORT")
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    host = LOOPBACK if one_machine else os.environ["MASTER_ADDR"]
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    what_all_know = " ".join(os.environ.get(name, "") for name in names)
    token = hashlib.sha256(what_all_know.encode()).hexdigest()
    ports = [1024 + (port + i - 1024) % (65536 - 1024) for i in range(1, PORTS + 1)]
    if rank:
        return Spoke(rank, size, [(host, each) for each in ports], token)
    for each in ports:
        try:
            return Hub(size, socket.create_server((host if one_machine else "", each), backlog=size), token)
        except OSError as error:
            said = error
    raise DistributedError(f"rank 0 cannot listen on any port from {ports[0]} to {ports[-1]}: {said}")


def _own_addresses() -> list[str]:
    """Where other machines may reach this one: MINIGRAD_ADDRESS if it is set, else what its name stands for."""
    if given := os.environ.get("MINIGRAD_ADDRESS"):
        return [given]
    name = socket.gethostname()
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]
    except OSError:
        found = []
    return list(dict.fromkeys([*(address for address in found if not address.startswith("127.")), name]))
