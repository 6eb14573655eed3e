"""Test a cluster before training on it: the collectives, how fast they are, and one step of training.

    mpirun -n 4 python -m minigrad.distributed.check
    torchrun --nproc-per-node 4 -m minigrad.distributed.check

Rank 0 prints one line for each check, and a table of times. The exit status is 1 if a check fails.

The time of an all_reduce of n bytes on `size` ranks is compared with what each rank has to send and receive at least,
2 (size - 1) / size n bytes (Patarasuk and Yuan, 2009): the bandwidth in the table is that number over the time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import functional as F
from .. import nn, random
from ..backend import DeviceError, as_dtype, on, to_device
from ..optim import AdamW
from ..tensor import Tensor
from .communicator import Communicator, DistributedError
from .ddp import DistributedDataParallel
from .launch import communicator, launcher

SIZES = (1, 7, 1000, 100_003)  # elements of one part
SECONDS = 0.3  # for each line of the table
LARGEST = 1 << 26  # bytes

Check = Callable[[Communicator, str], None]  # raises AssertionError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="minigrad.distributed.check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda under torchrun, else cpu")
    parser.add_argument("--largest", type=int, default=LARGEST, metavar="BYTES", help="of the table (64 MiB)")
    options = parser.parse_args(arguments)
    try:
        ranks = communicator(options.device or ("cuda" if launcher()[0] == "torchrun" else "cpu"))
    except (DistributedError, DeviceError) as error:
        sys.exit(f"error: {error}")
    say = print if ranks.rank == 0 else _say_nothing
    hosts = sorted({host for host, _ in ranks.share([socket.gethostname(), ranks.device])})
    say(f"{ranks.size} ranks on {len(hosts)} machine(s), {ranks.device.partition(':')[0]}, {ranks.name}")
    failed = 0
    for name, check, dtype in checks():
        problems = _problems(ranks, check, dtype)
        failed += bool(problems)
        say(f"{'FAILED' if problems else 'ok':6}  {name}" + "".join(f"\n        {problem}" for problem in problems))
    if not failed:
        say(f"\n{'bytes':>12}  {'all_reduce':>12}  {'per second':>12}")
        for size, seconds in times(ranks, options.largest):
            carried = 2 * (ranks.size - 1) / ranks.size * size
            say(f"{size:12,}  {seconds * 1e6:9.1f} µs  {carried / seconds / 1e9:8.3f} GB")
    say(f"\n{failed} check(s) failed" if failed else "\nall checks passed", flush=True)
    return 1 if failed else 0


def _say_nothing(*_: Any, **__: Any) -> None:
    pass


def checks() -> Iterator[tuple[str, Check, str]]:
    """The name of each check, the function, and the dtype that it is for."""
    dtypes = ["float32", "float64", "float16", *(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else [])]
    for check in (all_reduce, reduce_scatter, all_gather, broadcast):
        for dtype in [*dtypes, "int64"]:
            yield f"{check.__name__} of {dtype}", check, dtype
    for dtype in dtypes:
        yield f"the same bits on all ranks, {dtype}", same_bits, dtype
    yield "collectives that overlap run in order", order, "float32"
    yield "a step of training, against one process", step, "float64"


def _problems(ranks: Communicator, check: Check, dtype: str) -> list[str]:
    """What the check found, on the ranks that found something."""
    try:
        check(ranks, dtype)
        problem = ""
    except AssertionError as error:
        problem = str(error).strip().partition("\n")[0] or "is wrong"
    return [f"rank {rank}: {found}" for rank, found in enumerate(ranks.share(problem)) if found]


# The checks. All ranks know what every rank has, so that NumPy can compute what has to come out


def arrays(ranks: Communicator, n: int, dtype: str) -> list[Any]:
    """What each rank has: whole numbers, whose sums are exact in every dtype and in every order."""
    return [np.random.default_rng([rank, n]).integers(-8, 8, n).astype(as_dtype(dtype)) for rank in range(ranks.size)]


def here(ranks: Communicator, array: Any) -> Any:
    """A copy on this rank's device."""
    return to_device(array.copy(), ranks.device)


def compare(got: Any, expected: Any, what: str) -> None:
    got, expected = np.asarray(to_device(got, "cpu")), np.asarray(expected)
    wrong = np.flatnonzero(got != expected)
    if len(wrong):
        i = wrong[0]
        raise AssertionError(f"{what}: expected {expected[i]} at {i}, got {got[i]}; {len(wrong)} of {got.size} differ")


def all_reduce(ranks: Communicator, dtype: str) -> None:
    for n in SIZES:
        of_all = arrays(ranks, n, dtype)
        total = sum(array.astype("float64") for array in of_all)
        array = here(ranks, of_all[ranks.rank])
        ranks.all_reduce(array)
        compare(array, total.astype(array.dtype), f"sum of {n}")


