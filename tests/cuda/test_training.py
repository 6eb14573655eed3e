"""A GPT trains with all CUDA kernels as it does without them.

Here on the fake GPU.
"""

import numpy as np
import pytest

from minigrad import kernels
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu
from tests.gpt.runs import losses_without_a_trainer

EXPECTED = {  # the kernels that a training step of a GPT runs, and where from
    "float32": {
        *("layer_norm_forward", "gelu_forward", "cross_entropy_forward", "embedding_backward", "adamw"),
        *("attention_weights", "attention_weights_backward"),
    },
    "bfloat16": {"layer_norm_backward", "gelu_backward", "attention_forward", "attention_backward_keys", "adamw"},
}


@pytest.fixture
def kernels_run(monkeypatch):
    """Inside a test there is a fake GPU; the names of the kernels that ran on it."""
    with fake_gpu(monkeypatch) as launches:
        yield launches


@needs_compiler
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_training_with_kernels_is_training_without(kernels_run, dtype, tolerance, bias):
    with kernels.reference():
        expected = losses_without_a_trainer("float32", "cpu", bias)
    got = losses_without_a_trainer(dtype, "cuda", bias)
    np.testing.assert_allclose(got, expected, rtol=tolerance)
    assert EXPECTED[dtype] <= set(kernels_run)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_does_not_wait_for_the_gpu(kernels_run, dtype):
    before = fake_cupy.synchronizations
    losses_without_a_trainer(dtype, "cuda", dropout=0.1)
    assert fake_cupy.synchronizations - before == 2 * 4  # `item` and `float`, which the test itself asked for
    assert "dropout" in kernels_run


@needs_compiler
def test_kernels_stay_off_until_they_are_asked_for(kernels_run):
    with kernels.using("cpu"):
        losses_without_a_trainer("float32", "cuda")
    assert not kernels_run
