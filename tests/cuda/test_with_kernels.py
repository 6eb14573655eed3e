"""What on_gpu.py says of every GPU, with the CUDA kernels on: they change no result, and make nothing wait.

On the fake GPU, and on a card.
"""

import pytest

from minigrad.kernels.cuda import launch
from tests.cuda.on_gpu import OnGPU, trainer_on_gpu
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu


class WithKernels(OnGPU):
    """Kernels add in another order than NumPy, and multiply and add in one rounding."""

    tolerance = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-2}
    kernels_on = frozenset({"cuda"})

    def test_the_kernels_run(self, tmp_path, monkeypatch):
        ran, call = set(), launch.Kernel.__call__
        monkeypatch.setattr(
            launch.Kernel, "__call__", lambda self, *args, **more: (ran.add(self.name), call(self, *args, **more))
        )
        trainer_on_gpu(tmp_path).step(1e-3)
        assert {"layer_norm_forward", "gelu_forward", "cross_entropy_forward", "dropout", "adamw"} <= ran


@needs_compiler
class TestOnFakeGPU(WithKernels):
    # The emulator takes long for these; test_graph.py and test_training_precision.py have them, for smaller runs
    test_training_learns_what_the_cpu_learns = None
    test_a_resumed_run_continues_exactly = None

    def gpu(self, monkeypatch):
        return fake_gpu(monkeypatch)

    def ask_for_too_much(self):
        raise fake_cupy.OutOfMemoryError(2**51, 5 * 2**30)


@pytest.mark.cuda
class TestOnACard(WithKernels):
    pass
