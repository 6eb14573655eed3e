"""Training runs and programs on several ranks."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt import checkpoint
from tests.gpt.runs import TEXT
from tests.needs import needs_fork

from . import checks_of_trainer
from .on_ranks import MPIRUN, ONE_THREAD, names_of_checks, run_on_ranks

ROOT = Path(__file__).parents[2]
SIZES = [2, pytest.param(3, marks=pytest.mark.slow)]  # the second start takes as long again


@pytest.fixture(scope="module", params=SIZES, ids="{} ranks".format)
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {"folder": folder, **run_on_ranks([checks_of_trainer], request.param, folder)}


@pytest.mark.parametrize("name", names_of_checks([checks_of_trainer]))
def test_on_ranks(results, name):
    reports = results["reports"]
    assert reports, results["output"]
    if any(name not in report for report in reports):
        pytest.fail("not run: an earlier check failed")
    failures = [report[name] for report in reports if report[name]]
    assert not failures, "\n".join(failures)


@needs_fork
def test_a_run_of_ranks_goes_on_in_forked_processes(results, tmp_path, monkeypatch):
    monkeypatch.setattr(checks_of_trainer, "FOLDER", tmp_path)
    shutil.copytree(results["folder"] / "shared" / "from-ranks", tmp_path / "forked")
    forked = checks_of_trainer.resumed("forked", processes=2)
    assert forked.iteration == 5
    assert forked.train()
    whole = checks_of_trainer.trainer("whole")
    assert whole.train()
    checks_of_trainer.assert_same(whole, forked)


def start(size, *words, **options):
    """The process of mpirun with these words as the program that it starts."""
    if not MPIRUN.exists():
        pytest.skip("mpirun is not installed: pip install 'minigrad[distributed]'")
    command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", size, *words]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], env=environment, cwd=ROOT, **pipes, **options)


OPTIONS = "--preset cpu --n-embd 8 --n-head 2 --n-layer 1 --block-size 8 --batch-size 4 --eval-iters 1".split()
PROGRAM = [sys.executable, "examples/train_shakespeare.py", *OPTIONS]


def test_a_signal_saves_and_the_run_goes_on_without_ranks(tmp_path):
    """SIGUSR1 to mpirun reaches all ranks, which stop after the same step with the status of the signal."""
    (tmp_path / "text.txt").write_text(TEXT)
    files = ["--data", tmp_path / "text.txt", "--out", tmp_path / "run"]
    process = start(2, *PROGRAM, *files, "--max-iters", 10**6, "--eval-interval", 10**6)
    for line in process.stdout:
        if line.startswith("step     0"):
            process.send_signal(signal.SIGUSR1)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, err
    command = re.search(r"interrupted; step (\d+) is saved. To resume:\n  mpirun -n 2 (python .* --resume)", out)
    assert command, out + err
    stopped_at, words = int(command[1]), shlex.split(command[2])
    done = subprocess.run(
        [sys.executable, *words[1:], "--max-iters", str(stopped_at + 3), "--processes", "1"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert checkpoint.load_last(tmp_path / "run").run["iteration"] == stopped_at + 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--data $([ $RANK_HERE = 1 ] && echo missing.txt || echo {text})",
            r"error: rank 1\S* on \S+ missing.txt: there",
        ),
        ("--data {text} --seed 1$RANK_HERE", r"error: rank 1 differs from the others: seed is 11, expected 10\n"),
        pytest.param("--data {text} --batch-size 0", r"error: .*batch_size is 0; expected", marks=pytest.mark.slow),
        pytest.param("--data {text} --color", r"error: .*unrecognized arguments: --color", marks=pytest.mark.slow),
    ],
    ids=["missing file", "other option", "bad option", "unknown option"],
)
def test_an_error_is_printed_once_and_names_the_rank(tmp_path, option, message):
    """The slow ones start Python twice more, to see that an error of all ranks is printed once."""
    (tmp_path / "text.txt").write_text(TEXT)
    words = shlex.join([*map(str, PROGRAM), "--out", str(tmp_path / "run")])
    given = option.format(text=shlex.quote(str(tmp_path / "text.txt")))
    process = start(2, "bash", "-c", f"RANK_HERE=$OMPI_COMM_WORLD_RANK; {words} {given}")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(message.replace(r"\S* on \S+", r" on \S+:"), err), err
    assert err.count("error: ") == 1
    assert "Traceback" not in out + err
    assert not (tmp_path / "run" / "last.safetensors").exists()
