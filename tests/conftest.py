"""Shared by all tests: which markers run, a fixed seed, and hypothesis without randomness between runs."""

import os

import hypothesis
import pytest

import minigrad as mg

hypothesis.settings.register_profile("minigrad", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile("minigrad")


if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes share the cores already
    mg.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    skip_slow = pytest.mark.skip(reason="takes minutes: give --slow to run it")
    skip_cuda = pytest.mark.skip(reason="no NVIDIA GPU that CuPy can use on this machine")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if item.get_closest_marker("cuda") and not mg.cuda_is_available():
            item.add_marker(skip_cuda)


@pytest.fixture(autouse=True)
def _fixed_seed():
    mg.manual_seed(0)
