"""benchmarks/cuda.py and cuda_check.sh, as far as they run without a card.

minigrad's side runs on the fake CuPy, with the emulator in place of the card, and a clock in place of events;
PyTorch's on the CPU. At sizes that take no time, so that the figures mean nothing here.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common, cuda, cuda_kernels, cuda_report
from minigrad.kernels.cuda import launch
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu

ROOT = Path(__file__).parents[2]
needs_no_card = pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there may be a card here")


def run(command, status=0, **environment):
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
        cwd=ROOT,
    )
    assert result.returncode == status, result.stderr
    return result.stderr if status else result.stdout


# What a row is


def test_flops_of_a_step_counted_by_hand():
    """Every product of the tiny model, one after the other."""
    row = cuda.ALL_ROWS["tiny"]
    m, n = row.model, row.tokens
    C, T, V = m["n_embd"], m["block_size"], m["vocab_size"]

    def product(rows, inner, columns):
        return 2 * rows * inner * columns

    block = product(n, C, 3 * C) + product(n, C, C) + product(n, C, 4 * C) + product(n, 4 * C, C)
    attention = row.batch * (product(T, C, T) + product(T, T, C)) / 2  # half of the scores are masked
    forward = m["n_layer"] * (block + attention) + product(n, C, V)
    assert row.flops == 3 * forward


def test_flops_and_parameters_are_those_of_the_issue():
    assert 26e12 < cuda.ROWS["124m"].flops < 28e12
    assert cuda.ROWS["baby"].flops == pytest.approx(1.1e12, rel=0.02)
    assert cuda.ROWS["124m"].tokens == 32 * 1024


def test_adamw_moves_28_bytes_a_parameter():
    small = cuda_kernels.TRIAL
    count = small.V * small.C + small.T * small.C + small.n_layer * (12 * small.C**2 + 13 * small.C) + 2 * small.C
    for dtype in ("float32", "bfloat16"):
        assert cuda_kernels.cases(small, dtype)["AdamW"].amount == 28 * count


# Minigrad's side


class Hook:
    """As cupy.cuda.MemoryHook."""

    def __enter__(self):
        self.malloc_postprocess(device_id=0, size=900, mem_size=1024, mem_ptr=1, pmem_id=1)
        self.free_postprocess(device_id=0, mem_size=1024, mem_ptr=1, pmem_id=1)
        self.malloc_postprocess(device_id=0, size=1, mem_size=512, mem_ptr=1, pmem_id=1)
        return self

    def __exit__(self, *exception):
        return None


@pytest.fixture
def card(monkeypatch):
    """A stand-in for a card, and what the benchmark asks of it besides: times of events, and the memory's figures."""
    record = fake_cupy.Stream.record

    def timed(stream, event=None):
        event = record(stream, event)
        event.time = time.perf_counter()
        return event

    with fake_gpu(monkeypatch) as launches:
        monkeypatch.setattr(fake_cupy.Stream, "record", timed)
        more = {"get_elapsed_time": lambda start, end: 1e3 * (end.time - start.time), "MemoryHook": Hook}
        for name, value in more.items():
            monkeypatch.setattr(fake_cupy.cupy.cuda, name, value, raising=False)
        about = {"name": b"Stand-in"}
        monkeypatch.setattr(fake_cupy.cupy.cuda.runtime, "getDeviceProperties", lambda i: about, raising=False)
        monkeypatch.setattr(cuda_kernels, "DRAWN", 4999)
        for name in ("LEAD_IN", "PROFILED"):
            monkeypatch.setattr(cuda, name, 1)
        monkeypatch.setattr(cuda, "WARM_UP", 4)  # graph.EAGER_STEPS, and the capture
        yield launches


@pytest.fixture
def in_this_process(monkeypatch):
    """Workers without processes: what they are asked and answer is JSON all the same."""

    class Local:
        def __init__(self, name):
            self.contestant = cuda.Guarded(cuda.Minigrad())

        def call(self, method, **arguments):
            arguments = json.loads(json.dumps(arguments))
            return json.loads(json.dumps(getattr(self.contestant, method)(**arguments)))

        def close(self):
            self.contestant = None

    @contextlib.contextmanager
    def workers(script, names):
        yield {name: Local(name) for name in names}

    monkeypatch.setattr(cuda, "workers", workers)


