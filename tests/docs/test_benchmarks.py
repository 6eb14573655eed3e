"""The benchmarks run, and measure what they say: at sizes that take no time, so their figures mean nothing here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from benchmarks import command, contestants, figures, generate, ops, recipe, tape, train_step, workers
from tests.fakes.workers import run_here

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """Runs a benchmark's command without further processes: its output, or its error line if it is meant to fail.

    On one thread, which is quickest at these sizes.
    """
    threads = mg.get_num_threads()
    monkeypatch.setattr(tape.gc, "collect", lambda: 0)  # of all that a process of tests has is slow

    def run(benchmark, *options, fails=False):
        output, error = run_here(monkeypatch, benchmark, "--threads", "1", *options)
        assert bool(error) == fails, error
        return error if fails else output

    yield run
    mg.set_num_threads(threads)


def cells(output, title):
    """The cells of the line with this title in each table that has one."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]
    found = [row[1:] for row in rows if row[0] == title]
    assert found, f"no line {title!r} in:\n{output}"
    return found


def number(cell):
    return float(cell.split()[0].replace(",", ""))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text("the cat sat on the mat.\nthe dog sat on the log.\n" * 60, encoding="utf-8")
    return path


class TestWithoutPyTorch:
    def test_train_step(self, run, tmp_path):
        file = tmp_path / "figures.json"
        rows = "tiny,tiny-token,tiny-prompt"
        output = run(train_step, "--against", "none", "--rows", rows, "--rounds", 2, "--json", file)
        speed, peak = cells(output, "tiny")
        assert number(speed[0]) > 0
        assert number(speed[1]) == pytest.approx(2 * 32 / number(speed[0]) * 1000, rel=0.01)
        assert speed[2:6] == ["–"] * 4
        assert number(peak[0]) > 10
        (run_,) = json.loads(file.read_text())["runs"]
        assert {name: len(row["ms"]["minigrad"]) for name, row in run_["rows"].items()} == dict.fromkeys(
            rows.split(","), 2
        )
        assert all(ms > 0 for row in run_["rows"].values() for ms in row["ms"]["minigrad"])
        first_loss = run_["rows"]["tiny"]["first"]["minigrad"]
        assert abs(first_loss - np.log(65)) < 0.1, "an untrained model guesses among 65 characters"

    def test_contestants_are_processes(self):
        """As anyone runs it, from the root of the repository: each contestant has a process, with its threads."""
        options = ["--against", "none", "--rows", "tiny-prompt", "--rounds", "1", "--threads", "1,2"]
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.train_step", *options], capture_output=True, text=True, cwd=ROOT
        )
        assert result.returncode == 0, result.stderr
        assert "on 1 thread(s)" in result.stdout
        assert "on 2 thread(s)" in result.stdout
        assert "× as fast with 2" in result.stdout

    def test_ops(self, run, monkeypatch):
        monkeypatch.setattr(ops.Contestant, "machine_rates", lambda self: {"FLOP": 1e11, "B": 1e10})
        output = run(ops, "--against", "none", "--shapes", "tiny", "--quick", "--rounds", 1)
        lines = re.findall(
            r"^\| (linear|attention|conv2d|layer_norm|gelu|dropout|add|embedding|cross|clip|AdamW)", output, re.M
        )
        assert len(lines) == 2 * 14 + 2
        for title in ("gelu: forward", "cross_entropy: backward", "AdamW step"):
            ours, reference, *theirs, rate, share = cells(output, title)[0]
            assert number(ours) > 0
            assert number(reference) > 0
            assert set(theirs) == {"–"}
            assert number(rate) > 0
            assert share.endswith("%")

    def test_rates_of_the_machine(self):
        contestant = ops.Contestant("minigrad")
        contestant.prepare(threads=None)
        rates = contestant.machine_rates()
        assert rates["FLOP"] > 1e9
        assert rates["B"] > 1e8

    def test_tape(self, run):
        output = run(tape, "--against", "none", "--lengths", "100,200", "--rounds", 1)
        for title in ("negative", "tanh", "add", "multiply", "linear", "100", "200"):
            (line,) = cells(output, title)
            assert [number(line[i]) > 0 for i in (0, 1, 4)] == [True] * 3
            assert line[2:4] == line[5:7] == ["–", "–"]

    def test_recipe(self, run, text):
        output = run(recipe, "--against", "none", "--data", text, "--steps", 100, "--trial")
        ((seconds, estimate, whole, *others),) = cells(output, "minigrad")
        assert number(seconds) > 0
        assert 0 < number(estimate) < np.log(15), "it learns something of 15 characters"
        assert number(whole) == pytest.approx(number(estimate), rel=0.1)
        assert others == ["–", "–"]

    def test_generate(self, run):
        output = run(generate, "--against", "none", "--model", "tiny", "--prompt", 8, "--new-tokens", 4, "--rounds", 1)
        ms, per_second, *others = cells(output, "a prompt of 8 tokens")[0]
        assert number(per_second) == pytest.approx(8 * 1000 / number(ms), rel=0.01)
        assert others == ["–"] * 6 + ["1.0 (transformers)", "1.2 (transformers)", "–"]

    @pytest.mark.parametrize(
        ("benchmark", "options", "message"),
        [
            (train_step, ["--rows", "huge"], "unknown row 'huge'; there are small, baby"),
            (ops, ["--ops", "fft"], "no operation begins with fft; there are "),
            (tape, ["--operations", "fft"], "unknown operation 'fft'; there are negative"),
            (tape, ["--against", "jax"], "unknown opponent 'jax'; there are torch, none"),
            (generate, ["--prompt", "1020"], "expected at least 2 new tokens, and with the prompt at most 1024"),
        ],
    )
    def test_mistakes_get_one_clear_line(self, run, benchmark, options, message):
        error = run(benchmark, "--against", "none", *options, fails=True)
        assert error.startswith(f"error: {message}")
        assert len(error.splitlines()) == 1

    def test_missing_pytorch_is_said(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
        with pytest.raises(workers.BenchmarkError, match="PyTorch is not installed .* --against none"):
            command.opponents("torch")
        assert command.opponents("none") == ["minigrad"]


def test_a_process_that_fails_is_named(capfd, monkeypatch):
    """A method that raises says why, and its process goes on; one that ends is noticed."""
    monkeypatch.setattr(workers, "PAUSE", 0)
    with workers.start("benchmarks.tape", ["minigrad"]) as processes:
        tape_ = processes["minigrad"]
        with pytest.raises(workers.BenchmarkError, match=r"^minigrad: KeyError: 'fft', in turn\(\)$"):
            tape_.call("turn", operation="fft", length=1, repeats=1)
        assert len(tape_.call("turn", operation="add", length=1, repeats=1)) == 2
        tape_.process.kill()
        with pytest.raises(workers.BenchmarkError, match=r"minigrad: its process ended with status -9 in turn\(\)"):
            tape_.call("turn", operation="add", length=1, repeats=1)
    assert "KeyError: 'fft'" in capfd.readouterr().err


def test_an_opponent_that_fails_is_left_out(run, monkeypatch, capsys):
    monkeypatch.setattr(train_step.command, "opponents", lambda *_: ["minigrad", "PyTorch"])
    real = train_step.Contestant.prepare

    def prepare(self, **arguments):
        if self.library == "torch":
            raise workers.BenchmarkError("no such library")
        return real(self, **arguments)

    monkeypatch.setattr(train_step.Contestant, "prepare", prepare)
    output = run(train_step, "--rows", "tiny-prompt", "--rounds", 1)
    assert number(cells(output, "tiny, a prompt")[0][0]) > 0
    assert "left out: PyTorch: no such library" in capsys.readouterr().err


def test_other_work_is_refused():
    row = train_step.ROWS["small"]
    train_step.check_same_work(row, {"minigrad": 4.0, "PyTorch": 4.0001}, 1e-4)
    for theirs in (4.1, float("nan")):
        with pytest.raises(
            workers.BenchmarkError, match="small.*: PyTorch computed .*, minigrad 4.0: not the same work"
        ):
            train_step.check_same_work(row, {"minigrad": 4.0, "PyTorch": theirs}, 1e-4)


def test_turns_alternate_and_the_warm_up_does_not_count():
    order = []

    def turn(name):
        order.append(name)
        return len(order)

    assert workers.take_turns(["a", "b"], 3, turn) == {"a": [4, 5, 8], "b": [3, 6, 7]}
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_ratios_are_taken_within_a_round():
    """The second round ran on a machine at half its speed, for both."""
    assert figures.ratio(theirs=[3.0, 6.0, 3.3], ours=[2.0, 4.0, 2.0]) == pytest.approx((1.5, 1.5, 1.65))
    assert str(figures.Spread(1.5, 1.5, 1.65)) == "1.50 (1.50–1.65)"


def test_goals():
    for value, verdict in ((1.1, "yes"), (1.2, "goal"), (0.9, "no")):
        assert figures.reached({"a": value}, {"a": (1.0, 1.2)}) == ["1.0 (a)", "1.2 (a)", verdict]
    for value, verdict in ((0.6, "yes"), (0.5, "goal"), (0.7, "no")):  # of memory less is better
        assert figures.reached({"a": value}, {"a": (0.65, 0.5)}, -1)[2] == verdict
    assert figures.reached({"a": 1.0}, {"a": (1, 1), "b": (1, 1)}) == ["1 (a); 1 (b)"] * 2 + ["goal; –"]
    assert figures.reached({"a": 1.0}, {}) == ["–"] * 3


@pytest.mark.parity
class TestAgainstPyTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

    def test_train_step(self, run, tmp_path):
        file = tmp_path / "figures.json"
        run(train_step, "--rows", "tiny,tiny-token,tiny-prompt", "--rounds", 2, "--json", file)
        (run_,) = json.loads(file.read_text())["runs"]
        for name, row in run_["rows"].items():
            first = row["first"]
            assert {"minigrad", "PyTorch", "PyTorch tuned"} <= set(first)
            np.testing.assert_allclose(list(first.values()), first["PyTorch"], rtol=1e-4, err_msg=name)

    def test_ops(self, run, monkeypatch):
        monkeypatch.setattr(ops.Contestant, "machine_rates", lambda self: {"FLOP": 1e11, "B": 1e10})
        output = run(ops, "--shapes", "tiny", "--quick", "--rounds", 1, "--ops", "linear,gelu,AdamW")
        assert number(cells(output, "gelu: backward")[0][2]) > 0

    def test_tape(self, run):
        output = run(tape, "--lengths", "100", "--operations", "linear", "--rounds", 1)
        assert number(cells(output, "linear")[0][2]) > 0

    def test_generate(self, run):
        """A plain loop in PyTorch chooses the same tokens, from the same weights."""
        output = run(generate, "--against", "torch", "--model", "tiny", "--prompt", 8, "--new-tokens", 8, "--rounds", 1)
        assert "all chose the same 8 tokens" in output

    def test_recipe_reaches_the_same_loss(self, run, text):
        output = run(recipe, "--data", text, "--steps", 300, "--trial")
        ours, theirs = (number(cells(output, name)[0][2]) for name in ("minigrad", "PyTorch"))
        assert ours == pytest.approx(theirs, abs=0.3)

    def test_pytorchs_cache_changes_nothing(self):
        """Logits of a text read at once, and in pieces through the cache: a prompt, one token, several tokens."""
        import torch

        shape = contestants.Model(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=11, bias=True)
        model = contestants.torch_model(shape).double().eval()
        ids = torch.randint(11, (2, 12))
        with torch.no_grad():
            cache = model.new_cache(batch_size=2)
            pieces = [model(piece, cache=cache)[0] for piece in ids.split([5, 1, 6], dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids)[0], rtol=1e-9, atol=1e-12)
