"""Training runs: they learn, keep the best, stop at any time, and go on exactly."""

import contextlib
import csv
import hashlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

import minigrad as mg
from gpt import GPT, CheckpointError, ConfigError, GPTConfig, checkpoint
from gpt import processes as processes_module
from gpt.config import TrainConfig
from gpt.divergence import DivergedError
from gpt.processes import choose_processes
from gpt.run import RUN_FILES, keep_previous_run, progress_bar, resume_command, run_folder
from minigrad import serialization
from minigrad.distributed import DataParallel, WorkerError, workers
from tests.gpt.runs import TEXT, new_trainer, weights, without_speed
from tests.needs import needs_fork


def trained(out, **options):
    trainer = new_trainer(out, **options)
    assert trainer.train()
    return trainer


def assert_same_run(a, b):
    for name, value in weights(a).items():
        np.testing.assert_array_equal(value, weights(b)[name], err_msg=name)
    assert without_speed(a.rows) == without_speed(b.rows)


def test_learns_a_small_text(tmp_path):
    """Random words out of eight: a word's first letter costs ln(8), the other five characters can be known.

    Nobody can do better than ln(8) / 6 = 0.347 a character, but by seeing the future; a block of 16 characters may
    start within a word, which costs a little more.
    """
    trainer = trained(
        tmp_path, dropout=0.0, n_embd=32, max_iters=300, batch_size=16, learning_rate=1e-2, lr_decay_iters=300,
        eval_interval=100, eval_iters=20,
    )  # fmt: skip
    losses = [row["val_loss"] for row in trainer.rows if "val_loss" in row]
    assert abs(losses[0] - math.log(trainer.tokenizer.vocab_size)) < 0.1
    assert math.log(8) / 6 - 0.03 < losses[-1] < 0.42
    assert trainer.best_val_loss == min(losses)


def test_same_seed_same_run(tmp_path):
    one, two, other = (trained(tmp_path / name, seed=seed) for name, seed in (("1", 1), ("2", 1), ("3", 7)))
    assert_same_run(one, two)
    assert without_speed(one.rows) != without_speed(other.rows)


PROCESSES = [1, pytest.param(2, marks=needs_fork)]


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("stop", [10, 13])
def test_a_resumed_run_continues_exactly(tmp_path, stop, processes):
    """Stopped at an estimate or between two, with dropout: the same bits as a run that never stopped."""
    whole = new_trainer(tmp_path / "whole", processes=processes)
    whole.train()

    first = new_trainer(tmp_path / "parts", processes=processes)
    step = first.step

    def step_then_interrupt(learning_rate):
        result = step(learning_rate)
        if first.iteration == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    first.step = step_then_interrupt
    assert not first.train()
    assert first.iteration == stop

    mg.manual_seed(999)  # whatever happened in between
    second = new_trainer(tmp_path / "parts", processes=processes)
    second.resume(checkpoint.load(tmp_path / "parts" / checkpoint.LAST))
    assert second.iteration == stop
    assert second.train()
    assert_same_run(whole, second)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("when", ["step", "estimate"])
def test_a_run_whose_process_fails_saves_the_last_whole_step_and_goes_on_from_there(
    tmp_path, monkeypatch, number, when
):
    """With dropout, and with two batches a step, so that random numbers have been drawn when the step fails."""
    monkeypatch.setattr(workers, "PATIENCE", 2)
    whole = new_trainer(tmp_path / "whole", processes=2, grad_accum=2)
    whole.train()

    first = new_trainer(tmp_path / "parts", processes=2, grad_accum=2)
    step, training = (13, True) if when == "step" else (10, False)
    compute = DataParallel.__call__

    def fail_later(parallel, *batch):
        if (first.iteration, first.model.training) == (step, training):
            os.kill(parallel.workers[0].process.pid, number)
        return compute(parallel, *batch)

    monkeypatch.setattr(DataParallel, "__call__", fail_later)
    with pytest.raises(WorkerError, match=rf"a process was .*; step {step} is saved, resume with --resume$"):
        first.train()
    monkeypatch.undo()

    mg.manual_seed(999)  # whatever happened in between
    second = new_trainer(tmp_path / "parts", processes=2, grad_accum=2)
    second.resume(checkpoint.load(tmp_path / "parts" / checkpoint.LAST))
    assert second.iteration == step
    assert second.train()
    assert_same_run(whole, second)


