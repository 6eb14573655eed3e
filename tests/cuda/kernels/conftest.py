"""Where the tests of kernels run them: `machine` is the emulator and, marked `cuda`, a card."""

import pytest

from tests.cuda.kernels import machines
from tests.fakes.emulator import emulated, needs_compiler


@pytest.fixture(
    scope="session",  # hypothesis refuses fixtures that are made anew for each test but not for each example
    params=[
        pytest.param(emulated, marks=needs_compiler, id="emulator"),
        pytest.param(machines.card, marks=pytest.mark.cuda, id="card"),
    ],
)
def machine(request):
    """A function that gives a context: inside `with machine():` kernels that are given NumPy arrays run there."""
    return request.param