def main(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["cuda.py", "--trial", *map(str, options)])
    cuda.main()


def cells(output, title):
    (line,) = [line for line in output.splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@needs_compiler
@pytest.mark.parametrize(("row", "graph"), [("tiny", True), ("tiny", False), ("tiny-tf32", True)])
def test_training_steps(card, in_this_process, monkeypatch, capsys, tmp_path, row, graph):
    figures = tmp_path / "figures.json"
    options = ["--against", "none", "--tables", "steps", "--rows", row, "--json", figures]
    main(monkeypatch, *options, *(() if graph else ("--no-graph",)))
    output = capsys.readouterr().out
    title = cuda.ALL_ROWS[row].title
    ms, tokens, share, goals = cells(output.partition("memory of the card")[0], title)
    assert float(ms.replace(",", "")) > 0
    assert goals == "–"
    assert share.endswith("%")
    assert "Stand-in" in output
    measured = json.loads(figures.read_text())
    found = measured["rows"][row]
    assert [len(turn) for turn in found["ms"]["minigrad"]] == [2, 2]
    assert found["built"]["minigrad"] == {
        "first": pytest.approx(np.log(65), abs=0.1),
        "peak_mb": 1024 / 1e6,
        "held_mb": 0,
        "graph": graph,
    }
    median = np.median(found["ms"]["minigrad"])
    assert int(tokens.replace(",", "")) == round(1e3 * cuda.ALL_ROWS[row].tokens / median)
    rate = measured["rates"][cuda.ALL_ROWS[row].dtype]
    assert float(share[:-1]) == pytest.approx(100 * cuda.ALL_ROWS[row].flops / median * 1e3 / rate, abs=0.06)
    assert "adamw" in card


@needs_compiler
def test_every_kernel_is_in_the_table_and_right(card):
    """At small sizes; on a card test_cuda_kernels_on_card.py asks the same."""
    for dtype in ("bfloat16", "float32"):
        for name, case in cuda_kernels.cases(cuda_kernels.TRIAL, dtype).items():
            error = cuda_kernels.largest_error(case.make())
            if error is not None:
                assert error <= cuda.ALLOWED_ERRORS * case.precision + 1e-5, f"{name}, {dtype}"
    sources = "".join(path.read_text("utf-8") for path in launch.FOLDER.glob("*.cu"))
    there = set(re.findall(r"__global__ (?:__launch_bounds__\(\w+\) )?void (\w+)\(", sources))
    assert there - set(card) == set()


@needs_compiler
def test_kernel_table(card, in_this_process, monkeypatch, capsys):
    some = {"GELU: forward", "linear, C to C: dW", "AdamW"}
    all_cases = cuda_kernels.cases

    def cases(size, dtype, with_reference=True):
        return {name: case for name, case in all_cases(size, dtype, with_reference).items() if name in some}

    monkeypatch.setattr(cuda_kernels, "cases", cases)
    main(monkeypatch, "--against", "none", "--tables", "kernels", "--rounds", 2)
    output = capsys.readouterr().out
    for dtype in ("bfloat16", "float32"):
        for name in some:
            us, rate, share, error = cells(output, f"{name}, {dtype}")
            assert float(us.replace(",", "")) > 0
            assert rate.endswith("TFLOP/s" if "linear" in name else "GB/s")
            assert share.endswith("%")
            assert float(error) >= 0


@needs_compiler
def test_after_a_kernel_that_fails_a_new_process_goes_on(card, in_this_process, monkeypatch, capsys):
    def broken():
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    known = cuda_kernels.cases(cuda_kernels.TRIAL, "bfloat16")
    some = [dataclasses.replace(known["AdamW"], title="broken", make=broken), known["GELU: forward"]]
    monkeypatch.setattr(cuda_kernels, "cases", lambda *_, **__: {case.title: case for case in some})
    prepared, started = cuda.Minigrad.prepare, []
    monkeypatch.setattr(cuda.Minigrad, "prepare", lambda self, **given: started.append(self) or prepared(self, **given))
    main(monkeypatch, "--against", "none", "--tables", "kernels", "--quick", "--rounds", 1)
    output = capsys.readouterr()
    assert cells(output.out, "broken, bfloat16") == ["failed", "–", "–", "–"]
    assert float(cells(output.out, "GELU: forward, bfloat16")[0].replace(",", "")) > 0
    assert "broken, bfloat16: RuntimeError: cudaErrorIllegalAddress" in output.err
    assert len(set(map(id, started))) == 3  # for the rates, for what is broken, and for the rest


@needs_compiler
def test_a_contestant_that_fails_does_not_stop_the_others(card, in_this_process, monkeypatch, capsys):
    def out_of_memory(row, graph):
        raise fake_cupy.OutOfMemoryError(2**40, 2**30)

    monkeypatch.setattr(cuda, "new_trainer", out_of_memory)
    main(monkeypatch, "--against", "none", "--tables", "steps", "--rows", "tiny,tiny-tf32")
    output = capsys.readouterr().out
    for row in ("tiny", "tiny-tf32"):
        assert cells(output.partition("memory of the card")[0], cuda.ALL_ROWS[row].title)[0] == "failed"
    assert output.count("minigrad failed: out of memory on the GPU: 1.00 TiB more were requested") == 2


@needs_compiler
def test_profile_by_events(card, in_this_process, monkeypatch, capsys):
    """Of a step whose kernels are launched one by one, even if the step that was timed is a graph."""
    monkeypatch.setattr(cuda, "by_profiler", lambda *arguments: {})
    main(monkeypatch, "--against", "none", "--tables", "profile", "--rows", "tiny")
    output = capsys.readouterr().out
    for name, calls in (
        ("attention_forward", "1"),
        ("cuBLASLt", "15"),  # of five linear layers, each forward, for its input and for its weight
        ("adamw", "2"),  # for parameters that decay, and for the others
    ):
        assert cells(output, name)[0] == calls
        assert cells(output, name)[2].endswith("%")


@needs_compiler
def test_what_was_measured_is_shown_when_it_is_stopped(card, in_this_process, monkeypatch, capsys):
    real = cuda.measure_row

    def stopped_at_the_second(name, *arguments):
        if name == "tiny-tf32":
            raise KeyboardInterrupt
        return real(name, *arguments)

    monkeypatch.setattr(cuda, "measure_row", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        main(monkeypatch, "--against", "none", "--tables", "steps", "--rows", "tiny,tiny-tf32")
    output = capsys.readouterr().out
    assert cuda.ALL_ROWS["tiny"].title in output
    assert cuda.ALL_ROWS["tiny-tf32"].title not in output


def test_profile_of_a_trace():
    trace = [
        {"cat": "kernel", "name": "adamw", "dur": 30},
        {"cat": "kernel", "name": "adamw", "dur": 10},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 2},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 99},
        {"name": "process_name"},
    ]
    found = cuda.kernels_of_trace({"traceEvents": trace}, steps=2)
    assert found == {"adamw": [1, pytest.approx(0.02)], "Memcpy HtoD": [0.5, pytest.approx(0.001)]}


