"""Mutated files: no reader fails, hangs or allocates without bounds; and the fuzzer notices those that do."""

import json
import signal
import time

import numpy as np
import pytest

from gpt.errors import DataError
from tests.reliability.fuzz import Reader, check, readers

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGALRM"), reason="Windows has no alarm to end a reader that waits"
)


@pytest.mark.parametrize("inputs", [8, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_accepted_or_refused_in_one_line(inputs):
    """2,000 for each reader take about ten minutes."""
    results = [check(reader, range(inputs)) for reader in readers()]
    assert [failure for result in results for failure in result.failures] == []
    assert sum(result.inputs for result in results) == inputs * len(results) >= 20 * inputs
    assert 0 < sum(result.accepted for result in results) < inputs * len(results) / 2


def read_size(folder):
    return json.loads((folder / "x.json").read_text(errors="replace"))["n"]


def refuse(folder):
    raise DataError("a message without the file's name")


def sleep(folder):
    end = time.process_time() + 4.5
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (read_size, "Error"),
        (refuse, "the error does not name the file"),
        (lambda folder: np.zeros(10 << 20, np.uint8), "allocated 10.0 MiB more than 4 times the files' size"),
        (lambda folder: np.float32(1e30) * np.float32(1e30), "RuntimeWarning: overflow"),
        pytest.param(sleep, r"took 4.5 s", marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_fails_is_noticed(read, why):
    """On the first input, as it is not on the valid files, which are read once before."""
    calls = []

    def read_mutated(folder):
        calls.append(folder)
        return read(folder) if len(calls) > 1 else None

    result = check(Reader("bad", {"x.json": b'{"n": 3}'}, read_mutated), range(20 if read is read_size else 1))
    assert why in result.failures[0]


def test_a_sealed_file_that_is_accepted_is_noticed():
    result = check(Reader("bad", {"x.json": b'{"n": 3}'}, lambda folder: None, sealed=True), range(5))
    assert "accepted, though the digest is wrong" in result.failures[0]
