"""Which kernels run, and which library multiplies matrices: what contexts and environment variables choose."""

import ctypes
import importlib.metadata
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from minigrad import kernels
from minigrad.kernels.cpu import blas
from tests.fakes import mkl


def test_the_environment_variable_leaves_kernels_out():
    code = (
        "import numpy as np, minigrad as mg; from minigrad import functional as F;"
        "y = F.linear(mg.Tensor(np.ones((200, 300)), requires_grad=True), mg.Tensor(np.ones((400, 300))));"
        "print(y.origin[0].implementation.__module__)"
    )
    for value, module in (("reference", "minigrad.ops.matmul"), ("", "minigrad.kernels.cpu.products")):
        environment = {**os.environ, "MINIGRAD_KERNELS": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == module


def test_a_context_says_which_kernels_run():
    with kernels.using("cpu", "cuda"):
        assert kernels.in_use("cpu")
        assert kernels.in_use("cuda")
        with kernels.reference():
            assert not kernels.in_use("cpu")
            with kernels.using("cuda"):
                assert not kernels.in_use("cpu")
                assert kernels.in_use("cuda")
            assert not kernels.in_use("cuda")
        assert kernels.in_use("cpu")
    with pytest.raises(ValueError, match=r"expected kinds of device, 'cpu' and 'cuda', got \['gpu'\]"):
        kernels.using("gpu")


# The library of matrix products


@pytest.mark.parametrize("choice", ["numpy", "mkl"])
def test_the_environment_variable_chooses_the_library_on_any_processor(choice):
    code = "from minigrad.kernels.cpu import blas; print(blas.library())"
    environment = {**os.environ, "MINIGRAD_BLAS": choice}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if choice == "numpy" or any(package.name == "mkl" for package in importlib.metadata.distributions()):
        assert done.stdout.strip() == choice
    else:
        assert 'ImportError: MINIGRAD_BLAS is mkl, which is not installed: pip install "minigrad[mkl]"' in done.stderr


def test_unless_it_is_asked_for_mkl_is_left_alone_on_amds_processors(monkeypatch):
    monkeypatch.delenv("MINIGRAD_BLAS", raising=False)
    monkeypatch.setattr(blas, "has_amd_processor", lambda: True)
    assert blas.load_mkl() == {}


@pytest.mark.parametrize("choice", ["mkl", None])
def test_mkl_is_loaded_and_set_up(choice, monkeypatch):
    if choice:
        monkeypatch.setenv("MINIGRAD_BLAS", choice)
    else:
        monkeypatch.delenv("MINIGRAD_BLAS", raising=False)
    monkeypatch.setattr(blas, "has_amd_processor", lambda: bool(choice))
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    layer = blas._layer
    if not blas.mkl_products:  # MKL itself brings this function, once it is loaded
        with_libgomp = os.name == "posix" and hasattr(ctypes.CDLL(None), "GOMP_parallel")  # as PyTorch loads it
        assert layer == (3 if with_libgomp else 0)
    fake = mkl.install(monkeypatch)
    monkeypatch.setattr(blas, "mkl_products", blas.load_mkl())
    assert fake.settings == {"MKL_Set_Interface_Layer": 0, "MKL_Set_Threading_Layer": layer, "MKL_Set_Num_Threads": 1}
    assert os.environ["KMP_BLOCKTIME"] == "10"
    assert blas.mkl_products == {np.dtype("float32"): fake.cblas_sgemm, np.dtype("float64"): fake.cblas_dgemm}
    for function, number in ((fake.cblas_sgemm, ctypes.c_float), (fake.cblas_dgemm, ctypes.c_double)):
        factor = [ctypes.c_void_p, ctypes.c_int]
        assert function.argtypes == [*[ctypes.c_int] * 6, number, *factor, *factor, number, *factor]
        assert function.restype is None
    assert blas.library() == "mkl"
    assert blas.survives_fork() == (layer == 0)
    monkeypatch.setattr(blas, "_layer", 3)
    assert not blas.survives_fork()


@pytest.mark.parametrize("files", [None, []])
def test_an_mkl_without_a_library_is_not_loaded(files, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: files)
    monkeypatch.setattr(blas, "has_amd_processor", lambda: False)
    monkeypatch.delenv("MINIGRAD_BLAS", raising=False)
    assert blas.load_mkl() == {}
    monkeypatch.setenv("MINIGRAD_BLAS", "mkl")
    with pytest.raises(ImportError, match="MINIGRAD_BLAS is mkl, which is not installed"):
        blas.load_mkl()
    monkeypatch.setenv("MINIGRAD_BLAS", "accelerate")
    with pytest.raises(ValueError, match="MINIGRAD_BLAS is 'accelerate'; expected mkl or numpy"):
        blas.load_mkl()


def test_products_of_few_rows_are_left_to_numpy(monkeypatch):
    fake = mkl.install(monkeypatch)
    monkeypatch.setattr(blas, "mkl_products", {np.dtype("float32"): fake.cblas_sgemm})
    for rows, columns, inner, products in (
        (15, 16, 3, 0),
        (16, 15, 3, 0),
        (16, 16, 3, 1),
        (16, 16, 0, 1),
    ):
        out = np.full((rows, columns), np.nan, np.float32)
        blas.product(np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32), out)()
        np.testing.assert_array_equal(out, inner)
        assert fake.products == products


@pytest.mark.parametrize(
    ("vendor", "is_amd"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False)]
)
def test_who_made_the_processor_is_what_linux_or_windows_says(vendor, is_amd, monkeypatch):
    monkeypatch.setattr(blas, "open", lambda path: io.StringIO("processor\t: 0\n" + vendor), raising=False)
    assert blas.has_amd_processor() == is_amd

    def no_such_file(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(blas, "open", no_such_file, raising=False)
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "Family 25 Model 17, " + vendor.split()[-1])
    assert blas.has_amd_processor() == is_amd