# PyTorch's side


@pytest.mark.parity
@pytest.mark.parametrize("row", ["tiny", "tiny-tf32"])
def test_pytorch_trains_on_the_same_tokens(row, monkeypatch):
    monkeypatch.setattr(cuda, "LEARNING_RATE", 1e-2)
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    step = cuda.torch_step(cuda.ALL_ROWS[row], "eager", "cpu")
    losses = [step().item() for _ in range(25)]
    assert losses[0] == pytest.approx(np.log(65), abs=0.1)
    ids = cuda.tokens_to_learn(65)
    shares = np.bincount(ids) / len(ids)
    assert losses[-1] < losses[0] - 0.05  # it has begun to learn how often each token comes
    assert losses[-1] > -(shares * np.log(shares)).sum() - 0.5


# Tables


def figure(ours, eager, compiled, **more):
    ms = {"minigrad": ours, "PyTorch eager": eager, "torch.compile": compiled}
    built = {who: {"first": 4.0, "peak_mb": 100.0 * i, "held_mb": 200.0} for i, who in enumerate(ms, 1)}
    return {"ms": ms, "built": built, "loss": dict.fromkeys(ms, 3.0), "failed": {}, **more}


WHO = ["minigrad", "PyTorch eager", "torch.compile"]


def test_lines_of_steps():
    rows = {"124m": figure([[80, 84, 82], [90, 70, 82]], [[123, 123], [164, 164]], [[82, 82], [41, 41]])}
    ((title, ms, tokens, share, *times_and_ratios, goals),) = cuda.step_lines(rows, {"bfloat16": 800e12}, WHO)
    assert title == cuda.ROWS["124m"].title
    assert (ms, tokens) == ("82", "399,610")
    assert share == f"{cuda.ROWS['124m'].flops / 0.082 / 800e12:.1%}"
    assert times_and_ratios == ["144", "61.5", "1.75 (1.50–2.00)", "0.75 (0.50–1.00)"]
    assert goals == "1.0 × torch.compile: no; 1.3 × PyTorch eager: yes"
    assert cuda.memory_lines(rows, WHO) == [[title, "100", "200", "300", "200", "200", "200", "yes"]]


