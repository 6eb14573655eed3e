"""Dropout with a GPU's random numbers on every device, so that results on the two can be compared."""

import math
from unittest import mock

from minigrad import random


def _dropout_mask(shape, p, device="cpu", source=None):
    n = math.prod(shape)
    dropped, scale = random.dropout_threshold(p)
    return random.Counter(device).words(-(-n // 2)).view("uint16")[:n].reshape(shape) >= dropped, scale


def drawn_as_on_a_gpu():
    """Inside this context operations that drop elements on the CPU drop those that they would drop on a GPU."""
    return mock.patch.object(random, "dropout_mask", _dropout_mask)
