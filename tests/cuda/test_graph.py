"""A training step as a CUDA graph: replays compute what eager steps do, bit for bit, and count what they count.

Here on the fake GPU, whose streams capture and replay.
"""

import sys
import types

import numpy as np
import pytest

import minigrad as mg
from gpt import checkpoint
from minigrad import optim
from minigrad.kernels.cuda import graph
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu
from tests.gpt.runs import losses, new_gpu_trainer, result

pytestmark = needs_compiler


@pytest.fixture
def launches(monkeypatch):
    with fake_gpu(monkeypatch) as names:
        yield names


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", {}),
        pytest.param("bfloat16", {}, marks=pytest.mark.slow),
        ("bfloat16", {"bias": False, "checkpoint": True}),
    ],
)
def test_a_run_with_a_graph_is_the_run_without(launches, tmp_path, dtype, shape):
    runs, numbers = [], []
    for replayed in (False, True):
        trainer = new_gpu_trainer(tmp_path / str(replayed), shape=shape, dtype=dtype, graph=replayed)
        before = len(launches)
        assert trainer.train()
        runs.append(result(trainer))
        numbers.append(len(launches) - before)
    assert runs[0] == runs[1]
    assert numbers[1] < numbers[0]  # replays launch nothing one by one
    assert trainer.graph.recording is not None


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_estimates_replay_the_loss_as_a_graph_of_its_own(launches, tmp_path, dtype):
    """Between steps, whose graph it shares nothing with, to the same bits."""
    estimates, numbers = [], []
    for replayed in (False, True):
        trainer = new_gpu_trainer(tmp_path / str(replayed), dtype=dtype, graph=replayed, eval_iters=4)
        found = [trainer.estimate_losses()]
        losses(trainer, 5)
        before = len(launches)
        found += [trainer.estimate_losses(), losses(trainer, 1), trainer.estimate_losses()]
        estimates.append(found)
        numbers.append(len(launches) - before)
    assert estimates[0] == estimates[1]
    assert len({str(found) for found in estimates[0]}) == 4
    assert numbers[1] < numbers[0]
    assert trainer.loss_graph.recording is not None


def test_losses_of_every_step_and_of_several_batches(launches, tmp_path):
    eager, replayed = (
        losses(new_gpu_trainer(tmp_path, dtype="bfloat16", graph=on, grad_accum=2), 6) for on in (False, True)
    )
    assert eager == replayed
    assert len(set(eager)) == 6


def test_the_step_waits_for_nothing(launches, tmp_path):
    trainer = new_gpu_trainer(tmp_path, dtype="bfloat16")
    before = fake_cupy.synchronizations
    for _ in range(5):
        trainer.step(1e-3)
    assert fake_cupy.synchronizations == before
    assert trainer.graph.recording is not None


def test_the_streams_wait_for_each_other(launches, tmp_path):
    trainer = new_gpu_trainer(tmp_path)
    caller = fake_cupy.cupy.cuda.get_current_stream()
    for n in range(1, 6):
        trainer.step(1e-3)
        own = trainer.graph.stream
        assert own.non_blocking
        assert own.waits_for == [caller] * n
        assert caller.waits_for[-1] is own


def test_dropout_drops_others_in_every_replay(launches, tmp_path):
    """With the same batch and without learning, only the dropout makes one loss differ from the next."""
    trainer = new_gpu_trainer(tmp_path, weight_decay=0.0, shape={"dropout": 0.3})
    batch = trainer.batch("train", mg.random.new_generator(0))
    trainer.batch = lambda *_: batch
    assert len(set(losses_without_learning(trainer))) == 6
    trainer = new_gpu_trainer(tmp_path, weight_decay=0.0, shape={"dropout": 0.0})
    trainer.batch = lambda *_: batch
    assert len(set(losses_without_learning(trainer))) == 1


def losses_without_learning(trainer):
    return [trainer.step(0.0)[0].item() for _ in range(6)]


