"""A forward without gradients as a CUDA graph of its own, beside that of the training step: for evaluations."""

from __future__ import annotations

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from minigrad import optim
from minigrad.kernels.cuda.graph import EAGER_STEPS, Captured
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu

pytestmark = needs_compiler


@pytest.fixture
def launches(monkeypatch):
    with fake_gpu(monkeypatch) as names:
        yield names


class Run:
    """Steps and evaluations of a small GPT with dropout, both captured or both not."""

    def __init__(self, captured, dtype="bfloat16"):
        mg.manual_seed(3)
        self.model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=32, dropout=0.2))
        self.model.to("cuda", dtype)
        self.optimizer = self.model.configure_optimizer(lr=1e-2)
        self.rng = np.random.default_rng(4)
        self.step, self.loss = self.compute_step, lambda *batch: self.model(*batch)[1]
        if captured:
            self.step = Captured(self.step, forget=self.optimizer.zero_grad, say=pytest.fail)
            self.loss = Captured(self.loss, say=pytest.fail)

    def batch(self):
        ids = self.rng.integers(0, 11, (3, 9))
        return [mg.Tensor(part, device="cuda").data for part in (ids[:, :-1], ids[:, 1:])]

    def compute_step(self, *batch):
        loss = self.model(*batch)[1]
        loss.backward()
        norm = optim.clip_grad_norm(self.optimizer.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), norm

    def train(self, n):
        return [float(self.step(*self.batch())[0].data.copy()) for _ in range(n)]

    def evaluate(self, n):
        """The losses of n batches, which are read when all are computed, as a trainer does."""
        self.model.eval()
        with mg.no_grad():
            losses = [self.loss(*self.batch()).data.copy() for _ in range(n)]
        self.model.train()
        return [float(loss) for loss in losses]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_evaluations_between_steps_give_what_they_give_without_graphs(launches, dtype):
    results = []
    for captured in (False, True):
        run = Run(captured, dtype)
        results.append([(run.evaluate(EAGER_STEPS + 2), run.train(EAGER_STEPS + 1)) for _ in range(3)])
        results.append(mg.random.get_state())
    assert results[:2] == results[2:]
    assert len({loss for evaluated, trained in results[0] for loss in evaluated + trained}) == 3 * (2 * EAGER_STEPS + 3)


def test_an_evaluation_launches_no_kernel_by_itself_and_waits_for_nothing(launches):
    run = Run(True)
    run.evaluate(EAGER_STEPS + 1)
    before, waits = len(launches), fake_cupy.synchronizations
    assert len(set(run.evaluate(5))) == 5
    assert len(launches) == before
    assert fake_cupy.synchronizations - waits == 5  # `float`, at the end


def test_no_dropout_is_captured_where_modules_are_in_evaluation(launches):
    run = Run(True)
    batch = run.batch()
    run.batch = lambda: batch
    assert len(set(run.evaluate(6))) == 1
    assert mg.random.get_state()["gpu"] == 0
