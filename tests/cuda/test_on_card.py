"""What test_fake_cupy.py runs on the fake CuPy, here with CuPy on a card.

A card rounds differently: it adds in another order, multiplies and adds in one rounding, and has its own exp.
"""

import pytest

from tests.cuda.on_gpu import OnGPU

pytestmark = pytest.mark.cuda


class TestOnACard(OnGPU):
    tolerance = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-2}
