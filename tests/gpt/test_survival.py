"""Runs that survive: signals, checkpoints by steps and by time, older checkpoints, and files that cannot be read."""

import json
import math
import os
import signal
import sys
import threading

import pytest

import minigrad as mg
from gpt import CheckpointError, ConfigError, checkpoint
from gpt.config import TrainConfig
from gpt.run import STOP_SIGNALS, catch_signals, keep_previous_run, older_checkpoints
from minigrad.serialization import load_with_metadata
from tests.gpt.runs import TEXT, new_trainer, result, without_speed
from tests.programs import run_program

SIGNALS = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]


def at_step(trainer, number, action):
    """Do something when the trainer has computed this step."""
    step = trainer.step

    def step_then_act(learning_rate):
        computed = step(learning_rate)
        if trainer.iteration == number:
            action()
        return computed

    trainer.step = step_then_act


def resumed(out, **options):
    trainer = new_trainer(out, **options)
    trainer.resume(checkpoint.load_last(out))
    return trainer


def saved_steps(out):
    return {path.name: checkpoint.load(path).run["iteration"] for path in out.glob("last*.safetensors")}


class TestSignals:
    @pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
    def test_each_finishes_the_step_and_saves(self, tmp_path, number):
        trainer = new_trainer(tmp_path)
        at_step(trainer, 7, lambda: signal.raise_signal(number))
        assert not trainer.train()
        assert (trainer.iteration, trainer.interrupted) == (7, number)
        assert saved_steps(tmp_path) == {"last.safetensors": 7}

    def test_an_estimate_is_left_and_made_by_the_resumed_run(self, tmp_path):
        whole = new_trainer(tmp_path / "whole")
        whole.train()
        expected = result(whole)
        first = new_trainer(tmp_path / "parts")
        loss, asked = first.loss, []

        def loss_then_signal(split, rng):
            asked.append(split)
            if first.iteration == 10 and split == "val":
                signal.raise_signal(signal.SIGTERM)
            return loss(split, rng)

        first.loss = loss_then_signal
        assert not first.train()
        assert asked == ["train", "train", "val", "val", "train", "train", "val"]
        second = resumed(tmp_path / "parts")
        assert second.iteration == 10
        assert second.train()
        assert result(second) == expected

    def test_during_an_import_in_the_run(self, tmp_path, monkeypatch):
        """An import that is interrupted by an exception may leave half a module, or end in another exception."""
        (tmp_path / "slow_module.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n")
        monkeypatch.syspath_prepend(tmp_path)
        trainer = new_trainer(tmp_path / "run")
        at_step(trainer, 3, lambda: __import__("slow_module"))
        assert not trainer.train()
        assert sys.modules.pop("slow_module").whole
        assert trainer.iteration == 3

    def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(self):
        noted = []
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        try:
            with catch_signals(noted.append):
                for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                    signal.raise_signal(number)
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
        assert noted == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]

    def test_handlers_are_put_back_and_nohup_is_respected(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            handlers = [signal.getsignal(number) for number in SIGNALS]
            with catch_signals(lambda number: None):
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
                assert signal.getsignal(signal.SIGTERM) not in handlers
            assert [signal.getsignal(number) for number in SIGNALS] == handlers
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_a_run_in_another_thread_changes_no_handler(self, tmp_path):
        handler, trainer = signal.getsignal(signal.SIGTERM), new_trainer(tmp_path, max_iters=2)
        seen = []
        at_step(trainer, 1, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
        thread = threading.Thread(target=trainer.train)
        thread.start()
        thread.join()
        assert seen == [handler]
        assert trainer.iteration == 2


class TestCheckpoints:
    def test_by_steps(self, tmp_path):
        """Besides those after estimates, and equal to them in what a resumed run makes of them."""
        whole = new_trainer(tmp_path / "whole")
        whole.train()
        expected = result(whole)
        trainer = new_trainer(tmp_path / "parts", save_interval=4, keep=9)
        saved, save = [], trainer.save
        trainer.save = lambda name: (saved.append((name, trainer.iteration)), save(name))
        assert trainer.train()
        assert [step for name, step in saved if name == checkpoint.LAST] == [0, 4, 8, 10, 12, 16, 20]
        assert {step for name, step in saved if name == checkpoint.BEST} <= {0, 10, 20}
        assert result(trainer) == expected
        (tmp_path / "parts" / checkpoint.LAST).unlink()
        again = resumed(tmp_path / "parts")
        assert again.iteration == 16
        assert again.train()
        assert result(again) == expected

    def test_by_time(self, tmp_path, monkeypatch):
        """The clock is a counter of steps: a minute for each."""
        trainer = new_trainer(tmp_path, save_minutes=3.0, keep=9)
        monkeypatch.setattr("gpt.trainer.time.monotonic", lambda: 60.0 * trainer.iteration)
        trainer.train()
        steps = sorted(saved_steps(tmp_path).values())
        assert steps == [0, 3, 6, 9, 10, 13, 16, 19, 20]  # an estimate saves, too, and the time begins anew

    def test_no_others_by_default(self, tmp_path):
        trainer = new_trainer(tmp_path)
        trainer.train()
        assert saved_steps(tmp_path) == {"last.safetensors": 20}

    def test_the_last_k_are_kept(self, tmp_path):
        new_trainer(tmp_path, save_interval=4, keep=3).train()
        assert saved_steps(tmp_path) == {
            "last.safetensors": 20,
            "last-16.safetensors": 16,
            "last-12.safetensors": 12,
        }
        assert list(older_checkpoints(tmp_path)) == [16, 12]
        keep_previous_run(tmp_path)
        assert list(older_checkpoints(tmp_path)) == []
        assert list(older_checkpoints(tmp_path / "previous-1")) == [16, 12]

    def test_the_same_step_is_kept_once(self, tmp_path):
        """A run that is stopped right after a checkpoint writes it again."""
        trainer = new_trainer(tmp_path, keep=2)
        at_step(trainer, 20, lambda: signal.raise_signal(signal.SIGINT))
        assert not trainer.train()
        assert saved_steps(tmp_path) == {"last.safetensors": 20, "last-10.safetensors": 10}
        assert resumed(tmp_path, keep=2).train()
        assert saved_steps(tmp_path) == {"last.safetensors": 20, "last-10.safetensors": 10}

    def test_where_there_are_no_hard_links(self, tmp_path, monkeypatch):
        def link(*_):
            raise OSError("not on this file system")

        monkeypatch.setattr(os, "link", link)
        new_trainer(tmp_path, keep=2).train()
        assert saved_steps(tmp_path) == {"last.safetensors": 20, "last-10.safetensors": 10}

    @pytest.mark.parametrize("keep", [1, 2])
    def test_a_save_that_fails_leaves_the_one_before(self, tmp_path, monkeypatch, keep):
        trainer = new_trainer(tmp_path, save_interval=4, keep=keep)
        save = checkpoint.save

        def full_disk(path, *rest):
            if trainer.iteration == 12:
                raise OSError(28, "No space left on device", str(path))
            save(path, *rest)

        monkeypatch.setattr(checkpoint, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trainer.train()
        assert checkpoint.load_last(tmp_path).run["iteration"] == 10


class TestFallback:
    @pytest.fixture
    def run(self, tmp_path):
        """A run of 20 steps with checkpoints of the steps 16 and 20, and the best. Returns its result."""
        trainer = new_trainer(tmp_path, save_interval=4, keep=2)
        trainer.train()
        return result(trainer)

    @pytest.mark.parametrize("damage", ["cut", "missing", "empty", "something else"])
    def test_an_unreadable_last_falls_back_to_the_one_before(self, tmp_path, capsys, run, damage):
        capsys.readouterr()
        last = tmp_path / checkpoint.LAST
        content = {"cut": last.read_bytes()[:-100], "empty": b"", "something else": b"x" * 1000}.get(damage)
        last.unlink()
        if content is not None:
            last.write_bytes(content)
        trainer = resumed(tmp_path, keep=2)
        printed = capsys.readouterr().out
        assert printed.startswith(f"warning     {last}: ")
        assert printed.endswith(f"; resuming from {tmp_path / 'last-16.safetensors'}, step 16\n")
        assert trainer.train()
        assert result(trainer) == run

    def test_the_unreadable_one_replaces_no_good_one(self, tmp_path, capsys, run, monkeypatch):
        """The run is killed in the first save after the fallback."""
        (tmp_path / checkpoint.LAST).write_bytes(b"")
        trainer = resumed(tmp_path, keep=2)
        monkeypatch.setattr(trainer, "save", lambda name: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            trainer.train()
        assert checkpoint.load_last(tmp_path).run["iteration"] == 16

    def test_then_to_the_best(self, tmp_path, capsys, run):
        for name in (checkpoint.LAST, "last-16.safetensors"):
            (tmp_path / name).write_bytes(b"")
        assert checkpoint.load_last(tmp_path).path == tmp_path / checkpoint.BEST
        assert f"{checkpoint.LAST}: " in capsys.readouterr().out

    def test_with_none_left_the_error_is_of_the_last(self, tmp_path, run):
        for path in tmp_path.glob("*.safetensors"):
            path.write_bytes(b"")
        with pytest.raises(CheckpointError, match=rf"^{tmp_path / checkpoint.LAST}: not a whole safetensors file"):
            checkpoint.load_last(tmp_path)

    def test_steps_of_an_abandoned_future_are_deleted(self, tmp_path, run):
        """Resumed from the best, of an early step, while later files cannot be read."""
        for name in (checkpoint.LAST, "last-16.safetensors"):
            (tmp_path / name).write_bytes(b"")
        trainer = resumed(tmp_path, keep=2)
        trainer.iteration, trainer.metrics.rows = 8, without_speed(trainer.rows[:2])
        trainer.save_last()
        assert saved_steps(tmp_path) == {"last.safetensors": 8}


NEW_OPTIONS = ("save_interval", "save_minutes", "keep", "on_divergence")


@pytest.mark.usefixtures("blank_pictures")
def test_a_checkpoint_from_before_these_options_is_resumed_with_their_defaults(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    shape = ["--device", "cpu", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 4]
    options = ["--data", tmp_path / "text.txt", "--eval-iters", 2, "--out", tmp_path / "run"]
    assert run_program("train_shakespeare", *shape, *options, "--max-iters", 2) == 0
    tensors, metadata = load_with_metadata(tmp_path / "run" / checkpoint.LAST)
    about = json.loads(metadata["minigrad"])
    for name in NEW_OPTIONS:
        del about["run"]["train_config"][name]
    for name in ("skipped", "rollbacks"):
        del about["run"][name]
    mg.save(tensors, tmp_path / "run" / checkpoint.LAST, {"minigrad": json.dumps(about)})
    capsys.readouterr()
    assert run_program("train_shakespeare", *options, "--resume", "--max-iters", 4) == 0
    printed = capsys.readouterr().out
    assert "from step 2\n" in printed
    assert "save_interval 0, save_minutes 0.0, keep 1, on_divergence stop" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_interval": -1}, "save_interval is -1; expected a whole number of at least 0"),
        ({"save_minutes": math.inf}, "save_minutes is inf; expected a number of at least 0, not infinity"),
        ({"keep": 0}, "keep is 0; expected a whole number of at least 1"),
        ({"on_divergence": "go"}, "on_divergence is 'go'; expected 'stop' or 'skip' or 'rollback'"),
    ],
)
def test_options_without_meaning(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)
