"""The benchmarks run, and measure what they say: at sizes that take no time, so their figures mean nothing here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *options, status=0):
    """The output of a benchmark; its error line if it is meant to fail.

    One thread is quickest at these sizes, and needs no pauses.
    """
    environment = {**os.environ, "BENCHMARK_PAUSE": "0"}
    command = [sys.executable, BENCHMARKS / script, "--threads", "1", *map(str, options)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == status, result.stderr
    return result.stderr if status else result.stdout


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
    def test_train_step(self, tmp_path):
        figures = tmp_path / "figures.json"
        rows = "tiny,tiny-token,tiny-prompt"
        output = run("train_step.py", "--against", "none", "--rows", rows, "--rounds", 2, "--json", figures)
        speed, peak = cells(output, "tiny")
        assert number(speed[0]) > 0
        assert number(speed[1]) == pytest.approx(2 * 32 / number(speed[0]) * 1000, rel=0.01)
        assert speed[2:6] == ["–"] * 4
        assert number(peak[0]) > 10
        (run_,) = json.loads(figures.read_text())["runs"]
        assert {name: len(row["ms"]["minigrad"]) for name, row in run_["rows"].items()} == dict.fromkeys(
            rows.split(","), 2
        )
        assert all(ms > 0 for row in run_["rows"].values() for ms in row["ms"]["minigrad"])
        first_loss = run_["rows"]["tiny"]["first"]["minigrad"]
        assert abs(first_loss - np.log(65)) < 0.1, "an untrained model guesses among 65 characters"

    def test_train_step_compares_numbers_of_threads(self):
        output = run("train_step.py", "--against", "none", "--rows", "tiny-prompt", "--rounds", 1, "--threads", "1,2")
        assert "on 1 thread(s)" in output
        assert "on 2 thread(s)" in output
        assert "× as fast with 2" in output

    def test_ops(self):
        output = run("ops.py", "--against", "none", "--shapes", "tiny", "--quick", "--rounds", 1)
        lines = re.findall(
            r"^\| (linear|attention|layer_norm|gelu|dropout|add|embedding|cross|clip|AdamW)", output, re.M
        )
        assert len(lines) == 2 * 13 + 2
        for title in ("gelu: forward", "cross_entropy: backward", "AdamW step"):
            ours, reference, *theirs, rate, share = cells(output, title)[0]
            assert number(ours) > 0
            assert number(reference) > 0
            assert set(theirs) == {"–"}
            assert number(rate) > 0
            assert share.endswith("%")

    def test_tape(self):
        output = run("tape.py", "--against", "none", "--lengths", "100,200", "--rounds", 1)
        for title in ("negative", "tanh", "add", "multiply", "linear", "100", "200"):
            (line,) = cells(output, title)
            assert [number(line[i]) > 0 for i in (0, 1, 4)] == [True] * 3
            assert line[2:4] == line[5:7] == ["–", "–"]

    def test_recipe(self, text):
        output = run("recipe.py", "--against", "none", "--data", text, "--steps", 100, "--trial")
        ((seconds, estimate, whole, *others),) = cells(output, "minigrad")
        assert number(seconds) > 0
        assert 0 < number(estimate) < np.log(15), "it learns something of 15 characters"
        assert number(whole) == pytest.approx(number(estimate), rel=0.1)
        assert others == ["–", "–"]

    @pytest.mark.parametrize(
        ("script", "options", "message"),
        [
            ("train_step.py", ["--rows", "huge"], "unknown row 'huge'; there are small, baby"),
            ("ops.py", ["--ops", "fft"], "no operation begins with fft; there are "),
            ("tape.py", ["--operations", "fft"], "unknown operation 'fft'; there are negative"),
        ],
    )
    def test_mistakes_get_one_clear_line(self, script, options, message):
        error = run(script, "--against", "none", *options, status=1)
        assert error.startswith(f"error: {message}")
        assert len(error.splitlines()) == 1

    def test_missing_pytorch_is_said(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
        with pytest.raises(common.BenchmarkError, match="PyTorch is not installed .* --against none"):
            common.opponents("torch")
        assert common.opponents("none") == ["minigrad"]


def test_a_process_that_fails_is_named(capfd):
    """The worker's own traceback says why; the benchmark says who, and ends."""
    with (
        pytest.raises(common.BenchmarkError, match=r"minigrad: its process ended with status 1 in turn\(\)"),
        common.workers(str(BENCHMARKS / "train_step.py"), ["minigrad"]) as processes,
    ):
        processes["minigrad"].call("turn", repeats=1)  # before build()
    assert "AttributeError: 'Contestant' object has no attribute 'begin'" in capfd.readouterr().err


def test_turns_alternate_and_the_warm_up_does_not_count():
    order = []

    def turn(name):
        order.append(name)
        return len(order)

    assert common.take_turns(["a", "b"], 3, turn) == {"a": [4, 5, 8], "b": [3, 6, 7]}
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_ratios_are_taken_within_a_round():
    """The second round ran on a machine at half its speed, for both."""
    assert common.ratio(theirs=[3.0, 6.0, 3.3], ours=[2.0, 4.0, 2.0]) == pytest.approx((1.5, 1.5, 1.65))
    assert str(common.Spread(1.5, 1.5, 1.65)) == "1.50 (1.50–1.65)"


@pytest.mark.parity
class TestAgainstPyTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

    def test_train_step(self, tmp_path):
        figures = tmp_path / "figures.json"
        run("train_step.py", "--rows", "tiny,tiny-token,tiny-prompt", "--rounds", 2, "--json", figures)
        (run_,) = json.loads(figures.read_text())["runs"]
        for name, row in run_["rows"].items():
            first = row["first"]
            assert {"minigrad", "PyTorch", "PyTorch tuned"} <= set(first)
            np.testing.assert_allclose(list(first.values()), first["PyTorch"], rtol=1e-4, err_msg=name)

    def test_ops(self):
        output = run("ops.py", "--shapes", "tiny", "--quick", "--rounds", 1, "--ops", "linear,gelu,AdamW")
        assert number(cells(output, "gelu: backward")[0][2]) > 0

    def test_tape(self):
        output = run("tape.py", "--lengths", "100", "--operations", "linear", "--rounds", 1)
        assert number(cells(output, "linear")[0][2]) > 0

    def test_recipe_reaches_the_same_loss(self, text):
        output = run("recipe.py", "--data", text, "--steps", 300, "--trial")
        ours, theirs = (number(cells(output, name)[0][2]) for name in ("minigrad", "PyTorch"))
        assert ours == pytest.approx(theirs, abs=0.3)

    def test_pytorchs_cache_changes_nothing(self):
        """Logits of a text read at once, and in pieces through the cache: a prompt, one token, several tokens."""
        import torch

        from benchmarks.torch_gpt import TorchGPT

        torch.manual_seed(0)
        model = TorchGPT(block_size=16, vocab_size=11, n_layer=2, n_head=2, n_embd=16, bias=True).double().eval()
        ids = torch.randint(11, (2, 12))
        with torch.no_grad():
            cache = model.new_cache(batch_size=2)
            pieces = [model(piece, cache=cache)[0] for piece in ids.split([5, 1, 6], dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids)[0], rtol=1e-9, atol=1e-12)
