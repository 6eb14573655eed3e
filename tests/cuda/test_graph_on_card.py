"""Training on a card: steps that CUDA captures, and every precision. test_graph.py has more, on the fake GPU."""

import numpy as np
import pytest

import minigrad as mg
from gpt import checkpoint
from minigrad import kernels
from minigrad.kernels.cuda import launch
from tests.cuda.on_gpu import no_waiting
from tests.gpt.runs import losses, new_gpu_trainer, result

pytestmark = pytest.mark.cuda
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 128}


@pytest.fixture(autouse=True)
def _kernels_in_use():
    with kernels.using("cpu", "cuda"):
        yield


def trainer_in(out, dtype, **options):
    if dtype in ("tf32", "bfloat16") and launch.compute_capability() < 80:
        pytest.skip(f"{dtype} is for compute capability 8.0 and newer")
    return new_gpu_trainer(out, shape=SHAPE, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("grad_accum", [1, 3])
def test_a_run_with_a_graph_is_the_run_without(tmp_path, dtype, grad_accum):
    runs = []
    for replayed in (False, True):
        options = {"graph": replayed, "max_iters": 30, "eval_interval": 7, "grad_accum": grad_accum}
        trainer = trainer_in(tmp_path / str(replayed), dtype, **options)
        assert trainer.train()
        runs.append(result(trainer))
    assert trainer.graph.recording is not None, "the capture failed; its reason is in the output"
    assert runs[0] == runs[1]


def test_replays_take_no_more_memory(tmp_path):
    trainer = trainer_in(tmp_path, "float32")
    losses(trainer, 5)
    held = trainer.graph.pool.total_bytes()
    losses(trainer, 50)
    assert trainer.graph.pool.total_bytes() == held > 0


def test_a_resumed_run_goes_on_exactly(tmp_path):
    whole = trainer_in(tmp_path / "whole", "float32", max_iters=20, eval_interval=9)
    whole.train()
    trainer_in(tmp_path / "part", "float32", max_iters=9, eval_interval=9).train()
    rest = trainer_in(tmp_path / "part", "float32", max_iters=20, eval_interval=9)
    rest.resume(checkpoint.load(tmp_path / "part" / checkpoint.LAST))
    rest.train()
    assert result(rest)[1:] == result(whole)[1:]


@pytest.mark.parametrize(("dtype", "tolerance"), [("tf32", 2e-3), ("bfloat16", 2e-2), ("float16", 5e-3)])
def test_other_precisions_train_as_float32_does(tmp_path, dtype, tolerance):
    runs = []
    for each in ("float32", dtype):
        trainer = trainer_in(tmp_path, each)
        trainer.model.eval()  # without dropout
        runs.append([loss for loss, _ in losses(trainer, 10)])
    np.testing.assert_allclose(*runs, rtol=tolerance)


def test_a_step_does_not_wait(tmp_path):
    """CUDA itself says so: what waits cannot be captured. That leaves what is done before a replay."""
    trainer = trainer_in(tmp_path, "float32")
    losses(trainer, 5)
    with no_waiting():
        trainer.step(1e-3)
    assert mg.random.draws() > 0
