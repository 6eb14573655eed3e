"""The two programs, run as a person runs them: as processes of their own or, more quickly, inside this one."""

import contextlib
import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minigrad as mg
from tests.needs import needs_fork
from tests.programs import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--device", "cpu", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 4]
SMALL += ["--eval-interval", 10, "--eval-iters", 2]


def command(program, *options):
    """The command of a program that is a process of its own."""
    return [sys.executable, "-u", EXAMPLES / f"{program}.py", *map(str, options)]


def run(program, *options):
    """What a program prints, inside this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run_program(program, *options) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text("the cat sat on the mat.\nthe dog sat on the log.\n" * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A finished run of 20 steps: its folder and what it printed."""
    out = tmp_path_factory.mktemp("trained")
    words = command("train_shakespeare", *SMALL, "--data", text, "--out", out, "--max-iters", 20)
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return out, result


def test_training_tells_what_it_does(trained, text):
    out, result = trained
    assert re.search(r"^device +cpu$", result.stdout, re.M)
    assert f"{text}: 2,880 characters, 15 distinct" in result.stdout
    assert re.search(r"^model +[\d,]+ parameters: block_size 16, n_layer 1", result.stdout, re.M)
    assert len(re.findall(r"^ *step +\d+: train loss \d\.\d{4}, validation loss \d\.\d{4}", result.stdout, re.M)) == 3
    assert re.search(r"^sample\n\n(.|\n){500}", result.stdout, re.M)
    for shown in ("20/20", "loss ", "lr ", "norm ", "tok/s", "it/s"):
        assert shown in result.stderr, shown
    assert {"last.safetensors", "best.safetensors", "metrics.csv"} <= {path.name for path in out.iterdir()}


def test_options_override_the_preset(text, tmp_path):
    options = ["--preset", "baby", *SMALL, "--data", text, "--out", tmp_path, "--max-iters", 0]
    printed = run("train_shakespeare", *options)
    assert "n_embd 16, dropout 0.2, bias False" in printed
    assert "max_iters 0, batch_size 4" in printed
    assert "lr_decay_iters 5000" in printed


def test_resume_goes_on_and_the_next_run_keeps_the_old(trained, text, tmp_path):
    common, whole = [*SMALL, "--data", text, "--out", tmp_path], trained[1].stdout
    run("train_shakespeare", *common, "--max-iters", 10)
    printed = run("train_shakespeare", "--data", text, "--out", tmp_path, "--resume", "--max-iters", 20)
    assert "from step 10" in printed
    # the whole run at once printed the same estimates and the same sample (lr_decay_iters is the preset's in both)
    assert estimates(printed) == estimates(whole)[2:]
    assert sample(printed) == sample(whole)
    again = run("train_shakespeare", *common, "--max-iters", 0)
    assert f"moved       the files of an earlier run in {tmp_path} to {tmp_path / 'previous-1'}" in again


def estimates(printed):
    return re.findall(r"step +(\d+): train loss ([\d.]+), validation loss ([\d.]+)", printed)


def sample(printed):
    return printed.partition("sample\n")[2].partition("more samples")[0]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals that Windows has no equals of")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupt_saves_and_says_how_to_resume(text, tmp_path, number):
    words = command("train_shakespeare", *SMALL, "--data", text, "--out", tmp_path, "--max-iters", 1_000_000)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "last.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    match = re.search(r"interrupted; step (\d+) is saved\. To resume:\n  (python .*--resume)$", output, re.M)
    assert match, output
    assert f"--out {tmp_path}" in match[2]
    stopped = int(match[1])
    resumed = ["--data", text, "--out", tmp_path, "--resume", "--max-iters", stopped + 1]
    assert f"from step {stopped}" in run("train_shakespeare", *resumed)


def test_sample_continues_the_prompt(trained):
    options = ["--checkpoint", trained[0], "--prompt", "the cat", "--max-new-tokens", 30, "--top-k", 5, "--top-p", 0.9]
    one, two = run("sample", *options, "--seed", 1), run("sample", *options, "--seed", 1)
    assert one == two
    assert one.startswith("the cat")
    assert len(one) == len("the cat") + 30 + 1
    assert run("sample", *options, "--seed", 2) != one


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("train_shakespeare", ["--n-embd", "10", "--n-head", "3"], "n_embd 10 is not divisible by n_head 3"),
        ("train_shakespeare", ["--data", "missing.txt"], "missing.txt"),
        ("train_shakespeare", ["--data", "."], "."),
        ("train_shakespeare", ["--block-size", "5000"], "the text is too short"),
        ("train_shakespeare", ["--device", "tpu"], 'unknown device "tpu"'),
        ("train_shakespeare", ["--resume", "--out", "nowhere"], "there is no such file"),
        ("train_shakespeare", ["--batch-size", "0"], "batch_size is 0"),
        ("sample", ["--checkpoint", "nowhere"], "nowhere: found no checkpoint"),
        ("sample", ["--prompt", "THE CAT"], "'T'"),
        ("sample", ["--prompt", ""], "--prompt is empty"),
        ("sample", ["--temperature", "-1"], "temperature is -1.0; expected a number of at least 0"),
        ("sample", ["--top-k", "0"], "top_k is 0; expected a whole number of at least 1"),
    ],
)
def test_mistakes_get_one_clear_line(program, options, message, trained, text, tmp_path):
    usual = {"--checkpoint": trained[0]} if program == "sample" else {"--data": text, "--out": tmp_path}
    options = [*options, *(word for name, value in usual.items() if name not in options for word in (name, value))]
    end = run_program(program, *options)
    assert end.startswith("error: ")
    assert "\n" not in end
    assert message in end


