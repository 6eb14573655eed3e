"""The benchmarks of an NVIDIA card, as far as they run without one.

minigrad's side runs on the fake CuPy, with the emulator in place of the card, and a clock in place of events; PyTorch's
on the CPU. At sizes that take no time, so that the figures mean nothing here.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cuda_check, cuda_steps, operations, ops, train_step, workers
from benchmarks.workers import BenchmarkError
from minigrad.kernels.cuda import GELU, launch
from minigrad.kernels.cuda.products import rounding_to_tf32
from tests.cuda.kernels.cases import TRIAL, Case, cases
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu
from tests.fakes.workers import run_here

ROOT = Path(__file__).parents[2]
needs_no_card = pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there may be a card here")


# What a row is


def test_flops_of_a_step_counted_by_hand():
    """Every product of the tiny model, one after the other."""
    row = train_step.ALL_ROWS["cuda-tiny"]
    m, n = row.model, row.tokens
    C, T, V = m.n_embd, m.block_size, m.vocab_size

    def product(rows, inner, columns):
        return 2 * rows * inner * columns

    block = product(n, C, 3 * C) + product(n, C, C) + product(n, C, 4 * C) + product(n, 4 * C, C)
    attention = row.batch * (product(T, C, T) + product(T, T, C)) / 2  # half of the scores are masked
    forward = m.n_layer * (block + attention) + product(n, C, V)
    assert row.flops == 3 * forward


def test_flops_and_parameters_are_those_of_the_issue():
    rows = train_step.CUDA_ROWS
    assert 26e12 < rows["cuda-124m"].flops < 28e12
    assert rows["cuda-baby"].flops == pytest.approx(1.1e12, rel=0.02)
    assert rows["cuda-124m"].tokens == 32 * 1024


def test_adamw_moves_28_bytes_a_parameter():
    small = TRIAL
    count = small.V * small.C + small.T * small.C + small.n_layer * (12 * small.C**2 + 13 * small.C) + 2 * small.C
    for dtype in ("float32", "bfloat16"):
        assert operations.update_bytes("AdamW step", small, dtype) == 28 * count


# minigrad's side


def a_small_clock(self, fill_bytes=0):
    self.cupy, self.buffer = fake_cupy.cupy, fake_cupy.cupy.empty(16, "uint8")


@pytest.fixture
def card(monkeypatch):
    """A fake of a card, and what the benchmarks ask of it besides: times of events, and its name."""
    record = fake_cupy.Stream.record

    def timed(stream, event=None):
        event = record(stream, event)
        event.time = time.perf_counter()
        return event

    with fake_gpu(monkeypatch) as launches:
        monkeypatch.setattr(fake_cupy.Stream, "record", timed)
        more = {"get_elapsed_time": lambda start, end: 1e3 * (end.time - start.time)}
        monkeypatch.setattr(fake_cupy.cupy.cuda, "get_elapsed_time", more["get_elapsed_time"], raising=False)
        about = {"name": b"A fake"}
        monkeypatch.setattr(fake_cupy.cupy.cuda.runtime, "getDeviceProperties", lambda i: about, raising=False)
        monkeypatch.setattr(operations, "DRAWN", 4999)
        monkeypatch.setattr(ops.CupyClock, "__init__", a_small_clock)
        monkeypatch.setattr(cuda_steps, "LEAD_IN", 1)
        monkeypatch.setattr(cuda_steps, "WARM_UP", 4)  # graph.EAGER_STEPS, and the capture
        monkeypatch.setenv("MINIGRAD_KERNELS", "cuda")
        with rounding_to_tf32(False):  # whatever a contestant does about it
            yield launches


def cells(output, title):
    (line,) = [line for line in output.splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@needs_compiler
@pytest.mark.parametrize("graph", [True, False])
def test_training_steps(card, monkeypatch, tmp_path, graph):
    file, row = tmp_path / "figures.json", train_step.ALL_ROWS["cuda-tiny"]
    rates, built = [], []
    monkeypatch.setattr(train_step.Contestant, "product_rate", lambda self, dtype: rates.append(dtype) or 1e9)
    new_trainer = cuda_steps.new_trainer
    monkeypatch.setattr(cuda_steps, "new_trainer", lambda *given: built.append(new_trainer(*given)) or built[-1])
    options = ["--against", "none", "--rows", "cuda-tiny", "--json", file, *(() if graph else ("--no-graph",))]
    output, error = run_here(monkeypatch, train_step, *options)
    assert not error
    ms, tokens = cells(output.partition("peak memory")[0], row.title)[:2]
    assert "A fake, CuPy" in output
    (run_,) = json.loads(file.read_text())["runs"]
    found = run_["rows"]["cuda-tiny"]
    assert len(found["ms"]["minigrad"]) == 2
    assert found["first"]["minigrad"] == pytest.approx(np.log(65), abs=0.1)
    assert rates == ["bfloat16"]
    median = np.median(found["ms"]["minigrad"])
    assert float(ms.replace(",", "")) == pytest.approx(median, rel=0.01, abs=0.5)
    assert int(tokens.replace(",", "")) == round(1e3 * row.tokens / median)
    assert f"{row.flops / median * 1e3 / 1e9:.1%} of the card's" in output
    (trainer,) = built
    assert (trainer.graph is not None and trainer.graph.recording is not None) == graph
    assert "adamw" in card


@needs_compiler
def test_every_kernel_is_in_the_table_and_right(card):
    """At small sizes. On a card, kernels/test_on_card.py tests the same."""
    for dtype in ("bfloat16", "float32"):
        for name, case in cases(TRIAL, dtype).items():
            if case.comparable:
                assert case.is_right(), f"{name}, {dtype}"
            else:  # attention's dropout: its kernels have to have run all the same
                case.results(False)
    sources = "".join(path.read_text("utf-8") for path in launch.FOLDER.glob("*.cu"))
    there = set(re.findall(r"__global__ (?:__launch_bounds__\(\w+\) )?void (\w+)\(", sources))
    assert there - set(card) == {"random_words"}  # which is used when the other kernels are off


@needs_compiler
def test_a_wrong_kernel_is_noticed(card, monkeypatch):
    gelu = cases(TRIAL, "float32")["gelu"]
    assert gelu.largest_error() < 1e-5
    right = GELU.backward
    monkeypatch.setattr(GELU, "backward", staticmethod(lambda ctx, g: 1.1 * right(ctx, g)))
    assert gelu.largest_error() == pytest.approx(0.1, rel=0.01)
    assert not gelu.is_right()
    assert not Case(lambda reference: [np.full(3, 1.0 if reference else np.nan)], 2**-8).is_right()


RATES = {"FLOP": 1e9, "B": 1e9}


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernel_table(card, monkeypatch, dtype):
    monkeypatch.setattr(ops.Contestant, "machine_rates", lambda self: RATES)
    options = ["--device", "cuda", "--dtype", dtype, "--shapes", "tiny", "--ops", "gelu,soft,AdamW"]
    output, error = run_here(monkeypatch, ops, *options, "--against", "none", "--rounds", 1, "--quick")
    assert not error
    assert "A fake, CuPy" in output
    for name in ("gelu: forward", "gelu: backward", "softmax: backward", "AdamW step"):
        us, *others, rate, share = cells(output, name)
        assert float(us.replace(",", "")) > 0
        assert others == ["–"] * 5
        assert rate.endswith("GB/s")
        assert share.endswith("%")
    assert "adamw" in card


@needs_compiler
def test_rates_of_the_card(card, monkeypatch):
    monkeypatch.setattr(ops, "arrays", lambda *_: (lambda shape: operations.numbers("float32", 16, 16), None))
    contestant = ops.Contestant("minigrad")
    contestant.prepare(threads=None, device="cuda")
    assert all(rate > 0 for rate in contestant.machine_rates().values())
    assert train_step.Contestant("minigrad").product_rate("tf32") > 0


@needs_compiler
def test_after_a_kernel_that_fails_a_new_process_goes_on(card, monkeypatch, capsys):
    real, started = ops.operation_cycle, []

    def cycle(library, op, *where):
        if op is broken:
            raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
        return real(library, op, *where)

    known = operations.on_card_too(TRIAL, "bfloat16")
    some = {"softmax": known["softmax"], "gelu": known["gelu"]}
    broken = some["softmax"]
    monkeypatch.setattr(ops, "known", lambda *_: some)
    monkeypatch.setattr(ops, "operation_cycle", cycle)
    monkeypatch.setattr(ops.Contestant, "machine_rates", lambda self: RATES)
    prepare = ops.Contestant.prepare
    noted = lambda self, **given: started.append(self) or prepare(self, **given)  # noqa: E731
    monkeypatch.setattr(ops.Contestant, "prepare", noted)
    options = ["--device", "cuda", "--shapes", "tiny", "--ops", "soft,gelu", "--against", "none", "--rounds", 1]
    output, error = run_here(monkeypatch, ops, *options, "--quick")
    assert not error
    assert cells(output, "softmax: forward") == ["failed"] + ["–"] * 7
    assert float(cells(output, "gelu: forward")[0].replace(",", "")) > 0
    assert "softmax: minigrad: RuntimeError: cudaErrorIllegalAddress" in capsys.readouterr().err
    assert len(set(map(id, started))) == 2


@needs_compiler
def test_what_was_measured_is_shown_when_it_is_stopped(card, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops.Contestant, "machine_rates", lambda self: RATES)
    monkeypatch.setattr(ops, "update_cycle", stopped)
    options = ["--device", "cuda", "--shapes", "tiny", "--ops", "gelu,AdamW", "--against", "none", "--rounds", 1]
    output, error = run_here(monkeypatch, ops, *options, "--quick")
    assert error == "\ninterrupted"
    assert float(cells(output, "gelu: forward")[0].replace(",", "")) > 0


def test_out_of_memory_is_said_in_one_line(card, monkeypatch):
    def out_of_memory(row, graph):
        raise fake_cupy.OutOfMemoryError(2**40, 2**30)

    monkeypatch.setattr(train_step.Contestant, "product_rate", lambda *_, **__: 1e9)
    monkeypatch.setattr(cuda_steps, "new_trainer", out_of_memory)
    _, error = run_here(monkeypatch, train_step, "--against", "none", "--rows", "cuda-tiny")
    assert re.match("error: minigrad: out of memory on the GPU: 1.00 TiB more", error)


@needs_compiler
def test_profile_takes_steps_in_this_process_alone(card, monkeypatch, capsys):
    """It starts no process, and asks for no rates: all its time on the card is the training step's."""
    monkeypatch.setattr(workers, "Worker", None)
    monkeypatch.setattr(train_step.Contestant, "product_rate", None)
    profiled = []
    monkeypatch.setattr(cuda_steps, "profile", lambda step, steps: profiled.append(step().item()) or "the table")
    monkeypatch.setattr(sys, "argv", ["cuda_steps", "cuda-tiny", "--steps", "2", "--no-graph", "--profile"])
    cuda_steps.main()
    output = capsys.readouterr().out
    assert re.fullmatch(r"tiny, bfloat16: losses 4\.\d{4}, 4\.\d{4}\nthe table\n", output)
    assert len(profiled) == 1