def reduce_scatter(ranks: Communicator, dtype: str) -> None:
    for n in SIZES:
        of_all = arrays(ranks, n * ranks.size, dtype)
        total = sum(array.astype("float64") for array in of_all)
        part = here(ranks, np.zeros(n, of_all[0].dtype))
        ranks.reduce_scatter(here(ranks, of_all[ranks.rank]), part)
        compare(part, np.split(total.astype(part.dtype), ranks.size)[ranks.rank], f"part of {n}")


def all_gather(ranks: Communicator, dtype: str) -> None:
    for n in SIZES:
        of_all = arrays(ranks, n, dtype)
        gathered = here(ranks, np.zeros(n * ranks.size, of_all[0].dtype))
        ranks.all_gather(here(ranks, of_all[ranks.rank]), gathered)
        compare(gathered, np.concatenate(of_all), f"parts of {n}")


def broadcast(ranks: Communicator, dtype: str) -> None:
    for n in SIZES:
        of_all = arrays(ranks, n, dtype)
        for root in {0, ranks.size // 2, ranks.size - 1}:
            array = here(ranks, of_all[ranks.rank])
            ranks.broadcast(array, root)
            compare(array, of_all[root], f"{n} from rank {root}")


def same_bits(ranks: Communicator, dtype: str) -> None:
    """Sums that are rounded, in whatever order, are the same on all ranks: else their weights would drift apart."""
    array = np.random.default_rng(ranks.rank).standard_normal(100_003).astype(as_dtype(dtype))
    mean = here(ranks, array)
    ranks.all_reduce(mean, "mean")
    digests = ranks.share(hashlib.sha256(to_device(mean, "cpu").tobytes()).hexdigest())
    differing = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if differing:
        raise AssertionError(f"the ranks {differing} have other bits than rank 0")


def order(ranks: Communicator, dtype: str) -> None:
    array = here(ranks, np.ones(1000, dtype))
    works = [ranks.start_all_reduce(array) for _ in range(5)]
    works[-1].wait()
    compare(array, np.full(1000, float(ranks.size) ** 5), "five sums of sums")
    for work in works:
        work.wait()


def step(ranks: Communicator, dtype: str) -> None:
    """Two steps of AdamW on a small model. Sums in another order round differently, hence the tolerance."""
    batches = [np.random.default_rng(seed) for seed in range(2)]
    batch = [
        (rng.standard_normal((2 * ranks.size + 1, 6)), rng.integers(4, size=2 * ranks.size + 1)) for rng in batches
    ]
    losses, weights = zip(*(_train(batch, each) for each in (Communicator(ranks.device), ranks)), strict=True)
    for name, expected in weights[0].items():
        difference = np.abs(weights[1][name] - expected).max()
        if difference > 1e-10:
            raise AssertionError(f"{name} differs by {difference:.1e}")
    if not np.allclose(losses[1], losses[0], rtol=1e-10):
        raise AssertionError(f"expected the losses {losses[0]}, got {losses[1]}")


def _train(batches: list[Any], ranks: Communicator) -> tuple[list[float], dict[str, Any]]:
    """The losses, and the weights at the end."""
    state = random.get_state()
    random.manual_seed(0)
    with on(ranks.device):
        model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).to(ranks.device, dtype="float64")

    def loss_of(x: Any, targets: Any) -> Tensor:
        return F.cross_entropy(model(Tensor(x)), Tensor(targets))

    optimizer, losses = AdamW(model.parameters(), lr=0.1), []
    with DistributedDataParallel(model, loss_of, ranks) as parallel:
        for x, targets in batches:
            loss = parallel(to_device(x, ranks.device), to_device(targets, ranks.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    random.set_state(state)
    return losses, {name: p.numpy().copy() for name, p in model.named_parameters()}


def times(ranks: Communicator, largest: int) -> Iterator[tuple[int, float]]:
    """The seconds of one all_reduce of float32, for sizes in bytes up to the largest: the median of several."""
    size = 4
    while size <= largest:
        array, took, begin = here(ranks, np.zeros(size // 4, np.float32)), [], time.perf_counter()
        finished = False
        while not finished:
            ranks.barrier()
            start = time.perf_counter()
            ranks.all_reduce(array)
            to_device(array[:1], "cpu")  # waits for the GPU
            took.append(time.perf_counter() - start)
            finished = ranks.share(time.perf_counter() - begin > SECONDS or len(took) == 100)[0]
        yield size, float(np.median(took[1:] or took))
        size *= 8


if __name__ == "__main__":
    sys.exit(main())
