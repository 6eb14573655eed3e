"""Data parallelism: several processes give the loss and the gradients that one gives, and nothing is left of them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim
from minigrad.distributed import DataParallel, WorkerError, can_share, data_parallel, workers
from tests.needs import needs_fork

pytestmark = needs_fork
ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """Two layers with dropout between them, and a parameter that is never used."""

    def __init__(self, dropout=0.0):
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 5)
        self.dropout, self.unused = nn.Dropout(dropout), nn.Parameter(np.ones(2))

    def loss(self, x, targets):
        return F.cross_entropy(self.second(self.dropout(F.gelu(self.first(mg.Tensor(x))))), targets)


def net(dropout=0.0, dtype="float64"):
    mg.manual_seed(7)
    model = Net(dropout)
    model.to(dtype=dtype)
    return model


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3)), rng.integers(5, size=n)


def gradients(model):
    return {name: None if p.grad is None else p.grad.copy() for name, p in model.named_parameters()}


def assert_same(got, expected, rtol=1e-12):
    assert got.keys() == expected.keys()
    for name in expected:
        if expected[name] is None:
            assert got[name] is None
        else:
            np.testing.assert_allclose(got[name], expected[name], rtol=rtol, atol=rtol, err_msg=name)


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 7), processes=st.integers(1, 4), factor=st.sampled_from([1.0, 0.25]))
def test_loss_and_gradients_are_those_of_one_process(n, processes, factor):
    """With parts of different sizes, with more processes than rows, and with a gradient that is not 1."""
    one, several = net(), net()
    expected = one.loss(*batch(n))
    (expected * factor).backward()
    with DataParallel(several, several.loss, processes) as parallel:
        loss = parallel(*batch(n))
        (loss * factor).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss.dtype == np.float64
    assert_same(gradients(several), gradients(one))


def test_float32_stays_float32():
    model = net(dtype="float32")
    with DataParallel(model, model.loss, 2) as parallel:
        loss = parallel(*[a.astype("float32") if a.dtype == "float64" else a for a in batch(4)])
        loss.backward()
    assert loss.dtype == np.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {np.dtype("float32")}


def test_gradients_of_several_batches_add_up():
    one, several = net(), net()
    with DataParallel(several, several.loss, 2) as parallel:
        for seed in range(3):
            one.loss(*batch(5, seed)).backward()
            parallel(*batch(5, seed)).backward()
    assert_same(gradients(several), gradients(one))


def test_training_changes_the_weights_of_all_processes():
    """AdamW runs in this process only; the others see what it wrote."""
    one, several, losses = net(), net(), []
    optimizers = [optim.AdamW(model.parameters(), lr=0.1) for model in (one, several)]
    with DataParallel(several, several.loss, 3) as parallel:
        for seed in range(5):
            steps = [one.loss(*batch(7, seed)), parallel(*batch(7, seed))]
            for loss, optimizer in zip(steps, optimizers, strict=True):
                loss.backward()
                optim.clip_grad_norm(optimizer.params, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append([loss.item() for loss in steps])
    np.testing.assert_allclose(*np.transpose(losses), rtol=1e-10)


def test_a_hook_is_called_once_with_the_gradient_of_all_processes():
    """It changes a weight here, which all processes share: a second call would show."""
    one, several = net(), net()
    one.loss(*batch(7)).backward()
    before = several.first.weight.data.copy()

    def update(p):
        p.data -= 0.1 * p.grad

    with (
        several.first.weight.register_post_accumulate_grad_hook(update),
        DataParallel(several, several.loss, 3) as parallel,
    ):
        parallel(*batch(7)).backward()
        np.testing.assert_allclose(several.first.weight.data, before - 0.1 * one.first.weight.grad, rtol=1e-12)


def test_the_weights_outlive_the_processes():
    model = net()
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    with DataParallel(model, model.loss, 2) as parallel:
        parallel(*batch(4))
    assert_same({name: p.numpy() for name, p in model.named_parameters()}, before, rtol=0)


def test_no_grad_records_nothing():
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        with mg.no_grad():
            loss = parallel(*batch(4))
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(model.loss(*batch(4)).item(), rel=1e-12)
        parallel(*batch(4)).backward()  # begun inside no_grad, it can record later
    assert model.first.weight.grad is not None


def test_a_process_started_inside_no_grad_records_later():
    model = net()
    parallel = DataParallel(model, model.loss, 2)
    with mg.no_grad():
        parallel(*batch(4))
    parallel(*batch(4)).backward()
    parallel.close()
    assert model.first.weight.grad is not None


def test_retain_graph():
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        loss = parallel(*batch(4))
        loss.backward(retain_graph=True)
        once = gradients(model)
        loss.backward()
        assert_same(gradients(model), {name: None if g is None else 2 * g for name, g in once.items()})
        with pytest.raises(mg.AutogradError, match="freed"):
            loss.backward()


def test_only_the_latest_loss_can_be_walked():
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        earlier, latest = parallel(*batch(4)), parallel(*batch(4))
        latest.backward()
        with pytest.raises(mg.AutogradError, match="latest"):
            earlier.backward()
        late = parallel(*batch(4))
    with pytest.raises(mg.AutogradError, match="latest"):
        late.backward()


def run_with_dropout(steps, state=None, model=None):
    """Losses and gradients of some steps; if a state is given, the random numbers go on from there."""
    model = model or net(dropout=0.5)
    mg.manual_seed(11)
    if state is not None:
        mg.random.set_state(state)
    results = []
    with DataParallel(model, model.loss, 2) as parallel:
        for _ in range(steps):
            model.zero_grad()
            loss = parallel(*batch(6))
            loss.backward()
            results.append((loss.item(), gradients(model)["first.weight"].tobytes()))
    return results, mg.random.get_state()


def test_dropout_is_the_same_in_every_run_and_can_be_resumed():
    whole, _ = run_with_dropout(4)
    again, _ = run_with_dropout(4)
    assert whole == again  # bit for bit
    assert len({loss for loss, _ in whole}) == 4  # another mask in each step
    begun, state = run_with_dropout(2)
    continued, _ = run_with_dropout(2, state)
    assert begun + continued == whole


def test_each_process_draws_masks_of_its_own():
    """Of 8 equal rows, the halves would have equal losses if both processes dropped the same elements."""
    model = net(dropout=0.5)
    x, targets = (np.repeat(array, 8, axis=0) for array in batch(1))
    with DataParallel(model, model.loss, 2) as parallel, mg.no_grad():
        state = mg.random.get_state()
        both = parallel(x, targets).item()
        mg.random.set_state(state)
        first = model.loss(x[:4], targets[:4]).item()
    assert both != pytest.approx(first, rel=1e-6)


def test_evaluation_mode_reaches_all_processes():
    model = net(dropout=0.5)
    expected = net().loss(*batch(6)).item()
    with DataParallel(model, model.loss, 2) as parallel:
        assert parallel(*batch(6)).item() != pytest.approx(expected, rel=1e-6)
        model.eval()
        assert parallel(*batch(6)).item() == pytest.approx(expected, rel=1e-12)
        model.train()
        assert parallel(*batch(6)).item() != pytest.approx(expected, rel=1e-6)


def test_a_parameter_with_a_new_array_starts_the_processes_afresh():
    """Module.to replaces the arrays that are shared."""
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        parallel(*batch(4))
        model.to(dtype="float32")
        model.to(dtype="float64")
        model.second.bias.data[:] = 3.0
        assert parallel(*batch(4)).item() == pytest.approx(model.loss(*batch(4)).item(), rel=1e-12)


def fail_elsewhere(model, error):
    """A loss that raises, but not in this process."""
    here = os.getpid()

    def loss(x, targets):
        if os.getpid() != here:
            raise error
        return model.loss(x, targets)

    return loss


def test_an_error_in_another_process_is_shown_here():
    model = net()
    parallel = DataParallel(model, fail_elsewhere(model, ZeroDivisionError("of all things")), 2)
    with pytest.raises(WorkerError, match=r"(?s)failed in forward.*in loss.*ZeroDivisionError: of all things"):
        parallel(*batch(4))
    assert parallel.workers == []


def test_memory_that_runs_out_in_another_process_has_run_out_here():
    model = net()
    parallel = DataParallel(model, fail_elsewhere(model, MemoryError("no more")), 2)
    with pytest.raises(MemoryError, match="^no more$"):
        parallel(*batch(4))


def test_an_error_here_ends_the_others_and_the_next_batch_starts_them_again():
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        with pytest.raises(IndexError, match="^CrossEntropy: expected targets from 0 to 4"):
            parallel(batch(4)[0], np.full(4, 99))
        assert parallel.workers == []
        parallel(*batch(4)).backward()
        assert len(parallel.workers) == 1


@pytest.mark.parametrize(
    ("number", "named"),
    [
        (signal.SIGKILL, r"killed by SIGKILL, which the system sends when memory runs out \(in backward\)"),
        (signal.SIGXCPU, r"killed by SIGXCPU \(in backward\)"),
        (40, r"killed by signal 40 \(in backward\)"),  # a real-time signal
    ],
)
def test_a_process_that_is_killed_is_noticed_and_the_signal_is_named(number, named):
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        loss = parallel(*batch(4))
        os.kill(parallel.workers[0].process.pid, number)
        with pytest.raises(WorkerError, match=named):
            loss.backward()
        assert parallel(*batch(4)).item() == pytest.approx(loss.item(), rel=1e-12)  # with a new one


def test_a_process_that_exits_is_noticed():
    model = net()
    here = os.getpid()

    def loss(x, targets):
        if os.getpid() != here:
            os._exit(3)
        return model.loss(x, targets)

    with DataParallel(model, loss, 2) as parallel, pytest.raises(WorkerError, match=r"ended with status 3 \(in forw"):
        parallel(*batch(4))


@pytest.mark.parametrize("rows", [4, pytest.param(200_000, marks=pytest.mark.slow)])  # more than a pipe holds
@pytest.mark.parametrize("continued", [False, True])
def test_a_process_that_is_stopped_is_waited_for_but_not_forever(monkeypatch, rows, continued):
    model = net()
    monkeypatch.setattr(workers, "PATIENCE", 2)
    with DataParallel(model, model.loss, 2) as parallel:
        expected = parallel(*batch(rows)).item()
        pid = parallel.workers[0].process.pid
        os.kill(pid, signal.SIGSTOP)
        if continued:
            with later(1.0, lambda: os.kill(pid, signal.SIGCONT)):
                assert parallel(*batch(rows)).item() == expected
        else:
            started = time.monotonic()
            with pytest.raises(WorkerError, match=r"stopped for 2 s \(in forward\)"):
                parallel(*batch(rows))
            assert time.monotonic() - started < 10
            assert not is_running(pid)


class FakeWorker(workers.Worker):
    """The process does not answer for some seconds. In each of them it is stopped or not."""

    def __init__(self, stopped, answer=(None, 5), exitcode=None):
        self.seconds, self.reply, self.asked, self.calls = iter(stopped), answer, "forward", []
        self.connection = self.process = self.at_exit = self
        self.exitcode, self.alive = exitcode, exitcode is None
        self.now = None

    def poll(self, timeout):
        assert timeout == 1
        self.now = next(self.seconds, None)
        return self.now is None

    def recv(self):
        if isinstance(self.reply, EOFError):
            raise self.reply
        return self.reply

    def is_stopped(self):
        return bool(self.now)

    def join(self, timeout=None):
        self.calls.append(("join", timeout))

    def is_alive(self):
        return self.alive

    def kill(self):
        self.calls.append("kill")

    def cancel(self):
        self.calls.append("cancel")


def test_only_seconds_in_a_row_count_as_stopped():
    yes, no = [True], [False]
    for stopped in ([], 29 * yes, 100 * no, 29 * yes + no + 29 * yes):
        assert FakeWorker(stopped).answer() == 5
    for stopped in (30 * yes, 5 * yes + no + 30 * yes):
        worker = FakeWorker([*stopped, *yes])
        with pytest.raises(WorkerError, match=r"DataParallel: a process was stopped for 30 s \(in forward\)"):
            worker.answer()
        assert len(list(worker.seconds)) == 1  # it did not wait for another second


def test_how_a_process_that_does_not_answer_is_described():
    for exitcode, how in (
        (None, "does not read what it is asked"),
        (-signal.SIGKILL, "was killed by SIGKILL, which the system sends when memory runs out"),
        (-signal.SIGTERM, "was killed by SIGTERM"),
        (0, "ended with status 0"),
        (3, "ended with status 3"),
    ):
        worker = FakeWorker([], EOFError(), exitcode)
        with pytest.raises(WorkerError) as caught:
            worker.answer()
        assert str(caught.value) == f"DataParallel: a process {how} (in forward)"
        assert worker.calls == [("join", 1)]
    with pytest.raises(MemoryError, match="here"):
        FakeWorker([], (MemoryError("here"), None)).answer()
    with pytest.raises(WorkerError, match=r"^DataParallel: a process failed in forward:\nits traceback$"):
        FakeWorker([], ("its traceback", None)).answer()


def test_a_process_that_does_not_end_by_itself_is_killed():
    closed = []
    for exitcode, expected in ((None, ["cancel", ("join", 1), "kill", ("join", None)]), (0, ["cancel", ("join", 1)])):
        worker = FakeWorker([], exitcode=exitcode)
        end = SimpleNamespace(
            close=lambda: closed.append(1), join=worker.join, is_alive=worker.is_alive, kill=worker.kill
        )
        worker.connection = worker.process = end
        worker.close()
        assert worker.calls == expected
    assert len(closed) == 4  # the pipe and the process of each


def test_an_evaluation_between_forward_and_backward_changes_nothing():
    model = net()
    with DataParallel(model, model.loss, 2) as parallel:
        parallel(*batch(4)).backward()
        expected = [p.grad for p in model.parameters()]
        model.zero_grad()
        loss = parallel(*batch(4))
        with mg.no_grad():
            parallel(*batch(6))
        loss.backward()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            np.testing.assert_array_equal(p.grad, gradient)


def test_a_process_starts_no_others():
    """It is a daemon, so it ends with this program."""
    module = nn.Module()
    module.p = nn.Parameter(np.zeros(1))
    with DataParallel(module, lambda x: module.p.sum() + float(can_share()), 2) as parallel:
        assert parallel(np.zeros((2, 1))).item() == 0.5  # true here, and false there


def test_one_process_needs_no_copy(monkeypatch):
    monkeypatch.setattr(data_parallel, "can_share", lambda: False)
    model = net()
    assert DataParallel(model, model.loss, 1)(*batch(4)).item() == model.loss(*batch(4)).item()
    with pytest.raises(ValueError, match="cannot be forked"):
        DataParallel(model, model.loss, 2)


def test_one_process_alone_keeps_its_arrays():
    model = net()
    arrays = [p.data for p in model.parameters()]
    with DataParallel(model, model.loss, 1) as parallel:
        parallel(*batch(4)).backward()
        assert all(p.data is array for p, array in zip(model.parameters(), arrays, strict=True))
        assert (parallel.workers, parallel.shared, parallel.latest) == ([], [], None)


def test_where_processes_can_be_copied(monkeypatch):
    for platform, fork, expected in (("linux", True, True), ("darwin", True, False), ("win32", False, False)):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(os, "fork", None, raising=False)
        if not fork:
            monkeypatch.delattr(os, "fork")
        assert can_share() == expected


@contextlib.contextmanager
def later(seconds, call):
    timer = threading.Timer(seconds, call)
    timer.start()
    yield
    timer.join()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_no_process_is_left_and_signals_to_stop_are_not_theirs(name):
    model = net()
    with DataParallel(model, model.loss, 3) as parallel:
        pids = [worker.process.pid for worker in parallel.workers]
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, getattr(signal, name))
        parallel(*batch(6)).backward()
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_program_that_does_not_close_them_still_ends(stopped):
    program = (
        "import os, signal\nfrom tests.engine.test_distributed import *\nmodel = net()\n"
        "parallel = DataParallel(model, model.loss, 2)\nparallel(*batch(4))\n"
        "pid = parallel.workers[0].process.pid\nprint(pid)\n"
    ) + "os.kill(pid, signal.SIGSTOP)\n" * stopped
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not is_running(int(done.stdout))


def test_threads_are_shared_out():
    model, threads = net(), mg.get_num_threads()

    def loss(x, targets):
        return model.loss(x, targets) * 0 + mg.get_num_threads()

    try:
        mg.set_num_threads(5)
        with DataParallel(model, loss, 2) as parallel:
            assert parallel(*batch(4)).item() == 2
            assert mg.get_num_threads() == 5
    finally:
        mg.set_num_threads(threads)


def test_tensors_count_as_the_arrays_they_hold():
    """No gradient comes back to a batch, so one that wants it is refused, however many processes there are."""
    for processes in (1, 2):
        model, alone = net(), net()
        x, targets = batch(5)
        with DataParallel(model, model.loss, processes) as parallel:
            loss = parallel(mg.Tensor(x), mg.Tensor(targets))
            loss.backward()
            assert loss.item() == pytest.approx(alone.loss(x, targets).item(), rel=1e-12)
            alone.loss(x, targets).backward()
            assert_same(gradients(model), gradients(alone))
            with pytest.raises(ValueError, match="DataParallel: .* got a tensor that requires gradients"):
                parallel(mg.Tensor(x, requires_grad=True), targets)


def test_a_daemonic_process_is_not_copied(monkeypatch):
    """multiprocessing forbids such a process, as those of a pool are, to have processes of its own."""
    model = net()
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert not can_share()
    with pytest.raises(ValueError, match="DataParallel: this process cannot be forked; use processes=1"):
        DataParallel(model, model.loss, 2)
    monkeypatch.undo()
    assert can_share()


def test_bad_input():
    model = net()
    with pytest.raises(ValueError, match="expected at least 1 process, got 0"):
        DataParallel(model, model.loss, 0)
    with pytest.raises(ValueError, match=r"one number of rows, at least 1, got \[4, 5\]"):
        DataParallel(model, model.loss, 2)(batch(4)[0], batch(5)[1])
    for processes in (1, 2):
        with pytest.raises(ValueError, match=r"DataParallel: expected arrays with one number of rows, .* got \[0\]"):
            DataParallel(model, model.loss, processes)(*batch(0))