@needs_fork
@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_runs_whose_processes_are_killed_at_random_moments_end_as_one_that_was_left_alone(tmp_path, kills):
    whole = new_trainer(tmp_path / "whole", processes=2, grad_accum=2)
    whole.train()
    rng, killed, runs, done = np.random.default_rng(0), 0, 0, True
    while not done or killed < kills:
        runs += done
        out = tmp_path / f"run-{runs}"
        trainer = new_trainer(out, processes=2, grad_accum=2)
        if (out / checkpoint.LAST).exists():
            trainer.resume(checkpoint.load(out / checkpoint.LAST))
        killer = threading.Timer(rng.uniform(0, 0.5) if killed < kills else 1000, kill_a_process_of, [trainer])
        killer.start()
        try:
            done = trainer.train()
        except WorkerError:
            done, killed = False, killed + 1
        finally:
            killer.cancel()
            killer.join()
        if done:
            assert_same_run(whole, trainer)
    print(f"{killed} kills in {runs} runs")


def kill_a_process_of(trainer):
    for worker in trainer.parallel.workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


@needs_fork
def test_weights_that_are_no_numbers_are_not_saved_when_a_process_fails(tmp_path):
    trainer = new_trainer(tmp_path, processes=2)
    step = trainer.step

    def spoil_then_kill(learning_rate):
        if trainer.iteration == 13:
            trainer.model.wte.weight.data[...] = np.nan
            os.kill(trainer.parallel.workers[0].process.pid, signal.SIGKILL)
        return step(learning_rate)

    trainer.step = spoil_then_kill
    with pytest.raises(WorkerError, match="killed by SIGKILL.*forward\\)$"):
        trainer.train()
    assert checkpoint.load(tmp_path / checkpoint.LAST).run["iteration"] == 10


@needs_fork
def test_processes_that_share_the_batches_learn_what_one_learns(tmp_path):
    """The same batches, and without dropout the same losses but for rounding; also with batches added up."""
    options = {"dropout": 0.0, "batch_size": 5, "grad_accum": 2}
    one, several = (trained(tmp_path / str(n), processes=n, **options) for n in (1, 3))
    for a, b in zip(one.rows, several.rows, strict=True):
        for column in {"loss", "grad_norm", "train_loss", "val_loss"} & a.keys():
            assert a[column] == pytest.approx(b[column], rel=1e-4), (a["iteration"], column)
    assert several.parallel.workers == []  # they end with the training


class Model:
    """What decides how many processes train it."""

    def __init__(self, size=1000, device="cpu"):
        self.wte = SimpleNamespace(weight=SimpleNamespace(device=device))
        self.num_parameters = lambda: size


def test_how_many_processes_share_a_batch(monkeypatch):
    """As many as threads, but no more than sequences or 8; one for a large model and where no process can be copied."""
    monkeypatch.setattr(processes_module, "can_share", lambda: True)
    monkeypatch.setattr(mg, "get_num_threads", lambda: 6)
    assert choose_processes(TrainConfig(batch_size=12), Model()) == 6
    assert choose_processes(TrainConfig(batch_size=3), Model()) == 3
    assert choose_processes(TrainConfig(batch_size=12, processes=2), Model()) == 2
    assert choose_processes(TrainConfig(batch_size=12), Model(size=124_000_000)) == 1
    assert choose_processes(TrainConfig(batch_size=12, processes=2), Model(size=124_000_000)) == 2
    assert choose_processes(TrainConfig(batch_size=12), Model(device="cuda")) == 1
    monkeypatch.setattr(mg, "get_num_threads", lambda: 64)
    assert choose_processes(TrainConfig(batch_size=12), Model()) == 8
    with pytest.raises(ConfigError, match="processes is 2; expected 1 on cuda:1"):
        choose_processes(TrainConfig(processes=2), Model(device="cuda:1"))
    with pytest.raises(ConfigError, match="processes is 5; expected at most the batch_size 4"):
        choose_processes(TrainConfig(processes=5, batch_size=4), Model())
    monkeypatch.setattr(processes_module, "can_share", lambda: False)
    assert choose_processes(TrainConfig(), Model()) == 1
    with pytest.raises(ConfigError, match="processes is 2; expected 1 on this system"):
        choose_processes(TrainConfig(processes=2), Model())


