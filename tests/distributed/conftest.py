"""Tests that start real ranks have the marker `mpi`. They need mpi4py and an mpirun, and are skipped without."""

import re

import pytest

from tests.distributed.launching import mpirun


@pytest.fixture(autouse=True)
def _needs_mpi(request):
    if request.node.get_closest_marker("mpi"):
        mpirun()


@pytest.fixture
def matches():
    """Checks that there is one error line, and that it matches."""

    def check(errors, message, everything):
        assert len(errors) == 1, everything
        assert re.match(message, errors[0]), everything

    return check