@pytest.mark.parametrize("program", ["train_shakespeare", "sample"])
def test_a_mistake_is_printed_without_a_traceback_and_is_the_exit_status(program, trained):
    options = ["--resume", "--out", "nowhere"] if program == "train_shakespeare" else ["--checkpoint", "nowhere"]
    result = subprocess.run(command(program, *options), capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-layer", 2], "--resume: n_layer is 2; expected 1, as in the run"),
        (["--optimizer", "muon"], "--resume: optimizer is muon; expected adamw, as in the run"),
        (
            ["--preset", "baby"],
            "--resume: n_layer is 6 in the preset baby; expected 1, as in the run; leave --preset out",
        ),
    ],
)
def test_what_makes_a_run_another_one_is_refused(trained, text, options, message):
    resume = ["--device", "cpu", "--data", text, "--out", trained[0], "--resume"]
    assert run_program("train_shakespeare", *resume, *options) == f"error: {message}"


def test_a_command_with_a_preset_goes_on_with_resume(text, tmp_path):
    """As the command does that an interrupted run prints."""
    command = ["--preset", "cpu", *SMALL, "--data", text, "--out", tmp_path, "--max-iters", 1]
    assert run_program("train_shakespeare", *command) == 0
    assert run_program("train_shakespeare", *command, "--resume") == 0


def test_a_run_goes_on_with_less_memory_to_the_same_bits(text, tmp_path):
    command = [*SMALL, "--dropout", 0.2, "--data", text]
    for out, options in ((tmp_path / "whole", []), (tmp_path / "resumed", ["--max-iters", 2])):
        assert run_program("train_shakespeare", *command, "--out", out, "--max-iters", 5, *options) == 0
    resume = ["--device", "cpu", "--data", text, "--out", tmp_path / "resumed", "--resume"]
    assert run_program("train_shakespeare", *resume, "--checkpoint", "--max-iters", 5) == 0
    whole, resumed = (mg.load(tmp_path / out / "last.safetensors") for out in ("whole", "resumed"))
    assert all(resumed[name].data.tobytes() == value.data.tobytes() for name, value in whole.items())


def test_resume_on_another_text_says_so(trained, tmp_path):
    """Before it comes upon a character that the run does not know."""
    (tmp_path / "other.txt").write_text("THE CAT SAT. " * 100, encoding="utf-8")
    resume = ["--device", "cpu", "--data", tmp_path / "other.txt", "--out", trained[0], "--resume"]
    last = trained[0] / "last.safetensors"
    message = f"error: {last} was trained on another text; resume with the same --data"
    assert run_program("train_shakespeare", *resume) == message


@needs_fork
def test_how_many_processes_is_chosen_anew_on_resume(text, tmp_path, monkeypatch, capsys):
    """Unless it was asked for: a resumed run may have smaller batches, or another device."""
    monkeypatch.setattr(mg, "get_num_threads", lambda: 2)
    common = ["--device", "cpu", "--data", text, "--out", tmp_path]
    assert run_program("train_shakespeare", *SMALL, *common, "--max-iters", 1) == 0
    assert "processes 2" in capsys.readouterr().out
    assert run_program("train_shakespeare", *common, "--resume", "--max-iters", 2, "--batch-size", 1) == 0
    assert "processes 1" in capsys.readouterr().out


def test_the_command_for_more_can_be_pasted(text, tmp_path, capsys):
    out = tmp_path / "my run"
    assert run_program("train_shakespeare", *SMALL, "--data", text, "--out", out, "--max-iters", 0) == 0
    assert capsys.readouterr().out.endswith(f"more samples: python examples/sample.py --checkpoint '{out}'\n")


def test_a_text_without_a_line_break_is_sampled_from_its_first_character_on(tmp_path, capsys):
    text, out = tmp_path / "line.txt", tmp_path / "out"
    text.write_text("abc " * 300)
    assert run_program("train_shakespeare", *SMALL, "--data", text, "--out", out, "--max-iters", 0) == 0
    capsys.readouterr()
    assert run_program("sample", "--checkpoint", out, "--max-new-tokens", 5) == 0
    assert re.fullmatch("[abc ]{6}\n", capsys.readouterr().out)


def test_a_run_does_not_go_where_a_model_for_other_tools_is(text, tmp_path):
    (tmp_path / "config.json").touch()
    message = run_program("train_shakespeare", *SMALL, "--data", text, "--out", tmp_path)
    assert message.startswith(f"error: {tmp_path} holds a model in Hugging Face's layout (config.json)")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "program", ["train_shakespeare", "finetune --data text.txt", "translate", "ladder", "prepare_data text.txt"]
)
def test_an_empty_name_is_not_the_folder_of_the_program(program, capsys, tmp_path, monkeypatch):
    """`--out "$OUT"` with a variable that is not set."""
    monkeypatch.chdir(tmp_path)
    assert run_program(*program.split(), "--out", "") == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("error: argument --out: expected the name of a folder, got an empty one")
    )
    assert list(tmp_path.iterdir()) == []