def read_metrics(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return without_speed(csv.DictReader(file))


def test_a_run_killed_after_its_last_checkpoint_goes_on_from_there(tmp_path):
    """The metrics that were written after the checkpoint are taken back, so no step appears twice."""
    whole = new_trainer(tmp_path / "whole")
    whole.train()
    first = new_trainer(tmp_path / "parts")

    def step(learning_rate, step=first.step):
        if first.iteration == 14:
            raise MemoryError
        return step(learning_rate)

    first.step = step
    with pytest.raises(MemoryError):
        first.train()
    first.add_row({"loss": 123.0})
    second = new_trainer(tmp_path / "parts")
    second.resume(checkpoint.load(tmp_path / "parts" / checkpoint.LAST))
    assert second.iteration == 10
    assert second.train()
    assert_same_run(whole, second)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_the_rows_of_metrics_are_in_metrics_csv_alone(tmp_path):
    trainer = trained(tmp_path)
    saved = checkpoint.load(tmp_path / checkpoint.LAST)
    content = (tmp_path / "metrics.csv").read_bytes()
    assert "rows" not in saved.run
    assert saved.run["metrics"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert saved.rows() == trainer.rows
    assert (
        checkpoint.load(tmp_path / checkpoint.BEST).rows()
        == trainer.rows[: len(checkpoint.load(tmp_path / checkpoint.BEST).rows())]
    )


def test_a_resumed_run_wants_the_metrics_of_its_checkpoint(tmp_path, capsys):
    """If they were changed it says so, and if they are gone it goes on without them."""
    trained(tmp_path)
    file = tmp_path / "metrics.csv"
    content = file.read_bytes()
    for changed in (content[:-1], content.replace(b"1", b"2")):
        file.write_bytes(changed)
        with pytest.raises(
            CheckpointError, match=r"metrics\.csv: its first \d+ bytes are not those that the checkpoint was"
        ):
            new_trainer(tmp_path).resume(checkpoint.load(tmp_path / checkpoint.LAST))
    file.unlink()
    capsys.readouterr()
    again = new_trainer(tmp_path, max_iters=30)
    again.resume(checkpoint.load(tmp_path / checkpoint.LAST))
    assert capsys.readouterr().out == f"{file} is missing: the metrics up to step 20 are lost\n"
    again.train()
    assert read_metrics(tmp_path)[0]["iteration"] == "20"


def test_a_checkpoint_with_the_rows_in_it_is_resumed(tmp_path):
    """As they were saved before metrics.csv was the record."""
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", max_iters=10)
    path = tmp_path / "parts" / checkpoint.LAST
    rows = checkpoint.load(path).rows()
    tensors, metadata = serialization.load_with_metadata(path)
    about = json.loads(metadata["minigrad"])
    del about["run"]["metrics"]
    about["run"]["rows"] = rows
    path.write_bytes(safetensors.numpy.save({n: x.data for n, x in tensors.items()}, {"minigrad": json.dumps(about)}))
    (tmp_path / "parts" / "metrics.csv").unlink()
    second = new_trainer(tmp_path / "parts")
    second.resume(checkpoint.load(path))
    assert second.train()
    assert_same_run(whole, second)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_gradient_accumulation_is_one_larger_batch(tmp_path):
    """Two batches of 4 give the gradient of their 8 sequences together."""
    trainer = new_trainer(tmp_path, dropout=0.0, grad_accum=2, grad_clip=0.0)
    before = weights(trainer)
    batches = [trainer.data.batch("train", 4, rng) for rng in [mg.random.new_generator(3)] for _ in range(2)]
    ids, targets = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    loss = trainer.model(ids, targets)[1]
    loss.backward()
    grads = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    fed = iter(batches)
    trainer.data.batch = lambda *_: next(fed)
    seen = {}
    trainer.optimizer.step = lambda: seen.update(
        (name, parameter.grad.copy()) for name, parameter in trainer.model.named_parameters()
    )
    mean, _ = trainer.step(1e-3)
    assert mean.item() == pytest.approx(loss.item(), rel=1e-6)
    assert before.keys() == seen.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(seen[name], grad, rtol=1e-4, atol=1e-7, err_msg=name)


def test_the_best_checkpoint_is_kept(tmp_path):
    trainer = new_trainer(tmp_path, max_iters=30)
    estimates = iter([3.0, 2.0, 2.5, 2.2])
    trainer.estimate_losses = lambda: {"train": 1.0, "val": next(estimates)}
    trainer.train()
    assert trainer.best_val_loss == 2.0
    assert checkpoint.load(tmp_path / checkpoint.BEST).run["iteration"] == 10
    assert checkpoint.load(tmp_path / checkpoint.LAST).run["iteration"] == 30
    assert checkpoint.find(tmp_path).name == checkpoint.BEST


def test_estimates_do_not_disturb_training(tmp_path):
    often, rarely = trained(tmp_path / "1", eval_interval=2), trained(tmp_path / "2", eval_interval=20)
    for name, value in weights(often).items():
        np.testing.assert_array_equal(value, weights(rarely)[name])


def test_metrics(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `plot`)")
    trainer = new_trainer(tmp_path)
    trainer.train()
    rows = read_metrics(tmp_path)
    assert [row["iteration"] for row in rows if row["val_loss"]] == ["0", "10", "20"]
    assert [row["iteration"] for row in rows if row["loss"]] == ["1", "10", "20"]
    assert float(rows[-2]["loss"]) == trainer.rows[-2]["loss"]


def test_the_losses_are_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    trainer = new_trainer(tmp_path)
    trainer.train()
    assert trainer.plot_losses().read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_plot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trainer = new_trainer(tmp_path)
    trainer.train()
    assert trainer.plot_losses() is None
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("max_iters", [0, 20])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, max_iters):
    """Also where the only estimate is the one at the end."""
    trainer = new_trainer(tmp_path, max_iters=max_iters)
    trainer.model.wte.weight.data[...] = np.nan
    message = (
        "^the loss is nan after step 0, with learning rate 0.001; the weights wte.weight have a NaN or an infinity; "
        "try a lower --learning-rate$"
    )
    with pytest.raises(DivergedError, match=message):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("checks_steps", "interrupt_at", "problem"),
    [
        (True, None, "the loss is nan in step 12"),
        (False, None, "the loss is nan after step 15"),
        (False, 13, "the weights are not finite after step 13"),
    ],
    ids=["each step", "estimate", "interrupt"],
)
def test_weights_that_are_no_numbers_do_not_replace_the_last_checkpoint(tmp_path, checks_steps, interrupt_at, problem):
    """The weights are spoilt in step 11. On a GPU the loss is read only at estimates and every tenth step."""
    trainer = new_trainer(tmp_path, eval_interval=5)
    trainer.checks_steps = checks_steps
    step = trainer.step

    def step_and_spoil(learning_rate):
        result = step(learning_rate)
        if trainer.iteration == 11:
            trainer.model.wte.weight.data[...] = np.nan
        if trainer.iteration == interrupt_at:
            trainer.interrupt(signal.SIGINT)
        return result

    trainer.step = step_and_spoil
    message = rf"^{problem}, .*the weights wte.weight have .* \({tmp_path / checkpoint.LAST} is from before\)$"
    with pytest.raises(DivergedError, match=message):
        trainer.train()
    saved = checkpoint.load(tmp_path / checkpoint.LAST)
    assert saved.run["iteration"] == 10
    assert all(np.isfinite(value.numpy()).all() for value in saved.tensors.values())