@pytest.mark.parity
def test_pytorchs_profiler_makes_a_table():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    table = cuda_steps.profile(lambda: torch.ones(1), 5)
    assert table.startswith("5 steps:")
    assert "aten::ones" in table


# PyTorch's side


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
def test_pytorch_trains_on_the_same_tokens(dtype, monkeypatch):
    monkeypatch.setattr(cuda_steps, "LEARNING_RATE", 1e-2)
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    step = cuda_steps.torch_step(train_step.ALL_ROWS["cuda-tiny"]._replace(dtype=dtype), "eager", "cpu")
    losses = [step().item() for _ in range(25)]
    assert losses[0] == pytest.approx(np.log(65), abs=0.1)
    ids = cuda_steps.tokens_to_learn(65)
    shares = np.bincount(ids) / len(ids)
    assert losses[-1] < losses[0] - 0.05  # it has begun to learn how often each token comes
    assert losses[-1] > -(shares * np.log(shares)).sum() - 0.5


@pytest.mark.parity
@needs_no_card
def test_pytorch_without_a_card_says_so():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    with pytest.raises(BenchmarkError, match="PyTorch .* finds no GPU"):
        train_step.Contestant("torch").prepare(threads=None, device="cuda")


# Tables


def test_lines_of_steps():
    ms = {"minigrad": [82, 82], "PyTorch eager": [123, 164], "torch.compile": [82, 41]}
    peaks = {who: 100.0 * i for i, who in enumerate(ms, 1)}
    figures = {"cuda-124m": {"ms": ms, "peak_mb": peaks}}
    ((title, ours, tokens, *others),) = train_step.speed_lines(figures)
    assert title == train_step.CUDA_ROWS["cuda-124m"].title
    assert (ours, tokens) == ("82", "399,610")
    assert others[:4] == ["144", "61.5", "1.75 (1.50–2.00)", "0.75 (0.50–1.00)"]
    assert others[4:] == ["1.0 (torch.compile); 1.3 (PyTorch eager)"] * 2 + ["no; goal"]
    ((title, *memory),) = train_step.memory_lines(figures)
    assert memory[:3] == ["100", "–", "–"]
    assert memory[3:] == ["200", "300", "0.5", "0.333", "1.0 (torch.compile)", "1.0 (torch.compile)", "goal"]


