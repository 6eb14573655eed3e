"""Logging is not training: a metrics file, plot or screen that cannot be written is said once, and the run goes on."""

import io
import os
import subprocess
import sys

import pytest

from gpt import checkpoint
from gpt.figures import NO_FIGURE, attempt
from gpt.run import lasting_screen
from tests.gpt.runs import TEXT, new_trainer, result
from tests.gpt.test_examples import SMALL, command
from tests.programs import run_program

TINY = [*SMALL, "--eval-interval", 2, "--max-iters", 4]


class TestMetrics:
    def test_a_file_that_cannot_be_written_is_said_once(self, tmp_path, capsys):
        whole = new_trainer(tmp_path / "whole")
        whole.train()
        expected = result(whole)
        (tmp_path / "run" / "metrics.csv").mkdir(parents=True)
        trainer = new_trainer(tmp_path / "run")
        assert trainer.train()
        assert result(trainer) == expected
        printed = capsys.readouterr().out
        assert printed.count("warning") == 1
        assert "metrics.csv'; the run goes on without it" in printed

    def test_it_is_whole_again_when_it_can_be_written(self, tmp_path, capsys):
        trainer = new_trainer(tmp_path / "run")
        folder = tmp_path / "run" / "metrics.csv"
        folder.mkdir(parents=True)
        estimate = trainer.estimate_losses

        def estimate_then_free():
            if trainer.iteration == 10:
                folder.rmdir()
            return estimate()

        trainer.estimate_losses = estimate_then_free
        assert trainer.train()
        lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in lines] == ["iteration", "0", "1", "10", "10", "20", "20"]

    def test_a_disk_that_is_full_for_a_while(self, tmp_path, capsys, monkeypatch):
        """Two times in one run, and each is said."""
        trainer = new_trainer(tmp_path, max_iters=40, eval_interval=20)

        def full_at_times(path, mode):
            if mode == "ab" and trainer.iteration in (1, 20):
                raise OSError(28, "No space left on device")
            return open(path, mode)

        monkeypatch.setattr("gpt.metrics.open", full_at_times, raising=False)
        assert trainer.train()
        message = (
            f"warning     [Errno 28] No space left on device: '{tmp_path / 'metrics.csv'}'; the run goes on without"
        )
        assert capsys.readouterr().out.count(message) == 2
        steps = [line.partition(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()]
        assert steps == ["iteration", *(str(row["iteration"]) for row in trainer.rows)]


class TestPlot:
    def test_reasons(self):
        def full():
            raise OSError(28, "No space left on device", "loss.png")

        assert attempt(full) == "none: [Errno 28] No space left on device: 'loss.png'"
        assert attempt(lambda: None) == NO_FIGURE

    @pytest.mark.usefixtures("blank_pictures")
    def test_the_program_goes_on(self, tmp_path, capsys):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `plot`)")
        (tmp_path / "text.txt").write_text(TEXT)
        (tmp_path / "run" / "previous-1").mkdir(parents=True)
        program = ["train_shakespeare", *TINY, "--data", tmp_path / "text.txt", "--out", tmp_path / "run"]
        assert run_program(*program) == 0
        (tmp_path / "run" / "loss.png").unlink()
        (tmp_path / "run" / "loss.png").mkdir()
        assert run_program(*program, "--resume") == 0
        printed = capsys.readouterr().out
        assert "loss curve  none: [Errno 21] Is a directory" in printed
        assert printed.rstrip().endswith(f"more samples: python examples/sample.py --checkpoint {tmp_path / 'run'}")


class Broken(io.StringIO):
    """A stream that can be written a number of times."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def write(self, text):
        if not self.times:
            raise BrokenPipeError(32, "Broken pipe")
        self.times -= 1
        return super().write(text)


class TestScreen:
    def test_each_is_said_once_on_the_other(self, monkeypatch):
        out, err = Broken(2), io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with lasting_screen():
            for line in "abc":
                print(line)
        assert (sys.stdout, sys.stderr) == (out, err)
        assert out.getvalue() == "a\n"
        assert (
            err.getvalue()
            == "\nwarning     standard output cannot be written (Broken pipe); the run goes on without it\n"
        )

    def test_both(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", Broken(0))
        monkeypatch.setattr(sys, "stderr", Broken(0))
        with lasting_screen():
            print("a")
            print("b", file=sys.stderr)

    def test_none_at_all(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, "stderr", None)
        with lasting_screen():
            print("a")
            assert sys.stderr is None

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
    @pytest.mark.parametrize(
        "broken",
        ["stdout", pytest.param("stderr", marks=pytest.mark.slow), pytest.param("closed pipe", marks=pytest.mark.slow)],
    )
    def test_a_program_trains_to_its_end(self, tmp_path, broken):
        """As a process of its own: the exit status, too, is that of a run that could print."""
        (tmp_path / "text.txt").write_text(TEXT)
        words = command("train_shakespeare", *TINY, "--data", tmp_path / "text.txt", "--out", tmp_path / "run")
        words.remove("-u")
        reading, writing = os.pipe()
        os.close(reading)
        with open("/dev/full", "w") as full, os.fdopen(writing, "wb", 0) as closed:
            streams = {"stdout": {"stdout": full}, "stderr": {"stderr": full}, "closed pipe": {"stdout": closed}}[
                broken
            ]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
            done = subprocess.run(words, **streams, text=True, timeout=120)
        assert done.returncode == 0
        assert checkpoint.load(tmp_path / "run" / checkpoint.LAST).run["iteration"] == 4
        said, name = (done.stdout, "standard error") if broken == "stderr" else (done.stderr, "standard output")
        assert said.count(f"warning     {name} cannot be written") == 1
        assert "Traceback" not in said