def test_other_work_is_pointed_out():
    rows = {
        "baby": figure([[1.0]], [[1.0]], [[1.0]], loss={"minigrad": 3.0, "PyTorch eager": 3.1, "torch.compile": 2.0})
    }
    (note,) = cuda.loss_notes(rows)
    assert note.endswith("NOT THE SAME WORK: torch.compile")
    rows["baby"]["loss"]["torch.compile"] = float("nan")
    assert cuda.loss_notes(rows)[0].endswith("NOT THE SAME WORK: torch.compile")


def test_large_errors_are_pointed_out():
    assert cuda.error_cell(None, 2**-8) == "–"
    assert cuda.error_cell(1e-2, 2**-8) == "1.0e-02"
    assert cuda.error_cell(4e-2, 2**-8) == "4.0e-02 (!)"
    assert cuda.error_cell(float("nan"), 2**-8).endswith("(!)")


# The scripts themselves


@needs_no_card
def test_without_a_card_it_says_so():
    error = run([sys.executable, "benchmarks/cuda.py", "--against", "none"], status=1)
    assert re.match(r'error: device "cuda" needs .*: (sudo|pip) ', error.splitlines()[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "huge"], "unknown row 'huge'; there are baby, 124m, 124m-tf32"),
        (["--tables", "all"], "unknown table 'all'; there are steps, kernels, profile"),
        (["--threads", "1,2"], "--threads: the card does the work here"),
    ],
)
def test_mistakes_get_one_clear_line(monkeypatch, options, message):
    with pytest.raises(common.BenchmarkError, match=re.escape(message)):
        main(monkeypatch, "--against", "none", *options)


def test_nobody_takes_it_for_nvidias_package():
    """With the folder of the benchmarks on the path, as for the scripts there, `import cuda` finds cuda.py."""
    code = "import sys; sys.path.insert(0, 'benchmarks')\ntry:\n    import cuda\nexcept ImportError as e: print(e)"
    assert "not NVIDIA's package" in run([sys.executable, "-c", code])


BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="no bash")