# The commands themselves


@needs_no_card
@pytest.mark.parametrize(
    ("benchmark", "options"),
    [(train_step, ["--device", "cuda"]), (ops, ["--device", "cuda"])],
)
def test_without_a_card_it_says_so(monkeypatch, benchmark, options):
    monkeypatch.setenv("MINIGRAD_KERNELS", "cuda")
    _, error = run_here(monkeypatch, benchmark, "--against", "none", *options)
    assert re.match(r'error: (minigrad: )?device "cuda" needs .*: (sudo|pip) ', error)


class TestCheck:
    @pytest.fixture
    def check(self, monkeypatch, capsys):
        """Runs the check here: what it prints; with status 0 unless it is meant to end with another."""
        environment = dict(os.environ)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def check(*options, status=0):
            monkeypatch.setattr(sys, "argv", ["cuda_check", *map(str, options)])
            if status:
                with pytest.raises(SystemExit, match=str(status)):
                    cuda_check.main()
                return capsys.readouterr().err
            cuda_check.main()
            return capsys.readouterr().out

        yield check
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)

    @pytest.fixture
    def parts(self, monkeypatch):
        """Lets the check run programs in Python, by part, in place of its own; the parts' names."""

        def parts(**programs):
            commands = {part: [sys.executable, "-c", program] for part, program in programs.items()}
            monkeypatch.setattr(cuda_check, "commands", lambda *_: commands)
            return ",".join(commands)

        return parts

    @pytest.mark.parametrize(("call", "seconds"), [("correctness", 400), ("speed", 330)])
    def test_dry_run_says_what_would_run(self, check, tmp_path, call, seconds):
        output = check(call, "--dry-run", "--out", tmp_path / "out")
        found = re.findall(r"^([\w-]+), at most (\d+) s: (.*)", output, re.M)
        assert [part for part, *_ in found] == list(cuda_check.CALLS[call])
        assert sum(int(limit) for _, limit, _ in found) <= seconds
        assert not (tmp_path / "out").exists()

    def test_what_each_part_runs(self, tmp_path):
        commands = cuda_check.commands(None, tmp_path, dict.fromkeys(cuda_check.PACKAGES.split(), "1.0"))
        joined = {part: " ".join(command) for part, command in commands.items()}
        assert set(joined) == {part for call in cuda_check.CALLS.values() for part in call}
        assert joined["proof"].endswith("-m minigrad.kernels.cuda.proof")
        assert joined["kernels"].endswith(f"--timeout 60 --timeout-method=thread {cuda_check.OF_KERNELS}")
        assert "--device cuda --preset baby" in joined["recipe"]
        for row in ("cuda-baby", "cuda-124m"):  # each by itself, after the kernels
            assert f"benchmarks.train_step --rows {row} " in joined[row]
        assert next(iter(cuda_check.CALLS["speed"])) == "table"

    def test_only_what_the_setting_decides_about_runs_with_both(self, tmp_path):
        """Tests in tests/cuda choose their kernels; a test elsewhere does what MINIGRAD_KERNELS says."""
        commands = cuda_check.commands(None, tmp_path, dict.fromkeys(cuda_check.PACKAGES.split(), "1.0"))
        assert commands["gpu"][0] == "MINIGRAD_KERNELS=reference"
        assert commands["settings"][0] == "MINIGRAD_KERNELS=cuda"
        tests = {part: {word for word in commands[part] if word.endswith(".py")} for part in commands}
        assert tests["settings"] == {name for name in tests["gpu"] if not name.startswith("tests/cuda/")}
        assert 0 < len(tests["settings"]) < len(tests["gpu"])
        everything = {path for path in ROOT.glob("tests/*/test_*.py") if "mark.cuda" in path.read_text("utf-8")}
        assert {path.relative_to(ROOT).as_posix() for path in everything} == tests["gpu"]

    def test_the_recipe_without_a_text_is_said_to_need_the_network(self, check, tmp_path):
        data, note = tmp_path / "some.txt", "without --data it needs the network"
        data.write_text("text")
        assert note in check("speed", "--dry-run")
        output = check("speed", "--dry-run", "--data", data)
        assert note not in output
        assert re.search(rf"^recipe, .* --data {data}$", output, re.M)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--only", "table,all"], "expected a part of table, profile, .*; got all"),
            (["--limit", "table"], "expected a part of .*, and more than 5 s; got table"),
            (["--limit", "table=2"], "expected a part of .*, and more than 5 s; got table 2"),
            (["--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
        ],
    )
    def test_mistakes(self, check, options, message):
        assert re.search(message, check("speed", *options, status=2))

    def test_three_files_are_left_however_many_parts(self, check, parts, tmp_path):
        parts(**dict.fromkeys(cuda_check.CALLS["speed"], "print('fine')"))
        check("speed", "--out", tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.log", "speed.md"]

    def test_report(self, check, parts, tmp_path):
        recipe = "print('  0%| 0/500\\r100%| 500/500'); print('best validation loss 1.4689')"
        names = parts(
            table="print('3 failed, 4 passed'); raise SystemExit(1)", recipe=recipe, profile="print('9 skipped in 1 s')"
        )
        check("speed", "--only", names, "--out", tmp_path)
        text = (tmp_path / "speed.md").read_text("utf-8")
        assert re.search(r"\| table \| failed \(status 1\) \| \d \| 3 failed, 4 passed \|", text)
        assert re.search(r"\| recipe \| done \| \d \| best validation loss 1.4689 \|", text)
        assert re.search(r"\| profile \| failed \(not one test ran\) \| \d \| 9 skipped in 1 s \|", text)
        assert "\n100%| 500/500\n" in text
        report = json.loads((tmp_path / "speed.json").read_text("utf-8"))
        assert report["parts"]["table"]["verdict"] == "failed (status 1)"
        assert report["versions"]["numpy"] == np.__version__
        assert "===== table: " in (tmp_path / "speed.log").read_text("utf-8")

    def test_figures_are_in_the_report(self, check, monkeypatch, tmp_path):
        write = "import sys; open(sys.argv[1], 'w').write('[1.5]')"
        commands = lambda data, work, known: {"table": [sys.executable, "-c", write, str(work / "table.json")]}  # noqa: E731
        monkeypatch.setattr(cuda_check, "commands", commands)
        check("speed", "--only", "table", "--out", tmp_path)
        assert json.loads((tmp_path / "speed.json").read_text("utf-8"))["parts"]["table"]["figures"] == [1.5]

    def test_a_program_that_is_not_there_is_left_out(self, check, monkeypatch, tmp_path):
        monkeypatch.setattr(cuda_check, "commands", lambda *_: {"racecheck": ["no-such-program"]})
        check("correctness", "--only", "racecheck", "--out", tmp_path)
        assert "| racecheck | left out: there is no such program |" in (tmp_path / "correctness.md").read_text("utf-8")

    def test_much_output_is_cut(self, check, parts, tmp_path, monkeypatch):
        monkeypatch.setattr(cuda_check, "LOG_BYTES", 1000)
        check("speed", "--only", parts(table="print('x\\n' * 9999 + 'the end')"), "--out", tmp_path)
        log = (tmp_path / "speed.log").read_text("utf-8")
        assert len(log) < 1500
        assert log.endswith("the end\n")

    def test_a_part_over_its_limit_is_interrupted_and_can_save_what_it_has(self, check, parts, tmp_path):
        code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
        names = parts(table=code, profile="print('goes on')")
        check("speed", "--only", names, "--limit", "table=6", "--out", tmp_path)
        assert "saved" in (tmp_path / "speed.log").read_text("utf-8")
        text = (tmp_path / "speed.md").read_text("utf-8")
        assert "stopped at its limit of 6 s" in text
        assert re.search(r"\| profile \| done \| \d \| goes on \|", text)

    def test_a_machine_whose_time_is_up_keeps_what_was_there(self, tmp_path):
        """The outer limit ends the check in the middle of a part: its output stays, and the part's processes end."""
        part = "import os, time; print('half of the figures', os.getpid(), '.', flush=True); time.sleep(60)"
        code = (
            "import sys; from benchmarks import cuda_check\n"
            f"cuda_check.commands = lambda *_: {{'table': [sys.executable, '-c', {part!r}]}}\n"
            f"sys.argv[1:] = ['speed', '--only', 'table', '--out', {str(tmp_path)!r}]; cuda_check.main()"
        )
        check = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
        log = tmp_path / "speed.log"
        until(lambda: log.exists() and re.search(r"figures \d+ \.", log.read_text().split("\n", 2)[-1]))
        check.terminate()
        assert check.wait(60) == 143
        assert "| table | stopped from outside |" in (tmp_path / "speed.md").read_text("utf-8")
        pid = re.search(r"figures (\d+) \.", log.read_text())[1]
        until(lambda: not Path(f"/proc/{pid}").exists())


def until(is_so, seconds=30):
    """Wait until is_so()."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)
