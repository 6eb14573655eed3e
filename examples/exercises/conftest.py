"""What pytest shows for the exercises: one line each, what they print, and no tracebacks."""

import os
import shlex
from pathlib import Path

from grading import EXERCISES

import gpt

FOLDER = Path(__file__).parent
TRAIN = Path(gpt.__file__).parents[1] / "examples" / "train_shakespeare.py"  # FOLDER may be a copy elsewhere
COLORS = {"right": "green", "wrong": "red", "not written yet": "yellow"}


def pytest_addoption(parser):
    parser.addoption("--show", action="store_true", help="draw each wrong gradient beside the right one")


def pytest_configure(config):
    tests = {FOLDER / each.file: f"{FOLDER / 'test_backward.py'}::test_backward[{each.name}]" for each in EXERCISES}
    config.args = [tests.get(Path(argument).resolve(), argument) for argument in config.args]  # ex01_add.py is no test
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if all(path.is_relative_to(FOLDER) for path in paths):  # only exercises: the list below is enough
        config.option.tbstyle = "no"
        config.option.reportchars = ""


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    graded = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", []):
            if name == "exercise":
                graded[tuple(value)] = report.capstdout
    if not graded:
        return
    terminalreporter.write_sep("=", "exercises")
    for (file, name, state, message, picture), printed in sorted(graded.items()):
        terminalreporter.write(f"{file:<22}{name:<14}")
        terminalreporter.write_line(state, **{COLORS[state]: True})
        if state == "wrong":
            terminalreporter.write_line(f"    {message}")
        if picture:
            path = Path(picture)
            terminalreporter.write_line(f"    picture: {os.path.relpath(path) if path.exists() else picture}")
        for line in printed.splitlines():
            terminalreporter.write_line(f"    printed: {line}")
    right = sum(state == "right" for _, _, state, *_ in graded)
    terminalreporter.write_line(f"{right} of {len(graded)} right; {next_step(sorted(graded))}")


def next_step(graded):
    """What to do now: the first exercise to fix, else the next one to write, else the command that trains with all."""
    for pending, what in (("wrong", "fix"), ("not written yet", "next is")):
        for file, _, state, *_ in graded:
            if state == pending:
                return f"{what} {file}"
    program, folder = map(os.path.relpath, (TRAIN, FOLDER))  # from where pytest was run
    command = ["python", program, "--preset", "cpu", "--ops", folder, "--max-iters", "100"]
    return f"train with them: {shlex.join(command)}"
