"""One report of what cuda_check.sh ran: report.md, and report.json with all figures.

    python benchmarks/cuda_report.py PARTS FOLDER

PARTS is the folder where cuda_check.sh keeps, for every part NAME, what it printed (NAME.log), how it ended (NAME.json)
and what it measured: NAME.figures.json of a benchmark, NAME.xml of tests. The report is written again after every part.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "tests_off": "Tests, kernels off",
    "tests_on": "Tests, MINIGRAD_KERNELS=cuda",
    "kernels": "Every kernel against its reference",
    "bench": "Speed and memory",
    "recipe": "The baby recipe",
    "profile": "Where a step's time goes",
}
PACKAGES = ["numpy", "cupy-cuda12x", "cupy-cuda13x", "ml_dtypes", "torch", "triton", "pytest"]
SHOWN = 60  # lines of a part that failed; log.txt has them all
TIMED_OUT = (124, 137)  # the status that `timeout` gives


def versions() -> dict[str, str]:
    """The machine, the driver and the packages."""
    found = {"Python": platform.python_version(), "system": platform.platform()}
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["card, driver, memory"] = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "none"
    except OSError:
        found["card, driver, memory"] = "nvidia-smi is not there"
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def verdict(ended: dict[str, Any], found: dict[str, Any]) -> str:
    if ended["status"] in TIMED_OUT:
        return f"stopped at its limit of {ended['limit']} s"
    if ended["status"] == 0 and found.get("passed") == 0:
        return "failed (not one test ran)"
    return "done" if ended["status"] == 0 else f"failed (status {ended['status']})"


def test_results(path: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and which failed."""
    try:
        suites = list(ElementTree.parse(path).iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {}
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in ElementTree.parse(path).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "passed": counts["tests"] - counts["skipped"] - len(failed), "failed": failed}


def recipe_results(log: str) -> dict[str, Any]:
    """What examples/train_shakespeare.py said: the best validation loss, and how long the training's bar ran."""
    losses = [float(value) for value in re.findall(r"validation loss (\d+\.\d+)", log)]
    steps = re.findall(r"(\d+)/(\d+) \[(?:(\d+):)?(\d+):(\d+)<", log)
    found: dict[str, Any] = {"best_val_loss": min(losses, default=None)}
    if steps:
        done, of, hours, minutes, seconds = (int(number or 0) for number in steps[-1])
        found |= {"steps": done, "of": of, "training_seconds": 3600 * hours + 60 * minutes + seconds}
    return found


def results(name: str, folder: Path, log: str) -> dict[str, Any]:
    if name == "recipe":
        return recipe_results(log)
    if (folder / f"{name}.xml").exists():
        return test_results(folder / f"{name}.xml")
    try:
        return json.loads((folder / f"{name}.figures.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def collect(folder: Path) -> dict[str, Any]:
    """Everything that is known so far, by part."""
    parts = {}
    for name in PARTS:
        if (folder / f"{name}.json").exists():
            ended = json.loads((folder / f"{name}.json").read_text("utf-8"))
            log = (folder / f"{name}.log").read_text("utf-8", errors="replace")
            found = results(name, folder, log)
            parts[name] = {**ended, "verdict": verdict(ended, found), "results": found, "log": log}
    note = folder / "missing.txt"
    return {
        "versions": versions(),
        "packages": note.read_text("utf-8").strip() if note.exists() else "",
        "parts": parts,
    }


def summary(name: str, found: dict[str, Any]) -> str:
    """A part's result in a few words."""
    if not found:
        return ""
    if name == "recipe":
        loss, seconds = found["best_val_loss"], found.get("training_seconds")
        text = "no validation loss" if loss is None else f"best validation loss {loss:.4f}"
        return text + (f", {found['steps']}/{found['of']} steps in {seconds} s" if seconds is not None else "")
    if "passed" in found:
        return f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
    if name == "bench":
        answers = [answer for answers in found["kernels"].values() for answer in answers.values()]
        failed = sum("failed" in answer for answer in answers)
        return f"{len(found['rows'])} training steps, {len(answers) - failed} kernels, and {failed} that failed"
    return ""


def markdown(all_: dict[str, Any]) -> str:
    """The report, for people."""
    lines = ["# What the card showed", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in all_["versions"].items()]
    lines += ["", all_["packages"], "", "| part | | seconds | result |", "| --- | --- | ---: | --- |"]
    for name, part in all_["parts"].items():
        lines.append(f"| {PARTS[name]} | {part['verdict']} | {part['seconds']} | {summary(name, part['results'])} |")
    for name, part in all_["parts"].items():
        lines += ["", f"## {PARTS[name]}", ""]
        lines += [f"- failed: {test}" for test in part["results"].get("failed", [])]
        whole = name in ("bench", "profile")
        lines += ["```", *shown(part["log"], None if whole else 10 if part["status"] == 0 else SHOWN), "```"]
    return "\n".join(lines) + "\n"


def shown(log: str, last: int | None) -> list[str]:
    """The last lines of what a part printed, a progress bar's last state alone."""
    lines = [line.rpartition("\r")[2].replace("```", "'''") for line in log.rstrip().splitlines()]
    return lines if last is None else lines[-last:]


def main() -> None:
    sys.path[0] = str(ROOT)
    from minigrad.serialization import write_atomically

    folder, out = map(Path, sys.argv[1:])
    all_ = collect(folder)
    write_atomically(out / "report.md", markdown(all_).encode())
    for part in all_["parts"].values():
        del part["log"]
    write_atomically(out / "report.json", json.dumps(all_, indent=1).encode())


if __name__ == "__main__":
    main()
