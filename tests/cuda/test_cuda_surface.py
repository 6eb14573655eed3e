"""`mg.cuda`: what code outside the engine may ask of GPUs."""

from __future__ import annotations

import importlib.util

import pytest

import minigrad as mg
from minigrad.kernels.cuda import products
from tests.fakes import cupy as fake_cupy


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed here")
def test_without_cupy_the_answer_is_no_or_an_error_that_names_it():
    assert mg.cuda.is_available() is False
    with pytest.raises(mg.DeviceError, match='device "cuda" needs CuPy, which is not installed'):
        mg.cuda.get_device_capability()


def test_the_capability_of_a_gpu_is_two_numbers(monkeypatch):
    fake_cupy.install(monkeypatch)
    assert mg.cuda.is_available()
    assert mg.cuda.get_device_capability("cuda:0") == mg.cuda.get_device_capability() == (9, 0)
    with pytest.raises(ValueError, match='expected "cuda" or "cuda:N", got "cpu"'):
        mg.cuda.get_device_capability("cpu")
    with pytest.raises(mg.DeviceError, match='device "cuda:7" is not there: this machine has'):
        mg.cuda.get_device_capability("cuda:7")


def test_float32_products_round_to_tf32_inside_the_context_only():
    with mg.cuda.allow_tf32():
        assert products.tf32
        with mg.cuda.allow_tf32(False):
            assert not products.tf32
        assert products.tf32
    assert not products.tf32
