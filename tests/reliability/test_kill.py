"""Runs that are killed and stopped at random times, as processes of their own; with --slow."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.needs import needs_fork
from tests.reliability.kill import OPTIONS, PROGRAM, SAVING, TEXT, Runs, step_of, stop_signals

pytestmark = [needs_fork, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")]


@pytest.mark.slow
def test_a_few_kills_and_signals(tmp_path):
    tally = Runs(tmp_path, seed=1, steps=120).check(2, [signal.SIGKILL, signal.SIGTERM])
    assert tally.hits == 2
    assert tally.finished >= 1


# Gives a program a terminal of its own, the one that its standard input is
OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_terminal_that_is_closed(tmp_path):
    """Its programs get SIGHUP, and whatever they print from then on is an error."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = [sys.executable, PROGRAM, *OPTIONS, *SAVING, "--max-iters", 10**6]
    words += ["--data", tmp_path / "text.txt", "--out", tmp_path]
    master, terminal = os.openpty()
    words = [sys.executable, "-c", OWN_TERMINAL, *map(str, words)]
    with subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        try:
            os.close(terminal)
            until = time.monotonic() + 60
            while step_of(tmp_path) == 0 and time.monotonic() < until:
                time.sleep(0.05)
            saved = step_of(tmp_path)
            os.close(master)
            assert process.wait(timeout=60) == 128 + signal.SIGHUP
        finally:
            process.kill()
    assert step_of(tmp_path) >= saved > 0


@pytest.mark.slow
@pytest.mark.parametrize(("count", "kill"), [(200, True), (100, False)], ids=["200 kills", "100 signals"])
def test_many(tmp_path, count, kill):
    tally = Runs(tmp_path, seed=0).check(count, [signal.SIGKILL] if kill else stop_signals())
    print(tally)
    assert tally.hits == count
    assert tally.in_training > count // 4