@needs_bash
class TestCheck:
    script = "benchmarks/cuda_check.sh"

    def test_its_syntax(self):
        run([BASH, "-n", self.script])

    def test_dry_run_says_what_would_run(self, tmp_path):
        output = run([BASH, self.script, "--dry-run", tmp_path / "out"], PYTHON=sys.executable)
        names = re.findall(r"^(\w+), at most (\d+) s: (.*)", output, re.M)
        assert [name for name, *_ in names] == ["tests_off", "tests_on", "kernels", "bench", "recipe", "profile"]
        assert sum(int(limit) + 5 for _, limit, _ in names) < 600
        commands = {name: command for name, _, command in names}
        assert "MINIGRAD_KERNELS=reference" in commands["tests_off"]
        assert "MINIGRAD_KERNELS=cuda" in commands["tests_on"]
        assert "tests/cuda/kernels" in commands["kernels"]
        assert "--device cuda --preset baby" in commands["recipe"]
        assert not (tmp_path / "out").exists()

    def test_parts_limits_and_data(self, tmp_path):
        data = tmp_path / "some.txt"
        data.write_text("text")
        options = ["--dry-run", "--only", "recipe,bench", "--limit", "recipe=7", "--data", data]
        output = run([BASH, self.script, *options], PYTHON=sys.executable)
        assert re.findall(r"^(\w+), at most", output, re.M) == ["recipe", "bench"]
        assert re.search(rf"^recipe, at most 7 s: .*--data {data}", output, re.M)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--only", "tests,all"], "unknown part 'all'; there are tests, kernels, bench, recipe, profile"),
            (["--limit", "bench"], "--limit bench: expected PART=SECONDS"),
            (["--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
            (["--fast"], "unknown option --fast"),
        ],
    )
    def test_mistakes(self, options, message):
        assert message in run([BASH, self.script, *options], status=1)

    @needs_no_card
    def test_a_part_that_fails_leaves_a_report(self, tmp_path):
        run([BASH, self.script, "--only", "profile", tmp_path], PYTHON=sys.executable)
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["parts"]["profile"]["verdict"] == "failed (status 1)"
        text = (tmp_path / "report.md").read_text("utf-8")
        assert 'error: device "cuda" needs' in text
        assert text.count("error: device") == (tmp_path / "log.txt").read_text("utf-8").count("error: device") == 1

    def test_a_machine_whose_time_is_up_keeps_what_was_there(self, tmp_path):
        """The outer limit ends the script in the middle of a part: its output stays, and the part ends too."""
        python, out = tmp_path / "python", tmp_path / "out"
        part = f"echo half of the figures; exec {sys.executable} -c 'import time; time.sleep(60)'"
        python.write_text(
            f'#!/bin/sh\ncase "$1" in benchmarks/cuda.py) echo $$ >{tmp_path}/pid; {part};; esac\n'
            f'exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        script = subprocess.Popen(
            [BASH, self.script, "--only", "bench", out],
            env={**os.environ, "PYTHON": str(python)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = out / "parts" / "bench.log"
        until(lambda: log.exists() and "half of the figures" in log.read_text())
        script.terminate()
        assert script.wait(60) == 143
        assert "half of the figures" in log.read_text()
        assert (out / "report.md").exists()
        until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())

    def test_a_part_over_its_limit_is_interrupted_and_can_save_what_it_has(self, tmp_path):
        python, out = tmp_path / "python", tmp_path / "out"
        code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
        python.write_text(
            f'#!/bin/sh\ncase "$1" in benchmarks/cuda.py) exec {sys.executable} -c "{code}";; esac\n'
            f'exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        run([BASH, self.script, "--only", "bench", "--limit", "bench=2", out], PYTHON=str(python))
        assert "saved" in (out / "log.txt").read_text()
        assert "stopped at its limit of 2 s" in (out / "report.md").read_text("utf-8")


def until(is_so, seconds=30):
    """Wait until is_so()."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


# The report

BAR = "  0%|          | 0/500 [00:00<?, ?it/s]\r100%|██| 500/500 [01:05<00:00, 7.7it/s, loss 1.2]\n"


def test_report(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    log = f"step 0: train loss 4.2, validation loss 4.2100\n{BAR}best        validation loss 1.4689, kept in out\n"
    cases = '<testcase classname="a" name="b"/><testcase classname="a" name="c"><failure/></testcase>'
    xml = f'<testsuites><testsuite tests="3" skipped="1">{cases}</testsuite></testsuites>'
    written = {
        "recipe.log": log,
        "recipe.json": '{"seconds": 70, "limit": 100, "status": 0}',
        "tests_off.log": "x\n" * 100,
        "tests_off.xml": xml,
        "tests_off.json": '{"seconds": 75, "limit": 75, "status": 124}',
        "missing.txt": "no Python package is missing\n",
    }
    for name, text in written.items():
        (parts / name).write_text(text, "utf-8")
    all_ = cuda_report.collect(parts)
    assert all_["parts"]["recipe"]["results"] == {
        **{"best_val_loss": 1.4689, "steps": 500, "of": 500, "training_seconds": 65}
    }
    assert all_["parts"]["tests_off"]["results"] == {"tests": 3, "skipped": 1, "passed": 1, "failed": ["a::c"]}
    (parts / "kernels.log").write_text("379 skipped", "utf-8")
    (parts / "kernels.xml").write_text('<testsuite tests="9" skipped="9"></testsuite>', "utf-8")
    (parts / "kernels.json").write_text('{"seconds": 1, "limit": 9, "status": 0}', "utf-8")
    assert cuda_report.collect(parts)["parts"]["kernels"]["verdict"] == "failed (not one test ran)"
    text = cuda_report.markdown(all_)
    assert "| Tests, kernels off | stopped at its limit of 75 s | 75 | 1 passed, 1 failed, 1 skipped |" in text
    assert "| The baby recipe | done | 70 | best validation loss 1.4689, 500/500 steps in 65 s |" in text
    assert "- failed: a::c" in text