def test_an_earlier_run_is_moved_aside(tmp_path):
    assert keep_previous_run(tmp_path) is None
    for number in (1, 2):
        new_trainer(tmp_path, max_iters=1).train()
        (tmp_path / "ops.csv").touch()  # of a run with --ops
        (tmp_path / "ops.png").touch()
        assert keep_previous_run(tmp_path) == tmp_path / f"previous-{number}"
        kept = {path.name for path in (tmp_path / f"previous-{number}").iterdir()}
        assert kept == {"last.safetensors", "best.safetensors", "metrics.csv", "ops.csv", "ops.png"}


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), KeyboardInterrupt()], ids=["error", "kill"]
)
def test_an_earlier_run_is_moved_whole_or_not_at_all(tmp_path, monkeypatch, failing, error):
    """Whichever move fails, also the last one, of the whole folder. A killed move is undone by the next run."""
    names = {"last.safetensors", "best.safetensors", "metrics.csv"}
    for name in names:
        (tmp_path / name).write_text(name)
    moves = []

    def refuse(move):
        def refusing(source, target):
            moves.append(source)
            if len(moves) == failing + 1:
                raise error
            return move(source, target)

        return refusing

    monkeypatch.setattr(Path, "rename", refuse(Path.rename))
    monkeypatch.setattr(os, "replace", refuse(os.replace))
    message = r"the files of the earlier run cannot be moved to .*previous-1 \(Permission denied\)"
    expected = ConfigError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=message if expected is ConfigError else None):
        keep_previous_run(tmp_path)
    monkeypatch.undo()
    with run_folder(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {*names, ".lock"}
        assert all((tmp_path / name).read_text() == name for name in names)
        assert {path.name for path in keep_previous_run(tmp_path).iterdir()} == names


@pytest.mark.parametrize("name", RUN_FILES)
def test_any_file_of_any_program_s_run_is_an_earlier_run(tmp_path, name):
    """And with it goes the engine's run, which a run with --ops leaves in a folder."""
    (tmp_path / "my.txt").touch()
    (tmp_path / "engine").mkdir()
    assert keep_previous_run(tmp_path) is None
    (tmp_path / name).touch()
    aside = keep_previous_run(tmp_path)
    assert {path.name for path in aside.iterdir()} == {name, "engine"}
    assert {path.name for path in tmp_path.iterdir()} == {aside.name, "my.txt"}


class TestRunFolder:
    """A run has its folder to itself."""

    def test_it_is_made(self, tmp_path):
        with run_folder(tmp_path / "a" / "b"):
            assert (tmp_path / "a" / "b").is_dir()

    def test_it_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        for out in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(ConfigError, match=f"{out}: cannot be made"), run_folder(out):
                pass

    def test_a_model_for_other_tools_would_be_taken_for_the_run_s(self, tmp_path):
        (tmp_path / "config.json").touch()
        with (
            pytest.raises(
                ConfigError, match=r"holds a model in Hugging Face's layout \(config.json\).*; name another folder"
            ),
            run_folder(tmp_path),
        ):
            pass

    def test_what_a_killed_run_was_writing_is_removed(self, tmp_path):
        left = [tmp_path / ".last.safetensors.0123abcd", tmp_path / "engine" / ".best.safetensors.abcd_f9z"]
        others = [
            tmp_path / "last.safetensors",
            tmp_path / ".last.safetensors.of-yesterday",
            tmp_path / ".mine.0123abcd",
        ]
        (tmp_path / "engine").mkdir()
        for path in (*left, *others):
            path.touch()
        with run_folder(tmp_path):
            assert not any(path.exists() for path in left)
            assert all(path.exists() for path in others)

    @pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="this system has no such locks")
    def test_no_other_run_can_use_it_until_the_process_dies(self, tmp_path):
        """Not even if the process was copied, as `DataParallel` does it, and the copy is still there."""
        program = (
            "import os, pathlib, sys, time\nfrom gpt.run import run_folder\n"
            "with run_folder(pathlib.Path(sys.argv[1])):\n"
            "    copy = os.fork()\n    if copy:\n        print(copy, flush=True)\n    time.sleep(100)\n"
        )
        command = [sys.executable, "-c", program, tmp_path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            copy = int(process.stdout.readline())
            try:
                with pytest.raises(ConfigError, match=f"another run is using {tmp_path}; wait"), run_folder(tmp_path):
                    pass
                process.kill()
                process.wait()
                with run_folder(tmp_path):
                    os.kill(copy, 0)  # it is there
            finally:
                process.kill()
                os.kill(copy, signal.SIGKILL)

    def test_without_locks_a_run_goes_on(self, tmp_path, monkeypatch):
        """And removes nothing, which another run may be writing."""
        monkeypatch.setitem(sys.modules, "fcntl", None)
        (tmp_path / ".last.safetensors.0123abcd").touch()
        with run_folder(tmp_path):
            assert (tmp_path / ".last.safetensors.0123abcd").exists()


def test_a_run_needs_no_standard_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar(iterable=range(3))) == [0, 1, 2]
    trained(tmp_path)


