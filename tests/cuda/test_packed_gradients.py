"""The gradients of q, k and v, which are parts of one array, are parts of one as well: nothing is concatenated."""

from __future__ import annotations

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from minigrad import functional as F
from minigrad import kernels
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu

pytestmark = needs_compiler
LAYERS = 2


@pytest.fixture
def concatenations(monkeypatch):
    """The shapes that CuPy was asked to make by putting arrays end to end."""
    shapes, concatenate = [], fake_cupy.cupy.concatenate

    def counted(*args, **kwargs):
        result = concatenate(*args, **kwargs)
        shapes.append(result.shape)
        return result

    with fake_gpu(monkeypatch):
        monkeypatch.setattr(fake_cupy.cupy, "concatenate", counted)
        yield shapes


def gradients(device, dtype, **shape):
    """Of all parameters of a small GPT."""
    mg.manual_seed(0)
    model = GPT(GPTConfig(block_size=9, vocab_size=11, n_layer=LAYERS, n_head=2, n_embd=32, dropout=0.0, **shape))
    model.to(device, dtype)
    ids = np.random.default_rng(1).integers(0, 11, (3, 10))
    ids, targets = (mg.Tensor(part, device=device).data for part in (ids[:, :-1], ids[:, 1:]))
    model(ids, targets)[1].backward()
    return {name: mg.Tensor(p.grad).numpy().astype(np.float32) for name, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 5e-2)])
def test_a_gpt_concatenates_no_gradients(concatenations, dtype, tolerance):
    ours = gradients("cuda", dtype)
    assert not concatenations
    with kernels.using("cpu"):
        for name, theirs in gradients("cpu", "float32").items():
            np.testing.assert_allclose(ours[name], theirs, atol=tolerance * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize("one", [True, False])
def test_gradients_lie_as_q_k_and_v_do(concatenations, one):
    """Apart where these were apart: there, parts of one array would be copied once more than they need to be."""
    x = np.random.default_rng(2).standard_normal((2, 5, 6, 16)).astype(np.float32)
    whole = mg.Tensor(x, device="cuda", requires_grad=True)
    q, k, v = F.split(whole.transpose(0, 2, 1, 3), 2, axis=1)
    if not one:
        q, k, v = (part * 1 for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, causal=True)
    upstream = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32)
    y.backward(upstream)
    assert bool(concatenations) != one
    reference = mg.Tensor(x, requires_grad=True)
    F.scaled_dot_product_attention(*F.split(reference.transpose(0, 2, 1, 3), 2, axis=1), causal=True).backward(upstream)
    np.testing.assert_allclose(whole.grad.get(), reference.grad, rtol=1e-4, atol=1e-5)
