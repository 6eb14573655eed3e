"""Training runs and programs on several ranks."""

import json
import re
import shlex
import shutil
import signal
import sys

import pytest

from gpt import checkpoint
from tests.gpt.runs import TEXT
from tests.needs import needs_fork
from tests.programs import run_program

from . import checks_of_trainer
from .launching import mpirun, run, run_ranks
from .on_ranks import names_of_checks

SIZES = [2, pytest.param(3, marks=pytest.mark.slow)]  # the second start takes as long again
pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", params=SIZES, ids="{} ranks".format)
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    names = [checks_of_trainer.__name__]
    done = run_ranks("tests.distributed.on_ranks", folder, *names, ranks=request.param, timeout=300)
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {"folder": folder, "reports": reports, "output": done.out + done.err}


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


OPTIONS = "--preset cpu --n-embd 8 --n-head 2 --n-layer 1 --block-size 8 --batch-size 4 --eval-iters 1".split()
PROGRAM = [sys.executable, "examples/train_shakespeare.py", *OPTIONS]


def run_in_shell(script):
    """Run a script, in which $MPIRUN starts ranks."""
    command = ["bash", "-c", f"MPIRUN={shlex.quote(shlex.join(mpirun()))}; {script}"]
    return run([command], 60, [{}])


def test_a_signal_saves_and_the_run_goes_on_without_ranks(tmp_path):
    """SIGUSR1 to mpirun reaches all ranks, which stop after the same step with the status of the signal."""
    (tmp_path / "text.txt").write_text(TEXT)
    files = ["--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--max-iters", 10**6]
    words = shlex.join(map(str, [*PROGRAM, *files, "--eval-interval", 10**6]))
    saved = shlex.quote(str(tmp_path / "run" / "last.safetensors"))
    done = run_in_shell(f"$MPIRUN -n 2 {words} & until [ -e {saved} ]; do sleep 0.1; done; kill -USR1 $!; wait $!")
    assert done.status == 128 + signal.SIGUSR1, done.err
    command = re.search(r"interrupted; step (\d+) is saved. To resume:\n  mpirun -n 2 python (.* --resume)", done.out)
    assert command, done.out + done.err
    stopped_at, words = int(command[1]), shlex.split(command[2])
    assert run_program("train_shakespeare", *words[1:], "--max-iters", stopped_at + 3) == 0
    assert checkpoint.load_last(tmp_path / "run").run["iteration"] == stopped_at + 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--data $([ $RANK_HERE = 1 ] && echo none || echo {text})",
            r"error: rank 1 on \S+: none: there",
        ),
        ("--data {text} --seed 1$RANK_HERE", r"error: rank 1 differs from the others: seed is 11, expected 10$"),
        pytest.param("--data {text} --batch-size 0", r"error: .*batch_size is 0; expected", marks=pytest.mark.slow),
        pytest.param("--data {text} --color", r"error: .*unrecognized arguments: --color", marks=pytest.mark.slow),
    ],
    ids=["missing file", "other option", "bad option", "unknown option"],
)
def test_an_error_is_printed_once_and_names_the_rank(tmp_path, matches, option, message):
    """The slow ones start Python twice more, to see that an error of all ranks is printed once."""
    (tmp_path / "text.txt").write_text(TEXT)
    words = shlex.join([*PROGRAM, "--out", str(tmp_path / "run")])
    given = option.format(text=shlex.quote(str(tmp_path / "text.txt")))
    of_rank = f"RANK_HERE=${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}; {words} {given}"
    done = run_in_shell(f"$MPIRUN -n 2 bash -c {shlex.quote(of_rank)}")
    assert done.status == 1
    matches(done.errors, message, done.out + done.err)
    assert "Traceback" not in done.out + done.err
    assert not (tmp_path / "run" / "last.safetensors").exists()
