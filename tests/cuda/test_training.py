"""A GPT trains with all CUDA kernels as it does without them.

Here on the stand-in for CuPy, with the emulator in place of the card, and the twin of cuBLASLt.
"""

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from minigrad import kernels, optim
from minigrad.kernels.cuda import launch
from tests.fakes import cupy as fake_cupy
from tests.fakes.cublaslt import twin_of_cublaslt
from tests.fakes.emulator import emulated, needs_compiler

STEPS = 4
EXPECTED = {  # the kernels that a training step of a GPT runs, and where from
    "float32": {
        *("layer_norm_forward", "gelu_forward", "cross_entropy_forward", "embedding_backward", "adamw"),
        *("attention_weights", "attention_weights_backward"),
    },
    "bfloat16": {"layer_norm_backward", "gelu_backward", "attention_forward", "attention_backward_keys", "adamw"},
}


@pytest.fixture
def kernels_run(monkeypatch):
    """Inside a test the stand-in is CuPy, and CUDA kernels run on it; the names of those that did."""
    fake_cupy.install(monkeypatch)
    names = set()
    with emulated(), twin_of_cublaslt(), kernels.using("cpu", "cuda"):
        emulate = launch.emulate

        def note(kernel, *arguments):
            names.add(kernel.name)
            emulate(kernel, *arguments)

        monkeypatch.setattr(launch, "emulate", note)
        yield names


def losses(dtype, device, bias=True, dropout=0.0):
    """The losses and gradient norms of a few steps."""
    mg.manual_seed(0)
    config = GPTConfig(block_size=12, vocab_size=17, n_layer=2, n_head=2, n_embd=32, bias=bias, dropout=dropout)
    model = GPT(config)
    model.to(device, dtype)
    optimizer = model.configure_optimizer(lr=1e-2)
    rng = np.random.default_rng(1)
    results = []
    for _ in range(STEPS):
        ids = rng.integers(0, 17, (3, 13))
        ids, targets = (mg.Tensor(part, device=device).data for part in (ids[:, :-1], ids[:, 1:]))
        loss = model(ids, targets)[1]
        loss.backward()
        norm = optim.clip_grad_norm(optimizer.params, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        results.append((loss.item(), float(norm)))
    assert {str(p.dtype) for p in model.parameters()} == {dtype}
    return np.array(results)


@needs_compiler
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_training_with_kernels_is_training_without(kernels_run, dtype, tolerance, bias):
    with kernels.reference():
        wanted = losses("float32", "cpu", bias)
    got = losses(dtype, "cuda", bias)
    np.testing.assert_allclose(got, wanted, rtol=tolerance)
    assert EXPECTED[dtype] <= kernels_run


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_does_not_wait_for_the_gpu(kernels_run, dtype):
    before = fake_cupy.synchronisations
    losses(dtype, "cuda", dropout=0.1)
    assert fake_cupy.synchronisations - before == 2 * STEPS  # `item` and `float`, which the test itself asked for
    assert "dropout" in kernels_run


@needs_compiler
def test_kernels_stay_off_until_they_are_asked_for(kernels_run):
    with kernels.using("cpu"):
        losses("float32", "cuda")
    assert not kernels_run
