"""The random programs of the engine's tests, followed by PyTorch beside the naive engine."""

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.engine import naive
from tests.engine.random_programs import RandomPrograms

from .compare import torch

pytestmark = pytest.mark.parity


class Torch:
    """PyTorch's functions under minigrad's names, and what else a reference must have (see naive.py)."""

    exp, log, sqrt, abs, negative = torch.exp, torch.log, torch.sqrt, torch.abs, torch.neg
    tanh, sigmoid, relu, silu = torch.tanh, torch.sigmoid, torch.relu, torch.nn.functional.silu
    softplus, clip, power, split = torch.nn.functional.softplus, torch.clip, torch.pow, torch.split
    maximum, minimum, matmul, linear = torch.maximum, torch.minimum, torch.matmul, torch.nn.functional.linear
    reshape, swapaxes, broadcast_to = torch.reshape, torch.swapaxes, torch.broadcast_to
    concatenate, stack, softmax = torch.concatenate, torch.stack, torch.softmax
    log_softmax = torch.log_softmax

    def leaf(array):
        return torch.tensor(array, requires_grad=True)

    def array_of(result):
        return result

    def values(x):
        return x.detach().numpy()

    def detach(x):
        return x.detach()

    def replace(x, array):
        return x + (torch.tensor(array.copy()) - x).detach()

    def gradients(root, g, leaves):
        if not root.requires_grad:  # computed from leaves that want no gradient in minigrad, or from none
            return [np.zeros(x.shape) for x in leaves]
        found = torch.autograd.grad(root, leaves, torch.tensor(g), retain_graph=True, allow_unused=True)
        return [np.zeros(x.shape) if dx is None else dx.numpy() for x, dx in zip(leaves, found, strict=True)]

    def squared_relu(x):
        return torch.relu(x) ** 2

    def gelu(x, approximate="tanh"):
        return torch.nn.functional.gelu(x, approximate=approximate)

    def multiply(x, factors):
        return x * torch.tensor(factors)

    def where(mask, x, y):
        return torch.where(torch.tensor(mask), x, y)

    def masked_fill(x, mask, value):
        return x.masked_fill(torch.tensor(mask), value)

    def sum(x, axis, keepdims):
        return x.sum(axis, keepdims)

    def mean(x, axis, keepdims):
        return x.mean(axis, keepdims)

    def var(x, axis, keepdims, correction):
        return x.var(axis, keepdim=keepdims, correction=correction)

    def logsumexp(x, axis, keepdims):
        return torch.logsumexp(x, tuple(range(x.ndim)) if axis is None else axis, keepdims)

    def max(x, axis, keepdims):
        return torch.amax(x, () if axis is None else axis, keepdims)

    def min(x, axis, keepdims):
        return torch.amin(x, () if axis is None else axis, keepdims)

    def transpose(x, *axes):
        return x.permute(axes)

    def getitem(x, index):
        """With all of NumPy's indices: PyTorch knows no negative steps."""
        places = np.arange(math.prod(x.shape)).reshape(x.shape)[index]
        return x.reshape(-1)[torch.tensor(np.array(places))]

    def layer_norm(x, weight, bias, eps):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def rms_norm(x, weight, eps):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)

    def embedding(ids, weight):
        return torch.nn.functional.embedding(torch.tensor(ids), weight)

    def cross_entropy(logits, targets):
        rows = logits.reshape(-1, logits.shape[-1])
        return torch.nn.functional.cross_entropy(rows, torch.tensor(targets).reshape(-1))

    def scaled_dot_product_attention(q, k, v, causal):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


class RandomProgramsWithTorch(RandomPrograms):
    references = (naive, Torch)


@pytest.mark.parametrize("n", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_programs_have_the_gradients_of_pytorch(n):
    run_state_machine_as_test(RandomProgramsWithTorch, settings=settings(max_examples=n, stateful_step_count=60))