@pytest.mark.parametrize("stop", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_runs_with_and_without_a_graph_can_go_on_with_each_other(launches, tmp_path, stop):
    whole = new_gpu_trainer(tmp_path / "whole", graph=False, eval_interval=stop)
    whole.train()
    for first, second in ((True, False), (False, True)):
        out = tmp_path / f"{first}{second}"
        new_gpu_trainer(out, graph=first, eval_interval=stop, max_iters=stop).train()
        trainer = new_gpu_trainer(out, graph=second, eval_interval=stop)
        trainer.resume(checkpoint.load(out / checkpoint.LAST))
        trainer.train()
        ours, theirs = result(trainer), result(whole)
        assert ours[1:] == theirs[1:]


def test_another_seed_or_shape_is_captured_anew(launches, tmp_path):
    trainer = new_gpu_trainer(tmp_path)
    losses(trainer, 5)
    first = trainer.graph.recording
    mg.manual_seed(11)
    losses(trainer, 2)
    assert trainer.graph.recording is None
    losses(trainer, 3)
    assert trainer.graph.recording not in (None, first)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.optimizer.params[0].data.sum().item(), "not permitted when stream is capturing"),
        (lambda t: fake_cupy.cupy.asarray(np.ones(3)), "brings 24 bytes from the host to the card"),
        (lambda t: graph.refuse("for a test"), "CaptureError: for a test"),
    ],
    ids=["waits", "uploads", "refuses"],
)
def test_a_step_that_cannot_be_captured_goes_on_as_it_is(launches, tmp_path, spoil, reason):
    said, runs = [], []
    for replayed in (False, True):
        trainer = new_gpu_trainer(tmp_path / str(replayed), graph=replayed, shape={"n_layer": 1})
        compute = trainer.compute_step
        trainer.compute_step = lambda batches, compute=compute, t=trainer: (compute(batches), spoil(t))[0]
        if replayed:
            trainer.graph.say = said.append
        trainer.train()
        runs.append(result(trainer))
    assert runs[0] == runs[1]
    (text,) = said
    assert text.startswith("this step cannot be a CUDA graph, so its kernels are launched one by one")
    assert reason in text
    assert not fake_cupy.is_capturing()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muon_is_not_captured_and_trains_all_the_same(launches, tmp_path, dtype):
    said, runs = [], []
    for graph_wanted in (False, True):
        options = {"optimizer": "muon", "dtype": dtype, "graph": graph_wanted}
        trainer = new_gpu_trainer(tmp_path / str(graph_wanted), **options)
        if graph_wanted:
            trainer.graph.say = said.append
        assert trainer.train()
        runs.append(result(trainer))
    assert runs[0] == runs[1]
    (text,) = said
    assert text.startswith("this step cannot be a CUDA graph, so its kernels are launched one by one")
    assert "Muon has no kernel for these parameters that asks the host for nothing" in text


def test_a_parameter_whose_first_gradient_comes_late_is_not_captured(launches, tmp_path):
    """Its moments would be made, and so be zeros again, in every replay."""
    a, b = (mg.Tensor(np.ones(4, np.float32), device="cuda", requires_grad=True) for _ in range(2))
    optimizer, steps, said = optim.AdamW([a, b], lr=0.1), [], []

    def step(x):
        steps.append(0)
        (mg.Tensor(x) * a + (mg.Tensor(x) * b if len(steps) > 3 else 0)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    captured = graph.Captured(step, optimizer.zero_grad, said.append)
    for _ in range(5):
        captured(fake_cupy.cupy.ones(4, "float32"))
    assert "a parameter has its first gradient" in said[0]
    assert optimizer.steps == [5, 2]


def test_a_capture_that_runs_out_of_memory_leaves_the_pool_as_it_is(launches):
    """The pool would give back what is free in it, and with it memory that kernels captured so far write to."""
    said, pools = [], []

    def step(x):
        if fake_cupy.is_capturing():
            pools[0].allocator(2**40)
        return x * 2

    captured = graph.Captured(step, say=said.append)
    for i in range(6):
        assert float(captured(fake_cupy.cupy.full(3, i, "float32"))[0]) == 2 * i
        pools.append(captured.pool)
    assert "there is no memory for 1099511627776 bytes more" in said[0]
    with pytest.raises(fake_cupy.CUDARuntimeError):
        captured.pool.allocator(2**40)


def test_what_is_returned_lies_in_the_same_arrays(launches):
    captured = graph.Captured(lambda x: x * 2)
    results = [captured(fake_cupy.cupy.full(3, i, "float32")) for i in range(6)]
    assert [float(y[0]) for y in results] == [0, 2, 4, 10, 10, 10]


def test_outside_of_a_capture_everything_is_done_at_once():
    done = []
    graph.each_step(lambda: done.append(1))
    graph.refuse("nothing")
    assert done == [1]
    assert graph.upload(np, lambda: np.arange(3)).tolist() == [0, 1, 2]


def test_the_fake_streams_have_nothing_that_cupys_lack():
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    for ours, theirs in (
        (fake_cupy.Stream, "Stream"),
        (fake_cupy.Graph, "Graph"),
        (fake_cupy.MemoryPool, "MemoryPool"),
    ):
        for name in vars(ours):
            assert name.startswith("_") or name in ("current", "tape") or hasattr(getattr(real.cuda, theirs), name), (
                name
            )
    for name in ("using_allocator", "set_pinned_memory_allocator", "get_current_stream"):
        assert hasattr(real.cuda, name)
    assert hasattr(real, "get_default_pinned_memory_pool")


def test_a_graphs_pool_that_gets_no_memory_asks_for_what_is_free_in_cupys_own(monkeypatch):
    """Evaluation leaves much there, and CuPy frees what is free in the pool that asks, in no other."""
    freed = []

    class Memory(fake_cupy.Memory):
        def __init__(self, size):
            super().__init__(size if freed else 2**40)

    pool = types.SimpleNamespace(free_all_blocks=lambda: freed.append(True))
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.cupy)
    monkeypatch.setattr(fake_cupy.cupy.cuda, "Memory", Memory)
    monkeypatch.setattr(fake_cupy.cupy, "get_default_memory_pool", lambda: pool)
    graph._device_memory(1024)
    assert freed == [True]
