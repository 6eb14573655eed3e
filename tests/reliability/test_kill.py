"""Runs that are killed and stopped at random times, as processes of their own: few times here, often with --slow."""

import signal
import sys

import pytest

from tests.needs import needs_fork
from tests.reliability.kill import Runs, stop_signals

pytestmark = [needs_fork, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")]


def test_a_few_kills_and_signals(tmp_path):
    tally = Runs(tmp_path, seed=1, steps=120).check(2, [signal.SIGKILL, signal.SIGTERM])
    assert tally.hits == 2
    assert tally.finished >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("count", "kill"), [(200, True), (100, False)], ids=["200 kills", "100 signals"])
def test_many(tmp_path, count, kill):
    tally = Runs(tmp_path, seed=0).check(count, [signal.SIGKILL] if kill else stop_signals())
    print(tally)
    assert tally.hits == count
    assert tally.in_training > count // 4
