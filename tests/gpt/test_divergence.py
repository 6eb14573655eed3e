"""Losses, gradients and weights that are not finite: where they come from, and what a run makes of them."""

import math
import signal

import numpy as np
import pytest

import minigrad as mg
from gpt import checkpoint
from gpt.divergence import DivergedError, first_nonfinite, nonfinite_weight
from gpt.trainer import MOST_ROLLBACKS, MOST_SKIPPED
from minigrad import functional as F
from minigrad import kernels, nn
from minigrad.ops.activation import GELUTanh
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu
from tests.gpt.runs import new_gpu_trainer, new_trainer, result, weights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about what the tests are made of


class InfiniteBackward(mg.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.copy()

    @staticmethod
    def backward(ctx, g):
        return g * np.float32(math.inf)


def spoil_gradient(trainer, steps):
    """Give the loss of these steps an infinite gradient, always for the same batches; the loss itself stays."""
    loss, batches = trainer.parallel.loss, set()

    def spoilt(ids, targets):
        if trainer.iteration + 1 in steps:
            batches.add(mg.Tensor(ids).numpy().tobytes())
        value = loss(ids, targets)
        return InfiniteBackward.apply(value) if steps and mg.Tensor(ids).numpy().tobytes() in batches else value

    trainer.parallel.loss = spoilt
    return trainer


def new_spoilt(out, steps, **options):
    return spoil_gradient(new_trainer(out, processes=1, **options), steps)


class TestWhere:
    """The search for the first NaN or infinity."""

    class Model(nn.Module):
        def __init__(self, operation):
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.operation = operation

        def forward(self, x):
            return self.second(self.operation(self.first(x))).sum()

    def search(self, operation, x=1.0, first=0.5, spoil=None):
        model = self.Model(operation)
        model.first.weight.data[...] = first
        if spoil is not None:
            model.second.weight.data[0, 0] = spoil
        found = first_nonfinite(model, model, [[mg.Tensor(np.full((2, 3), x, "float32"))]])
        assert all(p.grad is None for p in model.parameters())
        return found

    def test_a_forward(self):
        for operation, name in ((lambda x: F.log(x * 0 - 1), "Log"), (lambda x: F.exp(x * x * 1e9), "Exp")):
            found = self.search(operation)
            assert found == f"the first NaN or infinity is in the forward of {name} in the model"

    def test_a_layer(self):
        found = self.search(lambda x: x, x=-3e38, first=-1.0)
        assert found == "the first NaN or infinity is in the forward of Linear in first"

    def test_a_backward(self):
        found = self.search(InfiniteBackward.apply)
        assert found == "the first NaN or infinity is in the backward of InfiniteBackward in the model"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_weight(self, value):
        assert self.search(lambda x: x, spoil=value) == "the weights second.weight have a NaN or an infinity"

    def test_nothing(self):
        assert self.search(lambda x: x).startswith("no gradient by itself is infinite; the largest is ")

    def test_minus_infinity_of_a_mask_is_none(self):
        masked = lambda x: F.softmax(F.masked_fill(x, np.array([True, False, False]), -math.inf))  # noqa: E731
        assert self.search(masked).startswith("no gradient by itself is infinite")

    def test_operations_are_as_before_afterwards(self):
        before = vars(mg.Function)["apply"]
        self.search(InfiniteBackward.apply)
        assert vars(mg.Function)["apply"] is before

    def test_weights_of_16_bits(self):
        model = nn.Linear(2, 2)
        model.to(dtype="bfloat16")
        assert nonfinite_weight(model) == ""


@pytest.mark.parametrize("grad_clip", [1.0, 0.0])
def test_stop_says_step_learning_rate_layer_and_operation(tmp_path, grad_clip):
    """The loss is finite, its gradient is not: the weights are left as they were, and the last file too."""
    trainer = new_spoilt(tmp_path, [13], grad_clip=grad_clip)
    message = (
        r"^the norm of the gradients is nan in step 13, with learning rate 0\.000914; "
        "the first NaN or infinity is in the backward of InfiniteBackward in the model; "
        rf"try a lower --learning-rate \({tmp_path / checkpoint.LAST} is from before\)$"
    )
    with pytest.raises(DivergedError, match=message):
        trainer.train()
    assert all(np.isfinite(value).all() for value in weights(trainer).values())
    assert checkpoint.load(tmp_path / checkpoint.LAST).run["iteration"] == 10


def test_the_place_is_found_in_the_step_that_diverged(tmp_path):
    trainer = new_trainer(tmp_path, n_embd=16)
    step = trainer.step

    def step_with_huge_weights(learning_rate):
        if trainer.iteration == 4:
            trainer.model.h[1].mlp.c_fc.weight.data[...] = 3e38
        return step(learning_rate)

    trainer.step = step_with_huge_weights
    with pytest.raises(
        DivergedError, match=r"in step 5, .*the first NaN or infinity is in the \w+ of \w+ in h\.1\.mlp"
    ):
        trainer.train()


def test_ctrl_c_after_a_step_without_a_finite_gradient_saves_nothing(tmp_path):
    """As on a GPU, where the steps between two readings are not looked at."""
    trainer = new_spoilt(tmp_path, [13])
    trainer.checks_steps = False
    step = trainer.step

    def step_then_interrupt(learning_rate):
        computed = step(learning_rate)
        if trainer.iteration == 13:
            signal.raise_signal(signal.SIGINT)
        return computed

    trainer.step = step_then_interrupt
    with pytest.raises(DivergedError, match="the weights are not finite after step 13"):
        trainer.train()
    assert checkpoint.load(tmp_path / checkpoint.LAST).run["iteration"] == 10


class TestSkip:
    def test_a_step_is_left_out_and_counted(self, tmp_path, capsys):
        trainer = new_spoilt(tmp_path, [7, 13], on_divergence="skip")
        before = {}
        step = trainer.step

        def watched(learning_rate):
            before[trainer.iteration + 1] = weights(trainer)
            return step(learning_rate)

        trainer.step = watched
        assert trainer.train()
        for number in (7, 13):
            assert all((value == before[number + 1][name]).all() for name, value in before[number].items())
        assert any((value != before[9][name]).any() for name, value in before[8].items())
        assert trainer.skipped == checkpoint.load(tmp_path / checkpoint.LAST).run["skipped"] == 2
        assert "step    13: the norm of the gradients is nan; skipped (2 so far)" in capsys.readouterr().out

    def test_a_resumed_run_continues_exactly(self, tmp_path):
        options = {"on_divergence": "skip", "save_interval": 8, "keep": 9}
        whole = new_spoilt(tmp_path / "whole", [7, 13], **options)
        whole.train()
        expected = result(whole)
        parts = new_spoilt(tmp_path / "parts", [7, 13], **options)
        parts.resume(checkpoint.load(tmp_path / "whole" / "last-8.safetensors"))
        assert (parts.iteration, parts.skipped) == (8, 1)
        assert parts.train()
        assert result(parts) == expected
        assert parts.skipped == 2

    def test_too_many_in_a_row_stop(self, tmp_path):
        trainer = new_spoilt(tmp_path, range(3, 100), on_divergence="skip")
        with pytest.raises(DivergedError, match=f"in step {2 + MOST_SKIPPED + 1}, with learning rate"):
            trainer.train()
        assert trainer.skipped == MOST_SKIPPED

    def test_a_skipped_step_is_logged_with_its_norm(self, tmp_path):
        trainer = new_spoilt(tmp_path, [10], on_divergence="skip")
        assert trainer.train()
        norms = {row["iteration"]: row["grad_norm"] for row in trainer.rows if "loss" in row}
        assert [step for step, norm in norms.items() if math.isnan(norm)] == [10]
        assert list(norms) == [1, 10, 20]


class TestRollback:
    def test_to_the_last_checkpoint_with_half_the_learning_rate(self, tmp_path, capsys):
        """Once a step diverges: it is made again from the checkpoint, with the same batches."""
        trainer = new_trainer(tmp_path, processes=1, on_divergence="rollback")
        spoilt, step, rates = [13], trainer.step, {}
        spoil_gradient(trainer, spoilt)

        def once(learning_rate):
            rates.setdefault(trainer.iteration + 1, []).append(learning_rate)
            computed = step(learning_rate)
            if trainer.iteration == 13:
                spoilt.clear()
            return computed

        trainer.step = once
        assert trainer.train()
        printed = capsys.readouterr().out
        assert "in step 13, with learning rate" in printed
        assert "; back to step 10, from here with 0.5 of the schedule" in printed
        assert rates[12] == [rates[12][0], rates[12][0] / 2]
        assert [row["iteration"] for row in trainer.rows if "loss" in row] == [1, 10, 20]
        assert (trainer.iteration, trainer.rollbacks) == (20, 1)
        saved = checkpoint.load(tmp_path / checkpoint.LAST)
        assert saved.run["rollbacks"] == 1
        again = new_trainer(tmp_path, on_divergence="rollback")
        again.resume(saved)
        assert again.learning_rate() == trainer.learning_rate()

    def test_metrics_are_those_of_the_run_that_goes_on(self, tmp_path):
        trainer = new_spoilt(tmp_path, spoilt := [20], on_divergence="rollback")
        resume = trainer.resume
        trainer.resume = lambda saved: (spoilt.clear(), resume(saved))
        assert trainer.train()
        lines = (tmp_path / "metrics.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in lines] == ["iteration", "0", "1", "10", "10", "20", "20"]

    def test_it_gives_up(self, tmp_path, capsys):
        trainer = new_spoilt(tmp_path, [13], on_divergence="rollback")
        with pytest.raises(DivergedError, match="in step 13, .*; try a lower --learning-rate"):
            trainer.train()
        assert capsys.readouterr().out.count("back to step 10") == MOST_ROLLBACKS

    def test_without_a_checkpoint_it_stops(self, tmp_path):
        trainer = new_trainer(tmp_path, on_divergence="rollback")
        trainer.model.wte.weight.data[...] = np.nan
        with pytest.raises(DivergedError, match="the loss is nan after step 0, .*; try a lower --learning-rate$"):
            trainer.train()

    def test_after_an_estimate_that_is_not_finite(self, tmp_path):
        trainer = new_trainer(tmp_path, on_divergence="rollback")
        estimate, fails = trainer.estimate_losses, [20]

        def fails_once():
            if trainer.iteration in fails:
                fails.clear()
                return {"train": 1.0, "val": math.nan}
            return estimate()

        trainer.estimate_losses = fails_once
        assert trainer.train()
        assert (trainer.iteration, trainer.rollbacks) == (20, 1)


def test_users_operations_are_named(tmp_path):
    """With --ops the engine's name is said, which is the one that the user's class replaces."""

    class Wrong(GELUTanh):
        @staticmethod
        def backward(ctx, g):
            return g * np.float32(math.nan)

    trainer = new_trainer(tmp_path, processes=1)
    with (
        kernels.reference(),
        kernels.replacing({GELUTanh: Wrong}),
        pytest.raises(DivergedError, match="backward of GELUTanh in h.1.mlp"),
    ):
        trainer.train()


@needs_compiler
class TestOnTheFakeGpu:
    """Where the host does not look at each step, so the weights may have NaN before it notices."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch):
        with fake_gpu(monkeypatch):
            yield

    @staticmethod
    def spoil_once(trainer, number):
        step, fails = trainer.step, [number]

        def step_then_spoil(learning_rate):
            computed = step(learning_rate)
            if trainer.iteration in fails:
                fails.clear()
                trainer.model.wte.weight.data[...] = math.nan
            return computed

        trainer.step = step_then_spoil

    def test_stop(self, tmp_path):
        trainer = new_gpu_trainer(tmp_path)
        assert not trainer.checks_steps
        self.spoil_once(trainer, 4)
        message = (
            r"the loss is nan after step 5, with learning rate 0.\d+; the weights wte.weight have .* is from before"
        )
        with pytest.raises(DivergedError, match=message):
            trainer.train()
        assert checkpoint.load(tmp_path / checkpoint.LAST).run["iteration"] == 0

    def test_rollback(self, tmp_path, capsys):
        trainer = new_gpu_trainer(tmp_path, on_divergence="rollback")
        self.spoil_once(trainer, 4)
        assert trainer.train()
        assert "back to step 0, from here with 0.5 of the schedule" in capsys.readouterr().out
        assert (trainer.iteration, trainer.rollbacks) == (6, 1)
        assert nonfinite_weight(trainer.model) == ""

    def test_skip_looks_at_each_step_so_it_has_no_graph(self, tmp_path):
        trainer = new_gpu_trainer(tmp_path, on_divergence="skip")
        assert trainer.checks_steps
        assert trainer.graph is None
        spoil_gradient(trainer, [2])
        assert trainer.train()
        assert trainer.skipped == 1
