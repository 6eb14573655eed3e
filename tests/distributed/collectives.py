"""A program for several ranks: every collective, compared with NumPy; then arguments that are refused."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest

from minigrad.distributed import DistributedError, communicator, mpi

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64]


def array_of(rank: int, n: int, dtype) -> np.ndarray:
    """Whole numbers: their sums are exact in every dtype, so that the order of additions does not matter."""
    return np.random.default_rng(rank).integers(-8, 8, n).astype(dtype)


def check_collectives(ranks, n: int, dtype) -> None:
    r, size = ranks.rank, ranks.size
    arrays = [array_of(rank, n * size, dtype) for rank in range(size)]
    total = sum(array.astype(np.float64) for array in arrays)

    array = arrays[r].copy()
    ranks.all_reduce(array)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.astype(np.float64), total)

    part = np.zeros(n, dtype)
    ranks.reduce_scatter(arrays[r].copy(), part)
    np.testing.assert_array_equal(part.astype(np.float64), np.split(total, size)[r])

    gathered = np.zeros(n * size, dtype)
    ranks.all_gather(part, gathered)
    np.testing.assert_array_equal(gathered.astype(np.float64), total)

    gathered[: r * n], gathered[(r + 1) * n :] = 0, 0  # the part in its place
    ranks.all_gather(gathered[r * n : (r + 1) * n], gathered)
    np.testing.assert_array_equal(gathered.astype(np.float64), total)

    for root in range(size):
        array = arrays[r].copy()
        ranks.broadcast(array, root)
        np.testing.assert_array_equal(array, arrays[root])

    if np.dtype(dtype).kind != "i":
        array = arrays[r].copy()
        ranks.all_reduce(array, "mean")
        np.testing.assert_array_equal(array, (total.astype(np.result_type(dtype, np.float32)) / size).astype(dtype))
        ranks.reduce_scatter(arrays[r].copy(), part, "mean")
        np.testing.assert_array_equal(part, np.split(array, size)[r])


def check_bits(ranks) -> None:
    """Numbers whose sums are rounded: all ranks have the same bits, also of a part of an all_reduce."""
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        array = np.random.default_rng(ranks.rank).standard_normal(1001).astype(dtype)
        ranks.all_reduce(array, "mean")
        assert len({*ranks.share(array.tobytes().hex())}) == 1


def check_order(ranks) -> None:
    """Collectives that were started run in order, while the program computes; waiting for the last waits for all."""
    array, parts = np.ones(1000), np.zeros((5, 1000))
    works = []
    for part in parts:
        works.append(ranks.start_all_reduce(array))
        works.append(ranks.start_reduce_scatter(np.tile(array, ranks.size), part))
        works[-2].wait()
    for work in reversed(works):
        work.wait()
    np.testing.assert_array_equal(array, float(ranks.size) ** 5)
    assert ranks.share(ranks.rank) == list(range(ranks.size))
    ranks.barrier()


def check_refused(ranks) -> None:
    """The same on every rank, before any has waited for another."""
    good = np.zeros(2 * ranks.size)
    for call, error, message in [
        (lambda: ranks.all_reduce(np.zeros((2, 2))), ValueError, r"of one axis, got shape \(2, 2\)$"),
        (lambda: ranks.all_reduce(np.zeros(8)[::2]), ValueError, r"got shape \(4,\), not contiguous"),
        (lambda: ranks.all_reduce([1.0]), TypeError, "all_reduce: expected an array, got list"),
        (lambda: ranks.all_reduce(np.zeros(2, np.int32)), TypeError, "got int32"),
        (lambda: ranks.all_reduce(np.zeros(2, ">f4")), TypeError, "got >f4"),
        (lambda: ranks.all_reduce(np.zeros(2, np.int64), "mean"), TypeError, "expected floats for a mean, got int64"),
        (lambda: ranks.all_reduce(good, "max"), ValueError, '"sum" or "mean", got \'max\''),
        (lambda: ranks.all_reduce(np.frombuffer(b"12345678")), ValueError, "writable"),
        (lambda: ranks.reduce_scatter(good, np.zeros(3)), ValueError, f"{ranks.size} times the part, got .* and 3"),
        (lambda: ranks.all_gather(np.zeros(2, np.float32), good), ValueError, "times the part, got .* float32"),
        (lambda: ranks.broadcast(good, ranks.size), ValueError, f"from 0 to {ranks.size - 1}, got {ranks.size}"),
        (
            lambda: communicator("cuda"),
            DistributedError,
            "expected the device cpu, on which the ranks communicate, got cuda",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()


def check_mismatch(ranks) -> None:
    """With MINIGRAD_CHECK_COLLECTIVES, every rank hears of a call that not all of them make."""
    assert ranks.check_calls
    with pytest.raises(
        DistributedError, match=r"rank 1 calls all_reduce of 1 float64 \(sum\), but rank 0 calls .* 0 f"
    ):
        ranks.all_reduce(np.zeros(ranks.rank))
    ranks.all_reduce(np.zeros(1))


def main() -> None:
    ranks = communicator()
    assert (ranks.name, ranks.size, ranks.local_rank) == ("MPI", int(sys.argv[1]), ranks.rank)
    assert communicator("cpu") is ranks
    for n, dtype in [(0, np.float32), (1, np.float64), *((1000, dtype) for dtype in DTYPES)]:
        check_collectives(ranks, n, dtype)
    mpi.PIECE, mpi.PIECE_16_BIT = 5, 4  # several calls of MPI for each collective, as for more than 2^31 numbers
    for dtype in (np.float64, np.float16):
        check_collectives(ranks, 7, dtype)
    mpi.PIECE, mpi.PIECE_16_BIT = 1 << 27, 1 << 22
    check_bits(ranks)
    check_order(ranks)
    check_refused(ranks)
    check_mismatch(ranks)
    ranks.barrier()
    if ranks.rank == 0:
        print("all collectives are right")


if __name__ == "__main__":
    main()