def test_the_command_that_goes_on_can_be_pasted(monkeypatch):
    for options, shown in ((["--data", "a b.txt"], "--data 'a b.txt' --resume"), (["--resume"], "--resume")):
        monkeypatch.setattr("sys.argv", ["train.py", *options])
        assert resume_command() == f"python train.py {shown}"


def test_resuming_on_another_text_is_refused(tmp_path):
    new_trainer(tmp_path, max_iters=1).train()
    other = new_trainer(tmp_path, text=TEXT[::-1])
    with pytest.raises(ConfigError, match="was trained on another text"):
        other.resume(checkpoint.load(tmp_path / checkpoint.LAST))


class TestCheckpointFiles:
    """A checkpoint holds everything, and a file that is none is refused in one line."""

    def test_round_trip(self, tmp_path):
        trainer = new_trainer(tmp_path)
        trainer.train()
        saved = checkpoint.load(tmp_path / checkpoint.LAST)
        assert saved.config == trainer.model.config
        assert saved.tokenizer.characters == trainer.tokenizer.characters
        model = saved.model()
        ids = np.zeros((1, 5), int)
        np.testing.assert_array_equal(model(ids)[0].numpy(), trainer.model.eval()(ids)[0].numpy())

    def test_missing(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"last.safetensors: there is no such file"):
            checkpoint.load(tmp_path / checkpoint.LAST)
        with pytest.raises(CheckpointError, match="found no checkpoint .* there"):
            checkpoint.find(tmp_path)

    def test_damaged(self, tmp_path):
        new_trainer(tmp_path, max_iters=1).train()
        path = tmp_path / checkpoint.LAST
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            checkpoint.load(path)

    def test_something_else(self, tmp_path):
        mg.save({"x": np.zeros(3)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
            checkpoint.load(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]"], ids=["nested", "no JSON", "a list"])
    def test_text_that_describes_nothing(self, tmp_path, text):
        mg.save({}, tmp_path / "x.safetensors", metadata={"minigrad": text})
        with pytest.raises(CheckpointError, match="x.safetensors: a safetensors file, but not a checkpoint of this"):
            checkpoint.load(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"run": [1]}, r"run is \[1\]; expected a dict"),
            (
                {"run": {"train_config": 3}},
                "its run's train_config: expected options by name, got 3",
            ),
            ({"config": {"n_layer": True}}, "n_layer is True; expected a whole number"),
            (
                {"config": {"heads": 3, "n_head": 4}},
                "GPTConfig has options that this version does not know: 'heads'; it was saved by a newer version",
            ),
            ({"config": [3]}, r"GPTConfig is \[3\]; expected options by name"),
            ({"config": {"n_layer": 10**9}}, "missing wte.weight; missing wpe.weight; missing h.0.ln_1.weight.*; …$"),
            ({"config": {"vocab_size": 2**64 - 1}}, "vocab_size is a number of 64 bits; expected less than 2\\^63"),
            ({"config": {"dropout": False}}, "dropout is False; expected a probability"),
            ({"config": {"norm": ["rms"]}}, r"norm is \['rms'\]; expected 'layer' or 'rms'"),
            (
                {"run": {"ranks": 3}},
                "its run has parts that this version does not know: 'ranks'; it was saved by a",
            ),
            ({"run": {"iteration": -5}}, "its run's iteration: expected a number of steps, got -5"),
            ({"run": {"iteration": math.inf}}, "its run's iteration: expected a number of steps, got inf"),
            ({"run": {"iteration": True}}, "its run's iteration: expected a number of steps, got True"),
            (
                {"run": {"best_val_loss": math.nan}},
                "its run's best_val_loss: expected a finite number or null, got nan",
            ),
            ({"run": {"random": {"seed": 3}}}, "its run's random: expected what get_state returns, got {'seed': 3}"),
            ({"run": {"data_id": 3}}, "its run's data_id: expected text, got 3"),
            (
                {"run": {"loss_scale": {"scale": -1.0, "good_steps": 0}}},
                "loss_scale: expected the state of a GradScaler",
            ),
            ({"run": {"rows": [{"iteration": 1, "step": 2}]}}, "its run's rows: expected an iteration, and values of"),
            ({"run": {"rows": [{"iteration": 1, "loss": "2"}]}}, "its run's rows: expected numbers, got"),
            (
                {"run": {"metrics": {"bytes": -1, "sha256": ""}}},
                "metrics: expected the length and the SHA-256 of metrics",
            ),
        ],
    )
    def test_text_that_describes_something_else(self, tmp_path, change, message):
        about = {"characters": "ab", "config": {}, "run": {}, **change}
        mg.save({}, tmp_path / "x.safetensors", metadata={"minigrad": json.dumps(about)})
        with pytest.raises(CheckpointError, match=f"x.safetensors: .*{message}"):
            checkpoint.load(tmp_path / "x.safetensors")

    def test_a_run_that_lacks_a_part_is_not_resumed(self, tmp_path):
        trainer = new_trainer(tmp_path)
        checkpoint.save(tmp_path / "x", trainer.model, trainer.optimizer, trainer.tokenizer, {"data_id": TEXT[:10]})
        with pytest.raises(CheckpointError, match=r"x: its run has no random; expected a checkpoint of a training run"):
            trainer.resume(checkpoint.load(tmp_path / "x"))

    @pytest.mark.parametrize(
        "change", [("bias", [True, False]), ("position", ["learned", "rotary"]), ("norm", ["layer", "rms"])]
    )
    @pytest.mark.parametrize("tie_weights", [True, False])
    def test_the_shapes_that_a_config_implies(self, change, tie_weights):
        for value in change[1]:
            config = GPTConfig(8, 11, 2, 2, 4, tie_weights=tie_weights, **{change[0]: value})
            expected = {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
            assert list(config.parameter_shapes()) == list(expected.items())

    def test_a_model_is_not_built_before_its_tensors_are_checked(self, tmp_path, monkeypatch):
        trainer = new_trainer(tmp_path)
        trainer.train()
        tensors, metadata = serialization.load_with_metadata(tmp_path / checkpoint.LAST)
        about = json.loads(metadata["minigrad"])
        about["config"]["n_layer"] = 10**9
        mg.save(tensors, tmp_path / "x", {"minigrad": json.dumps(about)})
        with pytest.raises(CheckpointError, match=r"x: .*missing h\.2\.ln_1\.weight"):
            checkpoint.load(tmp_path / "x")
        about["run"]["train_config"]["lora_rank"] = 1  # whose tensors are only known when the adapters are made
        mg.save(tensors, tmp_path / "x", {"minigrad": json.dumps(about)})
        with pytest.raises(CheckpointError, match=r"x: missing h\.2\.ln_1\.weight"):
            checkpoint.load(tmp_path / "x").model()
        tensors["model.ln_f.weight"] = np.ones(16, np.int64)
        mg.save(tensors, tmp_path / "x", {"minigrad": metadata["minigrad"]})
        with pytest.raises(CheckpointError, match=r"x: .*ln_f\.weight is int64, expected floating numbers"):
            checkpoint.load(tmp_path / "x")

    def test_weights_that_contradict_the_config(self, tmp_path):
        trainer = new_trainer(tmp_path)
        about = {
            "config": {"block_size": 16, "vocab_size": 17, "n_layer": 3, "n_head": 2, "n_embd": 16},
            "characters": trainer.tokenizer.characters,
            "run": {},
        }
        tensors = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
        mg.save(tensors, tmp_path / "x.safetensors", metadata={"minigrad": json.dumps(about)})
        with pytest.raises(CheckpointError, match=r"missing h\.2\.ln_1\.weight"):
            checkpoint.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        ({"processes": True}, "processes is True; expected a whole number of at least 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected a number of at least 0"),
        ({"min_lr": math.inf}, "min_lr is inf; expected a number of at least 0, not infinity"),
        ({"grad_clip": math.nan}, "grad_clip is nan; expected a number of at least 0"),
        ({"learning_rate": "a"}, "learning_rate is 'a'; expected a number of at least 0"),
        ({"beta2": 1.0}, "beta2 is 1.0; expected a number from 0 to below 1"),
        ({"beta1": None}, "beta1 is None; expected a number from 0 to below 1"),
        ({"grad_clip": float("nan")}, "grad_clip is nan"),
    ],
)
def test_options_without_meaning(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)
