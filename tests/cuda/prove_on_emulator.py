"""The process that checks kernels, for tests: the fake CuPy, and the emulator in place of a card.

    python -m tests.cuda.prove_on_emulator [--break NAME …] (and what minigrad.kernels.cuda.proof takes)

It checks a few kernels with a few cases each. `--break` spoils one of them first; see BREAKS.
"""

import argparse
import contextlib
import functools
import itertools
import sys
from unittest import mock

import pytest

from minigrad.kernels.cuda import launch, proof
from minigrad.kernels.cuda.proof import __main__ as command
from minigrad.kernels.cuda.proof import cases
from tests.fakes import cupy as fake_cupy
from tests.fakes.cublaslt import fake_cublaslt
from tests.fakes.emulator import emulated

RACE = """
__device__ float racing(float x) {  // adds in the order in which the threads come, as atomics do
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    total += x;
    __syncthreads();
    return total;
}
"""
BREAKS = {  # by the kernel's name: its file, what is replaced there, by what, and what is added before the text
    "GELU": ("gelu.cu", "(1 - h) * du_dx", "(h - 1) * du_dx", ""),  # the wrong sign
    "Dropout": (
        "dropout.cu",
        "const uint4 words",
        "y[n] = to_scalar(1.0f);\n    const uint4 words",
        "",
    ),  # beyond the end
    "Softmax": ("softmax.cu", "total = block_sum(total)", "total = racing(total)", RACE),
    "ClipGradNorm": ("adamw.cu", "norm[1] = (factor", "while (true) {}\n        norm[1] = (factor", ""),  # it hangs
    "AdamW": ("adamw.cu", "own.m[i] = m;", "*(volatile int *)8 = 0;", ""),  # it crashes
}
KERNELS = {"CrossEntropy", *BREAKS}


def few_kernels(monkeypatch):
    """A check of a few kernels, float32 and few cases each, that the emulator does in a second."""
    few = {
        kernel: subject._replace(cases=functools.partial(few_cases, subject.cases))
        for kernel, subject in cases.SUBJECTS.items()
        if subject.name in KERNELS
    }
    for module in (cases, proof):
        monkeypatch.setattr(module, "SUBJECTS", few)
    monkeypatch.setattr(cases.Subject, "dtypes", lambda subject: ["float32"])


def few_cases(all_cases, numbers):
    """Two small ones, of odd sizes, so that a kernel is compiled for accesses of one element only."""
    small = (case for case in all_cases(numbers) if case.arguments[0].size < 2000 and case.arguments[0].size % 2)
    yield from itertools.islice(small, 2)


def broken(names):
    """`launch.source`, which gives the text of kernels, with errors in it."""
    source = launch.source

    def text(file, constants):
        whole = source(file, constants)
        for broken_file, old, new, before in (BREAKS[name] for name in names):
            if file == broken_file:
                assert old in whole
                whole = before + whole.replace(old, new)
        return whole

    return mock.patch.object(launch, "source", text)


@contextlib.contextmanager
def a_card(monkeypatch):
    """Inside this context there is a GPU, whose threads run in another order every time, as on a card."""
    fake_cupy.install(monkeypatch)
    orders = []
    for order in (0, 1, 1, 0):
        with emulated(order):
            orders.append(launch.emulate)
    turns = itertools.cycle(orders)
    monkeypatch.setattr(launch, "emulate", lambda *arguments: next(turns)(*arguments))
    with fake_cublaslt():
        yield


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--break", dest="broken", action="append", default=[], choices=BREAKS)
    args, rest = parser.parse_known_args()
    monkeypatch = pytest.MonkeyPatch()
    few_kernels(monkeypatch)
    with a_card(monkeypatch), broken(args.broken):
        return command.main(rest)


if __name__ == "__main__":
    sys.exit(main())
