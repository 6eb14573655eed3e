"""matmul by all of NumPy's rules, and linear."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad.kernels.cpu import blas
from tests.checks import assert_equal_functions
from tests.needs import needs_fork
from tests.shapes import broadcastable, layouts, normal, seeds, shapes

sides = st.integers(0, 3)


@given(leading=broadcastable(2), m=sides, k=sides, n=sides, a_layout=layouts, b_layout=layouts, seed=seeds)
def test_stacks_of_matrices_broadcast_on_both_sides(leading, m, k, n, a_layout, b_layout, seed):
    a = normal(a_layout.base_shape((*leading[0], m, k)), seed)
    b = normal(b_layout.base_shape((*leading[1], k, n)), seed + 1)
    y = a_layout.view(mg.Tensor(a)) @ b_layout.view(mg.Tensor(b))
    np.testing.assert_allclose(y.data, np.einsum("...mk,...kn->...mn", a_layout.view(a), b_layout.view(b)), atol=1e-12)
    mg.gradcheck(lambda a, b: (a_layout.view(a) @ b_layout.view(b)).T, [a, b])


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "formula"),
    [
        ((3,), (3,), "k,k->"),
        ((3,), (3, 4), "k,kn->n"),
        ((2, 3), (3,), "mk,k->m"),
        ((3,), (5, 3, 4), "k,bkn->bn"),
        ((5, 2, 3), (3,), "bmk,k->bm"),
        ((0,), (0,), "k,k->"),
    ],
)
def test_vectors_are_rows_on_the_left_and_columns_on_the_right(a_shape, b_shape, formula):
    a, b = normal(a_shape), normal(b_shape, 1)
    np.testing.assert_allclose((mg.Tensor(a) @ mg.Tensor(b)).data, np.einsum(formula, a, b))
    mg.gradcheck(F.matmul, [a, b])


def test_a_matrix_times_itself():
    mg.gradcheck(lambda x: x @ x, normal((3, 3)))
    mg.gradcheck(lambda x: x @ x.T, normal((2, 3)))


def test_arrays_on_either_side_of_the_operator():
    x, w = normal((2, 3)), normal((3, 4))
    for y in (x @ mg.Tensor(w), mg.Tensor(x) @ w):
        assert isinstance(y, mg.Tensor)
        np.testing.assert_array_equal(y.data, x @ w)


@given(leading=shapes(max_dims=2), i=sides, o=sides, x_layout=layouts, w_layout=layouts, seed=seeds)
def test_linear_gradients_with_any_leading_axes(leading, i, o, x_layout, w_layout, seed):
    x = normal(x_layout.base_shape((*leading, i)), seed)
    w, b = normal(w_layout.base_shape((o, i)), seed + 1), normal((o,), seed + 2)
    mg.gradcheck(lambda x, w, b: F.linear(x_layout.view(x), w_layout.view(w), b).T, [x, w, b])
    mg.gradcheck(lambda x, w: F.linear(x_layout.view(x), w_layout.view(w)).T, [x, w])


@given(leading=shapes(max_dims=2, min_side=1), i=st.integers(1, 3), o=st.integers(1, 3), seed=seeds)
def test_linear_is_a_product_plus_a_bias(leading, i, o, seed):
    x, w, b = normal((*leading, i), seed), normal((o, i), seed + 1), normal((o,), seed + 2)
    assert_equal_functions(F.linear, lambda x, w, b: x @ w.T + b, x, w, b)


@pytest.mark.skipif(blas.library() != "mkl", reason="MKL is not installed, or not in use")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("imports", ["torch, minigrad", "minigrad, torch"])
def test_mkl_multiplies_right_beside_pytorch(imports):
    """Whose OpenMP library MKL's would mix with its own: sums over many rows, shared by threads, came out wrong."""
    code = f"""import {imports}
import numpy as np
minigrad.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((1024, 256), np.float32)
w = minigrad.nn.Linear(256, 256, bias=False)
for _ in range(50):
    w.zero_grad()
    w(x).backward(np.ones((1024, 256), np.float32))
    np.testing.assert_allclose(w.weight.grad, np.broadcast_to(x.sum(axis=0), (256, 256)), atol=1e-2)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(blas.library() != "mkl", reason="MKL is not installed, or not in use")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@needs_fork
def test_mkl_beside_pytorch_multiplies_in_a_copied_process_too():
    """The threads of libgomp, which MKL then uses, are not there after a fork: the first product waited for ever."""
    code = """import torch, numpy as np, minigrad as mg
from minigrad.distributed import DataParallel
mg.set_num_threads(4)
layer, x = mg.nn.Linear(300, 300), np.ones((600, 300), np.float32)
layer(x).sum().backward()
with DataParallel(layer, lambda x: layer(x).mean(), processes=2) as parallel:
    parallel(x).backward()"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
